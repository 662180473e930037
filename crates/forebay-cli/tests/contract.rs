//! The names that scripts rely on, and how the command behaves at a terminal's edges.

mod support;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use support::{command, fixtures, json, run, scratch, text};

fn assert_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no '{key}' in {value}");
    }
}

fn synthetic(folder: &tempfile::TempDir, size: &str) -> String {
    let model = folder.path().join("model.gguf");
    assert!(run(&["synth", text(&model), "--size", size]).status.success());
    text(&model).to_owned()
}

#[test]
fn load_reports_what_the_contract_names() {
    let folder = scratch();
    let model = synthetic(&folder, "5MiB");
    let report = json(&["load", &model, "--json"]);
    let top = "model backends files read upload stall time memory digests";
    assert_keys(&report, &top.split(' ').collect::<Vec<_>>());
    assert_keys(&report["model"], &["format", "files", "tensors", "bytes"]);
    let backend = ["backend", "requested", "mode", "why", "tensors", "bytes"];
    assert_keys(&report["backends"][0], &backend);
    let file = ["path", "engine", "access", "dio_align", "cached_bytes_before", "fallbacks"];
    assert_keys(&report["files"][0], &file);
    assert_keys(&report["read"], &["bytes", "ops", "resubmitted", "seconds", "gib_per_s"]);
    assert_keys(&report["upload"], &["bytes", "copies", "seconds", "gib_per_s"]);
    assert_keys(&report["stall"], &["reader_waited_s", "uploader_waited_s"]);
    assert_keys(&report["time"], &["total_s", "open_s", "plan_s", "first_tensor_s"]);
    let memory = "staging_bytes peak_rss_bytes prefetched_bytes locked_bytes lock_refused_bytes \
                  reclaimed_bytes";
    assert_keys(&report["memory"], &memory.split_whitespace().collect::<Vec<_>>());
    assert_eq!(report["upload"]["bytes"], report["model"]["bytes"]);
    let bytes = report["read"]["bytes"].as_u64().unwrap();
    let model_bytes = report["model"]["bytes"].as_u64().unwrap();
    assert!((model_bytes..model_bytes + 65_536).contains(&bytes), "{bytes} for {model_bytes}");
}

#[test]
fn plan_promises_what_load_does() {
    let folder = scratch();
    let model = synthetic(&folder, "5MiB");
    for mode in ["dio", "none", "mmap"] {
        let flags = ["--json", "--load-mode", mode, "--chunk", "256KiB", "--gpu-layers", "2"];
        let with = |command| {
            let mut arguments: Vec<&str> = vec![command, &model];
            arguments.extend(flags);
            json(&arguments)
        };
        let (plan, load) = (with("plan"), with("load"));
        assert_keys(&plan, &["model", "backends", "files", "staging_bytes", "why"]);
        let file = "path engine access dio_align reads read_bytes wanted_bytes";
        assert_keys(&plan["files"][0], &file.split(' ').collect::<Vec<_>>());
        assert_eq!(plan["backends"], load["backends"], "{mode}");
        assert_eq!(plan["staging_bytes"], load["memory"]["staging_bytes"], "{mode}");
        assert_eq!(plan["files"][0]["access"], load["files"][0]["access"], "{mode}");
        assert_eq!(plan["files"][0]["engine"], load["files"][0]["engine"], "{mode}");
        assert_eq!(plan["files"][0]["reads"], load["read"]["ops"], "{mode}");
        let placed = [&load["upload"]["bytes"], &load["memory"]["in_place_bytes"]];
        let placed: u64 = placed.into_iter().filter_map(Value::as_u64).sum();
        assert_eq!(plan["files"][0]["wanted_bytes"].as_u64(), Some(placed), "{mode}");
        assert!(!plan["why"].as_array().unwrap().is_empty());
    }
}

#[test]
fn bench_compares_modes_beside_the_ceiling() {
    let folder = scratch();
    let model = synthetic(&folder, "5MiB");
    let report = json(&["bench", &model, "--repeat", "2", "--json"]);
    assert_keys(&report, &["model", "ceiling", "repeat", "rows", "runs"]);
    assert_keys(&report["ceiling"], &["gib_per_s", "shape"]);
    assert_eq!(report["rows"].as_array().unwrap().len(), 8);
    assert_eq!(report["runs"].as_array().unwrap().len(), 16);
    let row = "mode device cache gib_per_s of_ceiling cpu_s_per_gib peak_rss_bytes page_cache_left";
    for entry in report["rows"].as_array().unwrap() {
        assert_keys(entry, &row.split(' ').collect::<Vec<_>>());
        assert!(entry["gib_per_s"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn bench_makes_a_model_if_none_is_given_and_leaves_nothing_behind() {
    let folder = scratch();
    let flags = ["--size", "2MiB", "--repeat", "1", "--modes", "auto", "--cache", "cold"];
    let output = command().arg("bench").args(flags).args(["--dir", text(folder.path())]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ceiling"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn doctor_checks_have_names_findings_and_remedies() {
    let report = json(&["doctor", text(&fixtures()), "--json"]);
    let checks = report["checks"].as_array().unwrap();
    for name in ["kernel", "io_uring", "memlock limit", "huge pages", "filesystem", "direct I/O"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
    }
    for check in checks {
        assert_keys(check, &["name", "ok", "found", "remedy"]);
        assert_eq!(check["ok"] == false, check["remedy"].is_string(), "{check}");
    }
}

#[test]
fn llama_cpp_flags_are_taken_with_a_notice_and_load_mode_wins() {
    let model = fixtures().join("gguf/values.gguf");
    let model = text(&model);
    let cases = [
        (&["--no-mmap"][..], "none"),
        (&["--mmap"], "mmap"),
        (&["--mlock"], "mmap"),
        (&["--direct-io"], "dio"),
        (&["--no-direct-io"], "mmap"),
        (&["--no-mmap", "--direct-io"], "dio"),
        (&["--mmap", "--load-mode", "none"], "none"),
        (&["-lm", "dio"], "dio"),
        (&["-lm=none"], "none"),
    ];
    for (flags, mode) in cases {
        let output = command().args(["load", model, "--json"]).args(flags).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["backends"][0]["mode"], mode, "{flags:?}");
        let notices = String::from_utf8(output.stderr).unwrap();
        let old = flags[0].starts_with("--");
        assert_eq!(notices.contains("notice: "), old, "{flags:?}: {notices}");
    }
}

#[test]
fn synthetic_models_are_reproducible_and_about_the_size_asked() {
    let folder = scratch();
    for format in ["gguf", "safetensors"] {
        let path = |name: &str| folder.path().join(format!("{name}.{format}"));
        for size in ["600KiB", "5MiB", "40MiB"] {
            for (name, seed) in [("a", "1"), ("b", "1"), ("c", "2")] {
                let out = path(name);
                let arguments = ["synth", text(&out), "--size", size, "--seed", seed];
                assert!(run(&arguments).status.success());
            }
            let bytes = |name| std::fs::read(path(name)).unwrap();
            let (a, b, c) = (bytes("a"), bytes("b"), bytes("c"));
            assert!(a == b && a != c, "{format} {size}");
            if size == "40MiB" {
                assert!((38 << 20..42 << 20).contains(&a.len()), "{} for {size}", a.len());
            }
            assert!(run(&["load", text(&path("a"))]).status.success());
        }
    }
}

#[test]
fn completions_and_the_man_page_come_from_the_parser() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("gpu-layers"), "{shell}");
    }
    let output = run(&["man"]);
    let page = String::from_utf8_lossy(&output.stdout);
    assert!(page.starts_with(".ie"));
    for flag in ["gpu\\-layers", "load\\-mode", "manifest", "repeat", "seed", "trace"] {
        assert!(page.contains(flag), "no {flag} in the man page");
    }
}

#[test]
fn a_reader_that_stops_listening_is_no_error() {
    let model = fixtures().join("gguf/every-type.gguf");
    let mut child =
        command().args(["inspect", text(&model)]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.starts_with("name"));
    assert!(child.wait().unwrap().success());
}

/// A closed pipe ends the printing; it must not become the verdict.
#[test]
fn a_reader_that_stops_listening_does_not_make_a_wrong_model_right() {
    let folder = scratch();
    let model = synthetic(&folder, "2MiB");
    let manifest = folder.path().join("manifest");
    let wrong = format!("{}  no.such.tensor\n", "0".repeat(64));
    std::fs::write(&manifest, wrong).unwrap();
    let arguments = ["verify", &model, "--manifest", text(&manifest)];
    let mut child = command().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn names_in_a_model_can_not_speak_to_the_terminal() {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    let header =
        r#"{"a\u001b[31m\n\u202eb\u2069\u2028":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.push(7);
    std::fs::write(&path, bytes).unwrap();
    for arguments in [&["inspect"][..], &["load", "--digest"]] {
        let output = command().args(arguments).arg(&path).output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains(['\u{1b}', '\u{202e}', '\u{2069}', '\u{2028}']), "{said:?}");
        assert!(said.contains(r"a\u{1b}[31m\n\u{202e}b\u{2069}\u{2028}"), "{said:?}");
    }
    let manifest = folder.path().join("manifest");
    support::failure(&["verify", text(&path), "--write", "--manifest", text(&manifest)]);
}

#[test]
fn nor_can_the_names_of_shards_in_an_index() {
    let folder = scratch();
    let index = folder.path().join("model.safetensors.index.json");
    let index_of = |shard: &str| {
        let json = serde_json::json!({"weight_map": {"a": shard}});
        std::fs::write(&index, json.to_string()).unwrap();
    };
    index_of("evil\u{1b}[31m\nerror - nothing is wrong\r.safetensors");
    let errors = support::failure(&["inspect", text(&index)]);
    assert!(errors.contains(r"evil\u{1b}[31m error - nothing is wrong\r.safetensors: is missing"));
    let is_line = |line: &str| !line.contains(|letter: char| letter.is_control());
    assert!(errors.lines().all(is_line) && errors.lines().count() == 2, "{errors:?}");

    let shard = "there\u{1b}[31m\n.safetensors";
    index_of(shard);
    let header = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7]].concat();
    std::fs::write(folder.path().join(shard), bytes).unwrap();
    for command in ["inspect", "plan", "load"] {
        let output = support::run(&[command, text(&index)]);
        assert!(output.status.success(), "{command}");
        assert!(!output.stdout.contains(&0x1b), "{command}");
    }
}

//! `forebay stream` from outside: its report, and that its checksums depend on the model and the
//! seed alone.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::run_on;
use forebay_cuda_emulator::Emulator;
use forebay_tests::Timeline;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use support::{failure, json, run, scratch, text};

/// Small reads, so that a layer takes several.
const SMALL: [&str; 4] = ["--chunk", "128KiB", "--staging", "1MiB"];

/// A GGUF, and one of one type for what takes longer.
fn model(folder: &Path, size: &str) -> PathBuf {
    let path = folder.join("model.gguf");
    assert!(run(&["synth", text(&path), "--size", size]).status.success());
    path
}

fn stream(path: &Path, flags: &[&str]) -> Value {
    let mut arguments = vec!["stream", text(path), "--json"];
    arguments.extend(SMALL);
    arguments.extend(flags);
    json(&arguments)
}

/// The checksum that all passes have.
fn checksum(report: &Value) -> String {
    let passes = report["passes"].as_array().unwrap();
    let all: BTreeSet<&str> = passes.iter().map(|it| it["checksum"].as_str().unwrap()).collect();
    assert_eq!(all.len(), 1, "{report}");
    let checksum = all.first().unwrap();
    assert_eq!(checksum.len(), 64);
    assert!(checksum.bytes().all(|byte| byte.is_ascii_hexdigit()), "{checksum}");
    (*checksum).to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// The least budget, as the one error names it.
fn least_budget(path: &Path, flags: &[&str]) -> u64 {
    let mut arguments = vec!["stream", text(path), "--vram-budget", "4096"];
    arguments.extend(flags);
    let said = failure(&arguments);
    assert!(said.contains("remedy: "), "{said}");
    let remedy = said.lines().find(|line| line.contains("remedy: ")).unwrap();
    let numbers = remedy.split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok());
    numbers.max().unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn the_report_has_what_scripts_rely_on() {
    let folder = scratch();
    let path = model(folder.path(), "24MiB");
    let flags = ["--device", "host", "--vram-budget", "8MiB", "--host-budget", "4MiB"];
    let report = stream(&path, &[&flags[..], &["--batch", "2"]].concat());
    assert_eq!(report["model"]["format"], "gguf");
    let bytes = number(&report["model"]["bytes"]);
    assert_eq!(report["device"], "host");
    assert!(number(&report["layers"]) > 2);
    assert_eq!(number(&report["vram_budget"]), 8 << 20);
    assert_eq!(number(&report["host_budget"]), 4 << 20);
    assert_eq!(number(&report["batch"]), 2);
    let tier = |name: &str| number(&report["tiers"][name]);
    let tiers = ["resident_bytes", "host_bytes", "streamed_bytes"].map(tier);
    assert_eq!(tiers.iter().sum::<u64>(), bytes);
    assert!(tiers[0] <= 8 << 20 && tiers[1] <= 4 << 20 && tiers[2] > 0, "{tiers:?}");
    let passes = report["passes"].as_array().unwrap();
    assert_eq!(passes.len(), 3);
    for pass in passes {
        for key in ["seconds", "gib_per_s", "compute_waited_s", "upload_waited_s", "read_waited_s"]
        {
            assert!(pass[key].as_f64().is_some_and(|it| it >= 0.0), "{key}: {pass}");
        }
    }
    checksum(&report);
    assert!(!report["why"].as_array().unwrap().is_empty());
}

#[test]
fn checksums_are_the_same_whatever_the_budgets_engine_and_mode() {
    let folder = scratch();
    let path = model(folder.path(), "24MiB");
    let expected = checksum(&stream(&path, &["--device", "host", "--passes", "2"]));
    let least = least_budget(&path, &["--device", "host"]).to_string();
    let engines = ["uring", "threads"];
    let modes = ["dio", "none", "mmap", "auto"];
    let budgets = [&*least, "12MiB", "64MiB"];
    for (number, host) in ["0", "5MiB", "64MiB"].iter().enumerate() {
        for (index, budget) in budgets.iter().enumerate() {
            let mode = modes[(number + index) % 4];
            // Mappings are copied out of by threads alone.
            let engine = if mode == "mmap" { "auto" } else { engines[(number + index / 2) % 2] };
            let mut flags = vec!["--device", "host", "--passes", "2", "--vram-budget", *budget];
            flags.extend(["--host-budget", *host, "--engine", engine, "--load-mode", mode]);
            assert_eq!(checksum(&stream(&path, &flags)), expected, "{flags:?}");
        }
    }
    let on_cpu = ["--device", "host", "--passes", "2", "--gpu-layers", "2"];
    assert_eq!(checksum(&stream(&path, &on_cpu)), expected, "with layers on the cpu");
    let other = ["--device", "host", "--passes", "1", "--seed", "1"];
    assert_ne!(checksum(&stream(&path, &other)), expected);
    assert_ne!(checksum(&stream(&path, &["--device", "host", "--batch", "2"])), expected);
}

#[test]
fn a_budget_that_is_too_small_is_one_error_that_names_the_least() {
    let folder = scratch();
    let path = model(folder.path(), "6MiB");
    let least = least_budget(&path, &["--device", "host"]);
    let flags = |bytes: u64| bytes.to_string();
    let (works, fails) = (flags(least), flags(least - 1));
    checksum(&stream(&path, &["--device", "host", "--passes", "1", "--vram-budget", &works]));
    let arguments = ["stream", text(&path), "--device", "host", "--vram-budget", &fails, "--json"];
    assert!(failure(&arguments).contains(&works));
    assert!(run(&arguments).stdout.is_empty());
}

#[test]
fn what_is_wrong_has_its_exit_status() {
    let folder = scratch();
    let path = model(folder.path(), "2MiB");
    let missing = folder.path().join("none.gguf");
    failure(&["stream", text(&missing)]);
    failure(&[
        "stream",
        text(&path),
        "--device",
        "host",
        "--load-mode",
        "cpu=none,device=dio",
        "--gpu-layers",
        "1",
    ]);
    for wrong in [
        &["--passes", "0"][..],
        &["--batch", "0"],
        &["--vram-budget", "much"],
        &["--no-such-flag"],
        &["--seed", "-1"],
    ] {
        let mut arguments = vec!["stream", text(&path)];
        arguments.extend(wrong);
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let people = run(&["stream", text(&path), "--device", "host", "--passes", "1"]);
    assert_eq!(people.status.code(), Some(0));
    let said = String::from_utf8(people.stdout).unwrap();
    assert!(said.contains("layers") && said.contains("checksum"), "{said}");
}

#[test]
fn checksums_of_a_device_are_the_same_whatever_the_budget() {
    let folder = scratch();
    let path = model(folder.path(), "3MiB");
    let flags = |more: &[&'static str]| -> Vec<String> {
        let mut flags = vec!["stream", text(&path), "--json", "--device", "cuda:0"];
        flags.extend(["--passes", "2"]);
        flags.extend(SMALL);
        flags.extend(more);
        flags.into_iter().map(str::to_owned).collect()
    };
    let on_device = |more: &[&'static str]| {
        let flags = flags(more);
        let ran = run_on(&Emulator::new(), &flags.iter().map(|it| &**it).collect::<Vec<_>>());
        let report = ran.json();
        ran.expect_clean();
        assert_eq!((&report["device"], &report["emulated"]), (&"cuda:0".into(), &true.into()));
        report
    };
    let all = on_device(&["--vram-budget", "64MiB"]);
    assert_eq!(all["tiers"]["streamed_bytes"], 0);
    let expected = checksum(&all);
    for more in [
        &["--vram-budget", "1536KiB", "--host-budget", "0"][..],
        &["--vram-budget", "1536KiB", "--host-budget", "64MiB"],
        &["--vram-budget", "2MiB", "--host-budget", "512KiB", "--load-mode", "none"],
    ] {
        let report = on_device(more);
        assert_eq!(checksum(&report), expected, "{more:?}");
        assert!(report["tiers"]["resident_bytes"] != all["tiers"]["resident_bytes"], "{more:?}");
    }
}

#[test]
fn a_timeline_has_the_layers_with_their_reads_and_copies() {
    let folder = scratch();
    let path = model(folder.path(), "12MiB");
    let trace = folder.path().join("trace.json");
    let flags = ["--device", "host", "--vram-budget", "4MiB", "--host-budget", "0"];
    let report = stream(&path, &[&flags[..], &["--passes", "2", "--trace", text(&trace)]].concat());
    let timeline = Timeline::read(&trace);
    let bytes = |group: &str| -> u64 {
        let spans = timeline.of(group).filter(|span| span.track != "waits");
        spans.map(|span| span.count("bytes")).sum()
    };
    let passes = report["passes"].as_array().unwrap();
    let of_passes = |key: &str| passes.iter().map(|pass| number(&pass[key])).sum::<u64>();
    assert_eq!(bytes("reads"), of_passes("read_bytes"));
    assert_eq!(bytes("uploads"), of_passes("uploaded_bytes"));
    let computing = timeline.of("layers").filter(|span| span.track == "computing");
    assert_eq!(computing.count() as u64, 2 * number(&report["layers"]));
    let named = |span: &forebay_tests::Event| span.name.starts_with("blk.0.");
    assert!(timeline.of("reads").any(named), "reads are named after their tensors");
}

/// A mixture of two layers with four experts each, every expert a tensor of its own.
fn mixture(folder: &Path) -> PathBuf {
    let (rows, columns) = (8, 16);
    let names = (0..2).flat_map(|layer| {
        (0..4).map(move |expert| format!("model.layers.{layer}.mlp.experts.{expert}.up.weight"))
    });
    let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
    for (number, name) in (1..).zip(names) {
        let start = data.len();
        for at in 0..rows * columns {
            data.extend((number as f32 + at as f32 / 100.0).to_le_bytes());
        }
        let entry = serde_json::json!({
            "dtype": "F32", "shape": [rows, columns], "data_offsets": [start, data.len()],
        });
        entries.insert(name, entry);
    }
    let header = Value::Object(entries).to_string();
    let path = folder.join("moe.safetensors");
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn experts_come_on_demand_and_nothing_else_does() {
    let folder = scratch();
    let path = mixture(folder.path());
    let experts = |which: &str, more: &[&str]| {
        let flags = ["--device", "host", "--experts", which, "--passes", "2"];
        stream(&path, &[&flags[..], more].concat())
    };
    let expert_bytes = 8 * 16 * 4;
    let some = experts("1,3", &[]);
    let stats = &some["experts"];
    assert_eq!((number(&stats["fetches"]), number(&stats["hits"])), (8, 4));
    assert_eq!(number(&stats["wanted_bytes"]), 4 * expert_bytes);
    let expected = checksum(&some);
    // Room for two at a time: everything is fetched anew, and comes out the same.
    let few = experts("1,3", &["--vram-budget", "1024"]);
    assert_eq!(checksum(&few), expected);
    assert_eq!(number(&few["experts"]["wanted_bytes"]), 8 * expert_bytes);
    assert!(number(&few["experts"]["evicted"]) >= 6, "{few}");
    assert_ne!(checksum(&experts("0,2", &[])), expected);
    assert_eq!(number(&experts("random:3", &[])["experts"]["fetches"]), 12);
    let said = failure(&["stream", text(&path), "--device", "host", "--experts", "4"]);
    assert!(said.contains("there is no expert 4"), "{said}");
    let dense = model(folder.path(), "3MiB");
    let said = failure(&["stream", text(&dense), "--device", "host", "--experts", "0"]);
    assert!(said.contains("no experts"), "{said}");
    let wrong = run(&["stream", text(&path), "--experts", "random:0"]);
    assert_eq!(wrong.status.code(), Some(2));
}

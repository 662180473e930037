//! Tensors that stay on the cpu, seen from outside: what is brought in, given back and placed, and
//! the flags for it.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{fixtures, json, manifest, run, scratch, text};

fn synthetic(folder: &Path, size: &str) -> String {
    let model = folder.join("model.gguf");
    assert!(run(&["synth", text(&model), "--size", size]).status.success());
    text(&model).to_owned()
}

fn load(model: &str, flags: &[&str]) -> Value {
    let mut arguments = vec!["load", model, "--json", "--device", "host"];
    arguments.extend(flags);
    json(&arguments)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// The one sentence of a plan that says what becomes of mapped tensors.
fn told_of_prefetch(model: &str, flags: &[&str]) -> String {
    let mut arguments = vec!["plan", model, "--json"];
    arguments.extend(flags);
    let plan = json(&arguments);
    let told = plan["why"].as_array().unwrap().iter().map(|why| why.as_str().unwrap());
    let told: Vec<_> = told.filter(|why| why.contains("prefetched")).collect();
    assert!(told.len() <= 1, "{told:?}");
    told.first().copied().unwrap_or_default().to_owned()
}

#[test]
fn giving_pages_back_saves_nearly_half_of_the_memory_and_no_byte_changes() {
    let folder = scratch();
    let model = synthetic(folder.path(), "256MiB");
    let with = |reclaim| load(&model, &["-lm", "mmap", "--digest", "--reclaim", reclaim]);
    let (off, auto, on) = (with("off"), with("auto"), with("on"));
    let bytes = number(&off["model"]["bytes"]);
    let peak = |report: &Value| number(&report["memory"]["peak_rss_bytes"]);
    assert!(peak(&off) >= bytes / 10 * 19, "both copies are to be resident: {}", off["memory"]);
    for report in [&auto, &on] {
        assert!(peak(report) * 10 <= peak(&off) * 6, "{} of {}", peak(report), peak(&off));
        let reclaimed = number(&report["memory"]["reclaimed_bytes"]);
        assert!(reclaimed >= bytes / 100 * 99, "{}", report["memory"]);
        assert_eq!(report["digests"], off["digests"]);
    }
    assert_eq!(off["memory"]["reclaimed_bytes"], 0);
    assert_eq!(off["digests"].as_object().unwrap().len(), off["model"]["tensors"]);
    // Nobody holds a second copy of what is used in its mapping, or was read into place.
    for mode in ["cpu=dio", "cpu=none"] {
        let report = load(&model, &["-lm", mode, "--gpu-layers", "0"]);
        assert!(peak(&report) <= bytes / 10 * 11 + (16 << 20), "{mode}: {}", report["memory"]);
    }
}

#[test]
fn prefetch_is_what_was_asked_for_and_the_plan_says_so() {
    let folder = scratch();
    let model = synthetic(folder.path(), "24MiB");
    let stays = ["-lm", "cpu=mmap", "--gpu-layers", "0"];
    let with = |prefetch| [&stays[..], &["--prefetch", prefetch]].concat();
    for prefetch in ["auto", "on"] {
        let report = load(&model, &with(prefetch));
        let (bytes, memory) = (number(&report["model"]["bytes"]), &report["memory"]);
        assert!(number(&memory["prefetched_bytes"]) >= bytes, "{memory}");
        assert_eq!(memory["resident_bytes"], memory["prefetched_bytes"]);
        assert_eq!(report["prefetch"]["bytes"], memory["prefetched_bytes"]);
        assert!(report["prefetch"]["gib_per_s"].as_f64().unwrap() > 0.0);
    }
    let report = load(&model, &with("off"));
    assert_eq!(report["memory"]["prefetched_bytes"], 0);
    assert!(told_of_prefetch(&model, &with("auto")).contains("they fit in memory"));
    assert!(told_of_prefetch(&model, &with("on")).contains("asked for"));
    assert!(told_of_prefetch(&model, &with("off")).contains("not prefetched: asked for"));
    // Where nothing is mapped there is nothing to say.
    assert_eq!(told_of_prefetch(&model, &["-lm", "cpu=dio", "--gpu-layers", "0"]), "");
    assert_eq!(told_of_prefetch(&model, &["-lm", "mmap", "--gpu-layers", "all"]), "");
    let output = run(&[&["load", &model], &with("on")[..]].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains("prefetched 24.0"));
}

#[test]
fn a_node_that_is_not_there_is_told_and_changes_no_byte() {
    let model = fixtures().join("gguf/every-type.gguf");
    let model = text(&model);
    let plain = load(model, &["--digest"]);
    assert_eq!(plain["memory"]["numa"], serde_json::json!([]));
    for mode in ["dio", "cpu=mmap", "cpu=dio"] {
        for layers in ["0", "1", "all"] {
            let with = |numa| {
                let flags = ["--digest", "-lm", mode, "--gpu-layers", layers, "--numa", numa];
                let report = load(model, &flags);
                assert_eq!(report["digests"], plain["digests"], "{mode} {layers} {numa}");
                let told = report["memory"]["numa"].as_array().unwrap().clone();
                let told = told.iter().map(|line| line.as_str().unwrap().to_owned());
                told.collect::<Vec<_>>()
            };
            assert!(with("off").is_empty());
            for numa in ["node", "interleave", "node:0"] {
                assert!(!with(numa).is_empty(), "{numa}");
            }
            let told = with("node:99");
            assert!(told.iter().all(|line| line.contains("could not be placed")), "{told:?}");
            assert!(told.iter().any(|line| line.contains("99")), "{told:?}");
        }
    }
}

/// The kernel of a machine with one node has nothing to choose, and the report says just that.
#[test]
fn on_one_node_there_is_nothing_to_place() {
    let nodes = std::fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    if nodes.trim() != "0" {
        return eprintln!("SKIPPED: the nodes with memory here are {nodes:?}");
    }
    let model = fixtures().join("gguf/values.gguf");
    for numa in ["node", "interleave", "node:0"] {
        let report = load(text(&model), &["--numa", numa]);
        let told = report["memory"]["numa"].as_array().unwrap();
        assert!(!told.is_empty());
        for line in told {
            assert!(line.as_str().unwrap().contains("only node 0 has memory"), "{told:?}");
        }
    }
}

#[test]
fn values_that_are_none_end_with_status_2_and_name_those_that_are() {
    let model = fixtures().join("gguf/values.gguf");
    let cases = [
        ("--prefetch", "maybe", "auto, on, off"),
        ("--prefetch", "", "auto, on, off"),
        ("--reclaim", "always", "auto, on, off"),
        ("--numa", "node:", "off, node, node:N or interleave"),
        ("--numa", "node:x", "off, node, node:N or interleave"),
        ("--numa", "node:-1", "off, node, node:N or interleave"),
        ("--numa", "on", "off, node, node:N or interleave"),
        ("-lm", "cpu=locked", "mlock-strict"),
    ];
    for command in ["load", "plan"] {
        for (flag, value, words) in cases {
            let output = run(&[command, text(&model), flag, value]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command} {flag} {value:?}: {said}");
            assert!(said.contains(words), "{command} {flag} {value:?}: {said}");
            assert!(output.stdout.is_empty());
        }
    }
}

/// Every second and every third tensor elsewhere than its neighbours, in owned memory and mapped.
#[test]
fn tensors_land_right_whatever_their_neighbours_do() {
    for (model, tensors) in manifest() {
        for every in [2, 3] {
            let name = |tensor: &Value| tensor["name"].as_str().unwrap().to_owned();
            let rules = tensors.iter().step_by(every).map(name);
            let rules: Vec<_> = rules.map(|name| format!("^{}$=host", escaped(&name))).collect();
            let place: Vec<_> = rules.iter().flat_map(|rule| ["--place", rule]).collect();
            for mode in ["cpu=dio", "cpu=none", "cpu=mmap", "mmap"] {
                for engine in ["auto", "threads"] {
                    let what = format!("{} {mode} {engine} {every}", model.display());
                    let flags = ["--digest", "-lm", mode, "--engine", engine, "--gpu-layers", "0"];
                    let report = load(text(&model), &[&flags[..], &place].concat());
                    let digests = report["digests"].as_object().unwrap();
                    assert_eq!(digests.len(), tensors.len(), "{what}");
                    for tensor in &tensors {
                        assert_eq!(digests[&name(tensor)], tensor["sha256"], "{what}: {tensor}");
                    }
                }
            }
        }
    }
}

/// A name as a pattern that means itself.
fn escaped(name: &str) -> String {
    let mut pattern = String::new();
    for letter in name.chars() {
        if letter.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

//! Every tensor of every fixture, in every mode and placement, against the sha256 that the
//! official readers' bytes have.

mod support;

use serde_json::Value;
use support::{failure, json, manifest, run, scratch, text};

const MODES: [&str; 8] =
    ["auto", "none", "mmap", "mlock", "mlock-strict", "dio", "device=dio,cpu=mmap", "cpu=dio"];

fn assert_digests(report: &Value, tensors: &[Value], what: &str) {
    let digests = report["digests"].as_object().unwrap();
    assert_eq!(digests.len(), tensors.len(), "{what}");
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        assert_eq!(digests[name], tensor["sha256"], "{what}: {name}");
    }
}

#[test]
fn every_mode_and_placement_lands_the_official_bytes() {
    for (model, tensors) in manifest() {
        for mode in MODES {
            for layers in ["0", "1", "all"] {
                for engine in ["auto", "tokio-uring", "threads"] {
                    let what = format!("{} {mode} {layers} {engine}", model.display());
                    // Rings don't copy out of mappings.
                    if engine == "tokio-uring" && !["auto", "none", "dio"].contains(&mode) {
                        continue;
                    }
                    let report = json(&[
                        "load",
                        text(&model),
                        "--json",
                        "--digest",
                        "--device",
                        "host",
                        "--load-mode",
                        mode,
                        "--gpu-layers",
                        layers,
                        "--engine",
                        engine,
                    ]);
                    assert_digests(&report, &tensors, &what);
                }
            }
        }
    }
}

#[test]
fn odd_reads_and_tiny_staging_change_no_byte() {
    let shapes = [["4096", "1", "4096"], ["4096", "3", "12288"], ["8KiB", "64", "64KiB"]];
    for (model, tensors) in manifest() {
        for [chunk, depth, staging] in shapes {
            for mode in ["dio", "none", "mmap"] {
                let report = json(&[
                    "load",
                    text(&model),
                    "--json",
                    "--digest",
                    "--load-mode",
                    mode,
                    "--chunk",
                    chunk,
                    "--queue-depth",
                    depth,
                    "--staging",
                    staging,
                ]);
                assert_digests(&report, &tensors, &format!("{} {mode} {chunk}", model.display()));
                let staging_bytes = report["memory"]["staging_bytes"].as_u64().unwrap();
                assert!(staging_bytes <= 64 << 10, "{staging_bytes}");
            }
        }
    }
}

#[test]
fn inspect_lists_what_the_official_readers_list() {
    for (model, tensors) in manifest() {
        let listed = json(&["inspect", text(&model), "--json"]);
        let listed = listed["tensors"].as_array().unwrap();
        assert_eq!(listed.len(), tensors.len(), "{}", model.display());
        for tensor in &tensors {
            let entry = listed.iter().find(|entry| entry["name"] == tensor["name"]).unwrap();
            for key in ["dtype", "shape", "bytes"] {
                assert_eq!(entry[key], tensor[key], "{}: {}", model.display(), tensor["name"]);
            }
            let file = std::fs::read(entry["file"].as_str().unwrap()).unwrap();
            let end = entry["offset"].as_u64().unwrap() + entry["bytes"].as_u64().unwrap();
            assert!(end <= file.len() as u64);
        }
    }
}

#[test]
fn a_manifest_finds_one_changed_byte_and_names_its_tensor() {
    let folder = scratch();
    let model = folder.path().join("model.gguf");
    let manifest = folder.path().join("manifest");
    let (model, manifest) = (text(&model), text(&manifest));
    assert!(run(&["synth", model, "--size", "3MiB", "--seed", "7"]).status.success());
    for (digest, prefix) in [("sha256", ""), ("blake3", "blake3:")] {
        json(&["verify", model, "--manifest", manifest, "--write", "--digest", digest, "--json"]);
        let lines = std::fs::read_to_string(manifest).unwrap();
        let is_right = |line: &str| {
            let line = line.strip_prefix("# outside of tensors: ").unwrap_or(line);
            line.strip_prefix(prefix).unwrap().find("  ") == Some(64)
        };
        assert!(lines.lines().all(is_right), "{lines}");
        for place in [&["--device", "host"][..], &["--gpu-layers", "0"]] {
            for mode in ["auto", "none", "dio", "mmap"] {
                let arguments = ["verify", model, "--manifest", manifest, "--json", "-lm", mode];
                let verified = json(&[&arguments[..], place].concat());
                assert_eq!(verified["equal"], verified["tensors"]);
            }
        }
    }
    let listed = json(&["inspect", model, "--json"]);
    let tensor = &listed["tensors"][3];
    let mut bytes = std::fs::read(model).unwrap();
    let at = tensor["offset"].as_u64().unwrap() + tensor["bytes"].as_u64().unwrap() - 1;
    bytes[usize::try_from(at).unwrap()] ^= 1;
    std::fs::write(model, bytes).unwrap();
    let output = run(&["verify", model, "--manifest", manifest, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let verified: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verified["different"], serde_json::json!([tensor["name"]]));
    assert_eq!(verified["different_files"], serde_json::json!([]));
    std::fs::write(manifest, "not a digest  x\n").unwrap();
    assert!(failure(&["verify", model, "--manifest", manifest]).contains("line 1"));
    let mixed = format!("blake3:{0}  a\n{0}  b\n", "0".repeat(64));
    std::fs::write(manifest, mixed).unwrap();
    assert!(failure(&["verify", model, "--manifest", manifest]).contains("line 2: has another"));
}

/// What is changed may lie in no tensor, and change what a tensor means: `F16` and `BF16` take the
/// same bytes.
#[test]
fn a_manifest_finds_a_changed_header() {
    let folder = scratch();
    let model = folder.path().join("model.safetensors");
    let manifest = folder.path().join("manifest");
    let synth = ["synth", text(&model), "--size", "1MiB", "--format", "safetensors"];
    assert!(run(&synth).status.success());
    for digest in ["sha256", "blake3"] {
        let arguments = ["verify", text(&model), "--manifest", text(&manifest)];
        json(&[&arguments[..], &["--write", "--digest", digest, "--json"]].concat());
        let bytes = std::fs::read(&model).unwrap();
        let renamed = folder.path().join("renamed.safetensors");
        for (from, to, name) in [("BF16", " F16", "an element type"), ("BF16", "BF16", "none")] {
            let at = bytes.windows(4).position(|part| part == from.as_bytes()).unwrap();
            let mut changed = bytes.clone();
            changed[at..at + 4].copy_from_slice(to.as_bytes());
            // JSON: the blank belongs before the quote.
            if from != to {
                changed[at - 1..at + 1].copy_from_slice(b" \"");
            }
            std::fs::write(&renamed, changed).unwrap();
            let arguments = ["verify", text(&renamed), "--manifest", text(&manifest), "--json"];
            let output = run(&arguments);
            let verified: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(verified["equal"], verified["tensors"], "{name}");
            let differs = verified["different_files"] == serde_json::json!(["renamed.safetensors"]);
            assert_eq!(differs, from != to, "{name}: {verified}");
            assert_eq!(output.status.code(), Some(i32::from(differs)), "{name}");
        }
    }
    // Those of other programs say nothing of it.
    let lines = std::fs::read_to_string(&manifest).unwrap();
    let tensors: Vec<&str> = lines.lines().filter(|line| !line.starts_with('#')).collect();
    std::fs::write(&manifest, tensors.join("\n")).unwrap();
    let verified = json(&["verify", text(&model), "--manifest", text(&manifest), "--json"]);
    assert_eq!(verified["different_files"], serde_json::json!([]));
}

/// Known answers, so that a manifest means the same to every program.
#[test]
fn a_manifest_has_the_digests_that_everybody_else_makes() {
    let folder = scratch();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"abc":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"none":{"dtype":"U8","shape":[0],"data_offsets":[3,3]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(b"abc");
    std::fs::write(&path, bytes).unwrap();
    let manifest = folder.path().join("manifest");
    for (digest, abc, none) in [
        (
            "sha256",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            "blake3",
            "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
            "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        ),
    ] {
        let arguments = ["verify", text(&path), "--manifest", text(&manifest), "--write"];
        assert!(run(&[&arguments[..], &["--digest", digest]].concat()).status.success());
        let expected = format!("{abc}  abc\n{none}  none\n# outside of tensors: ");
        let manifest = std::fs::read_to_string(&manifest).unwrap();
        assert!(manifest.starts_with(&expected), "{manifest}");
    }
}

//! What is no model, or no whole one: exit status 1, one clear error, a remedy.

mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use support::{command, failure, fixtures, json, run, scratch, text};

/// Every command that opens a model says the same of it.
fn refused(model: &Path, words: &[&str]) {
    for arguments in [&["load"][..], &["inspect"], &["plan"], &["load", "--load-mode", "mmap"]] {
        let mut arguments = arguments.to_vec();
        arguments.insert(1, text(model));
        let said = failure(&arguments);
        for word in words {
            assert!(said.contains(word), "{arguments:?}: no '{word}' in: {said}");
        }
        assert!(said.contains("  remedy: "), "{arguments:?}: no remedy in: {said}");
    }
}

fn copy(name: &str, to: &Path) {
    fs::copy(fixtures().join(name), to).unwrap();
}

#[test]
fn a_truncated_file_is_named_with_the_tensor_that_it_cuts() {
    let folder = scratch();
    for name in ["gguf/aligned-4096.gguf", "safetensors/odd-offsets.safetensors"] {
        let model = folder.path().join(Path::new(name).file_name().unwrap());
        copy(name, &model);
        let tensors = json(&["inspect", text(&model), "--json"])["tensors"].clone();
        let end =
            |tensor: &Value| tensor["offset"].as_u64().unwrap() + tensor["bytes"].as_u64().unwrap();
        let end = tensors.as_array().unwrap().iter().map(end).max().unwrap();
        fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(end - 1).unwrap();
        refused(&model, &[text(&model), "tensor '", "truncated"]);
    }
}

#[test]
fn a_folder_with_two_models_lists_them_and_one_with_one_loads() {
    let folder = scratch();
    refused(folder.path(), &["holds no .gguf"]);
    copy("gguf/values.gguf", &folder.path().join("a.gguf"));
    assert!(run(&["load", text(folder.path())]).status.success());
    copy("safetensors/official.safetensors", &folder.path().join("b.safetensors"));
    refused(folder.path(), &["2 models", "a.gguf", "b.safetensors"]);
    let folder = scratch();
    for part in ["00001-of-00001", "00001-of-00003", "00002-of-00003", "00003-of-00003"] {
        copy("gguf/values.gguf", &folder.path().join(format!("split-{part}.gguf")));
    }
    refused(folder.path(), &["2 models", "split-00001-of-00001.gguf"]);
}

#[test]
fn a_folder_of_shards_or_parts_counts_as_one_model() {
    let folder = scratch();
    for entry in fs::read_dir(fixtures().join("safetensors")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("model") {
            fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    assert!(run(&["load", text(folder.path())]).status.success());
}

#[test]
fn a_missing_shard_or_part_is_named_with_who_needs_it() {
    let folder = scratch();
    let index = folder.path().join("model.safetensors.index.json");
    for number in [1, 3] {
        let name = format!("model-0000{number}-of-00003.safetensors");
        copy(&format!("safetensors/{name}"), &folder.path().join(name));
    }
    copy("safetensors/model.safetensors.index.json", &index);
    refused(&index, &["model-00002-of-00003.safetensors", "missing", "index.json"]);
    let part = folder.path().join("split-00001-of-00003.gguf");
    copy("gguf/split-00001-of-00003.gguf", &part);
    refused(&part, &["split-00002-of-00003.gguf", "missing"]);
}

#[test]
fn an_index_that_names_an_absent_tensor_is_refused_with_both_names() {
    let folder = scratch();
    for number in 1..=3 {
        let name = format!("model-0000{number}-of-00003.safetensors");
        copy(&format!("safetensors/{name}"), &folder.path().join(name));
    }
    let index = fs::read_to_string(fixtures().join("safetensors/model.safetensors.index.json"));
    let mut index: serde_json::Value = serde_json::from_str(&index.unwrap()).unwrap();
    index["weight_map"]["ghost.weight"] = "model-00002-of-00003.safetensors".into();
    let path = folder.path().join("model.safetensors.index.json");
    fs::write(&path, index.to_string()).unwrap();
    refused(&path, &["ghost.weight", "model-00002-of-00003.safetensors"]);
}

#[test]
fn what_is_no_file_of_bytes_is_refused_and_not_waited_for() {
    let folder = scratch();
    let fifo = folder.path().join("fifo.gguf");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&fifo, &["pipe"]);
    refused(&folder.path().join("absent.gguf"), &["no such file"]);
    refused(Path::new("/dev/zero"), &["character device"]);
    for (file_name, contents) in [
        ("readme.gguf", &b"hello"[..]),
        ("empty.gguf", b""),
        ("empty.safetensors", b""),
        ("noise.safetensors", &[0xAB; 4096]),
        ("picture.png", &[0x89; 4096]),
    ] {
        let model = folder.path().join(file_name);
        fs::write(&model, contents).unwrap();
        refused(&model, &[file_name]);
    }
}

#[test]
fn a_file_that_may_not_be_read_says_so() {
    let folder = scratch();
    let model = folder.path().join("secret.gguf");
    fs::write(&model, "GGUF").unwrap();
    fs::set_permissions(&model, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&model).is_ok() {
        eprintln!("SKIPPED: root may read everything; .ci/run repeats this as an ordinary user");
        return;
    }
    refused(&model, &["permission denied", "chmod"]);
}

#[test]
fn options_that_contradict_the_machine_are_one_error() {
    let model = fixtures().join("gguf/values.gguf");
    let model = text(&model);
    // There is no such GPU, whatever this machine has; tests/cuda_failures.rs tells them apart.
    for absent in [["--device", "cuda:99"], ["--place", ".=cuda:99"]] {
        let error = failure(&["load", model, absent[0], absent[1]]);
        assert!(error.contains("GPU 99") || error.contains("driver"), "{error}");
        assert!(error.contains("remedy:"), "{error}");
    }
    assert!(failure(&["load", model, "--staging", "100"]).contains("--staging"));
    assert!(failure(&["load", model, "--chunk", "0"]).contains("--chunk"));
    let both = ["load", model, "--engine", "uring", "--load-mode", "mmap"];
    assert!(failure(&both).contains("--engine"));
}

#[test]
fn a_wrong_command_line_is_status_two() {
    let wrong: [&[&str]; 8] = [
        &[],
        &["lood"],
        &["load"],
        &["load", "x", "--load-mode", "direct"],
        &["load", "x", "--place", "(=cpu"],
        &["load", "x", "--chunk", "1 parsec"],
        &["load", "x", "--queue-depth", "0"],
        &["bench", "x", "--modes", "fast"],
    ];
    for arguments in wrong {
        let output = command().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

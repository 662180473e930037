//! The examples compile without a warning, and load what the Rust library loads.

mod support;

use forebay::Loader;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use support::{Compiler, MODELS, Programs, fixture, run};

/// `sha256  name` lines, as a map.
fn digests_of(lines: &str) -> BTreeMap<String, String> {
    let line = |line: &str| line.split_once("  ").map(|(hex, name)| (name.into(), hex.into()));
    lines.lines().filter_map(line).collect()
}

fn expected(model: &Path) -> BTreeMap<String, String> {
    let digests = Loader::new(model).load().unwrap().digests().unwrap();
    assert!(!digests.is_empty());
    digests
}

#[test]
fn c_loads_what_rust_loads() {
    let programs = Programs::new();
    let program = programs.example(&Compiler::c().unwrap(), "load.c");
    for model in MODELS.map(fixture) {
        let expected = expected(&model);
        for flags in [
            &[][..],
            &["--own"],
            &["--steps"],
            &["--own", "--steps", "--set", "engine=threads"],
            &["--set", "gpu-layers=0", "--set", "load-mode=cpu=mmap"],
            &["--set", "gpu-layers=0", "--set", "load-mode=dio", "--set", "repack=on"],
        ] {
            let said = run(Command::new(&program).arg("--digest").args(flags).arg(&model));
            assert_eq!(digests_of(&said), expected, "{} {flags:?}", model.display());
        }
    }
}

#[test]
fn c_lists_plans_and_reports() {
    let programs = Programs::new();
    let program = programs.example(&Compiler::c().unwrap(), "load.c");
    for model in MODELS.map(fixture) {
        let listed = run(Command::new(&program).arg("--list").arg(&model));
        let opened = forebay::Model::open(&model).unwrap();
        assert!(listed.starts_with(&opened.catalog().format().to_string()));
        for tensor in opened.catalog().tensors() {
            let line = format!(
                "{} {} {:?} {} bytes at {} of file {}",
                tensor.name, tensor.dtype, tensor.shape, tensor.bytes, tensor.offset, tensor.file
            );
            assert!(listed.contains(&line), "{line}\n{listed}");
        }
        let plan = run(Command::new(&program).args(["--plan", "--set", "device=host"]).arg(&model));
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        assert_eq!(plan["model"]["tensors"], opened.catalog().tensors().len());
        let report = run(Command::new(&program).arg("--report").arg(&model));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["model"]["bytes"], opened.catalog().bytes());
        assert_eq!(report["model"]["bytes"], plan["model"]["bytes"]);
    }
}

#[test]
fn c_stops_when_its_callback_says_so_and_names_what_is_wrong() {
    let programs = Programs::new();
    let program = programs.example(&Compiler::c().unwrap(), "load.c");
    let model = fixture(MODELS[0]);
    for (flags, words) in [
        (&["--stop"][..], "a callback has stopped the load"),
        (&["--set", "load-mode=fast"], "--load-mode: 'fast' is no load mode"),
        (&["--set", "speed=high"], "'speed' is no option"),
    ] {
        let output = Command::new(&program).args(flags).arg(&model).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{flags:?}: {errors}");
        assert!(errors.contains(words), "{flags:?}: {errors}");
    }
}

#[test]
fn cpp_loads_what_rust_loads() {
    let Some(compiler) = Compiler::cpp() else { return };
    let programs = Programs::new();
    let program = programs.example(&compiler, "load.cpp");
    for model in MODELS.map(fixture) {
        let expected = expected(&model);
        for settings in [&[][..], &["engine=threads", "gpu-layers=0", "load-mode=none"]] {
            let said = run(Command::new(&program).arg(&model).args(settings));
            assert_eq!(digests_of(&said), expected, "{} {settings:?}", model.display());
        }
    }
    for (arguments, words) in [
        (&["nowhere.gguf"][..], "error 3: nowhere.gguf: no such file or directory"),
        (&["nowhere.gguf", "chunk=1.5MiB"], "error 5: --chunk: '.5MiB' is no unit"),
        (&["nowhere.gguf", "chunk"], "error: 'chunk' is not KEY=VALUE"),
    ] {
        let output = Command::new(&program).args(arguments).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(words), "{errors}");
    }
}

#[test]
fn a_buffer_of_ggml_s_layout_is_filled_in_place() {
    let programs = Programs::new();
    let program = programs.example(&Compiler::c().unwrap(), "llama.c");
    for model in ["gguf/every-type.gguf", "gguf/odd-shapes.gguf", "gguf/split-00001-of-00003.gguf"]
    {
        let said = run(Command::new(&program).arg(fixture(model)));
        assert!(said.contains("as in the file"), "{model}: {said}");
    }
}

#[test]
fn the_program_of_the_manual_runs() {
    let manual = include_str!("../../forebay/src/manual/c.md");
    let (_, program) = manual.split_once("```c\n").unwrap();
    let (program, _) = program.split_once("```\n").unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = folder.path().join("manual.c");
    std::fs::write(&source, program).unwrap();
    let programs = Programs::new();
    let program = programs.build(&Compiler::c().unwrap(), &source, &[]);
    let said = run(Command::new(program).arg(fixture("gguf/aligned-4096.gguf")));
    assert!(said.starts_with("first F32 on ") && said.lines().count() == 3, "{said}");
}

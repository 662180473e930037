//! The recipe for llama.cpp, with the real ggml.
//!
//! `GGML_INCLUDE` is the folder of ggml.h, `GGML_LIB` the one of libggml-base.so;
//! llama-cpp-python's wheel brings both. `GGML_MODEL` names a GGUF file other than the fixture.

mod support;

use std::path::PathBuf;
use support::{Compiler, Programs, crate_path, fixture, run};

#[test]
fn a_context_of_ggml_is_filled_as_ggml_would_fill_it() {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(include), Some(library)) = (folder("GGML_INCLUDE"), folder("GGML_LIB")) else {
        eprintln!("SKIPPED: GGML_INCLUDE and GGML_LIB name no ggml");
        return;
    };
    let model = folder("GGML_MODEL").unwrap_or_else(|| fixture("gguf/aligned-4096.gguf"));
    let compiler = Compiler::c().unwrap();
    let programs = Programs::new();
    // ggml's own headers are not strict.
    let flags = [
        format!("-isystem{}", include.display()),
        format!("-L{}", library.display()),
        format!("-Wl,-rpath,{}", library.display()),
        "-l:libggml-base.so".to_owned(),
    ];
    let program = programs.build(&compiler, &crate_path("tests/ggml.c"), &flags);
    let said = run(std::process::Command::new(program).arg(&model));
    print!("{}: {said}", model.display());
    assert!(said.contains("as ggml reads them"), "{said}");
}

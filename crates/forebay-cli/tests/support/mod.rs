//! What the tests of the command share: running it, and where the fixtures are.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The fixtures that the official writers made, with what the official readers say of them.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// Each model among the fixtures, with its tensors by name.
pub fn manifest() -> Vec<(PathBuf, Vec<Value>)> {
    let text = std::fs::read_to_string(fixtures().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let models = manifest.as_object().unwrap().iter();
    models
        .map(|(path, model)| (fixtures().join(path), model["tensors"].as_array().unwrap().clone()))
        .collect()
}

/// The command; `FOREBAY_BIN` and `FOREBAY_SCRATCH` let another user run a copied test.
pub fn command() -> Command {
    let built = env!("CARGO_BIN_EXE_forebay").into();
    Command::new(std::env::var_os("FOREBAY_BIN").unwrap_or(built))
}

pub fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// Runs a command that must succeed and print one JSON object.
pub fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} failed: {errors}");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON: {error}"))
}

/// Runs a command that must end with status 1, and returns what it said.
pub fn failure(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(errors.starts_with("error: "), "{arguments:?}: {errors}");
    assert_eq!(errors.matches("error: ").count(), 1, "{arguments:?}: {errors}");
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    errors
}

/// A temporary folder on the disk that the build lies on, where direct reads work if anywhere.
pub fn scratch() -> tempfile::TempDir {
    let target = env!("CARGO_TARGET_TMPDIR").into();
    tempfile::tempdir_in(std::env::var_os("FOREBAY_SCRATCH").unwrap_or(target)).unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

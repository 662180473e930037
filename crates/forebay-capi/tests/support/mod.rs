//! What the tests of the C interface share: compilers, the library as C finds it, fixtures.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A path in this crate.
pub(crate) fn crate_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One of the models that the tests of the workspace share.
pub(crate) fn fixture(path: &str) -> PathBuf {
    crate_path("../../tests/fixtures").join(path)
}

/// A model of each format.
pub(crate) const MODELS: [&str; 3] =
    ["gguf/every-type.gguf", "safetensors/model.safetensors.index.json", "ptd/every-type.ptd"];

/// Runs it to its end; what it printed on standard output, if it went well.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A compiler of the machine.
pub(crate) struct Compiler {
    program: String,
    standard: &'static str,
}

impl Compiler {
    /// `$CC`, or `cc`. Rust needs one too, to link.
    pub(crate) fn c() -> Option<Self> {
        let program = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        Some(Self { program, standard: "-std=c11" })
    }

    /// `$CXX`, or `c++`; says so where there is none.
    pub(crate) fn cpp() -> Option<Self> {
        let program = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let works = Command::new(&program).arg("--version").output();
        if !works.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no C++ compiler ({program})");
            return None;
        }
        Some(Self { program, standard: "-std=c++17" })
    }

    /// With every warning an error, and the header to be found.
    pub(crate) fn strict(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args([self.standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"]);
        command.arg("-I").arg(crate_path("include"));
        command
    }
}

/// The shared library that was built along with the test.
pub(crate) fn shared_library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let library = test.parent().unwrap().join("libforebay_capi.so");
    assert!(library.exists(), "{} was not built", library.display());
    library
}

/// A folder in which the library is called as `install` calls it, with programs beside it.
pub(crate) struct Programs {
    folder: tempfile::TempDir,
}

impl Programs {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for name in ["libforebay.so", "libforebay.so.0"] {
            std::os::unix::fs::symlink(shared_library(), folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    /// Compiles a program with every warning an error, and links it to the library and whatever
    /// else the flags name.
    pub(crate) fn build(&self, compiler: &Compiler, source: &Path, flags: &[String]) -> PathBuf {
        let name = source.file_name().unwrap().to_string_lossy().replace('.', "_");
        let (program, folder) = (self.folder.path().join(name), self.folder.path().display());
        run(compiler
            .strict()
            .arg(source)
            .arg("-o")
            .arg(&program)
            .args([format!("-L{folder}"), format!("-Wl,-rpath,{folder}")])
            .args(["-lforebay", "-lpthread"])
            .args(flags));
        program
    }

    /// The same for one of the examples.
    pub(crate) fn example(&self, compiler: &Compiler, name: &str) -> PathBuf {
        self.build(compiler, &crate_path("examples").join(name), &[])
    }
}

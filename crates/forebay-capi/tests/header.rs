//! The committed header is the one that the sources say, and compilers take it.

mod support;

use support::{Compiler, crate_path, run};

fn generated() -> String {
    let config = cbindgen::Config::from_file(crate_path("cbindgen.toml")).unwrap();
    // The modules are found from there. (Asking cargo for the crate would want the network.)
    let builder = cbindgen::Builder::new().with_config(config).with_src(crate_path("src/lib.rs"));
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_header_is_not_stale() {
    let (path, generated) = (crate_path("include/forebay.h"), generated());
    if std::env::var_os("FOREBAY_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(
        committed == generated,
        "include/forebay.h is stale: FOREBAY_BLESS=1 cargo test -p forebay-capi --test header"
    );
}

/// Alone and first in its file, so that it brings everything it needs; twice, so that it is
/// guarded.
#[test]
fn compilers_take_it_without_a_warning() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (compiler, name) in [(Compiler::c(), "one.c"), (Compiler::cpp(), "one.cpp")] {
        let Some(compiler) = compiler else { continue };
        let source = folder.path().join(name);
        let text = "#include \"forebay.h\"\n#include \"forebay.h\"\n\
                    int main(void) { return forebay_abi_version() != FOREBAY_ABI_VERSION; }\n";
        std::fs::write(&source, text).unwrap();
        run(compiler.strict().arg("-fsyntax-only").arg(source));
    }
}

//! The shared library exports what the header declares and nothing else, under the name that
//! programs are linked to.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use support::{crate_path, run, shared_library};

/// Names before a parenthesis, outside comments and types of callbacks.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(crate_path("include/forebay.h")).unwrap();
    let lines = header.lines().filter(|line| !line.starts_with("//"));
    let name = |line: &str| {
        let (before, _) = line.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        name.starts_with("forebay_").then(|| name.to_owned())
    };
    lines.filter_map(name).collect()
}

#[test]
fn what_the_header_declares_is_exported_and_nothing_else() {
    let declared = declared();
    assert!(declared.contains("forebay_loader_run") && declared.len() > 40, "{declared:?}");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()));
    let exported = symbols.lines().filter_map(|line| line.rsplit(' ').next());
    assert_eq!(exported.map(str::to_owned).collect::<BTreeSet<_>>(), declared);
}

#[test]
fn the_library_is_named_after_its_abi() {
    let dynamic = run(Command::new("readelf").arg("-d").arg(shared_library()));
    let name = format!("Library soname: [libforebay.so.{}]", forebay_capi::FOREBAY_ABI_VERSION);
    assert!(dynamic.contains(&name), "{dynamic}");
}

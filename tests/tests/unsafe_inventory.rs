//! Every `unsafe` of the library, with its argument, in `tests/unsafe.md`: what a reviewer reads
//! before trusting it, and what changes in review when there is one more.
//!
//! `FOREBAY_BLESS=1 cargo test -p forebay-tests --test unsafe_inventory` writes it anew.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The crates that may have any.
const ALLOWED: [&str; 6] = [
    "forebay-mem",
    "forebay-io",
    "forebay-device",
    "forebay-capi",
    "forebay-candle",
    "forebay-python",
];

const HEAD: &str = "# Every `unsafe` of the library

Made by `FOREBAY_BLESS=1 cargo test -p forebay-tests --test unsafe_inventory`, which fails where this list is old, where an
`unsafe` has no argument, or where a crate has one that should have none. Tests' own are left out.
";

#[derive(Debug, PartialEq)]
struct Entry {
    what: &'static str,
    argument: String,
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What a line of code begins that is unsafe, if anything.
fn begins(line: &str) -> Option<&'static str> {
    // A type of functions is no function.
    let code = line.split("//").next().unwrap_or_default().replace("unsafe fn(", "fn(");
    let words = code.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|word| *word == "unsafe")?;
    match words.get(at + 1) {
        Some(&"no_mangle") => None,
        Some(&"impl") => Some("impl"),
        // What is called through such a pointer is a block of its own.
        Some(&"extern") => None,
        Some(&"fn") => Some("fn"),
        Some(&"trait") => Some("trait"),
        _ => Some("block"),
    }
}

/// The sentences behind `mark` in the comment that stands over line `at`, or over the statement
/// that the line is a part of.
fn argument(lines: &[&str], at: usize, mark: &str) -> Option<String> {
    /// How long a statement, or a comment, may be.
    const REACH: usize = 24;
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let first = at.saturating_sub(REACH);
    let marked = (first..=at).rev().find(|&line| lines[line].contains(mark))?;
    let mut text = String::new();
    for line in &lines[marked..=at] {
        if !is_comment(line) {
            break;
        }
        let words = line.trim_start().trim_start_matches(['/', '!']).trim();
        if text.is_empty() {
            text.push_str(words.split(mark).nth(1).unwrap_or_default().trim());
        } else {
            text.push(' ');
            text.push_str(words);
        }
        if text.is_empty() {
            text.push(' ');
        }
    }
    let text = text.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn entries(source: &str, path: &Path) -> Vec<Entry> {
    // Tests argue for themselves, before the lint.
    let library = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines: Vec<_> = library.lines().collect();
    let mut entries = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(what) = begins(line) else { continue };
        let marks: &[&str] =
            if matches!(what, "fn" | "trait") { &["# Safety", "SAFETY:"] } else { &["SAFETY:"] };
        let argument = marks.iter().find_map(|mark| argument(&lines, at, mark));
        let argument = argument
            .unwrap_or_else(|| panic!("{}:{}: no argument: {line}", path.display(), at + 1));
        entries.push(Entry { what, argument });
    }
    entries
}

#[test]
fn every_unsafe_has_its_argument_and_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut list = HEAD.to_owned();
    let mut crates: Vec<_> = std::fs::read_dir(root.join("crates")).unwrap().collect();
    crates.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    for folder in crates {
        let folder = folder.unwrap();
        let name = folder.file_name().into_string().unwrap();
        for path in sources(&folder.path().join("src")) {
            let entries = entries(&std::fs::read_to_string(&path).unwrap(), &path);
            if entries.is_empty() {
                continue;
            }
            assert!(ALLOWED.contains(&&*name), "{} is to have no unsafe", path.display());
            let shown = path.strip_prefix(&root).unwrap().display();
            writeln!(list, "\n## {shown}\n").unwrap();
            for Entry { what, argument } in entries {
                writeln!(list, "- {what}: {argument}").unwrap();
            }
        }
    }
    let kept = root.join("tests/unsafe.md");
    if std::env::var_os("FOREBAY_BLESS").is_some() {
        std::fs::write(&kept, &list).unwrap();
    }
    let known = std::fs::read_to_string(&kept).unwrap_or_default();
    let first = list.lines().zip(known.lines()).find(|(now, then)| now != then);
    assert!(known == list, "tests/unsafe.md is old (FOREBAY_BLESS=1 writes it): {first:?}");
}

#[test]
fn what_is_unsafe_is_found_and_nothing_else() {
    assert_eq!(begins("    let x = unsafe { read() };"), Some("block"));
    assert_eq!(begins("unsafe impl Send for Region {}"), Some("impl"));
    assert_eq!(begins("pub(crate) unsafe fn lend() {"), Some("fn"));
    assert_eq!(begins("#[unsafe(no_mangle)]"), None);
    assert_eq!(begins("type F = unsafe extern \"C\" fn();"), None);
    assert_eq!(begins("const _: unsafe fn(u32) = f;"), None);
    assert_eq!(begins("// an unsafe thing"), None);
    assert_eq!(begins("#![deny(unsafe_code)]"), None);
    let source = "// SAFETY: it is\n// ours.\nlet x =\n    unsafe { f() };\n";
    let expected = Entry { what: "block", argument: "it is ours.".to_owned() };
    assert_eq!(entries(source, Path::new("a.rs")), [expected]);
}

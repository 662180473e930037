//! Models to load in hard places, and what their tensors' bytes truly are.
#![allow(dead_code, reason = "every test file uses its own part")]

use crate::support::{fixtures, json, manifest, run, text};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

const ODD: &str = "safetensors/odd-offsets.safetensors";

/// sha256 by tensor.
pub(crate) type Digests = BTreeMap<String, String>;

/// A model on the ordinary disk, and the digests that any load of a copy must have.
pub(crate) struct Model {
    pub(crate) path: PathBuf,
    pub(crate) digests: Digests,
}

impl Model {
    /// A GGUF of random bytes, by `forebay synth`.
    pub(crate) fn gguf(folder: &Path) -> Self {
        Self::gguf_of(folder, "24MiB")
    }

    /// The same, of this size.
    pub(crate) fn gguf_of(folder: &Path, size: &str) -> Self {
        let path = folder.join("model.gguf");
        assert!(run(&["synth", text(&path), "--size", size]).status.success());
        Self::checked(path)
    }

    /// A safetensors file that packs well: filesystems keep packed data another way.
    pub(crate) fn compressible(folder: &Path) -> Self {
        let path = folder.join("model.safetensors");
        assert!(run(&["synth", text(&path), "--size", "6MiB"]).status.success());
        let mut bytes = std::fs::read(&path).unwrap();
        let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        for (index, byte) in bytes.iter_mut().enumerate().skip(8 + header) {
            // The same within a page, another in the next: a misplaced page is noticed.
            *byte = (index / 4096 % 251).to_le_bytes()[0];
        }
        std::fs::write(&path, bytes).unwrap();
        Self::checked(path)
    }

    /// The fixture whose tensors begin at odd offsets, with the official reader's digests.
    pub(crate) fn odd() -> Self {
        let path = fixtures().join(ODD);
        let (_, tensors) = manifest().into_iter().find(|(other, _)| *other == path).unwrap();
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let digest = |tensor: &Value| (word(&tensor["name"]), word(&tensor["sha256"]));
        let digests: Digests = tensors.iter().map(digest).collect();
        assert_eq!(digests, read_plainly(&path), "the fixture is not what its manifest says");
        Self { path, digests }
    }

    /// The plainest load there is agrees with reading the file without forebay.
    fn checked(path: PathBuf) -> Self {
        let model = Self { digests: read_plainly(&path), path };
        let mut arguments = vec!["load", text(&model.path), "--json", "--digest"];
        arguments.extend(["--load-mode", "none", "--engine", "threads", "--device", "host"]);
        model.expect_in(&json(&arguments), "the plainest load");
        model
    }

    /// A copy in another folder, on its disk and not in its page cache.
    pub(crate) fn copy_to(&self, folder: &Path) -> PathBuf {
        let copy = folder.join(self.path.file_name().unwrap());
        std::fs::copy(&self.path, &copy).unwrap();
        let file = File::open(&copy).unwrap();
        file.sync_all().unwrap();
        forget(&copy);
        copy
    }

    /// That a report's digests are these.
    pub(crate) fn expect_in(&self, report: &Value, what: &str) {
        let landed: Digests = serde_json::from_value(report["digests"].clone()).unwrap();
        for (name, digest) in &self.digests {
            assert_eq!(landed.get(name), Some(digest), "{what}: tensor {name:?}");
        }
        assert_eq!(landed.len(), self.digests.len(), "{what}");
    }
}

/// Where `inspect` says the tensors are, what is there.
fn read_plainly(path: &Path) -> Digests {
    let bytes = std::fs::read(path).unwrap();
    let listed = json(&["inspect", text(path), "--json"]);
    let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let tensors = listed["tensors"].as_array().unwrap().iter();
    let digest = |tensor: &Value| {
        let (offset, length) = (number(&tensor["offset"]), number(&tensor["bytes"]));
        let mut hex = String::new();
        for byte in Sha256::digest(&bytes[offset..offset + length]) {
            write!(hex, "{byte:02x}").unwrap();
        }
        (tensor["name"].as_str().unwrap().to_owned(), hex)
    };
    tensors.map(digest).collect()
}

/// Lets the page cache forget a file.
pub(crate) fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    forebay_io::cache::drop_cached(&file, 0..file.metadata().unwrap().len()).unwrap();
}

/// How much of a file the page cache holds, in thousandths.
pub(crate) fn cached_permille(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    forebay_io::cache::cached_bytes(&file, 0..bytes).unwrap() * 1000 / bytes
}

/// A step down, as in a report.
pub(crate) type Step = (&'static str, &'static str, &'static str, &'static str);

/// The steps down of a report, file after file: from, to, errno, at.
pub(crate) fn steps(report: &Value) -> Vec<[String; 4]> {
    let files = report["files"].as_array().unwrap().iter();
    let fallbacks = files.flat_map(|file| file["fallbacks"].as_array().unwrap());
    let step = |fallback: &Value| {
        ["from", "to", "errno", "at"].map(|key| fallback[key].as_str().unwrap().to_owned())
    };
    fallbacks.map(step).collect()
}

/// That these are a report's steps, in this order.
pub(crate) fn expect_steps(report: &Value, expected: &[Step], what: &str) {
    let words = |&(from, to, errno, at): &Step| [from, to, errno, at];
    let expected: Vec<_> = expected.iter().map(words).collect();
    assert_eq!(steps(report), expected, "{what}");
}

//! A `model.safetensors.index.json`, and a model of shards that are made as it says, or almost.
#![no_main]

use forebay_format::safetensors::{self, Index, SafetensorsFile};
use forebay_format::{Catalog, FormatError, FormatErrorKind};
use forebay_fuzz::headers::{assert_catalog, assert_readable};
use forebay_fuzz::memory::peak_of;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, json};
use std::collections::HashSet;
use std::path::{Component, Path};

/// As for headers; measured for entries of `"abc":"abc",`: 20.
const PEAK_FACTOR: usize = 32;
const PEAK_BYTES_MIN: usize = 16 << 10;

/// Models larger than this say nothing that smaller ones do not.
const SHARDS_MAX: usize = 32;
const TENSORS_MAX: usize = 256;

fuzz_target!(|input: &[u8]| {
    let (parsed, peak) = peak_of(|| safetensors::parse_index(input));
    let peak_max = PEAK_BYTES_MIN + PEAK_FACTOR * input.len();
    assert!(peak <= peak_max, "{peak} bytes held for an index of {}", input.len());
    assert_eq!(parsed, safetensors::parse_index(input));
    match parsed {
        Ok(index) => {
            assert_sound(&index);
            // No model has no file, and no shard a tensor of that name.
            let can_be = !index.is_empty() && index.file_of("__metadata__").is_none();
            if can_be && index.files().len() <= SHARDS_MAX && index.len() <= TENSORS_MAX {
                assert_models(&index);
            }
        }
        Err(error) => assert_readable(&error),
    }
});

fn assert_sound(index: &Index) {
    assert!(index.files().is_sorted_by(|one, next| one < next), "sorted, and none twice");
    for file in index.files() {
        let plain = |part| matches!(part, Component::Normal(_));
        assert!(Path::new(file).components().all(plain), "{file} leads elsewhere");
        assert!((1..=255).contains(&file.len()) && !file.contains('\0'));
    }
    let mut names = HashSet::new();
    let mut used = HashSet::new();
    for (name, file) in index.iter() {
        assert!(names.insert(name), "{name} is there twice");
        assert_eq!(index.file_of(name), Some(file));
        used.insert(file);
    }
    assert_eq!(names.len(), index.len());
    assert_eq!(used.len(), index.files().len(), "a shard that holds nothing");
}

/// A model whose shards hold what the index says, and each the first tensor of all; and the same
/// without the last shard, and with a shard that lacks its tensors.
fn assert_models(index: &Index) {
    let catalog = catalog(index, |_| true).expect("the shards are as the index says");
    assert_catalog(&catalog);
    assert_eq!(catalog.tensors().len(), index.len());
    for (name, file) in index.iter() {
        let tensor = catalog.tensor(name).expect("the index lists it");
        assert_eq!(catalog.files()[tensor.file].name, file);
    }
    let last = index.files().last().expect("every tensor is in one");
    let lacking = [catalog_without(index, last), self::catalog(index, |file| file != last)];
    for refused in lacking {
        let error = refused.expect_err("a shard is missing, or its tensors are");
        assert_eq!(error.kind(), FormatErrorKind::Parts);
        assert_readable(&error);
    }
}

fn catalog_without(index: &Index, missing: &str) -> Result<Catalog, FormatError> {
    let parts = index.files().iter().filter(|file| *file != missing);
    let parts = parts.map(|file| part(index, file, true)).collect();
    safetensors::catalog(parts, Some(index))
}

fn catalog(index: &Index, is_filled: impl Fn(&str) -> bool) -> Result<Catalog, FormatError> {
    let parts = index.files().iter().map(|file| part(index, file, is_filled(file))).collect();
    safetensors::catalog(parts, Some(index))
}

/// A shard with the tensors that the index puts there, each of a byte, and the first of all.
fn part(index: &Index, file: &str, is_filled: bool) -> (String, u64, SafetensorsFile) {
    let first = index.iter().next().map(|(name, _)| name);
    let is_here =
        |(name, place): &(&str, &str)| is_filled && (*place == file || Some(*name) == first);
    let mut header = Map::new();
    for (at, (name, _)) in index.iter().filter(is_here).enumerate() {
        let entry = json!({"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]});
        header.insert(name.to_owned(), entry);
    }
    let data_bytes = header.len() as u64;
    let json = serde_json::to_vec(&header).expect("a map of texts");
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    let file_bytes = bytes.len() as u64 + data_bytes;
    let parsed = safetensors::parse(&bytes, file_bytes).expect("a good file").complete();
    (file.to_owned(), file_bytes, parsed.expect("all of its header"))
}

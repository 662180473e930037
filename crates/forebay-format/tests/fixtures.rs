//! Every fixture reads as the official readers read it.

mod common;

use common::{catalog_of, fixture, fixture_path, parse_in_steps};
use forebay_format::{Array, Catalog, Dtype, Value, gguf, safetensors};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

fn json(name: &str) -> Json {
    serde_json::from_slice(&fixture(name)).expect("valid JSON")
}

/// Opens a model by the name the manifest has for it: a file, the first of several, or an index.
fn open(name: &str) -> Catalog {
    let (folder, file_name) = name.split_once('/').expect("format/file");
    let part = |file: &str| (file.to_owned(), fixture(&format!("{folder}/{file}")));
    if let Some(split) = gguf::split_name(file_name) {
        let parts = (1..=split.count).map(|number| {
            let (name, bytes) = part(&split.file_name(number));
            let header = parse_in_steps(&bytes, gguf::parse).expect("a good part");
            (name, bytes.len() as u64, header)
        });
        gguf::catalog(parts.collect()).expect("parts that fit")
    } else if file_name.ends_with(".json") {
        let index = safetensors::parse_index(&fixture(name)).expect("a good index");
        let shards = index.files().iter().map(|file| {
            let (name, bytes) = part(file);
            let header = parse_in_steps(&bytes, safetensors::parse).expect("a good shard");
            (name, bytes.len() as u64, header)
        });
        safetensors::catalog(shards.collect(), Some(&index)).expect("shards that fit")
    } else {
        catalog_of(file_name, &fixture(name)).expect("a good file")
    }
}

/// The catalog's tensors in the manifest's words, digests taken from the byte ranges it gives.
fn described(catalog: &Catalog, folder: &str) -> BTreeMap<String, Json> {
    let files: Vec<Vec<u8>> =
        catalog.files().iter().map(|file| fixture(&format!("{folder}/{}", file.name))).collect();
    let describe = |tensor: &forebay_format::Tensor| {
        let range = usize::try_from(tensor.offset).expect("small")
            ..usize::try_from(tensor.end()).expect("small");
        // An empty tensor's offset may lie past the end.
        let data = files[tensor.file].get(range).unwrap_or(&[]);
        assert_eq!(data.len() as u64, tensor.bytes);
        let digest = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
        let described = serde_json::json!({
            "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape,
            "bytes": tensor.bytes, "sha256": Json::String(digest),
        });
        (tensor.name.clone(), described)
    };
    catalog.tensors().iter().map(describe).collect()
}

#[test]
fn tensors_are_those_of_the_manifest() {
    let manifest = json("manifest.json");
    for (name, model) in manifest.as_object().expect("an object") {
        let (folder, _) = name.split_once('/').expect("format/file");
        let catalog = open(name);
        let expected: BTreeMap<String, Json> = model["tensors"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|tensor| (tensor["name"].as_str().expect("a name").to_owned(), tensor.clone()))
            .collect();
        assert_eq!(described(&catalog, folder), expected, "{name}");
        // Of a .ptd file, whatever a tensor does not say is in the metadata and in a notice.
        let told = folder == "ptd" && !model["metadata"].as_object().expect("texts").is_empty();
        assert!(told != catalog.notices().is_empty(), "{name}: {:?}", catalog.notices());
        for tensor in catalog.tensors() {
            assert_eq!(catalog.tensor(&tensor.name), Some(tensor), "{name}");
        }
        let places = catalog.tensors().iter().map(|tensor| (tensor.file, tensor.offset));
        assert!(places.is_sorted(), "{name}");
        assert_eq!(catalog.format().to_string(), folder);
    }
}

#[test]
fn every_fixture_is_in_the_manifest() {
    let manifest = json("manifest.json");
    for name in common::fixture_files() {
        let first = name.contains("-00001-of-") && name.ends_with(".gguf");
        if first || !name.contains("-of-") {
            assert!(manifest.get(&name).is_some(), "{name}");
        }
    }
    assert!(fixture_path("manifest.json").exists());
}

#[test]
fn metadata_is_that_of_the_manifest() {
    let manifest = json("manifest.json");
    for (name, model) in manifest.as_object().expect("an object") {
        let catalog = open(name);
        match &model["metadata"] {
            Json::Array(entries) => {
                assert_eq!(catalog.metadata().len(), entries.len(), "{name}");
                for ((key, value), entry) in catalog.metadata().iter().zip(entries) {
                    assert_eq!(key, entry["key"], "{name}");
                    assert_eq!(types(value), entry["types"], "{name}: {key}");
                    assert_eq!(flat(value), entry["value"], "{name}: {key}");
                }
            }
            Json::Object(texts) => {
                assert_eq!(catalog.metadata().len(), texts.len(), "{name}");
                for (key, text) in texts {
                    let value = catalog.metadata().get(key).and_then(Value::as_str);
                    assert_eq!(value, text.as_str(), "{name}: {key}");
                }
            }
            other => panic!("{name}: {other}"),
        }
    }
}

/// A value's types as the gguf package lists them: an array's, then its first element's.
fn types(value: &Value) -> Json {
    let mut names = vec![value.type_name().to_uppercase()];
    let mut inner = value.as_array().and_then(|array| array.get(0));
    while let Some(value) = inner {
        names.push(value.type_name().to_uppercase());
        inner = value.as_array().and_then(|array| array.get(0));
    }
    names.into()
}

/// A value as the gguf package gives it: arrays of arrays in one row.
fn flat(value: &Value) -> Json {
    match value {
        Value::Array(array) => Json::Array(flat_elements(array)),
        Value::F32(number) => (*number).into(),
        Value::F64(number) => (*number).into(),
        Value::Bool(truth) => (*truth).into(),
        Value::String(text) => text.to_str().expect("valid UTF-8").into(),
        Value::U64(number) => (*number).into(),
        integer => integer.as_i64().expect("an integer").into(),
    }
}

fn flat_elements(array: &Array) -> Vec<Json> {
    let elements = (0..array.len()).filter_map(|index| array.get(index));
    elements
        .flat_map(|element| match element {
            Value::Array(inner) => flat_elements(&inner),
            scalar => vec![flat(&scalar)],
        })
        .collect()
}

#[test]
fn block_sizes_are_those_of_the_gguf_package() {
    let sizes = json("block_sizes.json");
    let sizes = sizes.as_object().expect("an object");
    for (name, size) in sizes {
        let dtype = Dtype::from_name(name).unwrap_or_else(|| panic!("no {name}"));
        let ours = serde_json::json!([dtype.block_elements(), dtype.block_bytes()]);
        assert_eq!(&ours, size, "{name}");
        assert!(dtype.gguf_id().is_some(), "{name}");
    }
    let gguf_types = Dtype::ALL.iter().filter(|dtype| dtype.gguf_id().is_some());
    assert_eq!(gguf_types.count(), sizes.len());
}

#[test]
fn alignment_is_honoured() {
    let file = fixture("gguf/aligned-4096.gguf");
    let header = parse_in_steps(&file, gguf::parse).expect("a good file");
    assert_eq!((header.version(), header.alignment(), header.data_offset()), (3, 4096, 4096));
    let second = fixture("gguf/version-2.gguf");
    let second = parse_in_steps(&second, gguf::parse).expect("a good file");
    assert_eq!(second.version(), 2);
    assert_eq!(second.tensors(), header.tensors());
}

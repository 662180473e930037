//! Tensors beside what candle's own readers, and the official ones, make of the same files.

mod common;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use common::{assert_same, bytes, fixture};
use forebay::{Dtype, Loader};
use forebay_candle::{Error, Tensors};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CPU: Device = Device::Cpu;

fn candles(names: &[&str]) -> MmapedSafetensors {
    let paths: Vec<_> = names.iter().map(|name| fixture(name)).collect();
    // SAFETY: nobody writes to the fixtures.
    unsafe { MmapedSafetensors::multi(&paths) }.unwrap()
}

/// That ours has what candle's reader gives, and leaves what it refuses.
fn compare(ours: &Tensors, candles: &MmapedSafetensors) {
    let mut left = BTreeSet::new();
    for (name, _) in candles.tensors() {
        match candles.load(&name, &CPU) {
            Ok(tensor) => assert_same(&name, ours.tensor(&name).unwrap(), &tensor),
            Err(_) => {
                left.insert(name);
            }
        }
    }
    assert_eq!(ours.left().map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>(), left);
    assert_eq!(ours.tensors().len() + left.len(), candles.tensors().len());
}

#[test]
fn every_type_odd_offsets_empty_tensors_and_scalars_are_as_candle_reads_them() {
    for name in ["every-dtype", "odd-offsets", "official", "no-tensors"] {
        let name = format!("safetensors/{name}.safetensors");
        let ours = Tensors::load(Loader::new(fixture(&name)), &CPU).unwrap();
        compare(&ours, &candles(&[&name]));
    }
}

#[test]
fn shards_are_as_candle_reads_them() {
    let shards = [1, 2, 3].map(|it| format!("safetensors/model-0000{it}-of-00003.safetensors"));
    let index = fixture("safetensors/model.safetensors.index.json");
    let ours = Tensors::load(Loader::new(index), &CPU).unwrap();
    assert_eq!(ours.tensors().len(), 9);
    compare(&ours, &candles(&shards.each_ref().map(String::as_str)));
}

#[test]
fn load_is_what_candles_load_is() {
    let path = fixture("safetensors/official.safetensors");
    let ours = forebay_candle::load(&path, &CPU).unwrap();
    let candles = candle_core::safetensors::load(&path, &CPU).unwrap();
    assert_eq!(ours.len(), candles.len());
    candles.iter().for_each(|(name, tensor)| assert_same(name, &ours[name], tensor));
}

#[test]
fn load_refuses_what_candle_has_no_type_for_before_it_reads() {
    let read = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&read);
    let loader = Loader::new(fixture("safetensors/every-dtype.safetensors"))
        .on_progress(move |_| seen.store(true, Ordering::Relaxed));
    let error = forebay_candle::load_with(loader, &CPU).unwrap_err();
    let Error::Unsupported { tensor, dtype, wanted: "Tensor", .. } = &error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains(tensor) && error.to_string().contains(dtype.name()));
    assert!(!read.load(Ordering::Relaxed));
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The digests of the official readers: candle's own reader of GGUF takes none of these files.
fn manifest(name: &str) -> BTreeMap<String, (String, Vec<u64>, String)> {
    let text = std::fs::read_to_string(fixture("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tensors = manifest[name]["tensors"].as_array().unwrap().iter();
    let tensor = |it: &serde_json::Value| {
        let text = |key: &str| it[key].as_str().unwrap().to_owned();
        let shape = it["shape"].as_array().unwrap().iter();
        let shape = shape.map(|n| n.as_u64().unwrap()).collect();
        (text("name"), (text("dtype"), shape, text("sha256")))
    };
    tensors.map(tensor).collect()
}

#[test]
fn dense_types_of_gguf_and_ptd_are_what_the_official_readers_read() {
    let candle_has = ["F32", "F16", "BF16", "F64", "I16", "I32", "I64", "U8", "U32", "F8_E4M3"];
    let (mut had, mut left, mut reordered) = (0, 0, 0);
    for name in [
        "gguf/every-type.gguf",
        "gguf/odd-shapes.gguf",
        "gguf/split-00001-of-00003.gguf",
        "gguf/aligned-4096.gguf",
        "ptd/every-type.ptd",
        "ptd/odd-layouts.ptd",
        "ptd/tiny_ext.ptd",
    ] {
        let ours = Tensors::load(Loader::new(fixture(name)), &CPU).unwrap();
        for (tensor, (dtype, shape, sha256)) in manifest(name) {
            if dtype == "U16" {
                continue; // It is another type then; `every-dtype.safetensors` has it too.
            }
            let found = match ours.tensor(&tensor) {
                Ok(found) => found,
                Err(error) => {
                    let order = format!("ptd.dim_order.{tensor}");
                    let is_reordered = ours.metadata().get(&order).is_some();
                    assert_eq!(matches!(error, Error::Reordered { .. }), is_reordered, "{error}");
                    let has = candle_has.contains(&dtype.as_str());
                    assert!(is_reordered || !has, "{name} {tensor} {dtype}");
                    let expected = (tensor.as_str(), Dtype::from_name(&dtype).unwrap());
                    assert!(ours.left().any(|it| it == expected));
                    reordered += usize::from(is_reordered);
                    left += 1;
                    continue;
                }
            };
            let dims: Vec<u64> = found.dims().iter().map(|&n| n as u64).collect();
            assert_eq!(dims, shape, "{name} {tensor}");
            assert_eq!(sha256_hex(&bytes(found)), sha256, "{name} {tensor} {dtype}");
            had += 1;
        }
    }
    assert!(had > 40 && left > 30 && reordered > 0, "{had} {left} {reordered}");
}

/// Tensors of candle's own making, so that its arithmetic can be done on ours.
#[test]
fn what_was_loaded_is_computed_on_as_any_tensor() {
    let path = fixture("safetensors/model.safetensors.index.json");
    for tensor in forebay_candle::load(path, &CPU).unwrap().values() {
        let twice = (tensor + tensor).unwrap();
        let same = Tensor::cat(&[&twice, &twice], 0).unwrap().to_dtype(DType::F64).unwrap();
        assert_eq!(same.dims()[0], 2 * tensor.dims()[0]);
        let expected: Vec<f32> = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected: Vec<f32> = expected.iter().map(|it| it + it).collect();
        assert_eq!(twice.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
    }
}

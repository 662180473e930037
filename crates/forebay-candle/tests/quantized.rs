//! `QTensor`s and metadata beside candle's own reader of GGUF.

mod common;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use common::{assert_same, fixture};
use forebay::{Dtype, Loader};
use forebay_candle::quantized::{self, QTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

const CPU: Device = Device::Cpu;

/// Every tensor's bytes and values, and all metadata, as candle reads them from the file.
fn compare(path: &Path) -> usize {
    let ours = QTensors::load(Loader::new(path), &CPU).unwrap();
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    for name in content.tensor_infos.keys() {
        let candles = content.tensor(&mut file, name, &CPU).unwrap();
        let ours = ours.tensor(name).unwrap();
        assert_eq!((ours.dtype(), ours.shape()), (candles.dtype(), candles.shape()), "{name}");
        assert_eq!(ours.data().unwrap(), candles.data().unwrap(), "{name}");
        let values = (ours.dequantize(&CPU).unwrap(), candles.dequantize(&CPU).unwrap());
        assert_same(name, &values.0, &values.1);
    }
    assert_eq!(ours.tensors().len(), content.tensor_infos.len());
    let sorted = |it: &std::collections::HashMap<String, _>| {
        let it: BTreeMap<_, _> = it.iter().map(|(key, value)| (key.clone(), value)).collect();
        format!("{it:?}")
    };
    assert_eq!(sorted(ours.metadata()), sorted(&content.metadata));
    ours.tensors().len()
}

#[test]
fn blocks_values_and_metadata_are_as_candle_reads_them() {
    for name in ["aligned-4096", "version-2", "values"] {
        assert!(compare(&fixture(&format!("gguf/{name}.gguf"))) > 0);
    }
}

/// Candle refuses a whole file for one type, and takes no split ones, so each tensor of this one
/// is compared with what candle makes of the file's bytes.
#[test]
fn every_type_that_candle_has_is_what_candle_makes_of_its_bytes() {
    let path = fixture("gguf/every-type.gguf");
    let model = forebay::Model::open(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let ours = QTensors::load(Loader::new(&path), &CPU).unwrap();
    let candle_has = [
        (Dtype::F32, GgmlDType::F32),
        (Dtype::F16, GgmlDType::F16),
        (Dtype::BF16, GgmlDType::BF16),
        (Dtype::Q4_0, GgmlDType::Q4_0),
        (Dtype::Q4_1, GgmlDType::Q4_1),
        (Dtype::Q5_0, GgmlDType::Q5_0),
        (Dtype::Q5_1, GgmlDType::Q5_1),
        (Dtype::Q8_0, GgmlDType::Q8_0),
        (Dtype::Q2_K, GgmlDType::Q2K),
        (Dtype::Q3_K, GgmlDType::Q3K),
        (Dtype::Q4_K, GgmlDType::Q4K),
        (Dtype::Q5_K, GgmlDType::Q5K),
        (Dtype::Q6_K, GgmlDType::Q6K),
        (Dtype::Q8_K, GgmlDType::Q8K),
    ];
    for tensor in model.catalog().tensors() {
        let found = ours.tensor(&tensor.name);
        let Some((_, dtype)) = candle_has.iter().find(|(it, _)| *it == tensor.dtype) else {
            let error = found.unwrap_err().to_string();
            assert!(error.contains(&tensor.name) && error.contains(tensor.dtype.name()), "{error}");
            continue;
        };
        let found = found.unwrap();
        let end = usize::try_from(tensor.end()).unwrap();
        let bytes = &file[usize::try_from(tensor.offset).unwrap()..end];
        assert_eq!(found.dtype(), *dtype);
        assert_eq!(found.data().unwrap(), bytes, "{}", tensor.name);
        let aligned = dtype.from_data(aligned(bytes).into());
        let storage = candle_core::quantized::QStorage::Cpu(aligned);
        let candles = QTensor::new(storage, found.shape()).unwrap();
        let values = (found.dequantize(&CPU).unwrap(), candles.dequantize(&CPU).unwrap());
        assert_same(&tensor.name, &values.0, &values.1);
    }
}

/// A copy that begins where any block may: the allocator aligns so much memory to 16.
fn aligned(bytes: &[u8]) -> Vec<u8> {
    let copy = bytes.to_vec();
    assert!(copy.as_ptr().addr().is_multiple_of(4));
    copy
}

#[test]
fn a_split_model_is_one() {
    let weights = quantized::load(fixture("gguf/split-00002-of-00003.gguf"), &CPU).unwrap();
    assert_eq!(weights.len(), 8);
}

#[test]
fn load_refuses_what_candle_can_not_have() {
    for (name, wanted) in [("every-type", "Q8_1"), ("odd-shapes", "F32 and shape []")] {
        let path = fixture(&format!("gguf/{name}.gguf"));
        let error = quantized::load(path, &CPU).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_prefix_leads_to_the_tensors_below_it_and_a_wrong_shape_is_an_error() {
    let builder = quantized::var_builder(fixture("gguf/split-00001-of-00003.gguf"), &CPU).unwrap();
    let names: Vec<String> = builder.tensors().tensors().keys().cloned().collect();
    assert!(builder.contains_key(&names[0]));
    let deep = names.iter().find(|name| name.matches('.').count() > 1).unwrap();
    let mut below = builder;
    let (path, last) = deep.rsplit_once('.').unwrap();
    for part in path.split('.') {
        below = below.pp(part);
    }
    let tensor = below.get_no_shape(last).unwrap();
    assert_eq!(
        below.get(tensor.shape().clone(), last).unwrap().data().unwrap(),
        tensor.data().unwrap()
    );
    let error = below.get((1, 1, 1), last).unwrap_err().to_string();
    assert!(error.contains(deep), "{error}");
    assert!(below.get_no_shape("none").unwrap_err().to_string().contains("none"));
    assert!(below.contains_key(deep) && !below.contains_key(last) && below.device().is_cpu());
}

#[test]
fn products_are_those_of_candles_tensors() {
    let path = fixture("gguf/aligned-4096.gguf");
    let mut file = File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let ours = quantized::load(&path, &CPU).unwrap();
    let (name, _) = ours.iter().find(|(_, it)| it.dtype() == GgmlDType::Q8_0).unwrap();
    let x = Tensor::arange(0_f32, 32., &CPU).unwrap().reshape((1, 32)).unwrap();
    let candles = QMatMul::from_qtensor(content.tensor(&mut file, name, &CPU).unwrap()).unwrap();
    let product = QMatMul::from_arc(ours[name].clone()).unwrap().forward(&x).unwrap();
    assert_same(name, &product, &candles.forward(&x).unwrap());
}

/// A real model, where the environment names one: `FOREBAY_CANDLE_GGUF=PATH` (tests/decoder/fetch).
#[test]
fn a_real_model_is_as_candle_reads_it() {
    let Some(path) = std::env::var_os("FOREBAY_CANDLE_GGUF").map(PathBuf::from) else { return };
    assert!(compare(&path) > 100);
}

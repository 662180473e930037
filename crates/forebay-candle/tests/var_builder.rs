//! `VarBuilder` over our loads beside candle's own over a mapping.

mod common;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use common::{assert_same, fixture};
use forebay::Loader;
use forebay_candle::{Tensors, quantized};

const CPU: Device = Device::Cpu;
const SHARDS: [&str; 3] = [
    "safetensors/model-00001-of-00003.safetensors",
    "safetensors/model-00002-of-00003.safetensors",
    "safetensors/model-00003-of-00003.safetensors",
];

fn candles(names: &[&str], dtype: DType) -> VarBuilder<'static> {
    let paths: Vec<_> = names.iter().map(|name| fixture(name)).collect();
    // SAFETY: nobody writes to the fixtures.
    unsafe { VarBuilder::from_mmaped_safetensors(&paths, dtype, &CPU) }.unwrap()
}

/// Both answer the same: tensors to the bit, errors to the word.
fn assert_same_answer(what: &str, ours: Result<Tensor>, candles: Result<Tensor>) {
    match (ours, candles) {
        (Ok(ours), Ok(candles)) => assert_same(what, &ours, &candles),
        (Err(ours), Err(candles)) => {
            // The lines below are the backtrace, if one was asked for.
            let first =
                |error: candle_core::Error| error.to_string().lines().next().map(ToOwned::to_owned);
            assert_eq!(first(ours), first(candles), "{what}");
        }
        (ours, candles) => panic!("{what}: {ours:?}, and candle's {candles:?}"),
    }
}

#[test]
fn it_answers_as_candles_own() {
    let index = fixture("safetensors/model.safetensors.index.json");
    let names: Vec<String> = forebay_candle::load(&index, &CPU).unwrap().into_keys().collect();
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        let ours = forebay_candle::var_builder(&index, dtype, &CPU).unwrap();
        let candles = candles(&SHARDS, dtype);
        for name in &names {
            let got = ours.get_unchecked(name);
            let shape = got.as_ref().unwrap().shape().clone();
            assert_same_answer(name, got, candles.get_unchecked(name));
            assert_same_answer(name, ours.get(&shape, name), candles.get(&shape, name));
            assert_same_answer(name, ours.get((7, 7), name), candles.get((7, 7), name));
            let narrow = (ours.get_unchecked_dtype(name, DType::F16), DType::F16);
            assert_same_answer(name, narrow.0, candles.get_unchecked_dtype(name, narrow.1));
            let (prefix, last) = name.rsplit_once('.').expect("a name with a prefix");
            assert!(ours.pp(prefix).contains_tensor(last) && !ours.contains_tensor(last));
            let below = (ours.pp(prefix).get(&shape, last), candles.pp(prefix).get(&shape, last));
            assert_same_answer(name, below.0, below.1);
        }
        assert_same_answer("none", ours.get(1, "none"), candles.get(1, "none"));
        assert!(!ours.contains_tensor("none"));
    }
}

#[test]
fn a_type_that_candle_has_not_is_an_error_for_who_asks_for_it() {
    let path = fixture("safetensors/every-dtype.safetensors");
    let tensors = Tensors::load(Loader::new(path), &CPU).unwrap();
    let left: Vec<_> = tensors.left().map(|(name, dtype)| (name.to_owned(), dtype)).collect();
    assert!(!left.is_empty());
    let builder = tensors.into_var_builder(DType::F32);
    for (name, dtype) in left {
        assert!(!builder.contains_tensor(&name));
        let error = builder.get((3, 4), &name).unwrap_err().to_string();
        assert!(error.contains(&name) && error.contains(dtype.name()), "{error}");
    }
}

#[test]
fn blocks_are_no_tensors_and_the_error_names_them() {
    let path = fixture("gguf/aligned-4096.gguf");
    let dense = Tensors::load(Loader::new(&path), &CPU).unwrap();
    let (name, dtype) = dense.left().next().unwrap();
    let (name, error) = (name.to_owned(), dense.tensor(dense.left().next().unwrap().0));
    assert_eq!(dtype, forebay::Dtype::Q8_0);
    assert!(error.unwrap_err().to_string().contains("Q8_0"));
    let blocks = quantized::var_builder(&path, &CPU).unwrap();
    assert_eq!(blocks.get((2, 32), &name).unwrap().shape().dims(), [2, 32]);
}

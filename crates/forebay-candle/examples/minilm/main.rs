//! Runs all-MiniLM-L6-v2 with weights that candle loads and with weights that forebay loads, and
//! sees that the outputs are the same to the bit:
//!
//!     cargo run --release -p forebay-candle --example minilm -- model.safetensors

mod bert;

use bert::MiniLm;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use std::path::Path;

/// "This is an example sentence", "Each sentence is converted", "An example of a sentence", each
/// between the tokens that begin and end one.
const SENTENCES: [&[u32]; 3] = [
    &[101, 2023, 2003, 2019, 2742, 6251, 102],
    &[101, 2169, 6251, 2003, 4991, 102],
    &[101, 2019, 2742, 1997, 1037, 6251, 102],
];

/// What each sentence means.
type Embeddings = Vec<Vec<f32>>;

fn embeddings(weights: &VarBuilder<'_>) -> Result<Embeddings> {
    let model = MiniLm::new(weights)?;
    SENTENCES.iter().map(|tokens| model.embed(tokens)?.to_vec1()).collect()
}

/// The model with weights from everywhere that there is a way from, and what way it was.
fn all(path: &Path, dtype: DType) -> Result<Vec<(&'static str, Embeddings)>> {
    let device = Device::Cpu;
    // SAFETY: nobody is to write to the model's file while this program runs, as for any mapping.
    let mapped = unsafe { VarBuilder::from_mmaped_safetensors(&[path], dtype, &device) }?;
    let loaded = candle_core::safetensors::load(path, &device)?;
    let loaded = VarBuilder::from_tensors(loaded, dtype, &device);
    let ours = forebay_candle::var_builder(path, dtype, &device)?;
    let ours_as_tensors = forebay_candle::load(path, &device)?;
    let ours_as_tensors = VarBuilder::from_tensors(ours_as_tensors, dtype, &device);
    Ok(vec![
        ("VarBuilder::from_mmaped_safetensors", embeddings(&mapped)?),
        ("candle_core::safetensors::load", embeddings(&loaded)?),
        ("forebay_candle::var_builder", embeddings(&ours)?),
        ("forebay_candle::load", embeddings(&ours_as_tensors)?),
    ])
}

fn bits(embeddings: &[Vec<f32>]) -> Vec<u32> {
    embeddings.iter().flatten().map(|it| it.to_bits()).collect()
}

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).expect("usage: minilm MODEL.safetensors");
    for dtype in [DType::F32, DType::BF16] {
        let all = all(Path::new(&path), dtype)?;
        let (first, expected) = &all[0];
        for (way, got) in &all[1..] {
            assert_eq!(bits(got), bits(expected), "{way} and {first} differ in {dtype:?}");
        }
        let all_finite = expected.iter().flatten().all(|it| it.is_finite());
        assert!(all_finite, "a sentence has a meaning");
        println!("{dtype:?}: {} ways to load it, the same outputs to the bit", all.len());
        println!("  {:.4?} …", &expected[0][..6]);
        let embeddings: Vec<Tensor> = expected
            .iter()
            .map(|it| Tensor::new(it.as_slice(), &Device::Cpu))
            .collect::<Result<_>>()?;
        for other in 1..embeddings.len() {
            let alike = (&embeddings[0] * &embeddings[other])?.sum_all()?.to_scalar::<f32>()?;
            println!("  sentence 1 and {}: {alike:.4} alike", other + 1);
        }
    }
    Ok(())
}

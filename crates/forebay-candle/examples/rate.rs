//! One load of a model into candle's memory, by candle or by forebay, and how long it took, as
//! JSON: what `benches/candle.py` measures.
//!
//!     rate candle-load|candle-mmap|candle-gguf|forebay|forebay-gguf MODEL

use candle_core::quantized::gguf_file::Content;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Result, Tensor};
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::time::Instant;

/// All of a mapped model's tensors in memory of their own, as a model has them that was built of
/// it.
fn out_of_a_mapping(path: &str) -> Result<HashMap<String, Tensor>> {
    // SAFETY: the model's file is the benchmark's own, and nobody writes to it.
    let mapped = unsafe { MmapedSafetensors::new(path) }?;
    let names = mapped.tensors().into_iter().map(|(name, _)| name);
    names.map(|name| Ok((name.clone(), mapped.load(&name, &Device::Cpu)?))).collect()
}

fn bytes_of(tensors: &HashMap<String, Tensor>) -> usize {
    tensors.values().map(|it| it.elem_count() * it.dtype().size_in_bytes()).sum()
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: rate candle-load|candle-mmap|candle-gguf|forebay|forebay-gguf MODEL";
    let (who, path) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let (device, started) = (Device::Cpu, Instant::now());
    // What was loaded is kept until the time has been taken.
    let (bytes, _kept): (usize, Box<dyn std::any::Any>) = match who.as_str() {
        "candle-load" | "candle-mmap" | "forebay" => {
            let tensors = match who.as_str() {
                "candle-load" => candle_core::safetensors::load(&path, &device)?,
                "candle-mmap" => out_of_a_mapping(&path)?,
                _ => forebay_candle::load(&path, &device)?,
            };
            (bytes_of(&tensors), Box::new(tensors))
        }
        "forebay-gguf" => {
            let tensors = forebay_candle::quantized::load(&path, &device)?;
            (tensors.values().map(|it| it.storage_size_in_bytes()).sum(), Box::new(tensors))
        }
        "candle-gguf" => {
            let mut file = File::open(&path)?;
            let content = Content::read(&mut file)?;
            let names = content.tensor_infos.keys();
            let tensors = names.map(|name| content.tensor(&mut file, name, &device));
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            (tensors.iter().map(|it| it.storage_size_in_bytes()).sum(), Box::new(tensors))
        }
        _ => return Err(usage.into()),
    };
    println!(r#"{{"bytes": {bytes}, "seconds": {}}}"#, started.elapsed().as_secs_f64());
    Ok(())
}

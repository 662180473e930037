//! Loads a model for the CPU, begins before the prefetch has ended, and multiplies a tensor.
//!
//!     cargo run --release -p forebay --example matmul -- MODEL [TENSOR]

use forebay::{GpuLayers, Loader, Repack};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: matmul MODEL [TENSOR]")?;
    let wanted = arguments.next();
    let loader = Loader::new(path).gpu_layers(GpuLayers::Count(0)).repack(Repack::On);
    let mut load = loader.start()?;
    for tensor in &mut load {
        // In order of use: what a model needs first comes first.
        let tensor = tensor?;
        let is_wanted = wanted.as_ref().is_none_or(|name| name == tensor.name());
        let Ok(shape) = tensor.matrix_shape() else { continue };
        if !is_wanted {
            continue;
        }
        let x = vec![1.0; shape.columns];
        let mut y = vec![0.0; shape.rows];
        if let Err(error) = tensor.matmul(&x, 1, &mut y) {
            println!("{error}"); // A type that holds no numbers.
            continue;
        }
        let how = if tensor.is_repacked() { ", interleaved" } else { "" };
        println!("{tensor:?}{how}: row sums from {:?}", &y[..y.len().min(4)]);
    }
    let report = load.finish()?.report().clone();
    println!(
        "{} bytes prefetched, {} repacked",
        report.memory.prefetched_bytes, report.memory.repacked_bytes
    );
    Ok(())
}

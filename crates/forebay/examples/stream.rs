//! Works on tensors as they land, while the rest is still on its way: here, the largest
//! magnitude of every F32 tensor. Stops cleanly after a few with a second argument.
//!
//!     cargo run --release -p forebay --example stream -- MODEL [STOP AFTER N]

use forebay::{Dtype, GpuLayers, Loader, Tensor};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("name a model")?;
    let stop_after = arguments.next().map(|count| count.parse()).transpose()?;
    // Layers on the device by direct reads; the rest mapped, and used where it is.
    let mut load = Loader::new(model)
        .gpu_layers(GpuLayers::Count(2))
        .load_mode("device=dio,cpu=mmap".parse()?)
        .start()?;
    for tensor in load.by_ref().take(stop_after.unwrap_or(usize::MAX)) {
        let tensor = tensor?;
        if tensor.dtype() == Dtype::F32 {
            println!("{tensor:?}: at most {}", largest(&tensor)?);
        }
    }
    if stop_after.is_some() {
        // Dropping the load cancels it: nothing is in flight when this returns.
        return Ok(());
    }
    // The last word: an error here means that a file changed under the load.
    load.finish()?;
    Ok(())
}

/// The largest magnitude, wherever the tensor lives.
fn largest(tensor: &Tensor) -> Result<f32, forebay::Error> {
    let mut bytes = vec![0; usize::try_from(tensor.bytes()).unwrap_or(usize::MAX)];
    tensor.read_into(0, &mut bytes)?;
    let values = bytes
        .chunks_exact(4)
        .map(|value| f32::from_le_bytes([value[0], value[1], value[2], value[3]]));
    Ok(values.fold(0.0, |largest, value| value.abs().max(largest)))
}

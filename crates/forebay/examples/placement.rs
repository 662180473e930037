//! Says what would happen, and why, before anything does.
//!
//!     cargo run -p forebay --example placement -- MODEL

use forebay::{GpuLayers, Loader};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).ok_or("name a model")?;
    let plan = Loader::new(model)
        .gpu_layers(GpuLayers::Count(20))
        .place(r"\.ffn_.*_exps\.=cpu".parse()?) // experts stay where memory is cheap
        .plan()?;
    for why in plan.why() {
        println!("- {why}");
    }
    for backend in plan.backends() {
        println!("{}: {} by {}: {}", backend.backend, backend.bytes, backend.mode, backend.why);
    }
    for file in plan.files() {
        println!("{}: {} reads of {} bytes", file.path.display(), file.reads, file.read_bytes);
    }
    Ok(())
}

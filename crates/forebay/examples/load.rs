//! Loads a model and says where every tensor went.
//!
//!     cargo run --release -p forebay --example load -- MODEL

use forebay::Loader;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).ok_or("name a model")?;
    let loaded = Loader::new(model)
        .on_progress(|progress| eprintln!("{} of {}", progress.done_bytes, progress.total_bytes))
        .load()?;
    for tensor in loaded.tensors() {
        println!("{tensor:?}");
    }
    let report = loaded.report();
    println!("{:.2} GiB/s, {:.3} s in all", report.read.gib_per_s, report.time.total_s);
    for step in report.files.iter().flat_map(|file| &file.fallbacks) {
        println!("stepped down {} → {}: {}", step.from, step.to, step.reason);
    }
    Ok(())
}

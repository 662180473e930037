//! Streams layers, or fetches random slices, with a caller whose computing takes a set time. For
//! `benches/streaming.py`, which puts it beside the stages alone.
//!
//!     streaming layers MODEL DEVICE BUDGET PASSES COMPUTE_MS
//!     streaming experts MODEL DEVICE BUDGET FETCHES AHEAD
//!
//! Prints one JSON object.

use forebay::{Fetcher, LayerStream, Options};
use std::collections::VecDeque;
use std::error::Error;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, model, device, budget, first, second] = &words[..] else {
        return Err("see the head of the source".into());
    };
    let mut options = Options::default();
    options.device = device.parse()?;
    options.load_mode = "dio".parse()?;
    let (budget, first, second) = (budget.parse()?, first.parse()?, second.parse()?);
    match what.as_str() {
        "layers" => layers(model, options, budget, first, second),
        "experts" => experts(model, options, budget, first, second),
        _ => Err("layers or experts".into()),
    }
}

fn layers(
    model: &str,
    options: Options,
    budget: u64,
    passes: u64,
    compute_ms: u64,
) -> Result<(), Box<dyn Error>> {
    let mut stream = LayerStream::builder(model)
        .options(options)
        .device_budget(budget)
        .host_budget(0)
        .passes(passes)
        .start()?;
    for _pass in 0..passes {
        while stream.next_layer()?.is_some() {
            std::thread::sleep(Duration::from_millis(compute_ms));
        }
    }
    println!("{}", serde_json::to_string(&stream.finish()?)?);
    Ok(())
}

/// Random slices of all stacked tensors, `ahead` of them on their way at a time.
fn experts(
    model: &str,
    options: Options,
    budget: u64,
    fetches: u64,
    ahead: u64,
) -> Result<(), Box<dyn Error>> {
    let fetcher = Fetcher::builder(model).options(options).device_budget(budget).start()?;
    let tensors = fetcher.model().catalog().tensors().iter();
    let stacked: Vec<_> = tensors.filter(|it| it.shape.len() == 3).cloned().collect();
    let all = stacked.iter().flat_map(|it| (0..it.shape[0]).map(move |index| (&it.name, index)));
    let mut all: Vec<(&String, u64)> = all.collect();
    fastrand::Rng::with_seed(1).shuffle(&mut all);
    let mut coming = VecDeque::new();
    let started = Instant::now();
    for (name, index) in all.into_iter().take(usize::try_from(fetches)?) {
        coming.push_back(fetcher.fetch(name, index..index + 1, 0)?);
        if coming.len() as u64 >= ahead
            && let Some(first) = coming.pop_front()
        {
            first.wait()?;
        }
    }
    for fetch in coming {
        fetch.wait()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{}", serde_json::json!({ "seconds": seconds, "stats": fetcher.stats() }));
    Ok(())
}

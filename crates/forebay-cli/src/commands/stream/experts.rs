//! Experts on demand: of each layer, those that were chosen, and nothing else.

use super::products::{Checksum, Products};
use super::{Pass, Report, is_emulated};
use crate::args::{Experts, StreamArguments};
use crate::failure::Failure;
use crate::{interrupt, output};
use forebay::{Fetch, Fetcher, ModelSummary, PassReport, TierBytes, Trace};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The experts of one layer.
#[derive(Default)]
struct Layer {
    /// Tensors that hold an expert after the other.
    stacked: Vec<String>,
    /// Tensors of one expert each, by its number.
    single: BTreeMap<u64, Vec<String>>,
    count: u64,
}

pub(super) fn run(
    arguments: &StreamArguments,
    experts: &Experts,
    trace: Option<&Trace>,
) -> Result<Report, Failure> {
    let cancel = interrupt::flag();
    let mut builder =
        Fetcher::builder(&arguments.model).options(arguments.policy.options()).cancel_with(&cancel);
    if let Some(bytes) = arguments.vram_budget.bytes() {
        builder = builder.device_budget(bytes);
    }
    if let Some(trace) = trace {
        builder = builder.trace(trace);
    }
    let fetcher = builder.start()?;
    let layers = layers(&fetcher);
    if layers.is_empty() {
        let remedy = "stream it without --experts, layer by layer";
        return Err(Failure::new("the model has no experts", Some(remedy)));
    }
    let mut products = Products::new(fetcher.context(), arguments)?;
    let mut passes = Vec::new();
    for number in 0..arguments.passes {
        let chosen = choose(&layers, experts, arguments.seed, number)?;
        passes.push(pass(&fetcher, &layers, &chosen, &mut products)?);
    }
    let stats = fetcher.stats();
    Ok(Report {
        model: ModelSummary::of(fetcher.model()),
        device: fetcher.context().map_or("host".to_owned(), |it| it.name()),
        emulated: is_emulated(fetcher.context()),
        layers: layers.len(),
        vram_budget: fetcher.budget_bytes(),
        host_budget: 0,
        batch: arguments.batch,
        tiers: TierBytes::default(),
        depth: 0,
        host_memory_bytes: 0,
        why: vec![format!(
            "of {} layers, the experts that are chosen come on demand",
            layers.len()
        )],
        passes,
        fallbacks: Vec::new(),
        not_multiplied: 0,
        experts: Some(stats),
    })
}

/// Where experts are: stacked in one tensor (`…_exps.…`), or in tensors of their own
/// (`….experts.N.…`).
fn layers(fetcher: &Fetcher) -> Vec<Layer> {
    let mut layers: BTreeMap<u64, Layer> = BTreeMap::new();
    for tensor in fetcher.model().catalog().tensors() {
        let words: Vec<&str> = tensor.name.split('.').collect();
        let numbers = words.windows(2).filter_map(|pair| Some((pair[0], pair[1].parse().ok()?)));
        let numbers: Vec<(&str, u64)> = numbers.collect();
        let Some(&(_, layer)) = numbers.first() else { continue };
        let single = numbers.iter().find(|(word, _)| *word == "experts").map(|(_, number)| *number);
        match (single, &tensor.shape[..]) {
            (Some(expert), [_, _]) => {
                let layer = layers.entry(layer).or_default();
                layer.count = layer.count.max(expert + 1);
                layer.single.entry(expert).or_default().push(tensor.name.clone());
            }
            (None, [count, _, _]) if words.iter().any(|word| word.contains("exps")) => {
                let layer = layers.entry(layer).or_default();
                layer.count = layer.count.max(*count);
                layer.stacked.push(tensor.name.clone());
            }
            _ => {}
        }
    }
    layers.into_values().collect()
}

/// The experts of each layer, for one pass.
fn choose(
    layers: &[Layer],
    experts: &Experts,
    seed: u64,
    pass: u32,
) -> Result<Vec<Vec<u64>>, Failure> {
    let mut random = fastrand::Rng::with_seed(seed ^ (u64::from(pass) << 32));
    let of_layer = |layer: &Layer| match experts {
        Experts::Numbers(numbers) => match numbers.iter().find(|number| **number >= layer.count) {
            None => Ok(numbers.clone()),
            Some(number) => {
                let remedy = format!("name experts from 0 to {}", layer.count.saturating_sub(1));
                Err(Failure::new(format!("there is no expert {number}"), Some(&remedy)))
            }
        },
        Experts::Random(count) => {
            let mut all: Vec<u64> = (0..layer.count).collect();
            random.shuffle(&mut all);
            all.truncate(*count);
            all.sort_unstable();
            Ok(all)
        }
    };
    layers.iter().map(of_layer).collect()
}

/// Fetches each layer's experts while those of the layer before are multiplied.
fn pass(
    fetcher: &Fetcher,
    layers: &[Layer],
    chosen: &[Vec<u64>],
    products: &mut Products,
) -> Result<Pass, Failure> {
    let before = fetcher.stats();
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    let mut checksum = Checksum::default();
    let mut coming = Vec::new();
    for index in 0..layers.len() {
        if index == 0 {
            coming = fetch(fetcher, &layers[0], &chosen[0])?;
        }
        let next = match layers.get(index + 1) {
            Some(layer) => fetch(fetcher, layer, &chosen[index + 1])?,
            None => Vec::new(),
        };
        for fetch in std::mem::replace(&mut coming, next) {
            let asked = Instant::now();
            let tensor = fetch.wait().map_err(|error| match fetcher.check() {
                Err(cause) => Failure::from(cause),
                Ok(()) => error.into(),
            })?;
            waited += asked.elapsed();
            // One at a time is held, so that the others find room.
            products.multiply(std::iter::once(tensor), &mut checksum)?;
        }
    }
    let (after, seconds) = (fetcher.stats(), started.elapsed().as_secs_f64());
    let wanted = after.wanted_bytes - before.wanted_bytes;
    let pass = PassReport {
        seconds,
        gib_per_s: output::gib(wanted) / seconds,
        read_bytes: after.read_bytes - before.read_bytes,
        uploaded_bytes: wanted,
        compute_waited_s: waited.as_secs_f64(),
        ..PassReport::default()
    };
    Ok(Pass { pass, checksum: checksum.hex() })
}

fn fetch(fetcher: &Fetcher, layer: &Layer, experts: &[u64]) -> Result<Vec<Fetch>, Failure> {
    let mut fetches = Vec::new();
    for &expert in experts {
        for name in &layer.stacked {
            fetches.push(fetcher.fetch(name, expert..expert + 1, 0)?);
        }
        for name in layer.single.get(&expert).into_iter().flatten() {
            fetches.push(fetcher.fetch_whole(name, 0)?);
        }
    }
    Ok(fetches)
}

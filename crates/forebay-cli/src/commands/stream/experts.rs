//! Experts on demand: of each layer, those that were chosen, and nothing else.

use super::products::{Checksum, Products};
use super::{Pass, Report, is_emulated};
use crate::args::{Experts, StreamArguments};
use crate::failure::Failure;
use crate::{interrupt, output};
use forebay::{Fetch, Fetcher, ModelSummary, PassReport, TierBytes, Trace};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

/// The experts of one layer.
#[derive(Default)]
struct Layer {
    /// Tensors that hold an expert after the other.
    stacked: Vec<String>,
    /// Tensors of one expert each, by its number.
    single: BTreeMap<u64, Vec<String>>,
    /// How many the stacked ones have.
    count: u64,
}

impl Layer {
    fn has(&self, expert: u64) -> bool {
        expert < self.count || self.single.contains_key(&expert)
    }

    fn experts(&self) -> Vec<u64> {
        let mut all: Vec<u64> = (0..self.count).chain(self.single.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// More experts than this in a layer are none.
const EXPERTS_MAX: u64 = 1 << 16;
/// Parts on their way at a time, at most.
const AHEAD_MAX: usize = 64;

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
        if cancel.is_cancelled() {
            return Err(Failure::cancelled());
        }
        passes.push(pass(&fetcher, parts(&fetcher, &layers, &chosen), &mut products)?);
    }
    let (stats, model) = (fetcher.stats(), ModelSummary::of(fetcher.model()));
    let device = fetcher.context().map_or("host".to_owned(), |it| it.name());
    let emulated = is_emulated(fetcher.context());
    let vram_budget = fetcher.budget_bytes();
    let fallbacks = fetcher.finish()?;
    Ok(Report {
        model,
        device,
        emulated,
        layers: layers.len(),
        vram_budget,
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
        fallbacks,
        not_multiplied: products.not_multiplied / arguments.passes as usize,
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
                layer.single.entry(expert).or_default().push(tensor.name.clone());
            }
            (None, [count, _, _])
                if *count <= EXPERTS_MAX && words.iter().any(|word| word.contains("exps")) =>
            {
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
        Experts::Numbers(numbers) => match numbers.iter().find(|number| !layer.has(**number)) {
            None => Ok(numbers.clone()),
            Some(number) => {
                let last = layer.experts().last().copied().unwrap_or(0);
                let remedy = format!("name experts from 0 to {last}");
                Err(Failure::new(format!("there is no expert {number}"), Some(&remedy)))
            }
        },
        Experts::Random(count) => {
            let mut all = layer.experts();
            random.shuffle(&mut all);
            all.truncate(*count);
            all.sort_unstable();
            Ok(all)
        }
    };
    layers.iter().map(of_layer).collect()
}

/// An expert's part of a tensor.
struct Part {
    name: String,
    range: Range<u64>,
    bytes: u64,
}

/// Fetches the parts in turn, several of them on their way while one is multiplied.
fn pass(fetcher: &Fetcher, parts: Vec<Part>, products: &mut Products) -> Result<Pass, Failure> {
    let before = fetcher.stats();
    let started = Instant::now();
    let mut waited = Duration::ZERO;
    let mut checksum = Checksum::default();
    // What waits to be multiplied is held where it lies; with three quarters of the room to be had
    // anew, the next one finds a place between.
    let ahead_bytes = fetcher.budget_bytes() / 4;
    let mut parts = parts.into_iter().peekable();
    let mut coming: VecDeque<(Fetch, u64)> = VecDeque::new();
    loop {
        let bytes: u64 = coming.iter().map(|(_, bytes)| bytes).sum();
        let has_room = |part: &Part| coming.is_empty() || bytes + part.bytes <= ahead_bytes;
        if coming.len() < AHEAD_MAX
            && let Some(Part { name, range, bytes: more }) = parts.next_if(has_room)
        {
            coming.push_back((fetcher.fetch(&name, range, 0)?, more));
            continue;
        }
        let Some((fetch, _)) = coming.pop_front() else { break };
        let asked = Instant::now();
        let tensor = fetch.wait().map_err(|error| match fetcher.check() {
            Err(cause) => Failure::from(cause),
            Ok(()) => error.into(),
        })?;
        waited += asked.elapsed();
        products.multiply(std::iter::once(tensor), &mut checksum)?;
    }
    let (after, seconds) = (fetcher.stats(), started.elapsed().as_secs_f64());
    let wanted = after.wanted_bytes - before.wanted_bytes;
    let pass = PassReport {
        seconds,
        gib_per_s: output::gib(wanted) / seconds,
        read_bytes: after.read_bytes - before.read_bytes,
        uploaded_bytes: wanted,
        compute_waited_s: waited.as_secs_f64(),
        upload_waited_s: after.upload_waited_s - before.upload_waited_s,
        read_waited_s: after.read_waited_s - before.read_waited_s,
    };
    Ok(Pass { pass, checksum: checksum.hex() })
}

/// The parts of all chosen experts, layer by layer.
fn parts(fetcher: &Fetcher, layers: &[Layer], chosen: &[Vec<u64>]) -> Vec<Part> {
    let catalog = fetcher.model().catalog();
    let mut parts = Vec::new();
    for (layer, experts) in layers.iter().zip(chosen) {
        for &expert in experts {
            let single = layer.single.get(&expert).into_iter().flatten();
            let single = single.map(|name| (name, None));
            let stacked = layer.stacked.iter().map(|name| (name, Some(expert)));
            for (name, slice) in stacked.chain(single) {
                let Some(tensor) = catalog.position(name).map(|at| &catalog.tensors()[at]) else {
                    continue;
                };
                let slices = tensor.shape.first().copied().unwrap_or(1);
                let (range, bytes) = match slice {
                    Some(slice) => (slice..slice + 1, tensor.bytes / slices.max(1)),
                    None => (0..slices, tensor.bytes),
                };
                parts.push(Part { name: name.clone(), range, bytes });
            }
        }
    }
    parts
}

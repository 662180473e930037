//! `forebay stream`: passes over a model that need not fit on the device.
//!
//! Every matrix of every layer is multiplied with the same random vectors in each pass, so a pass
//! gives the same outputs whatever the budgets are; their checksum says so.

mod experts;
mod products;

use crate::args::StreamArguments;
use crate::failure::Failure;
use crate::timeline::Timeline;
use crate::{interrupt, output, size};
use forebay::{
    DeviceContext, FallbackReport, FetchStats, LayerStream, ModelSummary, PassReport, StreamReport,
    TierBytes, Trace,
};
use products::{Checksum, Products};
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct Report {
    model: ModelSummary,
    device: String,
    emulated: bool,
    layers: usize,
    vram_budget: u64,
    host_budget: u64,
    batch: usize,
    tiers: TierBytes,
    depth: usize,
    host_memory_bytes: u64,
    why: Vec<String>,
    passes: Vec<Pass>,
    fallbacks: Vec<FallbackReport>,
    /// Tensors that no product takes: vectors, and types that are no numbers.
    not_multiplied: usize,
    /// What was fetched on demand, if experts were.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<FetchStats>,
}

#[derive(Serialize)]
struct Pass {
    #[serde(flatten)]
    pass: PassReport,
    checksum: String,
}

pub(crate) fn run(arguments: &StreamArguments) -> Result<(), Failure> {
    let timeline = arguments.trace.as_deref().map(Timeline::create).transpose()?;
    let trace = timeline.as_ref().map(Timeline::trace);
    let report = match &arguments.experts {
        Some(experts) => experts::run(arguments, experts, trace),
        None => layers(arguments, trace),
    };
    let written = timeline.map_or(Ok(()), Timeline::write);
    if let (Err(_), Err(unwritten)) = (&report, &written) {
        // The verdict is why the stream failed.
        output::notice(&unwritten.as_notice());
    }
    let report = report?;
    written?;
    if arguments.json { output::json(&report) } else { show(&report) }
}

/// All layers, in turn.
fn layers(arguments: &StreamArguments, trace: Option<&Trace>) -> Result<Report, Failure> {
    let cancel = interrupt::flag();
    let mut builder = LayerStream::builder(&arguments.model)
        .options(arguments.policy.options())
        .passes(arguments.passes.into())
        .cancel_with(&cancel);
    if let Some(bytes) = arguments.vram_budget.bytes() {
        builder = builder.device_budget(bytes);
    }
    if let Some(bytes) = arguments.host_budget.bytes() {
        builder = builder.host_budget(bytes);
    }
    if let Some(trace) = trace {
        builder = builder.trace(trace);
    }
    let mut stream = builder.start()?;
    let mut products = Products::new(stream.context(), arguments)?;
    let mut checksums = Vec::new();
    for _pass in 0..arguments.passes {
        let mut checksum = Checksum::default();
        while let Some(layer) = stream.next_layer()? {
            products.multiply(layer.tensors(), &mut checksum)?;
        }
        checksums.push(checksum.hex());
    }
    let summary = ModelSummary::of(stream.model());
    let emulated = is_emulated(stream.context());
    let StreamReport {
        device,
        layers,
        vram_budget,
        host_budget,
        tiers,
        depth,
        host_memory_bytes,
        why,
        passes,
        fallbacks,
    } = stream.finish()?;
    let passes = passes.into_iter().zip(checksums);
    Ok(Report {
        model: summary,
        device,
        emulated,
        layers,
        vram_budget,
        host_budget,
        batch: arguments.batch,
        tiers,
        depth,
        host_memory_bytes,
        why,
        passes: passes.map(|(pass, checksum)| Pass { pass, checksum }).collect(),
        fallbacks,
        not_multiplied: products.not_multiplied / arguments.passes as usize,
        experts: None,
    })
}

fn is_emulated(context: Option<&Arc<DeviceContext>>) -> bool {
    context.is_some_and(|context| {
        forebay::device(context.ordinal()).is_ok_and(|device| device.is_emulated)
    })
}

fn show(report: &Report) -> Result<(), Failure> {
    for why in &report.why {
        output::line(&format!("- {why}"))?;
    }
    let TierBytes { resident_bytes, host_bytes, streamed_bytes, mapped_bytes } = report.tiers;
    let emulated = if report.emulated { " (EMULATED: no rate of hardware)" } else { "" };
    output::line(&format!(
        "{}{emulated}: {} layers, {} stay, {} in host memory, {} streamed, {} on the cpu",
        report.device,
        report.layers,
        size::show(resident_bytes),
        size::show(host_bytes),
        size::show(streamed_bytes),
        size::show(mapped_bytes)
    ))?;
    for step in &report.fallbacks {
        output::line(&format!(
            "stepped down {} → {} ({} at {}): {}",
            step.from, step.to, step.errno, step.at, step.reason
        ))?;
    }
    if let Some(FetchStats { fetches, hits, evicted, read_bytes, wanted_bytes, .. }) =
        report.experts
    {
        output::line(&format!(
            "{fetches} fetches, {hits} of which found theirs there, {evicted} evicted; {} read for {} \
             that were wanted",
            size::show(read_bytes),
            size::show(wanted_bytes)
        ))?;
    }
    let mut rows = vec![
        [
            "pass",
            "s",
            "GiB/s",
            "read",
            "uploaded",
            "compute waited",
            "upload waited",
            "read waited",
            "checksum",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (number, Pass { pass, checksum }) in report.passes.iter().enumerate() {
        let waited = |seconds: f64| format!("{seconds:.3} s");
        rows.push(vec![
            (number + 1).to_string(),
            format!("{:.3}", pass.seconds),
            format!("{:.2}", pass.gib_per_s),
            size::show(pass.read_bytes),
            size::show(pass.uploaded_bytes),
            waited(pass.compute_waited_s),
            waited(pass.upload_waited_s),
            waited(pass.read_waited_s),
            checksum.chars().take(16).collect(),
        ]);
    }
    output::table(&rows)
}

//! `forebay plan`: what would happen and why.

use crate::args::PlanArguments;
use crate::failure::Failure;
use crate::{output, size};
use forebay::{Model, Plan};

pub(crate) fn run(arguments: &PlanArguments) -> Result<(), Failure> {
    let model = Model::open(&arguments.model)?;
    let report = Plan::new(&model, &arguments.policy.options())?.report();
    if arguments.json {
        return output::json(&report);
    }
    output::line(&format!(
        "{}: {} tensors, {} in {} files",
        report.model.format,
        report.model.tensors,
        size::show(report.model.bytes),
        report.model.files
    ))?;
    for why in &report.why {
        output::line(&format!("- {why}"))?;
    }
    output::backends(&report.backends)?;
    for file in &report.files {
        let cached = file.cached_bytes.map_or_else(|| "unknown".to_owned(), size::show);
        output::line(&format!(
            "{}: {} by {}, {} reads, {} for {} wanted, {} mapped in place, {cached} cached{}",
            file.path,
            file.access,
            file.engine,
            file.reads,
            size::show(file.read_bytes),
            size::show(file.wanted_bytes),
            size::show(file.mapped_bytes),
            file.dio_align.map(|bytes| format!(", aligned to {bytes}")).unwrap_or_default()
        ))?;
    }
    output::line(&format!(
        "staging {}: reads of {}, {} in flight",
        size::show(report.staging_bytes),
        size::show(report.chunk_bytes),
        report.queue_depth
    ))
}

//! `forebay load`: the main job.

use crate::args::LoadArguments;
use crate::failure::Failure;
use crate::{interrupt, output};
use forebay::{Loaded, Loader, Options, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;

pub(crate) fn run(arguments: &LoadArguments) -> Result<(), Failure> {
    let loaded = load(&arguments.model, arguments.policy.options())?;
    let mut report = loaded.report().clone();
    if arguments.digest {
        report.add_digests(&loaded)?;
    }
    if arguments.json {
        return output::json(&report);
    }
    output::report(&report)?;
    for (name, digest) in &report.digests {
        output::line(&format!("{digest}  {}", output::shown(name)))?;
    }
    Ok(())
}

/// Loads a model with a progress bar, until it is done or somebody presses Ctrl-C.
pub(crate) fn load(model: &Path, options: Options) -> Result<Loaded, Failure> {
    let cancel = interrupt::flag();
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template(
            "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let shown = bar.clone();
    let loaded = Loader::new(model)
        .options(options)
        .cancel_with(&cancel)
        .on_progress(move |Progress { done_bytes, total_bytes, .. }| {
            shown.set_length(total_bytes);
            shown.set_position(done_bytes);
        })
        .load();
    bar.finish_and_clear();
    let loaded = loaded?;
    // Digests and printing leave nothing behind that a signal would have to wait for.
    interrupt::end_at_once();
    if cancel.is_cancelled() { Err(Failure::cancelled()) } else { Ok(loaded) }
}

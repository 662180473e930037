//! `forebay load`: the main job.

use crate::args::LoadArguments;
use crate::failure::Failure;
use crate::timeline::Timeline;
use crate::{interrupt, output};
use forebay::{LoadReport, Loaded, Loader, Options, Progress, Tensor};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Seconds since the start, and the bytes that were in place by then.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample(pub(crate) f64, pub(crate) u64);

/// The report as JSON, and with it what `forebay bench` asks its loads for.
#[derive(Serialize)]
struct JsonReport<'a> {
    #[serde(flatten)]
    report: &'a LoadReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Vec<Sample>>,
}

pub(crate) fn run(arguments: &LoadArguments) -> Result<(), Failure> {
    let (loaded, progress) = match arguments.sample_progress {
        Some(interval_ms) => {
            let (loaded, samples) = load_sampled(arguments, Duration::from_millis(interval_ms))?;
            (loaded, Some(samples))
        }
        None => {
            let trace = arguments.trace.as_deref();
            (load(&arguments.model, arguments.policy.options(), trace)?, None)
        }
    };
    let mut report = loaded.report().clone();
    if arguments.digest {
        report.add_digests(&loaded)?;
    }
    if arguments.json {
        return output::json(&JsonReport { report: &report, progress });
    }
    output::report(&report)?;
    for (name, digest) in &report.digests {
        output::line(&format!("{digest}  {name}"))?;
    }
    Ok(())
}

/// Loads a model with a progress bar, until it is done or somebody presses Ctrl-C. What it did is
/// written to `trace`, however it ends.
pub(crate) fn load(
    model: &Path,
    options: Options,
    trace: Option<&Path>,
) -> Result<Loaded, Failure> {
    load_each(Loader::new(model).options(options), trace, |_| ())
}

/// The same, and `each` is given every tensor as it lands.
pub(crate) fn load_each(
    loader: Loader,
    trace: Option<&Path>,
    each: impl FnMut(Tensor),
) -> Result<Loaded, Failure> {
    load_observed(loader, trace, each, |_| ())
}

fn load_sampled(
    arguments: &LoadArguments,
    interval: Duration,
) -> Result<(Loaded, Vec<Sample>), Failure> {
    let options = arguments.policy.options();
    let loader = Loader::new(&arguments.model).options(options).progress_interval(interval);
    let (sender, samples) = mpsc::channel();
    let started = Instant::now();
    let loaded = load_observed(loader, arguments.trace.as_deref(), drop, move |progress| {
        // The receiver outlives the load.
        let _ = sender.send(Sample(started.elapsed().as_secs_f64(), progress.done_bytes));
    })?;
    let report = loaded.report();
    let last = Sample(report.time.total_s, report.model.bytes);
    Ok((loaded, between_start_and(last, samples.iter())))
}

/// The last call of the callback comes after threads have ended; the load was over before that.
fn between_start_and(last: Sample, samples: impl Iterator<Item = Sample>) -> Vec<Sample> {
    let within = samples.filter(|sample| sample.0 < last.0 && sample.1 < last.1);
    std::iter::once(Sample(0.0, 0)).chain(within).chain([last]).collect()
}

fn load_observed(
    mut loader: Loader,
    trace: Option<&Path>,
    mut each: impl FnMut(Tensor),
    mut observe: impl FnMut(Progress) + Send + 'static,
) -> Result<Loaded, Failure> {
    let timeline = trace.map(Timeline::create).transpose()?;
    let cancel = interrupt::flag();
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template(
            "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} eta {eta}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let shown = bar.clone();
    if let Some(timeline) = &timeline {
        loader = loader.trace(timeline.trace());
    }
    let loader = loader.cancel_with(&cancel).on_progress(move |progress| {
        shown.set_length(progress.total_bytes);
        shown.set_position(progress.done_bytes);
        observe(progress);
    });
    let loaded = loader.start().and_then(|mut load| {
        load.by_ref().try_for_each(|tensor| tensor.map(&mut each))?;
        load.finish()
    });
    bar.finish_and_clear();
    let written = timeline.map_or(Ok(()), Timeline::write);
    if let (Err(_), Err(unwritten)) = (&loaded, &written) {
        // The verdict is why the load failed.
        output::notice(&unwritten.as_notice());
    }
    let loaded = loaded?;
    written?;
    // Digests and printing leave nothing behind that a signal would have to wait for.
    interrupt::end_at_once();
    if cancel.is_cancelled() { Err(Failure::cancelled()) } else { Ok(loaded) }
}

#[cfg(test)]
mod tests {
    use super::{Sample, between_start_and};

    #[test]
    fn samples_begin_with_nothing_and_end_with_the_load() {
        let heard = [Sample(0.1, 40), Sample(0.2, 90), Sample(0.21, 100), Sample(0.3, 100)];
        let kept = between_start_and(Sample(0.25, 100), heard.into_iter());
        assert_eq!(kept, [Sample(0.0, 0), Sample(0.1, 40), Sample(0.2, 90), Sample(0.25, 100)]);
    }

    #[test]
    fn a_load_that_nobody_sampled_is_one_step() {
        let kept = between_start_and(Sample(0.01, 7), std::iter::empty());
        assert_eq!(kept, [Sample(0.0, 0), Sample(0.01, 7)]);
    }
}

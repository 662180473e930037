//! From samples of how far a load had come to rates, and from rates to axes.

use crate::commands::load::Sample;
use crate::output;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use serde_json::Value;
use std::ops::Range;

/// A stretch of time, and the rate over it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) gib_per_s: f64,
}

/// How often a load of so many bytes is asked how far it has come: sixteen times even at 16 GiB/s,
/// but no more often than a load would not notice.
pub(super) fn sampling_interval_ms(bytes: u64) -> u64 {
    const BYTES_PER_MS: u64 = 256 << 20;
    (bytes / BYTES_PER_MS).clamp(2, 100)
}

/// What a load reported as its progress, counted from when its devices were ready.
pub(super) fn samples_of(report: &Value, device_s: f64) -> Vec<Sample> {
    let progress = report.get("progress").cloned().unwrap_or_default();
    let samples: Vec<Sample> = serde_json::from_value(progress).unwrap_or_default();
    samples.into_iter().map(|it| Sample((it.0 - device_s).max(0.0), it.1)).collect()
}

/// The rates between samples, over stretches of at least `stretch_s`.
///
/// A load places whole reads: over stretches shorter than a few of them, a rate says more about a
/// read's size than about the load.
pub(super) fn steps(samples: &[Sample], stretch_s: f64) -> Vec<Step> {
    let (Some(&first), Some(&last)) = (samples.first(), samples.last()) else { return Vec::new() };
    let mut edges = vec![first];
    for &sample in samples {
        if sample.0 - edges[edges.len() - 1].0 >= stretch_s {
            edges.push(sample);
        }
    }
    if edges[edges.len() - 1] != last {
        // What is left over at the end belongs to the stretch before it.
        if edges.len() > 1 {
            edges.pop();
        }
        edges.push(last);
    }
    edges
        .windows(2)
        .filter(|pair| pair[1].0 > pair[0].0)
        .map(|pair| step(pair[0], pair[1]))
        .collect()
}

fn step(from: Sample, to: Sample) -> Step {
    let gib_per_s = output::gib(to.1.saturating_sub(from.1)) / (to.0 - from.0);
    Step { from_s: from.0, to_s: to.0, gib_per_s }
}

/// An axis from zero, with a round number between two of its ticks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) max: f64,
    ticks: Vec<f64>,
    decimals: usize,
}

impl Axis {
    /// The shortest that holds all of `values` and has at most `intervals_max` intervals.
    pub(super) fn over(values: impl Iterator<Item = f64>, intervals_max: u32) -> Self {
        let largest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        // Where nothing was measured there is still an axis.
        let largest = if largest > 0.0 { largest } else { 1.0 };
        let needed = largest / f64::from(intervals_max);
        let mut exponent = needed.log10().floor();
        let round =
            [1.0, 2.0, 5.0].into_iter().find(|digit| digit * 10_f64.powf(exponent) >= needed);
        let digit = round.unwrap_or_else(|| {
            exponent += 1.0;
            1.0
        });
        let interval = digit * 10_f64.powf(exponent);
        // A whole number of intervals that is missed by rounding alone is that number.
        let intervals = (1..=intervals_max)
            .find(|&count| f64::from(count) * interval >= largest * (1.0 - 1e-9));
        let intervals = intervals.unwrap_or(intervals_max);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small number that is not negative"
        )]
        let decimals = (-exponent).max(0.0) as usize;
        let ticks: Vec<f64> = (0..=intervals).map(|tick| f64::from(tick) * interval).collect();
        Self { max: f64::from(intervals) * interval, ticks, decimals }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[allow(clippy::cast_possible_truncation, reason = "a pixel's place")]
    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        (f64::from(from) + f64::from(to - from) * value / self.max).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        0.0..self.max
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        format!("{value:.*}", self.decimals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn rates(samples: &[Sample], stretch_s: f64) -> Vec<f64> {
        steps(samples, stretch_s).iter().map(|step| step.gib_per_s).collect()
    }

    #[test]
    fn a_rate_is_the_difference_of_two_samples() {
        let samples = [Sample(0.0, 0), Sample(0.5, GIB), Sample(1.0, GIB), Sample(1.5, 4 * GIB)];
        assert_eq!(rates(&samples, 0.1), [2.0, 0.0, 6.0]);
        let steps = steps(&samples, 0.1);
        assert_eq!(steps[1], Step { from_s: 0.5, to_s: 1.0, gib_per_s: 0.0 });
    }

    #[test]
    fn short_stretches_are_put_together_and_no_byte_is_lost() {
        let samples: Vec<Sample> =
            (0..=1000_u32).map(|ms| Sample(f64::from(ms) / 1000.0, u64::from(ms) << 20)).collect();
        for (stretch_s, count_max) in [(1.0, 1), (0.15, 6), (0.025, 40)] {
            let steps = steps(&samples, stretch_s);
            assert!(!steps.is_empty() && steps.len() <= count_max, "{}", steps.len());
            assert!(steps.iter().all(|step| step.to_s - step.from_s > stretch_s - 1e-9));
            let gib: f64 = steps.iter().map(|it| it.gib_per_s * (it.to_s - it.from_s)).sum();
            assert!((gib - output::gib(1000 << 20)).abs() < 1e-9, "{gib}");
            assert!(steps.windows(2).all(|pair| pair[0].to_s == pair[1].from_s));
            assert!(steps.last().is_some_and(|last| last.to_s == 1.0));
        }
    }

    #[test]
    fn what_is_left_over_at_the_end_makes_no_step_of_its_own() {
        let samples =
            [Sample(0.0, 0), Sample(0.5, GIB), Sample(0.999, 2 * GIB), Sample(1.0, 3 * GIB)];
        assert_eq!(rates(&samples, 0.4), [2.0, 4.0]);
    }

    #[test]
    fn without_time_or_samples_there_is_no_rate() {
        assert!(steps(&[], 0.1).is_empty());
        assert!(steps(&[Sample(0.0, 0)], 0.1).is_empty());
        assert!(steps(&[Sample(0.0, 0), Sample(0.0, GIB)], 0.0).is_empty());
        assert_eq!(rates(&[Sample(0.0, 0), Sample(2.0, GIB)], 5.0), [0.5]);
    }

    #[test]
    fn devices_are_made_ready_before_time_begins() {
        let report = serde_json::json!({ "progress": [[0.0, 0], [0.25, 0], [1.5, 7]] });
        let samples = samples_of(&report, 0.5);
        assert_eq!(samples, [Sample(0.0, 0), Sample(0.0, 0), Sample(1.0, 7)]);
        assert!(samples_of(&serde_json::json!({}), 0.5).is_empty());
    }

    #[test]
    fn small_models_are_sampled_often_and_large_ones_seldom() {
        assert_eq!(sampling_interval_ms(1 << 20), 2);
        assert_eq!(sampling_interval_ms(GIB), 4);
        assert_eq!(sampling_interval_ms(100 * GIB), 100);
    }

    #[test]
    fn axes_end_at_round_numbers_that_hold_everything() {
        let cases = [
            (2.28, 5, 2.5, &["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"][..]),
            (10.0, 5, 10.0, &["0", "2", "4", "6", "8", "10"]),
            (10.1, 5, 15.0, &["0", "5", "10", "15"]),
            (0.3, 3, 0.3, &["0.0", "0.1", "0.2", "0.3"]),
            (0.013, 2, 0.02, &["0.00", "0.01", "0.02"]),
            (87.0, 2, 100.0, &["0", "50", "100"]),
        ];
        for (largest, intervals_max, max, labels) in cases {
            let axis = Axis::over([largest, 0.001].into_iter(), intervals_max);
            assert!((axis.max - max).abs() < 1e-9, "{largest}: {axis:?}");
            let told: Vec<String> = axis.ticks.iter().map(|&tick| axis.format_ext(&tick)).collect();
            assert_eq!(told, labels, "{largest}");
        }
    }

    #[test]
    fn an_axis_of_nothing_is_still_an_axis() {
        for values in [&[][..], &[0.0], &[f64::NAN, f64::INFINITY]] {
            let axis = Axis::over(values.iter().copied(), 5);
            assert!((axis.max - 1.0).abs() < 1e-9, "{axis:?}");
        }
    }
}

//! The rate over time: for each row, that of its median run.
//!
//! Rows of one state of the page cache share a column and its axes, so that they can be compared;
//! each has a strip of its own, so that a dozen of them can be read.

use super::style::{GRID, INK, MUTED, STORAGE, Tone, left, right};
use super::{Area, Drawn, MARGIN, WIDTH, label, position, runs_of};
use crate::commands::bench::rates::{Axis, Step, steps};
use crate::commands::bench::{BenchReport, Row, Run};
use crate::commands::load::Sample;
use plotters::chart::ChartBuilder;
use plotters::prelude::{PathElement, Polygon};

const HEADING_HEIGHT: u32 = 30;
const NAME_HEIGHT: u32 = 18;
const STRIP_HEIGHT: u32 = 64;
const GAP: u32 = 8;
const AXIS_HEIGHT: u32 = 36;
const RATES_WIDTH: u32 = 60;
/// Of the longest curve of a column; a shorter one has fewer, of the same length.
const STEPS_MAX: f64 = 60.0;
/// Of every curve: each shall hold a few reads, whole ones being what a load places.
const STEPS_OF_ONE_MAX: f64 = 32.0;

/// A row, and the rates of its median run.
struct Curve {
    name: String,
    steps: Vec<Step>,
}

struct Column {
    tone: Tone,
    curves: Vec<Curve>,
    time: Axis,
    /// From when time counts.
    origin: &'static str,
    rate: Axis,
}

/// The rows by the state of the page cache.
pub(super) struct Columns {
    columns: Vec<Column>,
    ceiling: f64,
}

impl Columns {
    pub(super) fn of(report: &BenchReport) -> Self {
        let ceiling = report.ceiling.gib_per_s;
        let mut caches: Vec<&str> = report.rows.iter().map(|row| row.cache).collect();
        caches.dedup();
        let columns = caches.into_iter().map(|cache| Column::of(report, cache)).collect();
        Self { columns, ceiling }
    }

    pub(super) fn height(&self) -> u32 {
        let strips = self.columns.iter().map(|column| column.curves.len()).max().unwrap_or(0);
        let strips = u32::try_from(strips).unwrap_or(u32::MAX / WIDTH);
        HEADING_HEIGHT + strips * (NAME_HEIGHT + STRIP_HEIGHT + GAP) + AXIS_HEIGHT
    }

    pub(super) fn draw(&self, area: &Area<'_>) -> Drawn {
        area.draw_text("Rate over time", &left(14, INK), (position(MARGIN), 2))?;
        let end = position(WIDTH - MARGIN);
        if self.columns.iter().any(|column| self.ceiling <= column.rate.max) {
            area.draw_text("dashes: storage ceiling", &right(11, STORAGE), (end, 4))?;
        }
        let count = u32::try_from(self.columns.len()).unwrap_or(1).max(1);
        let width = (WIDTH - MARGIN * (count + 1)) / count;
        for (index, column) in (0_u32..).zip(&self.columns) {
            let corner = (MARGIN + index * (width + MARGIN), HEADING_HEIGHT);
            let height = self.height() - HEADING_HEIGHT;
            column.draw(&area.clone().shrink(corner, (width, height)), self.ceiling)?;
        }
        Ok(())
    }
}

impl Column {
    fn of(report: &BenchReport, cache: &str) -> Self {
        let rows = report.rows.iter().filter(|row| row.cache == cache);
        let rows: Vec<(&Row, &[Sample])> =
            rows.map(|row| (row, median_samples(runs_of(report, row), row.gib_per_s))).collect();
        let longest_s = rows.iter().map(|(_, samples)| duration_s(samples)).fold(0.0, f64::max);
        let curve = |(row, samples): (&Row, &[Sample])| {
            let stretch_s = (longest_s / STEPS_MAX).max(duration_s(samples) / STEPS_OF_ONE_MAX);
            Curve { name: label(row), steps: steps(samples, stretch_s) }
        };
        let curves: Vec<Curve> = rows.into_iter().map(curve).collect();
        let steps = || curves.iter().flat_map(|curve| &curve.steps);
        let time = Axis::over(steps().map(|step| step.to_s), 6);
        let rate = Axis::over(steps().map(|step| step.gib_per_s), 3);
        let waits = report.runs.iter().any(|run| run.device_s > 0.0);
        let origin = if waits { "the devices were ready" } else { "the start" };
        Self { tone: Tone::of_cache(cache), curves, time, origin, rate }
    }

    fn draw(&self, area: &Area<'_>, ceiling: f64) -> Drawn {
        let (width, _) = area.dim_in_pixel();
        for (index, curve) in (0_u32..).zip(&self.curves) {
            let top = index * (NAME_HEIGHT + STRIP_HEIGHT + GAP);
            area.draw_text(&curve.name, &left(12, INK), (position(RATES_WIDTH), position(top)))?;
            let is_last = index as usize + 1 == self.curves.len();
            let axis_height = if is_last { AXIS_HEIGHT } else { 0 };
            let size = (width, STRIP_HEIGHT + axis_height);
            let strip = area.clone().shrink((0, top + NAME_HEIGHT), size);
            self.draw_strip(&strip, &curve.steps, axis_height, ceiling)?;
        }
        Ok(())
    }

    fn draw_strip(&self, area: &Area<'_>, steps: &[Step], axis_height: u32, ceiling: f64) -> Drawn {
        let mut chart = ChartBuilder::on(area)
            .y_label_area_size(RATES_WIDTH)
            .x_label_area_size(axis_height)
            // The last label of the axis below stands half beside it.
            .margin_right(14)
            .build_cartesian_2d(self.time.clone(), self.rate.clone())?;
        chart
            .configure_mesh()
            .axis_style(MUTED.line(1))
            .bold_line_style(GRID.line(1))
            .light_line_style(GRID.filled(0.0))
            .label_style(left(11, MUTED))
            .axis_desc_style(left(11, MUTED))
            .x_desc(format!("seconds since {}", self.origin))
            .y_desc("GiB/s")
            .draw()?;
        if ceiling <= self.rate.max {
            let line = [(0.0, ceiling), (self.time.max, ceiling)];
            chart.draw_series([PathElement::new(line, STORAGE.line(1))])?;
        }
        let outline = outline(steps);
        chart.draw_series([Polygon::new(outline.clone(), self.tone.filled(0.25))])?;
        chart.draw_series([PathElement::new(outline, self.tone.line(2))])?;
        Ok(())
    }
}

/// Those of the run whose rate is the median, or nearest to it where that lies between two.
fn median_samples(runs: Vec<&Run>, median: f64) -> &[Sample] {
    let away = |run: &Run| (run.gib_per_s - median).abs();
    let nearest = runs.into_iter().min_by(|a, b| away(a).total_cmp(&away(b)));
    nearest.map_or(&[], |run| &run.samples)
}

fn duration_s(samples: &[Sample]) -> f64 {
    samples.last().map_or(0.0, |last| last.0)
}

/// Up from zero, along the steps, and down to zero again.
fn outline(steps: &[Step]) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return Vec::new() };
    let along = steps.iter().flat_map(|it| [(it.from_s, it.gib_per_s), (it.to_s, it.gib_per_s)]);
    std::iter::once((first.from_s, 0.0)).chain(along).chain([(last.to_s, 0.0)]).collect()
}

#[cfg(test)]
mod tests {
    use super::outline;
    use crate::commands::bench::rates::Step;

    #[test]
    fn steps_are_drawn_as_steps() {
        let steps = [
            Step { from_s: 0.0, to_s: 1.0, gib_per_s: 2.0 },
            Step { from_s: 1.0, to_s: 3.0, gib_per_s: 1.0 },
        ];
        let corners = [(0.0, 0.0), (0.0, 2.0), (1.0, 2.0), (1.0, 1.0), (3.0, 1.0), (3.0, 0.0)];
        assert_eq!(outline(&steps), corners);
        assert!(outline(&[]).is_empty());
    }
}

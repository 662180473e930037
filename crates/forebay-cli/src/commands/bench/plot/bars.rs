//! Mode against mode: a bar for each row, its single runs, and the ceilings.

use super::style::{GRID, INK, MUTED, STORAGE, Tone, UPLOAD, left, right, text_width};
use super::{Area, Drawn, MARGIN, WIDTH, label, position, rate, runs_of};
use crate::commands::bench::rates::Axis;
use crate::commands::bench::{BenchReport, Row};
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{Cartesian2d, Circle, PathElement, Rectangle, SVGBackend};

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, RangedCoordf64>>;

const HEADING_HEIGHT: u32 = 26;
const CEILING_HEIGHT: u32 = 17;
const ROW_HEIGHT: u32 = 24;
const AXIS_HEIGHT: u32 = 36;
const GAP: u32 = 24;
const NAME_GAP: u32 = 8;
/// Where the medians are written.
const RATES_WIDTH: u32 = 96;

/// What loads are held against, with a label of its own above its line.
struct Ceiling {
    gib_per_s: f64,
    label: String,
    tone: Tone,
}

pub(super) struct Bars<'a> {
    report: &'a BenchReport,
    ceilings: Vec<Ceiling>,
    axis: Axis,
    names_width: u32,
}

impl<'a> Bars<'a> {
    pub(super) fn of(report: &'a BenchReport) -> Self {
        let ceilings = ceilings(report);
        let runs = report.runs.iter().map(|run| run.gib_per_s);
        let axis = Axis::over(runs.chain(ceilings.iter().map(|ceiling| ceiling.gib_per_s)), 6);
        let names = report.rows.iter().map(|row| text_width(&label(row), 12));
        let names_width = MARGIN + names.max().unwrap_or(0) + NAME_GAP;
        Self { report, ceilings, axis, names_width }
    }

    pub(super) fn height(&self) -> u32 {
        self.top() + self.rows_height() + AXIS_HEIGHT + GAP
    }

    /// Where the first bar begins.
    fn top(&self) -> u32 {
        HEADING_HEIGHT + CEILING_HEIGHT * u32::try_from(self.ceilings.len()).unwrap_or(0)
    }

    fn rows_height(&self) -> u32 {
        ROW_HEIGHT * u32::try_from(self.report.rows.len()).unwrap_or(0)
    }

    pub(super) fn draw(&self, area: &Area<'_>) -> Drawn {
        area.draw_text("Mode against mode", &left(14, INK), (position(MARGIN), 2))?;
        let note = "bars: medians, dots: single runs";
        area.draw_text(note, &right(11, MUTED), (position(WIDTH - MARGIN), 4))?;
        let width = WIDTH - self.names_width - RATES_WIDTH - MARGIN;
        let size = (width, self.rows_height() + AXIS_HEIGHT);
        let plot = area.clone().shrink((self.names_width, self.top()), size);
        let rows = f64::from(self.rows_height() / ROW_HEIGHT);
        let mut chart = ChartBuilder::on(&plot)
            .x_label_area_size(AXIS_HEIGHT)
            .build_cartesian_2d(self.axis.clone(), rows..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .axis_style(MUTED.line(1))
            .bold_line_style(GRID.line(1))
            .light_line_style(GRID.filled(0.0))
            .label_style(left(11, MUTED))
            .axis_desc_style(left(11, MUTED))
            .x_desc("rate in GiB/s")
            .draw()?;
        for (index, row) in (0..).zip(&self.report.rows) {
            self.draw_row(&mut chart, row, f64::from(index))?;
            self.write_row(area, row, index)?;
        }
        for (index, ceiling) in (0..).zip(&self.ceilings) {
            let line = [(ceiling.gib_per_s, 0.0), (ceiling.gib_per_s, rows)];
            chart.draw_series([PathElement::new(line, ceiling.tone.line(2))])?;
            self.write_ceiling(area, &chart, ceiling, index)?;
        }
        Ok(())
    }

    fn draw_row(&self, chart: &mut Chart<'_, '_>, row: &Row, top: f64) -> Drawn {
        let tone = Tone::of_cache(row.cache);
        let (upper, middle, lower) = (top + 0.17, top + 0.5, top + 0.83);
        if row.gib_per_s.is_finite() {
            let bar = [(0.0, upper), (row.gib_per_s, lower)];
            chart.draw_series([Rectangle::new(bar, tone.filled(0.45))])?;
            let end = [(row.gib_per_s, upper), (row.gib_per_s, lower)];
            chart.draw_series([PathElement::new(end, tone.line(3))])?;
        }
        let runs = runs_of(self.report, row).into_iter().map(|run| run.gib_per_s);
        let runs = runs.filter(|rate| rate.is_finite());
        chart.draw_series(runs.map(|rate| Circle::new((rate, middle), 3, INK.filled(1.0))))?;
        Ok(())
    }

    /// What it is on the left of a bar, and how fast on the right.
    fn write_row(&self, area: &Area<'_>, row: &Row, index: u32) -> Drawn {
        let y = position(self.top() + index * ROW_HEIGHT + ROW_HEIGHT / 2 - 5);
        let name_end = position(self.names_width - NAME_GAP);
        area.draw_text(&label(row), &right(12, INK), (name_end, y))?;
        area.draw_text(&rate(row.gib_per_s), &right(12, INK), (position(WIDTH - MARGIN), y))
    }

    fn write_ceiling(
        &self,
        area: &Area<'_>,
        chart: &Chart<'_, '_>,
        ceiling: &Ceiling,
        index: u32,
    ) -> Drawn {
        // Places count from the picture's left edge, and so do this area's.
        let (x, _) = chart.plotting_area().map_coordinate(&(ceiling.gib_per_s, 0.0));
        // Away from the nearer edge.
        let side = if ceiling.gib_per_s > self.axis.max / 2.0 { right } else { left };
        let y = position(HEADING_HEIGHT + index * CEILING_HEIGHT);
        area.draw_text(&ceiling.label, &side(11, ceiling.tone), (x, y))
    }
}

fn ceilings(report: &BenchReport) -> Vec<Ceiling> {
    let storage = &report.ceiling;
    let mut ceilings = vec![Ceiling {
        gib_per_s: storage.gib_per_s,
        label: format!("storage ceiling {} ({})", rate(storage.gib_per_s), storage.shape),
        tone: STORAGE,
    }];
    ceilings.extend(report.upload_ceiling.as_ref().map(|upload| Ceiling {
        gib_per_s: upload.gib_per_s,
        label: format!("upload ceiling {}", rate(upload.gib_per_s)),
        tone: UPLOAD,
    }));
    ceilings.retain(|ceiling| ceiling.gib_per_s.is_finite());
    ceilings
}

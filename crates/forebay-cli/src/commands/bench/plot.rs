//! The picture of a bench: mode against mode above, the rate over time below.
//!
//! It has no background of its own: the colours are picked for a light page, and a style sheet in
//! the file replaces them on a dark one. Every bar and every curve has its name beside it, so that
//! nothing depends on telling colours apart.

mod bars;
mod curves;
mod style;

use super::{BenchReport, Row, Run};
use crate::failure::Failure;
use crate::size;
use forebay::DeviceInfo;
use plotters::coord::Shift;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use style::{INK, MUTED, left};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

const WIDTH: u32 = 880;
const MARGIN: u32 = 16;
/// The title and the line below it.
const HEAD_HEIGHT: u32 = 68;

/// What the title says beside what was measured.
pub(super) struct Caption {
    model: String,
    /// The CUDA devices and what they are, if tensors go to any.
    devices: Option<String>,
}

impl Caption {
    pub(super) fn new(model: Option<&Path>, devices: &[DeviceInfo]) -> Self {
        let name = model.map(|path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy());
        let model = name.map_or("synthetic model".to_owned(), |name| shortened(&name, 44));
        let ordinals: Vec<String> =
            devices.iter().map(|it| format!("cuda:{}", it.ordinal)).collect();
        let mut names: Vec<&str> = devices.iter().map(|it| it.name.as_str()).collect();
        names.dedup();
        let devices = format!("{} ({})", ordinals.join(", "), names.join(", "));
        Self { model, devices: (!names.is_empty()).then(|| shortened(&devices, 64)) }
    }

    fn title(&self, report: &BenchReport) -> String {
        let (bytes, format) = (size::show(report.model.bytes), report.model.format);
        format!("forebay bench: {}, {bytes} {format}", self.model)
    }

    fn subtitle(&self, report: &BenchReport) -> String {
        let host = || report.rows.first().map(|row| row.device.clone()).unwrap_or_default();
        let devices = self.devices.clone().unwrap_or_else(host);
        let emulated = if report.emulated { ", EMULATED: no rate of hardware" } else { "" };
        let rounds = if report.repeat == 1 { "round" } else { "rounds" };
        format!("loads to {devices}{emulated}, {} {rounds}", report.repeat)
    }
}

/// The file that the picture goes to. Where the bench fails, there is none, or the old one.
pub(super) struct Picture {
    path: PathBuf,
    /// Made by us, and empty still.
    is_empty: bool,
}

impl Picture {
    /// Finds out whether the file can be written, and leaves one that is there as it is.
    pub(super) fn reserve(path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let is_empty = match options.write(true).create_new(true).open(path) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let opened = OpenOptions::new().write(true).open(path);
                opened.map_err(|error| Self::refused(path, &error))?;
                false
            }
            Err(error) => return Err(Self::refused(path, &error)),
        };
        Ok(Self { path: path.to_owned(), is_empty })
    }

    pub(super) fn write(mut self, svg: &str) -> Result<(), Failure> {
        fs::write(&self.path, svg).map_err(|error| Self::refused(&self.path, &error))?;
        self.is_empty = false;
        Ok(())
    }

    fn refused(path: &Path, error: &io::Error) -> Failure {
        Failure::caused(format!("{}: the picture can't be written", path.display()), error)
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        if self.is_empty {
            // Left behind it would do no harm.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The SVG of all that was measured.
pub(super) fn draw(report: &BenchReport, caption: &Caption) -> Result<String, Failure> {
    let (bars, columns) = (bars::Bars::of(report), curves::Columns::of(report));
    let height = HEAD_HEIGHT + bars.height() + columns.height() + MARGIN;
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    let drawn = (|| {
        let line = |text: &str, style, y| root.draw_text(text, &style, (position(MARGIN), y));
        line(&caption.title(report), left(17, INK), 14)?;
        line(&caption.subtitle(report), left(12, MUTED), 36)?;
        let (_, below) = root.split_vertically(HEAD_HEIGHT);
        let (upper, lower) = below.split_vertically(bars.height());
        bars.draw(&upper)?;
        columns.draw(&lower)?;
        root.present()
    })();
    drawn.map_err(|error| Failure::caused("the picture can't be drawn", &error))?;
    drop(root);
    Ok(style::with_style_sheet(&svg))
}

fn label(row: &Row) -> String {
    format!("{} · {} · {}", row.mode, row.device, row.cache)
}

fn rate(gib_per_s: f64) -> String {
    format!("{gib_per_s:.2} GiB/s")
}

fn runs_of<'a>(report: &'a BenchReport, row: &Row) -> Vec<&'a Run> {
    let (mode, cache) = (row.mode, row.cache);
    report.runs.iter().filter(|run| run.mode == mode && run.cache == cache).collect()
}

/// A pixel's place, from a distance; pictures are not that large.
fn position(distance: u32) -> i32 {
    i32::try_from(distance).unwrap_or(i32::MAX)
}

/// At most so many characters, all of which XML can hold.
fn shortened(text: &str, chars_max: usize) -> String {
    let no_xml = |letter: char| letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}');
    let letters: Vec<char> =
        text.chars().map(|it| if no_xml(it) { '\u{fffd}' } else { it }).collect();
    if letters.len() <= chars_max {
        return letters.into_iter().collect();
    }
    // Names of models differ at both ends.
    let tail = (chars_max - 1) / 2;
    let head = chars_max - 1 - tail;
    let ends = [&letters[..head], &['…'], &letters[letters.len() - tail..]];
    ends.concat().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn long_names_keep_both_ends_and_nothing_that_xml_can_not_hold() {
        assert_eq!(shortened("model.gguf", 10), "model.gguf");
        assert_eq!(shortened("a-long-model-00001.gguf", 11), "a-lon….gguf");
        assert_eq!(shortened("a\u{1b}[31m\n\u{ffff}", 20), "a\u{fffd}[31m\u{fffd}\u{fffd}");
    }
}

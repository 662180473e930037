//! Colours and letters, for light pages and dark ones.

use plotters::prelude::{Color, IntoFont, RGBColor, ShapeStyle, TextStyle};
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write;

/// A colour on a light page, what replaces it on a dark one, and how its lines are dashed.
#[derive(Clone, Copy)]
pub(super) struct Tone {
    light: RGBColor,
    dark: RGBColor,
    dashes: Option<&'static str>,
}

pub(super) const INK: Tone = Tone::new((31, 35, 40), (230, 237, 243));
pub(super) const MUTED: Tone = Tone::new((89, 99, 110), (145, 152, 161));
pub(super) const GRID: Tone = Tone::new((209, 217, 224), (61, 68, 77));
/// Blue and orange are told apart whatever colours somebody sees.
pub(super) const COLD: Tone = Tone::new((0, 114, 178), (86, 180, 233));
pub(super) const WARM: Tone = Tone::new((184, 80, 0), (230, 159, 0));
pub(super) const STORAGE: Tone = Tone::new((139, 44, 124), (224, 139, 208)).dashed("7 4");
pub(super) const UPLOAD: Tone = Tone::new((0, 115, 90), (47, 192, 143)).dashed("2 4");

const TONES: [Tone; 7] = [INK, MUTED, GRID, COLD, WARM, STORAGE, UPLOAD];

impl Tone {
    const fn new(light: (u8, u8, u8), dark: (u8, u8, u8)) -> Self {
        let light = RGBColor(light.0, light.1, light.2);
        Self { light, dark: RGBColor(dark.0, dark.1, dark.2), dashes: None }
    }

    const fn dashed(self, dashes: &'static str) -> Self {
        Self { dashes: Some(dashes), ..self }
    }

    pub(super) fn of_cache(cache: &str) -> Self {
        if cache == "cold" { COLD } else { WARM }
    }

    pub(super) fn line(self, width: u32) -> ShapeStyle {
        self.light.stroke_width(width)
    }

    pub(super) fn filled(self, opacity: f64) -> ShapeStyle {
        self.light.mix(opacity).filled()
    }

    fn text(self, pixels: u32, side: HPos) -> TextStyle<'static> {
        /// plotters writes sizes divided by this.
        const PLOTTERS_SHRINKS_BY: f64 = 1.24;
        let size = f64::from(pixels) * PLOTTERS_SHRINKS_BY;
        let style = if pixels > 12 { FontStyle::Bold } else { FontStyle::Normal };
        let font = ("sans-serif", size, style).into_font();
        font.color(&self.light).pos(Pos::new(side, VPos::Top))
    }
}

/// Text that begins at a point; what is larger than 12 pixels is a heading.
pub(super) fn left(pixels: u32, tone: Tone) -> TextStyle<'static> {
    tone.text(pixels, HPos::Left)
}

/// Text that ends at a point.
pub(super) fn right(pixels: u32, tone: Tone) -> TextStyle<'static> {
    tone.text(pixels, HPos::Right)
}

/// About how wide a text is: nobody knows which letters a browser will take.
pub(super) fn text_width(text: &str, pixels: u32) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX).saturating_mul(pixels * 3 / 5 + 1)
}

/// plotters writes colours into each element; a style sheet overrides them where the page is dark.
/// It dashes lines too: plotters would draw every dash by itself.
pub(super) fn with_style_sheet(svg: &str) -> String {
    let mut sheet = String::from("<style>\n");
    for tone in TONES {
        if let Some(dashes) = tone.dashes {
            let _ =
                writeln!(sheet, "[stroke=\"{}\"]{{stroke-dasharray:{dashes}}}", hex(tone.light));
        }
    }
    sheet.push_str("@media (prefers-color-scheme: dark) {\n");
    for tone in TONES {
        let (light, dark) = (hex(tone.light), hex(tone.dark));
        for property in ["fill", "stroke"] {
            let _ = writeln!(sheet, "[{property}=\"{light}\"]{{{property}:{dark}}}");
        }
    }
    sheet.push_str("}\n</style>\n");
    // The first tag is the one that opens the document.
    let (head, rest) = svg.split_once('>').unwrap_or((svg, ""));
    format!("{head}>\n{sheet}{}\n", rest.trim())
}

/// As plotters spells it: selectors compare letter by letter.
fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance as WCAG 2.2 defines it.
    fn luminance(colour: RGBColor) -> f64 {
        let linear = |channel: u8| {
            let share = f64::from(channel) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(colour.0) + 0.7152 * linear(colour.1) + 0.0722 * linear(colour.2)
    }

    fn contrast(a: RGBColor, b: RGBColor) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn letters_and_lines_stand_out_from_light_pages_and_dark_ones() {
        const WHITE: RGBColor = RGBColor(255, 255, 255);
        const NEARLY_BLACK: RGBColor = RGBColor(13, 17, 23);
        for tone in [INK, MUTED, COLD, WARM, STORAGE, UPLOAD] {
            assert!(contrast(tone.light, WHITE) >= 4.5, "{}", hex(tone.light));
            assert!(contrast(tone.dark, NEARLY_BLACK) >= 4.5, "{}", hex(tone.dark));
        }
    }

    #[test]
    fn every_colour_is_replaced_on_dark_pages() {
        let svg = with_style_sheet("<svg width=\"1\">\n<a/>\n</svg>\n");
        assert!(svg.starts_with("<svg width=\"1\">\n<style>"));
        assert!(svg.ends_with("</style>\n<a/>\n</svg>\n"));
        let (_, dark) = svg.split_once("@media (prefers-color-scheme: dark)").unwrap();
        for tone in TONES {
            assert!(dark.contains(&format!(
                "[fill=\"{}\"]{{fill:{}}}",
                hex(tone.light),
                hex(tone.dark)
            )));
        }
    }
}

//! What people and scripts read.

use crate::failure::Failure;
use forebay::{BackendReport, FileReport, LoadReport};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Prints one JSON object on standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::caused("can't write the report", &error))?;
    bytes(format!("{text}\n").as_bytes())
}

/// Prints a line on standard output, whatever names are in it.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{}\n", shown(text)).as_bytes())
}

/// Writes to standard output. That nobody reads any more is no failure of the work.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = std::io::stdout();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::caused("can't write the output", &error))
        }
        _ => Ok(()),
    }
}

/// Tells people something beside the output. Where that can't be written, nobody reads it.
pub(crate) fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A text with names from a file in it, on one line and safe for a terminal.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if forebay::steers_text(letter) {
            shown.extend(letter.escape_debug());
        } else {
            shown.push(letter);
        }
    }
    shown
}

/// Prints rows as columns, the first of them as a head; numbers are right-aligned.
pub(crate) fn table(rows: &[Vec<String>]) -> Result<(), Failure> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut text = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let number = cell.starts_with(|letter: char| letter.is_ascii_digit());
            let pad = " ".repeat(width - cell.chars().count());
            let padded = if number { format!("{pad}{cell}") } else { format!("{cell}{pad}") };
            text.push_str(&padded);
            text.push_str("  ");
        }
        line(text.trim_end())?;
    }
    Ok(())
}

/// Why each backend is loaded as it is.
pub(crate) fn backends(backends: &[BackendReport]) -> Result<(), Failure> {
    for backend in backends {
        line(&format!(
            "{}: {} tensors, {}, mode {} (requested {}): {}",
            backend.backend,
            backend.tensors,
            crate::size::show(backend.bytes),
            backend.mode,
            backend.requested,
            backend.why
        ))?;
    }
    Ok(())
}

/// A load's report for people.
pub(crate) fn report(report: &LoadReport) -> Result<(), Failure> {
    report.why.iter().try_for_each(|why| line(&format!("- {why}")))?;
    backends(&report.backends)?;
    for device in &report.devices {
        let emulated = if device.emulated { ", EMULATED: no rate of hardware" } else { "" };
        line(&format!("{}: {}{emulated}", device.backend, device.name))?;
    }
    if let Some(refused) = &report.upload.pin_refused {
        line(&format!("staging memory is not pinned, which slows copies down: {refused}"))?;
    }
    for file in &report.files {
        self::file(file)?;
    }
    line(&format!(
        "{} tensors, {} in {:.3} s: {:.2} GiB/s read in {} reads ({} continued), {:.2} GiB/s \
         copied; reader waited {:.3} s, uploader {:.3} s",
        report.model.tensors,
        crate::size::show(report.model.bytes),
        report.time.total_s,
        report.read.gib_per_s,
        report.read.ops - report.read.resubmitted,
        report.read.resubmitted,
        report.upload.gib_per_s,
        report.stall.reader_waited_s,
        report.stall.uploader_waited_s
    ))?;
    let memory = &report.memory;
    line(&format!(
        "staging {}, peak RSS {}",
        crate::size::show(memory.staging_bytes),
        crate::size::show(memory.peak_rss_bytes)
    ))?;
    if memory.prefetched_bytes > 0 {
        line(&format!(
            "prefetched {} at {:.2} GiB/s, {} resident",
            crate::size::show(memory.prefetched_bytes),
            report.prefetch.gib_per_s,
            crate::size::show(memory.resident_bytes)
        ))?;
    }
    let told = [
        ("read into place", memory.in_place_bytes),
        ("repacked", memory.repacked_bytes),
        ("given back", memory.reclaimed_bytes),
    ];
    let told: Vec<String> = (told.iter().filter(|(_, bytes)| *bytes > 0))
        .map(|(what, bytes)| format!("{what} {}", crate::size::show(*bytes)))
        .collect();
    if !told.is_empty() {
        line(&told.join(", "))?;
    }
    for placed in &memory.numa {
        line(&format!("numa: {placed}"))?;
    }
    if memory.locked_bytes + memory.lock_refused_bytes > 0 {
        line(&format!(
            "locked {}, refused {}{}",
            crate::size::show(memory.locked_bytes),
            crate::size::show(memory.lock_refused_bytes),
            memory.lock_errno.as_ref().map(|errno| format!(" ({errno})")).unwrap_or_default()
        ))?;
    }
    Ok(())
}

fn file(file: &FileReport) -> Result<(), Failure> {
    let cached = file
        .cached_bytes_before
        .map(|bytes| format!(", {} in the page cache before", crate::size::show(bytes)));
    line(&format!(
        "{}: {} by {}{}",
        file.path,
        file.access,
        file.engine,
        cached.unwrap_or_default()
    ))?;
    for step in &file.fallbacks {
        let offset = step.offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
        line(&format!(
            "  stepped down {} → {} ({} at {}{offset}): {}",
            step.from, step.to, step.errno, step.at, step.reason
        ))?;
    }
    Ok(())
}

/// Bytes in GiB.
#[allow(clippy::cast_precision_loss, reason = "for rates")]
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1_u64 << 30) as f64
}

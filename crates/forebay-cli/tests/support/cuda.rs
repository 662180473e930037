//! The command on an emulated NVIDIA driver: what it said, and what the driver saw.
#![allow(dead_code, reason = "every test file uses its own part")]

use crate::support::{command, scratch, text};
use forebay_cuda_emulator::{Emulator, Held, Report};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

/// What came of a command.
pub(crate) struct Ran {
    pub(crate) what: String,
    pub(crate) output: Output,
    /// `None` if it made no call of the driver.
    pub(crate) driver: Option<Report>,
}

/// Runs the command with an emulated driver that behaves so.
pub(crate) fn run_on(emulator: &Emulator, arguments: &[&str]) -> Ran {
    let folder = scratch();
    let path = folder.path().join("report.json");
    let emulator = emulator.clone().report_to(&path);
    let mut command = command();
    let output = emulator.command(command.args(arguments)).output().unwrap();
    let driver = Report::read(&path).ok();
    Ran { what: format!("{} | {}", emulator.config(), arguments.join(" ")), output, driver }
}

/// `load --json --digest` of a model, with these flags too.
pub(crate) fn load_on(emulator: &Emulator, model: &Path, flags: &[&str]) -> Ran {
    let mut arguments = vec!["load", text(model), "--json", "--digest"];
    arguments.extend(flags);
    run_on(emulator, &arguments)
}

/// A load that must succeed and leave nothing behind: its report and the driver's.
pub(crate) fn loaded_on(emulator: &Emulator, model: &Path, flags: &[&str]) -> (Value, Report) {
    let ran = load_on(emulator, model, flags);
    let report = ran.json();
    ran.expect_clean();
    (report, ran.driver.unwrap_or_default())
}

impl Ran {
    /// What it said on standard error, without what the emulator tells there.
    pub(crate) fn errors(&self) -> String {
        let errors = String::from_utf8_lossy(&self.output.stderr);
        let own = errors.lines().filter(|line| !line.starts_with("[cuda emulator]"));
        own.map(|line| format!("{line}\n")).collect()
    }

    /// That it succeeded and printed one JSON object.
    pub(crate) fn json(&self) -> Value {
        let (what, errors) = (&self.what, self.errors());
        assert!(self.output.status.success(), "{what}: {errors}");
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("{what} printed no JSON: {error}"))
    }

    /// That it ended with one clear error, which says all of `words`, its causes and a remedy.
    pub(crate) fn expect_error(&self, words: &[&str]) {
        let (what, said) = (&self.what, self.errors());
        assert_eq!(self.output.status.code(), Some(1), "{what}: {said}");
        assert!(self.output.stdout.is_empty(), "{what}: it printed a result all the same");
        let mut lines = said.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with("error: ")), "{what}: {said}");
        let mut lines: Vec<&str> = lines.collect();
        assert!(lines.pop().is_some_and(|line| line.starts_with("  remedy: ")), "{what}: {said}");
        assert!(lines.iter().all(|line| line.starts_with("  because: ")), "{what}: {said}");
        for never in ["panicked", "backtrace", "internal error", "RUST_BACKTRACE"] {
            assert!(!said.contains(never), "{what}: {said}");
        }
        for word in words {
            assert!(said.contains(word), "{what}: no '{word}' in: {said}");
        }
    }

    /// That the driver has everything back and nothing was done that must not be.
    pub(crate) fn expect_clean(&self) {
        if let Some(report) = &self.driver {
            self.expect_clean_but_for(report, &[]);
        }
    }

    /// The same, but for violations of these kinds, and what they tell of.
    pub(crate) fn expect_clean_but_for(&self, report: &Report, kinds: &[&str]) {
        let what = &self.what;
        let mut violations = report.violations.clone();
        violations.retain(|kind, _| !kinds.contains(&kind.as_str()));
        assert!(violations.is_empty(), "{what}: {:?}", report.violation_messages);
        assert_eq!(report.host_allocations, Held::default(), "{what}");
        if !kinds.is_empty() {
            return;
        }
        assert_eq!(report.registered, Held::default(), "{what}");
        for device in &report.devices {
            assert_eq!(device.memory, Held::default(), "{what}");
            let left = (device.streams, device.events, device.contexts_retained);
            assert_eq!(left, (0, 0, 0), "{what}: streams, events, contexts");
        }
    }
}

/// Bytes that the driver moved to all devices together.
pub(crate) fn uploaded_bytes(report: &Report) -> u64 {
    report.devices.iter().map(|device| device.upload.bytes).sum()
}

/// Copies that the driver made to all devices together.
pub(crate) fn upload_copies(report: &Report) -> u64 {
    report.devices.iter().map(|device| device.upload.copies).sum()
}

//! A load as a process of its own, and what it cost.

use crate::args::BenchArguments;
use crate::failure::Failure;
use forebay::LoadMode;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

pub(super) struct LoadInChild<'a> {
    pub(super) arguments: &'a BenchArguments,
    pub(super) model: &'a Path,
    pub(super) mode: LoadMode,
    /// How often it notes how far it has come, in milliseconds, where a picture is drawn.
    pub(super) sampling_ms: Option<u64>,
}

impl LoadInChild<'_> {
    /// Runs `forebay load --json` and returns its report.
    pub(super) fn run(&self) -> Result<Value, Failure> {
        let failed =
            |error: &dyn std::error::Error| Failure::caused("a load of the bench failed", error);
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let arguments = self.arguments;
        let mut command = Command::new(program);
        command.arg("load").arg(self.model).args(["--json", "--load-mode", self.mode.name()]);
        command.args(["--device", &arguments.device.to_string()]);
        let numbers = [
            ("--staging", arguments.staging),
            ("--chunk", arguments.chunk),
            ("--queue-depth", arguments.queue_depth.map(|depth| depth as u64)),
            ("--sample-progress", self.sampling_ms),
        ];
        for (flag, number) in numbers {
            if let Some(number) = number {
                command.arg(flag).arg(number.to_string());
            }
        }
        let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let message = format!("a load of the bench failed: {}", said.trim());
            return Err(Failure::new(message, None));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(&error))
    }
}

/// CPU seconds, user and system, of all children that have ended.
pub(super) fn children_cpu_s() -> Result<f64, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)
        .map_err(|errno| Failure::caused("no CPU times of child processes", &errno))?;
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    #[allow(clippy::cast_precision_loss, reason = "seconds for a table")]
    Ok(microseconds as f64 / 1e6)
}

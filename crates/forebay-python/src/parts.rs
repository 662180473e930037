//! Filling memory in parts, by several threads where that pays, without Python's lock.

use crate::errors;
use pyo3::prelude::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// What one thread does at once where there is more than one part: it then looks whether to stop.
pub(crate) const PART_BYTES: usize = 1 << 20;

/// How long the caller waits before it looks at signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(20);

/// Storage wants several reads at once even where there are few processors; more than this gain
/// nothing.
const THREADS_MIN: usize = 4;
const THREADS_MAX: usize = 8;

/// Calls `fill` with each part of `target`, of `part_bytes` but for the last, and where it begins.
/// One part is filled by the caller itself, several by threads, while the caller looks at signals.
///
/// # Errors
/// The first that `fill` answers; what a signal handler raises; a thread that can't be had.
pub(crate) fn fill(
    py: Python<'_>,
    target: &mut [u8],
    part_bytes: usize,
    fill: impl Fn(usize, &mut [u8]) -> PyResult<()> + Sync,
) -> PyResult<()> {
    if target.is_empty() {
        return Ok(());
    }
    if target.len() <= part_bytes {
        return py.detach(|| fill(0, target));
    }
    py.detach(|| fill_by_threads(target, part_bytes, &fill))
}

fn fill_by_threads(
    target: &mut [u8],
    part_bytes: usize,
    fill: &(impl Fn(usize, &mut [u8]) -> PyResult<()> + Sync),
) -> PyResult<()> {
    let wanted = thread::available_parallelism().map_or(THREADS_MIN, usize::from);
    let threads = wanted.clamp(THREADS_MIN, THREADS_MAX).min(target.len().div_ceil(part_bytes));
    let parts = Mutex::new(target.chunks_mut(part_bytes).enumerate());
    let stop = AtomicBool::new(false);
    let work = || -> PyResult<()> {
        while !stop.load(Ordering::Relaxed) {
            let next = parts.lock().expect("nothing that holds it can panic").next();
            let Some((number, part)) = next else { break };
            fill(number * part_bytes, part)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        // Nobody sends: the channel closes when the last thread has ended.
        let (running, ended) = channel::<()>();
        let mut outcome = Ok(());
        let mut workers = Vec::new();
        for _ in 0..threads {
            let running = running.clone();
            let worker = thread::Builder::new().name("forebay-python".to_owned());
            let spawned = worker.spawn_scoped(scope, || {
                let _running = running;
                work()
            });
            match spawned {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    outcome = Err(error.into());
                    stop.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        drop(running);
        while ended.recv_timeout(SIGNAL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = Python::attach(|py| py.check_signals()) {
                outcome = Err(error);
                stop.store(true, Ordering::Relaxed);
            }
        }
        for worker in workers {
            let ended = worker.join().unwrap_or_else(|_| Err(errors::internal()));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

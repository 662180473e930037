//! Where a pass begins and ends: what it is told of, and what the first one decides.

use super::super::report::PassReport;
use super::super::running::{Running, Setup};
use super::super::tiers::{Rates, Split};
use super::{LayerStream, start};
use crate::error::Error;
use crate::loaded::Tensors;
use forebay_trace::Arg;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A split that is predicted to take less than this share of the time is worth reading anew for.
const WORTH_IT: f64 = 0.9;

/// When what happened.
#[derive(Default)]
pub(super) struct Clock {
    pub(super) pass_began: Option<Instant>,
    pub(super) handed_out: Option<(usize, Instant)>,
    /// Of each unit, in the pass that runs.
    compute: Vec<Duration>,
    pub(super) waited: Duration,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Snapshot {
    read_bytes: u64,
    uploaded_bytes: u64,
    uploading: Duration,
    upload_waited: Duration,
    read_idle: Duration,
}

impl Snapshot {
    fn of(running: &Running) -> Self {
        let counters = &running.counters;
        let time = |ns: u64| Duration::from_nanos(ns);
        Self {
            read_bytes: counters.read_bytes.load(Ordering::Relaxed),
            uploaded_bytes: counters.uploaded_bytes.load(Ordering::Relaxed),
            uploading: time(counters.uploading_ns.load(Ordering::Relaxed)),
            upload_waited: time(counters.upload_waited_ns.load(Ordering::Relaxed)),
            read_idle: running.feed.idle() + running.feed.waited_for_slot(),
        }
    }
}

impl LayerStream {
    pub(super) fn begin_pass(&mut self) {
        // The first one began with the stream: its layers have been on their way since then.
        let began = self.started.take().unwrap_or_else(Instant::now);
        let compute = vec![Duration::ZERO; self.units.len()];
        self.clock = Clock { pass_began: Some(began), compute, ..Clock::default() };
        // The end of this pass decides what the next one brings, if anything is still to be tried.
        self.order_up_to(if self.may_retune { self.pass + 1 } else { self.pass + 2 });
    }

    pub(super) fn note_computed(&mut self) {
        if let Some((unit, since)) = self.clock.handed_out.take() {
            self.clock.compute[unit] = since.elapsed();
            if let Some(trace) = &self.trace {
                let row = trace.track("layers", "computing");
                let args = vec![Arg::new("pass", self.pass)];
                trace.span(row, self.units[unit].name.clone(), since, Instant::now(), args);
            }
        }
    }

    pub(super) fn end_pass(&mut self) -> Result<(), Error> {
        let elapsed = self.clock.pass_began.take().map_or(Duration::ZERO, |began| began.elapsed());
        let now = Snapshot::of(&self.running);
        let before = std::mem::replace(&mut self.counted, now);
        let bytes: u64 = self.units.iter().map(|unit| unit.bytes).sum();
        let seconds = elapsed.as_secs_f64();
        let reads = now.read_bytes > before.read_bytes;
        self.reports.push(PassReport {
            seconds,
            gib_per_s: if seconds > 0.0 {
                bytes as f64 / seconds / (1_u64 << 30) as f64
            } else {
                0.0
            },
            read_bytes: now.read_bytes - before.read_bytes,
            uploaded_bytes: now.uploaded_bytes - before.uploaded_bytes,
            compute_waited_s: self.clock.waited.as_secs_f64(),
            upload_waited_s: (now.upload_waited - before.upload_waited).as_secs_f64(),
            read_waited_s: if reads {
                (now.read_idle - before.read_idle).as_secs_f64()
            } else {
                0.0
            },
        });
        self.pass += 1;
        self.next = 0;
        if std::mem::take(&mut self.may_retune) {
            self.retune(elapsed, before, now)?;
        }
        self.order_up_to(self.pass + 1);
        Ok(())
    }

    /// Splits anew by what the first pass has measured, if that is worth reading anew for.
    fn retune(&mut self, elapsed: Duration, before: Snapshot, now: Snapshot) -> Result<(), Error> {
        let rate = |bytes: u64, time: Duration| {
            let seconds = time.as_secs_f64();
            if seconds > 0.0 && bytes > 0 { bytes as f64 / seconds } else { f64::INFINITY }
        };
        let reading = elapsed.saturating_sub(now.read_idle - before.read_idle);
        let rates = Rates {
            read: rate(now.read_bytes - before.read_bytes, reading),
            upload: rate(
                now.uploaded_bytes - before.uploaded_bytes,
                now.uploading - before.uploading,
            ),
            compute: std::mem::take(&mut self.clock.compute),
        };
        let room = self.ground.room(self.budgets);
        let Some(better) = Split::choose(&self.sizes, room, Some(&rates)) else { return Ok(()) };
        let (as_is, then) =
            (self.split.pass_time(&self.sizes, &rates), better.pass_time(&self.sizes, &rates));
        let compute: Duration = rates.compute.iter().sum();
        self.why.push(format!(
            "measured in the first pass: {:.2} GB/s read, {:.2} GB/s uploaded, {:.3} s of computing",
            rates.read / 1e9,
            rates.upload / 1e9,
            compute.as_secs_f64()
        ));
        self.held.retain(|held| held.arena.is_held());
        let is_used = |it: &Arc<Tensors>| Arc::strong_count(it) > 1 || it.others() > 0;
        let is_held = !self.held.is_empty() || self.resident.iter().flatten().any(is_used);
        // The memory of layers that are held can't be split anew.
        if is_held || better == self.split || then >= as_is.mul_f64(WORTH_IT) {
            self.why.push(format!(
                "{} bays stay: a pass is to take {:.3} s, and {:.3} s at best",
                self.split.depth,
                as_is.as_secs_f64(),
                then.as_secs_f64()
            ));
            return Ok(());
        }
        self.restart(better)?;
        self.say_why("after the first pass");
        Ok(())
    }

    /// Begins anew with another split.
    fn restart(&mut self, split: Split) -> Result<(), Error> {
        // Until the next one has been started.
        self.has_failed = true;
        self.end_running()?;
        self.arrived.clear();
        while self.landed.try_recv().is_ok() {}
        self.host_device = None;
        self.resident.fill(None);
        self.is_ordered.fill(false);
        self.ground.hold_slots(split.held_slots(&self.sizes));
        let setup = Setup {
            ground: &self.ground,
            pool_bytes: split.device_bytes(&self.sizes),
            trace: self.trace.as_ref(),
            reserved: split.reserved(&self.sizes),
            fault: None,
        };
        (self.running, self.landed, self.host_device) = start(setup, &self.cancel)?;
        self.counted = Snapshot::default();
        self.split = split;
        self.has_failed = false;
        self.held.clear();
        self.ordered = self.pass * self.units.len() as u64;
        Ok(())
    }
}

//! What uploads record on a timeline.

use crate::cuda::DriverRefusal;
use crate::uploader::Segment;
use forebay_trace::{Arg, Counter, Label, Labels, Rate, Trace};
use std::fmt;
use std::time::Instant;

/// What the rows belong to.
const UPLOADS: &str = "uploads";

/// Records the copies out of each slot as one span for each device that they go to: from being
/// queued to having completed.
pub struct UploadTrace {
    trace: Trace,
    labels: Labels,
    /// Of the arenas in ordinary memory, by index.
    names: Vec<String>,
    rate: Rate,
    copied_from: Counter,
    in_flight: usize,
}

/// Copies out of one slot to one device.
#[derive(Debug)]
pub(crate) struct Copying {
    /// Which of the uploader's queues they are in, if one.
    pub(crate) queue: Option<usize>,
    pub(crate) started: Instant,
    pub(crate) bytes: u64,
    pub(crate) copies: u64,
}

impl Copying {
    pub(crate) fn new(
        queue: Option<usize>,
        started: Instant,
        copies: u64,
        arena: usize,
        segments: &[Segment],
    ) -> Self {
        let of_arena = segments.iter().filter(|segment| segment.arena == arena);
        let bytes = of_arena.map(|segment| u64::from(segment.bytes)).sum();
        Self { queue, started, bytes, copies }
    }
}

impl UploadTrace {
    /// One for reads that bear these labels by number, and arenas of these names; an arena in
    /// ordinary memory that has none is called `host`.
    #[must_use]
    pub fn new(trace: &Trace, labels: Labels, names: Vec<String>) -> Self {
        Self {
            trace: trace.clone(),
            labels,
            names,
            rate: Rate::new(trace, UPLOADS, "bytes/s copied"),
            copied_from: trace.counter(UPLOADS, "slots being copied"),
            in_flight: 0,
        }
    }

    /// Copies to an arena in ordinary memory have been made.
    pub(crate) fn copied_here(&mut self, arena: usize, read: usize, copying: &Copying) {
        let name = self.names.get(arena).cloned();
        let name = name.unwrap_or_else(|| "host".to_owned());
        self.copied(&name, read, copying, Instant::now(), None);
    }

    /// Copies have completed, or were refused.
    pub(crate) fn copied(
        &mut self,
        device: &str,
        read: usize,
        copying: &Copying,
        ended: Instant,
        refusal: Option<&DriverRefusal>,
    ) {
        let Label { name, mut args } = (self.labels)(read);
        args.extend([
            Arg::new("read", read as u64),
            Arg::new("bytes", copying.bytes),
            Arg::new("copies", copying.copies),
        ]);
        match refusal {
            Some(refusal) => args.push(Arg::new("unfinished", refusal.to_string())),
            None => self.rate.note(ended, copying.bytes),
        }
        let row = self.trace.lanes(UPLOADS, device);
        self.trace.span(row, name, copying.started, ended, args);
    }

    /// So many slots are being copied from.
    pub(crate) fn in_flight(&mut self, slots: usize) {
        if slots != self.in_flight {
            self.in_flight = slots;
            let slots = u32::try_from(slots).unwrap_or(u32::MAX);
            self.trace.count(self.copied_from, Instant::now(), slots.into());
        }
    }
}

impl fmt::Debug for UploadTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadTrace").field("names", &self.names).finish_non_exhaustive()
    }
}

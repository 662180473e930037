//! What reads and prefetches record on a timeline.

use crate::file::ModelFile;
use crate::schedule::{Completion, Op, Schedule};
use forebay_trace::{Arg, Counter, Label, Labels, Rate, Text, Trace, Track};
use nix::errno::Errno;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// What the rows belong to.
const READS: &str = "reads";
const PREFETCH: &str = "prefetch";

/// Records the reads of one job: each as one span on the row of its slot, from when its first
/// operation was handed to the kernel to when its last byte was there, and in it what was refused
/// or came back short. What is not done when the job ends is recorded as that.
pub struct ReadTrace {
    waits: Waits,
    labels: Labels,
    in_flight: Counter,
    rate: Rate,
    /// By file, once one of its reads has ended.
    paths: Vec<Option<Text>>,
    /// By slot.
    rows: Vec<Option<Track>>,
    /// By slot: the read that is in it.
    begun: Vec<Option<Begun>>,
    reading: u32,
    /// How many of the schedule's steps have been told.
    steps: usize,
}

struct Begun {
    at: Instant,
    op: Op,
    path: Text,
    received: u32,
}

impl ReadTrace {
    /// One for a job whose reads bear these labels by number.
    #[must_use]
    pub fn new(trace: &Trace, labels: Labels) -> Self {
        let row = trace.lanes(READS, "waits");
        Self {
            in_flight: trace.counter(READS, "reads in flight"),
            rate: Rate::new(trace, READS, "bytes/s read"),
            waits: Waits { trace: trace.clone(), row },
            labels,
            paths: Vec::new(),
            rows: Vec::new(),
            begun: Vec::new(),
            reading: 0,
            steps: 0,
        }
    }

    /// To record waits without the job.
    pub(crate) fn waits(&self) -> Waits {
        self.waits.clone()
    }

    /// An operation has been handed to the kernel, or is about to be.
    pub(crate) fn began(&mut self, op: &Op, file: &ModelFile) {
        let path = self.path(op.file, file);
        let begun = at_index(&mut self.begun, op.slot);
        if begun.is_none() {
            let at = Instant::now();
            *begun = Some(Begun { at, op: *op, path, received: 0 });
            self.reading += 1;
            self.waits.trace.count(self.in_flight, at, self.reading.into());
        }
    }

    /// An operation has completed, and the schedule knows what follows.
    pub(crate) fn completed(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        follows: &Completion,
        schedule: &Schedule,
    ) {
        let now = Instant::now();
        self.tell_steps(schedule, now);
        let received = result.unwrap_or(0);
        self.rate.note(now, received.into());
        if let Some(begun) = at_index(&mut self.begun, op.slot) {
            begun.received += received;
        }
        match follows {
            Completion::Done { .. } => self.ended(op.slot, now, vec![access(op)]),
            Completion::Again(next) => {
                let mut args = what_came(op, result);
                args.push(Arg::new("next", next.access.name()));
                self.happened(op.slot, result, now, args);
            }
            Completion::Stop => {
                self.happened(op.slot, result, now, what_came(op, result));
                self.ended(op.slot, now, vec![access(op), Arg::new("unfinished", "stopped")]);
            }
        }
    }

    fn happened(&mut self, slot: usize, result: Result<u32, Errno>, now: Instant, args: Vec<Arg>) {
        let name = match result {
            Ok(_) => "short",
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED) => "put off",
            Err(_) => "refused",
        };
        let row = self.row(slot);
        self.waits.trace.instant(row, name, now, args);
    }

    /// Steps down, on the row that belongs to no slot: they concern a file, or the whole job.
    fn tell_steps(&mut self, schedule: &Schedule, now: Instant) {
        for step in &schedule.steps()[self.steps..] {
            let name = format!("{} → {}", step.from.name(), step.to.name());
            let mut args = vec![
                Arg::new("errno", format!("{:?}", step.errno)),
                Arg::new("at", step.at.name()),
                Arg::new("reason", step.reason.clone()),
            ];
            args.extend(step.offset.map(|offset| Arg::new("offset", offset)));
            self.waits.trace.instant(self.waits.row, name, now, args);
        }
        self.steps = schedule.steps().len();
    }

    fn ended(&mut self, slot: usize, now: Instant, more: Vec<Arg>) {
        let Some(begun) = at_index(&mut self.begun, slot).take() else { return };
        let Begun { at, op, path, received } = begun;
        let Label { name, mut args } = (self.labels)(op.read);
        args.extend([
            Arg::new("read", op.read as u64),
            Arg::new("file", path),
            Arg::new("offset", op.offset - u64::from(op.slot_offset)),
            Arg::new("bytes", u64::from(received)),
        ]);
        args.extend(more);
        let row = self.row(slot);
        self.waits.trace.span(row, name, at, now, args);
        self.reading -= 1;
        self.waits.trace.count(self.in_flight, now, self.reading.into());
    }

    fn row(&mut self, slot: usize) -> Track {
        let trace = &self.waits.trace;
        *at_index(&mut self.rows, slot)
            .get_or_insert_with(|| trace.lanes(READS, &format!("slot {slot}")))
    }

    fn path(&mut self, index: usize, file: &ModelFile) -> Text {
        let path = || Text::from(file.path().display().to_string());
        at_index(&mut self.paths, index).get_or_insert_with(path).clone()
    }
}

impl Drop for ReadTrace {
    fn drop(&mut self) {
        let now = Instant::now();
        for slot in 0..self.begun.len() {
            self.ended(slot, now, vec![Arg::new("unfinished", "given up")]);
        }
    }
}

impl fmt::Debug for ReadTrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadTrace").field("reading", &self.reading).finish_non_exhaustive()
    }
}

/// The entry of that index, which need not be there yet.
fn at_index<T>(entries: &mut Vec<Option<T>>, index: usize) -> &mut Option<T> {
    if entries.len() <= index {
        entries.resize_with(index + 1, || None);
    }
    &mut entries[index]
}

fn access(op: &Op) -> Arg {
    Arg::new("access", op.access.name())
}

fn what_came(op: &Op, result: Result<u32, Errno>) -> Vec<Arg> {
    let came = match result {
        Ok(bytes) => Arg::new("bytes", u64::from(bytes)),
        Err(errno) => Arg::new("errno", format!("{errno:?}")),
    };
    vec![came, access(op), Arg::new("offset", op.offset), Arg::new("wanted", u64::from(op.bytes))]
}

/// Where the waits of those who read are recorded.
#[derive(Clone, Debug)]
pub(crate) struct Waits {
    trace: Trace,
    row: Track,
}

impl Waits {
    /// Nothing could be read since then, for want of this.
    pub(crate) fn waited(&self, name: &'static str, since: Instant) {
        self.trace.span(self.row, name, since, Instant::now(), Vec::new());
    }
}

/// Labels for ranges of files, which are named by index.
pub type RangeLabels = Arc<dyn Fn(usize, &Range<u64>) -> Label + Send + Sync>;

/// Records the steps of a prefetch.
#[derive(Clone)]
pub struct PrefetchTrace {
    trace: Trace,
    labels: RangeLabels,
    row: Track,
}

impl PrefetchTrace {
    /// One for a job whose ranges bear these labels.
    #[must_use]
    pub fn new(trace: &Trace, labels: RangeLabels) -> Self {
        let row = trace.lanes(PREFETCH, "mapped pages");
        Self { trace: trace.clone(), labels, row }
    }

    /// A step has come to an end, well or not.
    pub(crate) fn brought(
        &self,
        index: usize,
        range: &Range<u64>,
        file: &ModelFile,
        since: Instant,
        well: bool,
    ) {
        let Label { name, mut args } = (self.labels)(index, range);
        args.extend([
            Arg::new("file", file.path().display().to_string()),
            Arg::new("offset", range.start),
            Arg::new("bytes", range.end - range.start),
        ]);
        if !well {
            args.push(Arg::new("unfinished", "failed"));
        }
        self.trace.span(self.row, name, since, Instant::now(), args);
    }
}

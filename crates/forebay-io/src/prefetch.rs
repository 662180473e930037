//! Bringing mapped ranges into memory ahead of use.
//!
//! One `MADV_WILLNEED` over a large range is capped by the kernel, and one `MADV_POPULATE_READ`
//! blocks until all of it is there. So ranges go in steps, in order of use: a few threads each
//! populate the next step, which waits for its pages and puts them into the page table. Where the
//! device's readahead is small, the steps ahead of them are asked for first, so that the disk
//! always has a queue; where it is large, its own readahead does that better, in large folios.
//!
//! ```text
//!   done, in order ──▶│ populating (one step a thread) │ asked for, on the way │ not yet
//! ```
//!
//! While a load's own reads run, one thread populates one step at a time, without readahead: the
//! reads keep the disk's queue, the prefetch takes what they leave.

use crate::cancel::{CANCEL_POLL, Cancel};
use crate::failure::{FailureKind, ReadFailure};
use crate::file::ModelFile;
use crate::ladder::{Rung, Step, StepAt};
use crate::trace::PrefetchTrace;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use forebay_mem::{Expect, FileMapping};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What one call brings in; the kernel caps a larger `WILLNEED`.
const STEP_BYTES: u64 = 2 << 20;
/// Threads that populate once no other read needs the disk. Eight made 1.21 GB/s where four made 1.12
/// and fio 0.98 (4 GiB, 8 MiB of readahead, shuffled, medians of 8, 2026-11-21); more made no more.
const THREADS: usize = 8;
/// Steps asked for ahead of those being populated, where readahead is small.
const AHEAD_STEPS: usize = 16;
/// What is copied out at a time where the kernel can't populate.
const TOUCH_BYTES: u64 = 128 << 10;

/// A range of a mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedRange {
    /// Index of the file.
    pub file: usize,
    /// Where.
    pub range: Range<u64>,
}

/// Everything a prefetch needs.
pub struct PrefetchJob {
    /// The model's files.
    pub files: Arc<[ModelFile]>,
    /// The mappings of those that have ranges here.
    pub mappings: Vec<Option<Arc<FileMapping>>>,
    /// What to bring, in order of use, no page twice.
    pub ranges: Vec<MappedRange>,
    /// Disconnected once no other read of the load needs the disk.
    pub reads_end: Receiver<()>,
    /// Asks the job to stop.
    pub cancel: Cancel,
    /// Told how many bytes of the ranges, counted in their order, are resident without a gap.
    pub on_resident: Box<dyn Fn(u64) + Send + Sync>,
    /// What records it on a timeline, if anything does.
    pub trace: Option<PrefetchTrace>,
}

/// What a prefetch did.
#[derive(Debug, Default)]
pub struct PrefetchOutcome {
    /// Bytes brought in and waited for.
    pub populated_bytes: u64,
    /// Bytes of the ranges that are in memory at the end, as `mincore` says.
    pub resident_bytes: u64,
    /// How long it took, the look at the end not included.
    pub elapsed: Duration,
    /// When the last byte was there.
    pub ended: Option<Instant>,
    /// Steps down that it took.
    pub steps: Vec<Step>,
    /// Why it ended early, if it did; being cancelled is a reason too.
    pub failure: Option<ReadFailure>,
}

impl PrefetchJob {
    /// Brings everything in, on the calling thread and those it starts.
    #[must_use]
    pub fn run(self) -> PrefetchOutcome {
        let started = Instant::now();
        let steps = cut(&self.ranges);
        let run = Run {
            state: Mutex::new(State { done: vec![false; steps.len()], ..State::default() }),
            steps,
            is_alone: AtomicBool::new(false),
            populate_refused: AtomicBool::new(false),
            job: self,
        };
        run.note_end_of_reads();
        run.expect(Expect::Random);
        std::thread::scope(|scope| {
            for _ in 1..THREADS.min(run.steps.len()) {
                let builder = std::thread::Builder::new().name("forebay-prefetch".to_owned());
                // With fewer threads it takes longer and ends the same.
                let work = || {
                    if run.wait_for_end_of_reads() {
                        run.work();
                    }
                };
                if builder.spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            run.work();
        });
        run.expect(Expect::Normal);
        run.finish(started)
    }
}

fn cut(ranges: &[MappedRange]) -> Vec<(MappedRange, u64)> {
    let mut steps = Vec::new();
    let mut position = 0;
    for MappedRange { file, range } in ranges {
        let mut start = range.start;
        while start < range.end {
            let end = (start + STEP_BYTES).min(range.end);
            position += end - start;
            steps.push((MappedRange { file: *file, range: start..end }, position));
            start = end;
        }
    }
    steps
}

#[derive(Default)]
struct State {
    claimed: usize,
    /// Steps that were asked for, or that readahead brings unasked.
    asked: usize,
    done: Vec<bool>,
    /// Steps done without a gap.
    prefix: usize,
    populated_bytes: u64,
    steps: Vec<Step>,
    failure: Option<ReadFailure>,
}

struct Run {
    job: PrefetchJob,
    /// Each with the bytes up to its end, counted in order.
    steps: Vec<(MappedRange, u64)>,
    state: Mutex<State>,
    is_alone: AtomicBool,
    populate_refused: AtomicBool,
}

impl Run {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping(&self, file: usize) -> Option<&Arc<FileMapping>> {
        self.job.mappings.get(file).and_then(Option::as_ref)
    }

    fn note_end_of_reads(&self) {
        if self.job.reads_end.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) {
            self.is_alone.store(true, Ordering::Relaxed);
        }
    }

    /// `false` if there is nothing left to do by then.
    fn wait_for_end_of_reads(&self) -> bool {
        loop {
            match self.job.reads_end.recv_timeout(CANCEL_POLL) {
                Err(RecvTimeoutError::Disconnected) => return true,
                _ if self.is_over() => return false,
                _ => {}
            }
        }
    }

    fn is_over(&self) -> bool {
        let state = self.state();
        self.job.cancel.is_cancelled()
            || state.failure.is_some()
            || state.claimed >= self.steps.len()
    }

    /// Sets the readahead of faults: none while it could take the disk from other reads, or where
    /// every step is asked for anyway. Once for each file, from its first range to its last: each
    /// range by itself would cut the mapping into more areas than the kernel allows.
    fn expect(&self, expect: Expect) {
        let alone = self.is_alone.load(Ordering::Relaxed);
        for (file, mapping) in self.job.mappings.iter().enumerate() {
            let ranges = self.job.ranges.iter().filter(|it| it.file == file).map(|it| &it.range);
            let hull = ranges
                .cloned()
                .reduce(|hull, range| hull.start.min(range.start)..hull.end.max(range.end));
            let (Some(mapping), Some(hull)) = (mapping.as_ref(), hull) else { continue };
            let large = self.job.files[file].readahead().is_large();
            // Advice: refused, it costs order on the disk and no byte.
            let _ = mapping.expect(hull, if alone && large { Expect::Normal } else { expect });
        }
    }

    fn work(&self) {
        let mut scratch = Vec::new();
        while let Some(index) = self.claim() {
            self.ask_ahead(index);
            let (MappedRange { file, range }, _) = &self.steps[index];
            let started = self.job.trace.as_ref().map(|trace| (trace, Instant::now()));
            let brought = self.bring(*file, range, &mut scratch);
            if let Some((trace, started)) = started {
                trace.brought(*file, range, &self.job.files[*file], started, brought.is_ok());
            }
            self.complete(index, brought);
        }
    }

    fn claim(&self) -> Option<usize> {
        if self.is_over() {
            return None;
        }
        let mut state = self.state();
        let index = state.claimed;
        state.claimed += 1;
        drop(state);
        if !self.is_alone.load(Ordering::Relaxed) {
            self.note_end_of_reads();
            if self.is_alone.load(Ordering::Relaxed) {
                self.expect(Expect::Random);
            }
        }
        (index < self.steps.len()).then_some(index)
    }

    /// Starts the transfer of this step, and of those ahead of it if the disk is ours.
    fn ask_ahead(&self, index: usize) {
        let alone = self.is_alone.load(Ordering::Relaxed);
        let until = if alone { index + AHEAD_STEPS } else { index + 1 }.min(self.steps.len());
        let asked = {
            let mut state = self.state();
            let asked = state.asked.max(index)..until;
            state.asked = state.asked.max(until);
            asked
        };
        for (MappedRange { file, range }, _) in &self.steps[asked.start.min(until)..until] {
            let readahead = self.job.files[*file].readahead();
            let Some(mapping) = self.mapping(*file).filter(|_| !(alone && readahead.is_large()))
            else {
                continue;
            };
            let mut start = range.start;
            while start < range.end {
                let end = (start + readahead.request_bytes).min(range.end);
                // Advice: the populating that follows brings the pages in any case.
                let _ = mapping.will_need(start..end);
                start = end;
            }
        }
    }

    /// Waits until the pages of a range are there.
    fn bring(
        &self,
        file: usize,
        range: &Range<u64>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), (FailureKind, u64)> {
        let Some(mapping) = self.mapping(file) else { return Ok(()) };
        if !self.populate_refused.load(Ordering::Relaxed) {
            match mapping.populate(range.clone()) {
                Ok(()) => return Ok(()),
                // The kernel has no such call, or a filter forbids it.
                Err(error)
                    if matches!(error.errno, Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) =>
                {
                    self.step_down(file, error.errno, range.start);
                }
                // Of this range alone; copying out tells what is wrong with it, if anything is.
                Err(_) => {}
            }
        }
        // Copying out brings pages in as well, and says exactly what is wrong where it can't.
        let mut start = range.start;
        while start < range.end {
            let end = (start + TOUCH_BYTES).min(range.end);
            scratch.resize(usize::try_from(end - start).unwrap_or(0), 0);
            if mapping.read_into(start, scratch).is_err() {
                // A fault has no cause of its own: a read of the same bytes names it. If they come
                // this time, they are in the page cache now.
                self.job.files[file].read_exact_at(scratch, start)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Populating is refused: from here on, pages come by copying out of them.
    fn step_down(&self, file: usize, errno: Errno, offset: u64) {
        if !self.populate_refused.swap(true, Ordering::Relaxed) {
            self.state().steps.push(Step {
                file: Some(file),
                from: Rung::Populate,
                to: Rung::Touch,
                errno,
                at: StepAt::Read,
                offset: Some(offset),
                reason: "the kernel can't populate a mapping (Linux 5.14 can), or would not end where the \
                         disk fails (6.9 does)"
                    .to_owned(),
            });
        }
    }

    fn complete(&self, index: usize, brought: Result<(), (FailureKind, u64)>) {
        let (MappedRange { file, range }, _) = &self.steps[index];
        let mut state = self.state();
        match brought {
            Ok(()) => {
                state.populated_bytes += range.end - range.start;
                state.done[index] = true;
                let before = state.prefix;
                while state.done.get(state.prefix) == Some(&true) {
                    state.prefix += 1;
                }
                if state.prefix > before {
                    // Under the lock, so that positions are told in order.
                    (self.job.on_resident)(self.steps[state.prefix - 1].1);
                }
            }
            Err((kind, offset)) => {
                let failure = ReadFailure { kind, read: None, file: Some(*file), offset };
                state.failure.get_or_insert(failure);
            }
        }
    }

    fn finish(self, started: Instant) -> PrefetchOutcome {
        let ended = Instant::now();
        let resident = |MappedRange { file, range }: &MappedRange| {
            self.mapping(*file).and_then(|mapping| mapping.resident_bytes(range.clone()).ok())
        };
        let resident_bytes = self.job.ranges.iter().filter_map(resident).sum();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        PrefetchOutcome {
            populated_bytes: state.populated_bytes,
            resident_bytes,
            elapsed: ended - started,
            ended: Some(ended),
            steps: state.steps,
            failure: state.failure.or_else(|| {
                let cancelled = state.prefix < self.steps.len();
                cancelled.then(|| ReadFailure::general(FailureKind::Cancelled))
            }),
        }
    }
}

//! Engines: who performs the schedule's operations. They decide nothing.

mod blame;
mod free;
mod threads;
#[cfg(feature = "tokio-uring")]
mod tokio_uring;
mod uring;

use crate::cache::drop_cached;
use crate::cancel::{CANCEL_POLL, Cancel};
use crate::failure::{FailureKind, ReadFailure};
use crate::fault::Fault;
use crate::file::ModelFile;
use crate::ladder::{Access, Performer, StepAt};
use crate::schedule::{Completion, Op, ReadSpec, Schedule};
use crate::trace::ReadTrace;
use crossbeam_channel::Sender;
use forebay_mem::{FileMapping, Filling, Full, Place, Slab, Slot};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use free::{FreeSlots, SlotReturn, slot_channel};
pub use threads::THREADS_MAX;
pub use uring::{UringSupport, uring_support};

/// What waits are called on a timeline.
const WAITED_FOR_SLOT: &str = "waits for a free slot";
const WAITED_FOR_READS: &str = "waits to be asked";

/// A slot that holds one whole read of the plan.
#[derive(Debug)]
pub struct Filled {
    /// Index of the read.
    pub read: usize,
    /// Its bytes.
    pub slot: Slot<Full>,
}

/// Everything a reader thread needs.
pub struct ReadJob {
    /// The model's files, by the index that the schedule uses.
    pub files: Arc<[ModelFile]>,
    /// The mappings of files that have [`Access::Mapped`] reads.
    pub mappings: Vec<Option<Arc<FileMapping>>>,
    /// What to read.
    pub schedule: Schedule,
    /// By read: where its bytes go instead of into the slot, if it needs no copy afterwards. As
    /// long as the read, and aligned in memory as direct reads of its file demand.
    pub places: Vec<Option<Place>>,
    /// The memory under the slots.
    pub slab: Arc<Slab>,
    /// Where free slots come from.
    pub free: FreeSlots,
    /// Where filled ones go; its capacity is the number of slots, so that sending never waits.
    pub full: Sender<Filled>,
    /// Asks the job to stop.
    pub cancel: Cancel,
    /// Reads in flight at most.
    pub queue_depth: usize,
    /// Whether io_uring hands buffered reads to threads of the kernel, so that several processors
    /// copy out of the page cache at once. Otherwise the submitting thread copies by itself,
    /// which one processor's rate bounds.
    pub buffered_by_workers: bool,
    /// By read: what of the file is given back once it has been copied out of a mapping. Rounded
    /// inward, so that pages of which others use a part stay.
    pub reclaim: Vec<Vec<Range<u64>>>,
    /// What records it on a timeline, if anything does.
    pub trace: Option<ReadTrace>,
    /// For tests.
    pub fault: Option<Box<dyn Fault>>,
}

/// What a reader did with its time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadStats {
    /// From the first operation to the last completion.
    pub elapsed: Duration,
    /// Of that, time in which nothing could be read because no slot was free. For several
    /// threads, their mean.
    pub waited_for_slot: Duration,
    /// Mapped bytes given back after they were copied.
    pub reclaimed_bytes: u64,
    /// Whether the slab was registered with the ring.
    pub registered_buffers: bool,
    /// Whether the files were registered with the ring.
    pub registered_files: bool,
}

/// What is left when a reader has ended.
#[derive(Debug)]
pub struct ReadOutcome {
    /// The schedule, with its steps, counts and failure.
    pub schedule: Schedule,
    /// Where the time went.
    pub stats: ReadStats,
}

impl ReadJob {
    /// Reads everything, on the calling thread and those it starts. When it returns, nothing is
    /// in flight and every slot is free, in the channel, or dropped.
    #[must_use]
    pub fn run(mut self) -> ReadOutcome {
        let mut stats = ReadStats::default();
        let started = Instant::now();
        let mut carried = Vec::new();
        self.refuse_unopened();
        self.refuse_ring();
        if !self.is_over() {
            carried = match self.schedule.performer() {
                Performer::UringPolled | Performer::Uring => self.run_on_rings(&mut stats),
                Performer::TokioUring => self.run_on_own_runtime(&mut stats),
                Performer::Threads => carried,
            };
        }
        self.finish(carried, stats, started)
    }

    /// The same as a task of the tokio-uring runtime that it is awaited on, if the schedule begins
    /// with [`Performer::TokioUring`]; if that is left, a thread goes on. When it has ended, nothing
    /// is in flight; when it is dropped, the runtime finishes what is in flight, into memory that is
    /// kept for it.
    ///
    /// # Panics
    /// Outside of such a runtime.
    #[cfg(feature = "tokio-uring")]
    pub async fn run_on_tokio_uring(mut self) -> ReadOutcome {
        let mut stats = ReadStats::default();
        let started = Instant::now();
        let mut carried = Vec::new();
        self.refuse_unopened();
        self.refuse_ring();
        if !self.is_over() && self.schedule.performer() == Performer::TokioUring {
            carried = tokio_uring::run(&mut self, &mut stats).await;
        }
        if self.is_over() && self.schedule.suspects().is_empty() {
            return self.finish(carried, stats, started);
        }
        tokio_uring::elsewhere(self, move |job| job.finish(carried, stats, started)).await
    }

    /// On one that polls, and if that is left, on one that waits.
    fn run_on_rings(&mut self, stats: &mut ReadStats) -> Vec<Slot<Filling>> {
        let mut carried = Vec::new();
        while let ring @ (Performer::UringPolled | Performer::Uring) = self.schedule.performer()
            && !self.is_over()
        {
            carried = uring::run(self, ring, carried, stats);
        }
        carried
    }

    #[cfg(feature = "tokio-uring")]
    fn run_on_own_runtime(&mut self, stats: &mut ReadStats) -> Vec<Slot<Filling>> {
        tokio_uring::run_alone(self, stats)
    }

    #[cfg(not(feature = "tokio-uring"))]
    fn run_on_own_runtime(&mut self, _: &mut ReadStats) -> Vec<Slot<Filling>> {
        let reason = "forebay was built without the feature tokio-uring";
        self.schedule.leave_performer(Errno::ENOSYS, StepAt::Setup, None, reason);
        Vec::new()
    }

    /// What the ring has left undone is done by threads, `carried` first; what could not be read is
    /// named.
    fn finish(
        self,
        carried: Vec<Slot<Filling>>,
        mut stats: ReadStats,
        started: Instant,
    ) -> ReadOutcome {
        let (files, cancel) = (Arc::clone(&self.files), self.cancel.clone());
        let mut schedule = if self.is_over() {
            self.schedule
        } else {
            let (schedule, spent) = threads::run(self, carried);
            stats.waited_for_slot += spent.waited_for_slot;
            stats.reclaimed_bytes += spent.reclaimed_bytes;
            schedule
        };
        stats.elapsed = started.elapsed();
        blame::find(&mut schedule, &files, &cancel);
        sweep_cache(&files, &schedule);
        ReadOutcome { schedule, stats }
    }

    /// Steps files down that could not be opened for the direct reads planned for them, if nobody
    /// has yet: an engine has no descriptor to perform those with.
    fn refuse_unopened(&mut self) {
        let mut wanted = vec![false; self.files.len()];
        let direct = self.schedule.reads().iter().filter(|read| read.access == Access::Direct);
        direct.for_each(|read| wanted[read.file] = true);
        for (file, model) in self.files.iter().enumerate().filter(|(file, _)| wanted[*file]) {
            if let Err(errno) = model.direct() {
                let reason = "the file can't be opened for direct reads";
                self.schedule.refuse_at_open(file, Access::Direct, errno, reason);
            }
        }
    }

    /// Leaves all rings for files that they would read wrong, and one that polls for drives that can't
    /// be polled.
    fn refuse_ring(&mut self) {
        let is_wrong = self.files.iter().any(|file| !file.is_for_rings());
        while is_wrong && self.schedule.performer().is_ring() && !self.is_over() {
            let reason = "io_uring misplaces what FUSE answers short";
            self.schedule.leave_performer(Errno::EOPNOTSUPP, StepAt::Setup, None, reason);
        }
        // Not every kernel refuses: 6.1 polls for what comes by interrupts, and was seen to answer that
        // a file ends before its end.
        let is_polled = self.schedule.performer() == Performer::UringPolled && !self.is_over();
        if is_polled && self.files.iter().any(|file| file.polled_bytes().is_none()) {
            let reason = "the drive has no queues that can be polled";
            self.schedule.leave_performer(Errno::EOPNOTSUPP, StepAt::Setup, None, reason);
        }
    }

    /// A read begins in `slot`: its bytes go there, or to the place that they belong to.
    fn aim(&mut self, slot: Slot<Filling>, read: usize) -> Slot<Filling> {
        match self.places.get_mut(read).and_then(Option::take) {
            Some(place) => slot.aim(place),
            None => slot,
        }
    }

    /// An operation is handed to the kernel.
    fn began(&mut self, op: &Op) {
        if let Some(trace) = &mut self.trace {
            trace.began(op, &self.files[op.file]);
        }
    }

    /// Tells the schedule what became of an operation, and hears what follows.
    fn complete(&mut self, op: &Op, result: Result<u32, Errno>) -> Completion {
        let follows = self.schedule.complete(op.slot, result);
        if let Some(trace) = &mut self.trace {
            trace.completed(op, result, &follows, &self.schedule);
        }
        follows
    }

    /// Nothing could be read since then, because no slot was free.
    fn waited_for_slot(&self, since: Instant) {
        if let Some(trace) = &self.trace {
            trace.waits().waited(WAITED_FOR_SLOT, since);
        }
    }

    /// Sleeps until there may be more to read, if that is asked for meanwhile.
    fn wait_for_reads(&self) {
        if let Some(feed) = self.schedule.feed().filter(|feed| feed.is_empty() && !feed.is_over()) {
            let started = Instant::now();
            // Heard or not: the state of the feed says what to do.
            let _ = feed.bell().recv_timeout(CANCEL_POLL);
            feed.note_idle(started.elapsed());
            if let Some(trace) = &self.trace {
                trace.waits().waited(WAITED_FOR_READS, started);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.schedule.is_done() || self.schedule.failure().is_some()
    }

    /// A read is done, its last bytes by `access`: hands its slot on.
    fn deliver(
        &mut self,
        slot: Slot<Filling>,
        read: usize,
        spec: &ReadSpec,
        bytes: u32,
        access: Access,
    ) {
        self.tidy_cache(spec, access);
        let filled = Filled { read, slot: slot.filled(bytes as usize) };
        if self.full.send(filled).is_err() {
            self.schedule.stop(ReadFailure::general(FailureKind::ReceiverGone));
        }
    }

    /// After a read that fell down to the page cache: leave nothing behind there that the plan
    /// did not mean to leave.
    fn tidy_cache(&self, spec: &ReadSpec, access: Access) {
        if access == Access::Buffered && bypasses_cache(spec) {
            let end = spec.offset + u64::from(spec.bytes);
            // Advice: where it is refused the cache stays warm, which harms nobody's bytes.
            let _ = drop_cached(self.files[spec.file].buffered(), spec.offset..end);
        }
    }
}

fn bypasses_cache(spec: &ReadSpec) -> bool {
    matches!(spec.access, Access::Direct | Access::DontCache)
}

/// Once more for files that were never read past the page cache after all: the readahead of a
/// later read brings pages back that an earlier one had let go of.
fn sweep_cache(files: &[ModelFile], schedule: &Schedule) {
    let fell = |file: usize| {
        let received = schedule.received(file);
        received.get(Access::Buffered) > 0 && received.get(Access::Direct) == 0
    };
    let fell: Vec<bool> = (0..files.len()).map(fell).collect();
    let mut swept: Vec<(usize, Range<u64>)> = Vec::new();
    for spec in schedule.reads().iter().filter(|spec| fell[spec.file] && bypasses_cache(spec)) {
        let end = spec.offset + u64::from(spec.bytes);
        match swept.last_mut() {
            Some((file, range)) if *file == spec.file && range.end >= spec.offset => {
                range.end = range.end.max(end);
            }
            _ => swept.push((spec.file, spec.offset..end)),
        }
    }
    for (file, range) in swept {
        // Advice, as in `tidy_cache`.
        let _ = drop_cached(files[file].buffered(), range);
    }
}

fn cancelled() -> ReadFailure {
    ReadFailure::general(FailureKind::Cancelled)
}

fn tampered(
    fault: &mut Option<Box<dyn Fault>>,
    op: &Op,
    result: Result<u32, Errno>,
    slot: &mut Slot<Filling>,
) -> Result<u32, Errno> {
    match fault {
        None => result,
        Some(fault) => {
            let start = op.slot_offset as usize;
            fault.tamper(op, result, &mut slot.buffer()[start..start + op.bytes as usize])
        }
    }
}

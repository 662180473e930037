//! io_uring through the tokio-uring runtime of the thread, for callers who live on one.
//!
//! The job is a task among the runtime's others: it begins reads, sleeps, and is woken by a
//! completion, a slot that comes back, a read that is asked for, or the time to look whether it is
//! cancelled. Slots are registered as a [`FixedBufRegistry`] over the slab; a runtime has room for
//! one, and whoever finds it taken reads without.
//!
//! **Memory outlives what is in flight.** The runtime can't call reads back, and parks what belongs
//! to one whose future is dropped until the kernel is done with it. So what is given to it owns the
//! memory: the registry's buffers hold the slab, and [`Lone`] holds the slot itself. That does for
//! all but the end of the runtime: tokio-uring 0.5 lets go of what it has parked before it cancels
//! the reads and waits for them. A job that is dropped by that leaves the memory of its reads to the
//! registry, which the runtime lets go of last; without one, to the thread ([`LEFT`]), which lets go
//! of it when the next job begins there, or when it ends: by then that runtime is gone, since a
//! runtime ends on its own thread. A job that is dropped while its runtime goes on leaves its reads
//! to a task.

use super::{ReadJob, ReadOutcome, ReadStats, WAITED_FOR_READS, WAITED_FOR_SLOT, cancelled};
use super::{tampered, uring_support};
use crate::cancel::CANCEL_POLL;
use crate::failure::{FailureKind, ReadFailure};
use crate::file::ModelFile;
use crate::ladder::{Access, Performer, Rung, StepAt};
use crate::schedule::{Completion, Op};
use crossbeam_channel::TryRecvError;
use forebay_mem::{Filling, Slab, Slot, SlotMemory};
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use nix::errno::Errno;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;

thread_local! {
    /// Memory that reads of a runtime that is ending may be written to, where no registry has it.
    static LEFT: RefCell<Vec<SlotMemory>> = const { RefCell::new(Vec::new()) };
}

/// The smallest ring that the runtime is given where it is ours.
const ENTRIES_MIN: u32 = 8;

/// Before a read is tried again that the kernel has put off.
const PATIENCE: Duration = Duration::from_millis(1);

/// A read that has completed: its slot comes back with the answer.
type Completed = (Op, Slot<Filling>, Result<u32, Errno>);

/// As [`run`], on a runtime of our own that ends with the job.
pub(super) fn run_alone(job: &mut ReadJob, stats: &mut ReadStats) -> Vec<Slot<Filling>> {
    let depth = u32::try_from(job.queue_depth).unwrap_or(u32::MAX);
    // A runtime whose ring is refused leaks what it had before.
    if let Err(errno) = uring_support() {
        let reason = "io_uring can't be set up here";
        job.schedule.leave_performer(errno, StepAt::Setup, None, reason);
        return Vec::new();
    }
    let mut ring = tokio_uring::uring_builder();
    ring.setup_clamp().dontfork();
    let mut builder = tokio_uring::builder();
    builder.entries(depth.max(ENTRIES_MIN)).uring_builder(&ring);
    match tokio_uring::Runtime::new(&builder) {
        Ok(runtime) => runtime.block_on(run(job, stats)),
        Err(error) => {
            let reason = "a tokio-uring runtime can't be set up here";
            job.schedule.leave_performer(errno(&error), StepAt::Setup, None, reason);
            Vec::new()
        }
    }
}

/// Performs the job's operations until all is done, it has stopped, or io_uring turns out not to
/// serve. Returns the slots whose reads are unfinished in the last case.
pub(super) async fn run(job: &mut ReadJob, stats: &mut ReadStats) -> Vec<Slot<Filling>> {
    let mut carried = Vec::new();
    LEFT.take();
    let files = match Files::open(&job.files) {
        Ok(files) => files,
        Err(errno) => {
            let reason = "no descriptors for the runtime";
            job.schedule.leave_performer(errno, StepAt::Setup, None, reason);
            return carried;
        }
    };
    let slots = job.slab.slots();
    let (reads, memory) = (FuturesUnordered::new(), (0..slots).map(|_| None).collect());
    let runtime = tokio::runtime::Handle::current().id();
    let left = Rc::default();
    let mut flights =
        Flights { files, buffers: None, reads, memory, left: Rc::clone(&left), runtime };
    let slab_slot =
        |index| SlabSlot { slab: Arc::clone(&job.slab), index, _left: Rc::clone(&left) };
    let registry = FixedBufRegistry::new((0..slots).map(slab_slot));
    match registry.register() {
        Ok(()) => flights.buffers = Some(registry),
        Err(error) => {
            let (from, to) = (Rung::RegisteredBuffers, Rung::PlainBuffers);
            let reason = "the slab can't be registered (RLIMIT_MEMLOCK, or another load has?)";
            job.schedule.note_setup(from, to, errno(&error), reason);
        }
    }
    stats.registered_buffers = flights.buffers.is_some();
    while step(job, &mut flights, stats, &mut carried).await {}
    carried
}

/// One turn: begins what can be begun, waits, takes what has come. `false` at the end.
async fn step(
    job: &mut ReadJob,
    flights: &mut Flights,
    stats: &mut ReadStats,
    carried: &mut Vec<Slot<Filling>>,
) -> bool {
    if job.cancel.is_cancelled() {
        job.schedule.stop(cancelled());
    }
    let leaving = job.schedule.performer() != Performer::TokioUring;
    let mut lacks_slot = false;
    if job.is_over() || leaving {
        // The runtime calls no read back: the rest of them is waited for.
        if flights.reads.is_empty() {
            return false;
        }
    } else {
        lacks_slot = begin(job, flights);
    }
    let started = Instant::now();
    let idle = flights.reads.is_empty();
    if let Some(completed) = wait(job, flights, lacks_slot).await {
        settle(job, flights, completed, carried);
    } else if idle {
        note_idle(job, stats, lacks_slot, started);
    }
    true
}

/// Begins reads while there are slots for them; whether one was lacking.
fn begin(job: &mut ReadJob, flights: &mut Flights) -> bool {
    let depth = job.queue_depth.clamp(1, job.slab.slots().max(1));
    while flights.reads.len() < depth && job.schedule.has_next() {
        let slot = match job.free.take(job.schedule.next_read()) {
            Ok(slot) => slot.fill(),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => {
                job.schedule.stop(ReadFailure::general(FailureKind::ReceiverGone));
                return false;
            }
        };
        let Some(op) = job.schedule.start(slot.index()) else {
            // It was taken back meanwhile, or everything has stopped.
            job.free.put_back(slot.abandon());
            return false;
        };
        flights.push(job.aim(slot, op.read), op);
        job.began(&op);
    }
    false
}

/// Sleeps until a read has completed, or until there may be something to begin or to notice.
async fn wait(job: &mut ReadJob, flights: &mut Flights, lacks_slot: bool) -> Option<Completed> {
    let mut look_around = pin!(tokio::time::sleep(CANCEL_POLL));
    let schedule = &job.schedule;
    let ended = schedule.failure().is_some() || schedule.is_all_started();
    let feed = schedule.feed().filter(|_| !ended && !schedule.has_next()).cloned();
    poll_fn(|context| {
        if let Poll::Ready(Some(completed)) = flights.reads.poll_next_unpin(context) {
            return Poll::Ready(Some(completed));
        }
        let slot = lacks_slot && job.free.poll(context.waker());
        let read = feed.as_ref().is_some_and(|feed| feed.poll(context.waker()));
        if slot || read || look_around.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

/// Nothing was in flight since then.
fn note_idle(job: &ReadJob, stats: &mut ReadStats, lacks_slot: bool, since: Instant) {
    let waited = since.elapsed();
    let feed = job.schedule.feed();
    let name = if lacks_slot {
        stats.waited_for_slot += waited;
        feed.iter().for_each(|feed| feed.note_waited(waited));
        WAITED_FOR_SLOT
    } else {
        feed.iter().for_each(|feed| feed.note_idle(waited));
        WAITED_FOR_READS
    };
    job.trace.iter().for_each(|trace| trace.waits().waited(name, since));
}

/// Hands a completion to the schedule and does what it says.
fn settle(
    job: &mut ReadJob,
    flights: &mut Flights,
    (op, mut slot, result): Completed,
    carried: &mut Vec<Slot<Filling>>,
) {
    flights.memory[slot.index()] = None;
    let result = tampered(&mut job.fault, &op, result, &mut slot);
    match job.complete(&op, result) {
        Completion::Done { read, spec, bytes } => {
            job.deliver(slot, read, &spec, bytes, op.access);
        }
        Completion::Again(op) if job.schedule.performer() == Performer::TokioUring => {
            flights.push(slot, op);
        }
        Completion::Again(_) => carried.push(slot),
        Completion::Stop => {}
    }
}

/// What is in flight.
struct Flights {
    files: Vec<Files>,
    buffers: Option<FixedBufRegistry<SlabSlot>>,
    reads: FuturesUnordered<LocalBoxFuture<'static, Completed>>,
    /// By slot: what a read of it writes to.
    memory: Vec<Option<SlotMemory>>,
    /// What the registry holds beside the slab, once this is dropped with reads in flight.
    left: Left,
    runtime: tokio::runtime::Id,
}

type Left = Rc<RefCell<Vec<SlotMemory>>>;

impl Flights {
    /// Begins an operation, once the task is polled next.
    fn push(&mut self, slot: Slot<Filling>, op: Op) {
        let end = op.slot_offset as usize + op.bytes as usize;
        assert!(end <= slot.capacity(), "a read past its slot: {op:?}");
        let files = &self.files[op.file];
        let direct = files.direct.as_ref().filter(|_| op.access == Access::Direct);
        let file = Rc::clone(direct.unwrap_or(&files.buffered));
        let buffers = self.buffers.as_ref().filter(|_| !slot.is_aimed());
        let fixed = buffers.and_then(|buffers| buffers.check_out(slot.index()));
        if slot.is_aimed() || (op.access == Access::Direct && fixed.is_none()) {
            slot.populate();
        }
        self.memory[slot.index()] = Some(slot.memory());
        let range = op.slot_offset as usize..end;
        self.reads.push(Box::pin(async move {
            if op.patient {
                tokio::time::sleep(PATIENCE).await;
            }
            let (answer, slot) = match fixed {
                Some(fixed) => {
                    let (answer, _) = file.read_fixed_at(fixed.slice(range), op.offset).await;
                    (answer, slot)
                }
                None => {
                    let (answer, lone) = file.read_at(Lone { slot, range }, op.offset).await;
                    (answer, lone.slot)
                }
            };
            let count = answer.map(|count| u32::try_from(count).unwrap_or(u32::MAX));
            (op, slot, count.map_err(|error| errno(&error)))
        }));
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        let memory: Vec<_> = self.memory.iter_mut().filter_map(Option::take).collect();
        let current = tokio::runtime::Handle::try_current();
        if current.is_ok_and(|current| current.id() == self.runtime) {
            let mut reads = std::mem::take(&mut self.reads);
            let buffers = self.buffers.take();
            let unregister = move || {
                // Nothing of it is in flight any more.
                buffers.iter().for_each(|buffers| drop(buffers.unregister()));
            };
            if reads.is_empty() {
                return unregister();
            }
            tokio_uring::spawn(async move {
                while reads.next().await.is_some() {}
                unregister();
                drop(memory);
            });
        } else if self.buffers.is_some() {
            self.left.borrow_mut().extend(memory);
        } else if LEFT.try_with(|left| left.borrow_mut().extend_from_slice(&memory)).is_err() {
            // The thread is at its end: nobody can tell whether the runtime is.
            memory.into_iter().for_each(std::mem::forget);
        }
    }
}

/// A file as the runtime reads it.
struct Files {
    direct: Option<Rc<File>>,
    buffered: Rc<File>,
}

impl Files {
    /// The runtime closes what it is given, so it is given descriptors of its own.
    fn open(files: &[ModelFile]) -> Result<Vec<Self>, Errno> {
        let own = |file: &std::fs::File| {
            let file = file.try_clone().map_err(|error| errno(&error))?;
            Ok(Rc::new(File::from_std(file)))
        };
        let open = |file: &ModelFile| {
            let direct = file.direct().ok().map(|(file, _)| own(file)).transpose()?;
            Ok(Self { direct, buffered: own(file.buffered())? })
        };
        files.iter().map(open).collect()
    }
}

/// A slot's memory, for the registry.
#[derive(Clone)]
struct SlabSlot {
    slab: Arc<Slab>,
    index: usize,
    _left: Left,
}

// SAFETY: the address is that of a slot of the slab, which stays where it is for as long as `self`
// holds the slab; the whole of it is initialised, since the kernel zeroes anonymous memory. Only
// the read of the slot's one token, which its future holds, writes there.
unsafe impl IoBuf for SlabSlot {
    fn stable_ptr(&self) -> *const u8 {
        self.slab.region().at(self.index * self.slab.slot_bytes())
    }

    fn bytes_init(&self) -> usize {
        self.slab.slot_bytes()
    }

    fn bytes_total(&self) -> usize {
        self.slab.slot_bytes()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for SlabSlot {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.slab.region().at(self.index * self.slab.slot_bytes())
    }

    unsafe fn set_init(&mut self, _: usize) {}
}

/// A part of a slot that is not registered, or is aimed at a place: the runtime keeps the token for
/// as long as the kernel may write.
struct Lone {
    slot: Slot<Filling>,
    range: std::ops::Range<usize>,
}

// SAFETY: the address is the slot's (or its place's), which stays where it is and is this token's
// alone for as long as `self` lives; the range lies inside, as `Flights::push` checks, and is
// initialised, since the kernel zeroes anonymous memory.
unsafe impl IoBuf for Lone {
    fn stable_ptr(&self) -> *const u8 {
        self.slot.address().wrapping_add(self.range.start)
    }

    fn bytes_init(&self) -> usize {
        self.range.len()
    }

    fn bytes_total(&self) -> usize {
        self.range.len()
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Lone {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.slot.address().wrapping_add(self.range.start)
    }

    unsafe fn set_init(&mut self, _: usize) {}
}

/// Does the rest of a job on a thread of its own, since the runtime's must not be blocked.
pub(super) async fn elsewhere(
    job: ReadJob,
    finish: impl FnOnce(ReadJob) -> ReadOutcome + Send + 'static,
) -> ReadOutcome {
    let (sender, outcome) = tokio::sync::oneshot::channel();
    let shared = Arc::new(Mutex::new(Some((job, finish))));
    let taken = Arc::clone(&shared);
    let take = |from: &Mutex<Option<_>>| from.lock().unwrap_or_else(PoisonError::into_inner).take();
    let work = move || {
        if let Some((job, finish)) = take(&taken) {
            // Nobody may wait for it any more.
            let _ = sender.send(finish(job));
        }
    };
    let spawned = std::thread::Builder::new().name("forebay-read".to_owned()).spawn(work);
    match spawned {
        Ok(_) => outcome.await.expect("the thread sends what it has done, or has panicked"),
        Err(error) => {
            let (mut job, finish) = take(&shared).expect("no thread has taken it");
            job.schedule.stop(ReadFailure::general(FailureKind::Errno(errno(&error))));
            finish(job)
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

//! io_uring, driven from the thread that owns the ring.
//!
//! One thread submits and reaps, so the ring is SINGLE_ISSUER with deferred task work where the
//! kernel has them. The slab is registered once as fixed buffers, the descriptors as fixed
//! files; what the kernel refuses of that is done without and noted.
//!
//! **Drain before drop.** Closing a ring does not wait for its reads: the kernel would go on
//! writing into memory that somebody else has by then. So the tokens of all slots in flight sit
//! in [`Ring`], whose drop cancels, reaps to zero, unregisters, and only then lets tokens go. If
//! reaping itself fails, the memory is leaked rather than reused.

use super::threads::RWF_DONTCACHE;
use super::{ReadJob, ReadStats, cancelled, tampered};
use crate::cancel::CANCEL_POLL;
use crate::failure::{FailureKind, ReadFailure};
use crate::feed::Feed;
use crate::file::ModelFile;
use crate::ladder::{Access, Performer, Rung, StepAt};
use crate::schedule::{Completion, Op};
use crossbeam_channel::{RecvTimeoutError, TryRecvError};
use forebay_mem::{Filling, Slab, Slot};
use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

/// The kernel's limit for one registered buffer.
const REGISTERED_BUFFER_BYTES_MAX: usize = 1 << 30;
/// For polls: there is something to read.
const POLLIN: u32 = 1;
/// The identity of the cancel request among completions; slots count from zero.
const CANCEL_ID: u64 = u64::MAX;
/// That of waiting for more reads to be asked for.
const WAKE_ID: u64 = u64::MAX - 1;

/// Entries for the cancel request and for waiting.
const SPARE_ENTRIES: usize = 2;

/// What io_uring offers here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringSupport {
    /// SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1).
    pub deferred_taskrun: bool,
    /// Waiting with a timeout (Linux 5.11).
    pub timed_wait: bool,
}

/// Sets a ring up and takes it down again.
///
/// # Errors
/// `EPERM` where a sysctl or a seccomp filter forbids it, `ENOSYS` where the kernel or the filter
/// knows no such call, `ENOMEM` past RLIMIT_MEMLOCK on old kernels.
pub fn uring_support() -> Result<UringSupport, Errno> {
    let (ring, deferred_taskrun) = build(Performer::Uring, 4)?;
    Ok(UringSupport { deferred_taskrun, timed_wait: ring.params().is_feature_ext_arg() })
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The best ring for `performer` that the kernel gives: with deferred task work, or without.
fn build(performer: Performer, entries: u32) -> Result<(IoUring, bool), Errno> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().dontfork();
    if performer == Performer::UringPolled {
        builder.setup_iopoll();
    }
    let mut deferred = builder.clone();
    match deferred.setup_single_issuer().setup_defer_taskrun().build(entries) {
        Ok(ring) => Ok((ring, true)),
        Err(error) if errno(&error) == Errno::EINVAL => {
            builder.build(entries).map(|ring| (ring, false)).map_err(|error| errno(&error))
        }
        Err(error) => Err(errno(&error)),
    }
}

/// Performs the job's operations as `performer`, beginning with the slots that another one had
/// begun, until all is done, it has stopped, or this performer turns out not to serve. Returns the
/// slots whose reads are unfinished in the last case.
pub(super) fn run(
    job: &mut ReadJob,
    performer: Performer,
    begun: Vec<Slot<Filling>>,
    stats: &mut ReadStats,
) -> Vec<Slot<Filling>> {
    let depth = job.queue_depth.clamp(1, job.slab.slots().max(1));
    let entries = u32::try_from(depth + SPARE_ENTRIES).unwrap_or(u32::MAX);
    let (mut ring, depth) = match build(performer, entries) {
        Ok((ring, _)) => {
            // The kernel clamps the size.
            let depth = depth.min((ring.params().sq_entries() as usize) - SPARE_ENTRIES);
            let (slab, files) = (Arc::clone(&job.slab), Arc::clone(&job.files));
            let mut ring = Ring::new(ring, performer, slab, files);
            ring.feed = job.schedule.feed().cloned();
            ring.buffered_by_workers = job.buffered_by_workers;
            (ring, depth)
        }
        Err(errno) => {
            let reason = "io_uring can't be set up here";
            job.schedule.leave_performer(errno, StepAt::Setup, None, reason);
            return begun;
        }
    };
    if let Err(errno) = ring.register_buffers() {
        let (from, to) = (Rung::RegisteredBuffers, Rung::PlainBuffers);
        job.schedule.note_setup(from, to, errno, "the slab can't be pinned (RLIMIT_MEMLOCK?)");
    }
    if let Err(errno) = ring.register_files() {
        let (from, to) = (Rung::RegisteredFiles, Rung::PlainFiles);
        job.schedule.note_setup(from, to, errno, "descriptors can't be registered");
    }
    stats.registered_buffers = ring.slots_per_buffer.is_some();
    stats.registered_files = ring.has_files;
    for slot in begun {
        if let Some(op) = job.schedule.op(slot.index()) {
            ring.push(slot, op);
        }
    }
    let mut carried = Vec::new();
    while step(job, &mut ring, depth, stats, &mut carried) {}
    let drained = ring.drain();
    if let Some(errno) = ring.lost {
        // Their reads are bound to slots that nobody will complete: no other engine can finish.
        job.schedule.stop(ReadFailure::general(FailureKind::RingLost(errno)));
    }
    for (slot, result) in drained {
        settle(job, &mut ring, slot, result, &mut carried);
    }
    carried
}

/// One turn: start what can be started, wait for something, take what came. `false` at the end.
fn step(
    job: &mut ReadJob,
    ring: &mut Ring,
    depth: usize,
    stats: &mut ReadStats,
    carried: &mut Vec<Slot<Filling>>,
) -> bool {
    if job.cancel.is_cancelled() {
        job.schedule.stop(cancelled());
    }
    let leaving = job.schedule.performer() != ring.performer;
    if job.is_over() || (leaving && ring.in_flight == 0) {
        return false;
    }
    while job.schedule.performer() == ring.performer
        && ring.in_flight < depth
        && job.schedule.has_next()
    {
        let Some(slot) = free_slot(job, ring.in_flight == 0, stats) else { break };
        match job.schedule.start(slot.index()) {
            Some(op) => {
                let slot = job.aim(slot, op.read);
                job.began(&op);
                match job.schedule.performer() == ring.performer {
                    true => ring.push(slot, op),
                    false => carried.push(slot),
                }
            }
            // It was taken back meanwhile, or everything has stopped.
            None => {
                job.free.put_back(slot.abandon());
                break;
            }
        }
    }
    if ring.in_flight == 0 {
        job.wait_for_reads();
        return true;
    }
    ring.wake_for_reads();
    if let Err(errno) = ring.submit_and_wait() {
        job.schedule.leave_performer(errno, StepAt::Read, None, "io_uring_enter failed");
        return false;
    }
    for (slot, result) in ring.reap() {
        settle(job, ring, slot, result, carried);
    }
    true
}

/// The next free slot; waits for one only if nothing else could happen meanwhile.
fn free_slot(job: &mut ReadJob, wait: bool, stats: &mut ReadStats) -> Option<Slot<Filling>> {
    let mut taken = job.free.take(job.schedule.next_read()).map_err(|error| match error {
        TryRecvError::Empty => RecvTimeoutError::Timeout,
        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
    });
    if wait && matches!(taken, Err(RecvTimeoutError::Timeout)) {
        let started = Instant::now();
        taken = job.free.wait(CANCEL_POLL);
        stats.waited_for_slot += started.elapsed();
        if let Some(feed) = job.schedule.feed() {
            feed.note_waited(started.elapsed());
        }
        job.waited_for_slot(started);
    }
    if matches!(taken, Err(RecvTimeoutError::Disconnected)) {
        job.schedule.stop(ReadFailure::general(FailureKind::ReceiverGone));
    }
    taken.ok().map(Slot::fill)
}

/// Hands a completion to the schedule and does what it says.
fn settle(
    job: &mut ReadJob,
    ring: &mut Ring,
    mut slot: Slot<Filling>,
    result: Result<u32, Errno>,
    carried: &mut Vec<Slot<Filling>>,
) {
    let Some(op) = ring.ops[slot.index()].take() else { return };
    let result = tampered(&mut job.fault, &op, result, &mut slot);
    match job.complete(&op, result) {
        Completion::Done { read, spec, bytes } => {
            job.deliver(slot, read, &spec, bytes, op.access);
        }
        Completion::Again(op) if job.schedule.performer() == ring.performer => {
            ring.push(slot, op);
        }
        Completion::Again(_) => carried.push(slot),
        Completion::Stop => {}
    }
}

/// The ring with everything that must outlive its operations.
struct Ring {
    ring: IoUring,
    /// Which of the two kinds of ring it is.
    performer: Performer,
    /// The memory that operations write to; also held by every token in `slots`.
    slab: Arc<Slab>,
    files: Arc<[ModelFile]>,
    /// By file, the most that is read at once, if this polls. Of a read that it would have to split
    /// Linux before 6.3 says "try again" for ever (seen on 6.1, in `tests/vm/kernels`); later ones
    /// don't poll for it.
    polled_bytes: Vec<u32>,
    /// Tokens of the slots that the kernel may be writing to, by slot index.
    slots: Vec<Option<Slot<Filling>>>,
    ops: Vec<Option<Op>>,
    in_flight: usize,
    /// Why the ring stopped answering while the kernel had reads; their slots are leaked.
    lost: Option<Errno>,
    /// How many slots share a registered buffer; `None` if there are none registered.
    slots_per_buffer: Option<usize>,
    has_files: bool,
    has_timed_wait: bool,
    buffered_by_workers: bool,
    /// Where reads come from, if they are asked for meanwhile.
    feed: Option<Feed>,
    /// Whether the ring answers when more are.
    is_listening: bool,
}

impl Ring {
    fn new(ring: IoUring, performer: Performer, slab: Arc<Slab>, files: Arc<[ModelFile]>) -> Self {
        let slots = slab.slots();
        let polled_bytes = match performer {
            Performer::UringPolled => {
                files.iter().map(|file| file.polled_bytes().unwrap_or(u32::MAX)).collect()
            }
            _ => Vec::new(),
        };
        Self {
            polled_bytes,
            has_timed_wait: ring.params().is_feature_ext_arg(),
            ring,
            performer,
            slab,
            files,
            slots: (0..slots).map(|_| None).collect(),
            ops: vec![None; slots],
            in_flight: 0,
            lost: None,
            slots_per_buffer: None,
            has_files: false,
            buffered_by_workers: false,
            feed: None,
            is_listening: false,
        }
    }

    fn register_buffers(&mut self) -> Result<(), Errno> {
        let slot_bytes = self.slab.slot_bytes();
        let slots_per_buffer = (REGISTERED_BUFFER_BYTES_MAX / slot_bytes).max(1);
        let buffers: Vec<libc::iovec> = (0..self.slab.slots())
            .step_by(slots_per_buffer)
            .map(|first| {
                let slots = slots_per_buffer.min(self.slab.slots() - first);
                let start = self.slab.region().at(first * slot_bytes);
                libc::iovec { iov_base: start.cast(), iov_len: slots * slot_bytes }
            })
            .collect();
        // SAFETY: the buffers lie in the slab, which `self` keeps alive until they are
        // unregistered in `drop`; the kernel writes to them only for operations pushed below.
        let answer = unsafe { self.ring.submitter().register_buffers(&buffers) };
        answer.map_err(|error| errno(&error))?;
        self.slots_per_buffer = Some(slots_per_buffer);
        Ok(())
    }

    fn register_files(&mut self) -> Result<(), Errno> {
        let descriptors: Vec<i32> = (self.files.iter())
            .flat_map(|file| {
                let direct = file.direct().map_or(-1, |(file, _)| file.as_raw_fd());
                [direct, file.buffered().as_raw_fd()]
            })
            .collect();
        let answer = self.ring.submitter().register_files(&descriptors);
        answer.map_err(|error| errno(&error))?;
        self.has_files = true;
        Ok(())
    }

    /// Queues an operation. The token stays here until its completion is reaped.
    fn push(&mut self, slot: Slot<Filling>, op: Op) {
        let end = op.slot_offset as usize + op.bytes as usize;
        assert!(end <= slot.capacity(), "a read past its slot: {op:?}");
        if slot.is_aimed() || (op.access == Access::Direct && self.slots_per_buffer.is_none()) {
            slot.populate();
        }
        let entry = self.entry(&slot, &op);
        let index = slot.index();
        self.slots[index] = Some(slot);
        self.ops[index] = Some(op);
        self.in_flight += 1;
        // SAFETY: the entry's memory is the slot's, whose token was just put into `self.slots`
        // and leaves it only in `reap`, after the kernel's completion; its descriptor belongs to
        // `self.files`. Dropping `self` drains first.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has an entry for every read in flight");
    }

    fn entry(&self, slot: &Slot<Filling>, op: &Op) -> squeue::Entry {
        let address = slot.address().wrapping_add(op.slot_offset as usize);
        let direct = op.access == Access::Direct;
        let flags = if op.access == Access::DontCache { RWF_DONTCACHE } else { 0 };
        let registered = u32::try_from(2 * op.file + usize::from(!direct));
        let file = &self.files[op.file];
        let bytes = self.polled_bytes.get(op.file).map_or(op.bytes, |&most| op.bytes.min(most));
        let file = file.direct().ok().filter(|_| direct).map_or(file.buffered(), |(file, _)| file);
        let descriptor = Fd(file.as_raw_fd());
        let registered_buffers = self.slots_per_buffer.filter(|_| !slot.is_aimed());
        let buffer = registered_buffers.and_then(|slots| u16::try_from(op.slot / slots).ok());
        macro_rules! read {
            ($file:expr) => {
                match buffer {
                    Some(buffer) => opcode::ReadFixed::new($file, address, bytes, buffer)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Read::new($file, address, bytes)
                        .offset(op.offset)
                        .rw_flags(flags)
                        .build(),
                }
            };
        }
        let entry = match registered {
            Ok(index) if self.has_files => read!(Fixed(index)),
            _ => read!(descriptor),
        };
        // "Try again" came back: let a kernel thread wait instead of us asking in a circle.
        let by_worker = op.patient || (self.buffered_by_workers && op.access == Access::Buffered);
        let entry = if by_worker { entry.flags(squeue::Flags::ASYNC) } else { entry };
        entry.user_data(op.slot as u64)
    }

    /// Makes the ring answer when more reads are asked for. One that polls knows no such request:
    /// there they are noticed at the next completion.
    fn wake_for_reads(&mut self) {
        if self.performer == Performer::UringPolled {
            return;
        }
        let wake = self.feed.as_ref().and_then(Feed::wake_descriptor);
        let Some(descriptor) = wake.filter(|_| !self.is_listening) else { return };
        let entry = opcode::PollAdd::new(Fd(descriptor), POLLIN).build().user_data(WAKE_ID);
        // SAFETY: a poll refers to no memory, and `self.feed` keeps the descriptor open. Without
        // room for it, reads are noticed at the next completion.
        self.is_listening = unsafe { self.ring.submission().push(&entry) }.is_ok();
    }

    /// Submits what is queued and waits for a completion, or until it is time to look around.
    fn submit_and_wait(&mut self) -> Result<(), Errno> {
        let waited = if self.has_timed_wait {
            let timeout = Timespec::from(CANCEL_POLL);
            let arguments = SubmitArgs::new().timespec(&timeout);
            self.ring.submitter().submit_with_args(1, &arguments)
        } else {
            self.ring.submit_and_wait(1)
        };
        match waited.map_err(|error| errno(&error)) {
            Ok(_) | Err(Errno::ETIME | Errno::EINTR | Errno::EBUSY | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Takes the slots whose operations have completed, with what became of them.
    fn reap(&mut self) -> Vec<(Slot<Filling>, Result<u32, Errno>)> {
        let mut reaped = Vec::new();
        for entry in self.ring.completion() {
            if entry.user_data() == WAKE_ID {
                self.is_listening = false;
                self.feed.iter().for_each(Feed::heard);
                continue;
            }
            let index = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(slot) = self.slots.get_mut(index).and_then(Option::take) else {
                continue; // The answer to the cancel request.
            };
            self.in_flight -= 1;
            let result = entry.result();
            let result = u32::try_from(result).map_err(|_| Errno::from_raw(-result));
            reaped.push((slot, result));
        }
        reaped
    }

    /// Cancels what is in flight, waits until the kernel has let go of all of it, and yields what
    /// came of it. Afterwards nothing is in flight.
    fn drain(&mut self) -> Vec<(Slot<Filling>, Result<u32, Errno>)> {
        let mut drained = Vec::new();
        let mut cancels = 0;
        if self.in_flight > 0 {
            let cancel = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
            // SAFETY: a cancel request refers to no memory. If the queue has no room for it, the
            // reads just run to their end.
            let pushed = unsafe { self.ring.submission().push(&cancel.user_data(CANCEL_ID)) };
            cancels = usize::from(pushed.is_ok());
        }
        while self.in_flight > 0 {
            let waited = self.submit_and_wait();
            drained.extend(self.reap());
            if let Err(errno) = waited {
                drained.extend(self.give_up(errno, cancels));
            }
        }
        drained
    }

    /// The ring no longer answers. Reads that still stand in its queue (with `cancels` requests
    /// behind them) were never begun: they are called back. If the kernel took any, nobody can
    /// tell when it stops writing, and the memory is leaked.
    fn give_up(
        &mut self,
        errno: Errno,
        cancels: usize,
    ) -> Vec<(Slot<Filling>, Result<u32, Errno>)> {
        let queued = self.ring.submission().len().saturating_sub(cancels);
        // A poll may stand in the queue in place of a read that was taken.
        let untouched = queued == self.in_flight && !self.is_listening;
        self.in_flight = 0;
        let slots = self.slots.iter_mut().filter_map(Option::take);
        if untouched {
            return slots.map(|slot| (slot, Err(Errno::ECANCELED))).collect();
        }
        slots.for_each(Slot::leak);
        self.lost = Some(errno);
        Vec::new()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        drop(self.drain());
        // Closing a ring unpins its buffers some time later; asking unpins them now. An error
        // means that none are registered.
        let _ = self.ring.submitter().unregister_buffers();
        let _ = self.ring.submitter().unregister_files();
    }
}

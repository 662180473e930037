//! Blocking calls on several threads: `preadv2`, or copies out of a mapping.
//!
//! Every thread takes a free slot, asks the schedule under its lock what to do, does it outside
//! the lock, and stays with the slot until its read is done. The memory is never shared with the
//! kernel beyond a call, so there is nothing to drain.

use super::{ReadJob, ReadStats, WAITED_FOR_READS, WAITED_FOR_SLOT, cancelled, tampered};
use crate::cancel::CANCEL_POLL;
use crate::failure::{FailureKind, ReadFailure};
use crate::feed::Feed;
use crate::ladder::Access;
use crate::schedule::{Completion, Op, Schedule};
use crate::trace::ReadTrace;
use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, bounded};
use forebay_mem::{Filling, Slot};
use nix::errno::Errno;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// More threads than this only queue up in the kernel.
pub const THREADS_MAX: usize = 16;

/// `RWF_DONTCACHE`, Linux 6.14.
pub(super) const RWF_DONTCACHE: i32 = 0x80;

struct Shared {
    job: Mutex<ReadJob>,
    /// Dropped when nothing more will be started, which wakes the threads that wait for a slot.
    starting: Mutex<Option<Sender<()>>>,
    all_started: Receiver<()>,
    carried: Mutex<Vec<Slot<Filling>>>,
    threads: u32,
    waited_ns: AtomicU64,
    reclaimed_bytes: AtomicU64,
}

impl Shared {
    fn note_waited(&self, waited: Duration, feed: Option<&Feed>) {
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(waited_ns, Ordering::Relaxed);
        if let Some(feed) = feed {
            feed.note_waited(waited / self.threads);
        }
    }

    fn start_no_more(&self) {
        drop(self.starting.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Performs what is left of the job, beginning with the slots that another engine had begun.
pub(super) fn run(job: ReadJob, carried: Vec<Slot<Filling>>) -> (Schedule, ReadStats) {
    let threads = job.queue_depth.clamp(1, THREADS_MAX);
    let (starting, all_started) = bounded(0);
    let shared = Shared {
        job: Mutex::new(job),
        starting: Mutex::new(Some(starting)),
        all_started,
        carried: Mutex::new(carried),
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        waited_ns: AtomicU64::new(0),
        reclaimed_bytes: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            let builder = std::thread::Builder::new().name("forebay-pread".to_owned());
            // Past a limit of threads or of address space, those that there are do it all.
            if builder.spawn_scoped(scope, || work(&shared)).is_err() {
                break;
            }
        }
        work(&shared);
    });
    let waited_ns = shared.waited_ns.load(Ordering::Relaxed) / threads as u64;
    let stats = ReadStats {
        waited_for_slot: Duration::from_nanos(waited_ns),
        reclaimed_bytes: shared.reclaimed_bytes.load(Ordering::Relaxed),
        ..ReadStats::default()
    };
    (shared.job.into_inner().unwrap_or_else(PoisonError::into_inner).schedule, stats)
}

fn work(shared: &Shared) {
    while let Some((slot, op)) = next(shared) {
        perform_whole_read(shared, slot, op);
    }
}

/// A slot and its first operation; `None` when there is nothing left to start.
fn next(shared: &Shared) -> Option<(Slot<Filling>, Op)> {
    let lock = || shared.job.lock().unwrap_or_else(PoisonError::into_inner);
    let carried = shared.carried.lock().unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(slot) = carried {
        let op = lock().schedule.op(slot.index())?;
        return Some((slot, op));
    }
    let (free, feed, waits) = {
        let job = lock();
        let waits = job.trace.as_ref().map(ReadTrace::waits);
        (job.free.channel().clone(), job.schedule.feed().cloned(), waits)
    };
    let note = |name, since| waits.iter().for_each(|waits| waits.waited(name, since));
    let mut for_slot = Select::new();
    for_slot.recv(&free);
    for_slot.recv(&shared.all_started);
    let mut for_read = Select::new();
    for_read.recv(&shared.all_started);
    if let Some(feed) = &feed {
        for_read.recv(feed.bell());
    }
    let mut waited = Duration::ZERO;
    loop {
        // A statement of its own: the lock must not outlive it into the waits below.
        let begun = begin(shared, &mut lock());
        let started = Instant::now();
        match begun {
            Begin::Started(slot, op) => {
                shared.note_waited(waited, feed.as_ref());
                return Some((slot, op));
            }
            Begin::Over => {
                shared.start_no_more();
                return None;
            }
            // Whatever wakes us, or nothing in time: the state of the job says what to do.
            Begin::NoSlot => {
                let _ = for_slot.ready_timeout(CANCEL_POLL);
                waited += started.elapsed();
                note(WAITED_FOR_SLOT, started);
            }
            Begin::NoRead => {
                if let (Ok(1), Some(feed)) = (for_read.ready_timeout(CANCEL_POLL), &feed) {
                    // One that rang for several threads was answered by another.
                    let _ = feed.bell().try_recv();
                }
                if let Some(feed) = &feed {
                    feed.note_idle(started.elapsed() / shared.threads);
                }
                note(WAITED_FOR_READS, started);
            }
        }
    }
}

/// What came of trying to begin a read.
enum Begin {
    Started(Slot<Filling>, Op),
    NoSlot,
    /// There may be some later.
    NoRead,
    /// All reads are started, or the job has stopped.
    Over,
}

/// Takes a free slot and starts a read in it, both under one lock: a thread that took a slot and
/// then found nothing left to start would have nowhere to put it back.
fn begin(shared: &Shared, job: &mut ReadJob) -> Begin {
    if job.cancel.is_cancelled() {
        job.schedule.stop(cancelled());
    }
    if job.schedule.is_all_started() || job.schedule.failure().is_some() {
        return Begin::Over;
    }
    if !job.schedule.has_next() {
        return Begin::NoRead;
    }
    let slot = match job.free.take_any() {
        Ok(slot) => slot.fill(),
        Err(TryRecvError::Empty) => return Begin::NoSlot,
        Err(TryRecvError::Disconnected) => {
            job.schedule.stop(ReadFailure::general(FailureKind::ReceiverGone));
            return Begin::Over;
        }
    };
    let Some(op) = job.schedule.start(slot.index()) else {
        // It was taken back meanwhile.
        job.free.put_back(slot.abandon());
        return Begin::NoRead;
    };
    if job.schedule.is_all_started() {
        shared.start_no_more();
    }
    Begin::Started(job.aim(slot, op.read), op)
}

fn perform_whole_read(shared: &Shared, mut slot: Slot<Filling>, mut op: Op) {
    loop {
        let result = perform(shared, &mut slot, &op);
        let mut job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        let result = tampered(&mut job.fault, &op, result, &mut slot);
        if job.cancel.is_cancelled() {
            job.schedule.stop(cancelled());
        }
        match job.complete(&op, result) {
            Completion::Done { read, spec, bytes } => {
                job.deliver(slot, read, &spec, bytes, op.access);
                return;
            }
            Completion::Again(again) => op = again,
            Completion::Stop => return shared.start_no_more(),
        }
    }
}

fn perform(shared: &Shared, slot: &mut Slot<Filling>, op: &Op) -> Result<u32, Errno> {
    if op.patient {
        std::thread::sleep(Duration::from_micros(50));
    }
    if op.access == Access::Direct || slot.is_aimed() {
        slot.populate();
    }
    let start = op.slot_offset as usize;
    let buffer = &mut slot.buffer()[start..start + op.bytes as usize];
    let (files, mapping, reclaim) = {
        let mut job = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        job.began(op);
        let mapping = job.mappings.get(op.file).cloned().flatten();
        let reclaim = job.reclaim.get(op.read).cloned().unwrap_or_default();
        (std::sync::Arc::clone(&job.files), mapping, reclaim)
    };
    let file = &files[op.file];
    match op.access {
        Access::Mapped => {
            let mapping = mapping.ok_or(Errno::EOPNOTSUPP)?;
            mapping.read_into(op.offset, buffer).map_err(|error| error.errno)?;
            for range in reclaim {
                let bytes = mapping.reclaim(range).unwrap_or(0);
                shared.reclaimed_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(op.bytes)
        }
        Access::Direct => preadv2(file.direct()?.0, buffer, op.offset, 0),
        Access::DontCache => preadv2(file.buffered(), buffer, op.offset, RWF_DONTCACHE),
        Access::Buffered => preadv2(file.buffered(), buffer, op.offset, 0),
    }
}

pub(super) fn preadv2(
    file: &std::fs::File,
    buffer: &mut [u8],
    offset: u64,
    flags: i32,
) -> Result<u32, Errno> {
    let vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the vector describes `buffer`, which this call borrows uniquely until it returns,
    // and the kernel keeps no reference past that.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, offset, flags) };
    Errno::result(count).map(|count| u32::try_from(count).unwrap_or(u32::MAX))
}

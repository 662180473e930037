//! Reads that are asked for while others run.

use crate::bell::Bell;
use crate::schedule::ReadSpec;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crossbeam_channel::{Receiver, Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

/// A queue of reads for a job that goes on until the feed is closed. Clones share it.
///
/// The higher priority goes first, and among equals the one that was asked for first. A read that
/// no engine has begun can be taken back and has cost nothing.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Wakes an engine that has nothing in flight.
    ring: Sender<()>,
    bell: Receiver<()>,
    /// Wakes one that sleeps in its ring; without it, it notices at its next completion.
    wake: Option<EventFd>,
    /// Wakes one that is a task.
    task: Bell,
    idle_ns: AtomicU64,
    waited_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    reads: BTreeMap<(Reverse<i32>, u64), (usize, ReadSpec)>,
    pushed: u64,
    is_closed: bool,
}

impl Default for Feed {
    fn default() -> Self {
        let (ring, bell) = bounded(1);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = EventFd::from_flags(flags).ok();
        let (idle_ns, waited_ns) = Default::default();
        let (queue, task) = (Mutex::default(), Bell::default());
        Self { shared: Arc::new(Shared { queue, ring, bell, wake, task, idle_ns, waited_ns }) }
    }
}

impl Feed {
    /// Asks for reads. Each is named by a number of the caller's, which is to be unlike those of all
    /// others that are under way.
    pub fn push(&self, priority: i32, reads: impl IntoIterator<Item = (usize, ReadSpec)>) {
        let mut queue = self.lock();
        for (read, spec) in reads {
            debug_assert!((1..=spec.bytes).contains(&spec.need_bytes));
            let key = (Reverse(priority), queue.pushed);
            queue.pushed += 1;
            queue.reads.insert(key, (read, spec));
        }
        drop(queue);
        self.wake();
    }

    /// Takes back those reads that no engine has begun, and names them.
    pub fn take_back(&self, is_wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        queue.reads.retain(|_, (read, _)| {
            let is_taken = is_wanted(*read);
            taken.extend(is_taken.then_some(*read));
            !is_taken
        });
        taken
    }

    /// Nothing more will be asked for: the job ends when it has read what it was asked to.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.wake();
    }

    /// How long the job had nothing to read, so far.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_nanos(self.shared.idle_ns.load(Ordering::Relaxed))
    }

    /// How long the job had reads to begin and no free slot for them, so far.
    #[must_use]
    pub fn waited_for_slot(&self) -> Duration {
        Duration::from_nanos(self.shared.waited_ns.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It rings already, or it counts already: whoever hears of it looks at the whole queue.
        let _ = self.shared.ring.try_send(());
        if let Some(wake) = &self.shared.wake {
            let _ = wake.write(1);
        }
        self.shared.task.ring();
    }

    /// The next read, which is begun by that.
    pub(crate) fn next(&self) -> Option<(usize, ReadSpec)> {
        let mut queue = self.lock();
        let next = queue.reads.pop_first().map(|(_, read)| read);
        if next.is_some() && !queue.reads.is_empty() {
            // The bell wakes one thread, and there is work for another.
            let _ = self.shared.ring.try_send(());
        }
        next
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().reads.is_empty()
    }

    pub(crate) fn is_over(&self) -> bool {
        let queue = self.lock();
        queue.is_closed && queue.reads.is_empty()
    }

    /// Whether there is something to begin, or nothing will come. If not, `waker` is woken when
    /// that changes.
    #[cfg(feature = "tokio-uring")]
    pub(crate) fn poll(&self, waker: &std::task::Waker) -> bool {
        self.shared.task.listen(waker);
        !self.is_empty() || self.is_over()
    }

    /// Rings when there may be something to begin.
    pub(crate) fn bell(&self) -> &Receiver<()> {
        &self.shared.bell
    }

    /// Becomes readable when there may be something to begin.
    pub(crate) fn wake_descriptor(&self) -> Option<RawFd> {
        self.shared.wake.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Makes the descriptor wait for the next time.
    pub(crate) fn heard(&self) {
        if let Some(wake) = &self.shared.wake {
            // It may have been read already.
            let _ = wake.read();
        }
    }

    pub(crate) fn note_idle(&self, time: Duration) {
        note(&self.shared.idle_ns, time);
    }

    pub(crate) fn note_waited(&self, time: Duration) {
        note(&self.shared.waited_ns, time);
    }
}

fn note(counter: &AtomicU64, time: Duration) {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    counter.fetch_add(ns, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::Access;

    fn read(offset: u64) -> ReadSpec {
        ReadSpec { file: 0, offset, bytes: 4096, need_bytes: 4096, access: Access::Direct }
    }

    #[test]
    fn the_urgent_goes_first_and_what_is_not_begun_can_be_taken_back() {
        let feed = Feed::default();
        feed.push(0, (0..4).map(|index| (index, read(index as u64))));
        feed.push(5, [(9, read(9)), (8, read(8))]);
        assert_eq!(feed.next().unwrap().0, 9);
        assert_eq!(feed.take_back(|read| read != 2 && read != 9), [8, 0, 1, 3]);
        feed.close();
        assert!(!feed.is_over());
        assert_eq!(feed.next().unwrap().0, 2);
        assert!(feed.next().is_none() && feed.is_over());
    }
}

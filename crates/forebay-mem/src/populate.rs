//! Pages ahead of the copies.
//!
//! The first touch of memory costs more than a copy, and on a virtual machine whose host has to
//! find the memory first, more than the read. So pages are populated in steps, in order, ahead of
//! the copies, by every thread that has nothing better to do: the populating threads claim one
//! step after the other, and a copier that has caught up with them claims steps too instead of
//! faulting in memory that another thread is populating at that moment.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Two huge pages: few calls, and little to wait for when another thread has claimed a step.
const STEP_BYTES: usize = 4 << 20;

/// Which parts of a region have been populated. `populate` gives a range its pages, or says that
/// it can't.
#[derive(Debug)]
pub(crate) struct Populated {
    bytes: usize,
    claimed_steps: AtomicUsize,
    done: Box<[AtomicBool]>,
    /// The kernel can't: pages come at first touch.
    refused: AtomicBool,
}

impl Populated {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            claimed_steps: AtomicUsize::new(0),
            done: (0..bytes.div_ceil(STEP_BYTES)).map(|_| AtomicBool::new(false)).collect(),
            refused: AtomicBool::new(false),
        }
    }

    /// Populates the next step that nobody has claimed; `false` if there is none.
    pub(crate) fn populate_next(&self, populate: impl Fn(Range<usize>) -> bool) -> bool {
        let step = self.claimed_steps.fetch_add(1, Ordering::Relaxed);
        if step >= self.done.len() {
            // Keeps the counter from ever wrapping.
            self.claimed_steps.store(self.done.len(), Ordering::Relaxed);
            return false;
        }
        let start = step * STEP_BYTES;
        if !populate(start..(start + STEP_BYTES).min(self.bytes)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        self.done[step].store(true, Ordering::Relaxed);
        !self.refused.load(Ordering::Relaxed)
    }

    /// Makes sure that `range` has its pages, helping with the steps before it. Only a matter of
    /// speed: memory that was never populated comes at first touch.
    pub(crate) fn ensure(&self, range: &Range<usize>, populate: impl Fn(Range<usize>) -> bool) {
        for step in range.start / STEP_BYTES..range.end.div_ceil(STEP_BYTES) {
            while !self.done[step].load(Ordering::Relaxed) {
                if self.refused.load(Ordering::Relaxed) {
                    return;
                }
                if !self.populate_next(&populate) {
                    std::thread::yield_now();
                }
            }
        }
    }
}

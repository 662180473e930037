//! Pages ahead of the copies.
//!
//! The first touch of memory costs more than a copy, and on a virtual machine whose host has to
//! find the memory first, more than the read. So pages are populated in steps, in order, ahead of
//! the copies, by every thread that has nothing better to do: the populating threads claim one
//! step after the other, and a copier that has caught up with them claims steps too instead of
//! faulting in memory that another thread is populating at that moment.
//!
//! Huge pages are the cheapest by far on most machines. Not on a virtual machine that reports its
//! free memory to its host: what it reports, and so has to get back, is whole huge pages, while
//! base pages come from what it kept. There, populating by base pages was measured up to six times
//! faster. So each step's time is taken, and where huge pages are slow, base pages are used, with a
//! look at the others now and then.

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Two huge pages: few calls, and little to wait for when another thread has claimed a step.
const STEP_BYTES: usize = 4 << 20;
/// A step of huge pages that takes longer is slow: under 2 GiB/s.
const SLOW_STEP: Duration = Duration::from_millis(2);
/// Every so many steps, huge pages are tried again.
const LOOK_AGAIN_STEPS: usize = 32;

/// What a step is populated with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Huge,
    Base,
}

/// Which parts of a region have been populated. `populate` gives a range its pages, or says that
/// it can't.
#[derive(Debug)]
pub(crate) struct Populated {
    bytes: usize,
    claimed_steps: AtomicUsize,
    done: Box<[AtomicBool]>,
    /// The kernel can't: pages come at first touch.
    refused: AtomicBool,
    pace: Pace,
}

impl Populated {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            bytes,
            claimed_steps: AtomicUsize::new(0),
            done: (0..bytes.div_ceil(STEP_BYTES)).map(|_| AtomicBool::new(false)).collect(),
            refused: AtomicBool::new(false),
            pace: Pace::default(),
        }
    }

    /// Populates the next step that nobody has claimed; `false` if there is none.
    pub(crate) fn populate_next(&self, populate: impl Fn(Range<usize>, PageKind) -> bool) -> bool {
        let step = self.claimed_steps.fetch_add(1, Ordering::Relaxed);
        if step >= self.done.len() {
            // Keeps the counter from ever wrapping.
            self.claimed_steps.store(self.done.len(), Ordering::Relaxed);
            return false;
        }
        let start = step * STEP_BYTES;
        let kind = self.pace.choose(step);
        let started = Instant::now();
        if !populate(start..(start + STEP_BYTES).min(self.bytes), kind) {
            self.refused.store(true, Ordering::Relaxed);
        }
        self.pace.note(kind, started.elapsed());
        self.done[step].store(true, Ordering::Relaxed);
        !self.refused.load(Ordering::Relaxed)
    }

    /// Makes sure that `range` has its pages, helping with the steps before it. Only a matter of
    /// speed: memory that was never populated comes at first touch.
    pub(crate) fn ensure(
        &self,
        range: &Range<usize>,
        populate: impl Fn(Range<usize>, PageKind) -> bool,
    ) {
        for step in range.start / STEP_BYTES..range.end.div_ceil(STEP_BYTES) {
            while !self.done[step].load(Ordering::Relaxed) {
                if self.refused.load(Ordering::Relaxed) {
                    return;
                }
                if !self.populate_next(&populate) {
                    crate::sync::yield_now();
                }
            }
        }
    }
}

/// How long a step of huge pages takes of late, in nanoseconds.
#[derive(Debug, Default)]
struct Pace(AtomicU64);

impl Pace {
    fn choose(&self, step: usize) -> PageKind {
        let is_slow = u128::from(self.0.load(Ordering::Relaxed)) > SLOW_STEP.as_nanos();
        let looks_again = step.is_multiple_of(LOOK_AGAIN_STEPS);
        if is_slow && !looks_again { PageKind::Base } else { PageKind::Huge }
    }

    /// One slow step is an accident, several are a habit; one fast step ends it. Base pages are
    /// never slower than slow huge ones, so how long they take does not matter.
    fn note(&self, kind: PageKind, took: Duration) {
        if kind == PageKind::Huge {
            let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            let before_ns = self.0.load(Ordering::Relaxed);
            let mean_ns = before_ns / 4 * 3 + took_ns / 4;
            let is_fast = took <= SLOW_STEP;
            self.0.store(if is_fast { mean_ns.min(took_ns) } else { mean_ns }, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_used_unless_they_are_slow() {
        let (fast, slow) = (Duration::from_micros(400), Duration::from_millis(12));
        let pace = Pace::default();
        let base_steps = |took: &dyn Fn(usize) -> Duration| {
            let kinds = (1..=64).map(|step| {
                let kind = pace.choose(step);
                pace.note(kind, took(step));
                kind
            });
            kinds.filter(|&kind| kind == PageKind::Base).count()
        };
        assert_eq!(base_steps(&|_| fast), 0);
        // An accident.
        assert_eq!(base_steps(&|step| if step == 9 { slow / 2 } else { fast }), 0);
        assert_eq!(base_steps(&|_| slow), 61);
        // It ends with the first look at it.
        assert_eq!(base_steps(&|_| fast), 31);
    }
}

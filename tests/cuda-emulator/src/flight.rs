//! Which memory copies and kernels in flight read or write, so that whoever takes it away is told.

use crate::handles::lock;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Address ranges in use. Device addresses are tagged, so both kinds live in one table.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    ranges: Mutex<(u64, BTreeMap<u64, Range<u64>>)>,
    landed: Condvar,
}

impl Flights {
    /// From now until [`Flights::land`] with the ticket, the range is in use.
    pub(crate) fn take_off(&self, range: Range<u64>) -> u64 {
        let mut ranges = lock(&self.ranges);
        ranges.0 += 1;
        let ticket = ranges.0;
        ranges.1.insert(ticket, range);
        ticket
    }

    pub(crate) fn land(&self, ticket: u64) {
        lock(&self.ranges).1.remove(&ticket);
        self.landed.notify_all();
    }

    /// Whether any byte of the range is in use.
    pub(crate) fn uses(&self, range: &Range<u64>) -> bool {
        overlaps(&lock(&self.ranges).1, range)
    }

    /// Waits until no byte of the range is in use.
    pub(crate) fn wait(&self, range: &Range<u64>) {
        let mut ranges = lock(&self.ranges);
        while overlaps(&ranges.1, range) {
            ranges = self.landed.wait(ranges).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn overlaps(ranges: &BTreeMap<u64, Range<u64>>, range: &Range<u64>) -> bool {
    ranges.values().any(|used| used.start < range.end && range.start < used.end)
}

//! Host memory that the driver knows: registered by the caller, or allocated by the driver.

use crate::error::{Answer, Code};
use crate::handles::lock;
use crate::memory::Mapping;
use crate::report::Held;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

/// What host memory holds that the driver allocated and nobody wrote.
const POISON: u8 = 0xCD;

/// A range that copies may read and write while they are in flight.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) bytes: u64,
    pub(crate) flags: u32,
    /// The context in which it was made known.
    pub(crate) context: usize,
    /// Of what the driver allocated.
    mapping: Option<Mapping>,
}

/// What a range of host memory is to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pinned,
    Pageable,
    /// Reaches over the end of what is pinned: drivers refuse such copies.
    Mixed,
}

/// All host memory that the driver knows, by its start.
#[derive(Debug, Default)]
pub(crate) struct HostMemory {
    pinned: Mutex<BTreeMap<u64, Pinned>>,
    freed: Mutex<BTreeSet<u64>>,
}

impl HostMemory {
    pub(crate) fn register(&self, range: Range<u64>, flags: u32, context: usize) -> Answer {
        let mut pinned = lock(&self.pinned);
        if overlap(&pinned, &range).is_some() {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        let bytes = range.end - range.start;
        pinned.insert(range.start, Pinned { bytes, flags, context, mapping: None });
        Ok(())
    }

    /// The range registered at `start`.
    pub(crate) fn registered_at(&self, start: u64) -> Answer<Range<u64>> {
        match lock(&self.pinned).get(&start) {
            Some(pinned) if pinned.mapping.is_none() => Ok(start..start + pinned.bytes),
            _ => Err(Code::HOST_MEMORY_NOT_REGISTERED),
        }
    }

    /// The range that the driver allocated at `start`.
    pub(crate) fn allocated_at(&self, start: u64) -> Answer<Range<u64>> {
        match lock(&self.pinned).get(&start) {
            Some(pinned) if pinned.mapping.is_some() => Ok(start..start + pinned.bytes),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Forgets what starts there. What is the driver's is unmapped when the answer is dropped.
    pub(crate) fn forget(&self, start: u64) -> Option<Pinned> {
        let gone = lock(&self.pinned).remove(&start);
        if gone.as_ref().is_some_and(|pinned| pinned.mapping.is_some()) {
            lock(&self.freed).insert(start);
        }
        gone
    }

    pub(crate) fn was_freed(&self, start: u64) -> bool {
        lock(&self.freed).contains(&start)
    }

    pub(crate) fn allocate(
        &self,
        bytes: usize,
        flags: u32,
        context: usize,
        poison_bytes: u64,
    ) -> Answer<u64> {
        let mapping = Mapping::new(bytes)?;
        mapping.poison(POISON, poison_bytes);
        let start = mapping.start() as u64;
        let pinned = Pinned { bytes: bytes as u64, flags, context, mapping: Some(mapping) };
        lock(&self.pinned).insert(start, pinned);
        lock(&self.freed).remove(&start);
        Ok(start)
    }

    pub(crate) fn kind(&self, range: &Range<u64>) -> Kind {
        match overlap(&lock(&self.pinned), range) {
            None => Kind::Pageable,
            Some(known) if known.start <= range.start && range.end <= known.end => Kind::Pinned,
            Some(_) => Kind::Mixed,
        }
    }

    /// Range, flags and context of the pinned memory around an address.
    pub(crate) fn around(&self, address: u64) -> Option<(Range<u64>, u32, usize)> {
        let pinned = lock(&self.pinned);
        let range = overlap(&pinned, &(address..address.checked_add(1)?))?;
        let found = &pinned[&range.start];
        Some((range, found.flags, found.context))
    }

    /// What is registered, and what the driver allocated.
    pub(crate) fn held(&self) -> (Held, Held) {
        let (mut registered, mut allocated) = (Held::default(), Held::default());
        for pinned in lock(&self.pinned).values() {
            let held = if pinned.mapping.is_some() { &mut allocated } else { &mut registered };
            held.count += 1;
            held.bytes += pinned.bytes;
        }
        (registered, allocated)
    }
}

/// The last known range that has a byte in common with `range`.
fn overlap(pinned: &BTreeMap<u64, Pinned>, range: &Range<u64>) -> Option<Range<u64>> {
    let (start, found) = pinned.range(..range.end).next_back()?;
    let known = *start..start + found.bytes;
    (known.end > range.start).then_some(known)
}

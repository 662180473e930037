//! The host device: an arena in ordinary memory.

use crate::error::DeviceError;
use crate::populate::Populated;
use crate::uploader::{Segment, Uploader};
use forebay_mem::{Alignment, Draining, Free, Region, Slot};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tensors start at multiples of this, on every device.
const TENSOR_ALIGNMENT: Alignment = match Alignment::new(256) {
    Some(alignment) => alignment,
    None => Alignment::BYTE,
};

#[derive(Debug)]
struct Home {
    range: Range<usize>,
    published: AtomicBool,
}

/// Memory for a set of tensors, in one huge-page region.
///
/// A tensor is written by the arena's one [`HostWriter`] until it is published, and read by
/// anybody after that, never both.
///
/// # Alignment
/// Every tensor starts at a multiple of 256 bytes.
#[derive(Debug)]
pub struct HostArena {
    region: Region,
    populated: Populated,
    homes: Vec<Home>,
}

impl HostArena {
    /// Reserves room for tensors of these sizes, in this order, and the right to fill them.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] where the system does not give that much.
    pub fn new(
        device: &str,
        sizes_bytes: impl IntoIterator<Item = u64>,
    ) -> Result<(Arc<Self>, HostWriter), DeviceError> {
        let mut end = 0_u64;
        let mut homes = Vec::new();
        for bytes in sizes_bytes {
            let start = TENSOR_ALIGNMENT.up(end).ok_or(DeviceError::TooLarge)?;
            end = start.checked_add(bytes).ok_or(DeviceError::TooLarge)?;
            let range = usize::try_from(start).and_then(|start| Ok(start..usize::try_from(end)?));
            let range = range.map_err(|_| DeviceError::TooLarge)?;
            homes.push(Home { range, published: AtomicBool::new(false) });
        }
        let bytes = usize::try_from(end).map_err(|_| DeviceError::TooLarge)?;
        let region = Region::new(bytes).map_err(|source| DeviceError::OutOfMemory {
            device: device.to_owned(),
            needed_bytes: end,
            source,
        })?;
        let arena = Arc::new(Self { region, populated: Populated::new(bytes), homes });
        let writer = HostWriter { arena: Arc::clone(&arena) };
        Ok((arena, writer))
    }

    /// The bytes of a tensor, once it is published.
    #[must_use]
    pub fn tensor(&self, index: usize) -> Option<&[u8]> {
        let home = self.homes.get(index)?;
        if !home.published.load(Ordering::Acquire) {
            return None;
        }
        let start = self.region.at(home.range.start);
        // SAFETY: the range lies in the region, which `self` owns; it is initialised (anonymous
        // memory is zeroed); and the one writer touches no published tensor, so nothing changes
        // it while the slice lives.
        Some(unsafe { std::slice::from_raw_parts(start, home.range.len()) })
    }

    /// Gives the memory its pages ahead of the copies, step by step, until told to stop. Meant
    /// for threads of its own; several share the work.
    pub fn populate(&self, stop: &dyn Fn() -> bool) {
        while !stop() && self.populated.populate_next(&self.region) {}
    }
}

/// The right to write the tensors of one arena that are not published yet.
#[derive(Debug)]
pub struct HostWriter {
    arena: Arc<HostArena>,
}

impl HostWriter {
    /// Copies `bytes` to `offset` of a tensor.
    ///
    /// # Panics
    /// If the tensor is published or too small: the plan would be wrong, and going on would
    /// corrupt a neighbour.
    pub fn write(&mut self, tensor: usize, offset: u64, bytes: &[u8]) {
        let home = &self.arena.homes[tensor];
        assert!(!home.published.load(Ordering::Relaxed), "tensor {tensor} is whole already");
        let start = usize::try_from(offset).expect("an offset inside a tensor in memory");
        assert!(
            start.checked_add(bytes.len()).is_some_and(|end| end <= home.range.len()),
            "{} bytes at {offset} of a tensor of {}",
            bytes.len(),
            home.range.len()
        );
        let start = home.range.start + start;
        self.arena.populated.ensure(&self.arena.region, &(start..start + bytes.len()));
        let target = self.arena.region.at(start);
        // SAFETY: the target range lies in an unpublished tensor (checked above), which only
        // this writer touches, and `&mut self` makes it one write at a time. `bytes` is a slot's
        // memory, never the arena's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// The tensor is whole: others may read it from here on.
    pub fn publish(&mut self, tensor: usize) {
        self.arena.homes[tensor].published.store(true, Ordering::Release);
    }
}

/// The uploader of the host device: copies at once.
#[derive(Debug, Default)]
pub struct HostUploader {
    arenas: Vec<HostWriter>,
    done: VecDeque<(Slot<Free>, usize)>,
}

impl HostUploader {
    /// An uploader into these arenas, which segments name by their place in the list.
    #[must_use]
    pub fn new(arenas: Vec<HostWriter>) -> Self {
        Self { arenas, done: VecDeque::new() }
    }
}

impl Uploader for HostUploader {
    fn upload(
        &mut self,
        slot: Slot<Draining>,
        read: usize,
        segments: &[Segment],
    ) -> Result<(), DeviceError> {
        let bytes = slot.bytes();
        for segment in segments {
            let start = segment.slot_offset as usize;
            let piece = &bytes[start..start + segment.bytes as usize];
            self.arenas[segment.arena].write(segment.tensor, segment.tensor_offset, piece);
        }
        self.done.push_back((slot.release(), read));
        Ok(())
    }

    fn completed(&mut self, _wait: bool) -> Result<Option<(Slot<Free>, usize)>, DeviceError> {
        Ok(self.done.pop_front())
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn publish(&mut self, arena: usize, tensor: usize) {
        self.arenas[arena].publish(tensor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_mem::Slab;

    #[test]
    fn a_tensor_is_seen_when_it_is_whole_and_not_before() {
        let (arena, writer) = HostArena::new("host", [3, 0, 5]).unwrap();
        let mut uploader = HostUploader::new(vec![writer]);
        let (_slab, mut free) = Slab::new(4096, 1).unwrap();
        let mut slot = free.pop().unwrap().fill();
        slot.buffer()[..8].copy_from_slice(b"abcdefgh");
        let segments = [
            Segment { arena: 0, tensor: 2, slot_offset: 2, tensor_offset: 1, bytes: 4 },
            Segment { arena: 0, tensor: 0, slot_offset: 5, tensor_offset: 0, bytes: 3 },
        ];
        uploader.upload(slot.filled(8).drain(), 7, &segments).unwrap();
        assert_eq!(uploader.completed(false).unwrap().map(|(_, read)| read), Some(7));
        assert!(arena.tensor(0).is_none());
        (0..3).for_each(|tensor| uploader.publish(0, tensor));
        assert_eq!(arena.tensor(0), Some(&b"fgh"[..]));
        assert_eq!(arena.tensor(1), Some(&b""[..]));
        assert_eq!(arena.tensor(2), Some(&b"\0cdef"[..]));
        assert_eq!(arena.tensor(2).unwrap().as_ptr() as usize % 256, 0);
    }

    #[test]
    #[should_panic(expected = "whole already")]
    fn a_published_tensor_is_never_written() {
        let (_arena, mut writer) = HostArena::new("host", [4]).unwrap();
        writer.publish(0);
        writer.write(0, 0, b"x");
    }

    #[test]
    fn more_than_the_machine_has_is_an_error_with_the_need() {
        let error = HostArena::new("host", [1 << 60]).unwrap_err();
        assert!(
            matches!(error, DeviceError::OutOfMemory { needed_bytes, .. } if needed_bytes == 1 << 60)
        );
        assert_eq!(HostArena::new("host", [u64::MAX, 1]).unwrap_err(), DeviceError::TooLarge);
    }
}

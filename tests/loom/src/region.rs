//! Memory in the place of `forebay_mem::Region`: loom knows who reads and writes which eight bytes of
//! it, and fails a model in which that is in no order.

use crate::error::MemoryError;
use crate::pointer::HostPointer;
use loom::cell::UnsafeCell;
use std::ops::Range;

/// What is watched as one.
pub(crate) const CELL_BYTES: usize = 8;

#[derive(Debug)]
pub(crate) struct Region {
    memory: *mut u64,
    cells: Vec<UnsafeCell<()>>,
}

// SAFETY: an address and cells that watch who uses it.
unsafe impl Send for Region {}
// SAFETY: as above: two uses at once fail the model.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn new(bytes: usize) -> Result<Self, MemoryError> {
        let cells: Vec<_> = (0..bytes.div_ceil(CELL_BYTES)).map(|_| UnsafeCell::new(())).collect();
        let memory = Box::into_raw(vec![0_u64; cells.len()].into_boxed_slice()).cast();
        Ok(Self { memory, cells })
    }

    pub(crate) fn lent(_: &HostPointer, _: u64) -> Result<Self, MemoryError> {
        unreachable!("no model lends memory")
    }

    pub(crate) fn is_lent(&self) -> bool {
        false
    }

    pub(crate) fn bytes(&self) -> usize {
        self.cells.len() * CELL_BYTES
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes());
        self.memory.cast::<u8>().wrapping_add(offset)
    }

    // Pages change no byte; who populates them is a model of its own.
    pub(crate) fn populate(&self, _: Range<usize>) -> Result<(), MemoryError> {
        Ok(())
    }

    pub(crate) fn populate_next(&self) -> bool {
        false
    }

    pub(crate) fn ensure_populated(&self, _: &Range<usize>) {}

    fn cell(&self, address: *const u8) -> &UnsafeCell<()> {
        &self.cells[(address.addr() - self.memory.addr()) / CELL_BYTES]
    }

    /// As the kernel or a copier writes at an address of the region.
    pub(crate) fn write(&self, address: *mut u8, value: u64) {
        self.note_write(address);
        // SAFETY: inside of the region, as it has a cell; nobody else uses it, or the model has failed.
        unsafe { address.cast::<u64>().write(value) };
    }

    /// As a device or a caller reads there.
    pub(crate) fn read(&self, address: *const u8) -> u64 {
        self.cell(address).with(|_| ());
        // SAFETY: as above.
        unsafe { address.cast::<u64>().read() }
    }

    /// The library itself is about to write there.
    pub(crate) fn note_write(&self, address: *const u8) {
        self.cell(address).with_mut(|_| ());
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Unmapping ends it for all.
        self.cells.iter().for_each(|cell| cell.with_mut(|_| ()));
        let memory = std::ptr::slice_from_raw_parts_mut(self.memory, self.cells.len());
        // SAFETY: what `new` made of a box, once.
        drop(unsafe { Box::from_raw(memory) });
    }
}

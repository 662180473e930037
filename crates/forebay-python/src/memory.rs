//! Memory that tensors of Python lie in.

use forebay::HostPointer;
use forebay_mem::{MemoryError, Region, page_bytes};
use pyo3::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What every tensor is aligned to: a line of the processor's cache.
const LINE_BYTES: usize = 64;
/// Less than this comes from the heap: a process has only so many mappings.
const REGION_BYTES_MIN: usize = 128 << 10;
/// From this on, a tensor begins at a page, so that all of its pages can be given back.
const PAGED_BYTES_MIN: usize = 1 << 20;

/// From this on, a region first tries what kind of pages it had better have.
const TRIED_BYTES_MIN: usize = 32 << 20;
/// How much is populated to try, and how often.
const TRY_BYTES: usize = 4 << 20;
const TRIES: usize = 3;
/// Huge pages that take longer for as much are slow: under 2 GiB/s.
const SLOW_TRY: Duration = Duration::from_millis(2);

/// Whether huge pages were slow at the last try: the machine's doing, not a region's. On a virtual
/// machine that reports its free memory to its host, huge pages are what it has to get back from
/// there, while base pages come from what it kept; everywhere else they are the cheapest.
static HUGE_PAGES_ARE_SLOW: AtomicBool = AtomicBool::new(false);

/// Memory that nobody else has, zeroed.
pub(crate) struct Block {
    kind: Kind,
}

enum Kind {
    Pages(Region),
    Heap(NonNull<u8>, Layout),
}

// SAFETY: a block is an address range that it owns until `drop`; it gives out addresses, never a
// reference that outlives a borrow of the block, and no thread is special to it.
unsafe impl Send for Block {}
// SAFETY: `&Block` only tells the address and gives pages back whose users have gone, which the
// kernel serialises.
unsafe impl Sync for Block {}

impl Block {
    pub(crate) fn new(bytes: usize) -> Result<Self, MemoryError> {
        if bytes >= REGION_BYTES_MIN {
            let region = Region::new(bytes)?;
            choose_pages(&region);
            return Ok(Self { kind: Kind::Pages(region) });
        }
        let layout = Layout::from_size_align(bytes.max(1), LINE_BYTES)
            .expect("less than REGION_BYTES_MIN, and a power of two");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Self { kind: Kind::Heap(start, layout) })
    }

    fn start(&self) -> *mut u8 {
        match &self.kind {
            Kind::Pages(region) => region.start(),
            Kind::Heap(start, _) => start.as_ptr(),
        }
    }

    fn bytes(&self) -> usize {
        match &self.kind {
            Kind::Pages(region) => region.bytes(),
            Kind::Heap(_, layout) => layout.size(),
        }
    }

    /// All of it, for whoever fills it before anybody else has it.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        let (start, bytes) = (self.start(), self.bytes());
        // SAFETY: the block owns these bytes, which are zeroed or written, and is borrowed
        // exclusively: addresses are handed out only once it is in an `Arc`.
        unsafe { std::slice::from_raw_parts_mut(start, bytes) }
    }

    /// Gives the whole pages inside `range` back to the system.
    fn give_back(&self, range: &Range<usize>) {
        let Kind::Pages(region) = &self.kind else { return };
        let page = page_bytes();
        let (start, end) = (range.start.next_multiple_of(page), range.end / page * page);
        if start < end {
            // SAFETY: the pages lie inside the region, which this block owns, and whoever had
            // these bytes has gone: nobody reads them again. What else lies on pages of the
            // range's ends is left alone.
            unsafe { libc::madvise(region.at(start).cast(), end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Leaves a region the huge pages that it is advised to have, unless they are slow.
fn choose_pages(region: &Region) {
    if region.bytes() >= TRIED_BYTES_MIN {
        let slow = (0..TRIES).filter(|number| {
            let started = Instant::now();
            // Where it is refused, pages come at first touch, of whatever kind.
            let _ = region.populate(number * TRY_BYTES..(number + 1) * TRY_BYTES);
            started.elapsed() > SLOW_TRY
        });
        // One slow try is an accident.
        HUGE_PAGES_ARE_SLOW.store(slow.count() > 1, Ordering::Relaxed);
    }
    if HUGE_PAGES_ARE_SLOW.load(Ordering::Relaxed) {
        // SAFETY: all of a region that nobody has been given a part of; the advice changes the
        // kind of pages that come from now on, and no byte.
        unsafe { libc::madvise(region.start().cast(), region.bytes(), libc::MADV_NOHUGEPAGE) };
    }
}

/// Gives memory that is about to be filled its pages, in one call instead of a fault for each.
pub(crate) fn populate(part: &mut [u8]) {
    /// Linux 5.14; `libc` has it on glibc only.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    let page = page_bytes();
    let before = part.as_ptr().addr() % page;
    if part.len() >= page {
        let start = part.as_mut_ptr().wrapping_sub(before);
        // SAFETY: the pages that hold `part` are the process's, and populating them changes no
        // byte, neither of `part` nor of its neighbours. A refusal costs speed only.
        unsafe { libc::madvise(start.cast(), part.len() + before, MADV_POPULATE_WRITE) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Kind::Heap(start, layout) = self.kind {
            // SAFETY: allocated in `new` with this layout, and freed nowhere else.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
    }
}

/// Where tensors of these lengths go in one block: the range of each, and the block's length.
/// `None` where that overflows.
pub(crate) fn lay_out(lengths: impl Iterator<Item = u64>) -> Option<(Vec<Range<usize>>, usize)> {
    let mut end = 0_usize;
    let ranges = lengths.map(|bytes| {
        let bytes = usize::try_from(bytes).ok()?;
        let alignment = if bytes >= PAGED_BYTES_MIN { page_bytes() } else { LINE_BYTES };
        let start = end.checked_next_multiple_of(alignment)?;
        end = start.checked_add(bytes)?;
        Some(start..end)
    });
    let ranges = ranges.collect::<Option<Vec<_>>>()?;
    Some((ranges, end))
}

/// The bytes of one tensor. They are its user's alone, to read and to write; when it goes, the
/// pages that only it had go back to the system, whatever else of the block is in use.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Memory {
    block: Arc<Block>,
    range: Range<usize>,
}

impl Memory {
    /// A part of a block, which nobody else is given.
    pub(crate) fn new(block: &Arc<Block>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= block.bytes(), "{range:?} of a block");
        Self { block: Arc::clone(block), range }
    }

    /// All of a block.
    pub(crate) fn whole(block: Block, bytes: usize) -> Self {
        Self::new(&Arc::new(block), 0..bytes)
    }

    /// Lends it to a load.
    ///
    /// # Safety
    /// It is handed to nobody, and neither read nor written, until the load has handed out the
    /// tensor; and it is dropped after the load.
    pub(crate) unsafe fn lend(&self) -> HostPointer {
        let start = self.block.start().wrapping_add(self.range.start);
        // SAFETY: inside the block, which lives as long as this does; the rest is the caller's.
        unsafe { HostPointer::new(start, self.range.len() as u64) }
    }
}

#[pymethods]
impl Memory {
    /// The address of its first byte, valid as long as this object lives.
    #[getter]
    fn address(&self) -> usize {
        self.block.start().addr() + self.range.start
    }

    /// Its length.
    #[getter]
    fn nbytes(&self) -> usize {
        self.range.len()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The last one takes the block with it.
        if Arc::strong_count(&self.block) > 1 {
            self.block.give_back(&self.range);
        }
    }
}

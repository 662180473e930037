//! Anonymous memory in huge pages, and memory that is lent.

use crate::align::{HUGE_PAGE_BYTES, page_bytes};
use crate::error::{MemoryError, Operation};
use crate::pointer::HostPointer;
use crate::populate::{PageKind, Populated};
use nix::errno::Errno;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism};

/// `MADV_POPULATE_WRITE`, Linux 5.14; `libc` has it on glibc only.
const MADV_POPULATE_WRITE: libc::c_int = 23;

/// From this length on, several threads give a region's pages back.
const SHARED_DROP_BYTES: usize = 256 << 20;
/// What one of them gives back at a time, and how many they are at most.
const DROP_STEP_BYTES: usize = 32 << 20;
const DROP_THREADS_MAX: usize = 8;

/// An anonymous private mapping, zeroed by the kernel, advised to use huge pages; or a range that
/// somebody else has allocated, which keeps its owner and its nature.
///
/// It hands out addresses, never references: who may touch which bytes, and when, is the business
/// of the type built on it ([`crate::Slab`], an arena), which owns the region whole.
///
/// # Alignment
/// The start is a multiple of 2 MiB when the region is at least that long, else of a page; of lent
/// memory, whatever it is.
#[derive(Debug)]
pub struct Region {
    start: NonNull<u8>,
    bytes: usize,
    is_lent: bool,
    populated: Populated,
}

// SAFETY: a region is an address range that the process owns until `drop`, or is lent for longer; no thread is special to
// it, and it gives out no reference that another thread could race with.
unsafe impl Send for Region {}
// SAFETY: all methods of `&Region` are system calls on the range, which the kernel serialises.
unsafe impl Sync for Region {}

impl Region {
    /// Reserves `bytes` (rounded up to whole pages, at least one). No page is touched yet.
    ///
    /// # Errors
    /// What `mmap` answers: `ENOMEM` past the address-space limit or the overcommit limit.
    pub fn new(bytes: usize) -> Result<Self, MemoryError> {
        let refuse = |errno| MemoryError::new(Operation::Reserve, 0, bytes as u64, errno);
        let page = page_bytes();
        let length = bytes.max(1).checked_next_multiple_of(page).ok_or(refuse(Errno::ENOMEM))?;
        let slack = if length >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { 0 };
        let reserved = length.checked_add(slack).ok_or(refuse(Errno::ENOMEM))?;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice overlaps
        // nothing of ours; the result is checked before use.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(refuse(Errno::last()));
        }
        let base = address.cast::<u8>();
        let skip = if slack == 0 { 0 } else { base.align_offset(HUGE_PAGE_BYTES) };
        trim(base, 0..skip);
        trim(base, skip + length..reserved);
        // SAFETY: `skip + length <= reserved`, so the address lies inside the mapping just made.
        let start = unsafe { base.add(skip) };
        let start = NonNull::new(start).ok_or(refuse(Errno::ENOMEM))?;
        let populated = Populated::new(length);
        let region = Self { start, bytes: length, is_lent: false, populated };
        // A kernel without transparent huge pages answers EINVAL: base pages serve as well.
        let _ = region.advise(0..length, libc::MADV_HUGEPAGE);
        Ok(region)
    }

    /// The first `bytes` bytes of memory that stays its lender's; the rest is not touched.
    ///
    /// # Panics
    /// If less is lent.
    ///
    /// # Errors
    /// `ENOMEM` if it is longer than an address space.
    pub fn lent(memory: &HostPointer, bytes: u64) -> Result<Self, MemoryError> {
        assert!(bytes <= memory.bytes(), "{bytes} bytes of {} that are lent", memory.bytes());
        let refuse = || MemoryError::new(Operation::Reserve, 0, bytes, Errno::ENOMEM);
        let bytes = usize::try_from(bytes).map_err(|_| refuse())?;
        // Of no bytes it may be anywhere.
        let start = NonNull::new(memory.address()).unwrap_or(NonNull::dangling());
        Ok(Self { start, bytes, is_lent: true, populated: Populated::new(bytes) })
    }

    /// Whether it is somebody else's.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// The first address. Valid for reads and writes of [`Region::bytes`] bytes until drop.
    #[must_use]
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The length in bytes; a multiple of the page size but of lent memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address `offset` bytes in.
    ///
    /// # Panics
    /// If `offset` lies past the end.
    #[must_use]
    pub fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "offset {offset} past a region of {} bytes", self.bytes);
        // SAFETY: checked above; one past the end is still a valid address to form.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Gives `range` its pages now, as a write would, without changing what they hold. Safe to
    /// call while other threads read and write the range.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.14, `ENOMEM`; the pages then come at first touch as ever.
    pub fn populate(&self, range: Range<usize>) -> Result<(), MemoryError> {
        self.advise(range.clone(), MADV_POPULATE_WRITE).map_err(|errno| {
            let bytes = range.end.saturating_sub(range.start) as u64;
            MemoryError::new(Operation::Populate, range.start as u64, bytes, errno)
        })
    }

    /// Populates the next few MiB that nobody has claimed, in order; `false` when there are none
    /// left. Meant for threads that have nothing better to do; several share the work.
    pub fn populate_next(&self) -> bool {
        self.populated.populate_next(|range, kind| self.populate_with(range, kind))
    }

    /// Makes sure that `range` has its pages, helping with those before it rather than faulting in
    /// what another thread is populating at that moment. Only a matter of speed.
    pub fn ensure_populated(&self, range: &Range<usize>) {
        self.populated.ensure(range, |range, kind| self.populate_with(range, kind));
    }

    /// Processes that are forked off from now on do not have the region.
    pub fn keep_out_of_forks(&self) {
        debug_assert!(!self.is_lent, "lent memory is advised of nothing");
        // Where it is refused, they share its pages, copied at the first write.
        let _ = self.advise(0..self.bytes, libc::MADV_DONTFORK);
    }

    fn populate_with(&self, range: Range<usize>, kind: PageKind) -> bool {
        // What kind of pages lent memory has is its owner's business.
        if kind == PageKind::Base && !self.is_lent {
            // Advice: where it is refused, huge pages serve as well.
            let _ = self.advise(range.clone(), libc::MADV_NOHUGEPAGE);
        }
        self.populate(range).is_ok()
    }

    fn advise(&self, range: Range<usize>, advice: libc::c_int) -> Result<(), Errno> {
        let end = range.end.min(self.bytes);
        if range.start >= end {
            return Ok(());
        }
        // The kernel wants the start of a page.
        let start = self.at(range.start);
        let before = start.addr() % page_bytes();
        let (start, length) = (start.wrapping_sub(before), end - range.start + before);
        // SAFETY: the pages hold bytes of this region, and none of the advices used here (huge
        // pages or not, populate, no fork) changes the contents of memory; of lent memory, whose
        // first and last page may hold others' bytes too, pages are populated and nothing else.
        let answer = unsafe { libc::madvise(start.cast(), length, advice) };
        Errno::result(answer).map(drop)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.is_lent {
            return;
        }
        if self.bytes >= SHARED_DROP_BYTES {
            self.discard();
        }
        trim(self.start.as_ptr(), 0..self.bytes);
    }
}

impl Region {
    /// Gives all pages back, on several threads: `munmap` does it on one, which takes a tenth of a
    /// second for each GiB of base pages, and whoever interrupts a load waits for that.
    fn discard(&mut self) {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let from = next.fetch_add(DROP_STEP_BYTES, Ordering::Relaxed);
                let Some(left) = self.bytes.checked_sub(from).filter(|left| *left > 0) else {
                    return;
                };
                let part = self.at(from).cast();
                // SAFETY: whole pages of a region that is borrowed exclusively by its drop: its
                // owner (a slab, an arena) has waited for every transfer into it. What is refused
                // (of locked pages, say) `munmap` gives back.
                unsafe { libc::madvise(part, left.min(DROP_STEP_BYTES), libc::MADV_DONTNEED) };
            }
        };
        let threads = available_parallelism().map_or(1, usize::from).min(DROP_THREADS_MAX);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Without more threads, this one does it all.
                if Builder::new().spawn_scoped(scope, work).is_err() {
                    break;
                }
            }
            work();
        });
    }
}

/// Unmaps `part` of a mapping that starts at `base`; an empty part is left alone.
fn trim(base: *mut u8, part: Range<usize>) {
    if part.is_empty() {
        return;
    }
    let start = base.wrapping_add(part.start);
    // SAFETY: every caller passes a part of a mapping that it owns and that nothing refers to:
    // the unused ends of a fresh reservation, or a whole region in `drop`, whose owner (a slab,
    // an arena) has by then waited for every transfer into it.
    unsafe { libc::munmap(start.cast(), part.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_aligned_and_writable_to_the_last_byte() {
        let region = Region::new(3 * HUGE_PAGE_BYTES + 1).unwrap();
        assert_eq!(region.start() as usize % HUGE_PAGE_BYTES, 0);
        assert_eq!(region.bytes(), 3 * HUGE_PAGE_BYTES + page_bytes());
        region.populate(0..region.bytes()).unwrap();
        let last = region.at(region.bytes() - 1);
        // SAFETY: the last byte of a region that this test owns alone.
        unsafe { last.write(7) };
        // SAFETY: as above; it was written just now.
        assert_eq!(unsafe { last.read() }, 7);
        // SAFETY: as above; fresh memory reads as zero.
        assert_eq!(unsafe { region.start().read() }, 0);
    }

    #[test]
    fn lent_memory_is_populated_wherever_it_begins_and_left_to_its_owner() {
        let own = Region::new(4 * page_bytes()).unwrap();
        // SAFETY: a part of a region that this test owns alone, and that outlives what it lends.
        let pointer = unsafe { HostPointer::new(own.at(100), 2 * page_bytes() as u64) };
        let lent = Region::lent(&pointer, page_bytes() as u64 + 9).unwrap();
        assert_eq!((lent.start(), lent.bytes()), (own.at(100), page_bytes() + 9));
        lent.populate(0..lent.bytes()).unwrap();
        lent.populate(4000..4001).unwrap();
        lent.ensure_populated(&(0..lent.bytes()));
        drop(lent);
        // SAFETY: still the owner's, and mapped.
        unsafe { own.at(100).write(3) };
        // SAFETY: of no bytes.
        let nothing = unsafe { HostPointer::new(std::ptr::null_mut(), 0) };
        let nothing = Region::lent(&nothing, 0).unwrap();
        nothing.ensure_populated(&(0..0));
        assert!(!nothing.populate_next());
    }

    /// What several threads give back is given back, locked or not.
    #[test]
    fn a_large_region_goes_back_whole() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
        };
        for locks in [false, true] {
            let region = Region::new(SHARED_DROP_BYTES + DROP_STEP_BYTES + page_bytes()).unwrap();
            let before = resident();
            region.populate(0..region.bytes()).unwrap();
            // SAFETY: locking changes no byte. Where it is refused, nothing is locked.
            let _ = locks && unsafe { libc::mlock(region.start().cast(), 1 << 20) } == 0;
            assert!(resident() > before + SHARED_DROP_BYTES);
            drop(region);
            assert!(resident() < before + SHARED_DROP_BYTES / 2);
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        let error = Region::new(usize::MAX - 4096).unwrap_err();
        assert_eq!(error.errno, Errno::ENOMEM);
        assert_eq!(error.operation, Operation::Reserve);
    }
}

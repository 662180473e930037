//! Which pages of a mapped file are in memory: bringing them, counting them, giving them back.
//!
//! Advice is given range by range, never for the file: tensors of one file may be used in place,
//! copied away, or not wanted at all. Rounding is outward where pages are brought and inward where
//! they are given back, so that no neighbour loses a page it shares.

use crate::align::{Alignment, page_bytes};
use crate::error::{MemoryError, Operation};
use crate::mapping::{FileMapping, Writes, length};
use memmap2::Advice;
use nix::errno::Errno;
use std::ops::Range;
use std::sync::OnceLock;

/// The most that one `mincore` is asked about; its answer takes a byte a page.
const INSPECT_BYTES: u64 = 256 << 20;

/// How a range of a mapping will be read, which sets the kernel's readahead for its faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// As the file comes: the device's readahead.
    Normal,
    /// No readahead: a fault brings its page and no more.
    Random,
}

impl FileMapping {
    /// Says how `range`, rounded outward, will be read. Advice: a refusal changes no byte.
    ///
    /// # Errors
    /// What `madvise` answers; `EINVAL` past the mapping.
    pub fn expect(&self, range: Range<u64>, expect: Expect) -> Result<(), MemoryError> {
        let advice = match expect {
            Expect::Normal => Advice::Normal,
            Expect::Random => Advice::Random,
        };
        self.advise(range, advice)
    }

    /// Starts bringing `range`, rounded outward, into the page cache and returns without waiting
    /// for it. Large ranges are capped by the kernel at the device's largest request or its
    /// readahead, so ask in steps of at most 2 MiB.
    ///
    /// # Errors
    /// As [`FileMapping::expect`].
    pub fn will_need(&self, range: Range<u64>) -> Result<(), MemoryError> {
        self.advise(range, Advice::WillNeed)
    }

    /// Brings `range`, rounded outward, into the page cache and into the page table, and waits
    /// for it: touching it afterwards is no fault. Never a signal.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.14, and `ENOSYS` before 6.9, which would not end where the disk fails;
    /// `EFAULT` where the file no longer reaches or the disk failed; `ENOMEM`, `EAGAIN` when memory is
    /// short.
    pub fn populate(&self, range: Range<u64>) -> Result<(), MemoryError> {
        if !populating_ends() {
            let bytes = range.end.saturating_sub(range.start);
            return Err(MemoryError::new(Operation::Prefetch, range.start, bytes, Errno::ENOSYS));
        }
        self.advise(range, Advice::PopulateRead)
    }

    fn advise(&self, range: Range<u64>, advice: Advice) -> Result<(), MemoryError> {
        let bytes = range.end.saturating_sub(range.start);
        let refuse = |errno| MemoryError::new(Operation::Prefetch, range.start, bytes, errno);
        if range.end > self.bytes() {
            return Err(refuse(Errno::EINVAL));
        }
        if bytes == 0 {
            return Ok(());
        }
        let answer = self.map.advise_range(advice, length(range.start), length(bytes));
        answer.map_err(|error| refuse(error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)))
    }

    /// How many bytes of `range` lie in pages that are in memory (`mincore`).
    ///
    /// The kernel tells the truth only to those who own the file or may write to it; to others
    /// every page seems resident.
    ///
    /// # Errors
    /// What `mincore` answers; `EINVAL` past the mapping.
    pub fn resident_bytes(&self, range: Range<u64>) -> Result<u64, MemoryError> {
        let refuse = |errno| {
            let bytes = range.end.saturating_sub(range.start);
            MemoryError::new(Operation::Inspect, range.start, bytes, errno)
        };
        if range.start > range.end || range.end > self.bytes() {
            return Err(refuse(Errno::EINVAL));
        }
        let page = page_bytes() as u64;
        let mut resident = 0;
        let mut start = Alignment::page().down(range.start);
        let mut pages = Vec::new();
        while start < range.end {
            let end = (start + INSPECT_BYTES).min(range.end);
            pages.clear();
            pages.resize(length((end - start).div_ceil(page)), 0_u8);
            // SAFETY: the pages asked about lie in this mapping, and the answer is one byte for
            // each of them, which `pages` has room for.
            let answer = unsafe {
                libc::mincore(self.address(start).cast(), length(end - start), pages.as_mut_ptr())
            };
            Errno::result(answer).map_err(refuse)?;
            for (at, state) in (start..).step_by(page_bytes()).zip(&pages) {
                if state & 1 == 1 {
                    resident += (at + page).min(range.end) - at.max(range.start);
                }
            }
            start = end;
        }
        Ok(resident)
    }

    /// Gives back the whole pages inside `range`: they leave this process, not the page cache,
    /// and come again if touched. Returns the bytes given back: none where pages may have been
    /// [written](Writes::Copied).
    ///
    /// # Errors
    /// `EINVAL` for locked pages, which stay.
    pub fn reclaim(&self, range: Range<u64>) -> Result<u64, MemoryError> {
        let inside = Alignment::page().inward(range.start..range.end.min(self.bytes()));
        let bytes = inside.end - inside.start;
        if bytes == 0 || self.writes() == Writes::Copied {
            return Ok(0);
        }
        // SAFETY: the pages are clean, file-backed and read-only: dropping them from the page
        // table changes no byte that anyone can read through the mapping.
        let answer = unsafe {
            libc::madvise(self.address(inside.start).cast(), length(bytes), libc::MADV_DONTNEED)
        };
        let refuse = |errno| MemoryError::new(Operation::Reclaim, inside.start, bytes, errno);
        Errno::result(answer).map(|_| bytes).map_err(refuse)
    }
}

/// Whether populating a mapping ends where a page can't be read. Before Linux 6.9 the kernel asks the
/// disk for such a page for ever, in a call that nothing but the end of the process interrupts (seen on
/// 6.1, in `tests/vm/kernels`). Nobody can try that, so here the release has to tell.
fn populating_ends() -> bool {
    static ENDS: OnceLock<bool> = OnceLock::new();
    *ENDS.get_or_init(|| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        is_since(&release, (6, 9))
    })
}

/// Whether a release of Linux, such as `6.1.0-56-cloud-amd64`, is that version or a later one.
fn is_since(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).is_some_and(|release| release >= version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

    /// A cold file of `bytes` on a real filesystem (`/tmp` may be memory).
    fn cold(bytes: usize) -> (tempfile::NamedTempFile, FileMapping) {
        let folder = if std::path::Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "." };
        let file = tempfile::NamedTempFile::new_in(folder).unwrap();
        std::fs::write(file.path(), vec![5; bytes]).unwrap();
        file.as_file().sync_all().unwrap();
        posix_fadvise(file.as_file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        let mapping = FileMapping::new(file.as_file(), bytes as u64, Writes::Refused).unwrap();
        (file, mapping)
    }

    #[test]
    fn populating_makes_just_the_asked_range_resident() {
        let (_file, mapping) = cold(8 << 20);
        if mapping.resident_bytes(0..8 << 20).unwrap() != 0 {
            eprintln!("SKIPPED: the filesystem here keeps its files in memory");
            return;
        }
        if !populating_ends() {
            assert_eq!(mapping.populate(0..4096).unwrap_err().errno, Errno::ENOSYS);
            return;
        }
        mapping.expect(0..8 << 20, Expect::Random).unwrap();
        mapping.populate(5000..(1 << 20) + 5000).unwrap();
        assert_eq!(mapping.resident_bytes(5000..(1 << 20) + 5000).unwrap(), 1 << 20);
        assert_eq!(mapping.resident_bytes(4 << 20..8 << 20).unwrap(), 0);
        assert_eq!(mapping.populate(0..(8 << 20) + 1).unwrap_err().errno, Errno::EINVAL);
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert!(is_since("6.12.117+deb12-cloud-amd64", (6, 9)) && is_since("6.9-rc5", (6, 9)));
        assert!(is_since("7.0", (6, 9)) && !is_since("6.1.0-56-cloud-amd64", (6, 9)));
        assert!(!is_since("5.15.0-generic", (6, 9)) && !is_since("", (6, 9)));
    }

    #[test]
    fn populating_what_was_cut_off_is_an_error_and_not_a_signal() {
        let (file, mapping) = cold(1 << 20);
        file.as_file().set_len(8192).unwrap();
        let expected = if populating_ends() { Errno::EFAULT } else { Errno::ENOSYS };
        assert_eq!(mapping.populate(0..1 << 20).unwrap_err().errno, expected);
    }

    #[test]
    fn reclaimed_pages_come_again() {
        let (_file, mapping) = cold(1 << 20);
        let mut buffer = vec![0; 1 << 20];
        mapping.read_into(0, &mut buffer).unwrap();
        assert_eq!(mapping.reclaim(1..(1 << 20)).unwrap(), (1 << 20) - 4096);
        buffer.fill(0);
        mapping.read_into(0, &mut buffer).unwrap();
        assert_eq!(buffer, vec![5; 1 << 20]);
    }
}

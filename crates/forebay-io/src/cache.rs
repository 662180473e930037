//! The page cache: what of a file it holds, and asking it to let go.

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `cachestat`, Linux 6.5; the same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

#[repr(C)]
struct CacheStatRange {
    offset: u64,
    bytes: u64,
}

#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached_pages: u64,
    dirty_pages: u64,
    writeback_pages: u64,
    evicted_pages: u64,
    recently_evicted_pages: u64,
}

/// How many bytes of `range` are in the page cache, in whole pages (so it can exceed a range
/// that is not page-aligned by up to two pages).
///
/// # Errors
/// `ENOSYS` before Linux 6.5, `EPERM` under some seccomp filters, `EOPNOTSUPP` on hugetlbfs.
pub fn cached_bytes(file: &File, range: Range<u64>) -> Result<u64, Errno> {
    if range.is_empty() {
        return Ok(0);
    }
    let asked = CacheStatRange { offset: range.start, bytes: range.end - range.start };
    let mut answer = CacheStat::default();
    // SAFETY: both structures are laid out as the kernel's, live on this stack, and are only
    // read and written during the call.
    let status = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            std::ptr::from_ref(&asked),
            std::ptr::from_mut(&mut answer),
            0,
        )
    };
    Errno::result(status).map(|_| answer.cached_pages * forebay_mem::page_bytes() as u64)
}

/// Whether the byte at `offset` can be read without waiting for storage, tried by reading it with
/// `RWF_NOWAIT`. `false` too where the filesystem does not know the flag.
#[must_use]
pub fn is_cached_at(file: &File, offset: u64) -> bool {
    let mut byte = 0_u8;
    let vector = libc::iovec { iov_base: std::ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    let Ok(offset) = i64::try_from(offset) else { return false };
    // SAFETY: the vector describes one byte of this stack, which the kernel writes during the
    // call and keeps no reference to.
    let count =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
    count == 1
}

/// Asks the page cache to let go of `range`'s clean, unmapped pages. Needs no privilege.
///
/// # Errors
/// What `posix_fadvise` answers.
pub fn drop_cached(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EOVERFLOW);
    let (offset, bytes) = (signed(range.start)?, signed(range.end - range.start)?);
    posix_fadvise(file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
}

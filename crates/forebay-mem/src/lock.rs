//! Locking mapped pages, exactly, and saying exactly what was refused.
//!
//! Locking and bringing in are two things. A range is first locked *on fault* (`mlock2`), which
//! costs nothing and meets the limits at once, before a byte is read; whoever populates it
//! afterwards locks it by doing so, in steps that can be cancelled and at the rate of a prefetch.
//! A plain `mlock` would fault everything in within one call that nobody can stop.

use crate::align::Alignment;
use crate::mapping::{FileMapping, length};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::ops::Range;
use std::sync::Arc;

/// What locking came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockReport {
    /// Bytes in whole pages that hold a wanted byte.
    pub requested_bytes: u64,
    /// Of these, bytes now locked.
    pub locked_bytes: u64,
    /// Of these, bytes the system refused.
    pub refused_bytes: u64,
    /// The first refusal: `ENOMEM` past RLIMIT_MEMLOCK, `EPERM` when the limit is zero.
    pub errno: Option<Errno>,
}

/// Pages locked in memory until it is dropped.
#[derive(Debug, Default)]
pub struct PageLock {
    locked: Vec<(Arc<FileMapping>, Range<u64>)>,
    report: LockReport,
}

impl PageLock {
    /// Locks the pages of `range` of the file: those that are there now, the others as they are
    /// populated. Of a range that a limit cuts, the first part is locked, to the page. `most_bytes`
    /// is a limit of the caller's. Give each page once: locks do not nest.
    pub fn lock(&mut self, mapping: &Arc<FileMapping>, range: Range<u64>, most_bytes: u64) {
        let page = Alignment::page();
        let start = page.down(range.start);
        let end = page.up(range.end.min(mapping.bytes())).unwrap_or(range.end);
        let bytes = end.saturating_sub(start);
        if range.is_empty() || bytes == 0 {
            return;
        }
        self.report.requested_bytes += bytes;
        let mut allowed = bytes.min(page.down(most_bytes));
        let mut errno = (allowed < bytes).then_some(Errno::ENOMEM);
        if allowed > 0
            && let Err(refusal) = lock_on_fault(mapping, start, allowed)
        {
            errno = Some(refusal);
            allowed = allowed.min(page.down(lockable_bytes().unwrap_or(0)));
            if allowed > 0 && lock_on_fault(mapping, start, allowed).is_err() {
                allowed = 0;
            }
        }
        if allowed > 0 {
            self.locked.push((Arc::clone(mapping), start..start + allowed));
        }
        self.report.locked_bytes += allowed;
        self.report.refused_bytes += bytes - allowed;
        self.report.errno = self.report.errno.or(errno.filter(|_| allowed < bytes));
    }

    /// Faults in what is locked and not there yet, all at once: for systems where pages can't be
    /// populated.
    pub fn lock_in(&self) {
        for (mapping, range) in &self.locked {
            let bytes = length(range.end - range.start);
            // SAFETY: a range of the mapping that is held, locked already; no byte changes. What is
            // refused comes, and is locked, when it is touched.
            unsafe { libc::mlock(mapping.address(range.start).cast(), bytes) };
        }
    }

    /// What is locked: the mapping and the range, in the order of locking.
    pub fn locked(&self) -> impl Iterator<Item = (&Arc<FileMapping>, Range<u64>)> {
        let inside = |(mapping, range): &(Arc<FileMapping>, Range<u64>)| {
            range.start..range.end.min(mapping.bytes())
        };
        self.locked.iter().map(move |locked| (&locked.0, inside(locked)))
    }

    /// What came of it so far.
    #[must_use]
    pub fn report(&self) -> LockReport {
        self.report
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        for (mapping, range) in &self.locked {
            let bytes = length(range.end - range.start);
            // SAFETY: the same range that was locked; the mapping is held, so it is still there.
            unsafe { libc::munlock(mapping.address(range.start).cast(), bytes) };
        }
    }
}

fn lock_on_fault(mapping: &FileMapping, start: u64, bytes: u64) -> Result<(), Errno> {
    let address = mapping.address(start);
    // SAFETY: the pages are the mapping's (its last one is mapped whole, whatever the file's
    // length); locking changes no byte, only residency.
    let answer = unsafe {
        libc::syscall(libc::SYS_mlock2, address, length(bytes), libc::MLOCK_ONFAULT as libc::c_int)
    };
    match Errno::result(answer) {
        // Before Linux 4.4, and in sandboxes that know only the older call: all at once then.
        Err(Errno::ENOSYS | Errno::EINVAL) => {
            // SAFETY: as above.
            let answer = unsafe { libc::mlock(address.cast(), length(bytes)) };
            Errno::result(answer).map(drop)
        }
        answer => answer.map(drop),
    }
}

/// The soft RLIMIT_MEMLOCK in bytes, `None` when unlimited or unknown.
#[must_use]
pub fn memlock_limit_bytes() -> Option<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::libc::RLIM_INFINITY).then_some(soft)
}

/// How much more the limit lets this process lock; `None` when unlimited or unknown.
fn lockable_bytes() -> Option<u64> {
    let limit = memlock_limit_bytes()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"))?;
    let locked_kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(limit.saturating_sub(locked_kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Writes;

    fn mapping(bytes: u64) -> Arc<FileMapping> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        Arc::new(FileMapping::new(&file, bytes, Writes::Refused).unwrap())
    }

    /// One test for both, since what is locked is counted for the whole process.
    #[test]
    fn whole_pages_are_locked_and_the_callers_limit_cuts_to_the_page_and_dropping_unlocks() {
        let before = lockable_bytes();
        let mapping = mapping((1 << 16) + 5);
        let mut lock = PageLock::default();
        lock.lock(&mapping, 100..4097, u64::MAX);
        lock.lock(&mapping, 65_536..65_541, u64::MAX);
        assert_eq!(lock.report().requested_bytes, 8192 + 4096);
        lock.lock(&mapping, 16_384..40_960, 9000);
        let report = lock.report();
        assert_eq!(report.requested_bytes, 8192 + 4096 + 24_576);
        assert_eq!(report.locked_bytes + report.refused_bytes, report.requested_bytes);
        assert_eq!((report.locked_bytes, report.errno), (8192 + 4096 + 8192, Some(Errno::ENOMEM)));
        if let Some(before) = before {
            assert_eq!(lockable_bytes(), Some(before - report.locked_bytes));
        }
        drop(lock);
        assert_eq!(lockable_bytes(), before);
    }
}

//! Locking mapped pages, exactly, and saying exactly what was refused.

use crate::align::Alignment;
use crate::mapping::MappedView;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::ops::Range;

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
    locked: Vec<MappedView>,
}

impl PageLock {
    /// Locks the pages of `views` (one file's or several), page-rounded and merged so that a page
    /// shared by two tensors counts once; carries on past refusals and reports them.
    #[must_use]
    pub fn new(views: &[MappedView]) -> (Self, LockReport) {
        let mut lock = Self::default();
        let mut report = LockReport::default();
        for view in merged(views) {
            let bytes = view.bytes();
            report.requested_bytes += bytes;
            #[allow(clippy::cast_possible_truncation, reason = "bounded by the mapping")]
            // SAFETY: the view's pages are mapped; locking changes no byte, only residency.
            let answer = unsafe { libc::mlock(view.address().cast(), bytes as usize) };
            match Errno::result(answer) {
                Ok(_) => {
                    report.locked_bytes += bytes;
                    lock.locked.push(view);
                }
                Err(errno) => {
                    report.refused_bytes += bytes;
                    report.errno.get_or_insert(errno);
                }
            }
        }
        (lock, report)
    }
}

impl Drop for PageLock {
    fn drop(&mut self) {
        for view in &self.locked {
            #[allow(clippy::cast_possible_truncation, reason = "bounded by the mapping")]
            // SAFETY: the same range that was locked; the view kept its mapping alive.
            unsafe {
                libc::munlock(view.address().cast(), view.bytes() as usize)
            };
        }
    }
}

/// The soft RLIMIT_MEMLOCK in bytes, `None` when unlimited or unknown.
#[must_use]
pub fn memlock_limit_bytes() -> Option<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    (soft != nix::libc::RLIM_INFINITY).then_some(soft)
}

/// The views rounded outward to pages, neighbours in one mapping joined, none twice.
fn merged(views: &[MappedView]) -> Vec<MappedView> {
    let page = Alignment::page();
    let mut sorted: Vec<&MappedView> = views.iter().filter(|view| view.bytes() > 0).collect();
    sorted.sort_by_key(|view| (view.mapping().address(0) as usize, view.file_offset()));
    let mut joined: Vec<MappedView> = Vec::new();
    for view in sorted {
        let end = view.file_offset() + view.bytes();
        let start = page.down(view.file_offset());
        let end = page.up(end).unwrap_or(end).min(view.mapping().bytes());
        match joined.last_mut() {
            Some(last) if reaches(last, view, start) => {
                let range: Range<u64> =
                    last.file_offset()..end.max(last.file_offset() + last.bytes());
                *last = view.mapping().view(range).expect("inside the mapping, as both parts are");
            }
            _ => joined.extend(view.mapping().view(start..end)),
        }
    }
    joined
}

/// Whether `last` touches or overlaps a range of `view`'s mapping that begins at `start`.
fn reaches(last: &MappedView, view: &MappedView, start: u64) -> bool {
    std::sync::Arc::ptr_eq(last.mapping(), view.mapping())
        && last.file_offset() + last.bytes() >= start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileMapping;
    use std::sync::Arc;

    #[test]
    fn a_page_shared_by_two_tensors_is_asked_for_once() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 16).unwrap();
        let mapping = Arc::new(FileMapping::new(&file, 1 << 16).unwrap());
        let views: Vec<_> = [0..100, 100..5000, 4096..4097, 20_000..20_001, 30_000..30_000]
            .into_iter()
            .map(|range| mapping.view(range).unwrap())
            .collect();
        let (lock, report) = PageLock::new(&views);
        assert_eq!(report.requested_bytes, 8192 + 4096);
        assert_eq!(report.locked_bytes + report.refused_bytes, report.requested_bytes);
        drop(lock);
    }
}

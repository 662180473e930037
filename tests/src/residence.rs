//! What the kernel says of pages, asked for without any of the loader's own code.

use forebay_mem::{MappedView, page_bytes};
use std::fs::File;
use std::io::Error;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Makes the page cache forget a file. `false` where it can't: the filesystem keeps its files in
/// memory, and nothing on it is ever cold.
///
/// # Panics
/// If the file is not there.
#[must_use]
pub fn forget(path: &Path) -> bool {
    let file = File::open(path).expect("the file is there");
    file.sync_all().expect("a file can be synced");
    // SAFETY: advice about an open descriptor.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    let bytes = file.metadata().expect("an open file has metadata").len();
    cached_bytes(path, 0..bytes) == 0
}

/// How many bytes of a range of a file lie in pages of the page cache: `mincore` of a mapping made
/// for the question, which brings no page in.
///
/// # Panics
/// If the file is not there, or the range is not in it.
#[must_use]
pub fn cached_bytes(path: &Path, range: Range<u64>) -> u64 {
    let page = page_bytes() as u64;
    let first = range.start / page;
    let cached = cached_pages(&File::open(path).expect("the file is there"));
    let inside = |page_number: u64| {
        let start = page_number * page;
        (start + page).min(range.end) - start.max(range.start)
    };
    (first..range.end.div_ceil(page))
        .filter(|&page| cached[usize::try_from(page).expect("a page of a mapping")])
        .map(inside)
        .sum()
}

/// Which pages of a file are in the page cache, first to last.
fn cached_pages(file: &File) -> Vec<bool> {
    let bytes = file.metadata().expect("an open file has metadata").len();
    let bytes = usize::try_from(bytes).expect("a file that fits the address space");
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: a new mapping at an address of the kernel's choice; the answer is checked.
    let start = unsafe {
        let (protection, kind) = (libc::PROT_READ, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), bytes, protection, kind, file.as_raw_fd(), 0)
    };
    assert_ne!(start, libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
    let mut pages = vec![0_u8; bytes.div_ceil(page_bytes())];
    // SAFETY: asks about the whole mapping, and `pages` has a byte for each page of it.
    let answer = unsafe { libc::mincore(start, bytes, pages.as_mut_ptr()) };
    let error = Error::last_os_error();
    // SAFETY: the mapping made above, which nobody else has heard of.
    unsafe { libc::munmap(start, bytes) };
    assert_eq!(answer, 0, "mincore: {error}");
    pages.into_iter().map(|page| page & 1 == 1).collect()
}

/// Page faults that a thread has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// Those that waited for storage.
    pub major: u64,
    /// Those that did not.
    pub minor: u64,
}

/// The faults of the calling thread, from its start.
///
/// # Panics
/// If the system does not count.
#[must_use]
pub fn faults() -> Faults {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage`, which outlives the call.
    let answer = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    assert_eq!(answer, 0, "getrusage: {}", Error::last_os_error());
    // SAFETY: plain integers, all zero is a value, and the call succeeded.
    let usage = unsafe { usage.assume_init() };
    let count = |faults| u64::try_from(faults).expect("a count");
    Faults { major: count(usage.ru_majflt), minor: count(usage.ru_minflt) }
}

/// The faults that the calling thread takes when it looks at a byte of every page of the views, as
/// whoever computes with them does. The files must be left alone meanwhile.
#[must_use]
pub fn faults_of_touching<'views>(views: impl Iterator<Item = &'views MappedView>) -> Faults {
    let before = faults();
    for view in views {
        // SAFETY: tests write to no file of theirs while they touch it.
        let bytes = unsafe { view.as_slice() };
        // From page to page of the mapping; the view may begin anywhere in its first.
        let skipped = page_bytes() - bytes.as_ptr() as usize % page_bytes();
        let pages =
            bytes.first().into_iter().chain(bytes.iter().skip(skipped).step_by(page_bytes()));
        pages.for_each(|byte| {
            std::hint::black_box(*byte);
        });
    }
    let after = faults();
    Faults { major: after.major - before.major, minor: after.minor - before.minor }
}

/// What this process has of a file in its mappings, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// In its page table.
    pub present: u64,
    /// In mappings that are locked.
    pub locked: u64,
    /// Of these, in its page table: locked in deed.
    pub locked_present: u64,
}

/// Asks `/proc/self/smaps`.
///
/// # Panics
/// If it does not tell, or the file is not there.
#[must_use]
pub fn mapped(path: &Path) -> Mapped {
    let text = std::fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    // The kernel writes paths without links.
    let path = path.canonicalize().expect("the file is there");
    let mut all = Mapped::default();
    let (mut is_ours, mut bytes, mut present) = (false, 0, 0);
    let kib = |text: &str| -> u64 {
        text.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    };
    for line in text.lines() {
        if let Some((first, _)) = line.split_once(' ')
            && first.contains('-')
        {
            is_ours = Path::new(line.splitn(6, ' ').nth(5).unwrap_or("").trim()) == path;
        } else if let Some(size) = line.strip_prefix("Size:") {
            bytes = kib(size) << 10;
        } else if let Some(resident) = line.strip_prefix("Rss:") {
            present = kib(resident) << 10;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && is_ours
        {
            all.present += present;
            if flags.split_whitespace().any(|flag| flag == "lo") {
                all.locked += bytes;
                all.locked_present += present;
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Scratch, pattern};

    /// The target folder of a unit test is not told; `/var/tmp` is a disk where there is one.
    const FOLDER: &str = "/var/tmp";

    #[test]
    fn pages_that_were_read_are_cached_and_others_are_not() {
        let scratch = Scratch::new(FOLDER, &[(1 << 20) + 5]);
        let path = scratch.path(0);
        if !forget(&path) {
            return eprintln!("SKIPPED: {FOLDER} keeps its files in memory");
        }
        let file = File::open(&path).unwrap();
        // SAFETY: advice about an open descriptor.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        let mut page = vec![0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut page, 8192).unwrap();
        assert_eq!(page, pattern(0, (1 << 20) + 5)[8192..12_288]);
        assert_eq!(cached_bytes(&path, 8192..12_288), 4096);
        assert_eq!(cached_bytes(&path, 9000..9010), 10);
        assert_eq!(cached_bytes(&path, 64 << 10..(1 << 20) + 5), 0);
    }

    #[test]
    fn touching_counts_a_fault_for_what_is_not_there() {
        let scratch = Scratch::new(FOLDER, &[1 << 20]);
        let path = scratch.path(0);
        if !forget(&path) {
            return eprintln!("SKIPPED: {FOLDER} keeps its files in memory");
        }
        let mapping = forebay_mem::FileMapping::new(
            &File::open(&path).unwrap(),
            1 << 20,
            forebay_mem::Writes::Refused,
        )
        .unwrap();
        let view = std::sync::Arc::new(mapping).view(100..1 << 20).unwrap();
        assert_eq!(mapped(&path), Mapped::default());
        assert!(faults_of_touching([&view].into_iter()).major > 0);
        assert_eq!(faults_of_touching([&view].into_iter()), Faults { major: 0, minor: 0 });
        let expected = Mapped { present: 1 << 20, ..Mapped::default() };
        assert_eq!(mapped(&path), expected);
    }
}

//! Which bytes it was that could not be read.
//!
//! Of reads that are in flight at once the kernel makes one request where they are neighbours, and
//! such a request fails whole:
//!
//! ```text
//!   reads     ├── a ──┼── b ──┼── c ──┤        all three come back with an error, a perhaps first
//!   request   ├───────────────x───────┤        x: a sector that can't be read
//!   alone     ├── a ──┤ is right: not a
//!                     ├───┤   is right: the second half of b
//!                         ├─┤ fails, and so on to the sector
//! ```
//!
//! So when nothing is in flight any more, those that failed are read again alone, in halves and
//! halves of these. It takes a few reads for each; a drive may need seconds to give up a sector, so
//! it ends after [`PATIENCE`] with what is known by then.

use super::threads::preadv2;
use crate::cancel::Cancel;
use crate::file::ModelFile;
use crate::schedule::{Schedule, Suspect, is_of_a_place};
use forebay_mem::Alignment;
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// How long is looked.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is read at once; and no medium loses less than a sector.
const LOOK_BYTES: u64 = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// Names the first sector that can't be read, if a lone read tells of one.
pub(super) fn find(schedule: &mut Schedule, files: &[ModelFile], cancel: &Cancel) {
    let mut suspects = schedule.suspects().to_vec();
    suspects.sort_unstable_by_key(|suspect| (suspect.file, suspect.offset));
    let started = Instant::now();
    let is_enough = || cancel.is_cancelled() || started.elapsed() > PATIENCE;
    let mut memory = Vec::new();
    for suspect in &suspects {
        let file = &files[suspect.file];
        // Elsewhere nobody makes one request of several, and a read may wait for a server.
        let Some((direct, alignment)) = file.direct().ok().filter(|_| file.is_on_disk()) else {
            continue;
        };
        let slack = to_usize(alignment.memory.bytes());
        let bytes = to_usize(LOOK_BYTES.max(alignment.offset.bytes())) + slack;
        memory.clear();
        if memory.try_reserve_exact(bytes).is_err() {
            return;
        }
        // Written, so that it has its pages: btrfs reads otherwise through the page cache.
        memory.resize(bytes, 1);
        let skip = memory.as_ptr().align_offset(slack);
        let read = |offset, bytes| {
            let buffer = &mut memory[skip..][..to_usize(bytes)];
            preadv2(direct, buffer, offset, 0).map(u64::from)
        };
        if let Some((errno, offset)) = first_bad(suspect, alignment.offset, read, is_enough) {
            return schedule.stopped_for(suspect, errno, offset);
        }
    }
}

/// Where in `suspect` reading first fails, and how: to the sector, or what is known of it when it
/// `is_enough`.
fn first_bad(
    suspect: &Suspect,
    alignment: Alignment,
    mut read: impl FnMut(u64, u64) -> Result<u64, Errno>,
    is_enough: impl Fn() -> bool,
) -> Option<(Errno, u64)> {
    let step = alignment.bytes().max(SECTOR_BYTES);
    let most = LOOK_BYTES.max(step);
    let end = suspect.offset + u64::from(suspect.bytes);
    let (mut at, mut bytes) = (suspect.offset, most);
    // What the last read that failed was of, and how it did.
    let mut bad: Option<(u64, Errno)> = None;
    while at < end && !is_enough() {
        let length = bytes.min(end - at);
        match read(at, length) {
            // The end of the file, or so odd an answer that nothing follows from it.
            Ok(count) if count < step => break,
            Ok(count) => {
                at += count - count % step;
                // It came this time.
                if bad.is_some_and(|(bad_end, _)| at >= bad_end) {
                    (bad, bytes) = (None, most);
                }
            }
            Err(Errno::EINTR) => {}
            Err(errno) if is_of_a_place(errno) => {
                bad = Some((at + length, errno));
                if length <= step {
                    break;
                }
                bytes = (length / 2).next_multiple_of(step);
            }
            // Of something else than of what lies there.
            Err(_) => break,
        }
    }
    bad.map(|(_, errno)| (errno, at))
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const SUSPECT: Suspect = Suspect { read: 3, file: 0, offset: 7 * MIB, bytes: 1 << 20 };

    /// What is found of a medium with bad sectors, and by how many reads.
    fn found(bad: &[u64], align_bytes: u64, file_bytes: u64) -> (Option<u64>, u32) {
        let mut reads = 0;
        let read = |offset: u64, bytes: u64| {
            reads += 1;
            assert!(offset.is_multiple_of(align_bytes) && bytes.is_multiple_of(align_bytes));
            match bad.iter().any(|bad| (offset..offset + bytes).contains(bad)) {
                true => Err(Errno::ENODATA),
                false => Ok(bytes.min(file_bytes.saturating_sub(offset))),
            }
        };
        let alignment = Alignment::new(align_bytes).unwrap();
        let bad = first_bad(&SUSPECT, alignment, read, || false);
        (bad.map(|(errno, offset)| (assert_eq!(errno, Errno::ENODATA), offset).1), reads)
    }

    #[test]
    fn the_first_bad_sector_is_found_to_its_begin() {
        for align_bytes in [512, 4096] {
            for bad in [0, 1, 511, 512, 4095, 4096, 65536, 300_001, MIB / 2, MIB - 512, MIB - 1] {
                let at = SUSPECT.offset + bad;
                for also in [at, SUSPECT.offset + MIB - 1, SUSPECT.offset + MIB] {
                    let (offset, reads) = found(&[also, at], align_bytes, 9 * MIB);
                    assert_eq!(offset, Some(at - at % align_bytes), "{align_bytes}, {at}, {also}");
                    assert!(reads <= 23, "{reads} reads for {align_bytes}, {at}, {also}");
                }
            }
        }
    }

    #[test]
    fn beside_it_nothing_is_found() {
        let beside = [SUSPECT.offset - 1, SUSPECT.offset + MIB];
        assert_eq!(found(&beside, 4096, 9 * MIB), (None, 1));
        assert_eq!(found(&[], 4096, 9 * MIB), (None, 1));
        // The file ends in it, or was cut short before it meanwhile.
        assert_eq!(found(&[], 4096, SUSPECT.offset + 10_000).0, None);
        assert_eq!(found(&[], 4096, MIB).0, None);
    }

    #[test]
    fn what_comes_the_next_time_and_what_fails_for_something_else_is_not_bad() {
        let (answers, asked) = (std::cell::RefCell::new(Vec::new()), std::cell::Cell::new(0));
        let found = |first: &[Result<u64, Errno>]| {
            answers.replace(first.to_vec());
            asked.set(0);
            let read = |_, bytes| {
                let number = asked.replace(asked.get() + 1);
                answers.borrow().get(number).copied().unwrap_or(Ok(bytes))
            };
            (first_bad(&SUSPECT, Alignment::FALLBACK, read, || false), asked.get())
        };
        assert_eq!(found(&[Err(Errno::EIO)]), (None, 3));
        assert_eq!(found(&[Err(Errno::EINTR), Err(Errno::EIO)]), (None, 4));
        assert_eq!(found(&[Err(Errno::ENOMEM), Err(Errno::EIO)]), (None, 1));
        // Both halves come, and the rest of what follows fails.
        let fails: Vec<_> = [Err(Errno::EIO), Ok(MIB / 2), Ok(4096)]
            .into_iter()
            .chain([Err(Errno::EIO); 9])
            .collect();
        assert_eq!(found(&fails).0, Some((Errno::EIO, SUSPECT.offset + MIB / 2 + 4096)));
    }

    #[test]
    fn it_ends_with_what_is_known() {
        let reads = std::cell::Cell::new(0);
        let read = |_, _| (reads.set(reads.get() + 1), Err(Errno::EIO)).1;
        let is_enough = || reads.get() == 1;
        let bad = first_bad(&SUSPECT, Alignment::FALLBACK, read, is_enough);
        assert_eq!((bad, reads.get()), (Some((Errno::EIO, SUSPECT.offset)), 1));
        reads.set(0);
        let read = |offset, bytes| {
            reads.set(reads.get() + 1);
            let is_bad = offset + bytes == SUSPECT.offset + MIB;
            if is_bad { Err(Errno::EIO) } else { Ok(bytes) }
        };
        let is_enough = || reads.get() == 2;
        let bad = first_bad(&SUSPECT, Alignment::FALLBACK, read, is_enough);
        assert_eq!(bad, Some((Errno::EIO, SUSPECT.offset + MIB / 2)), "the first half came");
    }
}

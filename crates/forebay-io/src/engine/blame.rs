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
use crate::schedule::{Schedule, Suspect};
use forebay_mem::Alignment;
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// How long is looked.
const PATIENCE: Duration = Duration::from_secs(2);
/// No medium loses less.
const SECTOR: u64 = 512;

/// Names the first sector that can't be read, if a lone read tells of one.
pub(super) fn find(schedule: &mut Schedule, files: &[ModelFile], cancel: &Cancel) {
    let mut suspects = schedule.suspects().to_vec();
    suspects.sort_unstable_by_key(|suspect| (suspect.file, suspect.offset));
    let started = Instant::now();
    let is_enough = || cancel.is_cancelled() || started.elapsed() > PATIENCE;
    for suspect in &suspects {
        let Ok((file, alignment)) = files[suspect.file].direct() else { continue };
        let mut memory = vec![0; suspect.bytes as usize + to_usize(alignment.memory.bytes())];
        let skip = memory.as_ptr().align_offset(to_usize(alignment.memory.bytes()));
        let read = |offset, bytes| {
            let buffer = &mut memory[skip..][..to_usize(bytes)];
            preadv2(file, buffer, offset, 0).map(u64::from)
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
    let step = alignment.bytes().max(SECTOR);
    let end = suspect.offset + u64::from(suspect.bytes);
    let (mut at, mut bytes, mut bad) = (suspect.offset, u64::from(suspect.bytes), None);
    while at < end && !is_enough() {
        match read(at, bytes.min(end - at)) {
            // The end of the file, or so odd an answer that nothing follows from it.
            Ok(count) if count < step => break,
            Ok(count) => at += count - count % step,
            Err(errno) => {
                bad = Some((errno, at));
                if bytes <= step {
                    break;
                }
                bytes = (bytes / 2).next_multiple_of(step);
            }
        }
    }
    bad
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
    fn it_ends_with_what_is_known() {
        let reads = std::cell::Cell::new(0);
        let read = |_, _| (reads.set(reads.get() + 1), Err(Errno::EIO)).1;
        let is_enough = || reads.get() == 1;
        let bad = first_bad(&SUSPECT, Alignment::FALLBACK, read, is_enough);
        assert_eq!((bad, reads.get()), (Some((Errno::EIO, SUSPECT.offset)), 1));
    }
}

//! What the plan asks of the files: alignment, and what the page cache holds of them.

use super::FilePlan;
use forebay_io::{Access, ModelFile, cache};
use forebay_mem::Alignment;
use std::ops::Range;

/// From this share of a read's pages on, `auto` takes them from the page cache.
const CACHED_SHARE: (u64, u64) = (3, 4);

/// Reads are rounded to this at least: a page is what storage and page cache count in.
const ROUNDING_BYTES_MIN: u64 = 4096;

/// A file of which nothing is wanted yet.
pub(super) fn file_plan(file: &ModelFile) -> FilePlan {
    FilePlan {
        path: file.path().to_owned(),
        engine: "mmap",
        access: Access::Mapped,
        dio_align: file.direct().ok().map(|(_, alignment)| alignment.offset.bytes()),
        reads: 0,
        read_bytes: 0,
        wanted_bytes: 0,
        mapped_bytes: 0,
        cached_bytes: file.cached_bytes(0..file.bytes()).ok().map(|bytes| bytes.min(file.bytes())),
        is_mapped: false,
        direct_refused: None,
        mapping_refused: None,
    }
}

/// What reads of the file start and end at multiples of.
pub(super) fn rounding(file: &ModelFile) -> Alignment {
    let least = Alignment::new(ROUNDING_BYTES_MIN).unwrap_or(Alignment::FALLBACK);
    file.direct().map_or(least, |(_, alignment)| alignment.offset.max(alignment.memory).max(least))
}

/// Whether a read is better served by the page cache, of which `known` bytes of the whole file
/// are known to be there.
pub(super) fn is_cached(file: &ModelFile, known: Option<u64>, range: Range<u64>) -> bool {
    match known {
        Some(0) => false,
        Some(all) if all >= file.bytes() => true,
        Some(_) => {
            let bytes = range.end - range.start;
            let (share, of) = CACHED_SHARE;
            file.cached_bytes(range)
                .is_ok_and(|cached| cached.saturating_mul(of) >= bytes.saturating_mul(share))
        }
        // The kernel tells only owners and writers what is cached. Anyone may try to read
        // without waiting: the first and the last page stand for the read.
        None => {
            let last = range.end.saturating_sub(1).max(range.start);
            [range.start, last].iter().all(|&at| cache::is_cached_at(file.buffered(), at))
        }
    }
}

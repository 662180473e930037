//! From wanted byte ranges to reads and their segments. Pure arithmetic.

use forebay_device::Segment;
use forebay_io::{Access, ReadSpec};
use forebay_mem::Alignment;
use std::ops::Range;

/// Two wanted ranges with at most this between them are read as one: another operation costs more
/// than these bytes.
pub(crate) const GAP_BYTES_MAX: u64 = 64 << 10;

/// A tensor's bytes in a file, and the place that waits for them.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Where in the file; not empty.
    pub(crate) range: Range<u64>,
    /// Where its first byte belongs in the tensor.
    pub(crate) tensor_offset: u64,
    /// Which arena.
    pub(crate) arena: usize,
    /// Which tensor of the arena.
    pub(crate) tensor: usize,
}

/// Reads in file order, each with its segments.
pub(crate) struct Cut {
    pub(crate) reads: Vec<ReadSpec>,
    pub(crate) segments: Vec<Vec<Segment>>,
}

/// How a file is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) file: usize,
    pub(crate) file_bytes: u64,
    /// What reads start and end at multiples of.
    pub(crate) rounding: Alignment,
    /// The most that one read takes; a multiple of the rounding.
    pub(crate) chunk_bytes: u64,
    /// Wanted ranges with at most this between them are read as one.
    pub(crate) gap_bytes_max: u64,
}

/// Cuts what is wanted of one file into reads. `wanted` is sorted by start, and may overlap.
///
/// Every block of the file that holds a wanted byte is in exactly one read.
pub(crate) fn cut(shape: Shape, access: Access, wanted: &[Wanted]) -> Cut {
    let Shape { file, file_bytes, rounding, chunk_bytes, gap_bytes_max } = shape;
    let mut reads = Vec::new();
    for extent in extents(wanted, rounding, gap_bytes_max) {
        let mut start = extent.start;
        while start < extent.end {
            let end = (start + chunk_bytes).min(extent.end);
            reads.push(ReadSpec {
                file,
                offset: start,
                bytes: narrow(end - start),
                need_bytes: narrow(end.min(file_bytes) - start),
                access,
            });
            start = end;
        }
    }
    let mut segments = vec![Vec::new(); reads.len()];
    for piece in wanted {
        let first = reads.partition_point(|read| end_of(read) <= piece.range.start);
        for (read, segments) in reads[first..].iter().zip(&mut segments[first..]) {
            if read.offset >= piece.range.end {
                break;
            }
            let start = piece.range.start.max(read.offset);
            let end = piece.range.end.min(end_of(read));
            segments.push(Segment {
                arena: piece.arena,
                tensor: piece.tensor,
                slot_offset: narrow(start - read.offset),
                tensor_offset: piece.tensor_offset + (start - piece.range.start),
                bytes: narrow(end - start),
            });
        }
    }
    Cut { reads, segments }
}

/// The aligned ranges of the file that hold everything wanted, small gaps included.
pub(crate) fn extents(
    wanted: &[Wanted],
    rounding: Alignment,
    gap_bytes_max: u64,
) -> Vec<Range<u64>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    for piece in wanted {
        // Past the end of u64 lies past the end of every file: the range itself is all there is.
        let range = rounding.outward(piece.range.clone()).unwrap_or(piece.range.clone());
        match extents.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap_bytes_max) => {
                last.end = last.end.max(range.end);
            }
            _ => extents.push(range),
        }
    }
    extents
}

fn end_of(read: &ReadSpec) -> u64 {
    read.offset + u64::from(read.bytes)
}

/// Lengths within a chunk, which the plan keeps below 1 GiB.
fn narrow(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("a chunk is at most 1 GiB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(ranges: &[Range<u64>]) -> Vec<Wanted> {
        let piece = |(tensor, range): (usize, &Range<u64>)| Wanted {
            range: range.clone(),
            tensor_offset: 0,
            arena: 0,
            tensor,
        };
        ranges.iter().enumerate().map(piece).collect()
    }

    fn shape(file_bytes: u64, rounding: Alignment, chunk_bytes: u64) -> Shape {
        Shape { file: 0, file_bytes, rounding, chunk_bytes, gap_bytes_max: GAP_BYTES_MAX }
    }

    proptest! {
        /// Whatever is wanted, its segments fill each tensor exactly once, lie inside their
        /// reads, and the reads are aligned, in order, and never overlap.
        #[test]
        fn every_wanted_byte_has_one_segment(
            starts in prop::collection::vec((0_u64..3_000_000, 1_u64..400_000), 1..40),
            rounding in prop::sample::select(vec![512_u64, 4096]),
            chunk in prop::sample::select(vec![4096_u64, 65_536, 1 << 20]),
        ) {
            let mut ranges: Vec<_> = starts.iter().map(|&(at, len)| at..at + len).collect();
            ranges.sort_by_key(|range| range.start);
            let file_bytes = ranges.iter().map(|range| range.end).max().unwrap();
            let rounding = Alignment::new(rounding).unwrap();
            let wanted = pieces(&ranges);
            let cut = cut(shape(file_bytes, rounding, chunk), Access::Direct, &wanted);
            let mut filled = vec![0_u64; ranges.len()];
            for (read, segments) in cut.reads.iter().zip(&cut.segments) {
                prop_assert!(rounding.divides(read.offset) && rounding.divides(read.bytes.into()));
                prop_assert!(u64::from(read.bytes) <= chunk && read.need_bytes <= read.bytes);
                prop_assert!(read.offset + u64::from(read.need_bytes) <= file_bytes);
                for segment in segments {
                    prop_assert!(segment.slot_offset + segment.bytes <= read.need_bytes);
                    let at = read.offset + u64::from(segment.slot_offset);
                    prop_assert_eq!(at, ranges[segment.tensor].start + segment.tensor_offset);
                    prop_assert_eq!(segment.tensor_offset, filled[segment.tensor]);
                    filled[segment.tensor] += u64::from(segment.bytes);
                }
            }
            for (range, filled) in ranges.iter().zip(filled) {
                prop_assert_eq!(range.end - range.start, filled);
            }
            for pair in cut.reads.windows(2) {
                prop_assert!(end_of(&pair[0]) <= pair[1].offset);
            }
        }
    }

    #[test]
    fn a_wide_gap_is_not_read() {
        let wanted = pieces(&[0..10, (1 << 20)..(1 << 20) + 10]);
        let cut = cut(shape(2 << 20, Alignment::FALLBACK, 1 << 20), Access::Direct, &wanted);
        assert_eq!(cut.reads.iter().map(|read| read.bytes).sum::<u32>(), 8192);
    }
}

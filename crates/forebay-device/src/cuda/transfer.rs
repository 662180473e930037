//! Copies out of a slot. Pure arithmetic.

use crate::uploader::Columns;
use std::ops::Range;

/// A copy out of a slot: of one stretch, or of `rows` stretches at equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) slot_offset: u64,
    pub(super) slot_pitch: u64,
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

impl Columns {
    /// How much of a row is wanted.
    fn width(&self) -> u64 {
        self.slice.end - self.slice.start
    }

    /// What of `range`, in bytes of the whole matrix, which begins at `slot_offset`, goes where in
    /// `home`, the addresses of the slice, as at most three copies: the rest of a row, whole rows,
    /// the begin of a row.
    pub(super) fn copies(
        &self,
        home: Range<u64>,
        slot_offset: u64,
        range: Range<u64>,
        copies: &mut Vec<Transfer>,
    ) {
        let (width, row_bytes) = (self.width(), self.row_bytes);
        let rows = (home.end - home.start) / width;
        assert!(range.end <= rows * row_bytes, "{range:?} of {rows} rows of {row_bytes} bytes");
        let part_of_row = |part: Range<u64>, copies: &mut Vec<Transfer>| {
            let row = part.start / row_bytes;
            let start = (row * row_bytes + self.slice.start).max(part.start);
            let end = (row * row_bytes + self.slice.end).min(part.end);
            if start < end {
                let address =
                    home.start + row * width + (start - row * row_bytes - self.slice.start);
                let slot_offset = slot_offset + (start - range.start);
                copies.push(Transfer {
                    slot_offset,
                    slot_pitch: 0,
                    address,
                    bytes: end - start,
                    rows: 1,
                });
            }
        };
        let head_end = range.start.next_multiple_of(row_bytes).min(range.end);
        if range.start < head_end {
            part_of_row(range.start..head_end, copies);
        }
        let whole_rows = (range.end - head_end) / row_bytes;
        if whole_rows > 0 {
            copies.push(Transfer {
                slot_offset: slot_offset + (head_end - range.start) + self.slice.start,
                slot_pitch: row_bytes,
                address: home.start + head_end / row_bytes * width,
                bytes: width,
                rows: whole_rows,
            });
        }
        let tail_start = head_end + whole_rows * row_bytes;
        if tail_start < range.end {
            part_of_row(tail_start..range.end, copies);
        }
    }
}

/// Offsets in a slot and on a device fit the address space.
#[allow(clippy::cast_possible_truncation, reason = "bounded by memory that exists")]
pub(super) fn inside(bytes: u64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the copies do, in ordinary memory.
    fn perform(copies: &[Transfer], slot: &[u8], device: &mut [u8]) {
        for copy in copies {
            for row in 0..copy.rows {
                let from = inside(copy.slot_offset + row * copy.slot_pitch);
                let to = inside(copy.address + row * copy.bytes);
                let bytes = inside(copy.bytes);
                device[to..to + bytes].copy_from_slice(&slot[from..from + bytes]);
            }
        }
    }

    proptest! {
        /// However a matrix is cut into reads, its columns arrive, each byte once.
        #[test]
        fn columns_are_taken_out_of_any_pieces(
            rows in 1_u64..9,
            row_bytes in 1_u64..40,
            cut in prop::collection::vec(1_u64..60, 1..30),
            slice in (0_u64..1000, 0_u64..1000),
        ) {
            let at = |share: u64| share * row_bytes / 1000;
            let (start, end) = (at(slice.0.min(slice.1)), at(slice.0.max(slice.1)) + 1);
            let columns = Columns { row_bytes, slice: start..end };
            let matrix: Vec<u8> = (0..=255).cycle().take(inside(rows * row_bytes)).collect();
            let bytes = rows * columns.width();
            let home = 3..3 + bytes;
            let mut device = vec![255; inside(bytes) + 6];
            let mut offset = 0;
            for piece in cut.iter().cycle() {
                let end = (offset + piece).min(rows * row_bytes);
                let mut copies = Vec::new();
                columns.copies(home.clone(), 5, offset..end, &mut copies);
                prop_assert!(copies.len() <= 3);
                let mut slot = vec![254; 5];
                slot.extend(&matrix[inside(offset)..inside(end)]);
                perform(&copies, &slot, &mut device);
                offset = end;
                if offset == rows * row_bytes {
                    break;
                }
            }
            let wanted: Vec<u8> = matrix
                .chunks(inside(row_bytes))
                .flat_map(|row| &row[inside(start)..inside(end)])
                .copied()
                .collect();
            prop_assert_eq!(&device[3..3 + wanted.len()], &wanted[..]);
            prop_assert_eq!(&device[..3], &[255; 3]);
            prop_assert_eq!(&device[3 + wanted.len()..], &[255; 3]);
        }
    }
}

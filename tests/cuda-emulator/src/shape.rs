//! The shape of a copy: rows, how long they are, and how far apart on either side.

use crate::error::{Answer, Code};
use std::ops::Range;

/// Rows of `width` bytes; one row is an ordinary copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) rows: usize,
    /// From the start of one row to the next.
    pub(crate) host_pitch: usize,
    pub(crate) device_pitch: usize,
}

impl Shape {
    pub(crate) fn line(bytes: usize) -> Self {
        Self { width: bytes, rows: 1, host_pitch: bytes, device_pitch: bytes }
    }

    /// Bytes that are copied.
    pub(crate) fn bytes(&self) -> usize {
        self.width * self.rows
    }

    /// Bytes from the first to the last, with rows `pitch` apart.
    pub(crate) fn extent(&self, pitch: usize) -> Answer<usize> {
        let before = (self.rows - 1).checked_mul(pitch);
        before.and_then(|before| before.checked_add(self.width)).ok_or(Code::INVALID_VALUE)
    }

    /// The pieces of rows that make up `range` of the bytes: where, from which byte, how many.
    pub(crate) fn pieces(self, range: Range<usize>) -> impl Iterator<Item = RowPiece> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let (row, column) = (at / self.width, at % self.width);
            let bytes = (self.width - column).min(range.end.saturating_sub(at));
            let piece = RowPiece {
                host: row * self.host_pitch + column,
                device: row * self.device_pitch + column,
                at,
                bytes,
            };
            at += bytes;
            (bytes > 0).then_some(piece)
        })
    }
}

/// Bytes of one row: offsets on either side, and among the bytes that are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPiece {
    pub(crate) host: usize,
    pub(crate) device: usize,
    pub(crate) at: usize,
    pub(crate) bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_ends_of_rows() {
        let shape = Shape { width: 10, rows: 3, host_pitch: 16, device_pitch: 100 };
        let pieces: Vec<_> =
            shape.pieces(5..25).map(|p| (p.host, p.device, p.at, p.bytes)).collect();
        assert_eq!(pieces, [(5, 5, 5, 5), (16, 100, 10, 10), (32, 200, 20, 5)]);
        assert_eq!(shape.extent(16), Ok(42));
        assert_eq!(Shape::line(7).pieces(0..7).count(), 1);
    }
}

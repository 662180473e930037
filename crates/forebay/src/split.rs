//! Matrices in parts: bands of rows or of columns. Pure arithmetic.

use forebay_device::Columns;
use forebay_format::Tensor;
use std::ops::Range;

/// Along what a matrix is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Axis {
    /// Into bands of whole rows, each of which lies in one piece in the file.
    Rows,
    /// Into bands of columns: of each row a slice, whose ends are ends of blocks.
    Columns,
}

/// A matrix as it is cut: all outer dimensions are rows, the innermost is columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    axis: Axis,
    rows: u64,
    columns: u64,
    row_bytes: u64,
    /// What each part gets: rows, or bytes of each row. Without gaps, and none is empty.
    bands: Vec<Range<u64>>,
}

impl Split {
    /// Cuts a tensor into at most `parts` parts of about the same size; fewer where it has fewer
    /// rows, or blocks in a row. `None` for what is no matrix, or has no bytes.
    pub(crate) fn new(tensor: &Tensor, axis: Axis, parts: usize) -> Option<Self> {
        let (columns, outer) = tensor.shape.split_last().filter(|(_, outer)| !outer.is_empty())?;
        let rows = outer.iter().try_fold(1_u64, |product, rows| product.checked_mul(*rows))?;
        let (block, block_bytes) = (tensor.dtype.block_elements(), tensor.dtype.block_bytes());
        if tensor.bytes == 0 || rows == 0 || !columns.is_multiple_of(block) {
            return None;
        }
        let row_bytes = columns / block * block_bytes;
        let (units, unit) = match axis {
            Axis::Rows => (rows, 1),
            Axis::Columns => (columns / block, block_bytes),
        };
        let parts = units.min(parts as u64);
        let bound = |part: u64| {
            let bound = u128::from(units) * u128::from(part) / u128::from(parts);
            u64::try_from(bound).map_or(units, |bound| bound) * unit
        };
        let bands = (0..parts).map(|part| bound(part)..bound(part + 1)).collect();
        let split = Self { axis, rows, columns: *columns, row_bytes, bands };
        (rows.checked_mul(row_bytes) == Some(tensor.bytes)).then_some(split)
    }

    pub(crate) fn axis(&self) -> Axis {
        self.axis
    }

    pub(crate) fn parts(&self) -> usize {
        self.bands.len()
    }

    /// The size of a part.
    pub(crate) fn part_bytes(&self, part: usize) -> u64 {
        let band = self.bands[part].end - self.bands[part].start;
        match self.axis {
            Axis::Rows => band * self.row_bytes,
            Axis::Columns => band * self.rows,
        }
    }

    /// The bytes of the tensor that a part is made from.
    pub(crate) fn wanted(&self, part: usize) -> Range<u64> {
        let band = &self.bands[part];
        match self.axis {
            Axis::Rows => band.start * self.row_bytes..band.end * self.row_bytes,
            Axis::Columns => 0..self.rows * self.row_bytes,
        }
    }

    /// What of each row of these it takes.
    pub(crate) fn columns(&self, part: usize) -> Option<Columns> {
        let slice = self.bands[part].clone();
        (self.axis == Axis::Columns).then_some(Columns { row_bytes: self.row_bytes, slice })
    }

    /// The rows and columns of the matrix that a part holds, in elements.
    pub(crate) fn elements(&self, part: usize) -> (Range<u64>, Range<u64>) {
        let band = self.bands[part].clone();
        let column = |bytes: u64| {
            let column = u128::from(bytes) * u128::from(self.columns) / u128::from(self.row_bytes);
            u64::try_from(column).unwrap_or(self.columns)
        };
        match self.axis {
            Axis::Rows => (band, 0..self.columns),
            Axis::Columns => (0..self.rows, column(band.start)..column(band.end)),
        }
    }

    /// Puts the bytes of the whole tensor from `offset` on together again. `read` copies bytes of
    /// a part, from an offset in it on.
    pub(crate) fn gather<E>(
        &self,
        offset: u64,
        into: &mut [u8],
        mut read: impl FnMut(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset + into.len() as u64;
        if self.axis == Axis::Rows {
            for part in 0..self.parts() {
                let held = self.wanted(part);
                let (start, end) = (held.start.max(offset), held.end.min(end));
                if start < end {
                    let piece = &mut into[inside(start - offset)..inside(end - offset)];
                    read(part, start - held.start, piece)?;
                }
            }
            return Ok(());
        }
        let rows = offset / self.row_bytes..end.div_ceil(self.row_bytes);
        let mut band_rows = Vec::new();
        for (part, band) in self.bands.iter().enumerate() {
            let width = band.end - band.start;
            band_rows.resize(inside((rows.end - rows.start) * width), 0);
            read(part, rows.start * width, &mut band_rows)?;
            for (row, held) in rows.clone().zip(band_rows.chunks(inside(width))) {
                let at = row * self.row_bytes + band.start;
                let (start, end) = (at.max(offset), (at + width).min(end));
                if start < end {
                    let piece = &mut into[inside(start - offset)..inside(end - offset)];
                    piece.copy_from_slice(&held[inside(start - at)..inside(end - at)]);
                }
            }
        }
        Ok(())
    }
}

/// Offsets within memory that exists.
#[allow(clippy::cast_possible_truncation, reason = "bounded by the length of a slice")]
fn inside(bytes: u64) -> usize {
    bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_format::Dtype;
    use proptest::prelude::*;

    fn tensor(dtype: Dtype, shape: &[u64]) -> Tensor {
        let (columns, rows) = shape.split_last().unwrap();
        let bytes = columns / dtype.block_elements() * dtype.block_bytes();
        let bytes = bytes * rows.iter().product::<u64>();
        Tensor { name: "w".into(), dtype, shape: shape.to_vec(), file: 0, offset: 0, bytes }
    }

    #[test]
    fn what_is_no_matrix_stays_whole() {
        for axis in [Axis::Rows, Axis::Columns] {
            assert_eq!(Split::new(&tensor(Dtype::F32, &[7]), axis, 2), None);
            assert_eq!(Split::new(&tensor(Dtype::F32, &[0, 7]), axis, 2), None);
            assert_eq!(Split::new(&tensor(Dtype::F32, &[7, 0]), axis, 2), None);
        }
    }

    #[test]
    fn bands_end_with_blocks_and_none_is_empty() {
        let q4_0 = tensor(Dtype::Q4_0, &[3, 2, 96]);
        let split = Split::new(&q4_0, Axis::Columns, 2).unwrap();
        assert_eq!(split.elements(0), (0..6, 0..32));
        assert_eq!(split.elements(1), (0..6, 32..96));
        assert_eq!(split.columns(1), Some(Columns { row_bytes: 54, slice: 18..54 }));
        assert_eq!(split.part_bytes(1), 6 * 36);
        assert_eq!(Split::new(&q4_0, Axis::Columns, 9).unwrap().parts(), 3);
        let rows = Split::new(&q4_0, Axis::Rows, 4).unwrap();
        assert_eq!((rows.parts(), rows.elements(3)), (4, (4..6, 0..96)));
        assert_eq!(rows.wanted(3), 4 * 54..6 * 54);
    }

    proptest! {
        /// The parts together are the whole, from whichever byte on it is asked for.
        #[test]
        fn parts_are_put_together_again(
            rows in 1_u64..9,
            columns in 1_u64..9,
            parts in 1_usize..5,
            by_rows in any::<bool>(),
            (from, to) in (0_usize..1000, 0_usize..1000),
        ) {
            let tensor = tensor(Dtype::F16, &[rows, columns]);
            let axis = if by_rows { Axis::Rows } else { Axis::Columns };
            let split = Split::new(&tensor, axis, parts).unwrap();
            let whole: Vec<u8> = (0..=255).cycle().take(inside(tensor.bytes)).collect();
            let part = |part: usize| -> Vec<u8> {
                let wanted = split.wanted(part);
                let bytes = &whole[inside(wanted.start)..inside(wanted.end)];
                match split.columns(part) {
                    None => bytes.to_vec(),
                    Some(Columns { row_bytes, slice }) => bytes
                        .chunks(inside(row_bytes))
                        .flat_map(|row| row[inside(slice.start)..inside(slice.end)].to_vec())
                        .collect(),
                }
            };
            for index in 0..split.parts() {
                prop_assert_eq!(part(index).len() as u64, split.part_bytes(index));
            }
            let at = |share: usize| share * whole.len() / 1000;
            let range = at(from.min(to))..at(from.max(to));
            let mut read_back = vec![0; range.len()];
            let gathered = split.gather(range.start as u64, &mut read_back, |index, offset, into| {
                into.copy_from_slice(&part(index)[inside(offset)..][..into.len()]);
                Ok::<(), ()>(())
            });
            prop_assert_eq!(gathered, Ok(()));
            prop_assert_eq!(&read_back[..], &whole[range]);
        }
    }
}

//! The interleaved layout of `Q4_0` and `Q8_0`: sixteen rows side by side.
//!
//! In a file a row's blocks follow each other, so a processor that wants many products at once
//! takes them along the row, and has to add up the lanes of its registers in the end; each block's
//! scale is a lone half-precision float between the integers. Here, sixteen rows are woven
//! together, so that **a lane is a row**: one load brings four bytes of each of eight rows, one
//! load sixteen scales, the input's element is the same for all lanes, and nothing is ever added
//! across.
//!
//! ```text
//!  in the file, a row:     │ s │ q0 … q15 │ s │ q0 … q15 │ …          Q4_0: s 2 bytes, q 16
//!                          └── block 0 ───┴── block 1 ───┘            Q8_0: s 2 bytes, q 32
//!
//!  interleaved, block 0 of rows 0 to 15, then block 1 of the same rows, …; then rows 16 to 31:
//!
//!  offset  0        2        4               30
//!          │ s  r0  │ s  r1  │ s  r2  │  …   │ s  r15 │                     16 scales
//!         32            36            40              92
//!          │ q0..3 r0   │ q0..3 r1   │  …            │ q0..3 r15  │          64 bytes
//!         96           100                           156
//!          │ q4..7 r0   │ q4..7 r1   │  …            │ q4..7 r15  │          64 bytes
//!          …                              Q4_0: 4 lines of 64, 288 bytes; Q8_0: 8 lines, 544
//! ```
//!
//! It is a permutation of the tensor's bytes: as many bytes as in the file, and [`gather`] undoes
//! what [`scatter`] did. Rows beyond the last multiple of sixteen stay as they are in the file,
//! behind the others. A piece of the file can be scattered by itself, wherever it is cut, so a
//! loader that gets a tensor in pieces never holds it twice.
//!
//! [`gather`]: Interleaved::gather
//! [`scatter`]: Interleaved::scatter

mod moves;
mod product;

pub use product::matmul_interleaved;

use crate::error::{ComputeError, Operand};
use crate::shape::{Shape, check_length};
use forebay_format::Dtype;
use std::ops::Range;

/// Rows that are woven together.
pub(crate) const GROUP_ROWS: usize = 16;
/// The bytes of a block's scale.
const SCALE_BYTES: usize = 2;
/// The bytes of a row that stay together.
const PART_BYTES: usize = 4;
/// Where a group's integers begin, behind its scales.
const LINES_OFFSET: usize = GROUP_ROWS * SCALE_BYTES;
/// One part of each row.
const LINE_BYTES: usize = GROUP_ROWS * PART_BYTES;

/// Where a matrix's bytes are in the interleaved layout. It holds no bytes itself.
///
/// ```
/// use forebay_compute::{Interleaved, Shape};
/// use forebay_format::Dtype;
///
/// let layout = Interleaved::new(Dtype::Q4_0, Shape { rows: 32, columns: 64 })?;
/// let file: Vec<u8> = (0..layout.bytes()).map(|byte| (byte % 251) as u8).collect();
/// let mut packed = vec![0; layout.bytes()];
/// layout.scatter(0, &file[..100], &mut packed)?;
/// layout.scatter(100, &file[100..], &mut packed)?;
///
/// let mut again = vec![0; 300];
/// layout.gather(77, &packed, &mut again)?;
/// assert_eq!(again, file[77..377]);
/// # Ok::<(), forebay_compute::ComputeError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interleaved {
    dtype: Dtype,
    shape: Shape,
    block_bytes: usize,
    row_bytes: usize,
}

impl Interleaved {
    /// Whether there is an interleaved layout for a type.
    #[must_use]
    pub const fn supports(dtype: Dtype) -> bool {
        matches!(dtype, Dtype::Q4_0 | Dtype::Q8_0)
    }

    /// The layout of a matrix.
    ///
    /// # Errors
    /// [`ComputeError::NotInterleavable`] for types other than `Q4_0` and `Q8_0`,
    /// [`ComputeError::PartialBlock`] and [`ComputeError::TooLarge`] for impossible shapes.
    pub fn new(dtype: Dtype, shape: Shape) -> Result<Self, ComputeError> {
        if !Self::supports(dtype) {
            return Err(ComputeError::NotInterleavable { dtype });
        }
        shape.bytes(dtype)?;
        let row_bytes = shape.row_bytes(dtype)?;
        let block_bytes = usize::try_from(dtype.block_bytes()).unwrap_or(usize::MAX);
        Ok(Self { dtype, shape, block_bytes, row_bytes })
    }

    /// The type of the weights.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape of the weights.
    #[must_use]
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The bytes of the tensor: in the file, and interleaved.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.shape.rows * self.row_bytes
    }

    /// Puts a piece of the tensor's file bytes, the one that begins at `offset`, where it belongs
    /// in the interleaved tensor, `packed`. Pieces may be cut anywhere and come in any order; what
    /// belongs to other pieces isn't touched.
    ///
    /// Fast for pieces of many rows; the blocks at a piece's ends that are cut in two go byte by
    /// byte.
    ///
    /// # Errors
    /// [`ComputeError::Length`] if `packed` isn't [`bytes`](Self::bytes) long,
    /// [`ComputeError::OutOfRange`] if the piece reaches past that.
    pub fn scatter(
        &self,
        offset: u64,
        bytes: &[u8],
        packed: &mut [u8],
    ) -> Result<(), ComputeError> {
        check_length(Operand::Packed, self.bytes(), packed.len())?;
        let range = self.range(offset, bytes.len())?;
        moves::walk(self, range, &mut moves::Scatter { piece: bytes, packed });
        Ok(())
    }

    /// Reads back a piece of the tensor's file bytes, the one that begins at `offset` and is as
    /// long as `out`, out of the interleaved tensor.
    ///
    /// # Errors
    /// As [`scatter`](Self::scatter).
    pub fn gather(&self, offset: u64, packed: &[u8], out: &mut [u8]) -> Result<(), ComputeError> {
        check_length(Operand::Packed, self.bytes(), packed.len())?;
        let range = self.range(offset, out.len())?;
        moves::walk(self, range, &mut moves::Gather { piece: out, packed });
        Ok(())
    }

    /// The range of the interleaved tensor that holds the `len` file bytes at `offset`, and other
    /// bytes among them: what [`scatter`](Self::scatter) may write. Of a piece that reaches past
    /// the tensor's end, what is inside counts.
    #[must_use]
    pub fn touched(&self, offset: u64, len: usize) -> Range<u64> {
        let end = self.bytes() as u64;
        let range = offset.min(end)..offset.saturating_add(len as u64).min(end);
        // Both fit: they are at most the tensor's bytes.
        let cast = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let touched = self.touched_by(cast(range.start)..cast(range.end));
        touched.start as u64..touched.end as u64
    }

    fn touched_by(&self, range: Range<usize>) -> Range<usize> {
        if range.is_empty() {
            return range;
        }
        let (first, last) = (range.start, range.end - 1);
        let same_row = first / self.row_bytes == last / self.row_bytes;
        // A group's rows share the places of a block, so a piece that ends a row and goes on in
        // another row of its group touches all of the group's blocks.
        let start = if same_row || self.is_last_of_group(first) || self.is_in_rest(first) {
            self.start_of(first)
        } else {
            first - first % self.group_bytes()
        };
        let end = if same_row || self.is_first_of_group(last) || self.is_in_rest(last) {
            self.end_of(last)
        } else {
            last - last % self.group_bytes() + self.group_bytes()
        };
        start..end
    }

    /// Where the place of the block that a file byte is in begins.
    fn start_of(&self, byte: usize) -> usize {
        if self.is_in_rest(byte) {
            return byte;
        }
        let block = byte % self.row_bytes / self.block_bytes;
        byte - byte % self.group_bytes() + block * self.block_bytes * GROUP_ROWS
    }

    /// Where the place of the block that a file byte is in ends.
    fn end_of(&self, byte: usize) -> usize {
        if self.is_in_rest(byte) {
            return byte + 1;
        }
        self.start_of(byte) + self.block_bytes * GROUP_ROWS
    }

    fn is_first_of_group(&self, byte: usize) -> bool {
        byte % self.group_bytes() < self.row_bytes
    }

    fn is_last_of_group(&self, byte: usize) -> bool {
        byte % self.group_bytes() >= self.group_bytes() - self.row_bytes
    }

    /// Whether a file byte belongs to the rows that stay as they are in the file.
    fn is_in_rest(&self, byte: usize) -> bool {
        byte >= self.woven_bytes()
    }

    /// The bytes of sixteen rows.
    const fn group_bytes(&self) -> usize {
        GROUP_ROWS * self.row_bytes
    }

    /// The bytes of the rows that are woven together; those behind them are as in the file.
    const fn woven_bytes(&self) -> usize {
        self.shape.rows / GROUP_ROWS * self.group_bytes()
    }

    /// A piece of the tensor's file bytes, if it lies in the tensor.
    fn range(&self, offset: u64, piece_bytes: usize) -> Result<Range<usize>, ComputeError> {
        let tensor_bytes = self.bytes();
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(piece_bytes)?));
        range.filter(|range| range.end <= tensor_bytes).ok_or(ComputeError::OutOfRange {
            offset,
            piece_bytes,
            tensor_bytes,
        })
    }
}

//! What a computation refuses.

use forebay_format::Dtype;
use std::fmt;
use std::ops::Range;

/// Which of the slices handed in an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operand {
    /// The weights as the file has them, in bytes.
    Weights,
    /// The weights in their interleaved layout, in bytes.
    Packed,
    /// The inputs `x`, in `f32`s: `batch × columns`.
    Input,
    /// The outputs `y`, in `f32`s: `batch × rows`.
    Output,
    /// The decoded elements, in `f32`s.
    Elements,
}

impl fmt::Display for Operand {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Weights => "bytes of weights",
            Self::Packed => "bytes of interleaved weights",
            Self::Input => "floats of input (batch × columns)",
            Self::Output => "floats of output (batch × rows)",
            Self::Elements => "floats of decoded elements",
        })
    }
}

/// A refusal: what was asked can't be computed, and nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// The type's elements have no meaning as `f32`, or none that is written down.
    #[error("{dtype} can't be decoded to f32")]
    Unsupported {
        /// The type.
        dtype: Dtype,
    },
    /// Only some block types have an interleaved layout.
    #[error("{dtype} has no interleaved layout; Q4_0 and Q8_0 have")]
    NotInterleavable {
        /// The type.
        dtype: Dtype,
    },
    /// A row would end inside a block.
    #[error(
        "rows of {columns} elements are not whole blocks of {dtype} ({block_elements} elements)"
    )]
    PartialBlock {
        /// The type.
        dtype: Dtype,
        /// Elements of a row.
        columns: usize,
        /// Elements of a block.
        block_elements: u64,
    },
    /// The matrix would be larger than the address space.
    #[error("{rows} × {columns} elements of {dtype}, batch {batch}: more than the address space")]
    TooLarge {
        /// The type.
        dtype: Dtype,
        /// Rows of the weights.
        rows: usize,
        /// Elements of a row.
        columns: usize,
        /// Inputs multiplied at once.
        batch: usize,
    },
    /// A slice is longer or shorter than the shape says.
    #[error("expected {expected} {operand}, got {found}")]
    Length {
        /// Which slice.
        operand: Operand,
        /// Its length by the shape.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A piece of a tensor reaches past the tensor's end.
    #[error("a piece of {piece_bytes} bytes at {offset} of a tensor of {tensor_bytes} bytes")]
    OutOfRange {
        /// Where in the tensor's original bytes the piece begins.
        offset: u64,
        /// Bytes of the piece.
        piece_bytes: usize,
        /// Bytes of the tensor.
        tensor_bytes: usize,
    },
}

/// Why a product over borrowed or fetched weights failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatmulError<E> {
    /// The operands don't fit together; nothing was written to the output.
    #[error(transparent)]
    Refused(#[from] ComputeError),
    /// The weights couldn't be had; the output holds no result.
    #[error("can't read bytes {}..{} of the weights", bytes.start, bytes.end)]
    Weights {
        /// Which bytes of the tensor were asked for.
        bytes: Range<usize>,
        /// What their source answered.
        source: E,
    },
}

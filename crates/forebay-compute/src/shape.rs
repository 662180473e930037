//! The shape of a weight matrix, and whether operands fit it.

use crate::error::{ComputeError, Operand};
use forebay_format::Dtype;

/// A weight matrix: row after row, each row `columns` elements in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows, *m*: elements of an output.
    pub rows: usize,
    /// Elements of a row, *k*: elements of an input.
    pub columns: usize,
}

impl Shape {
    /// The bytes of one row of `dtype`.
    ///
    /// # Errors
    /// [`ComputeError::PartialBlock`] and [`ComputeError::TooLarge`].
    pub fn row_bytes(self, dtype: Dtype) -> Result<usize, ComputeError> {
        let Self { rows, columns } = self;
        let block_elements = dtype.block_elements();
        let elements = columns as u64;
        if !elements.is_multiple_of(block_elements) {
            return Err(ComputeError::PartialBlock { dtype, columns, block_elements });
        }
        dtype
            .bytes_for(elements)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or(ComputeError::TooLarge { dtype, rows, columns, batch: 1 })
    }

    /// The bytes of the whole matrix in `dtype`.
    ///
    /// # Errors
    /// [`ComputeError::PartialBlock`] and [`ComputeError::TooLarge`].
    pub fn bytes(self, dtype: Dtype) -> Result<usize, ComputeError> {
        let Self { rows, columns } = self;
        let bytes = self.row_bytes(dtype)?.checked_mul(rows);
        bytes.ok_or(ComputeError::TooLarge { dtype, rows, columns, batch: 1 })
    }

    /// Whether inputs and outputs have the lengths that `batch` products need.
    pub(crate) fn check_vectors(
        self,
        dtype: Dtype,
        x: &[f32],
        batch: usize,
        y: &[f32],
    ) -> Result<(), ComputeError> {
        let Self { rows, columns } = self;
        let expected = |elements: usize| {
            let product = elements.checked_mul(batch);
            product.ok_or(ComputeError::TooLarge { dtype, rows, columns, batch })
        };
        check_length(Operand::Input, expected(columns)?, x.len())?;
        check_length(Operand::Output, expected(rows)?, y.len())
    }
}

/// Whether a slice is as long as it has to be.
pub(crate) fn check_length(
    operand: Operand,
    expected: usize,
    found: usize,
) -> Result<(), ComputeError> {
    if expected == found {
        return Ok(());
    }
    Err(ComputeError::Length { operand, expected, found })
}

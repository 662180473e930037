//! Products of weights as they lie in the file.
//!
//! The rows are cut into tiles, some hundred KiB of weights each, that threads take one after the
//! other. A tile's weights are fetched at once, then decoded panel by panel into memory that stays
//! in the processor's cache, and each panel is multiplied with all inputs before the next.
//!
//! ```text
//!        columns ─────────────▶          panel: PANEL_ROWS × PANEL_COLUMNS, decoded
//!   rows ┌───────┬───────┬────┐
//!     │  │ panel │ panel │ …  │ tile     y[input][row] += panel · x[input]
//!     ▼  ├───────┼───────┼────┤
//!        │       │       │    │
//!        └───────┴───────┴────┘
//! ```
//!
//! Panels are cut by the same rule whatever the tile, and an output belongs to one tile, so the
//! number of threads can't show in the results.

use crate::aligned::Aligned;
use crate::decode::{Decoder, decoder};
use crate::dense::{Inputs, Panel, ROWS, SPAN, spans};
use crate::direct::{Q4_0, Q8_0, Rows};
use crate::error::{ComputeError, MatmulError, Operand};
use crate::machine::dispatch;
use crate::shape::{Shape, check_length};
use crate::stored::{BF16, F16, F32, StoredRows};
use crate::weights::WeightBytes;
use forebay_format::Dtype;
use rayon::prelude::*;
use std::ops::Range;

/// Weights that a tile has at least, if there are as many: much beside what a task costs, little
/// enough that threads end together.
const TILE_BYTES: usize = 128 << 10;

/// Columns of a panel, whole spans and whole blocks of every type: most rows in one.
const PANEL_COLUMNS: usize = 4096;
/// Rows of a panel for a few inputs: 64 KiB, and no row is read far ahead of the others.
const PANEL_ROWS: usize = ROWS;
/// Rows of a panel for many inputs, which are then fetched from afar less often.
const PANEL_ROWS_OF_BATCH: usize = 4 * ROWS;
/// From how many inputs on they are many.
const BATCH: usize = 8;

/// Multiplies weights with `batch` inputs: `y[b][m] = Σ w[m][k] · x[b][k]`, in `f32`.
///
/// `x` holds the inputs one after the other, `shape.columns` each; `y` gets the outputs,
/// `shape.rows` each. Works on the calling thread's rayon pool. The result is the same to the bit
/// for any number of threads and, `Q4_0` and `Q8_0` aside (a single input has a loop of its own
/// there), for any batch.
///
/// How far `y` may be from the exact result is told in the [crate's documentation](crate).
///
/// # Errors
/// - [`MatmulError::Refused`] if the type can't be decoded or the operands don't fit together;
///   `y` is untouched.
/// - [`MatmulError::Weights`] if the weights couldn't be had; some of `y` may be written.
pub fn matmul<W: WeightBytes + ?Sized>(
    dtype: Dtype,
    shape: Shape,
    weights: &W,
    x: &[f32],
    batch: usize,
    y: &mut [f32],
) -> Result<(), MatmulError<W::Error>> {
    let tiling = Tiling::new(dtype, shape)?;
    check_length(Operand::Weights, shape.bytes(dtype)?, weights.size_bytes())?;
    shape.check_vectors(dtype, x, batch, y)?;
    if y.is_empty() {
        return Ok(());
    }
    let tile_rows = tiling.tile_rows();
    let x = Inputs::new(x, shape.columns, batch);
    tile_outputs(y, shape.rows, tile_rows).into_par_iter().enumerate().try_for_each_init(
        Scratch::default,
        |Scratch { bytes, elements }, (tile, mut y)| {
            let begin = tile * tile_rows * tiling.row_bytes;
            let range = begin..begin + y[0].len() * tiling.row_bytes;
            let expected = range.len();
            let rows = weights
                .read(range.clone(), bytes)
                .map_err(|source| MatmulError::Weights { bytes: range, source })?;
            check_length(Operand::Weights, expected, rows.len())?;
            tiling.multiply(rows, &x, &mut y, elements);
            Ok(())
        },
    )
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    /// Fetched weights.
    bytes: Vec<u8>,
    /// A decoded panel.
    elements: Aligned,
}

/// Cuts outputs of `rows` rows, one input's after the other's, into tiles: for each tile, a slice
/// for each input.
pub(crate) fn tile_outputs(y: &mut [f32], rows: usize, tile_rows: usize) -> Vec<Vec<&mut [f32]>> {
    let mut tiles: Vec<Vec<&mut [f32]>> = Vec::new();
    tiles.resize_with(rows.div_ceil(tile_rows), Vec::new);
    for y in y.chunks_exact_mut(rows) {
        for (tile, y) in tiles.iter_mut().zip(y.chunks_mut(tile_rows)) {
            tile.push(y);
        }
    }
    tiles
}

/// How the rows of a matrix are cut and multiplied.
pub(crate) struct Tiling {
    dtype: Dtype,
    columns: usize,
    row_bytes: usize,
    /// The bytes of a span of a row.
    span_bytes: usize,
    decode: Decoder,
}

impl Tiling {
    pub(crate) fn new(dtype: Dtype, shape: Shape) -> Result<Self, ComputeError> {
        let decode = decoder(dtype)?;
        let row_bytes = shape.row_bytes(dtype)?;
        let span_bytes = Shape { rows: 1, columns: SPAN }.row_bytes(dtype)?;
        Ok(Self { dtype, columns: shape.columns, row_bytes, span_bytes, decode })
    }

    /// Rows of a tile.
    fn tile_rows(&self) -> usize {
        TILE_BYTES.div_ceil(self.row_bytes.max(1)).next_multiple_of(ROWS)
    }

    /// Multiplies whole rows of weights with every input. `y` has a slice for each input;
    /// `elements` is scratch.
    pub(crate) fn multiply(
        &self,
        rows: &[u8],
        x: &Inputs,
        y: &mut [&mut [f32]],
        elements: &mut Aligned,
    ) {
        match (x.single(), y) {
            (Some(single), [y]) if self.columns > 0 => {
                self.multiply_single(rows, x, single, y, elements);
            }
            (_, y) => self.multiply_decoded(rows, x, y, elements),
        }
    }

    /// Multiplies rows with a single input, without decoding them first where that is faster.
    fn multiply_single(
        &self,
        bytes: &[u8],
        inputs: &Inputs,
        x: &[f32],
        y: &mut [f32],
        elements: &mut Aligned,
    ) {
        match self.dtype {
            Dtype::F32 => dispatch(StoredRows::<_, 32> { element: F32, bytes, x, y }),
            Dtype::F16 => dispatch(StoredRows::<_, 16> { element: F16, bytes, x, y }),
            Dtype::BF16 => dispatch(StoredRows::<_, 16> { element: BF16, bytes, x, y }),
            Dtype::Q4_0 => dispatch(Rows::<_, 18> { block: Q4_0, bytes, x, y }),
            Dtype::Q8_0 => dispatch(Rows::<_, 34> { block: Q8_0, bytes, x, y }),
            _ => self.multiply_decoded(bytes, inputs, &mut [y], elements),
        }
    }

    fn multiply_decoded(
        &self,
        rows: &[u8],
        x: &Inputs,
        y: &mut [&mut [f32]],
        elements: &mut Aligned,
    ) {
        y.iter_mut().for_each(|y| y.fill(0.0));
        let row_count = y[0].len();
        let most_rows = if y.len() < BATCH { PANEL_ROWS } else { PANEL_ROWS_OF_BATCH };
        for first_row in (0..row_count).step_by(most_rows) {
            let count = most_rows.min(row_count - first_row);
            let rows = &rows[first_row * self.row_bytes..][..count * self.row_bytes];
            for first in (0..self.columns).step_by(PANEL_COLUMNS) {
                let columns = first..self.columns.min(first + PANEL_COLUMNS);
                let elements = elements.resize(count * columns.len());
                self.decode_panel(rows, columns.clone(), elements);
                for span in spans(columns) {
                    let weights = &elements[count * (span.start - first)..][..count * span.len()];
                    let (x, width) = (x.span(span.clone()), span.len());
                    dispatch(Panel { weights, x, width, y, first_row });
                }
            }
        }
    }

    /// Decodes some columns of rows, each row from its first to its last, as that is how memory is
    /// read fastest; span by span, each a span of every row.
    fn decode_panel(&self, rows: &[u8], columns: Range<usize>, elements: &mut [f32]) {
        let count = elements.len() / columns.len();
        for (row, bytes) in rows.chunks_exact(self.row_bytes).enumerate() {
            for span in spans(columns.clone()) {
                let out = count * (span.start - columns.start) + row * span.len();
                let bytes = &bytes[span.start / SPAN * self.span_bytes..];
                (self.decode)(bytes, &mut elements[out..][..span.len()]);
            }
        }
    }
}

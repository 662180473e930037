//! Products of decoded weights: the inner loop of every type that has none of its own.
//!
//! Weights and inputs both run along *k*, so every output is a dot product, and nothing has to be
//! transposed or packed first. What a processor wants is independent sums, enough of them to
//! cover the latency of an addition, and few loads for each:
//!
//! ```text
//!                  input 0   input 1   input 2
//!         row 0      Σ         Σ         Σ        each Σ: one register of eight lanes
//!         row 1      Σ         Σ         Σ        a step of eight elements: 7 loads, 12 fused
//!         row 2      Σ         Σ         Σ        multiply-adds
//!         row 3      Σ         Σ         Σ
//! ```
//!
//! Rows are multiplied [`SPAN`] columns at a time, with all inputs, so that what is used again is
//! still in the first-level cache: three inputs' spans while the rows pass, one after the other.
//! The lanes of a Σ are added up at a span's end. Weights and inputs are laid out span by span
//! ([`Inputs`]): rows and inputs of a power of two, which they like to be, would else all claim
//! the same few lines of the caches.
//!
//! (The crate `gemm` isn't used: its functions are `unsafe`, and it transposes weights that are
//! multiplied by few inputs. On these shapes this loop is faster than it, and than the safe
//! `ndarray` and `faer`.)
//!
//! An output's terms are added in the same order whichever row of a tile it belongs to, however
//! many inputs there are, and on whatever thread.

#![expect(clippy::needless_range_loop, reason = "indices name rows and inputs of several arrays")]

use crate::aligned::Aligned;
use crate::machine::{Kernel, LANES, Machine};
use std::ops::Range;

/// Rows multiplied at once.
pub(crate) const ROWS: usize = 4;
/// Inputs multiplied at once.
const INPUTS: usize = 3;
/// Columns multiplied before the lanes are added up. Three inputs' are 12 KiB.
pub(crate) const SPAN: usize = 1024;

/// The spans of some columns: all of [`SPAN`] columns but the last, which may be shorter.
pub(crate) fn spans(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns.step_by(SPAN).map(move |first| first..end.min(first + SPAN))
}

/// Inputs, span by span: a span of each input, then the next span of each.
pub(crate) struct Inputs {
    values: Aligned,
    batch: usize,
}

impl Inputs {
    /// Rearranges inputs of some columns each, which lie one after the other.
    pub(crate) fn new(x: &[f32], columns: usize, batch: usize) -> Self {
        let mut values = Aligned::default();
        let mut rest = values.resize(x.len());
        for span in spans(0..columns) {
            for input in x.chunks_exact(columns) {
                let place = rest.split_off_mut(..span.len()).expect("as many as in `x`");
                place.copy_from_slice(&input[span.clone()]);
            }
        }
        Self { values, batch }
    }

    /// The single input, if it is one.
    pub(crate) fn single(&self) -> Option<&[f32]> {
        (self.batch == 1).then_some(self.values.as_slice())
    }

    /// A span of each input, one after the other.
    pub(crate) fn span(&self, span: Range<usize>) -> &[f32] {
        &self.values.as_slice()[span.start * self.batch..span.end * self.batch]
    }
}

/// A span of some decoded rows and of the inputs they are multiplied with.
pub(crate) struct Panel<'a, 'y> {
    /// Row after row, `width` elements each.
    pub(crate) weights: &'a [f32],
    /// Input after input, `width` elements each.
    pub(crate) x: &'a [f32],
    /// Columns of the span.
    pub(crate) width: usize,
    /// Outputs of the panel's rows, a slice for each input; products are added to them.
    pub(crate) y: &'a mut [&'y mut [f32]],
    /// Where in those slices the panel's first row is.
    pub(crate) first_row: usize,
}

impl Kernel for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(mut self, machine: M) {
        let batch = self.y.len();
        let whole = batch - batch % INPUTS;
        for input in (0..whole).step_by(INPUTS) {
            self.multiply_rows::<M, INPUTS>(machine, input);
        }
        match batch - whole {
            1 => self.multiply_rows::<M, 1>(machine, whole),
            2 => self.multiply_rows::<M, 2>(machine, whole),
            _ => {}
        }
    }
}

impl Panel<'_, '_> {
    /// Multiplies all rows with `B` inputs.
    #[inline(always)]
    fn multiply_rows<M: Machine, const B: usize>(&mut self, machine: M, input: usize) {
        let rows = self.weights.len() / self.width;
        let whole = rows - rows % ROWS;
        for row in (0..whole).step_by(ROWS) {
            self.multiply::<M, ROWS, B>(machine, row, input);
        }
        for row in whole..rows {
            self.multiply::<M, 1, B>(machine, row, input);
        }
    }

    /// Multiplies `R` rows with `B` inputs.
    #[inline(always)]
    fn multiply<M: Machine, const R: usize, const B: usize>(
        &mut self,
        machine: M,
        row: usize,
        input: usize,
    ) {
        let mut rows: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            rows[r] = &self.weights[(row + r) * self.width..][..self.width];
        }
        let mut inputs: [&[f32]; B] = [&[]; B];
        for b in 0..B {
            inputs[b] = &self.x[(input + b) * self.width..][..self.width];
        }
        let sums = dot_products(machine, rows, inputs);
        for b in 0..B {
            let y = &mut self.y[input + b][self.first_row + row..][..R];
            for r in 0..R {
                y[r] += sums[r][b];
            }
        }
    }
}

/// The dot product of each row with each input, all of one length.
#[inline(always)]
fn dot_products<M: Machine, const R: usize, const B: usize>(
    machine: M,
    rows: [&[f32]; R],
    inputs: [&[f32]; B],
) -> [[f32; B]; R] {
    let steps = rows[0].len() / LANES;
    let mut row_steps: [&[[f32; LANES]]; R] = [&[]; R];
    for r in 0..R {
        row_steps[r] = &rows[r].as_chunks().0[..steps];
    }
    let mut input_steps: [&[[f32; LANES]]; B] = [&[]; B];
    for b in 0..B {
        input_steps[b] = &inputs[b].as_chunks().0[..steps];
    }
    let mut sums = [[machine.splat(0.0); B]; R];
    for step in 0..steps {
        let mut x = [machine.splat(0.0); B];
        for b in 0..B {
            x[b] = machine.load(&input_steps[b][step]);
        }
        for r in 0..R {
            let weights = machine.load(&row_steps[r][step]);
            for b in 0..B {
                sums[r][b] = machine.fused(weights, x[b], sums[r][b]);
            }
        }
    }
    let mut products = [[0.0; B]; R];
    for b in 0..B {
        let mut column = [machine.splat(0.0); ROWS];
        for r in 0..R {
            column[r] = sums[r][b];
        }
        let column = machine.sums(column);
        for r in 0..R {
            products[r][b] = column[r];
        }
    }
    // What is left of rows that are no multiple of eight long.
    for column in steps * LANES..rows[0].len() {
        for r in 0..R {
            for b in 0..B {
                products[r][b] += rows[r][column] * inputs[b][column];
            }
        }
    }
    products
}

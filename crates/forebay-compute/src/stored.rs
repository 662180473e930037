//! Products of `F32`, `F16` and `BF16` rows, as they lie in the file, with a single input.
//!
//! With one input nothing is used twice, and decoded rows would only be written and read again.
//! Terms are added in the order of [`dense`](crate::dense): results are the same to the bit.

#![expect(clippy::needless_range_loop, reason = "indices name rows of several arrays")]

use crate::decode::half;
use crate::dense::{ROWS, spans};
use crate::machine::{Kernel, LANES, Machine};

/// An element's type; `EIGHT` is the bytes of eight of them.
pub(crate) trait Stored<const EIGHT: usize>: Copy {
    /// Eight elements.
    fn load<M: Machine>(self, machine: M, bytes: &[u8; EIGHT]) -> M::Floats;

    /// One element.
    fn element(self, bytes: &[u8]) -> f32;
}

#[derive(Clone, Copy)]
pub(crate) struct F32;

impl Stored<32> for F32 {
    #[inline(always)]
    fn load<M: Machine>(self, machine: M, bytes: &[u8; 32]) -> M::Floats {
        machine.from_bits(machine.words(bytes))
    }

    #[inline(always)]
    fn element(self, bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F16;

impl Stored<16> for F16 {
    #[inline(always)]
    fn load<M: Machine>(self, machine: M, bytes: &[u8; 16]) -> M::Floats {
        machine.halves(bytes)
    }

    #[inline(always)]
    fn element(self, bytes: &[u8]) -> f32 {
        half(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct BF16;

impl Stored<16> for BF16 {
    #[inline(always)]
    fn load<M: Machine>(self, machine: M, bytes: &[u8; 16]) -> M::Floats {
        machine.from_bits(machine.shift_left::<16>(machine.widen_pairs(bytes)))
    }

    #[inline(always)]
    fn element(self, bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

/// Rows of elements, and the input that each is multiplied with.
pub(crate) struct StoredRows<'a, T, const EIGHT: usize> {
    /// The elements' type.
    pub(crate) element: T,
    /// Whole rows, as long as the input.
    pub(crate) bytes: &'a [u8],
    pub(crate) x: &'a [f32],
    /// Where the dot products go: one for each row.
    pub(crate) y: &'a mut [f32],
}

impl<T: Stored<EIGHT>, const EIGHT: usize> Kernel for StoredRows<'_, T, EIGHT> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(mut self, machine: M) {
        let rows = self.y.len();
        let whole = rows - rows % ROWS;
        for row in (0..whole).step_by(ROWS) {
            self.multiply::<M, ROWS>(machine, row);
        }
        for row in whole..rows {
            self.multiply::<M, 1>(machine, row);
        }
    }
}

impl<T: Stored<EIGHT>, const EIGHT: usize> StoredRows<'_, T, EIGHT> {
    /// Multiplies `R` rows.
    #[inline(always)]
    fn multiply<M: Machine, const R: usize>(&mut self, machine: M, row: usize) {
        let element_bytes = EIGHT / LANES;
        let row_bytes = self.x.len() * element_bytes;
        let mut products = [0.0; ROWS];
        for span in spans(0..self.x.len()) {
            let mut rows: [&[u8]; R] = [&[]; R];
            for r in 0..R {
                rows[r] = &self.bytes[(row + r) * row_bytes + span.start * element_bytes..]
                    [..span.len() * element_bytes];
            }
            let sums = self.dot_products(machine, rows, &self.x[span]);
            for r in 0..R {
                products[r] += sums[r];
            }
        }
        self.y[row..row + R].copy_from_slice(&products[..R]);
    }

    /// The dot product of a span of each row with the input's.
    #[inline(always)]
    fn dot_products<M: Machine, const R: usize>(
        &self,
        machine: M,
        rows: [&[u8]; R],
        x: &[f32],
    ) -> [f32; ROWS] {
        let (x_steps, x_rest) = x.as_chunks::<LANES>();
        let mut row_steps: [&[[u8; EIGHT]]; R] = [&[]; R];
        for r in 0..R {
            row_steps[r] = &rows[r].as_chunks().0[..x_steps.len()];
        }
        let mut sums = [machine.splat(0.0); ROWS];
        for step in 0..x_steps.len() {
            let x = machine.load(&x_steps[step]);
            for r in 0..R {
                let weights = self.element.load(machine, &row_steps[r][step]);
                sums[r] = machine.fused(weights, x, sums[r]);
            }
        }
        let mut sums = machine.sums(sums);
        for r in 0..R {
            let rest = rows[r][x_steps.len() * EIGHT..].chunks_exact(EIGHT / LANES);
            for (element, x) in rest.zip(x_rest) {
                sums[r] += self.element.element(element) * x;
            }
        }
        sums
    }
}

//! Dot products of `Q4_0` and `Q8_0` rows as they lie in the file, without decoding them first.
//!
//! Lanes run along the row: eight bytes of a block become eight integers, then floats, and meet
//! eight elements of the input. A block's sum is scaled once. The scales of eight blocks are
//! decoded together.
//!
//! A half byte is not shifted down but up, to the upper end of its lane, where it is a signed
//! number (eight is taken off by flipping the uppermost bit) times 2²⁸; the scale makes up for
//! that. Multiplying by a power of two is exact, so nothing is lost, but sums overflow where an
//! input is beyond 2⁹⁰.

use crate::machine::{Kernel, LANES, Machine};

/// Elements of a block.
pub(crate) const BLOCK: usize = 32;

/// What the integer of a half byte is multiplied with by standing in the uppermost bits.
pub(crate) const NIBBLE_UNIT: f32 = 1.0 / (1_u32 << 28) as f32;

/// A block type that has an inner loop of its own.
pub(crate) trait DirectBlock<const BYTES: usize>: Copy {
    /// What the scale is multiplied with to make up for the way integers are read.
    const UNIT: f32;

    /// Products of the block's integers with the inputs, summed to eight lanes.
    fn multiply<M: Machine>(self, machine: M, block: &[u8; BYTES], x: &[f32; BLOCK]) -> M::Floats;
}

/// `Q4_0`: a half-precision scale, and sixteen bytes of which the lower halves are elements 0 to
/// 15, the upper halves 16 to 31.
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl DirectBlock<18> for Q4_0 {
    const UNIT: f32 = NIBBLE_UNIT;

    #[inline(always)]
    fn multiply<M: Machine>(self, machine: M, block: &[u8; 18], x: &[f32; BLOCK]) -> M::Floats {
        let (bytes, _) = block[2..].as_chunks::<LANES>();
        let (x, _) = x.as_chunks::<LANES>();
        let flip = machine.splat_integer(0x88);
        let upper_end = machine.splat_integer(0xf000_0000);
        let mut sums = [machine.splat(0.0); 2];
        for i in 0..2 {
            let bytes = machine.xor(machine.widen(&bytes[i]), flip);
            let lower = machine.convert(machine.shift_left::<28>(bytes));
            let upper = machine.and(machine.shift_left::<24>(bytes), upper_end);
            sums[0] = machine.fused(lower, machine.load(&x[i]), sums[0]);
            sums[1] = machine.fused(machine.convert(upper), machine.load(&x[2 + i]), sums[1]);
        }
        machine.add(sums[0], sums[1])
    }
}

/// `Q8_0`: a half-precision scale, and 32 signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl DirectBlock<34> for Q8_0 {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;

    #[inline(always)]
    fn multiply<M: Machine>(self, machine: M, block: &[u8; 34], x: &[f32; BLOCK]) -> M::Floats {
        let (bytes, _) = block[2..].as_chunks::<LANES>();
        let (x, _) = x.as_chunks::<LANES>();
        let mut sums = [machine.splat(0.0); 2];
        for i in 0..4 {
            let weights = machine.shift_left::<24>(machine.widen(&bytes[i]));
            let weights = machine.convert(weights);
            sums[i / 2] = machine.fused(weights, machine.load(&x[i]), sums[i / 2]);
        }
        machine.add(sums[0], sums[1])
    }
}

/// Rows of blocks, and the input that each is multiplied with.
pub(crate) struct Rows<'a, T, const BYTES: usize> {
    /// The blocks' type.
    pub(crate) block: T,
    /// Whole rows.
    pub(crate) bytes: &'a [u8],
    /// The input: as long as a row.
    pub(crate) x: &'a [f32],
    /// Where the dot products go: one for each row.
    pub(crate) y: &'a mut [f32],
}

impl<T: DirectBlock<BYTES>, const BYTES: usize> Kernel for Rows<'_, T, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let (x, _) = self.x.as_chunks::<BLOCK>();
        let (blocks, _) = self.bytes.as_chunks::<BYTES>();
        for (row, y) in blocks.chunks_exact(x.len()).zip(self.y) {
            *y = dot_product(machine, self.block, row, x);
        }
    }
}

#[inline(always)]
fn dot_product<M: Machine, T: DirectBlock<BYTES>, const BYTES: usize>(
    machine: M,
    block_type: T,
    row: &[[u8; BYTES]],
    x: &[[f32; BLOCK]],
) -> f32 {
    let mut sum = machine.splat(0.0);
    for (blocks, x) in row.chunks(LANES).zip(x.chunks(LANES)) {
        let mut scales = [0; 2 * LANES];
        for (scale, block) in scales.as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
            *scale = [block[0], block[1]];
        }
        let scales = machine.multiply(machine.halves(&scales), machine.splat(T::UNIT));
        let scales = machine.store(scales);
        for ((block, x), scale) in blocks.iter().zip(x).zip(scales) {
            let products = block_type.multiply(machine, block, x);
            sum = machine.fused(machine.splat(scale), products, sum);
        }
    }
    machine.sum(sum)
}

//! Dot products of `Q4_0` and `Q8_0` rows as they lie in the file, without decoding them first.
//!
//! Lanes run along the row: eight bytes of a block become eight integers, then floats, and meet
//! eight elements of the input. A block's sum is scaled once.
//!
//! An integer is not taken down to the lower end of its lane but to the upper, where it is a signed
//! number (flipping the uppermost bit of a half byte takes off eight) times 2²⁴ or 2²⁸; the scale
//! makes up for that. Multiplying by a power of two is exact, so nothing is lost, but sums overflow
//! where an input is beyond 2⁹⁰.

use crate::decode::half;
use crate::machine::{Kernel, LANES, Machine};

/// Rows multiplied at once.
const ROWS: usize = 4;

/// Elements of a block.
pub(crate) const BLOCK: usize = 32;

/// How far a half byte is from the lower end of its lane.
pub(crate) const NIBBLE_SHIFT: u32 = 28;
/// How far a byte is.
pub(crate) const BYTE_SHIFT: u32 = 24;

/// A block type that has an inner loop of its own.
pub(crate) trait DirectBlock<const BYTES: usize>: Copy {
    /// How far up integers are read.
    const SHIFT: u32;

    /// Products of the block's integers with the inputs, summed to eight lanes.
    fn multiply<M: Machine>(self, machine: M, block: &[u8; BYTES], x: &[f32; BLOCK]) -> M::Floats;
}

/// `Q4_0`: a half-precision scale, and sixteen bytes of which the lower halves are elements 0 to
/// 15, the upper halves 16 to 31.
#[derive(Clone, Copy)]
pub(crate) struct Q4_0;

impl DirectBlock<18> for Q4_0 {
    const SHIFT: u32 = NIBBLE_SHIFT;

    #[inline(always)]
    fn multiply<M: Machine>(self, machine: M, block: &[u8; 18], x: &[f32; BLOCK]) -> M::Floats {
        let (bytes, _) = block[2..].as_chunks();
        let (x, _) = x.as_chunks::<LANES>();
        let bytes = machine.xor(machine.twice(&bytes[0]), machine.splat_integer(0x8888_8888));
        let upper_half = machine.splat_integer(0xf000_0000);
        let mut sums = [machine.splat(0.0); 2];
        for i in 0..2 {
            let bytes = machine.spread(bytes, i);
            let lower = machine.convert(machine.shift_left::<4>(bytes));
            let upper = machine.convert(machine.and(bytes, upper_half));
            sums[0] = machine.fused(lower, machine.load(&x[i]), sums[0]);
            sums[1] = machine.fused(upper, machine.load(&x[2 + i]), sums[1]);
        }
        machine.add(sums[0], sums[1])
    }
}

/// `Q8_0`: a half-precision scale, and 32 signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0;

impl DirectBlock<34> for Q8_0 {
    const SHIFT: u32 = BYTE_SHIFT;

    #[inline(always)]
    fn multiply<M: Machine>(self, machine: M, block: &[u8; 34], x: &[f32; BLOCK]) -> M::Floats {
        let (bytes, _) = block[2..].as_chunks();
        let (x, _) = x.as_chunks::<LANES>();
        let mut sums = [machine.splat(0.0); 2];
        for half in 0..2 {
            let bytes = machine.twice(&bytes[half]);
            for i in 0..2 {
                let weights = machine.convert(machine.spread(bytes, i));
                sums[half] = machine.fused(weights, machine.load(&x[2 * half + i]), sums[half]);
            }
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
        let rows = self.y.len();
        let whole = rows - rows % ROWS;
        for row in (0..whole).step_by(ROWS) {
            let mut lines: [&[[u8; BYTES]]; ROWS] = [&[]; ROWS];
            for r in 0..ROWS {
                lines[r] = &blocks[(row + r) * x.len()..][..x.len()];
            }
            let products = dot_products(machine, self.block, lines, x);
            self.y[row..row + ROWS].copy_from_slice(&products[..ROWS]);
        }
        for row in whole..rows {
            let line = &blocks[row * x.len()..][..x.len()];
            self.y[row] = dot_products(machine, self.block, [line], x)[0];
        }
    }
}

/// The dot product of each row with the input, all of one length.
#[inline(always)]
fn dot_products<M: Machine, T: DirectBlock<BYTES>, const BYTES: usize, const R: usize>(
    machine: M,
    block_type: T,
    rows: [&[[u8; BYTES]]; R],
    x: &[[f32; BLOCK]],
) -> [f32; 4] {
    let mut sums = [machine.splat(0.0); 4];
    for block in 0..x.len() {
        for r in 0..R {
            let bytes = &rows[r][block];
            let products = block_type.multiply(machine, bytes, &x[block]);
            let scale = scale_of(u16::from_le_bytes([bytes[0], bytes[1]]), T::SHIFT);
            sums[r] = machine.fused(machine.splat(scale), products, sums[r]);
        }
    }
    machine.sums(sums)
}

/// A half divided by 2 to the power of `shift`. As [`half`], but faster for normal numbers: the
/// arithmetic units for floats are busy enough.
#[inline(always)]
fn scale_of(bits: u16, shift: u32) -> f32 {
    // Sign, five exponent bits and mantissa where a float has them, three zeros between.
    let moved = (i32::from(bits.cast_signed()) << 13).cast_unsigned() & 0x8fff_e000;
    // One more makes the exponents 0 and 31 the only ones with four zeros in the middle.
    if (moved + (1 << 23)) & 0x0f00_0000 == 0 {
        return half(bits) * power_of_two(shift);
    }
    f32::from_bits(moved + ((127 - 15 - shift) << 23))
}

/// 2 to the power of `-shift`.
pub(crate) const fn power_of_two(shift: u32) -> f32 {
    f32::from_bits((127 - shift) << 23)
}

//! Eight lanes in plain Rust: every other processor, and what the others are tested against.

use super::{LANES, Machine};
use crate::decode::half;

/// Arrays, and what the compiler makes of them.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

/// Applies a function of lanes to each.
macro_rules! lanes {
    ($index:ident => $lane:expr) => {{
        let mut lanes = [Default::default(); LANES];
        for $index in 0..LANES {
            lanes[$index] = $lane;
        }
        lanes
    }};
}

impl Machine for Portable {
    type Floats = [f32; LANES];
    type Integers = [u32; LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::Floats {
        *values
    }

    #[inline(always)]
    fn store(self, values: Self::Floats) -> [f32; LANES] {
        values
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanes!(i => a[i] + b[i])
    }

    #[inline(always)]
    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanes!(i => a[i] - b[i])
    }

    #[inline(always)]
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        lanes!(i => a[i] * b[i])
    }

    #[inline(always)]
    fn fused(self, a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats {
        // Where there is no instruction for it, `mul_add` is a call of some hundred cycles.
        if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
            lanes!(i => a[i].mul_add(b[i], sum[i]))
        } else {
            lanes!(i => a[i] * b[i] + sum[i])
        }
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats {
        lanes!(i => half(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])))
    }

    #[inline(always)]
    fn from_bits(self, bits: Self::Integers) -> Self::Floats {
        lanes!(i => f32::from_bits(bits[i]))
    }

    #[inline(always)]
    fn to_bits(self, values: Self::Floats) -> Self::Integers {
        lanes!(i => values[i].to_bits())
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 4 * LANES]) -> Self::Integers {
        let (words, _) = bytes.as_chunks::<4>();
        lanes!(i => u32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; 2 * LANES]) -> Self::Integers {
        let (words, _) = bytes.as_chunks::<4>();
        lanes!(i => u32::from_le_bytes(words[i % 4]))
    }

    #[inline(always)]
    fn spread(self, twice: Self::Integers, half: usize) -> Self::Integers {
        lanes!(i => twice[2 * half + i / 4] >> (8 * (i % 4)) << 24)
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; LANES]) -> Self::Integers {
        lanes!(i => u32::from(bytes[i]))
    }

    #[inline(always)]
    fn widen_pairs(self, bytes: &[u8; 2 * LANES]) -> Self::Integers {
        lanes!(i => u32::from(u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])))
    }

    #[inline(always)]
    fn widen_signed(self, bytes: &[u8; LANES]) -> Self::Integers {
        lanes!(i => i32::from(bytes[i].cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn splat_integer(self, value: u32) -> Self::Integers {
        [value; LANES]
    }

    #[inline(always)]
    fn and(self, a: Self::Integers, b: Self::Integers) -> Self::Integers {
        lanes!(i => a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: Self::Integers, b: Self::Integers) -> Self::Integers {
        lanes!(i => a[i] | b[i])
    }

    #[inline(always)]
    fn xor(self, a: Self::Integers, b: Self::Integers) -> Self::Integers {
        lanes!(i => a[i] ^ b[i])
    }

    #[inline(always)]
    fn shift_left<const BITS: i32>(self, values: Self::Integers) -> Self::Integers {
        lanes!(i => values[i] << BITS)
    }

    #[inline(always)]
    fn shift_right(self, values: Self::Integers, bits: usize) -> Self::Integers {
        lanes!(i => values[i] >> bits)
    }

    #[inline(always)]
    fn shift_left_each(self, values: Self::Integers, bits: Self::Integers) -> Self::Integers {
        lanes!(i => values[i] << bits[i])
    }

    #[inline(always)]
    fn convert(self, values: Self::Integers) -> Self::Floats {
        lanes!(i => values[i].cast_signed() as f32)
    }
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: &[u8; 2 * LANES]) -> [u8; 2 * LANES] {
        indices.map(|index| table[usize::from(index & 15)].cast_unsigned())
    }
    #[inline(always)]
    fn sums(self, values: [Self::Floats; 4]) -> [f32; 4] {
        let [a, b, c, d] = values;
        [self.sum(a), self.sum(b), self.sum(c), self.sum(d)]
    }
}

//! Eight lanes in one AVX2 register.

use super::{Kernel, LANES, Machine};
use bytemuck::{cast, pod_read_unaligned};
use pulp::x86::V3;
use pulp::{NullaryFnOnce, f32x4, f32x8, i8x16, i16x8, i32x8, u8x16, u16x8};

/// The sign bit of a float.
const SIGN: i32 = i32::MIN;
/// From a half's exponents, which count from 15, to a float's, which count from 127.
const REBIAS: i32 = (127 - 15) << 23;

/// Runs a kernel in code compiled for AVX2 and FMA.
pub(super) fn run<K: Kernel>(machine: V3, kernel: K) -> K::Output {
    machine.vectorize(Call { machine, kernel })
}

/// A kernel and its machine, in the form that `pulp` takes.
struct Call<K> {
    machine: V3,
    kernel: K,
}

impl<K: Kernel> NullaryFnOnce for Call<K> {
    type Output = K::Output;

    #[inline(always)]
    fn call(self) -> K::Output {
        self.kernel.run(self.machine)
    }
}

impl Machine for V3 {
    type Floats = f32x8;
    type Integers = i32x8;

    #[inline(always)]
    fn splat(self, value: f32) -> f32x8 {
        self.splat_f32x8(value)
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> f32x8 {
        cast(*values)
    }

    #[inline(always)]
    fn store(self, values: f32x8) -> [f32; LANES] {
        cast(values)
    }

    #[inline(always)]
    fn add(self, a: f32x8, b: f32x8) -> f32x8 {
        self.add_f32x8(a, b)
    }

    #[inline(always)]
    fn subtract(self, a: f32x8, b: f32x8) -> f32x8 {
        self.sub_f32x8(a, b)
    }

    #[inline(always)]
    fn multiply(self, a: f32x8, b: f32x8) -> f32x8 {
        self.mul_f32x8(a, b)
    }

    #[inline(always)]
    fn fused(self, a: f32x8, b: f32x8, sum: f32x8) -> f32x8 {
        self.mul_add_f32x8(a, b, sum)
    }

    /// Moves the bits of normal halves (`pulp` has no F16C), and leaves other lanes, which are few,
    /// to [`every_half`].
    #[inline(always)]
    fn halves(self, bytes: &[u8; 2 * LANES]) -> f32x8 {
        let bits = self.convert_i16x8_to_i32x8(pod_read_unaligned::<i16x8>(bytes));
        // Sign, five exponent bits and mantissa where a float has them, three zeros between.
        let moved = self.shl_const_i32x8::<13>(bits);
        let moved = self.and_i32x8(moved, self.splat_i32x8(SIGN | 0x0fff_e000));
        // One more makes the exponents 0 and 31 the only ones with four zeros in the middle.
        let next = self.wrapping_add_i32x8(moved, self.splat_i32x8(1 << 23));
        let middle = self.and_i32x8(next, self.splat_i32x8(0x0f00_0000));
        let special = self.cmp_eq_i32x8(middle, self.splat_i32x8(0));
        if self.avx._mm256_movemask_ps(cast(special)) != 0 {
            return every_half(self, moved);
        }
        cast(self.wrapping_add_i32x8(moved, self.splat_i32x8(REBIAS)))
    }

    #[inline(always)]
    fn from_bits(self, bits: i32x8) -> f32x8 {
        cast(bits)
    }

    #[inline(always)]
    fn to_bits(self, values: f32x8) -> i32x8 {
        cast(values)
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 4 * LANES]) -> i32x8 {
        pod_read_unaligned(bytes)
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; 2 * LANES]) -> i32x8 {
        cast(self.avx2._mm256_broadcastsi128_si256(cast(*bytes)))
    }

    #[inline(always)]
    fn spread(self, twice: i32x8, half: usize) -> i32x8 {
        // Each half of the register sees all sixteen bytes, takes four, and zeros for `NONE`.
        const NONE: u32 = 0x0080_8080;
        let mut indices = [0_u32; LANES];
        for (lane, index) in (0_u32..).zip(&mut indices) {
            let first = if half == 0 { 0 } else { 8 };
            *index = (first + lane) << 24 | NONE;
        }
        cast(self.avx2._mm256_shuffle_epi8(cast(twice), cast(indices)))
    }

    #[inline(always)]
    fn widen(self, bytes: &[u8; LANES]) -> i32x8 {
        let bytes: u8x16 = cast([u64::from_le_bytes(*bytes), 0]);
        self.convert_u8x16_to_i32x8(bytes)
    }

    #[inline(always)]
    fn widen_pairs(self, bytes: &[u8; 2 * LANES]) -> i32x8 {
        self.convert_u16x8_to_i32x8(pod_read_unaligned::<u16x8>(bytes))
    }

    #[inline(always)]
    fn widen_signed(self, bytes: &[u8; LANES]) -> i32x8 {
        let bytes: i8x16 = cast([u64::from_le_bytes(*bytes), 0]);
        self.convert_i8x16_to_i32x8(bytes)
    }

    #[inline(always)]
    fn splat_integer(self, value: u32) -> i32x8 {
        self.splat_i32x8(value.cast_signed())
    }

    #[inline(always)]
    fn and(self, a: i32x8, b: i32x8) -> i32x8 {
        self.and_i32x8(a, b)
    }

    #[inline(always)]
    fn or(self, a: i32x8, b: i32x8) -> i32x8 {
        self.or_i32x8(a, b)
    }

    #[inline(always)]
    fn xor(self, a: i32x8, b: i32x8) -> i32x8 {
        self.xor_i32x8(a, b)
    }

    #[inline(always)]
    fn shift_left<const BITS: i32>(self, values: i32x8) -> i32x8 {
        self.shl_const_i32x8::<BITS>(values)
    }

    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "a shift within 32 bits")]
    fn shift_right(self, values: i32x8, bits: usize) -> i32x8 {
        cast(self.shr_dyn_u32x8(cast(values), self.splat_u32x8(bits as u32)))
    }

    #[inline(always)]
    fn shift_left_each(self, values: i32x8, bits: i32x8) -> i32x8 {
        self.shl_dyn_i32x8(values, cast(bits))
    }

    #[inline(always)]
    fn convert(self, values: i32x8) -> f32x8 {
        self.convert_i32x8_to_f32x8(values)
    }
    #[inline(always)]
    fn sums(self, [a, b, c, d]: [f32x8; 4]) -> [f32; 4] {
        let avx = self.avx;
        // Sums of two neighbours, then of four: of the lower half of each, then the upper.
        let ab = avx._mm256_hadd_ps(cast(a), cast(b));
        let cd = avx._mm256_hadd_ps(cast(c), cast(d));
        let [lower, upper]: [f32x4; 2] = cast(avx._mm256_hadd_ps(ab, cd));
        cast(self.add_f32x4(lower, upper))
    }

    #[inline(always)]
    fn look_up(self, table: &[i8; 16], indices: &[u8; 2 * LANES]) -> [u8; 2 * LANES] {
        // An index with its uppermost bit set would give 0.
        let lower = self.and_u8x16(cast(*indices), self.splat_u8x16(15));
        cast(self.ssse3._mm_shuffle_epi8(cast(*table), cast(lower)))
    }
}

/// Halves whose bits have been moved to where a float has them, as [`half`](crate::decode::half)
/// does it.
#[inline(always)]
fn every_half(machine: V3, moved: i32x8) -> f32x8 {
    let magnitude = machine.and_i32x8(moved, machine.splat_i32x8(!SIGN));
    let rebias = machine.splat_i32x8(REBIAS);
    let infinite: i32x8 = cast(machine.cmp_gt_i32x8(magnitude, machine.splat_i32x8(0x0f7f_ffff)));
    let normal = machine.wrapping_add_i32x8(magnitude, rebias);
    let normal = machine.wrapping_add_i32x8(normal, machine.and_i32x8(infinite, rebias));
    // A subnormal is its mantissa times 2⁻²⁴; as an integer, that is 13 bits too far left.
    let unit = machine.splat_f32x8(1.0 / (1_u64 << 37) as f32);
    let subnormal = machine.mul_f32x8(machine.convert_i32x8_to_f32x8(magnitude), unit);
    let small = machine.cmp_gt_i32x8(machine.splat_i32x8(1 << 23), magnitude);
    let unsigned = machine.select_f32x8(small, subnormal, cast(normal));
    cast(machine.or_i32x8(cast(unsigned), machine.and_i32x8(moved, machine.splat_i32x8(SIGN))))
}

//! Types whose elements stand alone.

use crate::machine::{Kernel, LANES, Machine};

/// The value of a half-precision float, exactly; a NaN keeps its payload.
///
/// A normal half becomes a float by moving its bits: 13 more of mantissa, and an exponent counted
/// from 127 instead of 15. The largest exponent stands for infinities and NaN in both, so it has
/// to move as far again. A subnormal half is its mantissa times 2⁻²⁴, a normal float. There are
/// no branches, so that the compiler can do this for many at a time.
#[inline(always)]
pub(crate) const fn half(bits: u16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    const SUBNORMAL_UNIT: f32 = 1.0 / (1 << 24) as f32;
    let magnitude = (bits & 0x7fff) as u32;
    let sign = ((bits & 0x8000) as u32) << 16;
    let special = if magnitude >= 0x7c00 { REBIAS } else { 0 };
    let normal = (magnitude << 13) + REBIAS + special;
    let subnormal = magnitude as f32 * SUBNORMAL_UNIT;
    let unsigned = if magnitude < 0x400 { subnormal.to_bits() } else { normal };
    f32::from_bits(unsigned | sign)
}

/// Half-precision floats, to be decoded eight at a time.
pub(super) struct Halves<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        let (whole, rest) = self.out.as_chunks_mut::<LANES>();
        let (bytes, _) = self.bytes.as_chunks::<{ 2 * LANES }>();
        for (bytes, out) in bytes.iter().zip(&mut *whole) {
            *out = machine.store(machine.halves(bytes));
        }
        let (bytes, _) = self.bytes[2 * LANES * whole.len()..].as_chunks();
        for (bytes, out) in bytes.iter().zip(rest) {
            *out = half(u16::from_le_bytes(*bytes));
        }
    }
}

#[inline(always)]
pub(super) fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Rounded to the nearest; what is too large is infinite.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
pub(super) fn f64(bytes: [u8; 8]) -> f32 {
    f64::from_le_bytes(bytes) as f32
}

#[inline(always)]
pub(super) fn bool(bytes: [u8; 1]) -> f32 {
    f32::from(u8::from(bytes != [0]))
}

/// Integers, rounded to the nearest.
macro_rules! integers {
    ($($integer:ident in $bytes:literal)+) => {$(
        #[inline(always)]
        pub(super) fn $integer(bytes: [u8; $bytes]) -> f32 {
            $integer::from_le_bytes(bytes) as f32
        }
    )+};
}
integers! { i8 in 1  i16 in 2  i32 in 4  i64 in 8  u8 in 1  u16 in 2  u32 in 4  u64 in 8 }

/// Which codes of an 8-bit float are no numbers.
#[derive(Clone, Copy, PartialEq)]
enum Special {
    /// The largest exponent: infinity, and NaN beside it.
    Ieee,
    /// All ones but the sign: NaN. There are no infinities.
    AllOnes,
    /// What would be −0: NaN. There are no infinities ("FNUZ").
    NegativeZero,
}

/// All values of an 8-bit float with a sign, `8 - 1 - mantissa_bits` exponent bits counted from
/// `bias`, and a mantissa.
const fn small_floats(mantissa_bits: u32, bias: i32, special: Special) -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0_u8;
    loop {
        values[code as usize] = small_float(code, mantissa_bits, bias, special);
        if code == u8::MAX {
            return values;
        }
        code += 1;
    }
}

const fn small_float(code: u8, mantissa_bits: u32, bias: i32, special: Special) -> f32 {
    let mantissa = code & ((1 << mantissa_bits) - 1);
    let exponent = (code & 0x7f) >> mantissa_bits;
    let largest = 0x7f >> mantissa_bits;
    match special {
        Special::Ieee if exponent == largest && mantissa > 0 => return f32::NAN,
        Special::Ieee if exponent == largest => {
            return if code < 0x80 { f32::INFINITY } else { f32::NEG_INFINITY };
        }
        Special::AllOnes if code & 0x7f == 0x7f => return f32::NAN,
        Special::NegativeZero if code == 0x80 => return f32::NAN,
        _ => {}
    }
    let sign = if code < 0x80 { 1.0 } else { -1.0 };
    let implicit = if exponent == 0 { 0 } else { 1 << mantissa_bits };
    let stored_exponent = if exponent == 0 { 1 } else { exponent as i32 };
    let unit = power_of_two(stored_exponent - bias - mantissa_bits as i32);
    sign * (implicit + mantissa as i32) as f32 * unit
}

/// 2 to a power, which must be that of a normal float.
const fn power_of_two(power: i32) -> f32 {
    assert!(power >= -126 && power <= 127);
    f32::from_bits(((power + 127) as u32) << 23)
}

static F8_E5M2: [f32; 256] = small_floats(2, 15, Special::Ieee);
static F8_E4M3: [f32; 256] = small_floats(3, 7, Special::AllOnes);
static F8_E5M2FNUZ: [f32; 256] = small_floats(2, 16, Special::NegativeZero);
static F8_E4M3FNUZ: [f32; 256] = small_floats(3, 8, Special::NegativeZero);

#[inline(always)]
pub(super) fn f8_e5m2(bytes: [u8; 1]) -> f32 {
    F8_E5M2[usize::from(bytes[0])]
}

#[inline(always)]
pub(super) fn f8_e4m3(bytes: [u8; 1]) -> f32 {
    F8_E4M3[usize::from(bytes[0])]
}

#[inline(always)]
pub(super) fn f8_e5m2fnuz(bytes: [u8; 1]) -> f32 {
    F8_E5M2FNUZ[usize::from(bytes[0])]
}

#[inline(always)]
pub(super) fn f8_e4m3fnuz(bytes: [u8; 1]) -> f32 {
    F8_E4M3FNUZ[usize::from(bytes[0])]
}

/// 2 to the power of the byte less 127; 255 is NaN. The smallest, 2⁻¹²⁷, is subnormal.
#[inline(always)]
pub(super) fn f8_e8m0(bytes: [u8; 1]) -> f32 {
    match bytes {
        [0] => f32::from_bits(1 << 22),
        [u8::MAX] => f32::NAN,
        [exponent] => f32::from_bits(u32::from(exponent) << 23),
    }
}

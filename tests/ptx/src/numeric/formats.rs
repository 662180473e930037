//! Small floating-point formats: decoding, and rounding into them.
#![allow(clippy::cast_possible_truncation, reason = "fields of floats are cut out of their bits")]

use super::lane::Lane;
use crate::types::Rounding;

/// A binary floating-point format of at most 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    /// E4M3 has no infinity, and one NaN a sign.
    has_infinity: bool,
    /// The one NaN that results have.
    nan: u32,
}

pub(crate) const F32: Format =
    Format { exponent_bits: 8, mantissa_bits: 23, has_infinity: true, nan: 0x7FFF_FFFF };
pub(crate) const TF32: Format =
    Format { exponent_bits: 8, mantissa_bits: 10, has_infinity: true, nan: 0x3_FFFF };
pub(crate) const F16: Format =
    Format { exponent_bits: 5, mantissa_bits: 10, has_infinity: true, nan: 0x7FFF };
pub(crate) const BF16: Format =
    Format { exponent_bits: 8, mantissa_bits: 7, has_infinity: true, nan: 0x7FFF };
pub(crate) const E4M3: Format =
    Format { exponent_bits: 4, mantissa_bits: 3, has_infinity: false, nan: 0x7F };
pub(crate) const E5M2: Format =
    Format { exponent_bits: 5, mantissa_bits: 2, has_infinity: true, nan: 0x7F };

impl Format {
    fn sign_bit(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// The bits of the largest finite value.
    pub(crate) fn largest(self) -> u32 {
        let all = self.sign_bit() - 1;
        if self.has_infinity { all - (1 << self.mantissa_bits) } else { all - 1 }
    }

    pub(crate) fn decode(self, bits: u32) -> f32 {
        let magnitude = bits & (self.sign_bit() - 1);
        let sign = if bits & self.sign_bit() == 0 { 1.0 } else { -1.0 };
        if magnitude > self.largest() {
            if self.has_infinity && magnitude == self.largest() + 1 {
                return f32::INFINITY.copysign(sign);
            }
            return f32::from_bits(F32.nan);
        }
        if self.exponent_bits == 8 {
            return f32::from_bits(bits << (23 - self.mantissa_bits));
        }
        // The bits read as an f32 of the wrong bias; a product by a power of two is exact and
        // brings subnormals right too.
        let scale = f32::from_bits(((254 - self.bias()) as u32) << 23);
        (f32::from_bits(magnitude << (23 - self.mantissa_bits)) * scale).copysign(sign)
    }

    /// Rounds `value`; what is too large becomes infinity, or the largest value where rounding
    /// says so or the format has no infinity.
    pub(crate) fn encode(self, value: f64, rounding: Rounding) -> u32 {
        if value.is_nan() {
            return self.nan;
        }
        let bits = value.to_bits();
        let sign = if value.is_sign_negative() { self.sign_bit() } else { 0 };
        let up = match rounding {
            Rounding::Down => sign != 0,
            Rounding::Up => sign == 0,
            _ => false,
        };
        let overflow = if !self.has_infinity {
            self.largest()
        } else if up || matches!(rounding, Rounding::Nearest | Rounding::Away) {
            self.largest() + 1
        } else {
            self.largest()
        };
        if value.is_infinite() {
            let infinity = if self.has_infinity { self.largest() + 1 } else { self.largest() };
            return sign | infinity;
        }
        let exponent = (bits >> 52 & 0x7FF) as i32 - 1023;
        if exponent < -1022 {
            // A zero, or an f64 subnormal, which is below every format.
            let tiny = up && value != 0.0;
            return sign | u32::from(tiny);
        }
        let mantissa = bits & ((1 << 52) - 1) | 1 << 52;
        let smallest = 1 - self.bias();
        let drop = 52 - self.mantissa_bits as i32 + (smallest - exponent).max(0);
        let biased = (exponent - smallest).max(0) as u64;
        let magnitude = shift_rounding(mantissa, drop as u32, rounding, up);
        // A mantissa with its leading bit adds one to the exponent's field, which is what is
        // wanted of normal values; a carry out of it does the same once more.
        let magnitude = magnitude.saturating_add(biased << self.mantissa_bits);
        if magnitude > u64::from(self.largest()) {
            sign | overflow
        } else {
            sign | magnitude as u32
        }
    }

    /// As [`encode`](Self::encode) to nearest, but what is too large becomes the largest value,
    /// infinities included.
    pub(crate) fn encode_saturating(self, value: f64) -> u32 {
        let bits = self.encode(value, Rounding::Nearest);
        let magnitude = bits & (self.sign_bit() - 1);
        if value.is_nan() || magnitude <= self.largest() {
            return bits;
        }
        bits & self.sign_bit() | self.largest()
    }
}

/// `mantissa / 2^drop`, rounded; `up` is the direction away from zero.
fn shift_rounding(mantissa: u64, drop: u32, rounding: Rounding, up: bool) -> u64 {
    if drop == 0 {
        return mantissa;
    }
    if drop > 60 {
        return u64::from(up);
    }
    let (kept, rest, half) = (mantissa >> drop, mantissa & ((1 << drop) - 1), 1 << (drop - 1));
    let increment = match rounding {
        Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
        Rounding::Away => rest >= half,
        Rounding::Zero => false,
        Rounding::Down | Rounding::Up => up && rest != 0,
    };
    kept + u64::from(increment)
}

/// An IEEE half.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half(pub(crate) u16);

/// A bfloat16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brain(pub(crate) u16);

/// The two formats of 16 bits, which share all their instructions.
pub(crate) trait Small: Lane {
    const FORMAT: Format;
    fn bits(self) -> u16;
    fn from_bits(bits: u16) -> Self;

    #[inline]
    fn value(self) -> f32 {
        Self::FORMAT.decode(u32::from(self.bits()))
    }

    /// To nearest.
    #[inline]
    fn round(value: f64) -> Self {
        Self::from_bits(Self::FORMAT.encode(value, Rounding::Nearest) as u16)
    }
}

macro_rules! small {
    ($name:ident, $format:expr) => {
        impl Lane for $name {
            #[inline]
            fn get(bits: u64) -> Self {
                Self(bits as u16)
            }
            #[inline]
            fn put(self) -> u64 {
                u64::from(self.0)
            }
        }
        impl Small for $name {
            const FORMAT: Format = $format;
            #[inline]
            fn bits(self) -> u16 {
                self.0
            }
            #[inline]
            fn from_bits(bits: u16) -> Self {
                Self(bits)
            }
        }
    };
}
small!(Half, F16);
small!(Brain, BF16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_value_comes_back() {
        for (format, bits) in [(F16, 16), (BF16, 16), (E4M3, 8), (E5M2, 8), (TF32, 19)] {
            for pattern in 0..1_u32 << bits {
                let value = format.decode(pattern);
                for rounding in [
                    Rounding::Nearest,
                    Rounding::Zero,
                    Rounding::Up,
                    Rounding::Down,
                    Rounding::Away,
                ] {
                    let again = format.encode(f64::from(value), rounding);
                    if value.is_nan() {
                        assert_eq!(again, format.nan);
                    } else {
                        assert_eq!(again, pattern, "{format:?} {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn single_precision_is_what_the_processor_rounds() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200_000 {
            let value = f64::from_bits(random.u64(..));
            let near = f64::from(f32::from_bits(random.u32(..))) * (1.0 + random.f64() * 1e-7);
            for value in [value, near] {
                if !value.is_nan() {
                    assert_eq!(F32.encode(value, Rounding::Nearest), (value as f32).to_bits());
                }
            }
        }
    }

    #[test]
    fn halves_round_to_even_and_saturate() {
        assert_eq!(F16.encode(65504.0, Rounding::Nearest), 0x7BFF);
        assert_eq!(F16.encode(65519.9, Rounding::Nearest), 0x7BFF);
        assert_eq!(F16.encode(65520.0, Rounding::Nearest), 0x7C00);
        assert_eq!(F16.encode(65536.0, Rounding::Zero), 0x7BFF);
        assert_eq!(F16.encode(2.0_f64.powi(-25), Rounding::Nearest), 0);
        assert_eq!(F16.encode(2.0_f64.powi(-25) * 1.01, Rounding::Nearest), 1);
        assert_eq!(E4M3.encode_saturating(1e9), 0x7E);
        assert_eq!(E4M3.encode_saturating(f64::NEG_INFINITY), 0xFE);
        assert_eq!(E5M2.encode_saturating(f64::INFINITY), 0x7B);
        assert_eq!(E4M3.encode_saturating(f64::NAN), 0x7F);
        assert_eq!(E4M3.decode(0x38).to_bits(), 1.0_f32.to_bits());
    }
}

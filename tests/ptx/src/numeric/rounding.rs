//! Sums and products rounded in every direction.
//!
//! A result is computed as a pair of f64, value and exact error. If there is an error, the value
//! is made *odd*: the neighbour whose last bit is set, on the error's side. Rounding an odd value
//! once more, to a format at least two bits shorter, gives what rounding the exact result would
//! have, in every direction (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").

use super::formats::F32;
use crate::types::Rounding;

/// The f64 that stands for `value + error` when it is rounded again.
fn to_odd(value: f64, error: f64) -> f64 {
    let bits = value.to_bits();
    if error == 0.0 || !value.is_finite() || bits & 1 == 1 {
        return value;
    }
    // The exact result lies between `value` and a neighbour; value is even, so that one is odd.
    let grows = (error > 0.0) == (value > 0.0);
    f64::from_bits(if grows { bits + 1 } else { bits - 1 })
}

/// `a + b`, for operands that are f32 or products of two.
pub(crate) fn sum_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    to_odd(sum, (a - (sum - part)) + (b - part))
}

/// `a * b + c`, for operands that were f32: the product is exact.
pub(crate) fn fused_to_odd(a: f32, b: f32, c: f32) -> f64 {
    sum_to_odd(f64::from(a) * f64::from(b), f64::from(c))
}

/// `a / b`, for operands that were f32.
fn quotient_to_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a);
    to_odd(quotient, if quotient.is_finite() { rest / b } else { 0.0 })
}

fn root_to_odd(a: f64) -> f64 {
    let root = a.sqrt();
    to_odd(root, (-root).mul_add(root, a))
}

fn finish(odd: f64, exact_zero_sign: bool, rounding: Rounding) -> f32 {
    if odd == 0.0 && exact_zero_sign && rounding == Rounding::Down {
        return -0.0;
    }
    f32::from_bits(F32.encode(odd, rounding))
}

pub(crate) fn add(a: f32, b: f32, rounding: Rounding) -> f32 {
    // x + -x is -0 only downwards, and only if the operands' signs differ.
    let cancels = a.is_sign_negative() != b.is_sign_negative();
    finish(sum_to_odd(f64::from(a), f64::from(b)), cancels, rounding)
}

pub(crate) fn multiply(a: f32, b: f32, rounding: Rounding) -> f32 {
    finish(f64::from(a) * f64::from(b), false, rounding)
}

pub(crate) fn fused(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    let product = a.is_sign_negative() != b.is_sign_negative();
    finish(fused_to_odd(a, b, c), product != c.is_sign_negative(), rounding)
}

pub(crate) fn divide(a: f32, b: f32, rounding: Rounding) -> f32 {
    finish(quotient_to_odd(f64::from(a), f64::from(b)), false, rounding)
}

pub(crate) fn square_root(a: f32, rounding: Rounding) -> f32 {
    finish(root_to_odd(f64::from(a)), false, rounding)
}

/// Rounds to a whole number.
pub(crate) fn to_whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
        Rounding::Away => value.round(),
    }
}

/// An integer as an f64 that rounds to any shorter format as the integer itself would.
#[allow(clippy::cast_possible_truncation, reason = "an i128 that was rounded to f64 is whole")]
pub(crate) fn integer_to_odd(value: i128) -> f64 {
    let near = value as f64;
    let error = value - near as i128;
    to_odd(near, error as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_agrees_with_the_processor() {
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..100_000 {
            let [a, b, c] = [(); 3].map(|()| f32::from_bits(random.u32(..)));
            let close = f32::from_bits(c.to_bits() & 0x8000_0000 | (a * b).to_bits() >> 1 << 1);
            let near = Rounding::Nearest;
            for (ours, theirs) in [
                (add(a, b, near), a + b),
                (multiply(a, b, near), a * b),
                (fused(a, b, c, near), a.mul_add(b, c)),
                (fused(a, b, close, near), a.mul_add(b, close)),
                (divide(a, b, near), a / b),
                (square_root(a, near), a.sqrt()),
            ] {
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
            }
        }
    }

    #[test]
    fn directions_enclose_the_nearest() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let [a, b, c] = [(); 3].map(|()| random.f32() - 0.5);
            let [down, near, up, zero] =
                [Rounding::Down, Rounding::Nearest, Rounding::Up, Rounding::Zero]
                    .map(|rounding| fused(a, b, c, rounding));
            assert!(down <= near && near <= up);
            assert!(down == up || down.next_up() == up);
            assert_eq!(zero, if near > 0.0 { down } else { up });
        }
    }

    #[test]
    fn large_integers_round_once() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..100_000 {
            let value = random.u64(..) >> random.u32(0..64);
            let ours = F32.encode(integer_to_odd(i128::from(value)), Rounding::Nearest);
            assert_eq!(ours, (value as f32).to_bits());
        }
    }
}

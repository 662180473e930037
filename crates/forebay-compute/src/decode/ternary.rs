//! One bit, or one of −1, 0 and 1.
//!
//! ```text
//!  bytes of a block
//!   TQ1_0   q 48 · rest 4 · d 2    256 elements    five ternary digits in a byte, four in a rest
//!   TQ2_0   q 64 · d 2             256             four of two bits in a byte
//!   Q1_0    d 2 · q 16             128             bit i of byte j is element 8j + i: d or −d
//! ```

use super::{eight, half_at, with_signs, write};
use crate::machine::{LANES, Machine};
use std::ops::Range;

/// Decodes one ternary digit of each byte. A byte is a fraction of 256: three times it, what
/// carries over is its first digit. `power` has moved the wanted digit to the front.
#[inline(always)]
fn digit(byte: u8, power: u8) -> u16 {
    (u16::from(byte.wrapping_mul(power)) * 3) >> 8
}

#[inline(always)]
pub(super) fn tq1_0<M: Machine>(_machine: M, block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half_at(block, 52);
    for (place, power) in [1, 3, 9, 27, 81].into_iter().enumerate() {
        let digits = |bytes: Range<usize>, out: &mut [f32]| {
            for (byte, out) in block[bytes].iter().zip(out) {
                *out = d * (f32::from(digit(*byte, power)) - 1.0);
            }
        };
        digits(0..32, &mut out[32 * place..]);
        digits(32..48, &mut out[160 + 16 * place..]);
        if place < 4 {
            digits(48..52, &mut out[240 + 4 * place..]);
        }
    }
}

#[inline(always)]
pub(super) fn tq2_0<M: Machine>(machine: M, block: &[u8; 66], out: &mut [f32; 256]) {
    let d = machine.splat(half_at(block, 64));
    for at in (0..256).step_by(LANES) {
        let bytes = machine.widen(eight(block, at / 128 * 32 + at % 32));
        let bits = machine.shift_right(bytes, 2 * (at / 32 % 4));
        let q = machine.convert(machine.and(bits, machine.splat_integer(3)));
        let q = machine.subtract(q, machine.splat(1.0));
        write(machine, machine.multiply(d, q), out, at);
    }
}

#[inline(always)]
pub(super) fn q1_0<M: Machine>(machine: M, block: &[u8; 18], out: &mut [f32; 128]) {
    // A bit that isn't set becomes a sign bit.
    let d = machine.splat_integer(half_at(block, 0).to_bits());
    for at in (0..128).step_by(LANES) {
        let signs = machine.splat_integer(u32::from(!block[2 + at / LANES]));
        write(machine, with_signs(machine, d, signs), out, at);
    }
}

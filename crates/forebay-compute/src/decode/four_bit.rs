//! Four bits that stand for values of a table.
//!
//! ```text
//!  bytes of a block
//!   MXFP4    e 1 · q 16                     32 elements    w = 2^(e − 128)·table[q]
//!   NVFP4    scales 4 · q 32                64             w = scale/2·table[q], a scale for 16
//!   IQ4_NL   d 2 · q 16                     32             w = d·table[q]
//!   IQ4_XS   d 2 · high 2 · low 4 · q 128   256            w = (d·(scale − 32))·table[q], for 32
//! ```
//!
//! Where *n* bytes hold 2*n* elements, the lower halves are the first *n*.

use super::{half_at, nibble, u16_at, write};
use crate::machine::{LANES, Machine};

/// The values of E2M1, the 4-bit float of OCP MX, times two, which makes them integers.
static E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The values of IQ4: `kvalues` of `IQ4_NL` in the `gguf` package.
static IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Looks up sixteen half bytes, times `d`.
#[inline(always)]
fn look_up<M: Machine>(
    machine: M,
    d: f32,
    indices: &[u8; 2 * LANES],
    table: &[i8; 16],
    out: &mut [f32],
    at: usize,
) {
    let values = machine.look_up(table, indices);
    let (values, _) = values.as_chunks();
    for i in 0..2 {
        let values = machine.convert(machine.widen_signed(&values[i]));
        write(machine, machine.multiply(machine.splat(d), values), out, at + i * LANES);
    }
}

/// Looks up both halves of sixteen bytes: the lower halves are the first sixteen elements.
#[inline(always)]
fn look_up_halves<M: Machine>(
    machine: M,
    d: f32,
    bytes: &[u8],
    table: &[i8; 16],
    out: &mut [f32],
    at: usize,
) {
    let mut lower = [0; 16];
    lower.copy_from_slice(bytes);
    look_up(machine, d, &lower, table, out, at);
    look_up(machine, d, &lower.map(|byte| byte >> 4), table, out, at + 16);
}

/// Here, unlike in the block types, −0 is −0.
#[inline(always)]
pub(super) fn f4<M: Machine>(_machine: M, block: &[u8; 1], out: &mut [f32; 2]) {
    let value = |code: u8| {
        let magnitude = f32::from(E2M1_TWICE[usize::from(code & 7)]) * 0.5;
        if code < 8 { magnitude } else { -magnitude }
    };
    *out = [value(block[0] & 15), value(block[0] >> 4)];
}

#[inline(always)]
pub(super) fn mxfp4<M: Machine>(machine: M, block: &[u8; 17], out: &mut [f32; 32]) {
    // Half of 2^(e − 127), since the table has everything twice; the two smallest are subnormal.
    let e = u32::from(block[0]);
    let bits = if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 };
    look_up_halves(machine, f32::from_bits(bits), &block[1..], &E2M1_TWICE, out, 0);
}

#[inline(always)]
pub(super) fn nvfp4<M: Machine>(machine: M, block: &[u8; 36], out: &mut [f32; 64]) {
    for group in 0..4 {
        let d = unsigned_e4m3_half(block[group]);
        // Eight bytes are a group: lower halves, then upper halves.
        let q = &block[4 + 8 * group..][..8];
        let mut indices = [0; 16];
        for i in 0..8 {
            indices[i] = q[i];
            indices[8 + i] = q[i] >> 4;
        }
        look_up(machine, d, &indices, &E2M1_TWICE, out, 16 * group);
    }
}

/// Half the value of an E4M3 float whose sign bit doesn't count. 0x7f, which would be NaN, is 0
/// to the `gguf` package; with the sign bit set it is the number after the largest, 480.
#[inline(always)]
fn unsigned_e4m3_half(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    let exponent = u32::from(code >> 3) & 15;
    let mantissa = u32::from(code & 7);
    if exponent == 0 {
        mantissa as f32 / 1024.0
    } else {
        f32::from_bits((exponent + 127 - 7 - 1) << 23 | mantissa << 20)
    }
}

#[inline(always)]
pub(super) fn iq4_nl<M: Machine>(machine: M, block: &[u8; 18], out: &mut [f32; 32]) {
    look_up_halves(machine, half_at(block, 0), &block[2..], &IQ4, out, 0);
}

#[inline(always)]
pub(super) fn iq4_xs<M: Machine>(machine: M, block: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high, low) = (half_at(block, 0), u16_at(block, 2), &block[4..8]);
    for group in 0..8 {
        let scale = u16::from(nibble(low, group)) | ((high >> (2 * group)) & 3) << 4;
        let d = d * (f32::from(scale) - 32.0);
        look_up_halves(machine, d, &block[8 + 16 * group..][..16], &IQ4, out, 32 * group);
    }
}

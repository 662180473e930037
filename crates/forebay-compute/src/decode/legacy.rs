//! ggml's first block types: 32 elements under one scale.
//!
//! ```text
//!  bytes of a block   0    2    4        8
//!            Q4_0     d    q…                          w = d·(q − 8)
//!            Q4_1     d    m    q…                     w = d·q + m
//!            Q5_0     d    fifth bits  q…              w = d·(q − 16)
//!            Q5_1     d    m    fifth bits  q…         w = d·q + m
//!            Q8_0     d    q…                          w = d·q
//! ```
//!
//! Sixteen bytes hold 32 half bytes: the lower halves are elements 0 to 15, the upper halves 16
//! to 31. Bit *i* of the fifth bits, a little-endian 32-bit integer, belongs to element *i*.

use super::{eight, half_at, nibbles, write};
use crate::machine::{LANES, Machine};

#[inline(always)]
pub(super) fn q4_0<M: Machine>(machine: M, block: &[u8; 18], out: &mut [f32; 32]) {
    let d = machine.splat(half_at(block, 0));
    for at in (0..32).step_by(LANES) {
        let q = machine.convert(nibbles(machine, eight(block, 2 + at % 16), at / 16));
        let q = machine.subtract(q, machine.splat(8.0));
        write(machine, machine.multiply(d, q), out, at);
    }
}

#[inline(always)]
pub(super) fn q4_1<M: Machine>(machine: M, block: &[u8; 20], out: &mut [f32; 32]) {
    let d = machine.splat(half_at(block, 0));
    let m = machine.splat(half_at(block, 2));
    for at in (0..32).step_by(LANES) {
        let q = machine.convert(nibbles(machine, eight(block, 4 + at % 16), at / 16));
        write(machine, machine.add(machine.multiply(d, q), m), out, at);
    }
}

/// Eight five-bit integers of a block whose fifth bits are at `offset`, its others behind them.
#[inline(always)]
fn five_bits<M: Machine>(machine: M, block: &[u8], offset: usize, at: usize) -> M::Floats {
    let low = nibbles(machine, eight(block, offset + 4 + at % 16), at / 16);
    // Moves bit i of a byte to bit 7 of lane i, then takes it down to bit 4.
    let fifth = machine.splat_integer(u32::from(block[offset + at / LANES]));
    let up = machine.widen(&[7, 6, 5, 4, 3, 2, 1, 0]);
    let fifth = machine.shift_right(machine.shift_left_each(fifth, up), 3);
    let fifth = machine.and(fifth, machine.splat_integer(16));
    machine.convert(machine.or(low, fifth))
}

#[inline(always)]
pub(super) fn q5_0<M: Machine>(machine: M, block: &[u8; 22], out: &mut [f32; 32]) {
    let d = machine.splat(half_at(block, 0));
    for at in (0..32).step_by(LANES) {
        let q = machine.subtract(five_bits(machine, block, 2, at), machine.splat(16.0));
        write(machine, machine.multiply(d, q), out, at);
    }
}

#[inline(always)]
pub(super) fn q5_1<M: Machine>(machine: M, block: &[u8; 24], out: &mut [f32; 32]) {
    let d = machine.splat(half_at(block, 0));
    let m = machine.splat(half_at(block, 2));
    for at in (0..32).step_by(LANES) {
        let q = five_bits(machine, block, 4, at);
        write(machine, machine.add(machine.multiply(d, q), m), out, at);
    }
}

#[inline(always)]
pub(super) fn q8_0<M: Machine>(machine: M, block: &[u8; 34], out: &mut [f32; 32]) {
    let d = machine.splat(half_at(block, 0));
    for at in (0..32).step_by(LANES) {
        let q = machine.convert(machine.widen_signed(eight(block, 2 + at)));
        write(machine, machine.multiply(q, d), out, at);
    }
}

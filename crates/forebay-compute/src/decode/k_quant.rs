//! ggml's "K" block types: 256 elements, in groups that have small scales of their own.
//!
//! ```text
//!  bytes of a block                                                          group
//!   Q2_K   scales 16 · q 64 · d 2 · dmin 2        w = (d·scale)·q − dmin·min    16
//!   Q3_K   third bits 32 · q 64 · scales 12 · d   w = (d·(scale − 32))·(q − 4)  16
//!   Q4_K   d 2 · dmin 2 · scales 12 · q 128       w = (d·scale)·q − dmin·min    32
//!   Q5_K   d · dmin · scales 12 · fifth 32 · q    w = (d·scale)·q − dmin·min    32
//!   Q6_K   low 128 · high 64 · scales 16 · d      w = (d·scale)·(q − 32)        16
//! ```
//!
//! Bits of neighbours in a byte belong to elements far apart, so that whole vectors of bytes are
//! shifted at once: of 32 bytes of two-bit integers, the lowest bits are elements 0 to 31, the
//! next 32 to 63, and so on; the next 32 bytes begin at element 128.

use super::{eight, half_at, nibbles, write};
use crate::machine::{LANES, Machine};

/// The bits of each lane from bit `lowest` on that `mask` has.
#[inline(always)]
fn bits<M: Machine>(machine: M, lanes: M::Integers, lowest: usize, mask: u32) -> M::Integers {
    let moved = machine.shift_right(lanes, lowest);
    machine.and(moved, machine.splat_integer(mask))
}

/// The eights of a block in the order in which the types of 16 groups hold them: for each place in
/// 32 bytes of two-bit integers, whose four runs of 32 elements are decoded together, the half
/// of the block and the first element in the run.
#[inline(always)]
fn places() -> impl Iterator<Item = (usize, usize)> {
    (0..8).map(|place| (place / 4, place % 4 * LANES))
}

#[inline(always)]
pub(super) fn q2_k<M: Machine>(machine: M, block: &[u8; 84], out: &mut [f32; 256]) {
    let (packed, q) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for group in 0..16 {
        scales[group] = d * f32::from(packed[group] & 15);
        mins[group] = dmin * f32::from(packed[group] >> 4);
    }
    for (half, first) in places() {
        let q = machine.widen(eight(q, 32 * half + first));
        for run in 0..4 {
            let at = 128 * half + 32 * run + first;
            let scale = machine.splat(scales[at / 16]);
            let scaled = machine.multiply(scale, machine.convert(bits(machine, q, 2 * run, 3)));
            write(machine, machine.subtract(scaled, machine.splat(mins[at / 16])), out, at);
        }
    }
}

#[inline(always)]
pub(super) fn q3_k<M: Machine>(machine: M, block: &[u8; 110], out: &mut [f32; 256]) {
    let (third, q, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    let mut scales = [0.0; 16];
    for group in 0..16 {
        // Four bits from the first eight bytes, lower halves first, two from the last four.
        let low = (packed[group % 8] >> (4 * (group / 8))) & 15;
        let high = (packed[8 + group % 4] >> (2 * (group / 4))) & 3;
        scales[group] = d * (f32::from(low | high << 4) - 32.0);
    }
    for (half, first) in places() {
        let q = machine.widen(eight(q, 32 * half + first));
        let third = machine.widen(eight(third, first));
        for run in 0..4 {
            let at = 128 * half + 32 * run + first;
            // The third bit is kept inverted: where it is 0, four are taken off.
            let third = machine.shift_left::<2>(bits(machine, third, 4 * half + run, 1));
            let q = machine.convert(machine.or(bits(machine, q, 2 * run, 3), third));
            let q = machine.subtract(q, machine.splat(4.0));
            write(machine, machine.multiply(machine.splat(scales[at / 16]), q), out, at);
        }
    }
}

/// The six-bit scale and minimum of one of eight groups, out of twelve bytes:
///
/// ```text
///  bytes 0 to 3    eeaaaaaa   a: scale of groups 0 to 3, e: upper bits for groups 4 to 7
///  bytes 4 to 7    ffbbbbbb   b: minimum of groups 0 to 3, f: upper bits for groups 4 to 7
///  bytes 8 to 11   ddddcccc   c: scale, d: minimum of groups 4 to 7, lower bits
/// ```
#[inline(always)]
fn scale_and_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[4 + group] & 63)
    } else {
        let low = scales[4 + group];
        let (scale_high, min_high) = (scales[group - 4] >> 6, scales[group] >> 6);
        (low & 15 | scale_high << 4, low >> 4 | min_high << 4)
    };
    (f32::from(scale), f32::from(min))
}

#[inline(always)]
pub(super) fn q4_k<M: Machine>(machine: M, block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, q) = (&block[4..16], &block[16..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (machine.splat(d * scale), machine.splat(dmin * min));
        for at in (0..32).step_by(LANES) {
            let q = nibbles(machine, eight(q, 32 * (group / 2) + at), group % 2);
            let scaled = machine.multiply(scale, machine.convert(q));
            write(machine, machine.subtract(scaled, min), out, 32 * group + at);
        }
    }
}

#[inline(always)]
pub(super) fn q5_k<M: Machine>(machine: M, block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifth, q) = (&block[4..16], &block[16..48], &block[48..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(scales, group);
        let (scale, min) = (machine.splat(d * scale), machine.splat(dmin * min));
        for at in (0..32).step_by(LANES) {
            let low = nibbles(machine, eight(q, 32 * (group / 2) + at), group % 2);
            let fifth = bits(machine, machine.widen(eight(fifth, at)), group, 1);
            let q = machine.or(low, machine.shift_left::<4>(fifth));
            let scaled = machine.multiply(scale, machine.convert(q));
            write(machine, machine.subtract(scaled, min), out, 32 * group + at);
        }
    }
}

#[inline(always)]
pub(super) fn q6_k<M: Machine>(machine: M, block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, packed) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    let mut scales = [0.0; 16];
    for group in 0..16 {
        scales[group] = d * f32::from(packed[group].cast_signed());
    }
    for (half, first) in places() {
        let high = machine.widen(eight(high, 32 * half + first));
        for run in 0..4 {
            let at = 128 * half + 32 * run + first;
            // Of 64 bytes of low halves the lower are elements 0 to 63, the upper 64 to 127.
            let low = nibbles(machine, eight(low, 64 * half + 32 * (run % 2) + first), run / 2);
            let high = machine.shift_left::<4>(bits(machine, high, 2 * run, 3));
            let q = machine.convert(machine.or(low, high));
            let q = machine.subtract(q, machine.splat(32.0));
            write(machine, machine.multiply(machine.splat(scales[at / 16]), q), out, at);
        }
    }
}

//! ggml's codebook types: eight elements (or four) at once are an entry of a grid.
//!
//! ```text
//!  bytes of a block of 256
//!   IQ2_XXS   d 2 · (entries 4 · signs and scale 4) × 8       w = (d·(½ + scale)·¼)·entry·sign
//!   IQ2_XS    d 2 · (entry 9 bits, signs 7) × 32 · scales 8   ″
//!   IQ2_S     d 2 · entries 32 · signs 32 · high 8 · scales 8 ″
//!   IQ3_XXS   d 2 · entries 64 · (signs and scale 4) × 8      w = (d·(½ + scale)·½)·entry·sign
//!   IQ3_S     d 2 · entries 64 · high 8 · signs 32 · scales 4 w = (d·(1 + 2·scale))·entry·sign
//!   IQ1_S     d 2 · entries 32 · high and scale 16            w = (d·(1 + 2·scale))·(entry ± ⅛)
//!   IQ1_M     entries 32 · high 16 · scales, and d among them 8   ″
//! ```

use super::grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::{half, half_at, nibble, u16_at, u32_at, with_signs, write};
use crate::machine::{LANES, Machine};

/// Eight sign bits from seven: the eighth makes their number even.
#[inline(always)]
fn even_signs(seven: u32) -> u32 {
    let seven = seven & 127;
    seven | (seven.count_ones() & 1) << 7
}

/// Writes eight elements of grid entries times `scale`, negative where the element's bit of
/// `signs` is set.
#[inline(always)]
fn signed<M: Machine>(
    machine: M,
    scale: f32,
    entry: &[u8; LANES],
    signs: u32,
    out: &mut [f32],
    at: usize,
) {
    let entry = machine.convert(machine.widen(entry));
    let scaled = machine.multiply(machine.splat(scale), entry);
    let signs = machine.splat_integer(signs);
    write(machine, with_signs(machine, machine.to_bits(scaled), signs), out, at);
}

/// Two grid entries of four elements.
#[inline(always)]
fn pair(first: [u8; 4], second: [u8; 4]) -> [u8; LANES] {
    let pair = u64::from(u32::from_le_bytes(first)) | u64::from(u32::from_le_bytes(second)) << 32;
    pair.to_le_bytes()
}

#[inline(always)]
pub(super) fn iq2_xxs<M: Machine>(machine: M, block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for group in 0..8 {
        let entries = &block[2 + 8 * group..][..4];
        let rest = u32_at(block, 6 + 8 * group);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for i in 0..4 {
            let entry = &IQ2_XXS[usize::from(entries[i])];
            let signs = even_signs(rest >> (7 * i));
            signed(machine, scale, entry, signs, out, 32 * group + 8 * i);
        }
    }
}

#[inline(always)]
pub(super) fn iq2_xs<M: Machine>(machine: M, block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for i in 0..32 {
        let scale = d * (0.5 + f32::from(nibble(&block[66..], i / 2))) * 0.25;
        let q = u16_at(block, 2 + 2 * i);
        let entry = &IQ2_XS[usize::from(q & 511)];
        signed(machine, scale, entry, even_signs(u32::from(q >> 9)), out, 8 * i);
    }
}

#[inline(always)]
pub(super) fn iq2_s<M: Machine>(machine: M, block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (entries, signs, high) = (&block[2..34], &block[34..66], &block[66..74]);
    for i in 0..32 {
        let scale = d * (0.5 + f32::from(nibble(&block[74..], i / 2))) * 0.25;
        let two_bits = (high[i / 4] >> (2 * (i % 4))) & 3;
        let entry = &IQ2_S[usize::from(entries[i]) | usize::from(two_bits) << 8];
        signed(machine, scale, entry, u32::from(signs[i]), out, 8 * i);
    }
}

#[inline(always)]
pub(super) fn iq3_xxs<M: Machine>(machine: M, block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for group in 0..8 {
        let entries = &block[2 + 8 * group..][..8];
        let rest = u32_at(block, 66 + 4 * group);
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for i in 0..4 {
            let entry = |i: usize| IQ3_XXS[usize::from(entries[i])];
            let entries = pair(entry(2 * i), entry(2 * i + 1));
            let signs = even_signs(rest >> (7 * i));
            signed(machine, scale, &entries, signs, out, 32 * group + 8 * i);
        }
    }
}

#[inline(always)]
pub(super) fn iq3_s<M: Machine>(machine: M, block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (entries, high, signs) = (&block[2..66], &block[66..74], &block[74..106]);
    for i in 0..32 {
        let scale = d * f32::from(1 + 2 * nibble(&block[106..], i / 4));
        let ninth_bits = usize::from(high[i / 4] >> (2 * (i % 4)));
        let first = usize::from(entries[2 * i]) | (ninth_bits & 1) << 8;
        let second = usize::from(entries[2 * i + 1]) | (ninth_bits & 2) << 7;
        let entries = pair(IQ3_S[first], IQ3_S[second]);
        signed(machine, scale, &entries, u32::from(signs[i]), out, 8 * i);
    }
}

/// Writes an entry of IQ1's grid moved up by an eighth, or down if `down`.
#[inline(always)]
fn shifted<M: Machine>(
    machine: M,
    scale: f32,
    entry: &[u8; LANES],
    down: bool,
    out: &mut [f32],
    at: usize,
) {
    // The grid has −1, 0 and 1, kept as 0, 1 and 2.
    let delta = machine.splat(if down { -1.125 } else { -0.875 });
    let moved = machine.add(machine.convert(machine.widen(entry)), delta);
    write(machine, machine.multiply(machine.splat(scale), moved), out, at);
}

#[inline(always)]
pub(super) fn iq1_s<M: Machine>(machine: M, block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let entries = &block[2..34];
    for group in 0..8 {
        // Four times three bits of entries, three of scale, one for the direction.
        let rest = u16_at(block, 34 + 2 * group);
        let scale = d * f32::from(2 * ((rest >> 12) & 7) + 1);
        for i in 0..4 {
            let three_bits = usize::from((rest >> (3 * i)) & 7);
            let entry = &IQ1[usize::from(entries[4 * group + i]) | three_bits << 8];
            shifted(machine, scale, entry, rest & 0x8000 != 0, out, 32 * group + 8 * i);
        }
    }
}

#[inline(always)]
pub(super) fn iq1_m<M: Machine>(machine: M, block: &[u8; 56], out: &mut [f32; 256]) {
    let (entries, high) = (&block[..32], &block[32..48]);
    // Four integers of four times three bits of scale; their upper four bits together are d.
    let scales = [u16_at(block, 48), u16_at(block, 50), u16_at(block, 52), u16_at(block, 54)];
    let d = (scales[0] >> 12) | (scales[1] >> 12) << 4 | (scales[2] >> 12) << 8;
    let d = half(d | (scales[3] >> 12) << 12);
    for i in 0..32 {
        let scale = (scales[i / 8] >> (3 * (i / 2 % 4))) & 7;
        let scale = d * f32::from(2 * scale + 1);
        let rest = nibble(high, i);
        let entry = &IQ1[usize::from(entries[i]) | usize::from(rest & 7) << 8];
        shifted(machine, scale, entry, rest & 8 != 0, out, 8 * i);
    }
}

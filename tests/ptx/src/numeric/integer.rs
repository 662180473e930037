//! Integer instructions that are no operators of Rust.
#![allow(clippy::cast_possible_truncation, reason = "results are cut to their type's width")]

/// `prmt`: eight bytes to choose from, four selectors of four bits.
pub(crate) fn permute(a: u32, b: u32, selectors: u32, mode: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let select = selectors & 3;
    let chosen: [u32; 4] = match mode {
        PERMUTE_FORWARD => [0, 1, 2, 3].map(|lane| select + lane),
        PERMUTE_BACKWARD => [0, 1, 2, 3].map(|lane| select.wrapping_sub(lane) & 7),
        PERMUTE_REPLICATE => [select; 4],
        PERMUTE_CLAMP_LEFT => [0, 1, 2, 3].map(|lane: u32| lane.max(select)),
        PERMUTE_CLAMP_RIGHT => [0, 1, 2, 3].map(|lane: u32| lane.min(select)),
        PERMUTE_HALVES => [0, 1, 0, 1].map(|lane| (select & 1) * 2 + lane),
        _ => [0, 4, 8, 12].map(|shift| selectors >> shift & 15),
    };
    u32::from_le_bytes(chosen.map(|selector| {
        let byte = bytes[(selector & 7) as usize];
        // The top bit of a selector asks for the sign, eight times.
        if selector & 8 != 0 { (byte.cast_signed() >> 7).cast_unsigned() } else { byte }
    }))
}

pub(crate) const PERMUTE_FORWARD: u32 = 1;
pub(crate) const PERMUTE_BACKWARD: u32 = 2;
pub(crate) const PERMUTE_REPLICATE: u32 = 3;
pub(crate) const PERMUTE_CLAMP_LEFT: u32 = 4;
pub(crate) const PERMUTE_CLAMP_RIGHT: u32 = 5;
pub(crate) const PERMUTE_HALVES: u32 = 6;

/// `lop3`: bit `4a + 2b + c` of the table for each bit.
pub(crate) fn lookup3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut result = 0;
    for row in 0..8 {
        if table >> row & 1 == 1 {
            let term = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
            result |= term(a, 2) & term(b, 1) & term(c, 0);
        }
    }
    result
}

/// `bfe` of `width` bits (32 or 64) read as unsigned.
pub(crate) fn extract(value: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    if position >= width || length == 0 {
        return 0;
    }
    let shifted = value >> position;
    if length >= 64 { shifted } else { shifted & ((1 << length) - 1) }
}

/// `bfe` read as signed: what lies above the value is its sign.
pub(crate) fn extract_signed(value: i64, position: u32, length: u32, width: u32) -> i64 {
    let (position, length) = (position & 255, length & 255);
    if length == 0 {
        return 0;
    }
    let last = (position + length - 1).min(width - 1);
    let sign = value >> last & 1;
    let shifted = if position >= width { -sign } else { value >> position };
    if length >= width || position + length > width {
        // Bits beyond the value are copies of its sign, which the shift has brought in.
        return shifted;
    }
    shifted << (64 - length) >> (64 - length)
}

/// `bfi`: `length` low bits of `field` put into `base` at `position`.
pub(crate) fn insert(field: u64, base: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 255, length & 255);
    if position >= width || length == 0 {
        return base;
    }
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let mask = ones << position;
    base & !mask | field << position & mask
}

/// `bfind`: the place of the highest bit that is not the sign, or all ones.
pub(crate) fn find_high(value: i64, is_signed: bool, width: u32, as_shift: bool) -> u32 {
    let bits = if is_signed && value < 0 { !value } else { value };
    match bits.cast_unsigned().checked_ilog2() {
        None => u32::MAX,
        Some(position) if as_shift => width - 1 - position,
        Some(position) => position,
    }
}

/// `dp4a`, each operand's bytes signed or not.
pub(crate) fn dot4(a: u32, b: u32, c: u32, is_signed: [bool; 2]) -> u32 {
    let mut sum = c;
    for lane in 0..4 {
        let byte = |value: u32, signed: bool| {
            let byte = value.to_le_bytes()[lane];
            if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
        };
        sum = sum.wrapping_add_signed(byte(a, is_signed[0]) * byte(b, is_signed[1]));
    }
    sum
}

/// `dp2a`: two halves of `a` with two bytes of `b`, the high or the low ones.
pub(crate) fn dot2(a: u32, b: u32, c: u32, is_signed: [bool; 2], high: bool) -> u32 {
    let mut sum = c;
    for lane in 0..2 {
        let half = (a >> (16 * lane)) as u16;
        let byte = b.to_le_bytes()[lane + usize::from(high) * 2];
        let half = if is_signed[0] { i32::from(half.cast_signed()) } else { i32::from(half) };
        let byte = if is_signed[1] { i32::from(byte.cast_signed()) } else { i32::from(byte) };
        sum = sum.wrapping_add_signed(half.wrapping_mul(byte));
    }
    sum
}

/// `shf`: 32 bits out of 64 that are shifted left (the high ones) or right (the low ones).
pub(crate) fn funnel(low: u32, high: u32, count: u32, left: bool, wraps: bool) -> u32 {
    let both = u64::from(high) << 32 | u64::from(low);
    let count = if wraps { count & 31 } else { count.min(32) };
    if left { ((both << count) >> 32) as u32 } else { (both >> count) as u32 }
}

/// The high half of a signed product.
pub(crate) fn high_signed(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

/// The high half of an unsigned product.
pub(crate) fn high_unsigned(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

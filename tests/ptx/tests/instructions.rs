//! Each family of instructions against Rust's own arithmetic, bit for bit.
#![allow(clippy::cast_possible_truncation, reason = "registers are cut out of 64-bit inputs")]
#![allow(clippy::precedence, reason = "bit fields read better so")]

mod common;

use common::{check, float_inputs, half, inputs};

/// An instruction, and what it makes of three values.
type Case<T> = (&'static str, fn(T, T, T) -> T);
/// The same of two values.
type Case2<T, Result> = (&'static str, fn(T, T) -> Result);

const B32: [&str; 4] = ["b32"; 4];
const B64: [&str; 4] = ["b64"; 4];
const B16: [&str; 4] = ["b16"; 4];

fn f32s(f: impl Fn(f32, f32, f32) -> f32) -> impl Fn(u64, u64, u64) -> u64 {
    move |a, b, c| {
        let [a, b, c] = [a, b, c].map(|bits| f32::from_bits(bits as u32));
        u64::from(f(a, b, c).to_bits())
    }
}

#[test]
fn integers_of_32_bits() {
    let cases: [Case<u32>; 28] = [
        ("add.s32 %d, %a, %b;", |a, b, _| a.wrapping_add(b)),
        ("add.sat.s32 %d, %a, %b;", |a, b, _| (a as i32).saturating_add(b as i32) as u32),
        ("sub.u32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b)),
        ("mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi.u32 %d, %a, %b;", |a, b, _| (u64::from(a) * u64::from(b) >> 32) as u32),
        ("mul.hi.s32 %d, %a, %b;", |a, b, _| {
            (i64::from(a as i32) * i64::from(b as i32) >> 32) as u32
        }),
        ("mad.lo.u32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad.hi.s32 %d, %a, %b, %c;", |a, b, c| {
            ((i64::from(a as i32) * i64::from(b as i32) >> 32) as u32).wrapping_add(c)
        }),
        ("min.s32 %d, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u32),
        ("max.u32 %d, %a, %b;", |a, b, _| a.max(b)),
        ("abs.s32 %d, %a;", |a, _, _| (a as i32).wrapping_abs() as u32),
        ("neg.s32 %d, %a;", |a, _, _| a.wrapping_neg()),
        ("and.b32 %d, %a, %b;", |a, b, _| a & b),
        ("xor.b32 %d, %a, 0x0F0F0F0F;", |a, _, _| a ^ 0x0F0F_0F0F),
        ("not.b32 %d, %a;", |a, _, _| !a),
        ("shl.b32 %d, %a, %b;", |a, b, _| a.checked_shl(b).unwrap_or(0)),
        ("shr.u32 %d, %a, %b;", |a, b, _| a.checked_shr(b).unwrap_or(0)),
        ("shr.s32 %d, %a, %b;", |a, b, _| (a as i32 >> b.min(31)) as u32),
        ("shf.l.wrap.b32 %d, %a, %b, %c;", |a, b, c| {
            ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
        }),
        ("shf.r.clamp.b32 %d, %a, %b, %c;", |a, b, c| {
            ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32
        }),
        ("popc.b32 %d, %a;", |a, _, _| a.count_ones()),
        ("clz.b32 %d, %a;", |a, _, _| a.leading_zeros()),
        ("brev.b32 %d, %a;", |a, _, _| a.reverse_bits()),
        ("bfind.u32 %d, %a;", |a, _, _| a.checked_ilog2().unwrap_or(u32::MAX)),
        ("bfind.shiftamt.u32 %d, %a;", |a, _, _| if a == 0 { u32::MAX } else { a.leading_zeros() }),
        ("sad.s32 %d, %a, %b, %c;", |a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32))),
        ("lop3.b32 %d, %a, %b, %c, 0xE8;", |a, b, c| a & b | a & c | b & c),
        ("slct.b32.s32 %d, %a, %b, %c;", |a, b, c| if c as i32 >= 0 { a } else { b }),
    ];
    for (text, f) in cases {
        check(text, B32, &inputs(1, 400), |a, b, c| u64::from(f(a as u32, b as u32, c as u32)));
    }
}

#[test]
fn integers_of_other_widths() {
    let cases: [Case<u64>; 12] = [
        ("add.s64 %d, %a, %b;", |a, b, _| a.wrapping_add(b)),
        ("mul.hi.s64 %d, %a, %b;", |a, b, _| {
            (i128::from(a as i64) * i128::from(b as i64) >> 64) as u64
        }),
        ("mul.hi.u64 %d, %a, %b;", |a, b, _| (u128::from(a) * u128::from(b) >> 64) as u64),
        ("mad.lo.s64 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("min.s64 %d, %a, %b;", |a, b, _| (a as i64).min(b as i64) as u64),
        ("shl.b64 %d, %a, 13;", |a, _, _| a << 13),
        ("shr.s64 %d, %a, 77;", |a, _, _| ((a as i64) >> 63) as u64),
        ("or.b64 %d, %a, %b;", |a, b, _| a | b),
        ("brev.b64 %d, %a;", |a, _, _| a.reverse_bits()),
        ("{ .reg .b32 %t; clz.b64 %t, %a; cvt.u64.u32 %d, %t; }", |a, _, _| {
            u64::from(a.leading_zeros())
        }),
        ("neg.s64 %d, %a;", |a, _, _| a.wrapping_neg()),
        ("bfe.u64 %d, %a, 5, 20;", |a, _, _| a >> 5 & 0xF_FFFF),
    ];
    for (text, f) in cases {
        check(text, B64, &inputs(2, 300), f);
    }
    let cases: [Case<u16>; 7] = [
        ("add.s16 %d, %a, %b;", |a, b, _| a.wrapping_add(b)),
        ("mul.lo.s16 %d, %a, %b;", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi.s16 %d, %a, %b;", |a, b, _| {
            (i32::from(a as i16) * i32::from(b as i16) >> 16) as u16
        }),
        ("shr.s16 %d, %a, 3;", |a, _, _| (a as i16 >> 3) as u16),
        ("shr.u16 %d, %a, 3;", |a, _, _| a >> 3),
        ("shl.b16 %d, %a, 9;", |a, _, _| a << 9),
        ("max.s16 %d, %a, %b;", |a, b, _| (a as i16).max(b as i16) as u16),
    ];
    for (text, f) in cases {
        check(text, B16, &inputs(3, 300), |a, b, c| u64::from(f(a as u16, b as u16, c as u16)));
    }
}

#[test]
fn wide_products_and_carries() {
    check("mul.wide.s32 %d, %a, %b;", ["b32", "b32", "b32", "b64"], &inputs(4, 300), |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
    check(
        "mad.wide.u32 %d, %a, %b, %c;",
        ["b32", "b32", "b64", "b64"],
        &inputs(5, 300),
        |a, b, c| (u64::from(a as u32) * u64::from(b as u32)).wrapping_add(c),
    );
    check("mul.wide.s16 %d, %a, %b;", ["b16", "b16", "b32", "b32"], &inputs(6, 300), |a, b, _| {
        u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32)
    });
    // 64-bit sums and products out of 32-bit ones.
    let split = ".reg .b32 %al, %ah, %bl, %bh, %dl, %dh;
        mov.b64 {%al, %ah}, %a; mov.b64 {%bl, %bh}, %b;";
    let join = "mov.b64 %d, {%dl, %dh};";
    let all = inputs(7, 300);
    let text = format!("{split} add.cc.u32 %dl, %al, %bl; addc.u32 %dh, %ah, %bh; {join}");
    check(&text, B64, &all, |a, b, _| a.wrapping_add(b));
    let text = format!("{split} sub.cc.u32 %dl, %al, %bl; subc.u32 %dh, %ah, %bh; {join}");
    check(&text, B64, &all, |a, b, _| a.wrapping_sub(b));
    let text = format!(
        "{split} mul.lo.u32 %dl, %al, %bl; mul.hi.u32 %dh, %al, %bl;
         mad.lo.u32 %dh, %al, %bh, %dh; mad.lo.u32 %dh, %ah, %bl, %dh;
         mad.lo.cc.u32 %dl, %al, 3, %dl; madc.hi.u32 %dh, %al, 3, %dh; {join}"
    );
    check(&text, B64, &all, |a, b, _| {
        a.wrapping_mul(b).wrapping_add(u64::from(a as u32).wrapping_mul(3))
    });
}

#[test]
fn divisions() {
    let all: Vec<[u64; 3]> = inputs(8, 400).into_iter().map(|[a, b, c]| [a, b | 1, c]).collect();
    let cases: [Case2<u32, u32>; 4] = [
        ("div.s32 %d, %a, %b;", |a, b| (a as i32).wrapping_div(b as i32) as u32),
        ("div.u32 %d, %a, %b;", |a, b| a / b),
        ("rem.s32 %d, %a, %b;", |a, b| (a as i32).wrapping_rem(b as i32) as u32),
        ("rem.u32 %d, %a, %b;", |a, b| a % b),
    ];
    for (text, f) in cases {
        check(text, B32, &all, |a, b, _| u64::from(f(a as u32, b as u32)));
    }
    check("div.s64 %d, %a, %b;", B64, &all, |a, b, _| (a as i64).wrapping_div(b as i64) as u64);
}

#[test]
fn fields_and_bytes() {
    let all = inputs(9, 400);
    check("bfe.u32 %d, %a, %b, %c;", B32, &all, |a, b, c| {
        let (position, length) = (b & 255, c & 255);
        (0..length.min(32)).fold(0, |field, bit| {
            let at = position + bit;
            field | if at < 32 { (a >> at & 1) << bit } else { 0 }
        })
    });
    check("bfe.s32 %d, %a, %b, %c;", B32, &all, |a, b, c| {
        // The manual's own pseudo code.
        let (position, length) = (b & 255, c & 255);
        let sign = if length == 0 { 0 } else { a >> (position + length - 1).min(31) & 1 };
        (0..32).fold(0, |field, bit| {
            let inside = bit < length && position + bit <= 31;
            field | (if inside { a >> (position + bit) & 1 } else { sign }) << bit
        })
    });
    check("bfi.b32 %d, %a, %b, %c, 7;", B32, &all, |a, b, c| {
        let position = c & 255;
        (0..7).filter(|bit| position + bit < 32).fold(b & 0xFFFF_FFFF, |base, bit| {
            base & !(1 << (position + bit)) | (a >> bit & 1) << (position + bit)
        })
    });
    check("prmt.b32 %d, %a, %b, %c;", B32, &all, |a, b, c| {
        let bytes = (a & 0xFFFF_FFFF) | b << 32;
        (0..4).fold(0, |word, lane| {
            let selector = c >> (4 * lane) & 15;
            let byte = bytes >> (8 * (selector & 7)) & 255;
            let byte = if selector & 8 == 0 { byte } else { 255 * (byte >> 7) };
            word | byte << (8 * lane)
        })
    });
    check("prmt.b32.f4e %d, %a, %b, %c;", B32, &all, |a, b, c| {
        ((a & 0xFFFF_FFFF) | b << 32) >> (8 * (c & 3)) & 0xFFFF_FFFF
    });
    check("dp4a.s32.u32 %d, %a, %b, %c;", B32, &all, |a, b, c| {
        let [a, b] = [a, b].map(|word| (word as u32).to_le_bytes());
        let sum = (0..4).map(|lane| i32::from(a[lane] as i8) * i32::from(b[lane])).sum::<i32>();
        u64::from((c as u32).wrapping_add(sum as u32))
    });
    check("dp2a.hi.s32.s32 %d, %a, %b, %c;", B32, &all, |a, b, c| {
        let byte = |at: u32| i32::from((b >> at) as i8);
        let sum = i32::from(a as i16) * byte(16) + i32::from((a >> 16) as i16) * byte(24);
        u64::from((c as u32).wrapping_add(sum as u32))
    });
    check("mov.b64 %d, {%a, %b};", ["b32", "b32", "b32", "b64"], &all, |a, b, _| {
        a & 0xFFFF_FFFF | b << 32
    });
}

#[test]
fn floats() {
    let all = float_inputs(10);
    let f32_kinds = ["f32"; 4];
    let cases: [Case<f32>; 19] = [
        ("add.f32 %d, %a, %b;", |a, b, _| a + b),
        ("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b),
        ("mul.f32 %d, %a, 0f40490FDB;", |a, _, _| a * std::f32::consts::PI),
        ("mul.f32 %d, %a, 1.5;", |a, _, _| a * 1.5),
        ("fma.rn.f32 %d, %a, %b, %c;", |a, b, c| a.mul_add(b, c)),
        ("fma.rn.sat.f32 %d, %a, %b, %c;", |a, b, c| a.mul_add(b, c).clamp(0.0, 1.0)),
        ("div.rn.f32 %d, %a, %b;", |a, b, _| a / b),
        ("div.approx.f32 %d, %a, %b;", |a, b, _| a / b),
        ("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a),
        ("{ abs.f32 %a, %a; sqrt.rn.f32 %d, %a; }", |a, _, _| a.abs().sqrt()),
        ("min.f32 %d, %a, %b;", |a, b, _| a.min(b)),
        ("max.f32 %d, %a, %b;", |a, b, _| a.max(b)),
        ("neg.f32 %d, %a;", |a, _, _| -a),
        ("copysign.f32 %d, %a, %b;", |a, b, _| b.copysign(a)),
        ("ex2.approx.ftz.f32 %d, %a;", |a, _, _| {
            let value = f64::from(a).exp2() as f32;
            if value.is_subnormal() { 0.0 } else { value }
        }),
        ("tanh.approx.f32 %d, %a;", |a, _, _| f64::from(a).tanh() as f32),
        ("sin.approx.f32 %d, %a;", |a, _, _| f64::from(a).sin() as f32),
        ("cvt.rni.f32.f32 %d, %a;", |a, _, _| a.round_ties_even()),
        ("cvt.rmi.f32.f32 %d, %a;", |a, _, _| a.floor()),
    ];
    for (text, f) in cases {
        check(text, f32_kinds, &all, f32s(f));
    }
    let subnormal = [[5, u64::from(1.0_f32.to_bits()), 0], [0x8000_0005, 0x3F80_0000, 0]];
    check("add.ftz.f32 %d, %a, 0f00000000;", f32_kinds, &subnormal, |_, _, _| 0);
    check("add.f32 %d, %a, 0f00000000;", f32_kinds, &subnormal, |a, _, _| a);
    check("mul.ftz.f32 %d, %a, %b;", f32_kinds, &subnormal, |a, _, _| a & 0x8000_0000);
    let text = "fma.rm.f32 %d, %a, %b, %c; fma.rp.f32 %a, %a, %b, %c; setp.le.f32 %p, %d, %a;
        @!%p trap;";
    check(
        text,
        f32_kinds,
        &all,
        f32s(|a, b, c| {
            let exact = f64::from(a) * f64::from(b) + f64::from(c);
            let near = exact as f32;
            // The inputs are tame enough that the sum in f64 tells on which side near is.
            if f64::from(near) > exact { near.next_down() } else { near }
        }),
    );
    let doubles: Vec<[u64; 3]> = all
        .iter()
        .map(|row| row.map(|bits| f64::from(f32::from_bits(bits as u32)).to_bits() + bits))
        .collect();
    check("fma.rn.f64 %d, %a, %b, %c;", ["f64"; 4], &doubles, |a, b, c| {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    });
}

#[test]
fn comparisons() {
    let all = inputs(25, 300);
    let select = "selp.b32 %d, 1, 0, %p;";
    let cases: [Case2<u32, bool>; 8] = [
        ("setp.lt.s32 %p, %a, %b;", |a, b| (a as i32) < b as i32),
        ("setp.hs.u32 %p, %a, %b;", |a, b| a >= b),
        ("setp.eq.b32 %p, %a, %b;", |a, b| a == b),
        ("setp.neu.f32 %p, %a, %b;", |a, b| f32::from_bits(a) != f32::from_bits(b)),
        ("setp.ne.f32 %p, %a, %b;", |a, b| {
            let [a, b] = [a, b].map(f32::from_bits);
            a != b && !a.is_nan() && !b.is_nan()
        }),
        ("setp.ltu.f32 %p, %a, %b;", |a, b| {
            let [a, b] = [a, b].map(f32::from_bits);
            a < b || a.is_nan() || b.is_nan()
        }),
        ("setp.nan.f32 %p, %a, %b;", |a, b| {
            f32::from_bits(a).is_nan() || f32::from_bits(b).is_nan()
        }),
        ("testp.subnormal.f32 %p, %a;", |a, _| f32::from_bits(a).is_subnormal()),
    ];
    for (text, f) in cases {
        check(&format!("{text} {select}"), B32, &all, |a, b, _| u64::from(f(a as u32, b as u32)));
    }
    let text = "setp.gt.s32 %q, %c, 0; setp.lt.and.s32 %p|%q, %a, %b, !%q;
        selp.b32 %d, 1, 0, %p; @%q add.u32 %d, %d, 2;";
    check(text, B32, &all, |a, b, c| {
        let (less, gate) = ((a as i32) < b as i32, c as i32 <= 0);
        u64::from(less && gate) + 2 * u64::from(!less && gate)
    });
    check("set.lt.u32.s32 %d, %a, %b;", B32, &all, |a, b, _| {
        if (a as i32) < b as i32 { 0xFFFF_FFFF } else { 0 }
    });
    check("set.ge.f32.s32 %d, %a, %b;", B32, &all, |a, b, _| {
        if a as i32 >= b as i32 { 0x3F80_0000 } else { 0 }
    });
    check("set.gt.f16x2.f16x2 %d, %a, %b;", B32, &all, |a, b, _| {
        let one = |s: u32| if half(a >> s) > half(b >> s) { 0x3C00 << s } else { 0 };
        one(0) | one(16)
    });
    let text = "setp.lt.s32 %p, %a, %b; setp.lt.s32 %q, %b, %c; xor.pred %p, %p, %q;
        not.pred %p, %p; selp.b32 %d, 7, 9, %p;";
    check(text, B32, &all, |a, b, c| {
        let [a, b, c] = [a, b, c].map(|bits| bits as i32);
        if (a < b) == (b < c) { 7 } else { 9 }
    });
}

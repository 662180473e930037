//! f16, bf16, tf32 and the two formats of 8 bits, against a search through all their values.
#![allow(clippy::cast_possible_truncation, reason = "registers are cut out of 64-bit inputs")]
#![allow(clippy::precedence, reason = "bit fields read better so")]

mod common;

use common::{check, float_inputs, half, inputs, nearest_half};

/// An instruction, and what it makes of three values before rounding.
type Case = (&'static str, fn(f64, f64, f64) -> f64);

const B32: [&str; 4] = ["b32"; 4];
const B16: [&str; 4] = ["b16"; 4];

#[test]
fn halves() {
    let mut random = fastrand::Rng::with_seed(20);
    let all: Vec<[u64; 3]> =
        (0..300).map(|_| std::array::from_fn(|_| u64::from(random.u16(..)))).collect();
    let cases: [Case; 4] = [
        ("add.f16 %d, %a, %b;", |a, b, _| a + b),
        ("sub.rn.f16 %d, %a, %b;", |a, b, _| a - b),
        ("mul.f16 %d, %a, %b;", |a, b, _| a * b),
        ("fma.rn.f16 %d, %a, %b, %c;", |a, b, c| a * b + c),
    ];
    for (text, f) in cases {
        check(text, B16, &all, |a, b, c| nearest_half(f(half(a), half(b), half(c))));
        // In pairs, each half is on its own.
        let pair = text.replace(".f16", ".f16x2");
        let both: Vec<[u64; 3]> =
            all.windows(2).map(|w| [0, 1, 2].map(|i| w[0][i] | w[1][i] << 16)).collect();
        check(&pair, B32, &both, |a, b, c| {
            let part = |shift: u32| {
                nearest_half(f(half(a >> shift), half(b >> shift), half(c >> shift))) << shift
            };
            part(0) | part(16)
        });
    }
    check("neg.f16x2 %d, %a;", B32, &inputs(21, 50), |a, _, _| (a ^ 0x8000_8000) & 0xFFFF_FFFF);
    check("cvt.f32.f16 %d, %a;", ["b16", "b16", "b16", "f32"], &all, |a, _, _| {
        let value = half(a);
        if value.is_nan() { 0x7FFF_FFFF } else { u64::from((value as f32).to_bits()) }
    });
}

#[test]
fn conversions() {
    let floats = float_inputs(22);
    check("cvt.rn.f16.f32 %d, %a;", ["f32", "f32", "f32", "b16"], &floats, |a, _, _| {
        nearest_half(f64::from(f32::from_bits(a as u32)))
    });
    check("cvt.rn.f16x2.f32 %d, %a, %b;", ["f32", "f32", "f32", "b32"], &floats, |a, b, _| {
        let [high, low] = [a, b].map(|bits| nearest_half(f64::from(f32::from_bits(bits as u32))));
        high << 16 | low
    });
    check("cvt.rn.bf16.f32 %d, %a;", ["f32", "f32", "f32", "b16"], &floats, |a, _, _| {
        (a + 0x7FFF + (a >> 16 & 1)) >> 16
    });
    check("cvt.rz.bf16x2.f32 %d, %a, %b;", ["f32", "f32", "f32", "b32"], &floats, |a, b, _| {
        a & 0xFFFF_0000 | b >> 16
    });
    check("cvt.rna.tf32.f32 %d, %a;", ["f32", "f32", "f32", "b32"], &floats, |a, _, _| {
        (a + 0x1000) & 0xFFFF_E000
    });
    let all = inputs(23, 300);
    let from32 = ["b32", "b32", "b32", "b64"];
    check("cvt.s64.s32 %d, %a;", from32, &all, |a, _, _| i64::from(a as i32) as u64);
    check("cvt.u64.u32 %d, %a;", from32, &all, |a, _, _| u64::from(a as u32));
    check("cvt.s64.s8 %d, %a;", from32, &all, |a, _, _| i64::from(a as i8) as u64);
    check("cvt.sat.s8.s32 %d, %a;", B32, &all, |a, _, _| {
        u64::from(i32::from((a as i32).clamp(-128, 127) as i8) as u32)
    });
    check("cvt.sat.u8.s32 %d, %a;", B32, &all, |a, _, _| (a as i32).clamp(0, 255) as u64);
    check("cvt.rn.f32.s64 %d, %a;", ["b64", "b64", "b64", "f32"], &all, |a, _, _| {
        u64::from((a as i64 as f32).to_bits())
    });
    check("cvt.rzi.s32.f32 %d, %a;", ["f32", "f32", "f32", "b32"], &all, |a, _, _| {
        u64::from(f32::from_bits(a as u32) as i32 as u32)
    });
    check("cvt.rni.u64.f64 %d, %a;", ["f64", "f64", "f64", "b64"], &all, |a, _, _| {
        f64::from_bits(a).round_ties_even() as u64
    });
    check("cvt.rn.f32.f64 %d, %a;", ["f64", "f64", "f64", "f32"], &all, |a, _, _| {
        let value = f64::from_bits(a);
        if value.is_nan() { 0x7FFF_FFFF } else { u64::from((value as f32).to_bits()) }
    });
}

#[test]
fn eight_bit_floats() {
    let bytes: Vec<[u64; 3]> = (0..256).map(|byte| [byte | (255 - byte) << 8, 0, 0]).collect();
    let e4m3 = |bits: u64| {
        let (exponent, mantissa) = (bits >> 3 & 15, bits & 7);
        let value = match (exponent, mantissa) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa as f64 * 2.0_f64.powi(-9),
            _ => (8 + mantissa) as f64 * 2.0_f64.powi(exponent as i32 - 10),
        };
        if bits & 0x80 == 0 { value } else { -value }
    };
    let kinds = ["b16", "b16", "b16", "b32"];
    check("cvt.rn.f16x2.e4m3x2 %d, %a;", kinds, &bytes, |a, _, _| {
        nearest_half(e4m3(a >> 8)) << 16 | nearest_half(e4m3(a & 255))
    });
    // E5M2 is the upper half of a half.
    check("cvt.rn.f16x2.e5m2x2 %d, %a;", kinds, &bytes, |a, _, _| {
        let widen = |byte: u64| {
            let bits = byte << 8;
            if half(bits).is_nan() { 0x7FFF } else { bits }
        };
        widen(a >> 8) << 16 | widen(a & 255)
    });
    // There and back gives the same bytes, but for what is no number.
    let text = "{ .reg .b32 %t; cvt.rn.f16x2.e4m3x2 %t, %a;
        cvt.rn.satfinite.e4m3x2.f16x2 %d, %t; }";
    check(text, B16, &bytes, |a, _, _| {
        let same = |byte: u64| if byte & 0x7F == 0x7F { 0x7F } else { byte };
        same(a >> 8) << 8 | same(a & 255)
    });
    let floats = float_inputs(24);
    let kinds = ["f32", "f32", "f32", "b16"];
    check("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", kinds, &floats, |a, b, _| {
        let nearest = |bits: u64| {
            let value = f64::from(f32::from_bits(bits as u32));
            let best = (0..0x7F_u64).min_by(|x, y| {
                let [x, y] = [x, y].map(|bits| ((e4m3(*bits) - value.abs()).abs(), bits & 1));
                x.partial_cmp(&y).unwrap()
            });
            best.unwrap() | if value.is_sign_negative() { 0x80 } else { 0 }
        };
        nearest(a) << 8 | nearest(b)
    });
}

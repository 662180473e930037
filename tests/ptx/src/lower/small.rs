//! f16 and bf16, alone and in pairs. Sums and products are exact enough in f64 that rounding once
//! is rounding right; `fma` rounds an odd value (see [`crate::numeric::rounding`]).
#![allow(clippy::cast_possible_truncation, reason = "halves are cut out of pairs")]

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::rows::{ternary, unary};
use crate::numeric::formats::{Brain, Half, Small};
use crate::numeric::lane::Lane;
use crate::numeric::rounding::fused_to_odd;
use crate::program::TernaryRow;
use crate::text::syntax::Instruction;
use crate::types::Type;

const ADD: u32 = 0;
const SUBTRACT: u32 = 1;
const MULTIPLY: u32 = 2;
const FUSED: u32 = 3;
const MINIMUM: u32 = 4;
const MAXIMUM: u32 = 5;
const NEGATE: u32 = 6;
const MAGNITUDE: u32 = 7;
const EX2: u32 = 8;
const TANH: u32 = 9;
const KIND: u32 = 15;
const FTZ: u32 = 16;
const SAT: u32 = 32;
const RELU: u32 = 64;
const NAN: u32 = 128;

fn flush<T: Small>(value: T, mode: u32) -> T {
    let magnitude = value.bits() & 0x7FFF;
    let subnormal = T::FORMAT.decode(u32::from(magnitude)) < f32::MIN_POSITIVE
        || T::FORMAT == Half::FORMAT && magnitude < 0x400;
    if mode & FTZ != 0 && subnormal { T::from_bits(value.bits() & 0x8000) } else { value }
}

fn calculate<T: Small>(a: T, b: T, c: T, mode: u32) -> T {
    let (a, b, c) = (flush(a, mode), flush(b, mode), flush(c, mode));
    let (x, y) = (a.value(), b.value());
    let result = match mode & KIND {
        NEGATE => T::from_bits(a.bits() ^ 0x8000),
        MAGNITUDE => T::from_bits(a.bits() & 0x7FFF),
        MINIMUM | MAXIMUM => extreme(a, b, mode),
        ADD => T::round(f64::from(x) + f64::from(y)),
        SUBTRACT => T::round(f64::from(x) - f64::from(y)),
        MULTIPLY => T::round(f64::from(x) * f64::from(y)),
        EX2 => T::round(f64::from(x).exp2()),
        TANH => T::round(f64::from(x).tanh()),
        _ => T::round(fused_to_odd(x, y, c.value())),
    };
    let result = flush(result, mode);
    let value = result.value();
    if mode & SAT != 0 && !(0.0..=1.0).contains(&value) {
        return T::round(if value > 1.0 { 1.0 } else { 0.0 });
    }
    if mode & RELU != 0 && value < 0.0 { T::from_bits(0) } else { result }
}

fn extreme<T: Small>(a: T, b: T, mode: u32) -> T {
    let (x, y) = (a.value(), b.value());
    if x.is_nan() || y.is_nan() {
        let number = if x.is_nan() { b } else { a };
        let keeps_number = mode & NAN == 0 && !(x.is_nan() && y.is_nan());
        return if keeps_number { number } else { T::round(f64::NAN) };
    }
    // -0 is less than +0, which the comparison of values does not see.
    let a_less = if x == y { x.is_sign_negative() } else { x < y };
    if a_less == (mode & KIND == MINIMUM) { a } else { b }
}

fn pair<T: Small>(a: u32, b: u32, c: u32, mode: u32) -> u32 {
    let part = |shift: u32| {
        let [a, b, c] = [a, b, c].map(|bits| T::from_bits((bits >> shift) as u16));
        u32::from(calculate(a, b, c, mode).bits()) << shift
    };
    part(0) | part(16)
}

impl Lowering<'_> {
    pub(super) fn small_arithmetic(
        &mut self,
        i: &Instruction,
        mut m: Modifiers<'_>,
        kind: Type,
    ) -> Lowered<()> {
        let operation = match i.name.as_str() {
            "add" => ADD,
            "sub" => SUBTRACT,
            "mul" => MULTIPLY,
            "fma" => FUSED,
            "min" => MINIMUM,
            "max" => MAXIMUM,
            "neg" => NEGATE,
            "abs" => MAGNITUDE,
            "ex2" => EX2,
            "tanh" => TANH,
            _ => return m.unsupported("of this type"),
        };
        m.ignore(&["rn", "approx"]);
        let flag = |present: bool, bit: u32| if present { bit } else { 0 };
        let mode = operation
            | flag(m.take("ftz"), FTZ)
            | flag(m.take("sat"), SAT)
            | flag(m.take("relu"), RELU)
            | flag(m.take("NaN"), NAN);
        m.end()?;
        let function: TernaryRow = match kind {
            Type::F16 if mode == MULTIPLY => {
                ternary!(Half, |a, b, _c, _m| Half::round(f64::from(a.value() * b.value())))
            }
            Type::F16 if mode == ADD => {
                ternary!(Half, |a, b, _c, _m| Half::round(f64::from(a.value() + b.value())))
            }
            Type::F16 => ternary!(Half, |a, b, c, mode| calculate(a, b, c, mode)),
            Type::Bf16 => ternary!(Brain, |a, b, c, mode| calculate(a, b, c, mode)),
            Type::F16x2 => ternary!(u32, |a, b, c, mode| pair::<Half>(a, b, c, mode)),
            Type::Bf16x2 => ternary!(u32, |a, b, c, mode| pair::<Brain>(a, b, c, mode)),
            // `neg.b32` and the like do not exist, `add.f8` neither.
            _ => return m.unsupported("of this type"),
        };
        if matches!(mode & KIND, NEGATE | MAGNITUDE) && mode & !KIND == 0 {
            return self.small_sign(i, kind, mode & KIND == NEGATE);
        }
        self.ternary(i, function, kind, mode)
    }

    fn small_sign(&mut self, i: &Instruction, kind: Type, negates: bool) -> Lowered<()> {
        let function = match (kind.bytes(), negates) {
            (2, true) => unary!(u16, |a| a ^ 0x8000),
            (2, false) => unary!(u16, |a| a & 0x7FFF),
            (_, true) => unary!(u32, |a| a ^ 0x8000_8000),
            (_, false) => unary!(u32, |a| a & 0x7FFF_7FFF),
        };
        self.unary(i, function, kind)
    }
}

/// The value of a small float in the low bits of a lane.
pub(super) fn value_of<T: Small>(bits: u64) -> f32 {
    <T as Lane>::get(bits).value()
}

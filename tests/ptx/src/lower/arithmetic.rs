//! Integers and floats of 32 and 64 bits: one function over rows for each type and mode.
#![allow(clippy::cast_possible_truncation, reason = "results are cut to their type's width")]

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::rows::{binary, by_integer, ternary, unary};
use crate::numeric::integer;
use crate::numeric::rounding;
use crate::program::{BinaryRow, Operation, TernaryRow, UnaryRow};
use crate::text::syntax::Instruction;
use crate::types::{Rounding, Type};

/// `.ftz`: a subnormal becomes a zero of its sign.
fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// `.sat`: into 0..=1, NaN to 0.
fn saturate(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

/// The modes of an f32 instruction, in the `extra` of its row function.
fn mode(rounding: Rounding, ftz: bool, sat: bool) -> u32 {
    rounding as u32 | u32::from(ftz) << 3 | u32::from(sat) << 4
}

fn rounding_of(mode: u32) -> Rounding {
    match mode & 7 {
        1 => Rounding::Zero,
        2 => Rounding::Down,
        3 => Rounding::Up,
        4 => Rounding::Away,
        _ => Rounding::Nearest,
    }
}

fn before(value: f32, mode: u32) -> f32 {
    if mode & 8 != 0 { flush(value) } else { value }
}

fn after(value: f32, mode: u32) -> f32 {
    let value = before(value, mode);
    if mode & 16 != 0 { saturate(value) } else { value }
}

/// Any f32 calculation with modes that are not the plain ones.
macro_rules! moded {
    (|$a:ident, $b:ident, $c:ident, $rounding:ident| $value:expr) => {
        ternary!(f32, |a, b, c, mode| {
            let ($a, $b, $c) = (before(a, mode), before(b, mode), before(c, mode));
            let $rounding = rounding_of(mode);
            let _ = ($a, $b, $c, $rounding);
            after($value, mode)
        })
    };
}

fn minimum(a: f32, b: f32) -> f32 {
    // IEEE 754-2008: a NaN loses, and -0 is less than +0.
    if a == 0.0 && b == 0.0 { if a.is_sign_negative() { a } else { b } } else { a.min(b) }
}

fn maximum(a: f32, b: f32) -> f32 {
    if a == 0.0 && b == 0.0 { if a.is_sign_negative() { b } else { a } } else { a.max(b) }
}

pub(super) fn with_nan(a: f32, b: f32, otherwise: fn(f32, f32) -> f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { otherwise(a, b) }
}

impl Lowering<'_> {
    pub(super) fn unary(&mut self, i: &Instruction, function: UnaryRow, kind: Type) -> Lowered<()> {
        let [d, a] = self.operands(i)?;
        let (d, a) = (self.destination(d)?, self.source(a, kind)?);
        self.emit(Operation::Unary { function, d, a })
    }

    pub(super) fn binary(&mut self, i: &Instruction, f: BinaryRow, kind: Type) -> Lowered<()> {
        let [d, a, b] = self.operands(i)?;
        let (d, a, b) = (self.destination(d)?, self.source(a, kind)?, self.source(b, kind)?);
        self.emit(Operation::Binary { function: f, d, a, b })
    }

    /// An instruction of up to three sources; the last is repeated where there are fewer.
    pub(super) fn ternary(
        &mut self,
        i: &Instruction,
        function: TernaryRow,
        kind: Type,
        extra: u32,
    ) -> Lowered<()> {
        let (Some(d), sources) = (i.operands.first(), i.operands.get(1..).unwrap_or(&[])) else {
            return self.error(format!("{} without operands", i.name));
        };
        let [Some(a), b, c, None] = [0, 1, 2, 3].map(|index| sources.get(index)) else {
            return self.error(format!("{} with {} operands", i.name, i.operands.len()));
        };
        if sources.len() != arity(&i.name) {
            return self.error(format!("{} takes {} operands", i.name, arity(&i.name) + 1));
        }
        let b = b.unwrap_or(a);
        let c = c.unwrap_or(b);
        let d = self.destination(d)?;
        let (a, b, c) = (self.source(a, kind)?, self.source(b, kind)?, self.source(c, kind)?);
        self.emit(Operation::Ternary { function, d, a, b, c, extra })
    }

    pub(super) fn add_subtract(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        if kind.is_integer() && m.take("cc") {
            return self.carry(i, m, kind, true);
        }
        if kind == Type::S32 && m.take("sat") {
            m.end()?;
            let function = if i.name == "add" {
                binary!(i32, |a, b| a.saturating_add(b))
            } else {
                binary!(i32, |a, b| a.saturating_sub(b))
            };
            return self.binary(i, function, kind);
        }
        let function = if i.name == "add" {
            by_integer!(kind, binary, |a, b| a.wrapping_add(b))
        } else {
            by_integer!(kind, binary, |a, b| a.wrapping_sub(b))
        };
        if let Some(function) = function {
            m.end()?;
            return self.binary(i, function, kind);
        }
        let adds = i.name == "add";
        match kind {
            Type::F32 if adds => self.single(i, m, Some(binary!(f32, |a, b| a + b)), {
                moded!(|a, b, _c, rounding| rounding::add(a, b, rounding))
            }),
            Type::F32 => self.single(i, m, Some(binary!(f32, |a, b| a - b)), {
                moded!(|a, b, _c, rounding| rounding::add(a, -b, rounding))
            }),
            Type::F64 if adds => self.double(i, m, binary!(f64, |a, b| a + b)),
            Type::F64 => self.double(i, m, binary!(f64, |a, b| a - b)),
            _ => self.small_arithmetic(i, m, kind),
        }
    }

    /// An f32 instruction: `plain` where no mode asks for more.
    fn single(
        &mut self,
        i: &Instruction,
        mut m: Modifiers<'_>,
        plain: Option<BinaryRow>,
        moded: TernaryRow,
    ) -> Lowered<()> {
        m.ignore(&["approx", "full"]);
        let rounding = m.rounding().unwrap_or(Rounding::Nearest);
        let mode = mode(rounding, m.take("ftz"), m.take("sat"));
        m.end()?;
        match plain {
            Some(plain) if mode == 0 => self.binary(i, plain, Type::F32),
            _ => self.ternary(i, moded, Type::F32, mode),
        }
    }

    fn double(&mut self, i: &Instruction, mut m: Modifiers<'_>, f: BinaryRow) -> Lowered<()> {
        m.ignore(&["rn"]);
        m.end()?;
        self.binary(i, f, Type::F64)
    }

    pub(super) fn multiply(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let function = match kind {
            Type::F32 => {
                let moded = moded!(|a, b, _c, rounding| rounding::multiply(a, b, rounding));
                return self.single(i, m, Some(binary!(f32, |a, b| a * b)), moded);
            }
            Type::F64 => return self.double(i, m, binary!(f64, |a, b| a * b)),
            _ if !kind.is_integer() => return self.small_arithmetic(i, m, kind),
            _ if m.take("lo") => by_integer!(kind, binary, |a, b| a.wrapping_mul(b)),
            _ if m.take("hi") => match kind {
                Type::U16 => Some(binary!(u16, |a, b| (u32::from(a) * u32::from(b)) >> 16)),
                Type::S16 => Some(binary!(i16, |a, b| (i32::from(a) * i32::from(b)) >> 16)),
                Type::U32 => Some(binary!(u32, |a, b| (u64::from(a) * u64::from(b)) >> 32)),
                Type::S32 => Some(binary!(i32, |a, b| (i64::from(a) * i64::from(b)) >> 32)),
                Type::U64 => Some(binary!(u64, |a, b| integer::high_unsigned(a, b))),
                _ => Some(binary!(i64, |a, b| integer::high_signed(a, b))),
            },
            _ if m.take("wide") => wide(kind),
            _ => None,
        };
        m.end()?;
        match function {
            Some(function) => self.binary(i, function, kind),
            None => m.unsupported("of this type"),
        }
    }

    /// `mul24`, `mad24` are left out: NVRTC makes ordinary products of them.
    pub(super) fn multiply_add(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        match kind {
            Type::F32 => {
                let moded = moded!(|a, b, c, rounding| rounding::fused(a, b, c, rounding));
                let rounding = m.rounding().unwrap_or(Rounding::Nearest);
                let mode = mode(rounding, m.take("ftz"), m.take("sat"));
                m.end()?;
                let plain = ternary!(f32, |a, b, c, _mode| a.mul_add(b, c));
                return self.ternary(i, if mode == 0 { plain } else { moded }, kind, mode);
            }
            Type::F64 => {
                m.ignore(&["rn"]);
                m.end()?;
                return self.ternary(i, ternary!(f64, |a, b, c, _m| a.mul_add(b, c)), kind, 0);
            }
            _ if !kind.is_integer() => return self.small_arithmetic(i, m, kind),
            _ => {}
        }
        if m.take("cc") {
            return self.carry(i, m, kind, true);
        }
        let function = if m.take("lo") {
            by_integer!(kind, ternary, |a, b, c, _m| a.wrapping_mul(b).wrapping_add(c))
        } else if m.take("hi") {
            match kind {
                Type::U32 => Some(ternary!(u32, |a, b, c, _m| {
                    ((u64::from(a) * u64::from(b)) >> 32).wrapping_add(u64::from(c))
                })),
                Type::S32 => Some(ternary!(i32, |a, b, c, _m| {
                    ((i64::from(a) * i64::from(b)) >> 32).wrapping_add(i64::from(c))
                })),
                Type::U64 => Some(ternary!(u64, |a, b, c, _m| {
                    integer::high_unsigned(a, b).wrapping_add(c)
                })),
                Type::S64 => Some(ternary!(i64, |a, b, c, _m| {
                    integer::high_signed(a, b).wrapping_add(c)
                })),
                _ => None,
            }
        } else if m.take("wide") {
            match kind {
                Type::U16 => Some(ternary!(u16, u16, u32, |a, b, c, _m| {
                    (u32::from(a) * u32::from(b)).wrapping_add(c)
                })),
                Type::S16 => Some(ternary!(i16, i16, i32, |a, b, c, _m| {
                    (i32::from(a) * i32::from(b)).wrapping_add(c)
                })),
                Type::U32 => Some(ternary!(u32, u32, u64, |a, b, c, _m| {
                    (u64::from(a) * u64::from(b)).wrapping_add(c)
                })),
                Type::S32 => Some(ternary!(i32, i32, i64, |a, b, c, _m| {
                    (i64::from(a) * i64::from(b)).wrapping_add(c)
                })),
                _ => None,
            }
        } else {
            None
        };
        m.end()?;
        match function {
            Some(function) => self.ternary(i, function, kind, 0),
            None => m.unsupported("of this type"),
        }
    }

    pub(super) fn divide(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        if kind == Type::F32 {
            let moded = moded!(|a, b, _c, rounding| rounding::divide(a, b, rounding));
            return self.single(i, m, Some(binary!(f32, |a, b| a / b)), moded);
        }
        if kind == Type::F64 {
            return self.double(i, m, binary!(f64, |a, b| a / b));
        }
        m.end()?;
        // Lanes that do nothing may hold a zero too.
        let function = if i.name == "div" {
            by_integer!(kind, binary, |a, b| a.checked_div(b).unwrap_or(a.wrapping_neg()))
        } else {
            by_integer!(kind, binary, |a, b| a.checked_rem(b).unwrap_or(0))
        };
        let Some(function) = function else { return m.unsupported("of this type") };
        let [d, a, b] = self.operands(i)?;
        let (d, a, b) = (self.destination(d)?, self.source(a, kind)?, self.source(b, kind)?);
        self.emit(Operation::Divide { function, width: kind.bytes() * 8, d, a, b })
    }

    pub(super) fn extreme(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let is_minimum = i.name == "min";
        let function = match (kind, is_minimum) {
            (Type::F32, _) => {
                let nan = m.take("NaN");
                let function = match (is_minimum, nan) {
                    (true, false) => moded!(|a, b, _c, _r| minimum(a, b)),
                    (false, false) => moded!(|a, b, _c, _r| maximum(a, b)),
                    (true, true) => moded!(|a, b, _c, _r| with_nan(a, b, minimum)),
                    (false, true) => moded!(|a, b, _c, _r| with_nan(a, b, maximum)),
                };
                return self.single(i, m, None, function);
            }
            (Type::F64, true) => Some(binary!(f64, |a, b| a.min(b))),
            (Type::F64, false) => Some(binary!(f64, |a, b| a.max(b))),
            _ if !kind.is_integer() => return self.small_arithmetic(i, m, kind),
            (_, true) => by_integer!(kind, binary, |a, b| a.min(b)),
            (_, false) => by_integer!(kind, binary, |a, b| a.max(b)),
        };
        m.end()?;
        match function {
            Some(function) => self.binary(i, function, kind),
            None => m.unsupported("of this type"),
        }
    }

    pub(super) fn sign(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let negates = i.name == "neg";
        let function = match (kind, negates) {
            (Type::F32, true) => return self.single(i, m, None, moded!(|a, _b, _c, _r| -a)),
            (Type::F32, false) => return self.single(i, m, None, moded!(|a, _b, _c, _r| a.abs())),
            (Type::F64, true) => Some(unary!(f64, |a| -a)),
            (Type::F64, false) => Some(unary!(f64, |a| a.abs())),
            _ if !kind.is_integer() => return self.small_arithmetic(i, m, kind),
            (_, true) => by_integer!(kind, unary, |a| a.wrapping_neg()),
            (Type::S16, false) => Some(unary!(i16, |a| a.wrapping_abs())),
            (Type::S32, false) => Some(unary!(i32, |a| a.wrapping_abs())),
            (Type::S64, false) => Some(unary!(i64, |a| a.wrapping_abs())),
            _ => None,
        };
        m.end()?;
        match function {
            Some(function) => self.unary(i, function, kind),
            None => m.unsupported("of this type"),
        }
    }

    /// Functions of one float: `rcp`, `sqrt`, `rsqrt`, `ex2`, `lg2`, `sin`, `cos`, `tanh`.
    pub(super) fn transcendental(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        if kind == Type::F64 {
            m.ignore(&["rn", "approx", "ftz"]);
            m.end()?;
            let function = match i.name.as_str() {
                "rcp" => unary!(f64, |a| 1.0 / a),
                "sqrt" => unary!(f64, |a| a.sqrt()),
                "rsqrt" => unary!(f64, |a| 1.0 / a.sqrt()),
                _ => return m.unsupported("of f64"),
            };
            return self.unary(i, function, kind);
        }
        if kind != Type::F32 {
            return self.small_arithmetic(i, m, kind);
        }
        let function = match i.name.as_str() {
            "rcp" => moded!(|a, _b, _c, rounding| rounding::divide(1.0, a, rounding)),
            "sqrt" => moded!(|a, _b, _c, rounding| rounding::square_root(a, rounding)),
            "rsqrt" => moded!(|a, _b, _c, _r| f64::from(a).sqrt().recip() as f32),
            "ex2" => moded!(|a, _b, _c, _r| f64::from(a).exp2() as f32),
            "lg2" => moded!(|a, _b, _c, _r| f64::from(a).log2() as f32),
            "sin" => moded!(|a, _b, _c, _r| f64::from(a).sin() as f32),
            "cos" => moded!(|a, _b, _c, _r| f64::from(a).cos() as f32),
            _ => moded!(|a, _b, _c, _r| f64::from(a).tanh() as f32),
        };
        self.single(i, m, None, function)
    }

    pub(super) fn copy_sign(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        m.end()?;
        match kind {
            Type::F32 => self.binary(i, binary!(f32, |a, b| b.copysign(a)), kind),
            Type::F64 => self.binary(i, binary!(f64, |a, b| b.copysign(a)), kind),
            _ => m.unsupported("of this type"),
        }
    }
}

/// How many operands an instruction reads.
fn arity(name: &str) -> usize {
    match name {
        "add" | "sub" | "mul" | "div" | "min" | "max" => 2,
        "neg" | "abs" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh"
        | "cvt" => 1,
        _ => 3,
    }
}

fn wide(kind: Type) -> Option<BinaryRow> {
    Some(match kind {
        Type::U16 => binary!(u16, |a, b| u32::from(a) * u32::from(b)),
        Type::S16 => binary!(i16, |a, b| i32::from(a) * i32::from(b)),
        Type::U32 => binary!(u32, |a, b| u64::from(a) * u64::from(b)),
        Type::S32 => binary!(i32, |a, b| i64::from(a) * i64::from(b)),
        _ => return None,
    })
}

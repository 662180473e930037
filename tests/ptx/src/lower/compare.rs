//! `setp`, `set`, `testp`, and logic on predicates.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::small::value_of;
use crate::numeric::formats::{Brain, Half};
use crate::numeric::lane::{Lane, Row};
use crate::program::{Combine, CompareRow, Operation, Truth};
use crate::text::syntax::{Instruction, Operand};
use crate::types::Type;
use std::cmp::Ordering;

/// The lanes for which `holds`, and those for which it does not.
fn lanes(a: &Row, b: &Row, holds: impl Fn(u64, u64) -> bool) -> [u32; 2] {
    let mut mask = 0;
    for (lane, (a, b)) in a.iter().zip(b).enumerate() {
        mask |= u32::from(holds(*a, *b)) << lane;
    }
    [mask, !mask]
}

fn pair(a: &Row, b: &Row, holds: impl Fn(u64, u64) -> bool) -> [u32; 2] {
    let [low, _] = lanes(a, b, &holds);
    let [high, _] = lanes(a, b, |a, b| holds(a >> 16, b >> 16));
    [low, high]
}

fn flushed(bits: u64) -> f32 {
    let value = f32::get(bits);
    if value.is_subnormal() { 0.0 } else { value }
}

/// A row function: how lanes are read, and what must hold of them.
macro_rules! compare {
    ($form:ident, $get:expr, |$a:ident, $b:ident| $value:expr) => {{
        fn row(a: &Row, b: &Row) -> [u32; 2] {
            $form(a, b, |a, b| {
                let ($a, $b) = ($get(a), $get(b));
                $value
            })
        }
        Some(row as CompareRow)
    }};
}

/// Row functions for all integer types of one comparison.
macro_rules! of_integers {
    ($kind:expr, $($closure:tt)*) => {
        match $kind {
            Type::U16 => compare!(lanes, u16::get, $($closure)*),
            Type::S16 => compare!(lanes, i16::get, $($closure)*),
            Type::U32 => compare!(lanes, u32::get, $($closure)*),
            Type::S32 => compare!(lanes, i32::get, $($closure)*),
            Type::U64 => compare!(lanes, u64::get, $($closure)*),
            Type::S64 => compare!(lanes, i64::get, $($closure)*),
            _ => None,
        }
    };
}

/// Row functions for all float types of one comparison.
macro_rules! of_floats {
    ($kind:expr, $ftz:expr, $($closure:tt)*) => {
        match $kind {
            Type::F32 if $ftz => compare!(lanes, flushed, $($closure)*),
            Type::F32 => compare!(lanes, f32::get, $($closure)*),
            Type::F64 => compare!(lanes, f64::get, $($closure)*),
            Type::F16 => compare!(lanes, value_of::<Half>, $($closure)*),
            Type::Bf16 => compare!(lanes, value_of::<Brain>, $($closure)*),
            Type::F16x2 => compare!(pair, value_of::<Half>, $($closure)*),
            Type::Bf16x2 => compare!(pair, value_of::<Brain>, $($closure)*),
            _ => None,
        }
    };
}

/// Row functions for all types of one comparison.
macro_rules! of_all {
    ($kind:expr, $ftz:expr, $($closure:tt)*) => {
        of_integers!($kind, $($closure)*).or(of_floats!($kind, $ftz, $($closure)*))
    };
}

fn function(name: &str, kind: Type, ftz: bool) -> Option<CompareRow> {
    match name {
        "eq" => of_all!(kind, ftz, |a, b| a == b),
        // Unlike Rust's, PTX's `ne` does not hold for NaN.
        "ne" if kind.is_integer() => of_integers!(kind, |a, b| a != b),
        "ne" => of_floats!(kind, ftz, |a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
        "lt" | "lo" => of_all!(kind, ftz, |a, b| a < b),
        "le" | "ls" => of_all!(kind, ftz, |a, b| a <= b),
        "gt" | "hi" => of_all!(kind, ftz, |a, b| a > b),
        "ge" | "hs" => of_all!(kind, ftz, |a, b| a >= b),
        "equ" => of_floats!(kind, ftz, |a, b| a == b || a.is_nan() || b.is_nan()),
        "neu" => of_floats!(kind, ftz, |a, b| a != b),
        "ltu" => of_floats!(kind, ftz, |a, b| a < b || a.is_nan() || b.is_nan()),
        "leu" => of_floats!(kind, ftz, |a, b| a <= b || a.is_nan() || b.is_nan()),
        "gtu" => of_floats!(kind, ftz, |a, b| a > b || a.is_nan() || b.is_nan()),
        "geu" => of_floats!(kind, ftz, |a, b| a >= b || a.is_nan() || b.is_nan()),
        "num" => of_floats!(kind, ftz, |a, b| !a.is_nan() && !b.is_nan()),
        "nan" => of_floats!(kind, ftz, |a, b| a.is_nan() || b.is_nan()),
        _ => None,
    }
}

const COMBINE: [(&str, Combine); 3] =
    [("and", Combine::And), ("or", Combine::Or), ("xor", Combine::Xor)];

impl Lowering<'_> {
    /// Comparison, how its result is combined, and with which predicate.
    fn comparison(
        &mut self,
        i: &Instruction,
        mut m: Modifiers<'_>,
        kind: Type,
    ) -> Lowered<(CompareRow, (Combine, Truth))> {
        let ftz = m.take("ftz");
        let compares = m.first().unwrap_or("");
        let Some(function) = function(compares, kind, ftz) else {
            return self.error(format!("{}.{compares} of this type", i.name));
        };
        let combine = m.one_of(&COMBINE);
        m.end()?;
        let with = match (combine, i.operands.get(3)) {
            (Some(combine), Some(operand)) => (combine, self.truth(operand)?),
            (None, None) => (Combine::Or, Self::no_condition()),
            _ => return self.error(format!("{} with a wrong number of operands", i.name)),
        };
        if i.operands.len() < 3 {
            return self.error(format!("{} takes at least 3 operands", i.name));
        }
        Ok((function, with))
    }

    pub(super) fn set_predicate(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let (function, with) = self.comparison(i, m, kind)?;
        let d = match &i.operands[0] {
            Operand::Pair(p, q) => [self.predicate_destination(p)?, self.predicate_destination(q)?],
            p => [self.predicate_destination(p)?, self.predicate_destination(&sink())?],
        };
        let (a, b) = (self.source(&i.operands[1], kind)?, self.source(&i.operands[2], kind)?);
        self.emit(Operation::Compare { function, d, a, b, with })
    }

    pub(super) fn set(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let to = m.kind()?;
        let is_pair = matches!(kind, Type::F16x2 | Type::Bf16x2);
        let bits = match to {
            Type::F32 => [0x3F80_0000, 0],
            Type::F16 => [0x3C00, 0],
            Type::Bf16 => [0x3F80, 0],
            Type::F16x2 => [0x3C00, 0x3C00_0000],
            Type::Bf16x2 => [0x3F80, 0x3F80_0000],
            _ if is_pair => [0xFFFF, 0xFFFF_0000],
            _ => [0xFFFF_FFFF, 0],
        };
        let (function, with) = self.comparison(i, m, kind)?;
        let d = self.destination(&i.operands[0])?;
        let (a, b) = (self.source(&i.operands[1], kind)?, self.source(&i.operands[2], kind)?);
        self.emit(Operation::Set { function, d, a, b, with, bits })
    }

    pub(super) fn test(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let word = m.first().unwrap_or("");
        macro_rules! tests {
            ($kind:ty) => {
                match word {
                    "finite" => compare!(lanes, <$kind>::get, |a, _b| a.is_finite()),
                    "infinite" => compare!(lanes, <$kind>::get, |a, _b| a.is_infinite()),
                    "number" => compare!(lanes, <$kind>::get, |a, _b| !a.is_nan()),
                    "notanumber" => compare!(lanes, <$kind>::get, |a, _b| a.is_nan()),
                    "normal" => compare!(lanes, <$kind>::get, |a, _b| a.is_normal()),
                    "subnormal" => compare!(lanes, <$kind>::get, |a, _b| a.is_subnormal()),
                    _ => None,
                }
            };
        }
        let function = if kind == Type::F32 { tests!(f32) } else { tests!(f64) };
        m.end()?;
        let Some(function) = function else { return m.unsupported("of this form") };
        let [d, a] = self.operands(i)?;
        let d = [self.predicate_destination(d)?, self.predicate_destination(&sink())?];
        let a = self.source(a, kind)?;
        let with = (Combine::Or, Self::no_condition());
        self.emit(Operation::Compare { function, d, a, b: a, with })
    }

    /// `and.pred`, `or.pred`, `xor.pred`, `not.pred`, `mov.pred`.
    pub(super) fn predicate_logic(&mut self, i: &Instruction) -> Lowered<()> {
        let combine = match i.name.as_str() {
            "and" => Combine::And,
            "xor" => Combine::Xor,
            _ => Combine::Or,
        };
        let (d, mut a, b) = match i.operands.as_slice() {
            [d, a] => (d, self.truth(a)?, Self::no_condition()),
            [d, a, b] => (d, self.truth(a)?, self.truth(b)?),
            _ => return self.error(format!("{} takes 2 or 3 operands", i.name)),
        };
        if i.name == "not" {
            a.negated = !a.negated;
        }
        let d = self.predicate_destination(d)?;
        self.emit(Operation::Logic { combine, d, a, b })
    }
}

fn sink() -> Operand {
    Operand::Name("_".to_owned())
}

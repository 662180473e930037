//! `cvt`: between all types that have values, in all roundings.
#![allow(clippy::cast_possible_truncation, reason = "that is what a conversion may ask for")]

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::rows::{binary, ternary, unary};
use super::small::value_of;
use crate::numeric::formats::{BF16, Brain, E4M3, E5M2, F16, F32, Format, Half, Small, TF32};
use crate::numeric::lane::Lane;
use crate::numeric::rounding::{integer_to_odd, to_whole};
use crate::program::{Operation, UnaryRow};
use crate::text::syntax::Instruction;
use crate::types::{Rounding, Type};

/// A conversion, packed into the `extra` of its row function.
#[derive(Clone, Copy)]
struct Conversion {
    to: Type,
    from: Type,
    rounding: Rounding,
    /// To a whole number, though the result is a float.
    whole: bool,
    sat: bool,
    /// Flushes subnormals, of f32.
    ftz: bool,
    relu: bool,
}

const TYPES: [Type; 15] = [
    Type::U8,
    Type::S8,
    Type::U16,
    Type::S16,
    Type::U32,
    Type::S32,
    Type::U64,
    Type::S64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
    Type::Tf32,
    Type::E4m3,
    Type::E5m2,
];

const ROUNDINGS: [Rounding; 5] =
    [Rounding::Nearest, Rounding::Zero, Rounding::Down, Rounding::Up, Rounding::Away];

impl Conversion {
    fn pack(self) -> u32 {
        let index = |kind| TYPES.iter().position(|one| *one == kind).unwrap_or(0) as u32;
        let rounding = ROUNDINGS.iter().position(|one| *one == self.rounding).unwrap_or(0) as u32;
        let flags = [self.whole, self.sat, self.ftz, self.relu];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u32::from(*flag));
        index(self.to) | index(self.from) << 4 | rounding << 8 | flags << 12
    }

    fn unpack(extra: u32) -> Self {
        let flag = |bit: u32| extra >> bit & 1 == 1;
        Self {
            to: TYPES[(extra & 15) as usize % TYPES.len()],
            from: TYPES[(extra >> 4 & 15) as usize % TYPES.len()],
            rounding: ROUNDINGS[(extra >> 8 & 7) as usize % ROUNDINGS.len()],
            whole: flag(12),
            sat: flag(13),
            ftz: flag(14),
            relu: flag(15),
        }
    }

    fn lane(self, bits: u64) -> u64 {
        let value = match self.from {
            Type::F16 => f64::from(value_of::<Half>(bits)),
            Type::Bf16 => f64::from(value_of::<Brain>(bits)),
            Type::F64 => f64::get(bits),
            Type::F32 | Type::Tf32 => {
                let value = f32::get(bits);
                let flushes = self.ftz && value.is_subnormal();
                f64::from(if flushes { 0.0_f32.copysign(value) } else { value })
            }
            _ => return self.integer(integer(self.from, bits)),
        };
        self.float(value)
    }

    fn integer(self, value: i128) -> u64 {
        match self.to {
            Type::F64 => (value as f64).to_bits(),
            to if to.is_integer() => {
                let (low, high) = limits(to);
                store(to, if self.sat { value.clamp(low, high) } else { value })
            }
            to => u64::from(format(to).encode(integer_to_odd(value), self.rounding)),
        }
    }

    fn float(self, value: f64) -> u64 {
        if self.to.is_integer() {
            let (low, high) = limits(self.to);
            // `as` is the hardware's: NaN becomes 0, what is too large the largest.
            let value = to_whole(value, self.rounding) as i128;
            return store(self.to, value.clamp(low, high));
        }
        let value = if self.whole { to_whole(value, self.rounding) } else { value };
        let value = match (self.sat, self.relu) {
            (true, _) if value.is_nan() => 0.0,
            (true, _) => value.clamp(0.0, 1.0),
            // A negative zero becomes a positive one too.
            (_, true) if value <= 0.0 => 0.0,
            _ => value,
        };
        match self.to {
            Type::F64 => value.to_bits(),
            Type::Tf32 => u64::from(TF32.encode(value, self.rounding) << 13),
            Type::F32 => {
                let result = f32::from_bits(F32.encode(value, self.rounding));
                let flushes = self.ftz && result.is_subnormal();
                (if flushes { 0.0_f32.copysign(result) } else { result }).put()
            }
            to => u64::from(format(to).encode(value, self.rounding)),
        }
    }
}

fn format(kind: Type) -> Format {
    match kind {
        Type::F16 | Type::F16x2 => F16,
        Type::Bf16 | Type::Bf16x2 => BF16,
        Type::E4m3 | Type::E4m3x2 => E4M3,
        Type::E5m2 | Type::E5m2x2 => E5M2,
        Type::Tf32 => TF32,
        _ => F32,
    }
}

fn integer(kind: Type, bits: u64) -> i128 {
    match kind {
        Type::U8 => i128::from(bits as u8),
        Type::S8 => i128::from(bits as i8),
        Type::U16 => i128::from(bits as u16),
        Type::S16 => i128::from(bits as i16),
        Type::U32 => i128::from(bits as u32),
        Type::S32 => i128::from(bits as i32),
        Type::S64 => i128::from(bits as i64),
        _ => i128::from(bits),
    }
}

fn limits(kind: Type) -> (i128, i128) {
    let bits = kind.bytes() * 8;
    if kind.is_signed() {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

/// Narrow signed values are extended, since the register may be wider than the type.
fn store(kind: Type, value: i128) -> u64 {
    match kind {
        Type::U8 => u64::from(value as u8),
        Type::S8 => i64::from(value as i8).cast_unsigned(),
        Type::U16 => u64::from(value as u16),
        Type::S16 => i64::from(value as i16).cast_unsigned(),
        Type::U32 => u64::from(value as u32),
        Type::S32 => i64::from(value as i32).cast_unsigned(),
        _ => value as u64,
    }
}

/// The pairs that kernels convert all the time.
fn quick(conversion: Conversion) -> Option<UnaryRow> {
    let Conversion { to, from, rounding, whole, sat, ftz, relu } = conversion;
    if whole || sat || ftz || relu {
        return None;
    }
    let nearest = rounding == Rounding::Nearest;
    Some(match (from, to) {
        (Type::U8, Type::U16 | Type::S16 | Type::U32 | Type::S32 | Type::U64 | Type::S64) => {
            unary!(u8, |a| a)
        }
        (Type::S8, Type::U16 | Type::S16 | Type::U32 | Type::S32 | Type::U64 | Type::S64) => {
            unary!(i8, |a| i64::from(a))
        }
        (Type::U16, Type::U32 | Type::S32 | Type::U64 | Type::S64) => unary!(u16, |a| a),
        (Type::S16, Type::U32 | Type::S32 | Type::U64 | Type::S64) => {
            unary!(i16, |a| i64::from(a))
        }
        (Type::U32, Type::U64 | Type::S64) => unary!(u32, |a| a),
        (Type::S32, Type::U64 | Type::S64) => unary!(i32, |a| i64::from(a)),
        (Type::U64 | Type::S64, Type::U32 | Type::S32) => unary!(u32, |a| a),
        (Type::U32 | Type::S32 | Type::U64 | Type::S64, Type::U16) => unary!(u16, |a| a),
        (Type::F16, Type::F32) => unary!(Half, |a| a.value()),
        (Type::Bf16, Type::F32) => unary!(Brain, |a| a.value()),
        (Type::F32, Type::F64) => unary!(f32, |a| f64::from(a)),
        (Type::F32, Type::F16) if nearest => unary!(f32, |a| Half::round(f64::from(a))),
        (Type::F32, Type::Bf16) if nearest => unary!(f32, |a| Brain::round(f64::from(a))),
        (Type::U8, Type::F32) => unary!(u8, |a| f32::from(a)),
        (Type::S8, Type::F32) => unary!(i8, |a| f32::from(a)),
        (Type::U16, Type::F32) => unary!(u16, |a| f32::from(a)),
        (Type::S16, Type::F32) => unary!(i16, |a| f32::from(a)),
        (Type::U32, Type::F32) if nearest => unary!(u32, |a| a as f32),
        (Type::S32, Type::F32) if nearest => unary!(i32, |a| a as f32),
        (Type::S32, Type::F64) => unary!(i32, |a| f64::from(a)),
        (Type::F32, Type::S32) if rounding == Rounding::Zero => unary!(f32, |a| a as i32),
        _ => return None,
    })
}

impl Lowering<'_> {
    pub(super) fn convert(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let from = m.kind()?;
        let to = m.kind()?;
        if matches!(to, Type::F16x2 | Type::Bf16x2 | Type::E4m3x2 | Type::E5m2x2) {
            return self.convert_pair(i, m, to, from);
        }
        let whole = m.one_of(&[
            ("rni", Rounding::Nearest),
            ("rzi", Rounding::Zero),
            ("rmi", Rounding::Down),
            ("rpi", Rounding::Up),
        ]);
        let rounding = whole.or_else(|| m.rounding());
        let to_integer = to.is_integer() && !from.is_integer();
        let conversion = Conversion {
            to,
            from,
            rounding: rounding.unwrap_or(if to_integer {
                Rounding::Zero
            } else {
                Rounding::Nearest
            }),
            whole: whole.is_some() && !to_integer,
            sat: m.take("sat"),
            ftz: m.take("ftz"),
            relu: m.take("relu"),
        };
        m.end()?;
        if !TYPES.contains(&to) || !TYPES.contains(&from) {
            return m.unsupported(format!("from {from:?} to {to:?}"));
        }
        if let Some(function) = quick(conversion) {
            return self.unary(i, function, from);
        }
        let function = ternary!(u64, |a, _b, _c, extra| Conversion::unpack(extra).lane(a));
        self.ternary(i, function, from, conversion.pack())
    }

    /// Two values at once: the first source is the high half.
    fn convert_pair(
        &mut self,
        i: &Instruction,
        mut m: Modifiers<'_>,
        to: Type,
        from: Type,
    ) -> Lowered<()> {
        let rounding = m.rounding().unwrap_or(Rounding::Nearest);
        let saturates = m.take("satfinite");
        let relu = m.take("relu");
        m.end()?;
        match (to, from) {
            (Type::F16x2, Type::E4m3x2 | Type::E5m2x2) => {
                let function = if from == Type::E4m3x2 {
                    unary!(u16, |a| widen(E4M3, a))
                } else {
                    unary!(u16, |a| widen(E5M2, a))
                };
                if relu {
                    return m.unsupported("with .relu from 8 bits");
                }
                self.unary(i, function, from)
            }
            (Type::E4m3x2 | Type::E5m2x2, Type::F16x2) => {
                let extra = u32::from(to == Type::E5m2x2) | u32::from(relu) << 1;
                let function = ternary!(u32, |a, _b, _c, extra| {
                    let [low, high] = [a, a >> 16].map(|bits| value_of::<Half>(u64::from(bits)));
                    narrow(high, low, extra)
                });
                self.ternary(i, function, from, extra)
            }
            (Type::E4m3x2 | Type::E5m2x2, Type::F32) => {
                let extra = u32::from(to == Type::E5m2x2) | u32::from(relu) << 1;
                let [d, a, b] = self.operands(i)?;
                let (d, a, b) =
                    (self.destination(d)?, self.source(a, from)?, self.source(b, from)?);
                let function = ternary!(f32, |a, b, _c, extra| narrow(a, b, extra));
                self.emit(Operation::Ternary { function, d, a, b, c: b, extra })
            }
            (Type::F16x2 | Type::Bf16x2, Type::F32) if !saturates => {
                let half = if to == Type::F16x2 { Type::F16 } else { Type::Bf16 };
                let single = Conversion {
                    to: half,
                    from,
                    rounding,
                    whole: false,
                    sat: false,
                    ftz: false,
                    relu,
                };
                let [d, a, b] = self.operands(i)?;
                let (a, b) = (self.source(a, from)?, self.source(b, from)?);
                let d = self.destination(d)?;
                if rounding == Rounding::Nearest && !relu {
                    let function = if half == Type::F16 {
                        binary!(f32, |a, b| join::<Half>(a, b))
                    } else {
                        binary!(f32, |a, b| join::<Brain>(a, b))
                    };
                    return self.emit(Operation::Binary { function, d, a, b });
                }
                let extra = single.pack();
                let function = ternary!(u64, |a, b, _c, extra| {
                    let conversion = Conversion::unpack(extra);
                    conversion.lane(a) << 16 | conversion.lane(b)
                });
                self.emit(Operation::Ternary { function, d, a, b, c: b, extra })
            }
            _ => m.unsupported(format!("from {from:?} to {to:?}")),
        }
    }
}

fn join<T: Small>(high: f32, low: f32) -> u32 {
    let [high, low] = [high, low].map(|value| u32::from(T::round(f64::from(value)).bits()));
    high << 16 | low
}

fn widen(format: Format, pair: u16) -> u32 {
    let [low, high] = pair.to_le_bytes().map(|bits| {
        let value = format.decode(u32::from(bits));
        F16.encode(f64::from(value), Rounding::Nearest)
    });
    high << 16 | low
}

fn narrow(high: f32, low: f32, extra: u32) -> u16 {
    let format = if extra & 1 == 1 { E5M2 } else { E4M3 };
    let [high, low] = [high, low].map(|value| {
        let value = if extra & 2 != 0 && value <= 0.0 { 0.0 } else { value };
        format.encode_saturating(f64::from(value)) as u16
    });
    high << 8 | low
}

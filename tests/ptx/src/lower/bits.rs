//! Shifts, fields, bytes and carries of integers.
#![allow(clippy::cast_possible_truncation, reason = "results are cut to their type's width")]

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::rows::{binary, ternary, unary};
use crate::numeric::integer::{
    self, PERMUTE_BACKWARD, PERMUTE_CLAMP_LEFT, PERMUTE_CLAMP_RIGHT, PERMUTE_FORWARD,
    PERMUTE_HALVES, PERMUTE_REPLICATE,
};
use crate::program::{CarryForm, Operation};
use crate::text::syntax::{Instruction, Literal, Operand};
use crate::types::Type;

impl Lowering<'_> {
    pub(super) fn shift(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        m.end()?;
        let function = match (i.name.as_str(), kind) {
            ("shl", Type::U16 | Type::S16) => {
                binary!(u16, u32, |a, n| a.checked_shl(n).unwrap_or(0))
            }
            ("shl", Type::U32 | Type::S32) => {
                binary!(u32, u32, |a, n| a.checked_shl(n).unwrap_or(0))
            }
            ("shl", Type::U64 | Type::S64) => {
                binary!(u64, u32, |a, n| a.checked_shl(n).unwrap_or(0))
            }
            ("shr", Type::U16) => binary!(u16, u32, |a, n| a.checked_shr(n).unwrap_or(0)),
            ("shr", Type::U32) => binary!(u32, u32, |a, n| a.checked_shr(n).unwrap_or(0)),
            ("shr", Type::U64) => binary!(u64, u32, |a, n| a.checked_shr(n).unwrap_or(0)),
            ("shr", Type::S16) => binary!(i16, u32, |a, n| a >> n.min(15)),
            ("shr", Type::S32) => binary!(i32, u32, |a, n| a >> n.min(31)),
            ("shr", Type::S64) => binary!(i64, u32, |a, n| a >> n.min(63)),
            _ => return m.unsupported("of this type"),
        };
        // The shift's count is 32 bits wide, whatever is shifted.
        let [d, a, b] = self.operands(i)?;
        let (d, a, b) = (self.destination(d)?, self.source(a, kind)?, self.source(b, Type::U32)?);
        self.emit(Operation::Binary { function, d, a, b })
    }

    /// `bfe`, `bfi`, `bfind`, `brev`, `popc`, `clz`.
    pub(super) fn bits(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let wide = kind.bytes() == 8;
        let unary = match (i.name.as_str(), wide) {
            ("brev", false) => Some(unary!(u32, |a| a.reverse_bits())),
            ("brev", true) => Some(unary!(u64, |a| a.reverse_bits())),
            ("popc", false) => Some(unary!(u32, |a| a.count_ones())),
            ("popc", true) => Some(unary!(u64, |a| a.count_ones())),
            ("clz", false) => Some(unary!(u32, |a| a.leading_zeros())),
            ("clz", true) => Some(unary!(u64, |a| a.leading_zeros())),
            ("bfind", _) => Some(match (kind, m.take("shiftamt")) {
                (Type::U32, false) => {
                    unary!(u32, |a| integer::find_high(i64::from(a), false, 32, false))
                }
                (Type::U32, true) => {
                    unary!(u32, |a| integer::find_high(i64::from(a), false, 32, true))
                }
                (Type::S32, false) => {
                    unary!(i32, |a| integer::find_high(i64::from(a), true, 32, false))
                }
                (Type::S32, true) => {
                    unary!(i32, |a| integer::find_high(i64::from(a), true, 32, true))
                }
                (Type::U64, false) => unary!(i64, |a| integer::find_high(a, false, 64, false)),
                (Type::U64, true) => unary!(i64, |a| integer::find_high(a, false, 64, true)),
                (_, false) => unary!(i64, |a| integer::find_high(a, true, 64, false)),
                (_, true) => unary!(i64, |a| integer::find_high(a, true, 64, true)),
            }),
            _ => None,
        };
        m.end()?;
        if let Some(function) = unary {
            return self.unary(i, function, kind);
        }
        if i.name == "bfi" {
            // Four sources: position and length are put into one row first.
            return self.bit_insert(i, wide);
        }
        let function = match kind {
            Type::U32 => ternary!(u32, |a, b, c, _m| integer::extract(u64::from(a), b, c, 32)),
            Type::S32 => ternary!(i32, u32, u32, |a, b, c, _m| {
                integer::extract_signed(i64::from(a), b, c, 32)
            }),
            Type::U64 => ternary!(u64, u32, u32, |a, b, c, _m| integer::extract(a, b, c, 64)),
            Type::S64 => {
                ternary!(i64, u32, u32, |a, b, c, _m| integer::extract_signed(a, b, c, 64))
            }
            _ => return m.unsupported("of this type"),
        };
        self.ternary(i, function, kind, 0)
    }

    fn bit_insert(&mut self, i: &Instruction, wide: bool) -> Lowered<()> {
        let [d, field, base, position, length] = self.operands(i)?;
        let kind = if wide { Type::U64 } else { Type::U32 };
        let [a, b] = [self.source(position, Type::U32)?, self.source(length, Type::U32)?];
        let both = self.new_row();
        let function = binary!(u8, |position, length| u16::from_le_bytes([position, length]));
        self.emit(Operation::Binary { function, d: both, a, b })?;
        let function = if wide {
            ternary!(u64, u64, u16, |a, b, c, _m| {
                integer::insert(a, b, u32::from(c & 255), u32::from(c >> 8), 64)
            })
        } else {
            ternary!(u32, u32, u16, |a, b, c, _m| {
                let (a, b) = (u64::from(a), u64::from(b));
                integer::insert(a, b, u32::from(c & 255), u32::from(c >> 8), 32) as u32
            })
        };
        let [a, b] = [self.source(field, kind)?, self.source(base, kind)?];
        let d = self.destination(d)?;
        self.emit(Operation::Ternary { function, d, a, b, c: both, extra: 0 })
    }

    /// `shf`, `prmt`, `sad`, `slct`, `dp4a`, `dp2a`.
    pub(super) fn three_sources(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        // The modes of prmt stand behind its type.
        let modes = [
            ("f4e", PERMUTE_FORWARD),
            ("b4e", PERMUTE_BACKWARD),
            ("rc8", PERMUTE_REPLICATE),
            ("ecl", PERMUTE_CLAMP_LEFT),
            ("ecr", PERMUTE_CLAMP_RIGHT),
            ("rc16", PERMUTE_HALVES),
        ];
        let permutation = m.one_of(&modes).unwrap_or(0);
        let kind = m.kind()?;
        let (function, extra) = match i.name.as_str() {
            "shf" => {
                let extra = u32::from(m.take("l")) | u32::from(m.take("wrap")) << 1;
                m.ignore(&["r", "clamp"]);
                (
                    ternary!(u32, |a, b, c, m| {
                        integer::funnel(a, b, c, m & 1 == 1, m & 2 == 2)
                    }),
                    extra,
                )
            }
            "prmt" => (ternary!(u32, |a, b, c, mode| integer::permute(a, b, c, mode)), permutation),
            "slct" => {
                let is_float = kind == Type::F32;
                m.first();
                let function = if is_float {
                    ternary!(u64, u64, f32, |a, b, c, _m| if c >= 0.0 { a } else { b })
                } else {
                    ternary!(u64, u64, i32, |a, b, c, _m| if c >= 0 { a } else { b })
                };
                (function, 0)
            }
            "sad" => {
                let function = match kind {
                    Type::U32 => ternary!(u32, |a, b, c, _m| c.wrapping_add(a.abs_diff(b))),
                    Type::S32 => {
                        ternary!(i32, i32, u32, |a, b, c, _m| c.wrapping_add(a.abs_diff(b)))
                    }
                    Type::U16 => ternary!(u16, |a, b, c, _m| c.wrapping_add(a.abs_diff(b))),
                    Type::S16 => {
                        ternary!(i16, i16, u16, |a, b, c, _m| c.wrapping_add(a.abs_diff(b)))
                    }
                    _ => return m.unsupported("of this type"),
                };
                (function, 0)
            }
            _ => {
                // The words left are `.atype`, and `.lo` or `.hi` of dp2a; `kind` is `.btype`.
                let high = m.take("hi");
                m.ignore(&["lo"]);
                let first = m.kind()?;
                let extra = u32::from(first.is_signed())
                    | u32::from(kind.is_signed()) << 1
                    | u32::from(high) << 2;
                let function = if i.name == "dp4a" {
                    ternary!(u32, |a, b, c, m| integer::dot4(a, b, c, [m & 1 == 1, m & 2 == 2]))
                } else {
                    ternary!(u32, |a, b, c, m| {
                        integer::dot2(a, b, c, [m & 1 == 1, m & 2 == 2], m & 4 == 4)
                    })
                };
                (function, extra)
            }
        };
        m.end()?;
        self.ternary(i, function, kind, extra)
    }

    pub(super) fn lookup(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        m.kind()?;
        m.end()?;
        let [d, a, b, c, Operand::Literal(Literal::Integer(table))] = self.operands(i)? else {
            return self.error("lop3 without a constant table");
        };
        let function = ternary!(u32, |a, b, c, table| integer::lookup3(a, b, c, table));
        let d = self.destination(d)?;
        let [a, b, c] =
            [self.source(a, Type::U32)?, self.source(b, Type::U32)?, self.source(c, Type::U32)?];
        self.emit(Operation::Ternary { function, d, a, b, c, extra: *table as u32 & 255 })
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
    pub(super) fn carry(
        &mut self,
        i: &Instruction,
        mut m: Modifiers<'_>,
        kind: Type,
        writes: bool,
    ) -> Lowered<()> {
        let (form, reads) = match i.name.as_str() {
            "add" => (CarryForm::Add, false),
            "addc" => (CarryForm::Add, true),
            "sub" => (CarryForm::Subtract, false),
            "subc" => (CarryForm::Subtract, true),
            name => {
                let high = m.take("hi");
                m.ignore(&["lo"]);
                let is_signed = kind.is_signed();
                (CarryForm::MultiplyAdd { high, is_signed }, name == "madc")
            }
        };
        m.end()?;
        let sources = i.operands.get(1..).unwrap_or(&[]);
        let wanted = if matches!(form, CarryForm::MultiplyAdd { .. }) { 3 } else { 2 };
        if sources.len() != wanted || !matches!(kind.bytes(), 4 | 8) {
            return m.unsupported("of this form");
        }
        let d = self.destination(&i.operands[0])?;
        let mut slots = [0; 3];
        for (slot, source) in slots.iter_mut().zip(sources) {
            *slot = self.source(source, kind)?;
        }
        self.emit(Operation::Carry { form, wide: kind.bytes() == 8, reads, writes, d, slots })
    }
}

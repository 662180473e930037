//! What instruction goes to which room, and moves of all sorts.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use super::rows::{binary, by_integer, unary};
use crate::program::{ClockKind, Operation};
use crate::text::syntax::{Instruction, Operand};
use crate::types::{Space, Type};

impl Lowering<'_> {
    pub(super) fn instruction(&mut self, i: &Instruction) -> Lowered<()> {
        let m = Modifiers::new(i);
        match i.name.as_str() {
            "add" | "sub" => self.add_subtract(i, m),
            "mul" => self.multiply(i, m),
            "mad" | "fma" => self.multiply_add(i, m),
            "addc" | "subc" | "madc" => self.carry_chain(i, m),
            "div" | "rem" => self.divide(i, m),
            "min" | "max" => self.extreme(i, m),
            "neg" | "abs" => self.sign(i, m),
            "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" => {
                self.transcendental(i, m)
            }
            "copysign" => self.copy_sign(i, m),
            "shl" | "shr" => self.shift(i, m),
            "bfe" | "bfi" | "bfind" | "brev" | "popc" | "clz" => self.bits(i, m),
            "shf" | "prmt" | "sad" | "slct" | "dp4a" | "dp2a" => self.three_sources(i, m),
            "lop3" => self.lookup(i, m),
            "and" | "or" | "xor" | "not" => self.logic(i, m),
            "setp" => self.set_predicate(i, m),
            "set" => self.set(i, m),
            "testp" => self.test(i, m),
            "mov" => self.move_(i, m),
            "selp" => self.select(i, m),
            "cvt" => self.convert(i, m),
            "cvta" => self.convert_address(i, m),
            "isspacep" => self.is_space(i, m),
            "ld" | "ldu" | "st" => self.access(i, m),
            "atom" | "red" => self.atomic(i, m),
            "cp" => self.copy(i, m),
            "prefetch" | "prefetchu" | "discard" | "applypriority" | "griddepcontrol"
            | "nanosleep" | "membar" | "fence" | "pmevent" | "setmaxnreg" => {
                self.emit(Operation::Nothing)
            }
            "createpolicy" => self.policy(i),
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => self.control(i, m),
            "bar" | "barrier" => self.barrier(i, m),
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => self.collective(i, m),
            "mma" => self.mma(i, m),
            "ldmatrix" | "stmatrix" => self.matrices(i, m),
            other => self.error(format!("instruction `{other}` is not supported")),
        }
    }

    fn carry_chain(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let writes = m.take("cc");
        self.carry(i, m, kind, writes)
    }

    fn logic(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        m.end()?;
        if kind == Type::Predicate {
            return self.predicate_logic(i);
        }
        if i.name == "not" {
            return match by_integer!(kind, unary, |a| !a) {
                Some(function) => self.unary(i, function, kind),
                None => m.unsupported("of this type"),
            };
        }
        let function = match i.name.as_str() {
            "and" => by_integer!(kind, binary, |a, b| a & b),
            "or" => by_integer!(kind, binary, |a, b| a | b),
            _ => by_integer!(kind, binary, |a, b| a ^ b),
        };
        match function {
            Some(function) => self.binary(i, function, kind),
            None => m.unsupported("of this type"),
        }
    }

    fn move_(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        m.end()?;
        if kind == Type::Predicate {
            return self.predicate_logic(i);
        }
        let [d, a] = self.operands(i)?;
        match (d, a) {
            (Operand::Vector(parts), a) => {
                let (slots, bits) = (self.destinations(d)?, self.part_bits(kind, parts.len())?);
                let a = self.source(a, kind)?;
                self.emit(Operation::Unpack { slots: slots.into(), a, bits })
            }
            (d, Operand::Vector(parts)) => {
                let (sources, bits) = (self.sources(a, kind)?, self.part_bits(kind, parts.len())?);
                let d = self.destination(d)?;
                self.emit(Operation::Pack { d, sources: sources.into(), bits })
            }
            (d, Operand::Name(name)) if clock(name).is_some() => {
                let d = self.destination(d)?;
                let kind = clock(name).unwrap_or(ClockKind::Cycles);
                self.emit(Operation::Clock { d, kind })
            }
            (d, a) => {
                let (d, a) = (self.destination(d)?, self.source(a, kind)?);
                self.emit(Operation::Move { d, a })
            }
        }
    }

    fn part_bits(&self, kind: Type, parts: usize) -> Lowered<u32> {
        match (kind.bytes(), parts) {
            (bytes @ (2 | 4 | 8), 2) => Ok(bytes * 4),
            (bytes @ (4 | 8), 4) => Ok(bytes * 2),
            (8, 8) => Ok(8),
            _ => self.error("a vector of that many parts does not fit this type"),
        }
    }

    fn select(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        m.end()?;
        let [d, a, b, by] = self.operands(i)?;
        let (d, a, b) = (self.destination(d)?, self.source(a, kind)?, self.source(b, kind)?);
        let by = self.truth(by)?;
        self.emit(Operation::Select { d, a, b, by })
    }

    /// To generic and back: all spaces but the global one have a window of their own.
    fn convert_address(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let to_space = m.take("to");
        let Some(space) = m.find(Space::parse) else { return m.unsupported("without a space") };
        let kind = m.kind()?;
        m.end()?;
        let [d, a] = self.operands(i)?;
        let (d, a) = (self.destination(d)?, self.source(a, kind)?);
        if space == Space::Global {
            return self.emit(Operation::Move { d, a });
        }
        let b = self.immediate(space.window());
        let function = if to_space {
            binary!(u64, |a, b| a.wrapping_sub(b))
        } else {
            binary!(u64, |a, b| a.wrapping_add(b))
        };
        self.emit(Operation::Binary { function, d, a, b })
    }

    fn is_space(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let Some(space) = m.find(Space::parse) else { return m.unsupported("without a space") };
        m.end()?;
        let [d, a] = self.operands(i)?;
        let (d, a) = (self.predicate_destination(d)?, self.source(a, Type::U64)?);
        self.emit(Operation::IsSpace { d, a, space })
    }

    /// A policy for caches is any number here.
    fn policy(&mut self, i: &Instruction) -> Lowered<()> {
        let Some(d) = i.operands.first() else { return self.error("createpolicy of nothing") };
        let (d, a) = (self.destination(d)?, self.immediate(0));
        self.emit(Operation::Move { d, a })
    }
}

fn clock(name: &str) -> Option<ClockKind> {
    match name {
        "%clock" | "%clock64" => Some(ClockKind::Cycles),
        "%clock_hi" => Some(ClockKind::CyclesHigh),
        "%globaltimer" | "%globaltimer_lo" => Some(ClockKind::Nanoseconds),
        _ => None,
    }
}

//! Operands become slots.

use super::function::Lowering;
use super::scope::Register;
use super::{Lowered, Symbol, literal_bits};
use crate::error::ParseError;
use crate::program::{ALWAYS, Address, NEVER, PredicateSlot, Slot, Special, Truth};
use crate::text::syntax::{Literal, Operand};
use crate::types::{Space, Type};

impl Lowering<'_> {
    pub(super) fn error<T>(&self, cause: impl Into<String>) -> Lowered<T> {
        Err(ParseError::new(self.at, cause))
    }

    pub(super) fn new_row(&mut self) -> Slot {
        self.program.rows += 1;
        self.program.rows - 1
    }

    fn new_predicate(&mut self) -> PredicateSlot {
        self.program.predicates += 1;
        self.program.predicates - 1
    }

    pub(super) fn register(&mut self, name: &str) -> Option<Register> {
        let program = &mut self.program;
        self.scopes.register(name, |kind| {
            if kind == Type::Predicate {
                program.predicates += 1;
                Register::Predicate(program.predicates - 1)
            } else {
                program.rows += 1;
                Register::Row(program.rows - 1)
            }
        })
    }

    /// The slot that holds `bits` in all lanes.
    pub(super) fn immediate(&mut self, bits: u64) -> Slot {
        if let Some(slot) = self.immediates.get(&bits) {
            return *slot;
        }
        let slot = self.new_row();
        self.immediates.insert(bits, slot);
        self.program.immediates.push((slot, bits));
        slot
    }

    pub(super) fn special(&mut self, special: Special) -> Slot {
        if let Some((slot, _)) = self.program.specials.iter().find(|(_, one)| *one == special) {
            return *slot;
        }
        let slot = self.new_row();
        self.program.specials.push((slot, special));
        slot
    }

    /// An operand that is read, in a context of type `kind`.
    pub(super) fn source(&mut self, operand: &Operand, kind: Type) -> Lowered<Slot> {
        match operand {
            Operand::Literal(literal) => Ok(self.immediate(literal_bits(*literal, kind))),
            Operand::Name(name) => self.named(name, 0),
            Operand::Offset(name, offset) => self.named(name, *offset),
            _ => self.error("this operand must be a register or a number"),
        }
    }

    pub(super) fn named(&mut self, name: &str, offset: i64) -> Lowered<Slot> {
        match self.register(name) {
            Some(Register::Row(slot)) => return Ok(slot),
            Some(Register::Predicate(_)) => {
                return self.error(format!("`{name}` is a predicate where a value must be"));
            }
            None => {}
        }
        if let Some(special) = special(name) {
            return Ok(self.special(special));
        }
        match self.symbol(name)? {
            Some(Place::Fixed(symbol)) => {
                Ok(self.immediate(symbol.address.wrapping_add_signed(offset)))
            }
            Some(Place::DynamicShared) if offset == 0 => Ok(self.special(Special::DynamicShared)),
            Some(Place::DynamicShared) => self.error("an offset from dynamic shared memory"),
            None => self.error(format!("`{name}` is not declared")),
        }
    }

    /// A register that is written, or `_`.
    pub(super) fn destination(&mut self, operand: &Operand) -> Lowered<Slot> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_row()),
            Operand::Name(name) => match self.register(name) {
                Some(Register::Row(slot)) => Ok(slot),
                Some(Register::Predicate(_)) => {
                    self.error(format!("`{name}` is a predicate where a value must be"))
                }
                None => self.error(format!("register `{name}` is not declared")),
            },
            _ => self.error("the result must be a register"),
        }
    }

    pub(super) fn predicate_destination(&mut self, operand: &Operand) -> Lowered<PredicateSlot> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_predicate()),
            Operand::Name(name) => match self.register(name) {
                Some(Register::Predicate(slot)) => Ok(slot),
                _ => self.error(format!("`{name}` is no predicate")),
            },
            _ => self.error("the result must be a predicate"),
        }
    }

    pub(super) fn truth(&mut self, operand: &Operand) -> Lowered<Truth> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, 0),
            Operand::Not(name) => (name, u32::MAX),
            Operand::Literal(Literal::Integer(value)) => {
                return Ok(Truth { slot: if *value == 0 { NEVER } else { ALWAYS }, negated: 0 });
            }
            _ => return self.error("this operand must be a predicate"),
        };
        match self.register(name) {
            Some(Register::Predicate(slot)) => Ok(Truth { slot, negated }),
            _ => self.error(format!("`{name}` is no predicate")),
        }
    }

    pub(super) fn is_predicate(&mut self, operand: &Operand) -> bool {
        match operand {
            Operand::Name(name) | Operand::Not(name) => {
                matches!(self.register(name), Some(Register::Predicate(_)))
            }
            _ => false,
        }
    }

    /// `[base+offset]`, and the space that the base's own name says.
    pub(super) fn address(&mut self, operand: &Operand) -> Lowered<(Option<Space>, Address)> {
        let Operand::Address(base, offset) = operand else {
            return self.error("this operand must be an address in [ ]");
        };
        let (mut space, mut offset) = (None, *offset);
        let base = match &**base {
            Operand::Name(name) => {
                let base = self.named(name, 0)?;
                if self.register(name).is_none()
                    && let Some(Place::Fixed(symbol)) = self.symbol(name)?
                {
                    space = Some(symbol.space);
                }
                base
            }
            Operand::Literal(Literal::Integer(address)) => {
                offset = offset.wrapping_add(address.cast_signed());
                self.immediate(0)
            }
            _ => return self.error("this address has no base"),
        };
        Ok((space, Address { base, offset }))
    }

    /// The elements of `{a, b}`, or the one operand.
    pub(super) fn elements<'operand>(&self, operand: &'operand Operand) -> &'operand [Operand] {
        match operand {
            Operand::Vector(elements) => elements,
            one => std::slice::from_ref(one),
        }
    }

    pub(super) fn sources(&mut self, operand: &Operand, kind: Type) -> Lowered<Vec<Slot>> {
        self.elements(operand).iter().map(|one| self.source(one, kind)).collect()
    }

    pub(super) fn destinations(&mut self, operand: &Operand) -> Lowered<Vec<Slot>> {
        self.elements(operand).iter().map(|one| self.destination(one)).collect()
    }

    fn symbol(&mut self, name: &str) -> Lowered<Option<Place>> {
        let local = self.scopes.symbol(name);
        if let Some(symbol) = local.or_else(|| self.shared.symbols.get(name).copied()) {
            return Ok(Some(Place::Fixed(symbol)));
        }
        let shared = self.shared;
        let Some(variable) = shared.shared.iter().find(|variable| variable.name == name) else {
            return Ok(None);
        };
        if variable.is_extern && variable.bytes == 0 {
            return Ok(Some(Place::DynamicShared));
        }
        // A kernel has those shared variables of the module that it names.
        if let Some(symbol) = self.module_shared.get(name) {
            return Ok(Some(Place::Fixed(*symbol)));
        }
        let symbol = self.place_shared(variable)?;
        self.module_shared.insert(variable.name.as_str(), symbol);
        Ok(Some(Place::Fixed(symbol)))
    }
}

/// Where a name that is no register lies.
#[derive(Clone, Copy, Debug)]
enum Place {
    Fixed(Symbol),
    /// Behind all static shared memory, wherever that ends.
    DynamicShared,
}

fn special(name: &str) -> Option<Special> {
    let (name, axis) = match name.split_once('.') {
        Some((name, "x")) => (name, 0),
        Some((name, "y")) => (name, 1),
        Some((name, "z")) => (name, 2),
        Some(_) => return None,
        None => (name, usize::MAX),
    };
    Some(match (name, axis) {
        ("%tid", 0..3) => Special::Thread(axis),
        ("%ntid", 0..3) => Special::BlockShape(axis),
        ("%ctaid", 0..3) => Special::Block(axis),
        ("%nctaid", 0..3) => Special::GridShape(axis),
        // Every block is a cluster of its own.
        ("%cluster_ctaid", 0..3) => Special::Zero,
        ("%cluster_nctaid", 0..3) => Special::One,
        ("%clusterid", 0..3) => Special::Block(axis),
        ("%nclusterid", 0..3) => Special::GridShape(axis),
        ("%laneid", usize::MAX) => Special::Lane,
        ("%warpid", usize::MAX) => Special::Warp,
        ("%nwarpid", usize::MAX) => Special::Warps,
        ("%lanemask_eq", usize::MAX) => Special::LanesEqual,
        ("%lanemask_lt", usize::MAX) => Special::LanesLess,
        ("%lanemask_le", usize::MAX) => Special::LanesLessOrEqual,
        ("%lanemask_gt", usize::MAX) => Special::LanesGreater,
        ("%lanemask_ge", usize::MAX) => Special::LanesGreaterOrEqual,
        ("%dynamic_smem_size", usize::MAX) => Special::DynamicSharedBytes,
        ("%total_smem_size", usize::MAX) => Special::SharedBytes,
        ("%smid" | "%gridid" | "%cluster_ctarank", usize::MAX) => Special::Zero,
        ("%nsmid" | "%cluster_nctarank", usize::MAX) => Special::One,
        _ => return None,
    })
}

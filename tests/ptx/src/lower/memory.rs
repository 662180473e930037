//! Loads, stores, atomics and asynchronous copies.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use crate::program::{Access, Atomic, AtomicKind, CopyAsync, Operation};
use crate::text::syntax::{Instruction, Literal, Operand};
use crate::types::{Space, Type};

/// Words that say how caches and other threads see an access. Here every access is volatile.
const HINTS: [&str; 24] = [
    "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "relaxed", "acquire", "release",
    "acq_rel", "volatile", "mmio", "cta", "cluster", "gpu", "sys", "noftz", "unified", "read",
    "write", "aligned",
];

fn drop_hints(m: &mut Modifiers<'_>) {
    m.ignore(&HINTS);
    m.ignore_prefix("L1::");
    m.ignore_prefix("L2::");
    m.ignore_prefix("level::");
}

const KINDS: [(&str, AtomicKind); 10] = [
    ("add", AtomicKind::Add),
    ("min", AtomicKind::Minimum),
    ("max", AtomicKind::Maximum),
    ("and", AtomicKind::And),
    ("or", AtomicKind::Or),
    ("xor", AtomicKind::Xor),
    ("exch", AtomicKind::Exchange),
    ("cas", AtomicKind::CompareExchange),
    ("inc", AtomicKind::Increment),
    ("dec", AtomicKind::Decrement),
];

impl Lowering<'_> {
    pub(super) fn access(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        let mut space = m.find(Space::parse).unwrap_or(Space::Generic);
        let count = m.one_of(&[("v2", 2_u32), ("v4", 4)]).unwrap_or(1);
        drop_hints(&mut m);
        m.end()?;
        let loads = i.name != "st";
        // A policy for caches may follow.
        let (Some(first), Some(second)) = (i.operands.first(), i.operands.get(1)) else {
            return self.error(format!("{} takes 2 operands", i.name));
        };
        let (value, address) = if loads { (first, second) } else { (second, first) };
        let (named, address) = self.address(address)?;
        if space == Space::Parameter && named == Some(Space::Local) {
            space = Space::Local;
        }
        if kind == Type::Predicate || kind.bytes() > 8 {
            return m.unsupported("of this type");
        }
        let elements = if loads { self.destinations(value)? } else { self.sources(value, kind)? };
        if elements.len() != count as usize {
            return m.unsupported(format!("of {} elements", elements.len()));
        }
        let mut slots = [0; 4];
        slots[..count as usize].copy_from_slice(&elements);
        let access =
            Access { space, bytes: kind.bytes(), is_signed: kind.is_signed(), count, address };
        self.emit(if loads {
            Operation::Load { access, d: slots }
        } else {
            Operation::Store { access, slots }
        })
    }

    pub(super) fn atomic(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let element = m.kind()?;
        let space = m.find(Space::parse).unwrap_or(Space::Generic);
        let Some(kind) = m.one_of(&KINDS) else { return m.unsupported("of this kind") };
        drop_hints(&mut m);
        m.end()?;
        let mut operands = i.operands.as_slice();
        let d = match operands {
            [d, rest @ ..] if i.name == "atom" => {
                operands = rest;
                Some(self.destination(d)?)
            }
            _ => None,
        };
        let (address, b, c) = match (operands, kind) {
            ([address, b, c, ..], AtomicKind::CompareExchange) => (address, b, c),
            (_, AtomicKind::CompareExchange) => return self.error("atom.cas takes 4 operands"),
            ([address, b, ..], _) => (address, b, b),
            _ => return self.error("an atomic without an operand"),
        };
        let fits = match kind {
            AtomicKind::Add => element.bytes() > 1 && element != Type::S16,
            AtomicKind::Minimum | AtomicKind::Maximum => element.bytes() > 1,
            AtomicKind::Exchange | AtomicKind::CompareExchange => element.bytes() > 1,
            AtomicKind::And | AtomicKind::Or | AtomicKind::Xor => element.bytes() >= 4,
            AtomicKind::Increment | AtomicKind::Decrement => element == Type::U32,
        };
        if !fits || element.bytes() > 8 {
            return m.unsupported("of this type");
        }
        let (named, address) = self.address(address)?;
        if named == Some(Space::Parameter) {
            return self.error("an atomic on parameters");
        }
        let (b, c) = (self.source(b, element)?, self.source(c, element)?);
        let atomic = Atomic { space, kind, element, d, address, b, c };
        self.emit(Operation::Atomic(Box::new(atomic)))
    }

    pub(super) fn copy(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        if !m.take("async") {
            return m.unsupported("of this form");
        }
        if m.take("commit_group") {
            m.end()?;
            return self.emit(Operation::CopyCommit);
        }
        if m.take("wait_all") {
            m.end()?;
            return self.emit(Operation::CopyWait { groups_left: None });
        }
        if m.take("wait_group") {
            m.end()?;
            let [Operand::Literal(Literal::Integer(groups))] = self.operands(i)? else {
                return self.error("cp.async.wait_group takes a number");
            };
            let groups_left = Some(u32::try_from(*groups).unwrap_or(u32::MAX));
            return self.emit(Operation::CopyWait { groups_left });
        }
        let whole_line = m.take("cg");
        if !m.take("ca") && !whole_line {
            return m.unsupported("of this form");
        }
        let is_generic = !(m.take("shared") | m.take("shared::cta"));
        let has_policy = m.take("L2::cache_hint");
        m.ignore(&["global"]);
        drop_hints(&mut m);
        m.end()?;
        let (Some(to), Some(from), Some(Operand::Literal(Literal::Integer(bytes)))) =
            (i.operands.first(), i.operands.get(1), i.operands.get(2))
        else {
            return self.error("cp.async takes two addresses and a size");
        };
        if !matches!((bytes, whole_line), (16, _) | (4 | 8, false)) {
            return self.error(format!("cp.async of {bytes} bytes"));
        }
        // A policy for caches comes last.
        let (mut source_bytes, mut ignores_source) = (None, None);
        match i.operands.get(3) {
            Some(_) if has_policy && i.operands.len() == 4 => {}
            Some(operand) if self.is_predicate(operand) => {
                ignores_source = Some(self.truth(operand)?);
            }
            Some(operand) => source_bytes = Some(self.source(operand, Type::U32)?),
            None => {}
        }
        let copy = CopyAsync {
            to: self.address(to)?.1,
            from: self.address(from)?.1,
            is_generic,
            bytes: u32::try_from(*bytes).unwrap_or(16),
            source_bytes,
            ignores_source,
        };
        self.emit(Operation::CopyAsync(Box::new(copy)))
    }
}

//! Branches, calls, ends and barriers of a block.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use crate::program::{BarrierKind, Operation};
use crate::text::syntax::{Instruction, Operand};
use crate::types::Type;

impl Lowering<'_> {
    pub(super) fn control(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        m.ignore(&["uni"]);
        match (i.name.as_str(), i.operands.as_slice()) {
            ("bra", [Operand::Name(label)]) => {
                m.end()?;
                self.branch_to(label)
            }
            ("brx", [index, Operand::Name(table)]) if m.take("idx") => {
                m.end()?;
                let index = self.source(index, Type::U32)?;
                self.branch_by_table(index, table)
            }
            ("call", operands) => {
                m.end()?;
                self.call(operands)
            }
            ("ret", []) => {
                m.end()?;
                self.return_()
            }
            ("exit", []) => {
                m.end()?;
                self.emit(Operation::Exit)
            }
            ("trap" | "brkpt", []) => {
                m.end()?;
                self.emit(Operation::Trap)
            }
            _ => m.unsupported("of this form"),
        }
    }

    pub(super) fn barrier(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        m.ignore(&["cta", "aligned"]);
        if m.take("warp") {
            m.ignore(&["sync"]);
            m.end()?;
            let [members] = self.operands(i)?;
            let members = self.source(members, Type::U32)?;
            return self.emit(Operation::WarpBarrier { members });
        }
        let mut operands = i.operands.as_slice();
        let kind = if m.take("red") {
            let word = m.first().unwrap_or("");
            m.ignore(&["pred", "u32"]);
            let ([d, rest @ .., last], true) = (operands, operands.len() >= 3) else {
                return self.error("bar.red takes at least 3 operands");
            };
            operands = rest;
            let of = self.truth(last)?;
            match word {
                "popc" => BarrierKind::Popcount { to: self.destination(d)?, of },
                "and" | "or" => {
                    let to = self.predicate_destination(d)?;
                    BarrierKind::Vote { to, of, all: word == "and" }
                }
                _ => return m.unsupported("of this form"),
            }
        } else if m.take("arrive") {
            BarrierKind::Arrive
        } else if m.take("sync") {
            BarrierKind::Wait
        } else {
            return m.unsupported("of this form");
        };
        m.end()?;
        let (id, threads) = match operands {
            [id] => (id, None),
            [id, threads] => (id, Some(self.source(threads, Type::U32)?)),
            _ => return self.error("a barrier takes 1 or 2 operands"),
        };
        let id = self.source(id, Type::U32)?;
        self.emit(Operation::Barrier { id, threads, kind })
    }
}

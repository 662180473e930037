//! What the lanes of a warp do together.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use crate::program::{AtomicKind, Operation, ShuffleMode, VoteMode};
use crate::text::syntax::{Instruction, Operand};
use crate::types::Type;

impl Lowering<'_> {
    pub(super) fn collective(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let kind = m.kind()?;
        if i.name == "activemask" {
            m.end()?;
            let [d] = self.operands(i)?;
            let d = self.destination(d)?;
            return self.emit(Operation::ActiveMask { d });
        }
        if !m.take("sync") {
            return m.unsupported("without .sync");
        }
        match i.name.as_str() {
            "shfl" => self.shuffle(i, m),
            "vote" => self.vote(i, m),
            "match" => self.match_(i, m, kind),
            "redux" => self.reduce(i, m, kind),
            _ => m.unsupported("of this form"),
        }
    }

    fn shuffle(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let mode = m.one_of(&[
            ("up", ShuffleMode::Up),
            ("down", ShuffleMode::Down),
            ("bfly", ShuffleMode::Butterfly),
            ("idx", ShuffleMode::Index),
        ]);
        m.end()?;
        let Some(mode) = mode else { return m.unsupported("of this form") };
        let [d, a, b, c, members] = self.operands(i)?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.destination(d)?, Some(self.predicate_destination(p)?)),
            d => (self.destination(d)?, None),
        };
        let kind = Type::U32;
        let slots = [self.source(a, kind)?, self.source(b, kind)?, self.source(c, kind)?];
        let members = self.source(members, kind)?;
        self.emit(Operation::Shuffle { mode, d, p, slots, members })
    }

    fn vote(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let mode = m.one_of(&[
            ("all", VoteMode::All),
            ("any", VoteMode::Any),
            ("uni", VoteMode::Uniform),
            ("ballot", VoteMode::Ballot),
        ]);
        m.end()?;
        let Some(mode) = mode else { return m.unsupported("of this form") };
        let [d, of, members] = self.operands(i)?;
        let sink = Operand::Name("_".to_owned());
        let (d, p) = match mode {
            VoteMode::Ballot => (self.destination(d)?, self.predicate_destination(&sink)?),
            _ => (self.destination(&sink)?, self.predicate_destination(d)?),
        };
        let of = self.truth(of)?;
        let members = self.source(members, Type::U32)?;
        self.emit(Operation::Vote { mode, d, p, of, members })
    }

    fn match_(&mut self, i: &Instruction, mut m: Modifiers<'_>, kind: Type) -> Lowered<()> {
        let all = m.take("all");
        m.ignore(&["any"]);
        m.end()?;
        let [d, a, members] = self.operands(i)?;
        let (d, p) = match d {
            Operand::Pair(d, p) => (self.destination(d)?, Some(self.predicate_destination(p)?)),
            d => (self.destination(d)?, None),
        };
        let (a, members) = (self.source(a, kind)?, self.source(members, Type::U32)?);
        self.emit(Operation::Match { all, wide: kind.bytes() == 8, d, p, a, members })
    }

    fn reduce(&mut self, i: &Instruction, mut m: Modifiers<'_>, kind: Type) -> Lowered<()> {
        let reduction = m.one_of(&[
            ("add", AtomicKind::Add),
            ("min", AtomicKind::Minimum),
            ("max", AtomicKind::Maximum),
            ("and", AtomicKind::And),
            ("or", AtomicKind::Or),
            ("xor", AtomicKind::Xor),
        ]);
        m.end()?;
        let (Some(reduction), true) = (reduction, kind.is_integer()) else {
            return m.unsupported("of this form");
        };
        let [d, a, members] = self.operands(i)?;
        let (d, a) = (self.destination(d)?, self.source(a, kind)?);
        let members = self.source(members, Type::U32)?;
        self.emit(Operation::Reduce { kind: reduction, is_signed: kind.is_signed(), d, a, members })
    }
}

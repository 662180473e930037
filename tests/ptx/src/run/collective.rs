//! What the lanes of a warp do together: shuffles, votes, matches, reductions, barriers.

use super::atomic::arithmetic;
use super::block::State;
use super::copies::lanes;
use super::warp::{Next, Stop, Warp};
use crate::program::{AtomicKind, Operation, PredicateSlot, ShuffleMode, Slot, VoteMode};
use crate::types::Type;

/// What a shuffle gives from a lane that does not take part.
const POISON: u64 = 0x7FFF_DEAD;

impl Warp {
    pub(super) fn collective(
        &mut self,
        state: &mut State<'_>,
        operation: &Operation,
        active: u32,
    ) -> Result<Next, Box<Stop>> {
        let (members, is_barrier) = match operation {
            Operation::Shuffle { members, .. }
            | Operation::Vote { members, .. }
            | Operation::Match { members, .. }
            | Operation::Reduce { members, .. } => (*members, false),
            Operation::WarpBarrier { members } => (*members, true),
            other => return self.matrix(state, other, active),
        };
        let (sets, parked) = self.meet(active, members, is_barrier)?;
        for set in sets {
            match operation {
                Operation::Shuffle { mode, d, p, slots, .. } => {
                    self.shuffle(*mode, *d, *p, slots, set);
                }
                Operation::Vote { mode, d, p, of, .. } => {
                    let holds = self.holding(*of) & set;
                    let answer = match mode {
                        VoteMode::All => holds == set,
                        VoteMode::Any | VoteMode::Ballot => holds != 0,
                        VoteMode::Uniform => holds == set || holds == 0,
                    };
                    self.write(*d, &[u64::from(holds); 32], set);
                    self.write_predicate(*p, if answer { u32::MAX } else { 0 }, set);
                }
                Operation::Match { all, wide, d, p, a, .. } => {
                    self.match_(*all, *wide, *d, *p, *a, set);
                }
                Operation::Reduce { kind, is_signed, d, a, .. } => {
                    self.reduce(*kind, *is_signed, *d, *a, set);
                }
                _ => {}
            }
        }
        Ok(if parked == 0 { Next::On } else { Next::Without(parked) })
    }

    /// PTX's own description: `c` holds a clamp and a mask that cuts the warp into segments.
    fn shuffle(
        &mut self,
        mode: ShuffleMode,
        d: Slot,
        p: Option<PredicateSlot>,
        [a, b, c]: &[Slot; 3],
        set: u32,
    ) {
        let [a, b, c] = [a, b, c].map(|slot| self.rows[*slot as usize]);
        let (mut out, mut inside) = ([0; 32], 0);
        for lane in lanes(set) {
            let offset = b[lane] as u32 & 31;
            let (clamp, segment) = (c[lane] as u32 & 31, c[lane] as u32 >> 8 & 31);
            let own = lane as u32;
            let last = own & segment | clamp & !segment;
            let first = own & segment;
            let (from, is_inside) = match mode {
                ShuffleMode::Up => {
                    let from = own.wrapping_sub(offset);
                    (from, from.cast_signed() >= last.cast_signed())
                }
                ShuffleMode::Down => (own + offset, own + offset <= last),
                ShuffleMode::Butterfly => (own ^ offset, own ^ offset <= last),
                ShuffleMode::Index => {
                    let from = first | offset & !segment;
                    (from, from <= last)
                }
            };
            let from = if is_inside { from } else { own };
            inside |= u32::from(is_inside) << lane;
            out[lane] = if set >> from & 1 == 1 { a[from as usize] } else { POISON };
        }
        self.write(d, &out, set);
        if let Some(p) = p {
            self.write_predicate(p, inside, set);
        }
    }

    fn match_(
        &mut self,
        all: bool,
        wide: bool,
        d: Slot,
        p: Option<PredicateSlot>,
        a: Slot,
        set: u32,
    ) {
        let row = self.rows[a as usize].map(|one| if wide { one } else { one & 0xFFFF_FFFF });
        let mut out = [0; 32];
        for lane in lanes(set) {
            let same = lanes(set).filter(|other| row[*other] == row[lane]);
            let same = same.fold(0_u32, |mask, other| mask | 1 << other);
            out[lane] = u64::from(if all && same != set { 0 } else { same });
        }
        let agree = out[set.trailing_zeros() as usize & 31] != 0;
        self.write(d, &out, set);
        if let Some(p) = p {
            self.write_predicate(p, if agree { u32::MAX } else { 0 }, set);
        }
    }

    fn reduce(&mut self, kind: AtomicKind, is_signed: bool, d: Slot, a: Slot, set: u32) {
        let row = &self.rows[a as usize];
        let element = if is_signed { Type::S32 } else { Type::U32 };
        let combine = |a: u64, b: u64| match kind {
            AtomicKind::And => a & b,
            AtomicKind::Or => a | b,
            AtomicKind::Xor => a ^ b,
            _ => arithmetic(kind, element, a, b),
        };
        let value = lanes(set).map(|lane| row[lane]).reduce(combine).unwrap_or(0);
        self.write(d, &[value; 32], set);
    }
}

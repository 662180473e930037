//! The sixteen barriers of a block.

use super::block::State;
use super::warp::{Group, Stop, Wait, Warp};
use crate::error::FaultKind;
use crate::program::{BarrierKind, Operation, Slot};

#[derive(Clone, Copy, Debug)]
struct Barrier {
    /// Threads that wait, and threads that came and went on.
    arrived: u32,
    /// How many must come, if an instruction said so; else all that live.
    expected: Option<u32>,
    /// Of the threads of reductions: how many hold.
    holding: u32,
    /// Warps with threads among them.
    warps: u32,
    all_hold: bool,
}

const EMPTY: Barrier = Barrier { arrived: 0, expected: None, holding: 0, warps: 0, all_hold: true };

#[derive(Debug)]
pub(super) struct Barriers([Barrier; 16]);

impl Default for Barriers {
    fn default() -> Self {
        Self([EMPTY; 16])
    }
}

impl Warp {
    /// `active` lanes come to a barrier. Returns the lanes that wait there.
    pub(super) fn arrive(
        &mut self,
        state: &mut State<'_>,
        active: u32,
        (id, threads): (Slot, Option<Slot>),
        kind: BarrierKind,
    ) -> Result<u32, Box<Stop>> {
        let leader = active.trailing_zeros() as usize;
        let id = self.rows[id as usize][leader] as u32;
        let threads = threads.map(|slot| self.rows[slot as usize][leader] as u32);
        let fault = |cause: String| self.stop(leader, FaultKind::Collective(cause));
        let Some(barrier) = state.barriers.0.get_mut(id as usize) else {
            return Err(fault(format!("barrier {id}: there are 16")));
        };
        if threads.is_some_and(|threads| threads == 0 || threads % 32 != 0) {
            return Err(fault(format!("a barrier of {threads:?} threads: not whole warps")));
        }
        barrier.arrived = barrier.arrived.saturating_add(active.count_ones());
        barrier.expected = threads.or(barrier.expected);
        barrier.warps |= 1 << (self.index % 32);
        let of = match kind {
            BarrierKind::Arrive => return Ok(0),
            BarrierKind::Wait => None,
            BarrierKind::Popcount { of, .. } | BarrierKind::Vote { of, .. } => Some(of),
        };
        if let Some(of) = of {
            let holding = self.holding(of) & active;
            barrier.holding += holding.count_ones();
            barrier.all_hold &= holding == active;
        }
        self.groups.push(Group { pc: self.pc, lanes: active, wait: Wait::Barrier { id } });
        Ok(active)
    }
}

/// Opens the barriers at which all that must come have come; `live` threads are left in the
/// block. Returns whether any opened.
pub(super) fn open(state: &mut State<'_>, warps: &mut [Warp], live: u32) -> bool {
    let mut opened = false;
    for id in 0..16_u32 {
        let barrier = state.barriers.0[id as usize];
        if barrier.arrived == 0 || barrier.arrived < barrier.expected.unwrap_or(live) {
            continue;
        }
        state.barriers.0[id as usize] = EMPTY;
        if let Some(races) = &mut state.races {
            races.meet(barrier.warps);
        }
        opened = true;
        for warp in &mut *warps {
            release(state, warp, id, barrier);
        }
    }
    opened
}

fn release(state: &State<'_>, warp: &mut Warp, id: u32, barrier: Barrier) {
    let code = &state.context.entry.program.code;
    for index in 0..warp.groups.len() {
        let Group { pc, lanes, wait: Wait::Barrier { id: at } } = warp.groups[index] else {
            continue;
        };
        if at != id {
            continue;
        }
        if let Operation::Barrier { kind, .. } = code[pc as usize].operation {
            match kind {
                BarrierKind::Popcount { to, .. } => {
                    warp.write(to, &[u64::from(barrier.holding); 32], lanes);
                }
                BarrierKind::Vote { to, all, .. } => {
                    let holds = if all { barrier.all_hold } else { barrier.holding > 0 };
                    warp.write_predicate(to, if holds { u32::MAX } else { 0 }, lanes);
                }
                BarrierKind::Wait | BarrierKind::Arrive => {}
            }
        }
        warp.groups[index] = Group { pc: pc + 1, lanes, wait: Wait::Nothing };
    }
}

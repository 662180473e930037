//! A warp: 32 lanes that run together as long as they agree on where.
//!
//! Lanes that branch differently become groups, each with a place in the program. The group with
//! the lowest place runs until it comes to the place of another, and both go on as one. Compilers
//! lay the end of an `if` and the exit of a loop behind their bodies, so groups meet where a GPU
//! would make them meet; where code is laid out otherwise they meet later, which is slower but
//! as legal. What needs certain lanes together (`.sync`) parks those who come first.

use super::block::State;
use super::copies::Copies;
use super::special::special_value;
use super::{Context, copies::lanes};
use crate::error::FaultKind;
use crate::numeric::lane::{LANES, Row};
use crate::program::{Address, Instruction, PredicateSlot, Slot, Truth};
use crate::types::Space;

/// What registers hold that nothing was written to: a NaN in every float type.
const POISON: u64 = 0x7FFF_DEAD_7FFF_DEAD;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Nothing,
    /// For all lanes of `members` that live; at a barrier of the warp, wherever they are.
    Members {
        members: u32,
        is_barrier: bool,
    },
    /// At a barrier of the block.
    Barrier {
        id: u32,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) pc: u32,
    pub(super) lanes: u32,
    pub(super) wait: Wait,
}

/// A fault, where in the program and in which lane.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) kind: FaultKind,
    pub(super) pc: u32,
    pub(super) lane: u32,
}

#[derive(Debug)]
pub(super) struct Warp {
    pub(super) index: u32,
    pub(super) rows: Vec<Row>,
    pub(super) predicates: Vec<u32>,
    /// The carry of `add.cc`, a lane each.
    pub(super) carry: u32,
    /// None of them empty, no lane in two.
    pub(super) groups: Vec<Group>,
    /// Lanes that exist and have not ended.
    pub(super) live: u32,
    pub(super) local: Vec<u8>,
    pub(super) copies: Copies,
    /// Of the instruction at hand.
    pub(super) pc: u32,
    pub(super) executed: u64,
}

/// What becomes of a group after an instruction.
pub(super) enum Next {
    /// Goes on behind it.
    On,
    /// These lanes were parked, left, or sent elsewhere; the others go on.
    Without(u32),
    /// All of them go to another place.
    Jump(u32),
}

impl Warp {
    pub(super) fn new(context: &Context<'_>, index: u32) -> Self {
        let program = &context.entry.program;
        Self {
            index,
            rows: vec![[POISON; LANES]; program.rows as usize],
            predicates: vec![0; program.predicates as usize],
            carry: 0,
            groups: Vec::new(),
            live: 0,
            local: Vec::new(),
            copies: Copies::default(),
            pc: 0,
            executed: 0,
        }
    }

    /// Begins the program for the block at `block`.
    pub(super) fn start(&mut self, context: &Context<'_>, block: [u32; 3]) {
        let program = &context.entry.program;
        self.rows.fill([POISON; LANES]);
        self.predicates.fill(0);
        self.predicates[crate::program::ALWAYS as usize] = u32::MAX;
        for (slot, bits) in &program.immediates {
            self.rows[*slot as usize] = [*bits; LANES];
        }
        for (slot, special) in &program.specials {
            self.rows[*slot as usize] = std::array::from_fn(|lane| {
                u64::from(special_value(*special, context, block, self.index, lane as u32))
            });
        }
        let threads = (context.threads - self.index * LANES as u32).min(LANES as u32);
        self.live = u32::MAX >> (LANES as u32 - threads);
        self.groups.clear();
        self.groups.push(Group { pc: 0, lanes: self.live, wait: Wait::Nothing });
        self.local.clear();
        self.local.resize(program.local_bytes as usize * LANES, crate::POISON_BYTE);
        self.copies.clear();
        self.executed = 0;
    }

    pub(super) fn is_live(&self) -> bool {
        self.live != 0
    }

    pub(super) fn live_threads(&self) -> u32 {
        self.live.count_ones()
    }

    pub(super) fn stop(&self, lane: usize, kind: FaultKind) -> Box<Stop> {
        Box::new(Stop { kind, pc: self.pc, lane: lane as u32 })
    }

    /// A fault of what the first group waits for.
    pub(super) fn stop_waiting(&self, kind: FaultKind) -> Stop {
        let (pc, lane) =
            self.groups.first().map_or((0, 0), |group| (group.pc, group.lanes.trailing_zeros()));
        Stop { kind, pc, lane }
    }

    /// In words, what the groups of this warp wait for.
    pub(super) fn waiting(&self, code: &[Instruction]) -> Vec<String> {
        let tell = |group: &Group| {
            let Group { pc, lanes, wait } = group;
            let line = code.get(*pc as usize).map_or(0, |one| one.line);
            let what = match wait {
                Wait::Barrier { id } => format!("at barrier {id}"),
                Wait::Members { members, .. } => format!("for lanes {members:#x}"),
                Wait::Nothing => "for nothing".into(),
            };
            format!("warp {}, lanes {lanes:#x}, line {line}: waits {what}", self.index)
        };
        self.groups.iter().map(tell).collect()
    }

    #[inline]
    pub(super) fn holding(&self, truth: Truth) -> u32 {
        self.predicates[truth.slot as usize] ^ truth.negated
    }

    #[inline]
    pub(super) fn address(&self, address: Address, lane: usize) -> u64 {
        self.rows[address.base as usize][lane].wrapping_add_signed(address.offset)
    }

    #[inline]
    pub(super) fn write(&mut self, d: Slot, row: &Row, active: u32) {
        let to = &mut self.rows[d as usize];
        if active == u32::MAX {
            *to = *row;
            return;
        }
        for (lane, (to, from)) in to.iter_mut().zip(row).enumerate() {
            if active >> lane & 1 == 1 {
                *to = *from;
            }
        }
    }

    #[inline]
    pub(super) fn write_predicate(&mut self, d: PredicateSlot, mask: u32, active: u32) {
        let to = &mut self.predicates[d as usize];
        *to = *to & !active | mask & active;
    }

    /// Runs until every group waits or has ended, or for about `turn` instructions. Returns
    /// whether anything ran.
    pub(super) fn run(&mut self, state: &mut State<'_>, turn: u64) -> Result<bool, Box<Stop>> {
        let start = self.executed;
        while self.executed - start < turn {
            let Some(group) = self.schedule() else { break };
            self.run_group(state, group, start + turn)?;
        }
        let ran = self.executed - start;
        state.stats.warp_instructions += ran;
        if self.executed > state.context.launch.limits.warp_instructions_max {
            let limit = state.context.launch.limits.warp_instructions_max;
            return Err(self.stop(
                self.live.trailing_zeros().min(31) as usize,
                FaultKind::InstructionLimit(limit),
            ));
        }
        Ok(ran > 0)
    }

    /// Takes the group that is furthest behind, with those that wait at the same place.
    fn schedule(&mut self) -> Option<Group> {
        if let [Group { wait: Wait::Nothing, .. }] = self.groups[..] {
            return self.groups.pop();
        }
        if !self.groups.iter().any(|group| group.wait == Wait::Nothing) {
            self.unpark();
        }
        let ready = self.groups.iter().filter(|group| group.wait == Wait::Nothing);
        let mut next = *ready.min_by_key(|group| group.pc)?;
        next.lanes = 0;
        self.groups.retain(|group| {
            let joins = group.pc == next.pc && !matches!(group.wait, Wait::Barrier { .. });
            next.lanes |= if joins { group.lanes } else { 0 };
            !joins
        });
        Some(next)
    }

    /// Parked lanes may have become complete: others have ended, or wait at a barrier of the warp
    /// in another place.
    fn unpark(&mut self) {
        for index in 0..self.groups.len() {
            let Wait::Members { members, is_barrier } = self.groups[index].wait else { continue };
            let mut there = self.groups[index].lanes;
            if is_barrier {
                let same = |group: &&Group| group.wait == Wait::Members { members, is_barrier };
                there = self.groups.iter().filter(same).fold(0, |all, group| all | group.lanes);
            }
            let needed = members & self.live;
            if there & needed != needed {
                continue;
            }
            for group in &mut self.groups {
                if group.lanes & there == 0 {
                    continue;
                }
                group.wait = Wait::Nothing;
                // A barrier in several places is behind those who met there.
                group.pc += u32::from(is_barrier);
            }
        }
    }

    fn run_group(
        &mut self,
        state: &mut State<'_>,
        mut group: Group,
        turn_end: u64,
    ) -> Result<(), Box<Stop>> {
        let code = state.context.entry.program.code.as_slice();
        let limit = state.context.launch.limits.warp_instructions_max;
        let others = self.groups.iter().map(|other| other.pc).filter(|pc| *pc > group.pc);
        let meeting = others.min().unwrap_or(u32::MAX);
        let mut per_lane = 0;
        while let Some(instruction) = code.get(group.pc as usize) {
            if group.pc == meeting {
                self.groups.push(group);
                break;
            }
            self.pc = group.pc;
            self.executed += 1;
            per_lane += u64::from(group.lanes.count_ones());
            let guard = self.predicates[instruction.guard as usize] ^ instruction.negated;
            let active = group.lanes & guard;
            group.pc += 1;
            if active == 0 {
                continue;
            }
            match self.execute(state, &instruction.operation, group.lanes, active)? {
                Next::On => continue,
                Next::Without(lanes) => group.lanes &= !lanes,
                Next::Jump(target) => group.pc = target,
            }
            if group.lanes == 0 {
                break;
            }
            if !self.groups.is_empty() || self.executed >= turn_end || self.executed > limit {
                self.groups.push(group);
                break;
            }
        }
        state.stats.lane_instructions += per_lane;
        Ok(())
    }

    /// Branches, ends: `lanes` are the group's, `active` those that the guard lets through.
    pub(super) fn branch(&mut self, target: u32, lanes: u32, active: u32) -> Next {
        if active == lanes {
            return Next::Jump(target);
        }
        self.groups.push(Group { pc: target, lanes: active, wait: Wait::Nothing });
        Next::Without(active)
    }

    pub(super) fn branch_table(
        &mut self,
        index: Slot,
        targets: &[u32],
        active: u32,
    ) -> Result<Next, Box<Stop>> {
        for lane in lanes(active) {
            let index = self.rows[index as usize][lane] as u32;
            let Some(target) = targets.get(index as usize) else {
                let cause = format!("branch {index} of a table of {}", targets.len());
                return Err(self.stop(lane, FaultKind::Collective(cause)));
            };
            let same = self
                .groups
                .iter_mut()
                .find(|group| group.pc == *target && group.wait == Wait::Nothing);
            match same {
                Some(group) => group.lanes |= 1 << lane,
                None => {
                    let wait = Wait::Nothing;
                    self.groups.push(Group { pc: *target, lanes: 1 << lane, wait });
                }
            }
        }
        Ok(Next::Without(active))
    }

    pub(super) fn exit(&mut self, active: u32) -> Next {
        self.live &= !active;
        Next::Without(active)
    }

    /// The sets among `active` whose lanes are all here and name each other as members. Others
    /// are parked, and returned as the second mask.
    pub(super) fn meet(
        &mut self,
        active: u32,
        members: Slot,
        is_barrier: bool,
    ) -> Result<(Vec<u32>, u32), Box<Stop>> {
        let (mut complete, mut parked, mut rest) = (Vec::new(), 0, active);
        while rest != 0 {
            let leader = rest.trailing_zeros() as usize;
            let row = &self.rows[members as usize];
            let mask = row[leader] as u32;
            let same = lanes(rest)
                .filter(|lane| row[*lane] as u32 == mask)
                .fold(0, |all, lane| all | 1 << lane);
            if same & !mask != 0 {
                let lane = (same & !mask).trailing_zeros() as usize;
                let cause = format!("lane {lane} is not in its own member mask {mask:#x}");
                return Err(self.stop(lane, FaultKind::Collective(cause)));
            }
            if mask & self.live & !same == 0 {
                complete.push(same);
            } else {
                let wait = Wait::Members { members: mask, is_barrier };
                self.groups.push(Group { pc: self.pc, lanes: same, wait });
                parked |= same;
            }
            rest &= !same;
        }
        Ok((complete, parked))
    }
}

/// The space and the address within it.
#[inline]
pub(super) fn resolve(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    let space = Space::of(address);
    (space, address.wrapping_sub(space.window()))
}

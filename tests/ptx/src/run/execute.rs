//! One instruction for the lanes of a group.

use super::block::State;
use super::copies::lanes;
use super::warp::{Next, Stop, Warp};
use crate::error::FaultKind;
use crate::numeric::lane::{LANES, Lane, Row};
use crate::program::{BinaryRow, CarryForm, ClockKind, Operation, Slot};
use crate::types::Space;
use std::time::{SystemTime, UNIX_EPOCH};

impl Warp {
    #[inline]
    pub(super) fn execute(
        &mut self,
        state: &mut State<'_>,
        operation: &Operation,
        group: u32,
        active: u32,
    ) -> Result<Next, Box<Stop>> {
        let mut out: Row = [0; LANES];
        let row = |slot: Slot| &self.rows[slot as usize];
        let d = match operation {
            Operation::Binary { function, d, a, b } => {
                function(&mut out, row(*a), row(*b));
                *d
            }
            Operation::Ternary { function, d, a, b, c, extra } => {
                function(&mut out, row(*a), row(*b), row(*c), *extra);
                *d
            }
            Operation::Unary { function, d, a } => {
                function(&mut out, row(*a));
                *d
            }
            Operation::Move { d, a } => {
                out = *row(*a);
                *d
            }
            Operation::Select { d, a, b, by } => {
                let mask = self.holding(*by);
                let (a, b) = (row(*a), row(*b));
                for lane in 0..LANES {
                    out[lane] = if mask >> lane & 1 == 1 { a[lane] } else { b[lane] };
                }
                *d
            }
            Operation::Compare { function, d: [p, q], a, b, with: (combine, truth) } => {
                let [holds, other] = function(row(*a), row(*b));
                let with = self.holding(*truth);
                self.write_predicate(*p, combine.apply(holds, with), active);
                self.write_predicate(*q, combine.apply(other, with), active);
                return Ok(Next::On);
            }
            Operation::Load { access, d } => {
                self.load(state, access, d, active)?;
                return Ok(Next::On);
            }
            Operation::Store { access, slots } => {
                self.store(state, access, slots, active)?;
                return Ok(Next::On);
            }
            Operation::Branch { target } => return Ok(self.branch(*target, group, active)),
            other => return self.execute_rare(state, other, active),
        };
        self.write(d, &out, active);
        Ok(Next::On)
    }

    fn execute_rare(
        &mut self,
        state: &mut State<'_>,
        operation: &Operation,
        active: u32,
    ) -> Result<Next, Box<Stop>> {
        match operation {
            Operation::Logic { combine, d, a, b } => {
                let mask = combine.apply(self.holding(*a), self.holding(*b));
                self.write_predicate(*d, mask, active);
            }
            Operation::Set { function, d, a, b, with: (combine, truth), bits } => {
                let masks = function(&self.rows[*a as usize], &self.rows[*b as usize]);
                let with = self.holding(*truth);
                let masks = masks.map(|mask| combine.apply(mask, with));
                let out: Row = std::array::from_fn(|lane| {
                    let part = |index: usize| bits[index] * u64::from(masks[index] >> lane & 1);
                    part(0) | part(1)
                });
                self.write(*d, &out, active);
            }
            Operation::Divide { function, width, d, a, b } => {
                self.divide(*function, *width, [*d, *a, *b], active)?;
            }
            Operation::Carry { form, wide, reads, writes, d, slots } => {
                self.carry(*form, *wide, (*reads, *writes), *d, slots, active);
            }
            Operation::Pack { d, sources, bits } => {
                let mut out = [0; LANES];
                for (part, source) in sources.iter().enumerate() {
                    for (out, value) in out.iter_mut().zip(&self.rows[*source as usize]) {
                        *out |= (value & ((1 << bits) - 1)) << (part as u32 * bits);
                    }
                }
                self.write(*d, &out, active);
            }
            Operation::Unpack { slots, a, bits } => {
                let whole = self.rows[*a as usize];
                for (part, slot) in slots.iter().enumerate() {
                    let out = whole.map(|value| value >> (part as u32 * bits) & ((1 << bits) - 1));
                    self.write(*slot, &out, active);
                }
            }
            Operation::IsSpace { d, a, space } => {
                let mask = self.rows[*a as usize]
                    .iter()
                    .enumerate()
                    .fold(0, |mask, (lane, a)| mask | u32::from(Space::of(*a) == *space) << lane);
                self.write_predicate(*d, mask, active);
            }
            Operation::Clock { d, kind } => {
                let value = match kind {
                    ClockKind::Cycles => self.executed,
                    ClockKind::CyclesHigh => self.executed >> 32,
                    ClockKind::Nanoseconds => SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |since| since.as_nanos() as u64),
                };
                self.write(*d, &[value; LANES], active);
            }
            Operation::ActiveMask { d } => self.write(*d, &[u64::from(active); LANES], active),
            Operation::Atomic(atomic) => self.atomic(state, atomic, active)?,
            Operation::CopyAsync(copy) => self.copy_async(state, copy, active)?,
            Operation::CopyCommit => self.copies.commit(active),
            Operation::CopyWait { groups_left } => self.copy_wait(state, *groups_left, active)?,
            Operation::Barrier { id, threads, kind } => {
                return Ok(Next::Without(self.arrive(state, active, (*id, *threads), *kind)?));
            }
            Operation::BranchTable { index, targets } => {
                return self.branch_table(*index, targets, active);
            }
            Operation::Exit => return Ok(self.exit(active)),
            Operation::Trap => {
                return Err(self.stop(active.trailing_zeros() as usize, FaultKind::Trap));
            }
            other => return self.collective(state, other, active),
        }
        Ok(Next::On)
    }

    fn divide(
        &mut self,
        function: BinaryRow,
        width: u32,
        [d, a, b]: [Slot; 3],
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let divisors = &self.rows[b as usize];
        let zero = lanes(active).find(|lane| divisors[*lane] << (64 - width) == 0);
        if let Some(lane) = zero {
            return Err(self.stop(lane, FaultKind::DivisionByZero));
        }
        let mut out = [0; LANES];
        function(&mut out, &self.rows[a as usize], divisors);
        self.write(d, &out, active);
        Ok(())
    }

    fn carry(
        &mut self,
        form: CarryForm,
        wide: bool,
        (reads, writes): (bool, bool),
        d: Slot,
        slots: &[Slot; 3],
        active: u32,
    ) {
        let bits = if wide { 64 } else { 32 };
        let mask = (1_u128 << bits) - 1;
        let mut carries = 0;
        let out: Row = std::array::from_fn(|lane| {
            let [a, b, c] = slots.map(|slot| u128::from(self.rows[slot as usize][lane]) & mask);
            let carry = if reads { u128::from(self.carry >> lane & 1) } else { 0 };
            let sum = match form {
                CarryForm::Add => a + b + carry,
                // A borrow is a carry out of 2^bits + a - b that is missing.
                CarryForm::Subtract => a.wrapping_sub(b).wrapping_sub(carry) & (mask << 1 | 1),
                CarryForm::MultiplyAdd { high, is_signed } => {
                    let product = if is_signed {
                        let signed = |value: u128| {
                            i128::from(if wide {
                                i64::get(value as u64)
                            } else {
                                i64::from(i32::get(value as u64))
                            })
                        };
                        (signed(a) * signed(b)).cast_unsigned()
                    } else {
                        a * b
                    };
                    (if high { product >> bits } else { product } & mask) + c + carry
                }
            };
            carries |= u32::from(sum >> bits & 1 == 1) << lane;
            (sum & mask) as u64
        });
        self.write(d, &out, active);
        if writes {
            self.carry = self.carry & !active | carries & active;
        }
    }
}

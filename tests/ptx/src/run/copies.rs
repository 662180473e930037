//! `cp.async`: bytes on their way into shared memory, which they reach when they are waited for.

use super::block::State;
use super::races::Kind;
use super::warp::{Stop, Warp};
use crate::error::FaultKind;
use crate::program::CopyAsync;

#[derive(Clone, Copy, Debug)]
struct Pending {
    lane: usize,
    /// Number of the group among those of its lane.
    group: u32,
    to: usize,
    bytes: usize,
    data: [u8; 16],
}

/// The copies of a warp that nobody has waited for.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane has committed.
    committed: [u32; 32],
}

impl Copies {
    pub(super) fn clear(&mut self) {
        self.pending.clear();
        self.committed = [0; 32];
    }

    pub(super) fn commit(&mut self, active: u32) {
        for (lane, committed) in self.committed.iter_mut().enumerate() {
            *committed += active >> lane & 1;
        }
    }
}

impl Warp {
    pub(super) fn copy_async(
        &mut self,
        state: &mut State<'_>,
        copy: &CopyAsync,
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let ignored = copy.ignores_source.map_or(0, |truth| self.holding(truth));
        for lane in lanes(active) {
            let from = self.address(copy.from, lane);
            let to = self.shared_address(copy.to, copy.is_generic, lane)?;
            let bytes = copy.bytes;
            self.check_shared(state, to, bytes, "asynchronous copy", lane)?;
            self.check_aligned(from, bytes, "asynchronous copy", lane)?;
            let mut wanted = copy
                .source_bytes
                .map_or(bytes, |slot| (self.rows[slot as usize][lane] as u32).min(bytes));
            if ignored >> lane & 1 == 1 {
                wanted = 0;
            }
            let mut data = [0; 16];
            if wanted > 0 {
                let region = state
                    .region(self.pc, from, wanted, "asynchronous copy")
                    .map_err(|kind| self.stop(lane, kind))?;
                for (index, byte) in data.iter_mut().enumerate().take(wanted as usize) {
                    *byte = region.read(from - region.start + index as u64, 1) as u8;
                }
            }
            self.copies.pending.push(Pending {
                lane,
                group: self.copies.committed[lane],
                to: to as usize,
                bytes: bytes as usize,
                data,
            });
        }
        Ok(())
    }

    /// Lands what is older than the last `groups_left` groups, or everything.
    pub(super) fn copy_wait(
        &mut self,
        state: &mut State<'_>,
        groups_left: Option<u32>,
        active: u32,
    ) -> Result<(), Box<Stop>> {
        let pending = std::mem::take(&mut self.copies.pending);
        for copy in pending {
            let committed = self.copies.committed[copy.lane];
            let lands = groups_left.is_none_or(|left| copy.group.saturating_add(left) < committed);
            if active >> copy.lane & 1 == 0 || !lands {
                self.copies.pending.push(copy);
                continue;
            }
            self.note(state, Kind::Write, copy.lane, copy.to as u64, copy.bytes as u32)?;
            state.shared[copy.to..copy.to + copy.bytes].copy_from_slice(&copy.data[..copy.bytes]);
        }
        Ok(())
    }

    /// Tells the race detector, if there is one.
    #[inline]
    pub(super) fn note(
        &self,
        state: &mut State<'_>,
        kind: Kind,
        lane: usize,
        address: u64,
        bytes: u32,
    ) -> Result<(), Box<Stop>> {
        let Some(races) = &mut state.races else { return Ok(()) };
        let line = state.context.entry.program.code[self.pc as usize].line;
        match races.touch(kind, self.index, line, address as usize, bytes as usize) {
            None => Ok(()),
            Some(detail) => Err(self.stop(lane, FaultKind::Race { address, detail })),
        }
    }
}

/// The lanes of a mask, in order.
pub(super) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}

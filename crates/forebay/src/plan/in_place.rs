//! Reads that land where their tensors live, so that nothing is copied.
//!
//! A direct read wants file offset, memory address and length aligned alike. So the memory is laid
//! out as the file is: each run of neighbouring tensors gets a range of the arena that is congruent
//! to the file modulo the alignment, rounded outward, and is read into as a whole. A block that is
//! also wanted for another backend is read once, for that one, and the bytes of this run are copied
//! out of its slot.
//!
//! ```text
//!   file    │ other tensor ▒▒│▒ this run ██│███████████│███▒        │
//!   read    ├── by a slot ───┼── into place ───────────┴────────────┤
//!                             └ head: copied out of the other's slot
//! ```

use super::reads::{Wanted, extents};
use forebay_device::ArenaLayout;
use forebay_mem::Alignment;
use std::ops::Range;

/// Where the runs of one file lie in the arena.
pub(crate) struct Runs {
    /// File range and the offset of its first byte in the arena, in file order.
    runs: Vec<(Range<u64>, u64)>,
}

impl Runs {
    /// Finds room for whole tensors behind what the arena has. `wanted` is in file order, disjoint,
    /// and its tensors have their (empty) ranges in the layout already.
    pub(crate) fn lay_out(
        wanted: &[Wanted],
        rounding: Alignment,
        layout: &mut ArenaLayout,
    ) -> Self {
        let mut runs = Vec::new();
        for extent in extents(wanted, rounding, 0) {
            // Past the address space, the arena will be refused with its size.
            let base = rounding.up(layout.bytes).unwrap_or(layout.bytes);
            layout.bytes = base.saturating_add(extent.end - extent.start);
            runs.push((extent, base));
        }
        let runs = Self { runs };
        for piece in wanted {
            let start = runs.arena_offset(piece.range.start);
            layout.tensors[piece.tensor] = start..start + (piece.range.end - piece.range.start);
        }
        runs
    }

    /// Where the byte at `offset` of the file lies in the arena.
    pub(crate) fn arena_offset(&self, offset: u64) -> u64 {
        let after = self.runs.partition_point(|(run, _)| run.start <= offset);
        let (run, base) = &self.runs[after - 1];
        base + (offset - run.start)
    }

    /// Parts `wanted`, which is in file order and disjoint, into what is read into place and what
    /// others' reads bring: the bytes in blocks that a read for one of `others` touches too.
    pub(crate) fn part(
        wanted: &[Wanted],
        others: &[Wanted],
        rounding: Alignment,
    ) -> (Vec<Wanted>, Vec<Wanted>) {
        let shared = extents(others, rounding, 0);
        let (mut own, mut bounced) = (Vec::new(), Vec::new());
        for piece in wanted {
            let part = |range: Range<u64>| {
                let tensor_offset = piece.tensor_offset + (range.start - piece.range.start);
                Wanted { range, tensor_offset, ..piece.clone() }
            };
            let mut at = piece.range.start;
            let first = shared.partition_point(|block| block.end <= at);
            for block in shared[first..].iter().take_while(|block| block.start < piece.range.end) {
                let inside = block.start.max(at)..block.end.min(piece.range.end);
                own.extend((at < inside.start).then(|| part(at..inside.start)));
                at = inside.end;
                bounced.push(part(inside));
            }
            own.extend((at < piece.range.end).then(|| part(at..piece.range.end)));
        }
        (own, bounced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(range: Range<u64>, tensor: usize) -> Wanted {
        Wanted { range, tensor_offset: 0, arena: 0, tensor }
    }

    fn layout_of(tensors: usize) -> ArenaLayout {
        ArenaLayout { tensors: vec![0..0; tensors], bytes: 0 }
    }

    const BLOCK: Alignment = Alignment::FALLBACK;

    #[test]
    fn memory_is_congruent_to_the_file_and_runs_do_not_share_blocks() {
        let wanted = [piece(100..9000, 0), piece(9000..9100, 1), piece(50_000..60_000, 2)];
        let mut layout = layout_of(3);
        layout.bytes = 10;
        let runs = Runs::lay_out(&wanted, BLOCK, &mut layout);
        assert_eq!(layout.tensors, [4196..13_096, 13_096..13_196, 17_232..27_232]);
        assert_eq!(layout.bytes, 28_672);
        assert_eq!(runs.arena_offset(50_000) % 4096, 50_000 % 4096);
    }

    #[test]
    fn a_block_that_another_read_touches_is_read_by_that_one() {
        let wanted = [piece(5000..9000, 0), piece(9000..9100, 1)];
        let (own, bounced) = Runs::part(&wanted, &[piece(0..5000, 0)], BLOCK);
        assert_eq!((bounced.len(), bounced[0].range.clone()), (1, 5000..8192));
        assert_eq!(own[0].range, 8192..9000);
        assert_eq!(own[0].tensor_offset, 3192);
        assert_eq!(own[1].range, 9000..9100);
        let (own, _) = Runs::part(&wanted, &[], BLOCK);
        assert_eq!(own[0].range, 5000..9000);
        let (own, bounced) = Runs::part(&wanted[..1], &[piece(6000..6100, 0)], BLOCK);
        assert_eq!((own[0].range.clone(), bounced[0].range.clone()), (8192..9000, 5000..8192));
    }

    proptest! {
        /// Whatever lies around a run, each of its bytes is brought exactly once.
        #[test]
        fn parts_make_the_whole(
            lengths in prop::collection::vec((0_u64..9000, 1_u64..20_000, any::<bool>()), 1..20),
        ) {
            let (mut wanted, mut others, mut at) = (Vec::new(), Vec::new(), 0);
            for (gap, bytes, own) in lengths {
                at += gap;
                let list = if own { &mut wanted } else { &mut others };
                list.push(piece(at..at + bytes, list.len()));
                at += bytes;
            }
            let (own, bounced) = Runs::part(&wanted, &others, BLOCK);
            let mut parts: Vec<_> = own.iter().chain(&bounced).collect();
            parts.sort_by_key(|part| (part.tensor, part.tensor_offset));
            let mut filled = vec![0; wanted.len()];
            for part in parts {
                prop_assert_eq!(part.tensor_offset, filled[part.tensor]);
                prop_assert_eq!(part.range.start, wanted[part.tensor].range.start + filled[part.tensor]);
                filled[part.tensor] += part.range.end - part.range.start;
            }
            for (piece, filled) in wanted.iter().zip(filled) {
                prop_assert_eq!(piece.range.end - piece.range.start, filled);
            }
        }
    }
}

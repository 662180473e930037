//! Bytes from the file's order to the interleaved one, and back.
//!
//! [`walk`] cuts a piece of the file into what can be moved at once, and a [`Mover`] moves it.

use super::{GROUP_ROWS, Interleaved, LINE_BYTES, LINES_OFFSET, PART_BYTES, SCALE_BYTES};
use std::ops::Range;

/// Some whole blocks of neighbouring rows of a group.
pub(super) struct Blocks {
    /// Which of the group's rows.
    lanes: Range<usize>,
    /// Where in the piece the first row's first block is.
    piece_offset: usize,
    /// From one row's block to the next row's.
    row_bytes: usize,
    /// Where in the interleaved tensor the first block of the group's rows is.
    packed_offset: usize,
    /// Blocks of each row.
    count: usize,
}

/// Moves bytes between a piece of the file's bytes and the interleaved tensor.
pub(super) trait Mover {
    /// Moves neighbours that stay neighbours.
    fn bytes(&mut self, piece_offset: usize, packed_offset: usize, count: usize);

    /// Moves whole blocks of `BYTES` bytes.
    fn blocks<const BYTES: usize>(&mut self, blocks: &Blocks);
}

/// Moves a range of the file's bytes, which begins where the mover's piece does.
pub(super) fn walk(layout: &Interleaved, range: Range<usize>, mover: &mut impl Mover) {
    let woven_end = range.end.min(layout.woven_bytes());
    let mut walk = Walk { layout, piece_start: range.start, mover };
    let mut at = range.start;
    while at < woven_end {
        let row_end = at - at % layout.row_bytes + layout.row_bytes;
        let group_end = at - at % layout.group_bytes() + layout.group_bytes();
        let end = woven_end.min(group_end);
        let whole_rows = (end - at) / layout.row_bytes;
        if at.is_multiple_of(layout.row_bytes) && whole_rows > 0 {
            walk.rows(at, whole_rows);
            at += whole_rows * layout.row_bytes;
        } else {
            let end = woven_end.min(row_end);
            walk.part_of_row(at..end);
            at = end;
        }
    }
    if range.end > at {
        walk.mover.bytes(at - range.start, at, range.end - at);
    }
}

struct Walk<'a, M> {
    layout: &'a Interleaved,
    piece_start: usize,
    mover: &'a mut M,
}

impl<M: Mover> Walk<'_, M> {
    /// Moves whole rows of one group.
    fn rows(&mut self, at: usize, count: usize) {
        self.blocks(at, count, self.layout.row_bytes / self.layout.block_bytes);
    }

    /// Moves a part of one row.
    fn part_of_row(&mut self, range: Range<usize>) {
        let block_bytes = self.layout.block_bytes;
        // Rows are whole blocks, so blocks are counted from the tensor's first byte.
        let blocks =
            range.start.next_multiple_of(block_bytes)..range.end / block_bytes * block_bytes;
        if blocks.start >= blocks.end {
            // One block's inside, or two blocks' ends.
            return self.singly(range);
        }
        self.singly(range.start..blocks.start);
        self.blocks(blocks.start, 1, blocks.len() / block_bytes);
        self.singly(blocks.end..range.end);
    }

    /// Moves `count` whole blocks of each of `rows` rows.
    fn blocks(&mut self, at: usize, rows: usize, count: usize) {
        let layout = self.layout;
        let lane = at % layout.group_bytes() / layout.row_bytes;
        let blocks = Blocks {
            lanes: lane..lane + rows,
            piece_offset: at - self.piece_start,
            row_bytes: layout.row_bytes,
            packed_offset: layout.start_of(at),
            count,
        };
        if layout.block_bytes == 18 {
            self.mover.blocks::<18>(&blocks);
        } else {
            self.mover.blocks::<34>(&blocks);
        }
    }

    /// Moves a few bytes, one by one.
    fn singly(&mut self, range: Range<usize>) {
        let layout = self.layout;
        for at in range {
            let lane = at % layout.group_bytes() / layout.row_bytes;
            let in_block = at % layout.block_bytes;
            let offset = match in_block.checked_sub(SCALE_BYTES) {
                None => lane * SCALE_BYTES + in_block,
                Some(q) => {
                    let line = LINES_OFFSET + q / PART_BYTES * LINE_BYTES;
                    line + lane * PART_BYTES + q % PART_BYTES
                }
            };
            self.mover.bytes(at - self.piece_start, layout.start_of(at) + offset, 1);
        }
    }
}

/// From the file's order to the interleaved one.
pub(super) struct Scatter<'a> {
    pub(super) piece: &'a [u8],
    pub(super) packed: &'a mut [u8],
}

impl Mover for Scatter<'_> {
    fn bytes(&mut self, piece_offset: usize, packed_offset: usize, count: usize) {
        let piece = &self.piece[piece_offset..][..count];
        self.packed[packed_offset..][..count].copy_from_slice(piece);
    }

    fn blocks<const BYTES: usize>(&mut self, blocks: &Blocks) {
        let packed = &mut self.packed[blocks.packed_offset..][..blocks.count * GROUP_ROWS * BYTES];
        for (block, packed) in packed.chunks_exact_mut(GROUP_ROWS * BYTES).enumerate() {
            let (scales, lines) = packed.split_at_mut(LINES_OFFSET);
            let (scales, _) = scales.as_chunks_mut::<SCALE_BYTES>();
            let (lines, _) = lines.as_chunks_mut::<LINE_BYTES>();
            let mut piece = &self.piece[blocks.piece_offset + block * BYTES..];
            for lane in blocks.lanes.clone() {
                let (scale, parts) = piece[..BYTES].split_at(SCALE_BYTES);
                scales[lane].copy_from_slice(scale);
                for (line, part) in lines.iter_mut().zip(parts.as_chunks().0) {
                    line.as_chunks_mut::<PART_BYTES>().0[lane] = *part;
                }
                piece = piece.get(blocks.row_bytes..).unwrap_or(&[]);
            }
        }
    }
}

/// From the interleaved order to the file's.
pub(super) struct Gather<'a> {
    pub(super) piece: &'a mut [u8],
    pub(super) packed: &'a [u8],
}

impl Mover for Gather<'_> {
    fn bytes(&mut self, piece_offset: usize, packed_offset: usize, count: usize) {
        let packed = &self.packed[packed_offset..][..count];
        self.piece[piece_offset..][..count].copy_from_slice(packed);
    }

    fn blocks<const BYTES: usize>(&mut self, blocks: &Blocks) {
        let packed = &self.packed[blocks.packed_offset..][..blocks.count * GROUP_ROWS * BYTES];
        for (block, packed) in packed.chunks_exact(GROUP_ROWS * BYTES).enumerate() {
            let (scales, lines) = packed.split_at(LINES_OFFSET);
            let (scales, _) = scales.as_chunks::<SCALE_BYTES>();
            let (lines, _) = lines.as_chunks::<LINE_BYTES>();
            let mut piece = &mut self.piece[blocks.piece_offset + block * BYTES..];
            for lane in blocks.lanes.clone() {
                let (scale, parts) = piece[..BYTES].split_at_mut(SCALE_BYTES);
                scale.copy_from_slice(&scales[lane]);
                for (line, part) in lines.iter().zip(parts.as_chunks_mut().0) {
                    *part = line.as_chunks::<PART_BYTES>().0[lane];
                }
                piece = piece.get_mut(blocks.row_bytes..).unwrap_or(&mut []);
            }
        }
    }
}

//! Products of interleaved weights.
//!
//! A lane is a row. Of a block of sixteen rows, each line of 64 bytes is two registers of eight
//! lanes, each lane four bytes of its row. Every element in turn is moved to the upper end of its
//! lane, made a float there, and multiplied with the input's element in all lanes:
//!
//! ```text
//!  Q4_0, a lane:   │ q3 │ q2 │ q1 │ q0 │   each byte: element i below, element 16 + i above
//!                    ◀──── shift left, keep the uppermost four bits: a signed number × 2²⁸
//!  Q8_0, a lane:   │ q3 │ q2 │ q1 │ q0 │   shift left, keep the uppermost eight bits: × 2²⁴
//! ```
//!
//! (Shifting down again would cost an instruction that few of a processor's ports can do; the
//! scale makes up for the power of two instead, as in [`direct`](crate::direct).) The sums of a
//! block are scaled by sixteen scales at once and added to the rows' sums.

#![expect(clippy::needless_range_loop, reason = "indices name inputs and registers of arrays")]

use super::{GROUP_ROWS, Interleaved, LINE_BYTES, LINES_OFFSET, PART_BYTES};
use crate::aligned::Aligned;
use crate::dense::Inputs;
use crate::direct::{BLOCK, BYTE_SHIFT, NIBBLE_SHIFT, power_of_two};
use crate::error::{ComputeError, Operand};
use crate::machine::{Kernel, LANES, Machine, dispatch};
use crate::product::{Tiling, tile_outputs};
use crate::shape::check_length;
use forebay_format::Dtype;
use rayon::prelude::*;

/// Weights that a task has at least, if there are as many.
const TASK_BYTES: usize = 64 << 10;
/// Registers that sixteen rows take.
const REGISTERS: usize = GROUP_ROWS / LANES;

/// Multiplies interleaved weights with `batch` inputs: `y[b][m] = Σ w[m][k] · x[b][k]`.
///
/// As [`matmul`](crate::matmul), but for the layout: terms are added in another order, so results
/// differ by roundings. The number of threads never shows in them; the batch may, since fewer
/// inputs are summed in more parts.
///
/// # Errors
/// [`ComputeError::Length`] if the operands don't fit together; `y` is untouched.
pub fn matmul_interleaved(
    layout: &Interleaved,
    packed: &[u8],
    x: &[f32],
    batch: usize,
    y: &mut [f32],
) -> Result<(), ComputeError> {
    check_length(Operand::Packed, layout.bytes(), packed.len())?;
    layout.shape.check_vectors(layout.dtype, x, batch, y)?;
    if y.is_empty() {
        return Ok(());
    }
    let task_groups = TASK_BYTES.div_ceil(layout.group_bytes().max(1));
    let task_bytes = task_groups * layout.group_bytes();
    let tiling = Tiling::new(layout.dtype, layout.shape)?;
    let tiles = tile_outputs(y, layout.shape.rows, task_groups * GROUP_ROWS);
    tiles.into_par_iter().enumerate().for_each(|(task, mut y)| {
        let rows = y[0].len();
        let groups = rows / GROUP_ROWS;
        let packed = &packed[task * task_bytes..][..rows * layout.row_bytes];
        let (woven, rest) = packed.split_at(groups * layout.group_bytes());
        let columns = layout.shape.columns;
        if layout.dtype == Dtype::Q4_0 {
            let packed = woven.as_chunks::<{ GROUP_ROWS * 18 }>().0;
            dispatch(Groups { block: Q4_0, packed, x, columns, y: &mut y });
        } else {
            let packed = woven.as_chunks::<{ GROUP_ROWS * 34 }>().0;
            dispatch(Groups { block: Q8_0, packed, x, columns, y: &mut y });
        }
        if !rest.is_empty() {
            let mut y: Vec<&mut [f32]> =
                y.iter_mut().map(|y| &mut y[groups * GROUP_ROWS..]).collect();
            let x = Inputs::new(x, columns, batch);
            tiling.multiply(rest, &x, &mut y, &mut Aligned::default());
        }
    });
    Ok(())
}

/// Sums of sixteen rows for `B` inputs.
type Sums<M, const B: usize> = [[<M as Machine>::Floats; REGISTERS]; B];

/// How the lines of a block type are multiplied.
///
/// `BYTES` are those of a block of sixteen rows.
trait WovenBlock<const BYTES: usize>: Copy {
    /// Lines of a block. (Constants, so that the compiler sees where loops and slices end.)
    const LINES: usize = (BYTES - LINES_OFFSET) / LINE_BYTES;
    /// How far up in its lane an integer is read.
    const SHIFT: u32;

    /// Multiplies one line with the inputs of its elements. `C` sets of sums take turns.
    fn line<M: Machine, const B: usize, const C: usize>(
        self,
        machine: M,
        line: &[u8; LINE_BYTES],
        x: [&[f32; BLOCK]; B],
        index: usize,
        sums: &mut [Sums<M, B>; C],
    );
}

#[derive(Clone, Copy)]
struct Q4_0;

impl WovenBlock<{ GROUP_ROWS * 18 }> for Q4_0 {
    const SHIFT: u32 = NIBBLE_SHIFT;

    #[inline(always)]
    fn line<M: Machine, const B: usize, const C: usize>(
        self,
        machine: M,
        line: &[u8; LINE_BYTES],
        x: [&[f32; BLOCK]; B],
        index: usize,
        sums: &mut [Sums<M, B>; C],
    ) {
        let mut words = load_line(machine, line);
        for register in 0..REGISTERS {
            // Takes eight off every half byte: what was 8 is 0, what was 7 is −1.
            words[register] = machine.xor(words[register], machine.splat_integer(0x8888_8888));
        }
        let mask = machine.splat_integer(0xf000_0000);
        let (lower, upper) = (PART_BYTES * index, 16 + PART_BYTES * index);
        element::<M, B, 28>(machine, words, mask, x, lower, &mut sums[0]);
        element::<M, B, 24>(machine, words, mask, x, upper, &mut sums[1 % C]);
        element::<M, B, 20>(machine, words, mask, x, lower + 1, &mut sums[2 % C]);
        element::<M, B, 16>(machine, words, mask, x, upper + 1, &mut sums[3 % C]);
        element::<M, B, 12>(machine, words, mask, x, lower + 2, &mut sums[4 % C]);
        element::<M, B, 8>(machine, words, mask, x, upper + 2, &mut sums[5 % C]);
        element::<M, B, 4>(machine, words, mask, x, lower + 3, &mut sums[6 % C]);
        element::<M, B, 0>(machine, words, mask, x, upper + 3, &mut sums[7 % C]);
    }
}

#[derive(Clone, Copy)]
struct Q8_0;

impl WovenBlock<{ GROUP_ROWS * 34 }> for Q8_0 {
    const SHIFT: u32 = BYTE_SHIFT;

    #[inline(always)]
    fn line<M: Machine, const B: usize, const C: usize>(
        self,
        machine: M,
        line: &[u8; LINE_BYTES],
        x: [&[f32; BLOCK]; B],
        index: usize,
        sums: &mut [Sums<M, B>; C],
    ) {
        let words = load_line(machine, line);
        let mask = machine.splat_integer(0xff00_0000);
        let first = PART_BYTES * index;
        element::<M, B, 24>(machine, words, mask, x, first, &mut sums[0]);
        element::<M, B, 16>(machine, words, mask, x, first + 1, &mut sums[1 % C]);
        element::<M, B, 8>(machine, words, mask, x, first + 2, &mut sums[2 % C]);
        element::<M, B, 0>(machine, words, mask, x, first + 3, &mut sums[3 % C]);
    }
}

#[inline(always)]
fn load_line<M: Machine>(machine: M, line: &[u8; LINE_BYTES]) -> [M::Integers; REGISTERS] {
    let (halves, _) = line.as_chunks();
    [machine.words(&halves[0]), machine.words(&halves[1])]
}

/// Multiplies one element of sixteen rows with each input's.
#[inline(always)]
fn element<M: Machine, const B: usize, const SHIFT: i32>(
    machine: M,
    words: [M::Integers; REGISTERS],
    mask: M::Integers,
    x: [&[f32; BLOCK]; B],
    index: usize,
    sums: &mut Sums<M, B>,
) {
    let mut weights = [machine.splat(0.0); REGISTERS];
    for register in 0..REGISTERS {
        let moved = machine.shift_left::<SHIFT>(words[register]);
        weights[register] = machine.convert(machine.and(moved, mask));
    }
    for b in 0..B {
        let x = machine.splat(x[b][index]);
        for register in 0..REGISTERS {
            sums[b][register] = machine.fused(weights[register], x, sums[b][register]);
        }
    }
}

/// Groups of sixteen rows, multiplied with every input.
struct Groups<'a, 'y, T, const BYTES: usize> {
    block: T,
    /// Blocks of sixteen rows, as many for each group as `columns` have.
    packed: &'a [[u8; BYTES]],
    x: &'a [f32],
    columns: usize,
    /// Outputs, a slice for each input.
    y: &'a mut [&'y mut [f32]],
}

impl<T: WovenBlock<BYTES>, const BYTES: usize> Kernel for Groups<'_, '_, T, BYTES> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(mut self, machine: M) {
        let blocks = self.columns / BLOCK;
        if blocks == 0 {
            return self.y.iter_mut().for_each(|y| y.fill(0.0));
        }
        let batch = self.y.len();
        if batch == 1 {
            return self.single(machine, blocks);
        }
        for (group, packed) in self.packed.chunks_exact(blocks).enumerate() {
            let whole = batch - batch % 4;
            for input in (0..whole).step_by(4) {
                self.groups::<M, 1, 4, 1>(machine, group, [packed], input);
            }
            // Few sums at once would wait for each other, so each is kept in parts.
            match batch - whole {
                1 => self.groups::<M, 1, 1, 3>(machine, group, [packed], whole),
                2 => self.groups::<M, 1, 2, 2>(machine, group, [packed], whole),
                3 => self.groups::<M, 1, 3, 1>(machine, group, [packed], whole),
                _ => {}
            }
        }
    }
}

impl<T: WovenBlock<BYTES>, const BYTES: usize> Groups<'_, '_, T, BYTES> {
    /// Multiplies with a single input, two groups at once: memory is read faster in two places.
    #[inline(always)]
    fn single<M: Machine>(&mut self, machine: M, blocks: usize) {
        let packed = self.packed;
        let pairs = packed.chunks_exact(2 * blocks);
        let last = pairs.remainder();
        for (pair, packed) in pairs.enumerate() {
            let (first, second) = packed.split_at(blocks);
            self.groups::<M, 2, 1, 3>(machine, 2 * pair, [first, second], 0);
        }
        if !last.is_empty() {
            self.groups::<M, 1, 1, 3>(machine, packed.len() / blocks - 1, [last], 0);
        }
    }

    /// Multiplies `G` groups, of which `first` is the first, with `B` inputs, of which `input` is.
    /// Each sum is kept in `C` parts.
    #[inline(always)]
    fn groups<M: Machine, const G: usize, const B: usize, const C: usize>(
        &mut self,
        machine: M,
        first: usize,
        packed: [&[[u8; BYTES]]; G],
        input: usize,
    ) {
        let blocks = packed[0].len();
        let mut inputs: [&[[f32; BLOCK]]; B] = [&[]; B];
        for b in 0..B {
            let (x, _) = self.x[(input + b) * self.columns..][..self.columns].as_chunks();
            inputs[b] = &x[..blocks];
        }
        let mut totals = [[[machine.splat(0.0); REGISTERS]; B]; G];
        for block in 0..blocks {
            let mut x = [&[0.0; BLOCK]; B];
            for b in 0..B {
                x[b] = &inputs[b][block];
            }
            for g in 0..G {
                self.block::<M, B, C>(machine, &packed[g][block], x, &mut totals[g]);
            }
        }
        for g in 0..G {
            for b in 0..B {
                let y = &mut self.y[input + b][(first + g) * GROUP_ROWS..][..GROUP_ROWS];
                let (y, _) = y.as_chunks_mut();
                for register in 0..REGISTERS {
                    y[register] = machine.store(totals[g][b][register]);
                }
            }
        }
    }

    /// Multiplies one block of sixteen rows, and adds what comes of it to the rows' sums.
    #[inline(always)]
    fn block<M: Machine, const B: usize, const C: usize>(
        &self,
        machine: M,
        packed: &[u8; BYTES],
        x: [&[f32; BLOCK]; B],
        totals: &mut Sums<M, B>,
    ) {
        let mut sums = [[[machine.splat(0.0); REGISTERS]; B]; C];
        let (lines, _) = packed[LINES_OFFSET..].as_chunks();
        for index in 0..T::LINES {
            self.block.line::<M, B, C>(machine, &lines[index], x, index, &mut sums);
        }
        let (scales, _) = packed[..LINES_OFFSET].as_chunks();
        for register in 0..REGISTERS {
            let scale = machine.halves(&scales[register]);
            let scale = machine.multiply(scale, machine.splat(power_of_two(T::SHIFT)));
            for b in 0..B {
                let mut sum = sums[0][b][register];
                for part in 1..C {
                    sum = machine.add(sum, sums[part][b][register]);
                }
                totals[b][register] = machine.fused(scale, sum, totals[b][register]);
            }
        }
    }
}

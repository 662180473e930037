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
use crate::dense::Inputs;
use crate::direct::{BLOCK, NIBBLE_UNIT};
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
            dispatch(Groups { block: Q4_0, packed: woven, x, columns, y: &mut y });
        } else {
            dispatch(Groups { block: Q8_0, packed: woven, x, columns, y: &mut y });
        }
        if !rest.is_empty() {
            let mut y: Vec<&mut [f32]> =
                y.iter_mut().map(|y| &mut y[groups * GROUP_ROWS..]).collect();
            let x = Inputs::new(x, columns, batch);
            tiling.multiply(rest, &x, &mut y, &mut Vec::new());
        }
    });
    Ok(())
}

/// Sums of sixteen rows for `B` inputs.
type Sums<M, const B: usize> = [[<M as Machine>::Floats; REGISTERS]; B];

/// How the lines of a block type are multiplied.
trait WovenBlock: Copy {
    /// The bytes of a block of sixteen rows.
    const GROUP_BYTES: usize;
    /// What scales are multiplied with to make up for the way integers are read.
    const UNIT: f32;

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

impl WovenBlock for Q4_0 {
    const GROUP_BYTES: usize = GROUP_ROWS * 18;
    const UNIT: f32 = NIBBLE_UNIT;

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
        element::<M, B, 20>(machine, words, mask, x, lower + 1, &mut sums[0]);
        element::<M, B, 16>(machine, words, mask, x, upper + 1, &mut sums[1 % C]);
        element::<M, B, 12>(machine, words, mask, x, lower + 2, &mut sums[0]);
        element::<M, B, 8>(machine, words, mask, x, upper + 2, &mut sums[1 % C]);
        element::<M, B, 4>(machine, words, mask, x, lower + 3, &mut sums[0]);
        element::<M, B, 0>(machine, words, mask, x, upper + 3, &mut sums[1 % C]);
    }
}

#[derive(Clone, Copy)]
struct Q8_0;

impl WovenBlock for Q8_0 {
    const GROUP_BYTES: usize = GROUP_ROWS * 34;
    const UNIT: f32 = 1.0 / (1 << 24) as f32;

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
        element::<M, B, 8>(machine, words, mask, x, first + 2, &mut sums[0]);
        element::<M, B, 0>(machine, words, mask, x, first + 3, &mut sums[1 % C]);
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
struct Groups<'a, 'y, T> {
    block: T,
    packed: &'a [u8],
    x: &'a [f32],
    columns: usize,
    /// Outputs, a slice for each input.
    y: &'a mut [&'y mut [f32]],
}

impl<T: WovenBlock> Kernel for Groups<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(mut self, machine: M) {
        let group_bytes = self.columns / BLOCK * T::GROUP_BYTES;
        let packed = self.packed;
        if group_bytes == 0 {
            return self.y.iter_mut().for_each(|y| y.fill(0.0));
        }
        for (group, packed) in packed.chunks_exact(group_bytes).enumerate() {
            let batch = self.y.len();
            let whole = batch - batch % 4;
            for input in (0..whole).step_by(4) {
                self.group::<M, 4, 1>(machine, group, packed, input);
            }
            // Few sums at once would wait for each other, so each is kept in two parts.
            match batch - whole {
                1 => self.group::<M, 1, 2>(machine, group, packed, whole),
                2 => self.group::<M, 2, 2>(machine, group, packed, whole),
                3 => self.group::<M, 3, 1>(machine, group, packed, whole),
                _ => {}
            }
        }
    }
}

impl<T: WovenBlock> Groups<'_, '_, T> {
    /// Multiplies one group with `B` inputs.
    #[inline(always)]
    fn group<M: Machine, const B: usize, const C: usize>(
        &mut self,
        machine: M,
        group: usize,
        packed: &[u8],
        input: usize,
    ) {
        let mut inputs: [&[[f32; BLOCK]]; B] = [&[]; B];
        let count = packed.len() / T::GROUP_BYTES;
        for b in 0..B {
            let (blocks, _) = self.x[(input + b) * self.columns..][..self.columns].as_chunks();
            inputs[b] = &blocks[..count];
        }
        let mut totals = [[machine.splat(0.0); REGISTERS]; B];
        for (block, packed) in packed.chunks_exact(T::GROUP_BYTES).enumerate().take(count) {
            let mut x = [&[0.0; BLOCK]; B];
            for b in 0..B {
                x[b] = &inputs[b][block];
            }
            let mut sums = [[[machine.splat(0.0); REGISTERS]; B]; C];
            let (lines, _) = packed[LINES_OFFSET..].as_chunks();
            for (index, line) in lines.iter().enumerate() {
                self.block.line::<M, B, C>(machine, line, x, index, &mut sums);
            }
            let (scales, _) = packed[..LINES_OFFSET].as_chunks();
            for register in 0..REGISTERS {
                let scale = machine.halves(&scales[register]);
                let scale = machine.multiply(scale, machine.splat(T::UNIT));
                for b in 0..B {
                    let mut sum = sums[0][b][register];
                    for part in 1..C {
                        sum = machine.add(sum, sums[part][b][register]);
                    }
                    totals[b][register] = machine.fused(scale, sum, totals[b][register]);
                }
            }
        }
        for b in 0..B {
            let y = &mut self.y[input + b][group * GROUP_ROWS..][..GROUP_ROWS];
            for register in 0..REGISTERS {
                y[register * LANES..][..LANES].copy_from_slice(&machine.store(totals[b][register]));
            }
        }
    }
}

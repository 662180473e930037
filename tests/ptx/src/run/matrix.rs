//! `mma`, `ldmatrix`, `stmatrix`: fragments spread over the registers of all 32 lanes.
//!
//! Lane `4g + t` holds, of A, rows `g` and `g + 8`, and of the other side column `g`; within a
//! row a register holds the elements of 32 bits that begin at `t` times so many, and the next
//! registers those further along.

use super::block::State;
use super::races::Kind;
use super::warp::{Group, Next, Stop, Wait, Warp};
use crate::error::FaultKind;
use crate::numeric::formats::{BF16, E4M3, E5M2, F16, Half, Small};
use crate::numeric::lane::Lane;
use crate::program::{Matrices, Mma, Operation, Slot};
use crate::types::Type;

/// Rows of A, columns of B, and the greatest depth.
const ROWS: usize = 16;
const COLUMNS: usize = 8;
const DEPTH_MAX: usize = 32;

/// A matrix element as a number to multiply; integers up to 8 bits and all small floats are
/// exact in f32, and so are their products.
fn element(kind: Type, bits: u32) -> f32 {
    match kind {
        Type::F16 => F16.decode(bits & 0xFFFF),
        Type::Bf16 => BF16.decode(bits & 0xFFFF),
        Type::E4m3 => E4M3.decode(bits & 0xFF),
        Type::E5m2 => E5M2.decode(bits & 0xFF),
        Type::S8 => f32::from(bits as i8),
        Type::U8 => f32::from(bits as u8),
        // tf32: the low bits of an f32 are not looked at.
        _ => f32::from_bits(bits & 0xFFFF_E000),
    }
}

/// Calls `place` with the position of every element of a fragment: where in the row it is (or,
/// for the column side, how deep), which of the rows, and its bits.
fn unfold(
    rows: &[[u64; 32]],
    slots: &[Slot],
    kind: Type,
    row_halves: usize,
    mut place: impl FnMut(usize, usize, u32),
) {
    let per_register = 4 / kind.bytes() as usize;
    let bits = kind.bytes() * 8;
    for (register, slot) in slots.iter().enumerate() {
        let half = register % row_halves;
        let step = register / row_halves;
        for (lane, word) in rows[*slot as usize].iter().enumerate() {
            let (g, t, word) = (lane / 4, lane % 4, *word as u32);
            for part in 0..per_register {
                let along = step * 4 * per_register + t * per_register + part;
                place(g + 8 * half, along, word >> (part as u32 * bits));
            }
        }
    }
}

impl Warp {
    pub(super) fn matrix(
        &mut self,
        state: &mut State<'_>,
        operation: &Operation,
        active: u32,
    ) -> Result<Next, Box<Stop>> {
        if matches!(operation, Operation::Nothing) {
            return Ok(Next::On);
        }
        if active != u32::MAX {
            if self.live != u32::MAX {
                let cause = "this instruction needs all 32 lanes, and some have ended".into();
                let lane = active.trailing_zeros() as usize;
                return Err(self.stop(lane, FaultKind::Collective(cause)));
            }
            let wait = Wait::Members { members: u32::MAX, is_barrier: false };
            self.groups.push(Group { pc: self.pc, lanes: active, wait });
            return Ok(Next::Without(active));
        }
        match operation {
            Operation::Mma(mma) if mma.c_type == Type::S32 => self.mma_integers(mma),
            Operation::Mma(mma) => self.mma_floats(mma),
            Operation::LoadMatrices(matrices) => self.load_matrices(state, matrices)?,
            Operation::StoreMatrices(matrices) => self.store_matrices(state, matrices)?,
            _ => {}
        }
        Ok(Next::On)
    }

    /// A by rows, B by depth, so that a product adds rows of B.
    fn operands(&self, mma: &Mma) -> ([[f32; DEPTH_MAX]; ROWS], [[f32; COLUMNS]; DEPTH_MAX]) {
        let mut a = [[0.0; DEPTH_MAX]; ROWS];
        unfold(&self.rows, &mma.a, mma.a_type, 2, |row, k, bits| {
            a[row][k] = element(mma.a_type, bits);
        });
        let mut b = [[0.0; COLUMNS]; DEPTH_MAX];
        unfold(&self.rows, &mma.b, mma.b_type, 1, |column, k, bits| {
            b[k][column] = element(mma.b_type, bits);
        });
        (a, b)
    }

    fn mma_floats(&mut self, mma: &Mma) {
        let (a, b) = self.operands(mma);
        let mut sums = [[0.0_f32; COLUMNS]; ROWS];
        for (register, slot) in mma.c.iter().enumerate() {
            for lane in 0..32 {
                let bits = self.rows[*slot as usize][lane];
                let (row, column) = (lane / 4, lane % 4 * 2);
                if mma.c_type == Type::F16 {
                    let row = row + 8 * register;
                    sums[row][column] = Half::get(bits).value();
                    sums[row][column + 1] = Half::get(bits >> 16).value();
                } else {
                    sums[row + 8 * (register / 2)][column + register % 2] = f32::get(bits);
                }
            }
        }
        for (sums, a) in sums.iter_mut().zip(&a) {
            for (a, b) in a.iter().zip(&b).take(mma.depth) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
        for (register, slot) in mma.d.iter().enumerate() {
            for lane in 0..32 {
                let (row, column) = (lane / 4, lane % 4 * 2);
                self.rows[*slot as usize][lane] = if mma.d_type == Type::F16 {
                    let row = sums[row + 8 * register];
                    let half = |value: f32| Half::round(f64::from(value)).put();
                    half(row[column]) | half(row[column + 1]) << 16
                } else {
                    sums[row + 8 * (register / 2)][column + register % 2].put()
                };
            }
        }
    }

    fn mma_integers(&mut self, mma: &Mma) {
        let (a, b) = self.operands(mma);
        let a = a.map(|row| row.map(|value| value as i32));
        let b = b.map(|row| row.map(|value| value as i32));
        let mut sums = [[0; 32]; 4];
        for (register, (sums, c)) in sums.iter_mut().zip(&mma.c).enumerate() {
            for (lane, out) in sums.iter_mut().enumerate() {
                let row = lane / 4 + 8 * (register / 2);
                let column = lane % 4 * 2 + register % 2;
                let product: i32 = (0..mma.depth).map(|k| a[row][k] * b[k][column]).sum();
                let c = i32::get(self.rows[*c as usize][lane]);
                let sum =
                    if mma.saturates { c.saturating_add(product) } else { c.wrapping_add(product) };
                *out = sum.put();
            }
        }
        for (slot, row) in mma.d.iter().zip(&sums) {
            self.rows[*slot as usize] = *row;
        }
    }

    /// The 16 bytes of row `row` of matrix `matrix`, whose address lane `8 * matrix + row` gives.
    fn matrix_row(
        &self,
        state: &mut State<'_>,
        matrices: &Matrices,
        lane: usize,
        (what, kind): (&'static str, Kind),
    ) -> Result<usize, Box<Stop>> {
        let address = self.shared_address(matrices.address, matrices.is_generic, lane)?;
        self.check_shared(state, address, 16, what, lane)?;
        self.note(state, kind, lane, address, 16)?;
        Ok(address as usize)
    }

    fn load_matrices(
        &mut self,
        state: &mut State<'_>,
        matrices: &Matrices,
    ) -> Result<(), Box<Stop>> {
        let mut loaded = [[0_u64; 32]; 4];
        for (index, out) in loaded.iter_mut().enumerate().take(matrices.slots.len()) {
            let mut matrix = [[0_u64; 8]; 8];
            for (row, elements) in matrix.iter_mut().enumerate() {
                let touch = ("ldmatrix", Kind::Read);
                let start = self.matrix_row(state, matrices, index * 8 + row, touch)?;
                for (element, bytes) in
                    elements.iter_mut().zip(state.shared[start..start + 16].chunks_exact(2))
                {
                    *element = u64::from(bytes[0]) | u64::from(bytes[1]) << 8;
                }
            }
            for (lane, out) in out.iter_mut().enumerate() {
                let (row, column) = (lane / 4, lane % 4 * 2);
                *out = if matrices.transposed {
                    matrix[column][row] | matrix[column + 1][row] << 16
                } else {
                    matrix[row][column] | matrix[row][column + 1] << 16
                };
            }
        }
        for (slot, row) in matrices.slots.iter().zip(&loaded) {
            self.rows[*slot as usize] = *row;
        }
        Ok(())
    }

    fn store_matrices(
        &mut self,
        state: &mut State<'_>,
        matrices: &Matrices,
    ) -> Result<(), Box<Stop>> {
        for (index, slot) in matrices.slots.iter().enumerate() {
            for row in 0..8 {
                let touch = ("stmatrix", Kind::Write);
                let start = self.matrix_row(state, matrices, index * 8 + row, touch)?;
                for column in 0..8 {
                    let (row, column, at) = (row, column, start + column * 2);
                    let (r, c) = if matrices.transposed { (column, row) } else { (row, column) };
                    let word = self.rows[*slot as usize][r * 4 + c / 2] as u32;
                    let half = (word >> (16 * (c as u32 % 2))) as u16;
                    state.shared[at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        Ok(())
    }
}

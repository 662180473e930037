//! `mma`, `ldmatrix`, `stmatrix`.

use super::Lowered;
use super::function::Lowering;
use super::modifiers::Modifiers;
use crate::program::{Matrices, Mma, Operation};
use crate::text::syntax::Instruction;
use crate::types::Type;

/// Registers of a fragment of `elements` elements of `kind`, over 32 lanes.
fn registers(elements: usize, kind: Type) -> usize {
    elements * kind.bytes() as usize / (32 * 4)
}

impl Lowering<'_> {
    pub(super) fn mma(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        let [c_type, b_type, a_type, d_type] = [m.kind()?, m.kind()?, m.kind()?, m.kind()?];
        let shape =
            m.one_of(&[("m16n8k4", 4_usize), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)]);
        let is_sync = m.take("sync") && m.take("aligned") && m.take("row") && m.take("col");
        let saturates = m.take("satfinite");
        m.end()?;
        let Some(depth) = shape else { return m.unsupported("of this shape") };
        let known = matches!(
            (a_type, b_type, c_type, depth),
            (Type::F16, Type::F16, Type::F16 | Type::F32, 8 | 16)
                | (Type::Bf16, Type::Bf16, Type::F32, 8 | 16)
                | (Type::Tf32, Type::Tf32, Type::F32, 4 | 8)
                | (Type::S8 | Type::U8, Type::S8 | Type::U8, Type::S32, 16 | 32)
                | (Type::E4m3 | Type::E5m2, Type::E4m3 | Type::E5m2, Type::F32, 32)
        );
        let ends = matches!(
            (c_type, d_type),
            (Type::S32, Type::S32) | (Type::F16 | Type::F32, Type::F16 | Type::F32)
        );
        if !known || !ends || !is_sync {
            return m.unsupported("of these types and this shape");
        }
        let [d, a, b, c] = self.operands(i)?;
        let mma = Mma {
            depth,
            a_type,
            b_type,
            c_type,
            d_type,
            saturates,
            d: self.destinations(d)?,
            a: self.sources(a, Type::U32)?,
            b: self.sources(b, Type::U32)?,
            c: self.sources(c, Type::F32)?,
        };
        let wanted = [
            registers(128, d_type),
            registers(16 * depth, a_type),
            registers(8 * depth, b_type),
            registers(128, c_type),
        ];
        if [mma.d.len(), mma.a.len(), mma.b.len(), mma.c.len()] != wanted {
            return self.error(format!("mma of this shape has fragments of {wanted:?} registers"));
        }
        self.emit(Operation::Mma(Box::new(mma)))
    }

    pub(super) fn matrices(&mut self, i: &Instruction, mut m: Modifiers<'_>) -> Lowered<()> {
        m.kind()?;
        let count = m.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let is_generic = !(m.take("shared") | m.take("shared::cta"));
        let transposed = m.take("trans");
        let known = m.take("sync") && m.take("aligned") && m.take("m8n8");
        m.end()?;
        let [first, second] = self.operands(i)?;
        let loads = i.name == "ldmatrix";
        let (value, address) = if loads { (first, second) } else { (second, first) };
        let slots = if loads { self.destinations(value)? } else { self.sources(value, Type::U32)? };
        if !known || count != Some(slots.len()) {
            return m.unsupported("of this form");
        }
        let (_, address) = self.address(address)?;
        let matrices = Box::new(Matrices { is_generic, transposed, slots, address });
        self.emit(if loads {
            Operation::LoadMatrices(matrices)
        } else {
            Operation::StoreMatrices(matrices)
        })
    }
}

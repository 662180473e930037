//! What the heuristic finds: a note of what was asked, which a product has to agree with.

use super::{Layout, Operation, Preference};

/// Eight words that mean nothing to callers.
pub(crate) type Note = [u64; 8];

/// Made for one problem, on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Algorithm {
    note: Note,
}

/// A `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub(crate) struct Found {
    algorithm: Note,
    workspace_bytes: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

const MARK: u64 = 0xA160_0000_F03E_BA71;
/// From so many terms of a sum on, the algorithm wants room for parts of sums.
const SPLITS_FROM: u64 = 256;
const WORKSPACE_BYTES: u64 = 1 << 20;

impl Algorithm {
    /// What the heuristic finds for a problem; `None` if there is nothing for it.
    pub(crate) fn find(
        ordinal: usize,
        operation: Operation,
        [a, b, c, d]: [Layout; 4],
        preference: Preference,
    ) -> Option<Self> {
        let is_aligned = |layout: Layout, alignment: u32| {
            u64::from(alignment).is_multiple_of(layout.element.bytes())
        };
        let alignments = preference.alignments;
        if !([a, b, c, d].into_iter().zip(alignments).all(|(it, by)| is_aligned(it, by))) {
            return None;
        }
        let splits = a.rows.max(a.columns) >= SPLITS_FROM;
        let workspace = if splits { preference.workspace_bytes.min(WORKSPACE_BYTES) } else { 0 };
        let [for_a, for_b, _, for_d] = alignments;
        let problem = problem(operation, [a, b, c, d]);
        let aligned = u64::from(for_a) << 40 | u64::from(for_b) << 20 | u64::from(for_d);
        let note = [MARK, ordinal as u64, problem, aligned, workspace, 0, 0, 0];
        Some(Self { note })
    }

    pub(crate) fn from_note(note: Note) -> Option<Self> {
        (note[0] == MARK).then_some(Self { note })
    }

    pub(crate) fn found(self) -> Found {
        let workspace_bytes = self.note[4] as usize;
        Found { algorithm: self.note, workspace_bytes, state: 0, waves: 1.0, reserved: [0; 4] }
    }

    pub(crate) fn workspace_bytes(&self) -> u64 {
        self.note[4]
    }

    /// What of a product is not what it was made for.
    pub(crate) fn disagrees(
        &self,
        ordinal: usize,
        operation: Operation,
        layouts: [Layout; 4],
        [a, b, d]: [u64; 3],
    ) -> Option<String> {
        if self.note[1] != ordinal as u64 {
            return Some(format!("its algorithm is for device {}", self.note[1]));
        }
        if self.note[2] != problem(operation, layouts) {
            return Some("its algorithm is for another problem".into());
        }
        let aligned = self.note[3];
        let wanted = [aligned >> 40, aligned >> 20 & 0xf_ffff, aligned & 0xf_ffff];
        let mut operands = ["A", "B", "D"].into_iter().zip([a, b, d]).zip(wanted);
        let wrong = operands.find(|((_, address), wanted)| !address.is_multiple_of(*wanted));
        wrong.map(|((name, address), wanted)| {
            format!("its algorithm wants {name} at a multiple of {wanted}, not at {address:#x}")
        })
    }
}

/// A number that other problems don't have.
fn problem(operation: Operation, layouts: [Layout; 4]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (operation.transposes_a, operation.transposes_b).hash(&mut hasher);
    for Layout { element, rows, columns, stride } in layouts {
        (element as u8, rows, columns, stride).hash(&mut hasher);
    }
    hasher.finish()
}

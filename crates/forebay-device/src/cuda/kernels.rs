//! The kernels that are built in, and which of them serves a product.

use super::choice::Choice;
use std::fmt;

/// A kernel of `kernels/`, as its table has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name in the module.
    pub entry: &'static str,
    /// The type of its weights, as formats spell it.
    pub dtype: &'static str,
    /// The module's file.
    pub ptx: &'static str,
    /// The least compute capability that its module runs on, ten times.
    pub capability_min: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Rows of the weights that a block takes.
    pub rows: u32,
    /// Inputs that a block takes.
    pub columns: u32,
    /// The fewest inputs it is meant for.
    pub batch_min: u32,
    /// The most inputs it is meant for.
    pub batch_max: u32,
    /// Shared memory that the module declares.
    pub shared_bytes: u32,
    /// Shared memory that a launch asks for besides.
    pub dynamic_shared_bytes: u32,
    /// What it takes inputs as: `f32`, or rounded to `bf16` or `f16` before.
    pub inputs: &'static str,
}

/// All of them.
const TABLE: &[Kernel] = include!("../../../../kernels/table.rs");

#[cfg(feature = "cuda")]
macro_rules! modules {
    ($($name:literal: $($target:literal)*;)*) => {
        &[$($((
            concat!($name, ".compute_", $target, ".ptx"),
            concat!(
                include_str!(concat!("../../../../kernels/ptx/", $name, ".compute_", $target, ".ptx")),
                "\0"
            ),
        ),)*)*]
    };
}

/// The modules by name, each ended by a zero, as the driver takes them.
#[cfg(feature = "cuda")]
const MODULES: &[(&str, &str)] = modules! {
    "activations": 80;
    "bf16": 75 80;
    "ceiling": 75 80;
    "f16": 75 80;
    "f32": 75 80;
    "f8_e4m3": 75 80;
    "f8_e5m2": 75 80;
    "iq4_nl": 75 80;
    "iq4_xs": 75 80;
    "mxfp4": 75 80;
    "q2_k": 75 80;
    "q3_k": 75 80;
    "q4_0": 75 80;
    "q4_1": 75 80;
    "q4_k": 75 80;
    "q5_0": 75 80;
    "q5_1": 75 80;
    "q5_k": 75 80;
    "q6_k": 75 80;
    "q8_0": 75 80;
};

/// The module of the kernels that measure arithmetic, for this compute capability, ten times.
#[cfg(feature = "cuda")]
pub(super) fn ceiling_module(capability: u32) -> &'static str {
    if capability < 80 { "ceiling.compute_75.ptx" } else { "ceiling.compute_80.ptx" }
}

/// A module's text, ended by a zero.
#[cfg(feature = "cuda")]
pub(super) fn module(name: &str) -> Option<&'static str> {
    MODULES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Inputs that are not `f32` are padded with zeros to a multiple of this many.
#[cfg(feature = "cuda")]
pub(super) const ROUNDED_COLUMNS: u32 = 128;

/// Threads of a block of the kernels that round inputs; each rounds two.
#[cfg(feature = "cuda")]
pub(super) const ROUNDING_THREADS: u32 = 256;

/// A grid is at most so high: so many blocks of inputs can be launched at once.
const GRID_Y_MAX: u32 = 65_535;

/// Why a kernel serves: its place among those that could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    OneInput,
    FewInputs,
    TensorCores,
    Tiles,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneInput => "one input: as fast as the weights can be read",
            Self::FewInputs => "few inputs: the weights are read once for four of them",
            Self::TensorCores => "many inputs: tensor cores",
            Self::Tiles => "many inputs, in f32",
        })
    }
}

/// The kernel that is built in for weights of `dtype` and `batch` inputs, on a device of this
/// compute capability: of those made for the newest architecture that it has, the one meant for so
/// many inputs. `None` where none serves.
#[must_use]
pub fn choose(dtype: &str, capability: (u32, u32), batch: usize) -> Option<Choice> {
    let capability = capability.0 * 10 + capability.1;
    let batch = u32::try_from(batch).ok().filter(|batch| *batch > 0)?;
    let serves = |kernel: &&Kernel| kernel.dtype == dtype && kernel.capability_min <= capability;
    let newest = TABLE.iter().filter(serves).map(|kernel| kernel.capability_min).max()?;
    // A larger batch than any is meant for goes through the one for the largest.
    let most = TABLE.iter().map(|kernel| kernel.batch_max).max().unwrap_or(1);
    let wanted = batch.min(most);
    let kernel = TABLE.iter().filter(serves).find(|kernel| {
        kernel.capability_min == newest && (kernel.batch_min..=kernel.batch_max).contains(&wanted)
    })?;
    // Rounding takes a block for every input.
    let blocks = if kernel.inputs == "f32" { batch.div_ceil(kernel.columns) } else { batch };
    if blocks > GRID_Y_MAX {
        return None;
    }
    let reason = match kernel {
        Kernel { columns: 1, .. } => Reason::OneInput,
        Kernel { batch_max: 2..=8, .. } => Reason::FewInputs,
        Kernel { inputs: "f32", .. } => Reason::Tiles,
        _ => Reason::TensorCores,
    };
    Some(Choice::of(kernel, reason))
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_its_module_and_its_entry_in_it() {
        for kernel in TABLE {
            let text = module(kernel.ptx).unwrap_or_else(|| panic!("no {}", kernel.ptx));
            assert!(text.contains(&format!(".entry {}(", kernel.entry)), "{}", kernel.entry);
            assert!(text.ends_with('\0'));
        }
    }

    #[test]
    fn every_type_has_a_kernel_for_every_batch_on_every_architecture() {
        let mut dtypes: Vec<&str> = TABLE.iter().map(|kernel| kernel.dtype).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        assert_eq!(dtypes.len(), 18);
        for dtype in dtypes {
            for capability in [(7, 5), (8, 0), (8, 6), (9, 0), (12, 0)] {
                for batch in [1, 2, 3, 4, 8, 9, 16, 64, 512, 513, 4000] {
                    let choice = choose(dtype, capability, batch);
                    assert!(choice.is_some(), "{dtype} {capability:?} {batch}");
                }
            }
            assert_eq!(choose(dtype, (7, 0), 1), None);
            assert_eq!(choose(dtype, (9, 0), 0), None);
        }
        assert_eq!(choose("IQ1_S", (9, 0), 1), None);
        let one = choose("Q4_K", (9, 0), 1).and_then(|choice| choice.kernel()).unwrap();
        assert_eq!((one.entry, one.capability_min), ("gemv_q4_k_b1", 80));
    }
}

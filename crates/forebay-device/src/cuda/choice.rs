//! What multiplies, and why.

use super::kernels::{Kernel, Reason};
use std::fmt;
use std::sync::Arc;

/// Up to so many inputs, a product takes as long as its weights take to be read, whoever multiplies.
#[cfg(feature = "cuda")]
const MEMORY_BOUND_BATCH: usize = 8;

/// What multiplies by dense weights: `F32`, `F16` and `BF16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DenseProducts {
    /// cuBLASLt, where it is installed, for more than eight inputs: fewer are as fast as the weights
    /// can be read, which the kernels that are built in see to without rounding any input.
    #[default]
    Auto,
    /// The kernels that are built in.
    Kernels,
    /// cuBLASLt, where it is installed, for any number of inputs.
    CublasLt,
}

impl DenseProducts {
    /// The operands that cuBLASLt would be given, if it is to be asked at all.
    #[cfg(feature = "cuda")]
    pub(super) fn asks_for(self, dtype: &str, batch: usize) -> Option<Operand> {
        let is_asked = match self {
            Self::Auto => batch > MEMORY_BOUND_BATCH,
            Self::Kernels => false,
            Self::CublasLt => true,
        };
        let operand = Operand::ALL.into_iter().find(|operand| operand.dtype() == dtype);
        operand.filter(|_| is_asked)
    }
}

/// The numbers that arithmetic takes; it adds in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operand {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl Operand {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// As kernels have it in [`Kernel::inputs`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// As formats spell the type of weights that need no rounding to it.
    #[must_use]
    pub fn dtype(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

/// What multiplies, and why: a kernel that is built in, or cuBLASLt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of those that are built in, the one that serves.
    kernel: &'static Kernel,
    /// Its place among those that could have served.
    reason: Reason,
    library: Library,
}

/// What cuBLASLt has to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "nobody asks it there"))]
enum Library {
    NotAsked,
    Serves { version: (u32, u32), operand: Operand, batch: usize },
    Refused(Arc<str>),
}

impl Choice {
    pub(super) fn of(kernel: &'static Kernel, reason: Reason) -> Self {
        Self { kernel, reason, library: Library::NotAsked }
    }

    /// That cuBLASLt multiplies instead.
    #[cfg(feature = "cuda")]
    pub(super) fn by_library(self, version: (u32, u32), operand: Operand, batch: usize) -> Self {
        Self { library: Library::Serves { version, operand, batch }, ..self }
    }

    /// That cuBLASLt was asked, and does not serve.
    #[cfg(feature = "cuda")]
    pub(super) fn without_library(self, why: Arc<str>) -> Self {
        Self { library: Library::Refused(why), ..self }
    }

    /// The kernel; `None` where cuBLASLt multiplies.
    #[must_use]
    pub fn kernel(&self) -> Option<&'static Kernel> {
        (!self.is_cublaslt()).then_some(self.kernel)
    }

    /// Whether cuBLASLt multiplies.
    #[must_use]
    pub fn is_cublaslt(&self) -> bool {
        matches!(self.library, Library::Serves { .. })
    }

    /// The kernel's name, or `cublaslt`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kernel().map_or("cublaslt", |kernel| kernel.entry)
    }

    /// What it takes inputs as: `f32`, or rounded to `bf16` or `f16` before.
    #[must_use]
    pub fn inputs(&self) -> &'static str {
        match self.library {
            Library::Serves { operand, .. } => operand.name(),
            _ => self.kernel.inputs,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kernel { entry, dtype, capability_min, batch_min, batch_max, inputs, .. } = self.kernel;
        if let Library::Serves { version: (major, minor), operand, batch } = self.library {
            let inputs = operand.name();
            return write!(
                f,
                "cuBLASLt {major}.{minor} for dense {dtype} at batch {batch} (inputs as {inputs})"
            );
        }
        write!(
            f,
            "{entry} (compute capability {}.{} or newer, {batch_min} to {batch_max} inputs as \
             {inputs}): {}",
            capability_min / 10,
            capability_min % 10,
            self.reason
        )?;
        match &self.library {
            Library::Refused(why) => write!(f, "; not cuBLASLt: {why}"),
            _ => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;

    #[test]
    fn cublaslt_is_asked_for_dense_weights_and_many_inputs() {
        use DenseProducts::{Auto, CublasLt, Kernels};
        assert_eq!(Auto.asks_for("BF16", 9), Some(Operand::Bf16));
        assert_eq!(Auto.asks_for("BF16", 8), None);
        assert_eq!(CublasLt.asks_for("F16", 1), Some(Operand::F16));
        assert_eq!(Kernels.asks_for("F32", 512), None);
        for dtype in ["Q8_0", "F8_E4M3", "F64"] {
            assert_eq!(CublasLt.asks_for(dtype, 512), None, "{dtype}");
        }
    }

    #[test]
    fn a_choice_says_who_and_why() {
        let ours = super::super::kernels::choose("BF16", (9, 0), 128).unwrap();
        let library = ours.clone().by_library((13, 1), Operand::Bf16, 128);
        assert_eq!(
            (library.name(), library.inputs(), library.kernel()),
            ("cublaslt", "bf16", None)
        );
        assert_eq!(
            library.to_string(),
            "cuBLASLt 13.1 for dense BF16 at batch 128 (inputs as bf16)"
        );
        let refused = ours.clone().without_library("it is not installed".into());
        assert_eq!((refused.name(), refused.kernel()), (ours.name(), ours.kernel()));
        assert!(refused.to_string().ends_with("tensor cores; not cuBLASLt: it is not installed"));
    }
}

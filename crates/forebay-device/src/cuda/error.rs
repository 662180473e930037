//! What the driver refuses.

use std::fmt;

/// Why CUDA can't be used on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No library of the driver.
    #[error("there is no NVIDIA driver: libcuda.so.1 is not found")]
    NoDriver,
    /// A library that lacks what is needed.
    #[error("the NVIDIA driver is too old, or its library is not whole: it has no {symbol}")]
    MissingSymbol {
        /// The function.
        symbol: &'static str,
    },
    /// A driver for an older CUDA than is needed.
    #[error(
        "the NVIDIA driver is too old: it serves CUDA {}.{}, and {}.{} is needed",
        version / 1000, version % 1000 / 10, needed / 1000, needed % 1000 / 10
    )]
    TooOld {
        /// What it serves, as the driver counts: 1000 × major + 10 × minor.
        version: u32,
        /// What is needed.
        needed: u32,
    },
    /// A driver, and nothing to drive.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    /// GPUs, but not this one.
    #[error("there is no GPU {asked}: the driver has {present}, counted from 0")]
    NoSuchDevice {
        /// The number that was asked for.
        asked: u32,
        /// How many there are.
        present: u32,
    },
    /// The driver can't be initialised, or not asked.
    #[error("the NVIDIA driver does not serve: {refusal}")]
    Refused {
        /// What it answered.
        refusal: DriverRefusal,
    },
    /// The program was built without it.
    #[error("this program was built without CUDA")]
    NotBuilt,
}

impl Unavailable {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NoDriver => {
                "install NVIDIA's driver (525 or newer; in a container: --gpus all, which brings \
                 libcuda.so.1), or use --device host"
            }
            Self::MissingSymbol { .. } | Self::TooOld { .. } => {
                "install NVIDIA's driver 525 or newer, or use --device host"
            }
            Self::NoDevice => {
                "look whether nvidia-smi lists a GPU and CUDA_VISIBLE_DEVICES hides none, or use \
                 --device host"
            }
            Self::NoSuchDevice { .. } => "forebay doctor lists the GPUs there are",
            Self::Refused { refusal } => refusal.remedy(),
            Self::NotBuilt => "build with the feature 'cuda', or use --device host",
        }
    }
}

/// The driver answered a call with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct DriverRefusal {
    /// The driver's function.
    pub call: &'static str,
    /// Its answer, a `CUresult`.
    pub code: u32,
    /// The name of that, and what the driver says about it.
    pub message: Box<str>,
}

impl DriverRefusal {
    /// Whether nothing runs in the context any more: it is lost, and all work in it was stopped.
    pub(crate) fn ends_context(&self) -> bool {
        // Deinitialised, invalid context, uncorrectable memory or link; the faults of kernels and
        // copies; context destroyed; unknown.
        matches!(self.code, 4 | 201 | 214 | 220 | 700 | 702 | 709 | 714..=721 | 999)
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.code {
            2 => "free memory of the device, or offload fewer layers (--gpu-layers N)",
            34 => {
                "the library found is the toolkit's stub: take its folder (…/stubs) out of \
                 LD_LIBRARY_PATH"
            }
            46 => "another process has the device for itself (nvidia-smi -q -d COMPUTE)",
            802 => "the system is not ready: look whether nvidia-fabricmanager runs",
            803 | 804 => "the driver's library and its kernel module differ: restart the machine",
            code if self.ends_context() && code != 999 => {
                "the device gave up all of this process's work on it: look at dmesg (Xid) and \
                 nvidia-smi, drop what is loaded there (and call release_staging, or restart the \
                 program), and load again; --device host does without it"
            }
            _ => "look at dmesg (Xid) and nvidia-smi for the device's state, or use --device host",
        }
    }
}

/// cuBLASLt answered a call with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call} answered {code}, {message}")]
pub struct LibraryRefusal {
    /// The library's function.
    pub call: &'static str,
    /// Its answer, a `cublasStatus_t`.
    pub code: u32,
    /// The name of that, and what the library says about it.
    pub message: Box<str>,
}

impl LibraryRefusal {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        "look at dmesg (Xid) and nvidia-smi for the device's state; the kernels that are built in \
         serve without cuBLASLt (DenseProducts::Kernels, or leave it out of LD_LIBRARY_PATH)"
    }
}

impl fmt::Display for DriverRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, message } = self;
        write!(f, "{call} answered {code}, {message}")
    }
}

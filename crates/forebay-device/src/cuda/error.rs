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
            Self::Refused { .. } => {
                "look whether nvidia-smi works, and at dmesg (a driver that was updated wants a \
                 restart), or use --device host"
            }
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

impl fmt::Display for DriverRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, message } = self;
        write!(f, "{call} answered {code}, {message}")
    }
}

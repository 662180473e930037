//! Where a tensor lives.

use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// Where a tensor lives and is computed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The CPU's own memory: mapped by default.
    Cpu,
    /// Ordinary memory standing in for a device's, through the device's pipeline.
    Host,
    /// A CUDA device by its number.
    Cuda(u32),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Host => f.write_str("host"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// Which device offloaded tensors go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best there is. This version drives no GPU, so: `host`.
    #[default]
    Auto,
    /// This one.
    Device(Backend),
}

impl DeviceChoice {
    /// The backend it comes to, and why.
    pub(crate) fn resolve(self) -> Result<(Backend, &'static str), Error> {
        match self {
            Self::Auto => Ok((Backend::Host, "this version of forebay drives no GPU")),
            Self::Device(Backend::Host) => Ok((Backend::Host, "asked for")),
            Self::Device(other) => Err(Error::option(
                "--device",
                &format!("{other} can't take offloaded tensors in this version"),
                "use --device host (or auto)",
            )),
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "host" => Ok(Self::Host),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("'{text}' is no backend: cpu, host or cuda:N")),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Err("cpu is no device: use --gpu-layers 0".to_owned()),
            _ => text.parse().map(Self::Device),
        }
    }
}

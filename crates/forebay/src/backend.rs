//! Where a tensor lives.

use crate::error::Error;
use forebay_device::{DeviceError, cuda};
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first CUDA device if there is one, else `host`.
    #[default]
    Auto,
    /// This one.
    Device(Backend),
    /// These CUDA devices, among which tensors are spread as [`SplitMode`] says.
    Several(Vec<Backend>),
    /// All CUDA devices there are.
    AllCuda,
}

/// How offloaded tensors are spread over several devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SplitMode {
    /// Whole tensors, neighbouring layers together, so that each device gets about as many bytes.
    #[default]
    Layers,
    /// Each matrix is cut into as many bands of rows as there are devices.
    Rows,
    /// Each matrix is cut into as many bands of columns as there are devices.
    Columns,
}

impl FromStr for SplitMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "layers" => Ok(Self::Layers),
            "rows" => Ok(Self::Rows),
            "columns" => Ok(Self::Columns),
            _ => Err(format!("'{text}' is no way to split: layers, rows or columns")),
        }
    }
}

/// The devices of a load, and why these.
#[derive(Clone, Debug)]
pub(crate) struct Devices {
    /// At least one, none twice.
    pub(crate) chosen: Vec<Backend>,
    pub(crate) why: String,
}

impl DeviceChoice {
    /// The devices that it comes to.
    pub(crate) fn resolve(&self) -> Result<Devices, Error> {
        let these = |chosen: &[Backend], why: &str| Devices {
            chosen: chosen.to_vec(),
            why: why.to_owned(),
        };
        Ok(match self {
            Self::Auto => match cuda::device(0) {
                Ok(first) => these(&[Backend::Cuda(0)], &format!("the first GPU, {}", first.name)),
                Err(why) => these(&[Backend::Host], &why.to_string()),
            },
            Self::AllCuda => {
                let all = cuda::devices().map_err(DeviceError::from)?;
                let all: Vec<_> = all.iter().map(|device| Backend::Cuda(device.ordinal)).collect();
                these(&all, "all GPUs were asked for")
            }
            Self::Device(Backend::Cpu) => {
                let cause = "the cpu is no device that tensors are offloaded to";
                return Err(Error::option("--device", cause, "use --gpu-layers 0"));
            }
            Self::Device(device) => these(&[*device], "asked for"),
            Self::Several(devices) => {
                check(devices).map_err(|cause| {
                    Error::option("--device", &cause, "name one device, or several GPUs")
                })?;
                these(devices, "asked for")
            }
        })
    }

    /// Whether it may come to a CUDA device.
    pub(crate) fn may_be_cuda(&self) -> bool {
        !matches!(self, Self::Device(Backend::Host | Backend::Cpu))
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

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::AllCuda => f.write_str("cuda:all"),
            Self::Device(device) => device.fmt(f),
            Self::Several(devices) => {
                let names: Vec<String> = devices.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cuda:all" => return Ok(Self::AllCuda),
            "cpu" => return Err("cpu is no device: use --gpu-layers 0".to_owned()),
            _ => {}
        }
        if !text.contains(',') {
            return text.parse().map(Self::Device);
        }
        devices(text).map(Self::Several)
    }
}

/// A list of CUDA devices, divided by commas.
pub(crate) fn devices(text: &str) -> Result<Vec<Backend>, String> {
    let devices: Vec<Backend> = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
    check(&devices).map_err(|cause| format!("'{text}': {cause}"))?;
    Ok(devices)
}

/// Whether these can be the devices of one load.
fn check(devices: &[Backend]) -> Result<(), String> {
    if devices.is_empty() {
        return Err("no device is named".to_owned());
    }
    if let Some(other) = devices.iter().find(|device| !matches!(device, Backend::Cuda(_))) {
        return Err(format!("{other} is no GPU: several devices are all cuda:N"));
    }
    let twice = (1..devices.len()).find(|&index| devices[..index].contains(&devices[index]));
    twice.map_or(Ok(()), |index| Err(format!("{} stands there twice", devices[index])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spelt_as_in_the_contract() {
        let choice = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(choice("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(choice("cuda"), Ok(DeviceChoice::Device(Backend::Cuda(0))));
        assert_eq!(choice("host"), Ok(DeviceChoice::Device(Backend::Host)));
        assert_eq!(choice("cuda:all"), Ok(DeviceChoice::AllCuda));
        let two = DeviceChoice::Several(vec![Backend::Cuda(2), Backend::Cuda(0)]);
        assert_eq!(choice("cuda:2,cuda:0"), Ok(two));
        for wrong in ["cpu", "cuda:", "cuda:x", "cuda:0,host", "cuda:1,cuda:1", "gpu", ","] {
            assert!(choice(wrong).is_err(), "{wrong}");
        }
    }
}

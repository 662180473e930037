//! What a caller may want of a load, each choice with its words.

use crate::backend::{Backend, DeviceChoice, SplitMode, devices};
use crate::mode::ModeSpec;
use crate::split::Axis;
use forebay_mem::Writes;
use forebay_mem::numa::NumaPolicy;
use regex::Regex;
use std::str::FromStr;

/// How many layers are offloaded to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuLayers {
    /// Everything, embeddings and output included.
    #[default]
    All,
    /// The last N layers; once N exceeds their number, everything.
    Count(u32),
}

impl FromStr for GpuLayers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        text.parse().map(Self::Count).map_err(|_| format!("'{text}' is no number, nor 'all'"))
    }
}

/// Sends the tensors whose names match a pattern to a backend, or to several in parts.
#[derive(Clone, Debug)]
pub struct PlaceRule {
    pub(crate) pattern: Regex,
    pub(crate) target: Target,
}

/// Where a rule sends a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Where it would be offloaded to.
    Device,
    Whole(Backend),
    Split(Axis, Vec<Backend>),
}

impl FromStr for PlaceRule {
    type Err = String;

    /// From `REGEX=BACKEND`; the last `=` divides. BACKEND is `device`, `cpu`, `host`, `cuda:N`, or
    /// `rows:` or `columns:` before a list: `rows:cuda:0,cuda:1`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, backend) =
            text.rsplit_once('=').ok_or_else(|| format!("'{text}' is not REGEX=BACKEND"))?;
        let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
        let target = match (backend, backend.split_once(':')) {
            ("device", _) => Target::Device,
            (_, Some(("rows", list))) => Target::Split(Axis::Rows, devices(list)?),
            (_, Some(("columns", list))) => Target::Split(Axis::Columns, devices(list)?),
            _ => Target::Whole(backend.parse()?),
        };
        Ok(Self { pattern, target })
    }
}

/// Who performs the reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineChoice {
    /// io_uring where it can be had, else threads.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// io_uring that polls for completions instead of waiting for interrupts: keeps a processor
    /// busy, and takes direct reads from a drive with poll queues (`nvme.poll_queues=N`).
    UringPolled,
    /// io_uring, by a tokio-uring runtime: the caller's (`Loader::stream_on_tokio_uring`), or one of its
    /// own. Takes the feature `tokio-uring`.
    TokioUring,
    /// Threads with `preadv2`.
    Threads,
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "uring-polled" => Ok(Self::UringPolled),
            "tokio-uring" => Ok(Self::TokioUring),
            "threads" => Ok(Self::Threads),
            _ => Err(format!(
                "'{text}' is no engine: auto, uring, uring-polled, tokio-uring or threads"
            )),
        }
    }
}

/// Whether mapped pages are given back once their bytes have been copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reclaim {
    /// Where it costs nothing, which is wherever mapped bytes were copied, converted or repacked.
    #[default]
    Auto,
    /// The same, for those who say what they want.
    On,
    /// Never: the pages stay mapped.
    Off,
}

/// Whether mapped tensors are brought into memory ahead of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prefetch {
    /// If they fit into the memory at hand.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never: their pages come as they are touched.
    Off,
}

/// Both are spelt alike.
macro_rules! from_auto_on_off {
    ($($choice:ident),*) => {
        $(impl FromStr for $choice {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    "auto" => Ok(Self::Auto),
                    "on" => Ok(Self::On),
                    "off" => Ok(Self::Off),
                    _ => Err(format!("'{text}' is none of auto, on, off")),
                }
            }
        })*
    };
}

from_auto_on_off! { Reclaim, Prefetch }

/// Whether weights of `cpu` and `host` are laid out anew for the CPU's matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repack {
    /// They stay as the file has them.
    #[default]
    Off,
    /// `Q4_0` and `Q8_0` matrices are interleaved while they are copied to memory of their own.
    On,
}

impl FromStr for Repack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("'{text}' is neither on nor off")),
        }
    }
}

/// What the caller wants; every field has a default that serves most.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// Where offloaded tensors go.
    pub device: DeviceChoice,
    /// How many layers are offloaded.
    pub gpu_layers: GpuLayers,
    /// How offloaded tensors are spread, where there are several devices.
    pub split: SplitMode,
    /// Exceptions by name; the first match wins, before `gpu_layers`.
    pub place: Vec<PlaceRule>,
    /// How each backend loads.
    pub load_mode: ModeSpec,
    /// A mode that can't be had is an error instead of a recorded step down.
    pub no_fallback: bool,
    /// Who performs the reads.
    pub engine: EngineChoice,
    /// The size of one read in bytes.
    pub chunk_bytes: Option<u64>,
    /// Reads in flight at most.
    pub queue_depth: Option<usize>,
    /// All staging memory, in bytes.
    pub staging_bytes: Option<u64>,
    /// Whether mapped pages are given back once copied.
    pub reclaim: Reclaim,
    /// Whether mapped tensors are brought in ahead of use.
    pub prefetch: Prefetch,
    /// Whether tensors that stay in a mapping may be written.
    pub mapped_writes: Writes,
    /// Whether weights are laid out anew for the CPU's matrix products.
    pub repack: Repack,
    /// On which NUMA node memory and page cache of the load are placed.
    pub numa: NumaPolicy,
}

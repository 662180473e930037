//! forebay moves model weights from storage to where they are computed on, at the rate the
//! hardware allows, each backend its own way.
//!
//! ```no_run
//! use forebay::Loader;
//!
//! let mut load = Loader::new("model.safetensors").start()?;
//! for tensor in &mut load {
//!     let tensor = tensor?; // whole, where it belongs, while the rest is still on its way
//!     println!("{} {:?} on {}", tensor.name(), tensor.shape(), tensor.backend());
//! }
//! let loaded = load.finish()?;
//! println!("{:.2} GiB/s", loaded.report().read.gib_per_s);
//! # Ok::<(), forebay::Error>(())
//! ```
//!
//! # The way of the data
//!
//! ```text
//! source → catalog → policy → plan → schedule → engine → slot → copy → place
//! ```
//!
//! A [`Model`] is the opened source and its catalog. [`Options`] is the policy: which tensor goes
//! to which [`Backend`], and how each backend loads. [`Plan`] is what will happen, as plain data,
//! with the reasons; nothing of a tensor has been read by then. [`Load`] runs it: an iterator of
//! tensors as they land. [`Loaded`] owns them all and the [`LoadReport`].
//!
//! [`manual::cuda`] tells how tensors reach GPUs, [`manual::cpu`] how those that stay on the CPU are
//! mapped, prefetched, locked and given back, [`manual::c`] how programs in C and C++ use all this.
//!
//! # Promises
//!
//! - A tensor is handed out whole and right, or not at all.
//! - What the machine refuses is stepped down exactly and recorded in the report.
//! - Dropping a [`Load`], cancelling it, or a panic in your callback stops it; when the drop
//!   returns, no read is in flight and no thread of ours runs.
//! - Staging memory is what the plan says, never more.

#![forbid(unsafe_code)]

mod backend;
mod compute;
mod digest;
mod error;
mod layers;
mod loaded;
mod loader;
pub mod manual;
mod mode;
mod model;
mod numa;
mod option_text;
mod options;
mod origin;
mod pipeline;
mod plan;
mod policy;
mod report;
mod resident;
mod source;
mod split;
mod waking;
mod warm_up;

/// By a name of its own, so that the models of `tests/loom` can put loom's in its place.
mod sync {
    pub(crate) use std::sync::*;
}

pub use backend::{Backend, DeviceChoice, SplitMode};
pub use digest::{DigestKind, Digester, digests_outside, sha256_hex};
pub use error::{Error, LockBound, ReadContext};
pub use forebay_compute::{ComputeError, Shape};
pub use forebay_device::DeviceError;
pub use forebay_device::cuda::{
    Choice as KernelChoice, ComputeStream, Context as DeviceContext, DenseProducts, DeviceFloats,
    DeviceInfo, DevicePointer, DriverRefusal, Kernel, LibraryRefusal, MatrixCeiling,
    Operand as DeviceOperand, PcieLink, Unavailable, Weights, device, devices, driver_version,
    matrix_ceiling, release_staging, upload_ceiling,
};
pub use forebay_format::{Catalog, Dtype, Format, FormatError, Metadata, Value, steers_text};
pub use forebay_io::{Access, Cancel, Errno, FailureKind, OpenError, OpenErrorKind, ReadFailure};
pub use forebay_mem::numa::NumaPolicy;
pub use forebay_mem::{HostPointer, MappedView, MemoryError, Writes};
pub use forebay_trace::{self as trace, Trace};
pub use layers::{
    CachePolicy, Fetch, FetchStats, Fetcher, FetcherBuilder, Layer, LayerStream,
    LayerStreamBuilder, Lfu, Lru, PassReport, Piece, Pinned, StreamReport, Tier, TierBytes,
};
pub use loaded::{Loaded, Tensor, TensorPart};
pub use loader::Loader;
pub use mode::{LoadMode, ModeSpec};
pub use model::Model;
pub use option_text::parse_size;
pub use options::{EngineChoice, GpuLayers, Options, PlaceRule, Prefetch, Reclaim, Repack};
pub use pipeline::{Landing, Load, LoadStream, Progress};
pub use plan::{BackendPlan, FilePlan, Plan};
pub use report::{
    BackendReport, DeviceReport, FallbackReport, FileReport, LoadReport, MemoryReport,
    ModelSummary, PlanReport, PlannedFile, PrefetchReport, ReadReport, StallReport, TimeReport,
    UploadReport,
};
pub use split::Axis;

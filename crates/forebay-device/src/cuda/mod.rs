//! CUDA devices, reached through NVIDIA's driver alone.
//!
//! Nothing here needs a GPU or a toolkit to build; the driver's library is looked for when the
//! first device is asked for, and a machine without one is an ordinary error ([`Unavailable`]).
//! Without the feature `cuda` every machine is one without.

mod error;
mod info;
mod kernels;
mod pointer;
mod staging;

#[cfg(feature = "cuda")]
mod arena;
#[cfg(feature = "cuda")]
mod ceiling;
#[cfg(feature = "cuda")]
mod compute;
#[cfg(feature = "cuda")]
mod context;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod memory;
#[cfg(feature = "cuda")]
mod module;
#[cfg(feature = "cuda")]
mod operands;
#[cfg(feature = "cuda")]
mod query;
#[cfg(feature = "cuda")]
mod queue;
#[cfg(feature = "cuda")]
mod stream;
#[cfg(feature = "cuda")]
mod transfer;

#[cfg(feature = "cuda")]
mod present {
    pub use super::arena::{CudaArena, CudaWriter, Memory, ReadBack};
    pub use super::ceiling::upload_ceiling;
    pub use super::compute::ComputeStream;
    pub use super::context::Context;
    pub use super::driver::Driver;
    pub use super::memory::{HostRegistration, PoolMemory};
    pub use super::operands::{DeviceFloats, Weights};
    pub use super::query::{device, devices, driver_version};
    pub use super::queue::Completion;
    pub(crate) use super::queue::CopyQueue;
}

#[cfg(not(feature = "cuda"))]
#[path = "absent.rs"]
mod present;

pub use error::{DriverRefusal, Unavailable};
pub use info::{DeviceInfo, PcieLink};
pub use kernels::{Choice, Kernel, choose};
pub use pointer::DevicePointer;
pub use present::*;
pub use staging::{SlotGroup, Staging, StagingShape, release_staging};

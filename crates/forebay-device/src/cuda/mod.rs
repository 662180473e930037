//! CUDA devices, reached through NVIDIA's driver alone.
//!
//! Nothing here needs a GPU or a toolkit to build; the driver's library is looked for when the
//! first device is asked for, and a machine without one is an ordinary error ([`Unavailable`]).
//! Without the feature `cuda` every machine is one without.

mod choice;
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
mod cublaslt;
#[cfg(feature = "cuda")]
mod dense;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "cuda")]
mod matrix_ceiling;
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
mod retiring;
#[cfg(feature = "cuda")]
mod rounding;
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
    pub use super::matrix_ceiling::matrix_ceiling;
    pub use super::memory::{HostRegistration, PoolMemory};
    pub use super::operands::{DeviceFloats, Weights};
    pub use super::query::{device, devices, driver_version};
    pub use super::queue::Completion;
    pub(crate) use super::queue::CopyQueue;
}

#[cfg(not(feature = "cuda"))]
#[path = "absent.rs"]
mod present;

pub use choice::{Choice, DenseProducts, Operand};
pub use error::{DriverRefusal, LibraryRefusal, Unavailable};
pub use info::{DeviceInfo, MatrixCeiling, PcieLink};
pub use kernels::{Kernel, choose};
pub use pointer::DevicePointer;
pub use present::*;
pub use staging::{SlotGroup, Staging, StagingShape, release_staging};

//! CUDA devices, reached through NVIDIA's driver alone.
//!
//! Nothing here needs a GPU or a toolkit to build; the driver's library is looked for when the
//! first device is asked for, and a machine without one is an ordinary error ([`Unavailable`]).

mod arena;
mod ceiling;
mod context;
mod driver;
mod error;
mod info;
mod memory;
mod queue;
mod staging;
mod stream;

pub use arena::{CudaArena, CudaWriter, Memory, ReadBack};
pub use ceiling::upload_ceiling;
pub use context::Context;
pub use driver::Driver;
pub use error::{DriverRefusal, Unavailable};
pub use info::{DeviceInfo, PcieLink, device, devices, driver_version};
pub use memory::{DevicePointer, HostRegistration};
pub use queue::Completion;
pub(crate) use queue::CopyQueue;
pub use staging::{SlotGroup, Staging, StagingShape, release_staging};

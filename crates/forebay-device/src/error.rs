//! What a device refuses.

use crate::cuda::{DriverRefusal, LibraryRefusal, Unavailable};
use forebay_mem::MemoryError;

/// A refusal of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The arena can't be had in ordinary memory.
    #[error("no room for {needed_bytes} bytes of tensors in {device} memory")]
    OutOfMemory {
        /// Which device.
        device: String,
        /// What the arena would have taken.
        needed_bytes: u64,
        /// What the system answered.
        source: MemoryError,
    },
    /// The arena can't be had in the device's memory.
    #[error(
        "no room for {needed_bytes} bytes of tensors in the memory of {device}{}",
        .free_bytes.map(|free| format!(", which has {free} bytes free")).unwrap_or_default()
    )]
    DeviceFull {
        /// Which device.
        device: String,
        /// What the arena would have taken.
        needed_bytes: u64,
        /// What was free, if the driver tells.
        free_bytes: Option<u64>,
    },
    /// The tensors together are larger than any memory could be.
    #[error("the tensors' sizes add up to more than the address space")]
    TooLarge,
    /// Lent memory that is not the device's.
    #[error("{bytes} bytes at {address:#x} are no memory of {device} that the driver knows")]
    NotOfDevice {
        /// Which device.
        device: String,
        /// The address that was given.
        address: u64,
        /// The length that was given.
        bytes: u64,
    },
    /// A copy to the device failed, or the device failed while it was under way.
    #[error("a copy to {device} failed")]
    Copy {
        /// Which device.
        device: String,
        /// The read whose bytes were being copied when the device told.
        read: usize,
        /// What the driver answered.
        #[source]
        refusal: DriverRefusal,
    },
    /// The driver refused something else.
    #[error("{device} can't be used")]
    Driver {
        /// Which device.
        device: String,
        /// What the driver answered.
        #[source]
        refusal: DriverRefusal,
    },
    /// cuBLASLt refused a product that it had an algorithm for.
    #[error("cuBLASLt can't multiply on {device}")]
    Library {
        /// Which device.
        device: String,
        /// What the library answered.
        #[source]
        refusal: LibraryRefusal,
    },
    /// No kernel serves such a product.
    #[error("no kernel multiplies {dtype} weights with {batch} inputs on {device}")]
    NoKernel {
        /// Which device.
        device: String,
        /// The type of the weights.
        dtype: String,
        /// How many inputs.
        batch: usize,
    },
    /// The driver does not compile a kernel.
    #[error("{device} can't run the kernel {kernel}{}", .log.lines().next().map(|line| format!(": {line}")).unwrap_or_default())]
    Compiler {
        /// Which device.
        device: String,
        /// The kernel.
        kernel: &'static str,
        /// What the driver's compiler wrote.
        log: String,
        /// What the driver answered.
        #[source]
        refusal: DriverRefusal,
    },
    /// There is no such device that can be used.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The system gives no thread to wait for a device on.
    #[error("a thread that waits for the device can't be started (error {errno:?})")]
    Thread {
        /// What the system answered.
        errno: Option<i32>,
    },
}

impl DeviceError {
    /// What a driver refused a device.
    #[must_use]
    pub fn driver(device: &str, refusal: DriverRefusal) -> Self {
        Self::Driver { device: device.to_owned(), refusal }
    }
}

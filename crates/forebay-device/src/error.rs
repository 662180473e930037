//! What a device refuses.

use forebay_mem::MemoryError;

/// A refusal of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The arena can't be had.
    #[error("no room for {needed_bytes} bytes of tensors in {device} memory")]
    OutOfMemory {
        /// Which device.
        device: String,
        /// What the arena would have taken.
        needed_bytes: u64,
        /// What the system answered.
        source: MemoryError,
    },
    /// The tensors together are larger than any memory could be.
    #[error("the tensors' sizes add up to more than the address space")]
    TooLarge,
}

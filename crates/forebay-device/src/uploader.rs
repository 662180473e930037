//! The contract between the pipeline and a device.

use crate::error::DeviceError;
use forebay_mem::{Draining, Free, Slot};

/// A piece of a slot and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which arena of the uploader.
    pub arena: usize,
    /// Which tensor of the arena.
    pub tensor: usize,
    /// Where the piece starts in the slot.
    pub slot_offset: u32,
    /// Where it belongs in the tensor.
    pub tensor_offset: u64,
    /// Its length.
    pub bytes: u32,
}

/// Moves slots to a device. Driven by one thread.
pub trait Uploader: Send {
    /// Starts copying `segments` out of `slot`. The uploader owns the slot until it hands it back
    /// through [`Uploader::completed`], together with `read`, which means nothing to it.
    ///
    /// # Errors
    /// What the device refuses. The slot is then dropped once nothing reads from it.
    fn upload(
        &mut self,
        slot: Slot<Draining>,
        read: usize,
        segments: &[Segment],
    ) -> Result<(), DeviceError>;

    /// A slot whose copies have all completed, and the read it held; `None` if there is none
    /// now. With `wait`, waits for one as long as any copy is in flight.
    ///
    /// # Errors
    /// What the device reports late.
    fn completed(&mut self, wait: bool) -> Result<Option<(Slot<Free>, usize)>, DeviceError>;

    /// Slots taken and not yet handed back.
    fn in_flight(&self) -> usize;

    /// All bytes of a tensor have been copied: from now on others may look at it, and nothing is
    /// written to it again.
    fn publish(&mut self, arena: usize, tensor: usize);
}

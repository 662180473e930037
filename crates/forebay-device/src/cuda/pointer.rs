//! Memory of a device that somebody else owns.

/// A range of a device's memory that somebody else has allocated, and lends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePointer {
    ordinal: u32,
    address: u64,
    bytes: u64,
}

impl DevicePointer {
    /// A range of `bytes` bytes at `address` of the device with that number.
    ///
    /// # Safety
    /// - It is memory of that device's primary context, and stays allocated from now on for as
    ///   long as anything of the loader that it is given to lives: the loader, its load or stream,
    ///   what that came to, every tensor of it, and every future of one.
    /// - Whatever was queued on it before has completed: copies go through streams of their own,
    ///   which wait for no other. (Allocators that hand memory out in the order of a stream, such
    ///   as those of frameworks, want that stream synchronised first.)
    /// - Until the load has handed out the tensor that lies there, nobody else reads or writes it,
    ///   nor is it lent for anything else; afterwards nobody writes it as long as forebay may read
    ///   it back.
    ///
    /// # Alignment
    /// None is needed to load; kernels want a multiple of 16, and 256 is best.
    #[must_use]
    pub unsafe fn new(ordinal: u32, address: u64, bytes: u64) -> Self {
        Self { ordinal, address, bytes }
    }

    /// The number of the device.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The address, in the device's address space.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

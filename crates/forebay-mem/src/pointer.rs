//! Memory of the machine that somebody else owns.

/// A range of the machine's memory that somebody else has allocated, and lends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPointer {
    address: *mut u8,
    bytes: u64,
}

// SAFETY: it is two numbers; what is done at the address is bound by the contract of `new`, which
// knows no threads.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

impl HostPointer {
    /// A range of `bytes` bytes at `address`.
    ///
    /// # Safety
    /// - It is memory of this process that can be written to, whether anything has been written
    ///   there before or not, and it stays allocated from now on for as long as anything of the
    ///   loader that it is given to lives: the loader, its load or stream, what that came to, every
    ///   tensor of it, and every future of one.
    /// - Until the load has handed out the tensor that lies there, nobody else reads or writes it,
    ///   nor is it lent for anything else; afterwards nobody writes it as long as anything of
    ///   the load lives.
    ///
    /// # Alignment
    /// None is needed. Memory that has no pages yet is best aligned to one, so that its pages can
    /// be had ahead of the copies.
    #[must_use]
    pub unsafe fn new(address: *mut u8, bytes: u64) -> Self {
        Self { address, bytes }
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// The length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

//! What the memory system refuses, with the number that explains it.

use nix::errno::Errno;
use std::fmt;

/// The operation that the system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Reserving address space (`mmap`).
    Reserve,
    /// Giving a range its pages ahead of use (`madvise(MADV_POPULATE_*)`).
    Populate,
    /// Bringing a mapped file's pages in ahead of use (`madvise(MADV_POPULATE_READ)`).
    Prefetch,
    /// Finding out which pages are resident (`mincore`).
    Inspect,
    /// Mapping a file.
    MapFile,
    /// Copying out of a mapped file.
    ReadMapping,
    /// Copying out of a tensor in memory.
    ReadTensor,
    /// Giving pages back (`madvise(MADV_DONTNEED)`).
    Reclaim,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserve => "reserving memory",
            Self::Populate => "populating memory",
            Self::Prefetch => "prefetching the mapped file",
            Self::Inspect => "looking at resident pages",
            Self::MapFile => "mapping the file",
            Self::ReadMapping => "reading the mapped file",
            Self::ReadTensor => "reading the tensor",
            Self::Reclaim => "giving memory back",
        })
    }
}

/// A refusal of the memory system.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed for {bytes} bytes at {offset}: {errno}")]
#[non_exhaustive]
pub struct MemoryError {
    /// What was asked.
    pub operation: Operation,
    /// Where, in bytes from the start of the region or of the file.
    pub offset: u64,
    /// For how many bytes.
    pub bytes: u64,
    /// What the kernel answered.
    pub errno: Errno,
}

impl MemoryError {
    /// A range that ends past what it is a range of.
    #[must_use]
    pub fn past_end(operation: Operation, offset: u64, bytes: u64) -> Self {
        Self::new(operation, offset, bytes, Errno::EINVAL)
    }

    /// Memory that can't be had.
    #[must_use]
    pub fn no_room(operation: Operation, bytes: u64) -> Self {
        Self::new(operation, 0, bytes, Errno::ENOMEM)
    }

    pub(crate) fn new(operation: Operation, offset: u64, bytes: u64, errno: Errno) -> Self {
        Self { operation, offset, bytes, errno }
    }
}

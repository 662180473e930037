//! What can be wrong with a text, and what a kernel can do wrong.

use std::fmt;

/// Why a text is no module that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}, column {column}: {cause}")]
#[non_exhaustive]
pub struct ParseError {
    /// Line in the text, from 1.
    pub line: u32,
    /// Column in the line in bytes, from 1.
    pub column: u32,
    /// What is wrong there.
    pub cause: String,
}

impl ParseError {
    pub(crate) fn new(at: crate::text::At, cause: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, cause: cause.into() }
    }
}

/// Where in the grid a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockThread {
    /// Index of the block in the grid: x, y, z.
    pub block: [u32; 3],
    /// Index of the thread in the block: x, y, z.
    pub thread: [u32; 3],
}

/// What a kernel did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultKind {
    /// The launch itself is refused: nothing ran.
    #[error("launch refused: {0}")]
    Launch(String),
    /// An access that is not wholly inside memory that exists.
    #[error("{what} of {bytes} bytes at {address:#x} is out of bounds: {detail}")]
    OutOfBounds {
        /// Load, store, atomic…
        what: &'static str,
        /// As the kernel computed it.
        address: u64,
        /// Of the whole access.
        bytes: u32,
        /// What is there instead.
        detail: String,
    },
    /// An access that is not aligned to its own size.
    #[error("{what} of {bytes} bytes at {address:#x} is misaligned")]
    Misaligned {
        /// Load, store, atomic…
        what: &'static str,
        /// As the kernel computed it.
        address: u64,
        /// Of the whole access, and the alignment it needs.
        bytes: u32,
    },
    /// A store to memory that can't be written.
    #[error("store to read-only memory at {0:#x}")]
    ReadOnly(u64),
    /// All threads that are left wait, and nobody will come.
    #[error("deadlock: {0}")]
    Deadlock(String),
    /// Two threads touched the same shared memory, one of them writing, without a barrier between.
    #[error("shared-memory race at byte {address:#x}: {detail}")]
    Race {
        /// Offset in the block's shared memory.
        address: u64,
        /// Which other thread and which other line.
        detail: String,
    },
    /// A warp ran more instructions than [`Limits::warp_instructions_max`](crate::Limits).
    #[error("a warp ran {0} instructions: an endless loop?")]
    InstructionLimit(u64),
    /// An integer was divided by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// The kernel said `trap`.
    #[error("trap")]
    Trap,
    /// A collective instruction was used against its rules.
    #[error("{0}")]
    Collective(String),
}

/// The first thing a kernel did wrong; the launch ends there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What was wrong.
    pub kind: FaultKind,
    /// The kernel.
    pub entry: Box<str>,
    /// Line in the PTX, from 1; 0 if the launch was refused.
    pub line: u32,
    /// The text of that line.
    pub instruction: Box<str>,
    /// The thread that did it, or the first of those that did.
    pub at: Option<BlockThread>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.entry, self.kind)?;
        if self.line != 0 {
            write!(f, "; PTX line {}: `{}`", self.line, self.instruction)?;
        }
        if let Some(BlockThread { block, thread }) = self.at {
            write!(f, "; block {block:?}, thread {thread:?}")?;
            write!(f, " (of x, y, z)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

//! The ways to read a file, best first, and the record of every step down.
//!
//! Two axes (design decision 1). Access, per file: `direct → dontcache → buffered`. Performer,
//! for the whole load: `uring-polled → uring → threads`, or `tokio-uring → threads`. A refusal moves
//! one of them by one rung; the bytes that were received before it stay received.

use nix::errno::Errno;
use std::fmt;

/// How a read reaches the file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `O_DIRECT`: storage to memory, past the page cache. Offset, length and memory aligned.
    Direct,
    /// `RWF_DONTCACHE` (Linux 6.14): through the page cache, which keeps nothing of it.
    DontCache,
    /// Plain buffered reads.
    Buffered,
    /// Copied out of a mapping of the file.
    Mapped,
}

impl Access {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Direct, Self::DontCache, Self::Buffered, Self::Mapped];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DontCache => "dontcache",
            Self::Buffered => "buffered",
            Self::Mapped => "mmap",
        }
    }

    /// The next rung down.
    #[must_use]
    pub fn below(self) -> Option<Self> {
        match self {
            Self::Direct => Some(Self::DontCache),
            Self::DontCache | Self::Mapped => Some(Self::Buffered),
            Self::Buffered => None,
        }
    }

    /// Its place in arrays that hold something for each access.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Who performs the reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Performer {
    /// The same as [`Performer::Uring`], which asks the device for completions instead of waiting
    /// for its interrupts (IOPOLL). Direct reads only, from a device with queues for that.
    UringPolled,
    /// io_uring, from one thread.
    Uring,
    /// io_uring, through the tokio-uring runtime of the thread.
    TokioUring,
    /// Blocking calls on several threads: `preadv2`, or copies out of a mapping.
    Threads,
}

impl Performer {
    /// Whether it is io_uring, and there is another one behind it.
    #[must_use]
    pub fn is_ring(self) -> bool {
        self != Self::Threads
    }

    /// Who takes over when it is left.
    #[must_use]
    pub fn below(self) -> Option<Self> {
        match self {
            Self::UringPolled => Some(Self::Uring),
            Self::Uring | Self::TokioUring => Some(Self::Threads),
            Self::Threads => None,
        }
    }

    /// Whether it has no way to ask for such reads: its runtime passes no flags on.
    pub(crate) fn lacks(self, access: Access) -> bool {
        (self, access) == (Self::TokioUring, Access::DontCache)
    }

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UringPolled => "uring-polled",
            Self::Uring => "uring",
            Self::TokioUring => "tokio-uring",
            Self::Threads => "threads",
        }
    }
}

/// Whether steps down are taken or are errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Step down, record it, go on.
    #[default]
    Allowed,
    /// The first refusal ends the load.
    Forbidden,
}

/// What a step leads from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named in `name`")]
pub enum Rung {
    Access(Access),
    Performer(Performer),
    RegisteredBuffers,
    PlainBuffers,
    RegisteredFiles,
    PlainFiles,
    Populate,
    Touch,
}

impl Rung {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Access(access) => access.name(),
            Self::Performer(performer) => performer.name(),
            Self::RegisteredBuffers => "registered buffers",
            Self::PlainBuffers => "plain buffers",
            Self::RegisteredFiles => "registered files",
            Self::PlainFiles => "plain files",
            Self::Populate => "populate",
            Self::Touch => "touch",
        }
    }
}

/// When the refusal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepAt {
    /// Opening the file.
    Open,
    /// Reading it.
    Read,
    /// Setting the engine up.
    Setup,
}

impl StepAt {
    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Setup => "setup",
        }
    }
}

/// One step down, as it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the file, `None` when it concerns the whole load.
    pub file: Option<usize>,
    /// The rung that was refused.
    pub from: Rung,
    /// The rung used instead.
    pub to: Rung,
    /// What the kernel answered.
    pub errno: Errno,
    /// When.
    pub at: StepAt,
    /// The file offset of the refused read.
    pub offset: Option<u64>,
    /// In words.
    pub reason: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} at {}", self.from.name(), self.to.name(), self.at.name())?;
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, " ({:?}: {})", self.errno, self.reason)
    }
}

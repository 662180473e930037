//! Reading model files, as fast as the storage and exactly.
//!
//! ```text
//!   ModelFile ─ probe ─▶ ReadSpec… ─▶ Schedule ◀─ op / completion ─▶ engine ─▶ Slot<Full>
//! ```
//!
//! [`ModelFile`] opens a file and finds out what it takes (direct I/O, at which alignment, what
//! the page cache holds). [`Schedule`] decides, without a system call, which bytes are asked for
//! next and what a completion means: short reads, refusals, the ladder. The engines perform its
//! operations ([`Performer::Uring`], which may poll, [`Performer::Threads`], and where the feature `tokio-uring` is
//! on, [`Performer::TokioUring`]) and decide nothing.
//! [`ReadJob::run`] ties them together on the thread that calls it. Tensors that stay in a mapping
//! are no reads: [`PrefetchJob`] brings their pages in.
//!
//! Nothing here knows tensors, devices or policies.

mod bell;
pub mod cache;
mod cancel;
mod engine;
mod failure;
mod fault;
mod feed;
mod file;
mod ladder;
mod prefetch;
mod probe;
mod schedule;
mod trace;

/// By a name of its own, so that the models of `tests/loom` can put loom's in its place.
mod sync {
    pub(crate) use std::sync::*;
}

pub use cancel::Cancel;
pub use engine::{
    Filled, FreeSlots, ReadJob, ReadOutcome, ReadStats, SlotReturn, THREADS_MAX, UringSupport,
    slot_channel, uring_support,
};
pub use failure::{FailureKind, ReadFailure};
pub use fault::Fault;
pub use feed::Feed;
pub use file::{FileIdentity, ModelFile, OpenError, OpenErrorKind};
pub use ladder::{Access, Fallback, Performer, Rung, Step, StepAt};
pub use nix::errno::Errno;
pub use prefetch::{MappedRange, PrefetchJob, PrefetchOutcome};
pub use probe::{AlignmentSource, DirectAlignment, Readahead};
pub use schedule::{ByAccess, Completion, Op, ReadSpec, Schedule};
pub use trace::{PrefetchTrace, RangeLabels, ReadTrace};

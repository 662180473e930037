//! Memory for moving model weights.
//!
//! What is here: [`Alignment`] arithmetic; [`Region`], an anonymous huge-page mapping, or memory that
//! somebody lends ([`HostPointer`]); [`Slab`],
//! a region cut into slots whose owner the type system knows ([`Slot`]); [`Place`], a range that a
//! slot is aimed at when its bytes need no copy; [`FileMapping`], a
//! read-only view of a model file that reports a vanished page as an error instead of a signal;
//! [`PageLock`], memory locked exactly and given back on drop.
//!
//! What is not: files are opened and read by `forebay-io`, devices live in `forebay-device`.
//! Every `unsafe` of this crate is about memory that the type it stands in owns.

mod align;
mod at_hand;
mod error;
mod lock;
mod mapping;
pub mod numa;
mod place;
mod pointer;
mod populate;
mod region;
mod residency;
mod slab;

/// By a name of its own, so that the models of `tests/loom` can put loom's in its place.
mod sync {
    pub(crate) use std::sync::*;
    pub(crate) use std::thread::yield_now;
}

pub use align::{Alignment, HUGE_PAGE_BYTES, page_bytes};
pub use at_hand::{MemoryAtHand, memory_at_hand};
pub use error::{MemoryError, Operation};
pub use lock::{LockReport, PageLock, memlock_limit_bytes};
pub use mapping::{FileMapping, MappedView, Writes};
pub use place::{Place, PlaceWatch};
pub use pointer::HostPointer;
pub use region::Region;
pub use residency::Expect;
pub use slab::{Draining, Filling, Free, Full, Slab, Slot, SlotCensus, SlotMemory};

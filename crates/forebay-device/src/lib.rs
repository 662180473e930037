//! Where tensors land.
//!
//! An [`Uploader`] takes full slots, copies their segments to where each belongs, and gives the
//! slots back when the copies have completed. What it copies into are arenas, sized before the
//! first byte is read, whose tensors can be looked at once they are whole: in a CUDA device's memory
//! ([`cuda`]), or in ordinary memory ([`HostArena`]), which also stands in for a device that is not
//! there, reached by the very path that a GPU is. Nothing here knows files, formats or policies.

mod arena;
pub mod cuda;
mod error;
mod pool;
mod trace;
mod uploader;

/// By a name of its own, so that the models of `tests/loom` can put loom's in its place.
mod sync {
    pub(crate) use std::sync::*;
}

pub use arena::{ArenaLayout, Arrange, HostArena, HostWriter};
pub use error::DeviceError;
pub use pool::{ArenaWatch, Bay, BayArena, Pool};
pub use trace::UploadTrace;
pub use uploader::{Columns, Drained, Segment, Uploader, Writer};

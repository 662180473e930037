//! Where tensors land.
//!
//! An [`Uploader`] takes full slots, copies their segments to where each belongs, and gives the
//! slots back when the copies have completed. What it copies into is an arena, sized before the
//! first byte is read, whose tensors can be looked at once they are whole.
//!
//! [`HostUploader`] is the stand-in device: ordinary memory in huge pages, reached by the very
//! path that a GPU is. Nothing here knows files, formats or policies.

mod arena;
mod error;
mod host;
mod uploader;

pub use arena::{ArenaLayout, Arrange, HostArena, HostWriter};
pub use error::DeviceError;
pub use host::HostUploader;
pub use uploader::{Segment, Uploader};

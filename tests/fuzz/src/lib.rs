//! What the fuzz targets share: an allocator that counts, the promises that every header keeps, and
//! a folder in memory for those targets that open files.
//!
//! A target says nothing of what a file should be. It says what must be true of whatever is accepted
//! and of whatever is refused; libFuzzer looks for the file of which it is not.

pub mod folder;
pub mod headers;
pub mod memory;

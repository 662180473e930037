//! What the tests of the workspace share.
//!
//! - [`pattern`]: bytes that are the same on every machine and nowhere alike;
//! - [`Scratch`]: a folder on a disk that takes direct reads, with files of such bytes;
//! - [`Load`]: a read job over real files with a stand-in uploader, which checks after every run
//!   that each byte is right and no slot was lost;
//! - [`Script`]: what a kernel might have answered instead;
//! - [`seccomp`]: a kernel that forbids a system call, as container runtimes do;
//! - [`memlock`]: an ordinary user's limit of locked memory, also for root;
//! - [`Timeline`]: a trace file, checked after the format and taken apart;
//! - [`residence`]: what the kernel says of pages, asked for without the loader's own code.

mod fault;
mod load;
pub mod memlock;
pub mod residence;
mod scratch;
pub mod seccomp;
mod timeline;

pub use fault::{Answer, Rule, Script};
pub use load::{Landed, Load, Places, cut};
pub use scratch::{Scratch, pattern};
pub use timeline::{Event, Timeline};

//! Where tests tamper.

use crate::schedule::Op;
use nix::errno::Errno;

/// Changes what engines see of a completion. Every engine passes each completion through the
/// job's fault, if it has one, before the schedule hears of it; the library never sets one.
pub trait Fault: Send {
    /// Gets the operation, what the kernel answered, and the part of the slot from the
    /// operation's start to its end; returns what the engine shall believe. An implementation
    /// that takes bytes away should also scribble over them, so that a loader which does not
    /// read them again is caught.
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        buffer: &mut [u8],
    ) -> Result<u32, Errno>;
}

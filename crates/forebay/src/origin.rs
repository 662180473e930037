//! The process that something was begun in. One that is forked off has its memory, but none of its
//! threads: there is nobody to wait for, and nothing to give back that is not the parent's.

use crate::error::Error;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_here(self) -> bool {
        self.0 == std::process::id()
    }

    /// # Errors
    /// [`Error::Forked`] in another process.
    pub(crate) fn check(self) -> Result<(), Error> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked { origin: self.0 }) }
    }
}

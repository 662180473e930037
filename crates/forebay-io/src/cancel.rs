//! One flag that says stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a thread of a load sleeps at most before it looks at the flag again.
pub(crate) const CANCEL_POLL: Duration = Duration::from_millis(25);

/// Asks a load to stop; clones share the flag. Setting it twice is harmless.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks to stop. Returns at once; the load ends when its reads in flight are drained.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

//! One flag that says stop.

use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a thread of a load sleeps at most before it looks at the flag again.
pub(crate) const CANCEL_POLL: Duration = Duration::from_millis(25);

/// Asks a load to stop; clones share the flag. Setting it twice is harmless. Whoever finds it set
/// finds what was written before that, too: why it was set, say.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    /// The one that this was derived from.
    above: Option<Box<Cancel>>,
}

impl Cancel {
    /// A flag of its own that heeds this one as well: for one load among several that share a
    /// flag.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { flag: Arc::default(), above: Some(Box::new(self.clone())) }
    }

    /// Asks to stop. Returns at once; the load ends when its reads in flight are drained.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Acquire) || self.above.as_ref().is_some_and(|it| it.is_cancelled())
    }
}

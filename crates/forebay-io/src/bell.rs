//! Wakes the task that an engine is, where the engine is no thread.

use crate::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

/// Shared by the task and those who have something for it. The task listens, then looks, then
/// sleeps; so it misses nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bell(Arc<Mutex<Option<Waker>>>);

impl Bell {
    /// The next ring wakes `waker`.
    #[cfg(feature = "tokio-uring")]
    pub(crate) fn listen(&self, waker: &Waker) {
        let mut listener = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *listener {
            Some(listener) => listener.clone_from(waker),
            None => *listener = Some(waker.clone()),
        }
    }

    /// Wakes who listens, if anybody does.
    pub(crate) fn ring(&self) {
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        listener.into_iter().for_each(Waker::wake);
    }
}

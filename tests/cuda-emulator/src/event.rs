//! Events: each record makes a completion of its own, and every question means the latest record
//! at the time of the question.

use crate::device::Device;
use crate::handles::lock;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Something that happens once.
#[derive(Debug, Default)]
pub(crate) struct Completion {
    /// When it was due by the stream's timeline.
    at: Mutex<Option<Instant>>,
    done: Condvar,
}

impl Completion {
    pub(crate) fn complete(&self, at: Instant) {
        *lock(&self.at) = Some(at);
        self.done.notify_all();
    }

    /// When it happened, if it has.
    pub(crate) fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }

    /// Waits for it, without burning a core.
    pub(crate) fn wait(&self) -> Instant {
        let mut at = lock(&self.at);
        loop {
            if let Some(at) = *at {
                return at;
            }
            at = self.done.wait(at).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// An event of a device's context.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) device: Arc<Device>,
    pub(crate) keeps_time: bool,
    latest: Mutex<Option<Arc<Completion>>>,
}

impl Event {
    pub(crate) fn new(device: Arc<Device>, keeps_time: bool) -> Self {
        Self { device, keeps_time, latest: Mutex::new(None) }
    }

    /// A fresh completion, which is from now on what the event means.
    pub(crate) fn record(&self) -> Arc<Completion> {
        let completion = Arc::new(Completion::default());
        *lock(&self.latest) = Some(Arc::clone(&completion));
        completion
    }

    /// What the event means now; `None` if it was never recorded, which counts as complete.
    pub(crate) fn latest(&self) -> Option<Arc<Completion>> {
        lock(&self.latest).clone()
    }
}

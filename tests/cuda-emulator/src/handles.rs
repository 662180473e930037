//! Handles: opaque numbers that are looked up, never followed.

use crate::error::{Answer, Code};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A lock whose holder panicked is still a lock: the panic has been told where it happened.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The live objects of one kind, by handle. A handle is never given out twice.
#[derive(Debug)]
pub(crate) struct Handles<T: ?Sized> {
    live: Mutex<(usize, BTreeMap<usize, Arc<T>>)>,
}

impl<T: ?Sized> Handles<T> {
    /// Handles count upward from `first`, which tells the kinds apart.
    pub(crate) fn starting_at(first: usize) -> Self {
        Self { live: Mutex::new((first, BTreeMap::new())) }
    }

    pub(crate) fn add(&self, object: Arc<T>) -> usize {
        let mut live = lock(&self.live);
        let handle = live.0;
        live.0 += 0x10;
        live.1.insert(handle, object);
        handle
    }

    pub(crate) fn get(&self, handle: usize) -> Answer<Arc<T>> {
        lock(&self.live).1.get(&handle).cloned().ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn remove(&self, handle: usize) -> Answer<Arc<T>> {
        lock(&self.live).1.remove(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// Takes out every object for which `gone` holds.
    pub(crate) fn remove_where(&self, gone: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let mut live = lock(&self.live);
        let handles: Vec<usize> =
            live.1.iter().filter(|(_, object)| gone(object)).map(|(handle, _)| *handle).collect();
        handles.iter().filter_map(|handle| live.1.remove(handle)).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        lock(&self.live).1.values().cloned().collect()
    }
}

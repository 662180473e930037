//! How far the mapped tensors of a load have come into memory, for those who wait for one.

use crate::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::collections::HashMap;
use std::time::Instant;

/// Shared by the load's threads and its tensors.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    state: Mutex<State>,
    changed: Condvar,
    first: OnceLock<Instant>,
    /// By tensor: the position from which on it is there.
    ready_at: HashMap<usize, u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that are there, counted in order of use.
    position: u64,
    /// Nobody brings any more.
    ended: bool,
}

impl Resident {
    /// For tensors with these positions, if somebody will bring them.
    pub(crate) fn new(tensors: &[(usize, u64)], comes: bool) -> Self {
        let ready_at = tensors.iter().copied().collect();
        let state = State { ended: !comes, ..State::default() };
        Self { ready_at, state: Mutex::new(state), ..Self::default() }
    }

    /// When the first tensor was there.
    pub(crate) fn first(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// A tensor is there now.
    pub(crate) fn note_tensor(&self) {
        self.first.get_or_init(Instant::now);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything up to `position` is there.
    pub(crate) fn advance(&self, position: u64) {
        self.state().position = position;
        self.changed.notify_all();
    }

    /// Nothing more is brought: who waits must do it himself.
    pub(crate) fn end(&self) {
        self.state().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the tensor has been brought in, or nobody brings any more.
    pub(crate) fn wait_for(&self, tensor: usize) {
        let Some(&ready_at) = self.ready_at.get(&tensor) else { return };
        let mut state = self.state();
        while state.position < ready_at && !state.ended {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

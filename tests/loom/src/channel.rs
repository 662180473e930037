//! As much of crossbeam's channels as is used by what is modelled, made of a lock. Waits have no end:
//! no timeout may be what saves a thread from sleeping for ever.

use crate::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<T>,
    room: usize,
    senders: usize,
    is_received: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

#[derive(Debug, PartialEq)]
pub(crate) enum TryRecvError {
    Empty,
    Disconnected,
}

#[derive(Debug)]
pub(crate) enum RecvTimeoutError {
    Disconnected,
}

#[derive(Debug)]
pub(crate) struct SendError<T>(pub(crate) T);

pub(crate) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { queue: VecDeque::new(), room, senders: 1, is_received: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    /// Of no channel that is modelled may the room ever be short, but where that is asked for by
    /// [`Sender::try_send`].
    pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut state = self.0.lock();
        if !state.is_received {
            return Err(SendError(value));
        }
        assert!(state.queue.len() < state.room, "a sender waits");
        state.queue.push_back(value);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }

    pub(crate) fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        let mut state = self.0.lock();
        if !state.is_received || state.queue.len() == state.room {
            return Err(SendError(value));
        }
        state.queue.push_back(value);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut state = self.0.lock();
        let none =
            if state.senders == 0 { TryRecvError::Disconnected } else { TryRecvError::Empty };
        state.queue.pop_front().ok_or(none)
    }

    pub(crate) fn recv(&self) -> Result<T, RecvTimeoutError> {
        let mut state = self.0.lock();
        loop {
            if let Some(value) = state.queue.pop_front() {
                return Ok(value);
            }
            if state.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            state = self.0.changed.wait(state).unwrap();
        }
    }

    pub(crate) fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
        self.recv()
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_received = false;
        let left = std::mem::take(&mut state.queue);
        drop(state);
        drop(left);
    }
}

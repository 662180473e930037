//! Who hears that a tensor is whole: the caller's thread through a channel, tasks by being woken.

use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use crate::waking::wake;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::task::{Poll, Waker};

/// A tensor is whole, by its index in the catalog.
pub(super) struct Landed(pub(super) usize);

/// What has landed, for tasks that wait.
#[derive(Default)]
pub(super) struct Landings {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the catalog's index.
    landed: Vec<bool>,
    /// Waits for any of them, or the end.
    stream: Option<Waker>,
    /// Wait for one of them.
    single: Vec<(usize, Waker)>,
    /// How many may still announce any.
    announcers: usize,
}

impl Landings {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor is whole: wakes those who wait for it.
    pub(super) fn note(&self, tensor: usize) {
        let mut state = self.lock();
        state.landed[tensor] = true;
        let mut woken: Vec<Waker> = state.stream.take().into_iter().collect();
        let mut at = 0;
        while at < state.single.len() {
            if state.single[at].0 == tensor {
                woken.push(state.single.swap_remove(at).1);
            } else {
                at += 1;
            }
        }
        drop(state);
        wake(woken);
    }

    /// Wakes `waker` when the next tensor lands, or nobody is left to bring any.
    pub(super) fn wake_stream(&self, waker: &Waker) {
        self.lock().stream = Some(waker.clone());
    }

    /// Whether a tensor is whole; `None` if it is not and will not be.
    pub(super) fn poll(&self, tensor: usize, waker: &Waker) -> Poll<Option<()>> {
        let mut state = self.lock();
        if state.landed[tensor] {
            return Poll::Ready(Some(()));
        }
        if state.announcers == 0 {
            return Poll::Ready(None);
        }
        let single = &mut state.single;
        match single.iter_mut().find(|(of, known)| *of == tensor && known.will_wake(waker)) {
            Some((_, known)) => known.clone_from(waker),
            None => single.push((tensor, waker.clone())),
        }
        Poll::Pending
    }
}

/// Tells that tensors have landed. With the last clone ends the telling.
pub(super) struct Announcer {
    /// `None` once it is being dropped.
    channel: Option<Sender<Landed>>,
    landings: Arc<Landings>,
}

impl Announcer {
    /// For so many tensors, of which each lands at most once: telling never waits.
    pub(super) fn new(tensors: usize) -> (Self, Receiver<Landed>, Arc<Landings>) {
        let (channel, landed) = bounded(tensors + 1);
        let landings = Arc::new(Landings::default());
        {
            let mut state = landings.lock();
            state.landed = vec![false; tensors];
            state.announcers = 1;
        }
        let announcer = Self { channel: Some(channel), landings: Arc::clone(&landings) };
        (announcer, landed, landings)
    }

    pub(super) fn announce(&self, tensor: usize) {
        // Nobody may listen.
        let _ = self.channel.as_ref().map(|channel| channel.send(Landed(tensor)));
        self.landings.note(tensor);
    }
}

impl Clone for Announcer {
    fn clone(&self) -> Self {
        self.landings.lock().announcers += 1;
        Self { channel: self.channel.clone(), landings: Arc::clone(&self.landings) }
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        // Before those are woken who look whether the channel is closed.
        drop(self.channel.take());
        let mut state = self.landings.lock();
        state.announcers -= 1;
        if state.announcers > 0 {
            return;
        }
        let mut woken: Vec<Waker> = state.stream.take().into_iter().collect();
        woken.extend(std::mem::take(&mut state.single).into_iter().map(|(_, waker)| waker));
        drop(state);
        wake(woken);
    }
}

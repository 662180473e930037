//! Waking tasks from threads of a load.
//!
//! A waker may run its task there and then, on the thread that wakes. The task may end the load, and
//! that thread can't wait for itself: so it is noted who wakes, and the waiting is left to others.

use std::cell::Cell;
use std::mem::forget;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::Builder;

thread_local! {
    static IS_WAKING: Cell<bool> = const { Cell::new(false) };
}

/// Puts back what was noted before, also when a task panics.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        IS_WAKING.set(self.0);
    }
}

/// Wakes them, with no lock held that a task might want.
pub(crate) fn wake(wakers: Vec<Waker>) {
    let _before = Before(IS_WAKING.replace(true));
    wakers.into_iter().for_each(Waker::wake);
}

/// Whether this is called by a task that is run by the thread that woke it.
pub(crate) fn is_waking() -> bool {
    IS_WAKING.get()
}

/// Does what waits for threads of a load on a thread of its own, since the caller is run by one of
/// those.
pub(crate) fn apart(work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let thread = Builder::new().name("forebay-end".to_owned()).spawn(move || {
        if let Some(work) = take(&theirs) {
            work();
        }
    });
    if thread.is_err() {
        // Nobody can wait: what threads use stays theirs.
        forget(take(&work));
    }
}

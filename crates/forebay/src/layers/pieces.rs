//! What a fetcher knows of its pieces: on their way, there, lent; and what waits for them.

use super::cache::{CachePolicy, Piece};
use super::setting::{HostDevice, hold};
use super::supply::{Command, Landed, Reports};
use crate::error::Error;
use crate::loaded::{Tensor, TensorMemory, Tensors};
use crate::plan::Plan;
use crate::resident::Resident;
use crate::waking::wake;
use crossbeam_channel::Sender;
use forebay_format::Catalog;
use forebay_mem::PageLock;
use serde::Serialize;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context as TaskContext, Poll, Waker};

/// What has been asked for, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct FetchStats {
    /// Fetches in all.
    pub fetches: u64,
    /// Of which found what they wanted on the device, or on its way there.
    pub hits: u64,
    /// Pieces that made room for others.
    pub evicted: u64,
    /// Fetches that were dropped before their bytes had come.
    pub cancelled: u64,
    /// Bytes that were read, alignment included.
    pub read_bytes: u64,
    /// Bytes of pieces among them.
    pub wanted_bytes: u64,
    /// Time in which pieces were on their way and nothing of them was there to upload.
    pub upload_waited_s: f64,
    /// Time in which there was nothing to read, or no slot for it.
    pub read_waited_s: f64,
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) plan: Arc<Plan>,
    /// Where a GPU computes in the machine's memory.
    pub(super) host_device: HostDevice,
}

pub(super) struct State {
    pub(super) pieces: HashMap<Piece, Entry>,
    /// By ticket: what is on its way.
    pub(super) tickets: HashMap<u64, Piece>,
    pub(super) next_ticket: u64,
    pub(super) policy: Box<dyn CachePolicy>,
    /// Whether pieces are lent.
    pub(super) has_lent: bool,
    pub(super) stats: FetchStats,
    /// The threads have ended.
    pub(super) has_ended: bool,
}

pub(super) enum Entry {
    Coming {
        ticket: u64,
        waiting: Vec<Arc<Mutex<Waiting>>>,
    },
    There(Arc<Tensors>),
    /// Given up for want of room, and there as long as somebody uses it.
    Lent(Weak<Tensors>),
}

/// One fetch that waits.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) tensors: Option<Arc<Tensors>>,
    waker: Option<Waker>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many elements the outermost dimension has.
pub(super) fn slices(tensor: &forebay_format::Tensor) -> u64 {
    tensor.shape.first().copied().unwrap_or(1)
}

/// What a piece is, as if it were a tensor of its own.
pub(super) fn slice(catalog: &Catalog, Piece { tensor, range }: &Piece) -> forebay_format::Tensor {
    let mut entry = catalog.tensors()[*tensor].clone();
    let slices = slices(&entry);
    if *range != (0..slices) {
        let slice_bytes = entry.bytes / slices.max(1);
        entry.name = format!("{}[{}..{}]", entry.name, range.start, range.end);
        entry.offset += range.start * slice_bytes;
        entry.bytes = (range.end - range.start) * slice_bytes;
        entry.shape[0] = range.end - range.start;
    }
    entry
}

/// What the supply tells.
pub(super) struct Lands(pub(super) Arc<Shared>);

impl Reports for Lands {
    fn landed(&mut self, Landed { ticket, arena }: Landed) {
        let shared = &self.0;
        let mut state = lock(&shared.state);
        let Some(piece) = state.tickets.remove(&ticket) else { return };
        let Some(Entry::Coming { waiting, .. }) = state.pieces.remove(&piece) else { return };
        let plan = &shared.plan;
        let catalog = plan.model.shared_catalog();
        let entry = slice(&catalog, &piece);
        let part = hold(&arena, 0, &shared.host_device);
        let tensors = Arc::new(Tensors {
            memory: vec![TensorMemory::Arena { part, interleaved: None }],
            backends: vec![plan.tensor_backends[piece.tensor]],
            entries: Some(vec![entry]),
            resident: Resident::new(&[], false),
            reclaim: false,
            lock: PageLock::default(),
            staging: None,
            catalog,
        });
        let mut wakers = Vec::new();
        for waiting in waiting {
            let mut waiting = lock(&waiting);
            waiting.tensors = Some(Arc::clone(&tensors));
            wakers.extend(waiting.waker.take());
        }
        state.pieces.insert(piece, Entry::There(tensors));
        drop(state);
        shared.changed.notify_all();
        // Without the lock: some poll at once.
        wake(wakers);
    }

    fn make_room(&mut self) -> bool {
        let mut state = lock(&self.0.state);
        if state.evict(true) {
            return true;
        }
        // Whatever is in use comes back when it no longer is: whose user is done first, nobody knows.
        while state.evict(false) {}
        // What a user has let go of meanwhile, nobody tells.
        state.evict(true)
    }

    fn has_room(&mut self) {
        lock(&self.0.state).take_back_lent();
    }
}

/// Whether nobody but the cache has it: no tensor, and no product on a device.
fn is_idle(tensors: &Arc<Tensors>) -> bool {
    Arc::strong_count(tensors) == 1 && tensors.others() == 0
}

impl State {
    /// Lets the policy choose one that goes; `false` if there is none, or it chooses none.
    fn evict(&mut self, idle: bool) -> bool {
        let Self { pieces, policy, has_lent, stats, .. } = self;
        let is_wanted = |entry: &Entry| match entry {
            Entry::There(tensors) => is_idle(tensors) == idle,
            Entry::Coming { .. } | Entry::Lent(_) => false,
        };
        let candidates = pieces.iter().filter(|(_, entry)| is_wanted(entry));
        let mut candidates: Vec<Piece> = candidates.map(|(piece, _)| piece.clone()).collect();
        // In an order that does not depend on the map's.
        candidates.sort_by_key(|piece| (piece.tensor, piece.range.start, piece.range.end));
        if candidates.is_empty() {
            return false;
        }
        let victim = policy.victim(&candidates).and_then(|index| candidates.get(index));
        let Some(victim) = victim else { return false };
        let Some(Entry::There(tensors)) = pieces.remove(victim) else { return false };
        if idle {
            policy.evicted(victim);
            stats.evicted += 1;
        } else {
            *has_lent = true;
            pieces.insert(victim.clone(), Entry::Lent(Arc::downgrade(&tensors)));
        }
        true
    }

    /// Of what was given up, that which is still used stays, now that there is room.
    fn take_back_lent(&mut self) {
        if !std::mem::take(&mut self.has_lent) {
            return;
        }
        let Self { pieces, policy, stats, .. } = self;
        pieces.retain(|piece, entry| {
            let Entry::Lent(lent) = entry else { return true };
            let Some(tensors) = lent.upgrade() else {
                policy.evicted(piece);
                stats.evicted += 1;
                return false;
            };
            *entry = Entry::There(tensors);
            true
        });
    }
}

impl Drop for Lands {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.has_ended = true;
        let mut wakers = Vec::new();
        for entry in state.pieces.values() {
            let Entry::Coming { waiting, .. } = entry else { continue };
            wakers.extend(waiting.iter().filter_map(|waiting| lock(waiting).waker.take()));
        }
        drop(state);
        self.0.changed.notify_all();
        wake(wakers);
    }
}

/// A piece on its way: a future on any runtime, or to be waited for.
///
/// It yields [`Error::AlreadyReported`] if the fetcher has ended by then; [`Fetcher::check`](crate::Fetcher::check) says
/// why.
pub struct Fetch {
    pub(super) shared: Arc<Shared>,
    pub(super) piece: Piece,
    pub(super) waiting: Arc<Mutex<Waiting>>,
    pub(super) orders: Option<Sender<Command>>,
    pub(super) is_done: bool,
}

impl Fetch {
    /// Waits until it is there.
    ///
    /// # Errors
    /// [`Error::AlreadyReported`] if the fetcher has ended; [`Fetcher::check`](crate::Fetcher::check) says why.
    pub fn wait(mut self) -> Result<Tensor, Error> {
        let shared = Arc::clone(&self.shared);
        let mut state = lock(&shared.state);
        loop {
            if let Some(answer) = self.answer(&state) {
                return answer;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        lock(&self.waiting).tensors.is_some()
    }

    fn answer(&mut self, state: &State) -> Option<Result<Tensor, Error>> {
        if let Some(tensors) = lock(&self.waiting).tensors.take() {
            self.is_done = true;
            return Some(Ok(tensors.at(0, self.piece.tensor)));
        }
        state.has_ended.then(|| {
            self.is_done = true;
            Err(Error::AlreadyReported)
        })
    }
}

impl Future for Fetch {
    type Output = Result<Tensor, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let shared = Arc::clone(&self.shared);
        let state = lock(&shared.state);
        if let Some(answer) = self.answer(&state) {
            return Poll::Ready(answer);
        }
        let before = lock(&self.waiting).waker.replace(context.waker().clone());
        drop(state);
        // Without the lock: with its last waker a task may go, and give up a fetch of its own.
        drop(before);
        Poll::Pending
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut state = lock(&self.shared.state);
        let State { pieces, tickets, stats, .. } = &mut *state;
        let Some(Entry::Coming { ticket, waiting }) = pieces.get_mut(&self.piece) else { return };
        let before = waiting.len();
        waiting.retain(|other| !Arc::ptr_eq(other, &self.waiting));
        stats.cancelled += (before - waiting.len()) as u64;
        if !waiting.is_empty() || before == 0 {
            return;
        }
        let ticket = *ticket;
        tickets.remove(&ticket);
        pieces.remove(&self.piece);
        if let Some(orders) = &self.orders {
            // If the thread has ended, nothing is left to take back.
            let _ = orders.send(Command::Cancel(ticket));
        }
    }
}

//! Tensors, and slices of them, on demand: how the experts of a mixture come to the device.

use super::cache::{CachePolicy, Lru, Piece};
use super::running::{Ended, Running, Setup, Target};
use super::setting::{HostDevice, budgets, check, hold};
use super::supply::{Command, Landed, Order, Reports, Work};
use super::units::kind;
use crate::error::Error;
use crate::loaded::{Tensor, TensorMemory, Tensors};
use crate::loader::Options;
use crate::model::Model;
use crate::pipeline::{contexts, map_files};
use crate::plan::{Home, Plan};
use crate::report::FallbackReport;
use crate::resident::Resident;
use forebay_device::ArenaLayout;
use forebay_device::cuda::Context;
use forebay_format::Catalog;
use forebay_io::{Cancel, Fault};
use forebay_mem::PageLock;
use forebay_trace::Trace;
use serde::Serialize;
use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context as TaskContext, Poll, Waker};

/// Says what to fetch from and how, then starts.
pub struct FetcherBuilder {
    path: PathBuf,
    options: Options,
    budget: Option<u64>,
    policy: Box<dyn CachePolicy>,
    cancel: Cancel,
    trace: Option<Trace>,
    fault: Option<Box<dyn Fault>>,
}

impl FetcherBuilder {
    /// The device, the load mode, the engine and the staging memory. Exactly one device.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Bytes that what was fetched may take on the device. If not given: nine tenths of what a GPU
    /// has free, or half of the memory at hand for the stand-in `host`.
    #[must_use]
    pub fn device_budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// What goes first when there is no room: by default what was not used for the longest time.
    #[must_use]
    pub fn policy(mut self, policy: impl CachePolicy + 'static) -> Self {
        self.policy = Box::new(policy);
        self
    }

    /// Lets `cancel` stop the fetcher from any thread.
    #[must_use]
    pub fn cancel_with(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Records reads and uploads on a timeline.
    #[must_use]
    pub fn trace(mut self, trace: &Trace) -> Self {
        self.trace = Some(trace.clone());
        self
    }

    /// For tests of the fetcher itself: tampers with what the engines see.
    #[doc(hidden)]
    #[must_use]
    pub fn fault(mut self, fault: Box<dyn Fault>) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Opens, plans and starts. Reads no tensor.
    ///
    /// # Errors
    /// As [`crate::LayerStreamBuilder::start`].
    pub fn start(self) -> Result<Fetcher, Error> {
        Fetcher::start(self)
    }
}

/// Brings tensors of a model, or slices of their outermost dimension, to a device when they are
/// asked for, and keeps as many of them there as it may.
///
/// ```no_run
/// use forebay::Fetcher;
///
/// let fetcher = Fetcher::builder("moe.gguf").device_budget(8 << 30).start()?;
/// // Experts 3 and 17 of a stacked tensor; both are on their way at once.
/// let name = "blk.0.ffn_gate_exps.weight";
/// let (third, seventeenth) = (fetcher.fetch(name, 3..4, 0)?, fetcher.fetch(name, 17..18, 0)?);
/// for expert in [third.wait()?, seventeenth.wait()?] {
///     println!("{:?}", expert.shape());
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
///
/// What is in use is never taken away: its memory goes to others when the last clone of its tensor
/// is dropped, and the products that use it have ended. A fetch for which there is no room waits for
/// that.
pub struct Fetcher {
    shared: Arc<Shared>,
    running: Mutex<Running>,
    plan: Arc<Plan>,
    context: Option<Arc<Context>>,
    budget: u64,
    cancel: Cancel,
}

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

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    plan: Arc<Plan>,
    /// Where a GPU computes in the machine's memory.
    host_device: HostDevice,
}

struct State {
    pieces: HashMap<Piece, Entry>,
    /// By ticket: what is on its way.
    tickets: HashMap<u64, Piece>,
    next_ticket: u64,
    policy: Box<dyn CachePolicy>,
    /// Whether pieces are lent.
    has_lent: bool,
    stats: FetchStats,
    /// The threads have ended.
    has_ended: bool,
}

enum Entry {
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
struct Waiting {
    tensors: Option<Arc<Tensors>>,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fetcher {
    /// A fetcher from the model at `path`, with every option at its default. Opens nothing yet.
    #[must_use]
    pub fn builder(path: impl AsRef<Path>) -> FetcherBuilder {
        FetcherBuilder {
            path: path.as_ref().to_owned(),
            options: Options::default(),
            budget: None,
            policy: Box::new(Lru::default()),
            cancel: Cancel::default(),
            trace: None,
            fault: None,
        }
    }

    fn start(builder: FetcherBuilder) -> Result<Self, Error> {
        let FetcherBuilder { path, options, budget, policy, cancel, trace, fault } = builder;
        let model = Model::open(&path)?;
        let units: Vec<usize> = (0..model.catalog().tensors().len()).collect();
        let plan = Arc::new(Plan::for_stream(&model, &options, &units)?);
        check(&plan)?;
        let contexts = contexts(&plan)?;
        let target = Target::new(kind(&plan), &contexts)?;
        let mappings = map_files(&plan)?;
        let all: u64 = plan.arenas.iter().map(|arena| arena.layout.bytes + 256).sum();
        let (at_most, _) = budgets((budget, Some(0)), &target, &plan)?;
        // More than all of it is never there.
        let budget = if budget.is_some() { at_most } else { at_most.min(all) };
        let state = State {
            pieces: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
            policy,
            has_lent: false,
            stats: FetchStats::default(),
            has_ended: false,
        };
        let context = target.context().cloned();
        let setup = Setup {
            plan: &plan,
            contexts: &contexts,
            target: &target,
            mappings: &mappings,
            pool_bytes: budget,
            trace: trace.as_ref(),
            reserved: Vec::new(),
            fault,
        };
        let mut made = None;
        let running = Running::start(setup, &cancel, |host_device| {
            let shared = Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
                plan: Arc::clone(&plan),
                host_device,
            });
            made = Some(Arc::clone(&shared));
            Box::new(Lands(shared))
        })?;
        let Some(shared) = made else {
            return Err(Error::Internal("a fetcher without its state".to_owned()));
        };
        Ok(Self { shared, running: Mutex::new(running), plan, context, budget, cancel })
    }

    /// Asks for the elements `range` of the outermost dimension of a tensor; the future is ready when
    /// they are whole and on the device, as a tensor of the same shape but for that dimension.
    /// Reading begins at once, those of higher priority first, whether or not the future is polled.
    /// Dropping the future before that takes the wish back; what was not begun is not read.
    ///
    /// # Errors
    /// [`Error::Option`] for tensors that the model does not have or that are not on the device,
    /// ranges past their end, and slices that are larger than the budget; [`Error::Cancelled`].
    pub fn fetch(&self, name: &str, range: Range<u64>, priority: i32) -> Result<Fetch, Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let (piece, entry) = self.piece(name, range)?;
        let layout = ArenaLayout::packed([entry.bytes])?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let mut state = lock(&self.shared.state);
        state.stats.fetches += 1;
        let ticket = state.next_ticket;
        let is_hit = match state.pieces.get_mut(&piece) {
            Some(Entry::There(tensors)) => {
                lock(&waiting).tensors = Some(Arc::clone(tensors));
                true
            }
            Some(Entry::Coming { waiting: others, .. }) => {
                others.push(Arc::clone(&waiting));
                true
            }
            Some(Entry::Lent(lent)) => {
                let tensors = lent.upgrade();
                let is_there = tensors.is_some();
                lock(&waiting).tensors = tensors;
                is_there
            }
            None => false,
        };
        if is_hit {
            state.policy.used(&piece);
            state.stats.hits += 1;
        } else {
            state.next_ticket += 1;
            let coming = Entry::Coming { ticket, waiting: vec![Arc::clone(&waiting)] };
            if state.pieces.insert(piece.clone(), coming).is_some() {
                // It was lent, and has gone.
                state.policy.evicted(&piece);
                state.stats.evicted += 1;
            }
            state.policy.used(&piece);
            state.tickets.insert(ticket, piece.clone());
        }
        drop(state);
        let orders = lock(&self.running).orders();
        if let Some(orders) = orders.as_ref().filter(|_| !is_hit) {
            let bay_bytes = layout.bytes;
            let work = Arc::new(self.work(piece.tensor, &entry, layout));
            let order = Order { ticket, work, bay_bytes, priority, shelf: None, reserved: None };
            // If the thread has ended, whoever waits for what it brings is told so.
            let _ = orders.send(Command::Bring(order));
        }
        Ok(Fetch { shared: Arc::clone(&self.shared), piece, waiting, orders, is_done: false })
    }

    /// The same for a whole tensor.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`].
    pub fn fetch_whole(&self, name: &str, priority: i32) -> Result<Fetch, Error> {
        let catalog = self.plan.model.catalog();
        let slices = catalog.position(name).map_or(1, |tensor| slices(&catalog.tensors()[tensor]));
        self.fetch(name, 0..slices, priority)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.plan.model
    }

    /// The CUDA device that pieces come to; `None` for the stand-in `host`.
    #[must_use]
    pub fn context(&self) -> Option<&Arc<Context>> {
        self.context.as_ref()
    }

    /// Bytes that pieces may take on the device.
    #[must_use]
    pub fn budget_bytes(&self) -> u64 {
        self.budget
    }

    /// What came of it all so far.
    #[must_use]
    pub fn stats(&self) -> FetchStats {
        let running = lock(&self.running);
        let counters = &running.counters;
        FetchStats {
            read_bytes: counters.read_bytes.load(Ordering::Relaxed),
            wanted_bytes: counters.uploaded_bytes.load(Ordering::Relaxed),
            upload_waited_s: counters.upload_waited_ns.load(Ordering::Relaxed) as f64 / 1e9,
            read_waited_s: (running.feed.idle() + running.feed.waited_for_slot()).as_secs_f64(),
            ..lock(&self.shared.state).stats
        }
    }

    /// Why the threads have ended, for the first who asks.
    ///
    /// # Errors
    /// What it was; [`Error::AlreadyReported`] afterwards.
    pub fn check(&self) -> Result<(), Error> {
        if !lock(&self.shared.state).has_ended {
            return Ok(());
        }
        let Ended { error, .. } = lock(&self.running).end();
        Err(error.unwrap_or(Error::AlreadyReported))
    }

    /// Ends it, and says what the machine refused on the way. What was fetched stays valid.
    ///
    /// # Errors
    /// Why the threads had ended before, if nobody has been told.
    pub fn finish(self) -> Result<Vec<FallbackReport>, Error> {
        let Ended { read, error } = lock(&self.running).end();
        match (error, read) {
            (Some(error), _) => Err(error),
            (None, Some(read)) => {
                Ok(read.schedule.steps().iter().map(FallbackReport::from).collect())
            }
            (None, None) => Err(Error::AlreadyReported),
        }
    }

    fn piece(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<(Piece, forebay_format::Tensor), Error> {
        let refuse = |cause: &str, remedy: &str| Error::option("fetch", cause, remedy);
        let catalog = self.plan.model.catalog();
        let Some(tensor) = catalog.position(name) else {
            return Err(refuse(
                &format!("the model has no tensor '{name}'"),
                "look at its catalog",
            ));
        };
        if !matches!(self.plan.homes[tensor], Home::Arena { .. }) {
            let cause = format!("'{name}' stays on the cpu");
            return Err(refuse(&cause, "place it on the device"));
        }
        let slices = slices(&catalog.tensors()[tensor]);
        let is_reordered = catalog.metadata().get(&format!("ptd.dim_order.{name}")).is_some();
        let is_whole = range == (0..slices);
        let has_bytes = catalog.tensors()[tensor].bytes;
        if !is_whole && !has_bytes.is_multiple_of(slices.max(1)) {
            let cause = format!("a slice of '{name}' is no number of whole bytes");
            return Err(refuse(&cause, "ask for the whole tensor"));
        }
        let is_one = is_reordered || catalog.tensors()[tensor].shape.is_empty();
        if range.start > range.end || range.end > slices || (is_one && !is_whole) {
            let cause = format!(
                "'{name}' has {slices} slices{}, and {}..{} are wanted",
                if is_reordered { " in an order of their own" } else { "" },
                range.start,
                range.end
            );
            return Err(refuse(&cause, "ask for some that there are"));
        }
        let piece = Piece { tensor, range };
        let entry = slice(catalog, &piece);
        if entry.bytes > self.budget {
            let cause = format!(
                "'{}' has {} bytes, and all that is fetched may take {}",
                entry.name, entry.bytes, self.budget
            );
            return Err(refuse(&cause, "give more device memory, or ask for less at a time"));
        }
        Ok((piece, entry))
    }

    fn work(&self, tensor: usize, entry: &forebay_format::Tensor, layout: ArenaLayout) -> Work {
        let range = entry.offset..entry.offset + entry.bytes;
        let reads = self.plan.cut_piece(entry.file, range);
        Work { layout, tensors: vec![tensor], reads }
    }
}

/// How many elements the outermost dimension has.
fn slices(tensor: &forebay_format::Tensor) -> u64 {
    tensor.shape.first().copied().unwrap_or(1)
}

/// What a piece is, as if it were a tensor of its own.
fn slice(catalog: &Catalog, Piece { tensor, range }: &Piece) -> forebay_format::Tensor {
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
struct Lands(Arc<Shared>);

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
        wakers.into_iter().for_each(Waker::wake);
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
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// A piece on its way: a future on any runtime, or to be waited for.
///
/// It yields [`Error::AlreadyReported`] if the fetcher has ended by then; [`Fetcher::check`] says
/// why.
pub struct Fetch {
    shared: Arc<Shared>,
    piece: Piece,
    waiting: Arc<Mutex<Waiting>>,
    orders: Option<crossbeam_channel::Sender<Command>>,
    is_done: bool,
}

impl Fetch {
    /// Waits until it is there.
    ///
    /// # Errors
    /// [`Error::AlreadyReported`] if the fetcher has ended; [`Fetcher::check`] says why.
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
        lock(&self.waiting).waker = Some(context.waker().clone());
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

impl Drop for Fetcher {
    fn drop(&mut self) {
        // Joins the threads, and so ends what waits.
        let _ = lock(&self.running).end();
    }
}

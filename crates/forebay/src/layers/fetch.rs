//! Tensors, and slices of them, on demand: how the experts of a mixture come to the device.

use super::cache::{CachePolicy, Lru, Piece};
use super::pieces::{Entry, Fetch, FetchStats, Lands, Shared, State, Waiting, lock, slice, slices};
use super::running::{Ended, Running, Setup};
use super::setting::Ground;
use super::supply::{Command, Order, Work};
use crate::error::Error;
use crate::model::Model;
use crate::options::Options;
use crate::origin::Origin;
use crate::plan::{Home, Plan};
use crate::report::FallbackReport;
use crossbeam_channel::Sender;
use forebay_device::ArenaLayout;
use forebay_device::cuda::Context;
use forebay_io::{Cancel, Fault};
use forebay_trace::Trace;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

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
    /// Where its orders go. A lock of its own: who waits for the threads holds the other one.
    orders: Mutex<Option<Sender<Command>>>,
    plan: Arc<Plan>,
    context: Option<Arc<Context>>,
    budget: u64,
    cancel: Cancel,
    origin: Origin,
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
        // Each tensor comes by itself.
        let units = |model: &Model| (0..model.catalog().tensors().len()).collect::<Vec<_>>();
        let (ground, _) = Ground::open(&path, &options, units)?;
        let plan = Arc::clone(&ground.plan);
        let all: u64 = plan.arenas.iter().map(|arena| arena.layout.bytes + 256).sum();
        let (at_most, _) = ground.budgets((budget, Some(0)))?;
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
        let context = ground.target.context().cloned();
        let setup = Setup {
            ground: &ground,
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
        let (origin, orders) = (running.origin, Mutex::new(running.orders()));
        let running = Mutex::new(running);
        Ok(Self { shared, running, orders, plan, context, budget, cancel, origin })
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
        self.origin.check()?;
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
        let orders = lock(&self.orders).clone();
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
    /// What it was; [`Error::AlreadyReported`] afterwards, and for a task that is run by the very thread that
    /// has ended, since its waker does so.
    pub fn check(&self) -> Result<(), Error> {
        if !lock(&self.shared.state).has_ended {
            return Ok(());
        }
        let Ended { error, .. } = self.end();
        Err(error.unwrap_or(Error::AlreadyReported))
    }

    /// Ends it, and says what the machine refused on the way. What was fetched stays valid.
    ///
    /// # Errors
    /// Why the threads had ended before, if nobody has been told.
    pub fn finish(self) -> Result<Vec<FallbackReport>, Error> {
        let Ended { read, error } = self.end();
        match (error, read) {
            (Some(error), _) => Err(error),
            (None, Some(read)) => {
                Ok(read.schedule.steps().iter().map(FallbackReport::from).collect())
            }
            (None, None) => Err(Error::AlreadyReported),
        }
    }

    fn end(&self) -> Ended {
        *lock(&self.orders) = None;
        lock(&self.running).end()
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

impl Drop for Fetcher {
    fn drop(&mut self) {
        // Joins the threads, and so ends what waits.
        let _ = self.end();
    }
}

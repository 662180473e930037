//! The stream of layers, as the caller drives it.

mod passes;

use super::builder::LayerStreamBuilder;
use super::layer::Layer;
use super::report::{PassReport, StreamReport, TierBytes};
use super::running::{Running, Setup};
use super::setting::{Ground, HostDevice, hold, too_small};
use super::supply::{Command, Landed, Order};
use super::tiers::{Split, Tier, UnitSize};
use super::units::{Grouped, Unit, units};
use crate::backend::Backend;
use crate::error::Error;
use crate::loaded::{TensorMemory, Tensors};
use crate::model::Model;
use crate::pipeline::WAIT_MIN;
use crate::plan::Home;
use crate::report::FallbackReport;
use crate::resident::Resident;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use forebay_device::cuda::Context;
use forebay_device::{ArenaWatch, BayArena};
use forebay_io::Cancel;
use forebay_mem::PageLock;
use forebay_trace::Trace;
use passes::{Clock, Snapshot};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long it is waited for products to let go of layers, before the device is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The layers of a model, in turn, again and again, on a device that need not have room for all of
/// them.
///
/// A fixed set of layers stays on the device; others are kept in pinned host memory and uploaded
/// for each pass; the rest is read each time. While the caller computes on one layer, the next ones
/// are read and uploaded. [`LayerStream::why`] says what went where.
///
/// ```no_run
/// use forebay::LayerStream;
///
/// let mut stream = LayerStream::builder("model.gguf").device_budget(4 << 30).start()?;
/// for _token in 0..100 {
///     while let Some(layer) = stream.next_layer()? {
///         for tensor in layer.tensors() {
///             // compute; the tensors are valid as long as `layer`, or a clone of a tensor, lives
///             println!("{} {:?}", layer.name(), tensor);
///         }
///     }
/// }
/// # Ok::<(), forebay::Error>(())
/// ```
///
/// # When memory is used again
///
/// The memory of a layer goes to another one when the [`Layer`], all clones of its tensors and all
/// products on a [`crate::ComputeStream`] that use it have ended. A caller who holds on to as many
/// layers as there is room for gets an error, not a wait without end.
pub struct LayerStream {
    units: Vec<Arc<Unit>>,
    sizes: Vec<UnitSize>,
    ground: Ground,
    budgets: (u64, u64),
    split: Split,
    why: Vec<String>,
    cancel: Cancel,
    trace: Option<Trace>,
    running: Running,
    landed: Receiver<Landed>,
    host_device: HostDevice,
    /// Landed, and not handed out yet.
    arrived: BTreeMap<u64, (Arc<Tensors>, ArenaWatch)>,
    resident: Vec<Option<Arc<Tensors>>>,
    /// Of those that stay: whether they have been ordered.
    is_ordered: Vec<bool>,
    /// Layers that were handed out and take up a bay, as long as a tensor of theirs is held.
    held: Vec<Held>,
    passes: Option<u64>,
    pass: u64,
    next: usize,
    /// The first ticket that has not been ordered.
    ordered: u64,
    clock: Clock,
    /// When the first layers were ordered, until the first pass is begun.
    started: Option<Instant>,
    /// What the passes that have ended are told of.
    counted: Snapshot,
    reports: Vec<PassReport>,
    may_retune: bool,
    has_failed: bool,
    fallbacks: Vec<FallbackReport>,
}

/// A layer that was handed out.
struct Held {
    tensors: Weak<Tensors>,
    arena: ArenaWatch,
}

impl LayerStream {
    /// A stream of the model at `path`, with every option at its default. Opens nothing yet.
    #[must_use]
    pub fn builder(path: impl AsRef<Path>) -> LayerStreamBuilder {
        LayerStreamBuilder::new(path.as_ref())
    }

    pub(super) fn start(builder: LayerStreamBuilder) -> Result<Self, Error> {
        let LayerStreamBuilder { path, options, grouping, passes, cancel, trace, fault, .. } =
            builder;
        let group = |model: &Model| {
            let names = model.catalog().tensors().iter().map(|tensor| tensor.name.as_str());
            Grouped::new(names, grouping.as_deref())
        };
        let (mut ground, grouped) = Ground::open(&path, &options, group)?;
        let units = units(&ground.plan, grouped).into_iter().map(Arc::new);
        let units: Vec<Arc<Unit>> = units.collect();
        let sizes: Vec<UnitSize> = units.iter().map(|unit| unit.size()).collect();
        let given = (builder.device_budget, builder.host_budget);
        let budgets = ground.budgets(given)?;
        let room = ground.room(budgets);
        let Some(split) = Split::choose(&sizes, room, None) else {
            return Err(too_small(budgets.0, &units, &sizes));
        };
        ground.hold_slots(split.held_slots(&sizes));
        let setup = Setup {
            ground: &ground,
            pool_bytes: split.device_bytes(&sizes),
            trace: trace.as_ref(),
            reserved: split.reserved(&sizes),
            fault,
        };
        let (running, landed, host_device) = start(setup, &cancel)?;
        let mut stream = Self {
            resident: units.iter().map(|_| None).collect(),
            is_ordered: vec![false; units.len()],
            may_retune: passes.is_none_or(|passes| passes > 2),
            units,
            sizes,
            ground,
            budgets,
            split,
            why: Vec::new(),
            cancel,
            trace,
            running,
            landed,
            host_device,
            arrived: BTreeMap::new(),
            held: Vec::new(),
            passes,
            pass: 0,
            next: 0,
            ordered: 0,
            clock: Clock::default(),
            started: Some(Instant::now()),
            counted: Snapshot::default(),
            reports: Vec::new(),
            has_failed: false,
            fallbacks: Vec::new(),
        };
        stream.why.append(&mut stream.running.numa);
        stream.say_why("before anything was measured");
        stream.order_up_to(1);
        Ok(stream)
    }

    /// The next layer of the pass, once it is whole and on the device; `None` at the end of a pass.
    /// The call after that begins the next pass.
    ///
    /// What the caller does between two calls is taken for its computing, which decides how many
    /// layers are brought ahead: wait for the device before asking for the next layer, or at the
    /// end of the first pass at least.
    ///
    /// # Errors
    /// What ended the stream, once; [`Error::AlreadyReported`] afterwards. [`Error::Option`] if the
    /// caller holds as many layers as there is room for; the stream goes on once it drops one.
    pub fn next_layer(&mut self) -> Result<Option<Layer>, Error> {
        if self.has_failed {
            return Err(Error::AlreadyReported);
        }
        self.running.origin.check().inspect_err(|_| self.has_failed = true)?;
        if self.cancel.is_cancelled() {
            self.end_running()?;
            self.has_failed = true;
            return Err(Error::Cancelled);
        }
        self.note_computed();
        if self.passes.is_some_and(|passes| self.pass >= passes) {
            return Ok(None);
        }
        if self.next == self.units.len() {
            self.end_pass()?;
            return Ok(None);
        }
        if self.next == 0 && self.clock.pass_began.is_none() {
            self.begin_pass();
        }
        let unit = self.next;
        let asked = Instant::now();
        let tensors = self.wait_for(unit)?;
        self.next += 1;
        let now = Instant::now();
        self.clock.waited += now - asked;
        if let Some(trace) = self.trace.as_ref().filter(|_| now - asked >= WAIT_MIN) {
            let row = trace.track("layers", "waiting");
            trace.span(row, self.units[unit].name.clone(), asked, now, Vec::new());
        }
        self.clock.handed_out = Some((unit, now));
        let tier = self.split.tiers[unit];
        Ok(Some(Layer { unit: Arc::clone(&self.units[unit]), tensors, tier }))
    }

    /// How many layers a pass has, what lies before and behind them included.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.units.len()
    }

    /// The model that is streamed.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.ground.plan.model
    }

    /// The CUDA device that layers come to; `None` for the stand-in `host`.
    #[must_use]
    pub fn context(&self) -> Option<&Arc<Context>> {
        self.ground.target.context()
    }

    /// What went where, and why, a sentence each.
    #[must_use]
    pub fn why(&self) -> &[String] {
        &self.why
    }

    /// The tier of each layer, in turn.
    #[must_use]
    pub fn tiers(&self) -> &[Tier] {
        &self.split.tiers
    }

    /// What was asked of the machine so far, and of the passes that have ended.
    #[must_use]
    pub fn report(&self) -> StreamReport {
        let mut tiers = TierBytes::default();
        for (unit, tier) in self.units.iter().zip(&self.split.tiers) {
            *match tier {
                Tier::Resident => &mut tiers.resident_bytes,
                Tier::Host => &mut tiers.host_bytes,
                Tier::Streamed => &mut tiers.streamed_bytes,
            } += unit.device_bytes;
            tiers.mapped_bytes += unit.bytes - unit.device_bytes;
        }
        StreamReport {
            device: self.device_name(),
            layers: self.units.len(),
            vram_budget: self.budgets.0,
            host_budget: self.budgets.1,
            tiers,
            depth: self.split.depth,
            host_memory_bytes: self.ground.plan.staging.bytes(),
            why: self.why.clone(),
            passes: self.reports.clone(),
            fallbacks: self.fallbacks.clone(),
        }
    }

    /// Ends the stream, and reports with what the machine refused on the way.
    ///
    /// # Errors
    /// What had ended the stream before.
    pub fn finish(mut self) -> Result<StreamReport, Error> {
        if self.has_failed {
            return Err(Error::AlreadyReported);
        }
        self.end_running()?;
        Ok(self.report())
    }

    fn device_name(&self) -> String {
        let backend = |unit: &Arc<Unit>| {
            let first = unit.work.tensors.first()?;
            Some(self.ground.plan.tensor_backends[*first].to_string())
        };
        self.units.iter().find_map(backend).unwrap_or_else(|| Backend::Cpu.to_string())
    }

    /// Says what the split is.
    fn say_why(&mut self, when: &str) {
        let of = |tier: Tier| {
            let units = self.units.iter().zip(&self.split.tiers).filter(|(_, of)| **of == tier);
            let (count, bytes) = units
                .fold((0, 0), |(count, bytes), (unit, _)| (count + 1, bytes + unit.device_bytes));
            format!("{count} ({bytes} bytes)")
        };
        let (resident, host, streamed) = (of(Tier::Resident), of(Tier::Host), of(Tier::Streamed));
        let Split { depth, bay_bytes, .. } = self.split;
        self.why.push(format!(
            "{when}: of {} layers, {resident} stay on the device, {host} in host memory, and \
             {streamed} are read for each pass, into {depth} bays of {bay_bytes} bytes",
            self.units.len(),
        ));
    }

    /// Orders all that passes before `pass` need and that is not ordered yet.
    fn order_up_to(&mut self, pass: u64) {
        let pass = self.passes.map_or(pass, |passes| pass.min(passes));
        let units = self.units.len() as u64;
        while self.ordered < pass * units {
            let ticket = self.ordered;
            self.ordered += 1;
            let unit = index_of(ticket, units);
            let tier = self.split.tiers[unit];
            // Those that stay come once.
            if tier == Tier::Resident && std::mem::replace(&mut self.is_ordered[unit], true) {
                continue;
            }
            let bay_bytes = match tier {
                Tier::Resident => self.sizes[unit].device_bytes,
                _ => self.split.bay_bytes,
            };
            let shelf = (tier == Tier::Host).then_some(unit);
            let reserved = (tier == Tier::Resident).then_some(unit);
            let work = Arc::clone(&self.units[unit].work);
            let order = Order { ticket, work, bay_bytes, priority: 0, shelf, reserved };
            self.running.order(Command::Bring(order));
        }
    }

    fn end_running(&mut self) -> Result<(), Error> {
        let ended = self.running.end();
        if let Some(read) = &ended.read {
            self.fallbacks.extend(read.schedule.steps().iter().map(FallbackReport::from));
        }
        match ended.error {
            Some(error) => {
                self.has_failed = true;
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// The tensors of a unit, once they are there.
    fn wait_for(&mut self, unit: usize) -> Result<Arc<Tensors>, Error> {
        if let Some(resident) = &self.resident[unit] {
            return Ok(Arc::clone(resident));
        }
        let ticket = self.pass * self.units.len() as u64 + unit as u64;
        let mut has_waited = false;
        loop {
            while let Ok(landed) = self.landed.try_recv() {
                self.take_landed(landed.ticket, &landed.arena);
            }
            if let Some((tensors, arena)) = self.arrived.remove(&ticket) {
                if self.split.tiers[unit] == Tier::Resident {
                    self.resident[unit] = Some(Arc::clone(&tensors));
                } else {
                    self.held.push(Held { tensors: Arc::downgrade(&tensors), arena });
                }
                return Ok(tensors);
            }
            self.held.retain(|held| held.arena.is_held());
            let stays = self.split.tiers[unit] == Tier::Resident;
            let is_full = !stays && self.held.len() >= self.split.depth;
            if is_full && self.held.iter().all(|held| held.tensors.strong_count() > 0) {
                return Err(self.too_many_held("drop a layer before asking for the next"));
            }
            // What products use comes back when the device has come past them, if somebody lets go.
            let landed = match is_full {
                true => self.landed.recv_timeout(PATIENCE),
                false => self.landed.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match landed {
                Ok(landed) => self.take_landed(landed.ticket, &landed.arena),
                Err(RecvTimeoutError::Timeout) if !has_waited => {
                    // An error of the device is told by whoever asks it for something.
                    let _ = self.ground.target.context().map(|context| context.synchronize());
                    has_waited = true;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.held.retain(|held| held.arena.is_held());
                    if self.held.len() >= self.split.depth {
                        let remedy = "wait for the products, or use Layer::release_after";
                        return Err(self.too_many_held(remedy));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.end_running()?;
                    self.has_failed = true;
                    return Err(Error::Internal("the stream ended by itself".to_owned()));
                }
            }
        }
    }

    fn too_many_held(&self, remedy: &str) -> Error {
        let cause = format!(
            "{} layers are held, and there is room for {} beside those that stay",
            self.held.len(),
            self.split.depth
        );
        let remedy = format!("{remedy}, or give more device memory");
        Error::option("--vram-budget", &cause, &remedy)
    }

    fn take_landed(&mut self, ticket: u64, arena: &BayArena) {
        let unit = Arc::clone(&self.units[index_of(ticket, self.units.len() as u64)]);
        let tensors = self.tensors(&unit, arena);
        self.arrived.insert(ticket, (Arc::new(tensors), arena.watch()));
    }

    fn tensors(&self, unit: &Unit, arena: &BayArena) -> Tensors {
        let catalog = self.ground.plan.model.shared_catalog();
        let memory = unit.tensors.iter().map(|&tensor| match &self.ground.plan.homes[tensor] {
            Home::Arena { tensor, .. } => TensorMemory::Arena {
                part: hold(arena, *tensor, &self.host_device),
                interleaved: None,
            },
            Home::Mapped | Home::Split(_) => {
                let entry = &catalog.tensors()[tensor];
                let mapping = self.ground.mappings[entry.file].as_ref();
                let view = mapping.and_then(|mapping| mapping.view(entry.offset..entry.end()));
                view.map_or(TensorMemory::Empty, TensorMemory::Mapped)
            }
        });
        let backends = unit.tensors.iter().map(|&tensor| self.ground.plan.tensor_backends[tensor]);
        Tensors {
            memory: memory.collect(),
            backends: backends.collect(),
            resident: Resident::new(&[], false),
            reclaim: false,
            lock: PageLock::default(),
            staging: None,
            entries: None,
            catalog,
        }
    }
}

/// Tickets count units, pass after pass.
fn index_of(ticket: u64, units: u64) -> usize {
    usize::try_from(ticket % units).expect("a number of a unit")
}

/// Starts what brings, and says where what has landed is heard of.
fn start(
    setup: Setup<'_>,
    cancel: &Cancel,
) -> Result<(Running, Receiver<Landed>, HostDevice), Error> {
    let (landed_sender, landed) = unbounded();
    let mut found = None;
    let running = Running::start(setup, cancel, |host_device| {
        found = host_device;
        Box::new(landed_sender)
    })?;
    Ok((running, landed, found))
}

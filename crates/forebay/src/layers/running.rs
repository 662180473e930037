//! The threads of a stream, their memory, and how they end.

use super::setting::{Ground, HostDevice};
use super::supply::{Command, Counters, Failure, Reports, State, Supply, SupplyOutcome, TagLabels};
use crate::error::{Error, ReadContext};
use crate::numa;
use crate::origin::Origin;
use crate::pipeline::{Contexts, StagingMemory, buffered_by_workers, check_changes, fed_schedule};
use crate::plan::{ArenaKind, Plan};
use crate::waking::{apart, is_waking};
use crossbeam_channel::{Sender, bounded, unbounded};
use forebay_device::cuda::{self, Context, CudaArena, HostRegistration};
use forebay_device::{ArenaLayout, DeviceError, Pool, UploadTrace, Uploader, Writer};
use forebay_io::{Cancel, FailureKind, Fault, Feed, Filled, ReadJob, ReadOutcome, ReadTrace};
use forebay_mem::Region;
use forebay_mem::numa::NumaPolicy;
use forebay_trace::Trace;
use std::mem::forget;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The device that units are brought to, as long as there is a stream.
#[derive(Debug)]
pub(super) enum Target {
    Host,
    /// A GPU without memory of its own.
    Shared(Arc<Context>),
    Cuda(Arc<Context>),
}

impl Target {
    pub(super) fn new(kind: Option<ArenaKind>, contexts: &Contexts) -> Result<Self, Error> {
        let context = |ordinal: u32| {
            let context = contexts.get(&ordinal).cloned();
            context.ok_or_else(|| Error::Internal(format!("no context of cuda:{ordinal}")))
        };
        Ok(match kind {
            None | Some(ArenaKind::Host | ArenaKind::LentHost) => Self::Host,
            Some(ArenaKind::Shared(ordinal)) => Self::Shared(context(ordinal)?),
            Some(ArenaKind::Device(ordinal) | ArenaKind::Lent(ordinal)) => {
                Self::Cuda(context(ordinal)?)
            }
        })
    }

    pub(super) fn context(&self) -> Option<&Arc<Context>> {
        match self {
            Self::Host => None,
            Self::Shared(context) | Self::Cuda(context) => Some(context),
        }
    }

    fn pool(&self, bytes: u64, returned: Sender<()>) -> Result<Pool, DeviceError> {
        match self {
            Self::Host => Pool::on_host("host", bytes, returned),
            Self::Shared(context) => Pool::on_host(&context.name(), bytes, returned),
            Self::Cuda(context) => Pool::on_cuda(context, bytes, returned),
        }
    }

    /// What lets the uploader come to know the device before there is an arena on it.
    fn empty(&self) -> Result<Vec<Writer>, DeviceError> {
        let Self::Cuda(context) = self else { return Ok(Vec::new()) };
        let (_, writer) = CudaArena::new(context, cuda::Memory::Own(ArenaLayout::default()))?;
        Ok(vec![Writer::Cuda(writer)])
    }
}

/// What a stream is started with.
pub(super) struct Setup<'stream> {
    pub(super) ground: &'stream Ground,
    pub(super) pool_bytes: u64,
    /// Where what is done is recorded, if it is.
    pub(super) trace: Option<&'stream Trace>,
    /// Bays of that which stays; where that is nothing, 0.
    pub(super) reserved: Vec<u64>,
    pub(super) fault: Option<Box<dyn Fault>>,
}

/// Threads that bring what is ordered.
pub(super) struct Running {
    pub(super) origin: Origin,
    plan: Arc<Plan>,
    cancel: Cancel,
    pub(super) feed: Feed,
    pub(super) counters: Arc<Counters>,
    /// `None` once it is ending.
    orders: Option<Sender<Command>>,
    read: Option<JoinHandle<ReadOutcome>>,
    supply: Option<JoinHandle<SupplyOutcome>>,
    /// Let go of after the threads: devices copy from it until then.
    pinned: Option<cuda::Staging>,
    /// What placing its memory on NUMA nodes came to, in words.
    pub(super) numa: Vec<String>,
}

impl Running {
    /// Starts what brings, with who is to hear of it, made when it is known where a GPU finds the
    /// machine's memory.
    pub(super) fn start(
        setup: Setup<'_>,
        cancel: &Cancel,
        reports: impl FnOnce(HostDevice) -> Box<dyn Reports>,
    ) -> Result<Self, Error> {
        let Setup { ground, pool_bytes, reserved, trace, fault } = setup;
        let Ground { plan, contexts, target, mappings, .. } = ground;
        // The caller's flag may serve others too: ending this one must not set it.
        let cancel = cancel.child();
        let (returned_sender, returned) = bounded(1);
        let pool = target.pool(pool_bytes, returned_sender)?;
        let reserved = reserved.iter().map(|&bytes| pool.take(bytes)).collect();
        // Wherever it lies, it serves.
        let policy = plan.options.numa;
        let place =
            |region: &Region| (policy != NumaPolicy::Off).then(|| numa::placed(region, policy));
        let mut told: Vec<String> = pool.region().and_then(|it| place(it)).into_iter().collect();
        let host_device: HostDevice = match (target, pool.region()) {
            (Target::Shared(context), Some(region)) => {
                let info = plan.devices.get(&context.ordinal());
                let registered = HostRegistration::new(context, region)
                    .and_then(|registered| Ok((registered.device_address()?, Some(registered))));
                match registered {
                    Ok((address, registered)) => Some((registered.map(Arc::new), address)),
                    // It reads all memory, by the addresses that the processors use.
                    Err(_) if info.is_some_and(|info| info.reads_pageable_memory) => {
                        Some((None, region.start().addr() as u64))
                    }
                    Err(refusal) => {
                        return Err(DeviceError::driver(&context.name(), refusal).into());
                    }
                }
            }
            _ => None,
        };
        let StagingMemory { slab, free_sender, free, pinned } = StagingMemory::new(plan, contexts)?;
        if pinned.is_none() {
            told.extend(place(slab.region()));
        }
        told.dedup();
        let mut uploader = Uploader::new(target.empty()?, slab.slots())?;
        let labels = trace.map(|_| TagLabels::default());
        if let (Some(trace), Some(labels)) = (trace, &labels) {
            uploader.record(UploadTrace::new(trace, labels.lookup(), Vec::new()));
        }
        let (full, full_receiver) = bounded::<Filled>(plan.staging.slots);
        let (orders, commands) = unbounded();
        let feed = Feed::default();
        let counters = Arc::new(Counters::default());
        let supply = Supply {
            plan: Arc::clone(plan),
            uploader,
            pool,
            reserved,
            feed: feed.clone(),
            full: full_receiver,
            free: free_sender,
            commands,
            returned,
            reports: reports(host_device),
            counters: Arc::clone(&counters),
            labels: labels.clone(),
            state: State::default(),
        };
        let job = ReadJob {
            files: Arc::clone(plan.model.files()),
            mappings: mappings.clone(),
            schedule: fed_schedule(plan, &feed),
            places: Vec::new(),
            slab,
            free,
            full,
            cancel: cancel.clone(),
            queue_depth: plan.staging.queue_depth,
            buffered_by_workers: buffered_by_workers(plan),
            reclaim: Vec::new(),
            trace: trace
                .zip(labels.as_ref())
                .map(|(trace, labels)| ReadTrace::new(trace, labels.lookup())),
            fault,
        };
        let mut running = Self {
            origin: Origin::here(),
            plan: Arc::clone(plan),
            cancel,
            feed,
            counters,
            orders: Some(orders),
            read: None,
            supply: None,
            pinned,
            numa: told,
        };
        let refused = |source| Error::Thread { source };
        let read = move || {
            let _policy = numa::of_this_thread(policy);
            job.run()
        };
        // If one can't be started, the drop ends the other.
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let thread = named("forebay-supply").spawn(move || supply.run());
        running.supply = Some(thread.map_err(refused)?);
        running.read = Some(named("forebay-read").spawn(read).map_err(refused)?);
        Ok(running)
    }

    pub(super) fn order(&self, command: Command) {
        if let Some(orders) = &self.orders {
            // If the thread has ended, whoever waits for what it lands is told why.
            let _ = orders.send(command);
        }
    }

    /// Where orders go, for whoever takes some back later.
    pub(super) fn orders(&self) -> Option<Sender<Command>> {
        self.orders.clone()
    }

    /// Stops what is under way, and says why it had ended, if it had.
    pub(super) fn end(&mut self) -> Ended {
        if let Err(error) = self.origin.check() {
            // Its threads are the parent's, and so is what they use.
            forget((self.orders.take(), self.read.take(), self.supply.take(), self.pinned.take()));
            return Ended { read: None, error: Some(error) };
        }
        let is_asked = self.cancel.is_cancelled();
        self.cancel.cancel();
        drop(self.orders.take());
        if is_waking() {
            let threads = (self.read.take(), self.supply.take());
            let pinned = self.pinned.take();
            apart(move || {
                // Nobody is left to hear how they ended.
                let _ = threads.0.map(JoinHandle::join);
                let _ = threads.1.map(JoinHandle::join);
                drop(pinned);
            });
            return Ended { read: None, error: None };
        }
        let read = self.read.take().map(JoinHandle::join);
        let supply = self.supply.take().map(JoinHandle::join);
        if read.is_none() && supply.is_none() {
            return Ended { read: None, error: None };
        }
        let (Some(Ok(read)), Some(Ok(supply))) = (read, supply) else {
            let error = Error::Internal("a thread of the stream panicked".to_owned());
            return Ended { read: None, error: Some(error) };
        };
        // No device copies from it any more.
        self.pinned = None;
        if matches!(supply.failure, Some(Failure::Device(_))) {
            // Pinned memory would keep a context that is lost.
            cuda::release_staging();
        }
        let error = self.error(&read, supply, is_asked);
        Ended { read: Some(read), error }
    }

    fn error(
        &self,
        read: &ReadOutcome,
        mut supply: SupplyOutcome,
        is_asked: bool,
    ) -> Option<Error> {
        let failed = supply.failure.take();
        let catalog = self.plan.model.catalog();
        let tensors = catalog.tensors();
        let context = |file: Option<usize>, tag: Option<usize>, offset: Option<u64>| {
            let tensor = tag.and_then(|tag| supply.tensor_of(catalog, tag, offset));
            let file = file.or(tensor.map(|tensor| tensors[tensor].file));
            let path = file.map(|file| self.plan.files[file].path.clone());
            ReadContext { path, tensor: tensor.map(|tensor| tensors[tensor].name.clone()) }
        };
        match failed {
            Some(Failure::Device(DeviceError::Copy { device, read, refusal })) => {
                return Some(Error::Copy {
                    context: context(None, Some(read), None),
                    device,
                    refusal,
                });
            }
            Some(Failure::Device(error)) => return Some(error.into()),
            Some(Failure::Changed(error)) => return Some(error),
            None => {}
        }
        let failure = read.schedule.failure()?;
        match failure.kind {
            FailureKind::Cancelled => return is_asked.then_some(Error::Cancelled),
            FailureKind::ReceiverGone => return None,
            FailureKind::EndOfFile => {}
            _ => {
                // A file that was cut short explains a refused read better than the refusal does.
                if let Err(changed) = check_changes(&self.plan) {
                    return Some(changed);
                }
            }
        }
        let context = context(failure.file, failure.read, Some(failure.offset));
        Some(Error::Read { context, failure: failure.clone() })
    }
}

/// How a stream's threads ended.
pub(super) struct Ended {
    pub(super) read: Option<ReadOutcome>,
    pub(super) error: Option<Error>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.read.is_some() || self.supply.is_some() {
            // Nobody is left to hear how it ended.
            let _ = self.end();
        }
    }
}

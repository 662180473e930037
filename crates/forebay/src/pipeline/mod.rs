//! A running load: the threads, the channels between them, and the iterator over what lands.
//!
//! ```text
//!            free slots (bounded by the slab)
//!        ┌───────────────────────────────────────┐
//!        ▼                                       │
//!   forebay-read ──── filled slots ────▶ forebay-upload ──── landed ────▶ the caller's thread
//!                                            ▲
//!   forebay-populate ── pages ahead of ──────┘
//!   forebay-prefetch ── mapped tensors that are resident ──▶ landed
//! ```
//!
//! Every channel is bounded by the plan, and no thread ever waits for the caller's; so a slow
//! caller slows nothing down, and a caller that stops can always be joined.

mod asynchronous;
mod bring;
mod landing;
mod memory;
mod settle;
mod staging;
mod threads;
mod timeline;
mod upload;

use crate::error::Error;
use crate::loaded::{Loaded, Tensor, Tensors};
use crate::loader::{Hooks, PROGRESS_INTERVAL, ProgressCallback};
use crate::numa;
use crate::options::EngineChoice;
use crate::origin::Origin;
use crate::plan::{Home, Plan};
use crate::report::LoadReport;
use crate::resident::Resident;
use crate::waking::{apart, is_waking};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, never};
use forebay_device::Uploader;
use forebay_device::cuda::{self, DriverRefusal};
use forebay_format::Catalog;
use forebay_io::{
    Access, Cancel, Fallback, Feed, Filled, PrefetchJob, PrefetchOutcome, ReadJob, ReadOutcome,
    Schedule,
};
use forebay_mem::numa::Placed;
use forebay_mem::{Alignment, LockReport};
use landing::{Announcer, Landed, Landings};
use memory::{Arena, Arenas, lock, ranges_to_bring, reclaimable, reserve_arenas};
use std::collections::VecDeque;
use std::mem::{forget, replace};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use threads::{Joined, Threads, Work};
use timeline::Timeline;
use upload::{UploadJob, UploadOutcome};

pub use asynchronous::{Landing, LoadStream};
pub(crate) use memory::{Contexts, Mappings, contexts, map_files};
pub(crate) use settle::{check_changes, check_identities, to_blame};
pub(crate) use staging::Staging as StagingMemory;
pub(crate) use timeline::{WAIT_MIN, label};

/// How far a load has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensors that are where they belong.
    pub done_bytes: u64,
    /// Bytes of tensors in all.
    pub total_bytes: u64,
}

/// A load under way: yields every tensor once, when it is whole and where it belongs.
///
/// Dropping it, or a panic that unwinds through it, stops the load: when the drop returns, no
/// read is in flight and no thread of the load runs. Tensors that were handed out stay valid. Only where
/// the load's own thread drops it, since a waker runs its task there and then, another thread waits
/// for the end instead. In a process that is forked off meanwhile it yields [`Error::Forked`], and its
/// drop leaves everything to the parent.
///
/// After an error, the iterator ends. That a file was changed under the load can only be known
/// at the end: [`Load::finish`] has the last word.
pub struct Load {
    origin: Origin,
    plan: Plan,
    started: Instant,
    /// What opening, planning and making devices ready took.
    before: Duration,
    device_time: Duration,
    cancel: Cancel,
    /// The callback, and when it was called last.
    progress: Option<(ProgressCallback, Option<Instant>)>,
    progress_interval: Duration,
    placed_bytes: Arc<AtomicU64>,
    total_bytes: u64,
    tensors: Arc<Tensors>,
    ready: VecDeque<usize>,
    landed: Receiver<Landed>,
    landings: Arc<Landings>,
    threads: Option<Threads>,
    /// Let go of after the threads have ended: devices copy from it until then.
    pinned: Option<cuda::Staging>,
    locked: LockReport,
    numa: Vec<String>,
    /// Where the load is recorded.
    timeline: Option<Timeline>,
    outcome: Option<Outcome>,
    failed: bool,
}

/// What the threads left, once all have ended well.
pub(crate) struct Outcome {
    pub(crate) read: ReadOutcome,
    pub(crate) upload: UploadOutcome,
    pub(crate) prefetch: PrefetchOutcome,
    pub(crate) lock: LockReport,
    /// What became of pinning the staging memory, where devices copy from it.
    pub(crate) pinning: Option<Pinning>,
    /// What placing memory on NUMA nodes came to, in words.
    pub(crate) numa: Vec<String>,
    /// What came before the start.
    pub(crate) before: Duration,
    /// What making devices ready added: contexts, memory, pinning.
    pub(crate) device_time: Duration,
    /// From the start to the first and the last tensor that was there.
    pub(crate) first_time: Duration,
    pub(crate) run_time: Duration,
}

/// Whether staging memory is pinned.
pub(crate) struct Pinning {
    /// What the driver answered, if it is not.
    pub(crate) refusal: Option<DriverRefusal>,
    /// Whether an earlier load of the process has paid for it.
    pub(crate) is_reused: bool,
}

impl Pinning {
    fn of(staging: &cuda::Staging) -> Self {
        Self { refusal: staging.refusal().cloned(), is_reused: staging.is_reused() }
    }
}

fn told_placed(staging: &cuda::Staging) -> impl Iterator<Item = String> {
    let placed = staging.placed().iter().filter(|placed| **placed != Ok(Placed::Off));
    placed.map(|placed| match placed {
        Ok(placed) => format!("staging: {placed}"),
        Err(error) => format!("staging could not be placed: {error}"),
    })
}

impl Load {
    pub(crate) fn start(plan: &Plan, hooks: Hooks) -> Result<Self, Error> {
        let started = Instant::now();
        let Hooks { cancel, progress, progress_interval, trace, fault, begun, on_this_runtime } =
            hooks;
        let planned = plan.model.open_time() + plan.plan_time;
        let before = begun.map_or(planned, |begun| started - begun);
        let timeline = trace.map(|trace| Timeline::new(&trace, plan, started - before, started));
        let waited = before.saturating_sub(planned);
        // The caller's flag may serve other loads too: ending this one must not set it.
        let cancel = cancel.child();
        let contexts = contexts(plan)?;
        let Arenas { arenas, writers, places } = reserve_arenas(plan, &contexts)?;
        let mappings = map_files(plan)?;
        let lock = lock(plan, &mappings)?;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let locked = lock.report();
        let ranges = ranges_to_bring(plan, &mappings, &lock);
        let comes = plan.residence.prefetch && !ranges.is_empty();
        let resident = Resident::new(&plan.residence.tensors, comes);
        let tensors = Arc::new(Tensors::new(plan, &mappings, &arenas, lock, resident));
        let StagingMemory { slab, free_sender, free, pinned } =
            StagingMemory::new(plan, &contexts)?;
        let mut uploader = Uploader::new(writers, slab.slots())?;
        if let Some(timeline) = &timeline {
            uploader.record(timeline.of_uploads(plan));
        }
        let device_time =
            if contexts.is_empty() { Duration::ZERO } else { waited + started.elapsed() };
        let host_arenas: Vec<_> = arenas.iter().filter_map(Arena::host).cloned().collect();
        let (full, full_receiver) = bounded::<Filled>(plan.staging.slots);
        let (announcer, landed, landings) = Announcer::new(plan.homes.len());
        let own_slab = pinned.is_none().then(|| &**slab.region());
        let mut numa = numa::place(plan.options.numa, &host_arenas, own_slab, !on_this_runtime);
        numa.extend(pinned.iter().flat_map(told_placed));
        let placed_bytes = Arc::new(AtomicU64::new(0));
        let (reads, reads_end) = bounded(0);
        let on_this_runtime = on_this_runtime.then(|| announcer.clone());
        let bring = (!ranges.is_empty()).then(|| PrefetchJob {
            files: Arc::clone(plan.model.files()),
            mappings: mappings.clone(),
            ranges,
            reads_end,
            cancel: cancel.clone(),
            on_resident: bring::announcer(plan, &tensors, &announcer, &placed_bytes),
            trace: timeline.as_ref().map(|timeline| timeline.of_prefetch(plan)),
        });
        let upload = UploadJob {
            uploader,
            plan: upload::UploadPlan::new(plan),
            full: full_receiver,
            free: free_sender,
            landed: announcer,
            placed_bytes: Arc::clone(&placed_bytes),
            waits: timeline.as_ref().map(Timeline::of_waits),
        };
        let job = ReadJob {
            files: Arc::clone(plan.model.files()),
            mappings,
            schedule: planned_schedule(plan),
            places,
            slab,
            free,
            full,
            cancel: cancel.clone(),
            queue_depth: plan.staging.queue_depth,
            buffered_by_workers: buffered_by_workers(plan),
            reclaim: reclaimable(plan),
            trace: timeline.as_ref().map(Timeline::of_reads),
            fault,
        };
        let work = Work {
            read: job,
            reads,
            on_this_runtime,
            upload,
            bring,
            arenas: host_arenas,
            tensors: Arc::clone(&tensors),
        };
        let threads = Threads::spawn(work, plan, &cancel)?;
        timeline.iter().for_each(|timeline| timeline.note_ready(started));
        let mut load = Self {
            origin: Origin::here(),
            plan: plan.clone(),
            started,
            before,
            device_time,
            cancel,
            progress: progress.map(|callback| (callback, None)),
            progress_interval: progress_interval.unwrap_or(PROGRESS_INTERVAL),
            placed_bytes,
            total_bytes: plan.model.catalog().bytes(),
            tensors,
            ready: VecDeque::new(),
            landed,
            landings,
            threads: Some(threads),
            pinned,
            locked,
            numa,
            timeline,
            outcome: None,
            failed: false,
        };
        load.announce_what_needs_no_read();
        Ok(load)
    }

    /// A handle that stops this load from any thread.
    #[must_use]
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// The model's tensors and metadata.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.tensors.catalog
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done_bytes: self.placed_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
        }
    }

    /// Waits for everything and hands the whole model over.
    ///
    /// # Errors
    /// What ended the load; [`Error::AlreadyReported`] if the iterator has given that out.
    pub fn finish(mut self) -> Result<Loaded, Error> {
        for tensor in &mut self {
            tensor?;
        }
        let outcome = self.outcome.take().ok_or(Error::AlreadyReported)?;
        let report = LoadReport::new(&self.plan, &outcome);
        Ok(Loaded::new(Arc::clone(&self.tensors), report))
    }

    /// Every tensor that stays in its mapping, at once: for callers who would rather begin than
    /// wait. Touching one that is not there yet waits for storage, page by page;
    /// [`Tensor::wait_until_resident`] waits for the prefetch to reach it.
    #[must_use]
    pub fn mapped_tensors(&self) -> Vec<Tensor> {
        let mapped = |&index: &usize| self.plan.homes[index] == Home::Mapped;
        (0..self.plan.homes.len()).filter(mapped).map(|index| self.tensors.get(index)).collect()
    }

    /// Tensors that stay in their mapping and are not prefetched are there from the start, and so
    /// are those without bytes.
    fn announce_what_needs_no_read(&mut self) {
        let plan = &self.plan;
        let mut bytes = 0;
        for (index, tensor) in plan.model.catalog().tensors().iter().enumerate() {
            let comes = plan.residence.prefetch && tensor.bytes > 0;
            if plan.homes[index] == Home::Mapped && !comes {
                self.ready.push_back(index);
                self.landings.note(index);
                bytes += tensor.bytes;
            }
        }
        self.placed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether it may go on: not in a process that was forked off.
    fn check_origin(&mut self) -> Result<(), Error> {
        self.origin.check().inspect_err(|_| self.failed = true)
    }

    /// The next tensor that has landed; `None` once nobody is left to bring any.
    fn wait_for_landed(&mut self) -> Option<usize> {
        if let Some(index) = self.ready.pop_front() {
            return Some(index);
        }
        loop {
            match self.landed.recv_timeout(self.progress_interval) {
                Ok(Landed(index)) => {
                    self.report_progress(false);
                    return Some(index);
                }
                Err(RecvTimeoutError::Timeout) => self.report_progress(false),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn report_progress(&mut self, last: bool) {
        let progress = self.progress();
        if let Some((callback, called)) = &mut self.progress
            && (last || called.is_none_or(|called| called.elapsed() >= self.progress_interval))
        {
            *called = Some(Instant::now());
            callback(progress);
        }
    }

    /// Nothing more lands: why, unless all went well.
    fn end(&mut self) -> Option<Error> {
        let error = self.settle().err()?;
        self.failed = true;
        Some(error)
    }

    /// Joins the threads and finds out how it went.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(threads) = self.threads.take() else { return Ok(()) };
        // The load has taken until this function returns.
        let _timeline = self.timeline.take();
        let Joined { read, upload, prefetch } = threads.join(&self.cancel)?;
        if upload.failure.is_some() {
            // Pinned memory would keep a context that is lost.
            self.pinned = None;
            cuda::release_staging();
        }
        settle::check(&self.plan, &read, &upload, &prefetch)?;
        let after = |moment: Option<Instant>| {
            moment.map_or(Duration::ZERO, |moment| moment.saturating_duration_since(self.started))
        };
        let run_time = after(upload.last_placed).max(after(prefetch.ended));
        let firsts = [upload.first_placed, self.tensors.resident.first()];
        let first_time = after(firsts.into_iter().flatten().min());
        let (lock, before, numa) = (self.locked, self.before, std::mem::take(&mut self.numa));
        let pinning = self.pinned.as_ref().map(Pinning::of);
        self.outcome = Some(Outcome {
            read,
            upload,
            prefetch,
            lock,
            pinning,
            numa,
            before,
            device_time: self.device_time,
            first_time,
            run_time,
        });
        if let Some(staging) = self.pinned.take() {
            staging.keep();
        }
        self.report_progress(true);
        Ok(())
    }
}

impl Iterator for Load {
    type Item = Result<Tensor, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        if let Err(error) = self.check_origin() {
            return Some(Err(error));
        }
        if let Some(index) = self.wait_for_landed() {
            return Some(Ok(self.tensors.get(index)));
        }
        self.end().map(Err)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            // Its threads are the parent's, and so is memory that was kept out of the fork: of all
            // that they use together, nothing is given back.
            forget(self.threads.take());
            forget(self.pinned.take());
            forget(self.timeline.take());
            forget(replace(&mut self.landed, never()));
            forget(Arc::clone(&self.landings));
            forget(Arc::clone(&self.tensors));
            return;
        }
        if let Some(threads) = self.threads.take() {
            let (cancel, pinned) = (self.cancel.clone(), self.pinned.take());
            let leave = move || {
                threads.leave(&cancel);
                drop(pinned);
            };
            if is_waking() { apart(leave) } else { leave() }
        }
    }
}

/// A device takes more than one processor copies out of the page cache; where there are processors
/// to spare, several do.
pub(crate) fn buffered_by_workers(plan: &Plan) -> bool {
    const PROCESSORS_MIN: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors >= PROCESSORS_MIN && !plan.copied_to().is_empty()
}

fn planned_schedule(plan: &Plan) -> Schedule {
    let reads = Arc::clone(&plan.reads);
    let (alignments, fallback) = (alignments(plan), fallback(plan));
    let schedule = Schedule::new(reads, &alignments, plan.staging.slots, plan.performer, fallback);
    as_planned(schedule, plan)
}

/// The same for reads that are asked for meanwhile.
pub(crate) fn fed_schedule(plan: &Plan, feed: &Feed) -> Schedule {
    let (alignments, fallback) = (alignments(plan), fallback(plan));
    let feed = feed.clone();
    let schedule = Schedule::fed(feed, &alignments, plan.staging.slots, plan.performer, fallback);
    as_planned(schedule, plan)
}

fn alignments(plan: &Plan) -> Vec<Alignment> {
    let files = plan.model.files().iter();
    files
        .map(|file| file.direct().map_or(Alignment::FALLBACK, |(_, alignment)| alignment.offset))
        .collect()
}

fn fallback(plan: &Plan) -> Fallback {
    if plan.options.no_fallback { Fallback::Forbidden } else { Fallback::Allowed }
}

/// With what the plan knows to be refused.
fn as_planned(mut schedule: Schedule, plan: &Plan) -> Schedule {
    if !matches!(plan.options.engine, EngineChoice::Auto | EngineChoice::Threads) {
        schedule.require_performer();
    }
    for (index, file) in plan.files.iter().enumerate() {
        if let Some(errno) = file.direct_refused {
            let reason = "the filesystem refuses O_DIRECT";
            schedule.refuse_at_open(index, Access::Direct, errno, reason);
        }
        if let Some(errno) = file.mapping_refused {
            schedule.refuse_at_open(index, Access::Mapped, errno, "the file can't be mapped");
        }
    }
    schedule
}

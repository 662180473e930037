//! A running load: the threads, the channels between them, and the iterator over what lands.
//!
//! ```text
//!            free slots (bounded by the slab)
//!        ┌───────────────────────────────────────┐
//!        ▼                                       │
//!   forebay-read ──── filled slots ────▶ forebay-upload ──── landed ────▶ the caller's thread
//!                                            ▲
//!   forebay-populate ── pages ahead of ──────┘
//! ```
//!
//! Every channel is bounded by the plan, and no thread ever waits for the caller's; so a slow
//! caller slows nothing down, and a caller that stops can always be joined.

mod memory;
mod settle;
mod upload;

use crate::error::Error;
use crate::loaded::{Loaded, Tensor, Tensors};
use crate::loader::{Hooks, ProgressCallback, Reclaim};
use crate::plan::{Home, Plan};
use crate::report::LoadReport;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use forebay_device::{HostArena, HostUploader};
use forebay_io::{Access, Cancel, Fallback, Filled, ReadJob, ReadOutcome, Schedule};
use forebay_mem::{Alignment, LockReport, Slab};
use memory::{lock, map_files, reserve_arenas};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use upload::{Landed, UploadJob, UploadOutcome};

/// How often the progress callback is called at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

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
/// read is in flight and no thread of the load runs. Tensors that were handed out stay valid.
///
/// After an error, the iterator ends. That a file was changed under the load can only be known
/// at the end: [`Load::finish`] has the last word.
pub struct Load {
    plan: Plan,
    started: Instant,
    cancel: Cancel,
    /// The callback, and when it was called last.
    progress: Option<(ProgressCallback, Option<Instant>)>,
    /// When the tensors that stay in their mapping were there.
    mapped_at: Instant,
    placed_bytes: Arc<AtomicU64>,
    tensors: Arc<Tensors>,
    ready: VecDeque<usize>,
    landed: Receiver<Landed>,
    threads: Option<Threads>,
    locked: LockReport,
    outcome: Option<Outcome>,
    failed: bool,
}

struct Threads {
    read: JoinHandle<ReadOutcome>,
    upload: JoinHandle<UploadOutcome>,
    populate: Vec<JoinHandle<()>>,
}

/// What the threads left, once all have ended well.
pub(crate) struct Outcome {
    pub(crate) read: ReadOutcome,
    pub(crate) upload: UploadOutcome,
    pub(crate) run_time: Duration,
}

impl Load {
    pub(crate) fn start(plan: &Plan, hooks: Hooks) -> Result<Self, Error> {
        let started = Instant::now();
        let Hooks { cancel, progress, fault } = hooks;
        // The caller's flag may serve other loads too: ending this one must not set it.
        let cancel = cancel.child();
        let (arenas, writers) = reserve_arenas(plan)?;
        let mappings = map_files(plan)?;
        let (lock, locked) = lock(plan, &mappings)?;
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let tensors = Arc::new(Tensors::new(plan, &mappings, &arenas, lock));
        let slots = plan.staging.slots;
        let chunk_bytes = usize::try_from(plan.staging.chunk_bytes).unwrap_or(usize::MAX);
        let (slab, tokens) =
            Slab::new(chunk_bytes, slots).map_err(Error::memory("no room for staging memory"))?;
        let (free_sender, free) = bounded(slots);
        let (full, full_receiver) = bounded::<Filled>(slots);
        for token in tokens {
            free_sender.send(token).map_err(|_| Error::Internal("no free list".to_owned()))?;
        }
        let (landed_sender, landed) = bounded(plan.homes.len() + 1);
        let placed_bytes = Arc::new(AtomicU64::new(0));
        let upload = UploadJob {
            uploader: Box::new(HostUploader::new(writers)),
            plan: upload::UploadPlan::new(plan),
            full: full_receiver,
            free: free_sender,
            landed: landed_sender,
            placed_bytes: Arc::clone(&placed_bytes),
        };
        let job = ReadJob {
            files: Arc::clone(plan.model.files()),
            mappings,
            schedule: schedule(plan),
            slab,
            free,
            full,
            cancel: cancel.clone(),
            queue_depth: plan.staging.queue_depth,
            reclaim: plan.options.reclaim != Reclaim::Off,
            fault,
        };
        let threads = Threads::spawn(job, upload, &arenas, &cancel)?;
        let mut load = Self {
            plan: plan.clone(),
            started,
            cancel,
            progress: progress.map(|callback| (callback, None)),
            mapped_at: started,
            placed_bytes,
            tensors,
            ready: VecDeque::new(),
            landed,
            threads: Some(threads),
            locked,
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

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done_bytes: self.placed_bytes.load(Ordering::Relaxed),
            total_bytes: self.plan.model.catalog().bytes(),
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
        let report = LoadReport::new(&self.plan, &outcome, self.locked);
        Ok(Loaded::new(Arc::clone(&self.tensors), report))
    }

    /// Tensors that stay in their mapping, and empty ones, are there from the start.
    fn announce_what_needs_no_read(&mut self) {
        let plan = &self.plan;
        let mut bytes = 0;
        for (index, tensor) in plan.model.catalog().tensors().iter().enumerate() {
            if plan.homes[index] == Home::Mapped {
                self.ready.push_back(index);
                bytes += tensor.bytes;
                self.mapped_at = Instant::now();
            }
        }
        self.placed_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The next tensor that has landed; `None` once the uploader has ended.
    fn wait_for_landed(&mut self) -> Option<usize> {
        if let Some(index) = self.ready.pop_front() {
            return Some(index);
        }
        loop {
            match self.landed.recv_timeout(PROGRESS_INTERVAL) {
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
            && (last || called.is_none_or(|called| called.elapsed() >= PROGRESS_INTERVAL))
        {
            *called = Some(Instant::now());
            callback(progress);
        }
    }

    /// Joins the threads and finds out how it went.
    fn settle(&mut self) -> Result<(), Error> {
        let Some(threads) = self.threads.take() else { return Ok(()) };
        let (read, upload) = threads.join(&self.cancel)?;
        let last_placed = upload.last_placed.unwrap_or(self.started).max(self.mapped_at);
        settle::check(&self.plan, &read, &upload)?;
        let run_time = last_placed.saturating_duration_since(self.started);
        self.outcome = Some(Outcome { read, upload, run_time });
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
        if let Some(index) = self.wait_for_landed() {
            return Some(Ok(self.tensors.get(index)));
        }
        match self.settle() {
            Ok(()) => None,
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            self.cancel.cancel();
            // Nobody is left to hear how it ended.
            let _ = threads.join(&self.cancel);
        }
    }
}

impl Threads {
    fn spawn(
        job: ReadJob,
        upload: UploadJob,
        arenas: &[Arc<HostArena>],
        cancel: &Cancel,
    ) -> Result<Self, Error> {
        let mut populate = Vec::new();
        for _ in 0..populating_threads() {
            let (arenas, stop) = (arenas.to_vec(), cancel.clone());
            let work = move || {
                arenas.iter().for_each(|arena| arena.populate(&|| stop.is_cancelled()));
            };
            // Without it, or with fewer, the uploader populates as it goes.
            populate.extend(named("forebay-populate", work).ok());
        }
        let started = match named("forebay-upload", move || upload.run()) {
            Ok(upload) => match named("forebay-read", move || job.run()) {
                Ok(read) => Ok((read, upload)),
                Err(source) => Err((source, Some(upload))),
            },
            Err(source) => Err((source, None)),
        };
        match started {
            Ok((read, upload)) => Ok(Self { read, upload, populate }),
            Err((source, upload)) => {
                // Those that run end by the flag, or by the other ends of their channels dropping,
                // and have no error to tell: what is wrong is that there are too few of them.
                cancel.cancel();
                populate.into_iter().for_each(|thread| drop(thread.join()));
                upload.into_iter().for_each(|thread| drop(thread.join()));
                Err(Error::Thread { source })
            }
        }
    }

    /// Waits for all of them, and stops populating for a load that has ended early.
    fn join(self, cancel: &Cancel) -> Result<(ReadOutcome, UploadOutcome), Error> {
        // Reader before uploader: the uploader ends when the reader's channel does.
        let read = self.read.join();
        let upload = self.upload.join();
        // After a success there is nothing left to populate.
        cancel.cancel();
        let populate: Result<(), _> = self.populate.into_iter().try_for_each(JoinHandle::join);
        let panicked = |name: &str| Error::Internal(format!("the {name} thread panicked"));
        populate.map_err(|_| panicked("populating"))?;
        Ok((read.map_err(|_| panicked("reading"))?, upload.map_err(|_| panicked("uploading"))?))
    }
}

fn named<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// How many threads populate: the cores that the uploader leaves, which helps when it must wait.
fn populating_threads() -> usize {
    const THREADS_MAX: usize = 4;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(1).clamp(1, THREADS_MAX)
}

fn schedule(plan: &Plan) -> Schedule {
    let model_files = plan.model.files();
    let alignments: Vec<Alignment> = (model_files.iter())
        .map(|file| file.direct().map_or(Alignment::FALLBACK, |(_, alignment)| alignment.offset))
        .collect();
    let fallback = if plan.options.no_fallback { Fallback::Forbidden } else { Fallback::Allowed };
    let reads = Arc::clone(&plan.reads);
    let mut schedule =
        Schedule::new(reads, &alignments, plan.staging.slots, plan.performer, fallback);
    if plan.options.engine == crate::loader::EngineChoice::Uring {
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

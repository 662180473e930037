//! The threads of a load: started together, joined together. The reads may be a task of the caller's
//! runtime instead, which nobody can wait for on its own thread.

use super::landing::Announcer;
use super::upload::{UploadJob, UploadOutcome};
use crate::error::Error;
use crate::loaded::Tensors;
use crate::numa;
use crate::plan::Plan;
use crossbeam_channel::{Sender, bounded};
use forebay_device::HostArena;
use forebay_io::{Cancel, PrefetchJob, PrefetchOutcome, ReadJob, ReadOutcome};
use std::sync::Arc;
use std::thread::JoinHandle;

/// What there is to do.
pub(super) struct Work {
    pub(super) read: ReadJob,
    /// Dropped when the reads have ended, which gives the disk to the prefetch.
    pub(super) reads: Sender<()>,
    /// Given if the reads are a task of the tokio-uring runtime of this thread; dropped when how they
    /// ended can be asked for.
    pub(super) on_this_runtime: Option<Announcer>,
    pub(super) upload: UploadJob,
    pub(super) bring: Option<PrefetchJob>,
    /// Those in the machine's memory, which have pages to be given.
    pub(super) arenas: Vec<Arc<HostArena>>,
    pub(super) tensors: Arc<Tensors>,
}

/// Those who do it.
#[derive(Default)]
pub(super) struct Threads {
    read: Option<Reader>,
    upload: Option<JoinHandle<UploadOutcome>>,
    /// Ends the upload before the reads have ended, when it is dropped.
    end_upload: Option<Sender<()>>,
    bring: Option<JoinHandle<PrefetchOutcome>>,
    populate: Vec<JoinHandle<()>>,
}

/// Who reads.
enum Reader {
    Thread(JoinHandle<ReadOutcome>),
    /// Sends how it ended, `None` by a panic, if it is not dropped before.
    #[cfg(feature = "tokio-uring")]
    Task(crossbeam_channel::Receiver<Option<ReadOutcome>>),
}

impl Reader {
    fn join(self) -> Result<ReadOutcome, Error> {
        match self {
            Self::Thread(thread) => thread.join().map_err(|_| panicked("reading")),
            // Nothing is sent where the runtime has ended before the load.
            #[cfg(feature = "tokio-uring")]
            Self::Task(outcome) => match outcome.recv() {
                Ok(outcome) => outcome.ok_or_else(|| panicked("reading")),
                Err(_) => Err(Error::Cancelled),
            },
        }
    }

    /// Whether whoever waits for it might be the one who has to bring it to its end.
    fn is_task(&self) -> bool {
        !matches!(self, Self::Thread(_))
    }
}

/// What they left.
pub(super) struct Joined {
    pub(super) read: ReadOutcome,
    pub(super) upload: UploadOutcome,
    pub(super) prefetch: PrefetchOutcome,
}

impl Threads {
    pub(super) fn spawn(work: Work, plan: &Plan, cancel: &Cancel) -> Result<Self, Error> {
        let mut threads = Self::default();
        match threads.start(work, plan, cancel) {
            Ok(()) => Ok(threads),
            Err(source) => {
                // Those that run have no error to tell: what is wrong is that there are too few of them.
                threads.leave(cancel);
                Err(Error::Thread { source })
            }
        }
    }

    fn start(&mut self, work: Work, plan: &Plan, cancel: &Cancel) -> std::io::Result<()> {
        let Work { read, reads, on_this_runtime, upload, bring, arenas, tensors } = work;
        let copies = plan.places.iter().any(Option::is_none);
        let populating = if arenas.is_empty() { 0 } else { populating_threads(copies) };
        for _ in 0..populating {
            let (arenas, stop) = (arenas.clone(), cancel.clone());
            let work = move || {
                arenas.iter().for_each(|arena| arena.populate(&|| stop.is_cancelled()));
            };
            // Without it, or with fewer, those who fill the memory populate as they go.
            self.populate.extend(named("forebay-populate", work).ok());
        }
        let numa = plan.options.numa;
        let stop = StopUnlessWell::new(cancel);
        let (end_upload, ended) = bounded(0);
        self.end_upload = Some(end_upload);
        let upload = move || {
            let outcome = upload.run(&ended);
            stop.end(outcome.failure.is_none());
            outcome
        };
        self.upload = Some(named("forebay-upload", upload)?);
        let stop = StopUnlessWell::new(cancel);
        self.read = Some(match on_this_runtime {
            #[cfg(feature = "tokio-uring")]
            Some(announcer) => Reader::Task(task(read, reads, stop, announcer)),
            _ => {
                let read = move || {
                    // Pages of files come from the nodes of the thread that brings them.
                    let _policy = numa::of_this_thread(numa);
                    let outcome = read.run();
                    stop.end(outcome.schedule.failure().is_none());
                    drop(reads);
                    outcome
                };
                Reader::Thread(named("forebay-read", read)?)
            }
        });
        if let Some(job) = bring {
            let stop = StopUnlessWell::new(cancel);
            let bring = move || {
                let _policy = numa::of_this_thread(numa);
                let _end = EndOfBringing(&tensors);
                let outcome = job.run();
                if !outcome.steps.is_empty() && outcome.failure.is_none() {
                    // Pages that came otherwise than by populating may not have been locked. Where the
                    // disk failed, old kernels would not come back from this.
                    tensors.lock.lock_in();
                }
                stop.end(outcome.failure.is_none());
                outcome
            };
            self.bring = Some(named("forebay-prefetch", bring)?);
        }
        Ok(())
    }

    /// Ends them, since the load is over for whoever had it, and waits until they have ended. A task
    /// is told to, and ends when its runtime runs next: whoever drops the load may be on the
    /// runtime's thread.
    pub(super) fn leave(mut self, cancel: &Cancel) {
        cancel.cancel();
        if self.read.as_ref().is_some_and(Reader::is_task) {
            self.read = None;
        }
        drop(self.end_upload.take());
        // Nobody is left to hear how it ended.
        let _ = self.join(cancel);
    }

    /// Waits for all of them, and stops populating for a load that has ended early.
    pub(super) fn join(self, cancel: &Cancel) -> Result<Joined, Error> {
        // Reader before uploader: the uploader ends when the reader's channel does.
        let read = self.read.map(Reader::join);
        let upload = self.upload.map(JoinHandle::join);
        let bring = self.bring.map(JoinHandle::join);
        // After a success there is nothing left to populate.
        cancel.cancel();
        let populate: Result<(), _> = self.populate.into_iter().try_for_each(JoinHandle::join);
        populate.map_err(|_| panicked("populating"))?;
        let (Some(read), Some(upload)) = (read, upload) else {
            return Err(Error::Internal("a thread was never started".to_owned()));
        };
        Ok(Joined {
            read: read?,
            upload: upload.map_err(|_| panicked("uploading"))?,
            prefetch: bring.transpose().map_err(|_| panicked("prefetching"))?.unwrap_or_default(),
        })
    }
}

/// Whoever should have read, copied or brought has panicked.
fn panicked(name: &str) -> Error {
    Error::Internal(format!("the {name} thread panicked"))
}

/// Reads as a task of the runtime of this thread.
#[cfg(feature = "tokio-uring")]
fn task(
    read: ReadJob,
    reads: Sender<()>,
    stop: StopUnlessWell,
    announcer: Announcer,
) -> crossbeam_channel::Receiver<Option<ReadOutcome>> {
    let (sender, outcome) = bounded(1);
    let if_panics = IfPanics(sender.clone());
    tokio_uring::spawn(async move {
        let _if_panics = if_panics;
        let read = read.run_on_tokio_uring().await;
        stop.end(read.schedule.failure().is_none());
        drop(reads);
        // Nobody may ask.
        let _ = sender.send(Some(read));
        // Who hears of the end asks how it was.
        drop(announcer);
    });
    outcome
}

/// Says that a task has panicked.
#[cfg(feature = "tokio-uring")]
struct IfPanics(Sender<Option<ReadOutcome>>);

#[cfg(feature = "tokio-uring")]
impl Drop for IfPanics {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It may have sent how it ended before.
            let _ = self.0.try_send(None);
        }
    }
}

/// Stops the load when its owner ends otherwise than well: by an error, or by a panic. The others
/// need not go on with what can't become whole.
struct StopUnlessWell {
    cancel: Cancel,
    is_well: bool,
}

impl StopUnlessWell {
    fn new(cancel: &Cancel) -> Self {
        Self { cancel: cancel.clone(), is_well: false }
    }

    fn end(mut self, is_well: bool) {
        self.is_well = is_well;
    }
}

impl Drop for StopUnlessWell {
    fn drop(&mut self) {
        if !self.is_well {
            self.cancel.cancel();
        }
    }
}

/// However the bringing ends, those who wait for a tensor hear of it.
struct EndOfBringing<'load>(&'load Tensors);

impl Drop for EndOfBringing<'_> {
    fn drop(&mut self) {
        self.0.resident.end();
    }
}

fn named<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// How many threads populate: the cores that the uploader leaves, which helps when it must wait.
fn populating_threads(copies: bool) -> usize {
    const THREADS_MAX: usize = 4;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.saturating_sub(usize::from(copies)).clamp(1, THREADS_MAX)
}

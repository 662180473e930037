//! The builder that most programs start with.

use crate::backend::{Backend, DeviceChoice, SplitMode};
use crate::error::Error;
use crate::loaded::Loaded;
use crate::mode::ModeSpec;
use crate::model::Model;
use crate::options::{EngineChoice, GpuLayers, Options, PlaceRule, Prefetch, Reclaim, Repack};
#[cfg(feature = "tokio-uring")]
use crate::pipeline::LoadStream;
use crate::pipeline::{Load, Progress};
use crate::plan::{Lent, LentMemory, Plan};
use crate::warm_up::WarmUp;
use forebay_device::cuda::DevicePointer;
use forebay_io::{Cancel, Fault};
use forebay_mem::numa::NumaPolicy;
use forebay_mem::{HostPointer, Writes};
use forebay_trace::Trace;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Called with the state of the load, on the thread that iterates over it.
pub(crate) type ProgressCallback = Box<dyn FnMut(Progress) + Send>;

/// How often the progress callback is called at most, unless the caller says otherwise.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What the caller brings along for one run.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) cancel: Cancel,
    pub(crate) progress: Option<ProgressCallback>,
    pub(crate) progress_interval: Option<Duration>,
    pub(crate) trace: Option<Trace>,
    pub(crate) fault: Option<Box<dyn Fault>>,
    /// When the load began, if that was before its plan was made.
    pub(crate) begun: Option<Instant>,
    /// Whether reads are a task of the tokio-uring runtime of the calling thread.
    pub(crate) on_this_runtime: bool,
}

/// What to load.
enum Source {
    Path(PathBuf),
    Opened(Model),
}

impl Source {
    fn open(&self) -> Result<Model, Error> {
        match self {
            Self::Path(path) => Model::open(path),
            Self::Opened(model) => Ok(model.opened_before()),
        }
    }
}

/// Says what to load and how, then loads it.
///
/// ```no_run
/// use forebay::{GpuLayers, Loader};
///
/// let loaded = Loader::new("model.gguf")
///     .gpu_layers(GpuLayers::Count(20))
///     .load_mode("device=dio,cpu=mmap".parse()?)
///     .on_progress(|progress| eprintln!("{} of {}", progress.done_bytes, progress.total_bytes))
///     .load()?;
/// let tensor = loaded.tensor("token_embd.weight").ok_or("no embeddings")?;
/// println!("{:?} on {}", tensor.shape(), tensor.backend());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Loader {
    source: Source,
    options: Options,
    lent: Vec<(String, LentMemory)>,
    hooks: Hooks,
}

impl Loader {
    /// A loader of `path`, with every option at its default. Opens nothing yet.
    #[must_use]
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::from_source(Source::Path(path.as_ref().to_owned()))
    }

    /// A loader of a model that is open already: of those files, whatever their paths lead to by now.
    /// That one of them is written to between its opening and the end of the load is an error.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        Self::from_source(Source::Opened(model.clone()))
    }

    fn from_source(source: Source) -> Self {
        Self { source, options: Options::default(), lent: Vec::new(), hooks: Hooks::default() }
    }

    /// Replaces all options at once.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Where offloaded tensors go.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.options.device = device;
        self
    }

    /// How offloaded tensors are spread, where there are several devices.
    #[must_use]
    pub fn split(mut self, split: SplitMode) -> Self {
        self.options.split = split;
        self
    }

    /// How many layers are offloaded; the rest stays on the CPU.
    #[must_use]
    pub fn gpu_layers(mut self, gpu_layers: GpuLayers) -> Self {
        self.options.gpu_layers = gpu_layers;
        self
    }

    /// Adds an exception by name, behind those already there.
    #[must_use]
    pub fn place(mut self, rule: PlaceRule) -> Self {
        self.options.place.push(rule);
        self
    }

    /// Puts the tensor `name` into memory of a CUDA device that you have allocated, whatever the
    /// other options say of it. Its bytes begin at the pointer.
    #[must_use]
    pub fn into_device_memory(mut self, name: &str, memory: DevicePointer) -> Self {
        self.lent.push((name.to_owned(), LentMemory::Device(memory)));
        self
    }

    /// Puts the tensor `name` into memory that you have allocated, whatever the other options say of
    /// it: its bytes begin at the pointer, as the file has them. It counts as one of `host`, so
    /// `host=…` is the load mode that it is read by.
    #[must_use]
    pub fn into_host_memory(mut self, name: &str, memory: HostPointer) -> Self {
        self.lent.push((name.to_owned(), LentMemory::Host(memory)));
        self
    }

    /// How each backend loads.
    #[must_use]
    pub fn load_mode(mut self, load_mode: ModeSpec) -> Self {
        self.options.load_mode = load_mode;
        self
    }

    /// Makes a mode that can't be had an error.
    #[must_use]
    pub fn no_fallback(mut self) -> Self {
        self.options.no_fallback = true;
        self
    }

    /// Who performs the reads.
    #[must_use]
    pub fn engine(mut self, engine: EngineChoice) -> Self {
        self.options.engine = engine;
        self
    }

    /// The size of all staging memory in bytes.
    #[must_use]
    pub fn staging_bytes(mut self, bytes: u64) -> Self {
        self.options.staging_bytes = Some(bytes);
        self
    }

    /// The size of one read in bytes.
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.options.chunk_bytes = Some(bytes);
        self
    }

    /// Reads in flight at most.
    #[must_use]
    pub fn queue_depth(mut self, reads: usize) -> Self {
        self.options.queue_depth = Some(reads);
        self
    }

    /// Whether mapped pages are given back once their bytes have been copied.
    #[must_use]
    pub fn reclaim(mut self, reclaim: Reclaim) -> Self {
        self.options.reclaim = reclaim;
        self
    }

    /// Whether mapped tensors are brought in ahead of use.
    #[must_use]
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.options.prefetch = prefetch;
        self
    }

    /// Whether tensors that stay in a mapping may be written ([`Tensor::as_mut_ptr`]): to copies of
    /// their pages, which no file sees.
    ///
    /// [`Tensor::as_mut_ptr`]: crate::Tensor::as_mut_ptr
    #[must_use]
    pub fn mapped_writes(mut self, writes: Writes) -> Self {
        self.options.mapped_writes = writes;
        self
    }

    /// Whether weights are laid out anew for the CPU's matrix products.
    #[must_use]
    pub fn repack(mut self, repack: Repack) -> Self {
        self.options.repack = repack;
        self
    }

    /// On which NUMA node memory and page cache of the load are placed.
    #[must_use]
    pub fn numa(mut self, numa: NumaPolicy) -> Self {
        self.options.numa = numa;
        self
    }

    /// Calls `callback` at the start, now and then, and at the end, on the thread that iterates.
    #[must_use]
    pub fn on_progress(mut self, callback: impl FnMut(Progress) + Send + 'static) -> Self {
        self.hooks.progress = Some(Box::new(callback));
        self
    }

    /// How long after one call of [`Loader::on_progress`]'s callback the next may come: 100 ms if not
    /// given, and no less than one.
    #[must_use]
    pub fn progress_interval(mut self, interval: Duration) -> Self {
        // Waiting for no time at all would keep a processor busy.
        self.hooks.progress_interval = Some(interval.max(Duration::from_millis(1)));
        self
    }

    /// Lets `cancel` stop the load from any thread.
    #[must_use]
    pub fn cancel_with(mut self, cancel: &Cancel) -> Self {
        self.hooks.cancel = cancel.clone();
        self
    }

    /// Records what the load does on a timeline: reads, waits, uploads, prefetched pages. What has
    /// been recorded can be written at any time, however the load ends.
    #[must_use]
    pub fn trace(mut self, trace: &Trace) -> Self {
        self.hooks.trace = Some(trace.clone());
        self
    }

    /// For tests of the loader itself: tampers with what the engines see.
    #[doc(hidden)]
    #[must_use]
    pub fn fault(mut self, fault: Box<dyn Fault>) -> Self {
        self.hooks.fault = Some(fault);
        self
    }

    /// What would happen, and why. Opens the files and parses their headers; reads no tensor.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Plan::new`].
    pub fn plan(&self) -> Result<Plan, Error> {
        let model = self.source.open()?;
        let mut plan = Plan::to_start(&model, &self.options, self.lent(&model)?)?;
        plan.probe_performer();
        Ok(plan)
    }

    /// The lent memory by tensor, if it is as large as it must be.
    fn lent(&self, model: &Model) -> Result<Lent, Error> {
        let refuse = |cause: &str| {
            Error::option(
                "lent memory",
                cause,
                "lend it for a tensor of the model, and as large as that",
            )
        };
        let mut lent = Lent::new();
        for (name, pointer) in &self.lent {
            let index = model.catalog().position(name);
            let index =
                index.ok_or_else(|| refuse(&format!("the model has no tensor '{name}'")))?;
            let bytes = model.catalog().tensors()[index].bytes;
            if pointer.bytes() < bytes {
                let cause =
                    format!("tensor '{name}' has {bytes} bytes, and {} are lent", pointer.bytes());
                return Err(refuse(&cause));
            }
            if lent.insert(index, pointer.clone()).is_some() {
                return Err(refuse(&format!("tensor '{name}' is lent memory twice")));
            }
        }
        let mut ranges: Vec<_> = lent
            .values()
            .filter(|it| it.bytes() > 0)
            .map(|it| (it.backend(), it.address(), it.address().saturating_add(it.bytes())))
            .collect();
        ranges.sort_unstable();
        let overlap =
            |pair: &&[(Backend, u64, u64)]| pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1;
        if let Some(pair) = ranges.windows(2).find(overlap) {
            let (backend, address, _) = pair[1];
            return Err(refuse(&format!("{address:#x} of {backend} is lent for two tensors")));
        }
        Ok(lent)
    }

    /// Opens, plans and starts. The result yields tensors as they land.
    ///
    /// # Errors
    /// As [`Loader::plan`]; [`Error::Device`] or [`Error::Memory`] where memory is refused.
    pub fn start(mut self) -> Result<Load, Error> {
        self.hooks.begun = Some(Instant::now());
        // What a device takes to be ready is done while the files are opened and planned.
        let warm_up = WarmUp::begin(&self.options);
        let model = self.source.open()?;
        let lent = self.lent(&model)?;
        let plan = Plan::to_start(&model, &self.options, lent)?;
        let _ready = warm_up.finish();
        plan.start_with(self.hooks)
    }

    /// As [`Loader::start`], and the reads are a task of the [tokio-uring] runtime that this is called
    /// on, whose thread is the only one that reads. Opening and planning block it for a moment.
    ///
    /// The runtime has to run for the load to go on. Dropping the stream stops the load, but waits for
    /// nothing: the runtime finishes what is in flight when it runs next. If it ends first, so does
    /// the load, with [`Error::Cancelled`].
    ///
    /// [tokio-uring]: https://docs.rs/tokio-uring
    ///
    /// ```no_run
    /// use forebay::Loader;
    /// use futures_util::StreamExt;
    ///
    /// tokio_uring::start(async {
    ///     let mut landing = Loader::new("model.gguf").stream_on_tokio_uring()?;
    ///     while let Some(tensor) = landing.next().await {
    ///         println!("{:?}", tensor?);
    ///     }
    ///     let loaded = landing.finished().await?;
    /// #   Ok::<(), forebay::Error>(())
    /// })?;
    /// # Ok::<(), forebay::Error>(())
    /// ```
    ///
    /// # Panics
    /// Outside of a local set. In one of another runtime, the load ends with [`Error::Internal`].
    ///
    /// # Errors
    /// As [`Loader::start`].
    #[cfg(feature = "tokio-uring")]
    pub fn stream_on_tokio_uring(mut self) -> Result<LoadStream, Error> {
        self.options.engine = EngineChoice::TokioUring;
        self.hooks.on_this_runtime = true;
        Ok(self.start()?.stream())
    }

    /// Loads everything.
    ///
    /// # Errors
    /// Everything that [`Error`] names.
    pub fn load(self) -> Result<Loaded, Error> {
        self.start()?.finish()
    }
}

//! What will happen, as plain data, before anything does.

mod build;
mod cutting;
mod facts;
mod in_place;
mod placing;
pub(crate) mod reads;
mod repack;
mod residence;
mod staging;

use crate::backend::Backend;
use crate::compute::Interleaved;
use crate::error::Error;
use crate::loader::Hooks;
use crate::mode::LoadMode;
use crate::model::Model;
use crate::options::Options;
use crate::pipeline::Load;
use crate::report::PlanReport;
use crate::split::Split;
use forebay_device::cuda::{DeviceInfo, DevicePointer};
use forebay_device::{ArenaLayout, Columns, Segment};
use forebay_io::{Access, Errno, Performer, ReadSpec};
use forebay_mem::HostPointer;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use repack::Rearranged;
pub(crate) use residence::Residence;
pub(crate) use staging::{Staging, near_devices};

/// What will be done for one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPlan {
    /// Which.
    pub backend: Backend,
    /// The mode that was asked for.
    pub requested: LoadMode,
    /// The mode that will be used.
    pub mode: LoadMode,
    /// Why that one.
    pub why: String,
    /// How many tensors go there.
    pub tensors: usize,
    /// Their bytes together.
    pub bytes: u64,
}

/// What will be done with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// Which.
    pub path: PathBuf,
    /// Who reads it: `uring`, `threads` or `mmap`.
    pub engine: &'static str,
    /// How its bytes are reached: `direct`, `dontcache`, `buffered` or `mmap`.
    pub access: Access,
    /// What direct reads are aligned to in bytes, where the file takes any.
    pub dio_align: Option<u64>,
    /// How many reads there will be.
    pub reads: usize,
    /// Their bytes together, rounding and small gaps included.
    pub read_bytes: u64,
    /// The bytes of the tensors among them.
    pub wanted_bytes: u64,
    /// The bytes of tensors that are mapped in place and not read.
    pub mapped_bytes: u64,
    /// How much of the file was in the page cache when the plan was made.
    pub cached_bytes: Option<u64>,
    /// Whether the load maps it.
    pub(crate) is_mapped: bool,
    /// Why direct reads can't be had, if the plan wants them.
    pub(crate) direct_refused: Option<Errno>,
    /// Why the file can't be mapped, if the plan wanted that.
    pub(crate) mapping_refused: Option<Errno>,
}

/// Where a tensor will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In an arena, as this tensor of it.
    Arena { arena: usize, tensor: usize },
    /// In parts, each as a tensor of an arena.
    Split(Arc<SplitHome>),
    /// In the mapping of its file.
    Mapped,
}

/// A tensor in parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SplitHome {
    pub(crate) split: Split,
    /// Arena and tensor of each part.
    pub(crate) parts: Vec<(usize, usize)>,
}

/// What memory an arena is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArenaKind {
    /// Ordinary memory.
    Host,
    /// Ordinary memory that this integrated GPU computes on.
    Shared(u32),
    /// This device's own memory.
    Device(u32),
    /// Ordinary memory that the embedder lends.
    LentHost,
    /// Memory of this device that the embedder lends.
    Lent(u32),
}

impl ArenaKind {
    /// Whether it is taken from the machine's memory.
    pub(crate) fn is_host_memory(self) -> bool {
        matches!(self, Self::Host | Self::Shared(_) | Self::LentHost)
    }

    /// The CUDA device that its tensors are used on.
    pub(crate) fn device(self) -> Option<u32> {
        match self {
            Self::Host | Self::LentHost => None,
            Self::Shared(ordinal) | Self::Device(ordinal) | Self::Lent(ordinal) => Some(ordinal),
        }
    }
}

/// One arena: its backend, its tensors by index in the catalog, and how they lie in it.
#[derive(Clone, Debug)]
pub(crate) struct ArenaPlan {
    pub(crate) backend: Backend,
    pub(crate) kind: ArenaKind,
    /// Which unit of a stream it holds; 0 if all is loaded at once.
    pub(crate) unit: usize,
    pub(crate) tensors: Vec<usize>,
    pub(crate) layout: ArenaLayout,
    /// For each tensor: the order of its bytes, if it is not the file's.
    pub(crate) arrangements: Vec<Option<Interleaved>>,
    /// For each tensor: which columns it has of the file's, if not all.
    pub(crate) columns: Vec<Option<Columns>>,
    /// For each tensor: whether its bytes count as the model's. Of parts that are made from the
    /// same bytes, those of the first do.
    pub(crate) counts: Vec<bool>,
}

impl ArenaPlan {
    fn new(backend: Backend, kind: ArenaKind, unit: usize) -> Self {
        Self {
            backend,
            kind,
            unit,
            tensors: Vec::new(),
            layout: ArenaLayout::default(),
            arrangements: Vec::new(),
            columns: Vec::new(),
            counts: Vec::new(),
        }
    }
}

/// Where in an arena a read lands that needs no copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedPlace {
    pub(crate) arena: usize,
    pub(crate) range: Range<u64>,
}

/// Memory that the embedder lends for one load, by index of the tensor.
pub(crate) type Lent = BTreeMap<usize, LentMemory>;

/// Memory that the embedder lends for a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LentMemory {
    Host(HostPointer),
    Device(DevicePointer),
}

impl LentMemory {
    pub(crate) fn backend(&self) -> Backend {
        match self {
            Self::Host(_) => Backend::Host,
            Self::Device(pointer) => Backend::Cuda(pointer.ordinal()),
        }
    }

    pub(crate) fn host(&self) -> Option<HostPointer> {
        match self {
            Self::Host(pointer) => Some(pointer.clone()),
            Self::Device(_) => None,
        }
    }

    pub(crate) fn device(&self) -> Option<DevicePointer> {
        match self {
            Self::Host(_) => None,
            Self::Device(pointer) => Some(pointer.clone()),
        }
    }

    /// Its first address, in the address space of its backend.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Host(pointer) => pointer.address().addr() as u64,
            Self::Device(pointer) => pointer.address(),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Host(pointer) => pointer.bytes(),
            Self::Device(pointer) => pointer.bytes(),
        }
    }
}

/// What a load will do: pure data, made from a [`Model`] and [`Options`].
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) model: Model,
    pub(crate) options: Options,
    pub(crate) backends: Vec<BackendPlan>,
    pub(crate) files: Vec<FilePlan>,
    /// Of each tensor; of one in parts, that of the first.
    pub(crate) tensor_backends: Vec<Backend>,
    /// The CUDA devices that tensors go to.
    pub(crate) devices: BTreeMap<u32, DeviceInfo>,
    /// Memory that the embedder lends, by tensor.
    pub(crate) lent: Lent,
    pub(crate) homes: Vec<Home>,
    pub(crate) arenas: Vec<ArenaPlan>,
    pub(crate) reads: Arc<[ReadSpec]>,
    /// The segments of each read.
    pub(crate) segments: Arc<[Vec<Segment>]>,
    /// Of each read: where it lands, if not in a slot.
    pub(crate) places: Arc<[Option<PlannedPlace>]>,
    /// What becomes of the tensors that stay in their mapping.
    pub(crate) residence: Residence,
    pub(crate) staging: Staging,
    pub(crate) performer: Performer,
    pub(crate) why: Vec<String>,
    pub(crate) plan_time: Duration,
}

impl Plan {
    /// Plans a load of `model`. Reads no tensor; looks at the page cache, and maps the files
    /// whose tensors stay in them.
    ///
    /// # Errors
    /// [`Error::Option`] where options can't be met together.
    pub fn new(model: &Model, options: &Options) -> Result<Self, Error> {
        let mut plan = Self::to_start(model, options, Lent::default())?;
        plan.probe_performer();
        Ok(plan)
    }

    /// A plan that is started at once: nobody looks at it, so nothing is tried that the load will
    /// try itself, and a load sets up one ring.
    pub(crate) fn to_start(model: &Model, options: &Options, lent: Lent) -> Result<Self, Error> {
        build::build(model, options, lent, None)
    }

    /// A plan for a stream of units that come and go, of which each tensor is in one: an arena a
    /// unit, no read for two of them, and all reads through slots.
    pub(crate) fn for_stream(
        model: &Model,
        options: &Options,
        units: &[usize],
    ) -> Result<Self, Error> {
        build::build(model, options, Lent::default(), Some(units))
    }

    /// Bytes that the arenas take of the machine's memory; what is lent has been taken already.
    pub(crate) fn host_bytes(&self) -> u64 {
        let takes = |kind: ArenaKind| kind.is_host_memory() && kind != ArenaKind::LentHost;
        let host = self.arenas.iter().filter(|arena| takes(arena.kind));
        host.map(|arena| arena.layout.bytes).sum()
    }

    /// The bytes of the model that a piece of a read is, each byte counted once.
    pub(crate) fn counted_bytes(&self, segment: &Segment) -> u64 {
        let counts = self.arenas[segment.arena].counts[segment.tensor];
        if counts { u64::from(segment.bytes) } else { 0 }
    }

    /// The CUDA devices that are copied to, in order.
    pub(crate) fn copied_to(&self) -> Vec<u32> {
        let kinds = self.arenas.iter().map(|arena| arena.kind);
        let copied = kinds.filter(|kind| !kind.is_host_memory());
        let mut ordinals: Vec<u32> = copied.filter_map(ArenaKind::device).collect();
        ordinals.sort_unstable();
        ordinals.dedup();
        ordinals
    }

    /// Starts the load. The plan can be started again, for a second copy.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::Memory`] where memory is refused.
    pub fn start(&self) -> Result<Load, Error> {
        if !self.lent.is_empty() {
            let cause = "it is lent to one load, and a plan may be started again";
            return Err(Error::option("lent memory", cause, "use Loader::start"));
        }
        self.start_with(Hooks::default())
    }

    pub(crate) fn start_with(&self, hooks: Hooks) -> Result<Load, Error> {
        Load::start(self, hooks)
    }

    /// What will be done for each backend.
    #[must_use]
    pub fn backends(&self) -> &[BackendPlan] {
        &self.backends
    }

    /// What will be done with each file.
    #[must_use]
    pub fn files(&self) -> &[FilePlan] {
        &self.files
    }

    /// The staging memory in bytes.
    #[must_use]
    pub fn staging_bytes(&self) -> u64 {
        self.staging.bytes()
    }

    /// The reasons, one sentence each.
    #[must_use]
    pub fn why(&self) -> &[String] {
        &self.why
    }

    /// Where the tensor of that name will live; one in parts, where the first of them will.
    #[must_use]
    pub fn backend_of(&self, name: &str) -> Option<Backend> {
        self.model.catalog().position(name).map(|index| self.tensor_backends[index])
    }

    /// The model it is a plan for.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The plan as the command line prints it with `--json`.
    #[must_use]
    pub fn report(&self) -> PlanReport {
        PlanReport::new(self)
    }
}

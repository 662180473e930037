//! Tensors that have landed.

use crate::backend::Backend;
use crate::digest;
use crate::error::Error;
use crate::report::LoadReport;
use forebay_device::HostArena;
use forebay_format::{Catalog, Dtype};
use forebay_mem::{MappedView, MemoryError, Operation, PageLock};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Where the bytes of a tensor are.
#[derive(Debug)]
pub(crate) enum TensorMemory {
    Arena { arena: Arc<HostArena>, tensor: usize },
    Mapped(MappedView),
    Empty,
}

/// All tensors of a load, landed or not.
#[derive(Debug)]
pub(crate) struct Tensors {
    catalog: Arc<Catalog>,
    memory: Vec<TensorMemory>,
    backends: Vec<Backend>,
    /// Held for its drop: pages stay locked as long as any tensor of the load is held.
    _lock: PageLock,
}

impl Tensors {
    pub(crate) fn from_parts(
        catalog: Arc<Catalog>,
        memory: Vec<TensorMemory>,
        backends: Vec<Backend>,
        lock: PageLock,
    ) -> Self {
        Self { catalog, memory, backends, _lock: lock }
    }

    pub(crate) fn get(self: &Arc<Self>, index: usize) -> Tensor {
        Tensor { tensors: Arc::clone(self), index }
    }
}

/// One tensor, whole and where it belongs. Cheap to clone; keeps its memory alive.
#[derive(Clone)]
pub struct Tensor {
    tensors: Arc<Tensors>,
    index: usize,
}

impl Tensor {
    fn entry(&self) -> &forebay_format::Tensor {
        &self.tensors.catalog.tensors()[self.index]
    }

    /// The name in the model.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.entry().name
    }

    /// The element or block type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.entry().dtype
    }

    /// The shape, outermost dimension first; empty for a scalar.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.entry().shape
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entry().bytes
    }

    /// Where it lives.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.tensors.backends[self.index]
    }

    /// The bytes, if they are in memory of ours: on `host`, and on `cpu` in the modes `none` and
    /// `dio`. `None` for tensors that stay in a mapping: see [`Tensor::mapped`].
    ///
    /// # Alignment
    /// The first byte lies at a multiple of 256.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        match &self.tensors.memory[self.index] {
            TensorMemory::Arena { arena, tensor } => arena.tensor(*tensor),
            TensorMemory::Empty => Some(&[]),
            TensorMemory::Mapped(_) => None,
        }
    }

    /// The view into the mapped file, if that is where the tensor lives. Its alignment is the
    /// file's.
    #[must_use]
    pub fn mapped(&self) -> Option<&MappedView> {
        match &self.tensors.memory[self.index] {
            TensorMemory::Mapped(view) => Some(view),
            TensorMemory::Arena { .. } | TensorMemory::Empty => None,
        }
    }

    /// Copies `buffer.len()` bytes from `offset` within the tensor on, wherever it lives.
    ///
    /// # Errors
    /// [`Error::Memory`] where the mapped file no longer reaches, or past the tensor's end.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let failed = || format!("tensor '{}' can't be read back", self.name());
        match (self.mapped(), self.as_slice()) {
            (Some(view), _) => view.read_into(offset, buffer).map_err(Error::memory(failed())),
            (None, Some(bytes)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let past_end =
                    || MemoryError::past_end(Operation::ReadTensor, offset, buffer.len() as u64);
                let piece = bytes.get(start..end);
                let piece = piece.ok_or_else(|| Error::memory(failed())(past_end()))?;
                buffer.copy_from_slice(piece);
                Ok(())
            }
            (None, None) => unreachable!("a tensor is handed out once it is published"),
        }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?} on {}", self.name(), self.dtype(), self.shape(), self.backend())
    }
}

/// A model that has been loaded whole.
#[derive(Debug)]
pub struct Loaded {
    tensors: Arc<Tensors>,
    report: LoadReport,
}

impl Loaded {
    pub(crate) fn new(tensors: Arc<Tensors>, report: LoadReport) -> Self {
        Self { tensors, report }
    }

    /// Every tensor, in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor> + '_ {
        (0..self.tensors.memory.len()).map(|index| self.tensors.get(index))
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        self.tensors.catalog.position(name).map(|index| self.tensors.get(index))
    }

    /// The model's tensors and metadata.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.tensors.catalog
    }

    /// What happened.
    #[must_use]
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The sha256 of every tensor's bytes as hex, read back from where they landed, on every
    /// core.
    ///
    /// # Errors
    /// As [`Tensor::read_into`].
    pub fn digests(&self) -> Result<BTreeMap<String, String>, Error> {
        digest::all(&self.tensors().collect::<Vec<_>>())
    }
}

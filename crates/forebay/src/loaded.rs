//! Tensors that have landed.

use crate::backend::Backend;
use crate::compute::Interleaved;
use crate::digest::{self, DigestKind};
use crate::error::Error;
use crate::plan::SplitHome;
use crate::report::LoadReport;
use crate::resident::Resident;
use crate::split::Axis;
use forebay_device::cuda::{Context, CudaArena, HostRegistration, StagingShape, Weights};
use forebay_device::{DeviceError, HostArena};
use forebay_format::{Catalog, Dtype};
use forebay_mem::{MappedView, MemoryError, Operation, PageLock};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Where the bytes of a tensor, or of a part of one, are.
#[derive(Debug)]
pub(crate) enum HeldPart {
    /// In ordinary memory; where a GPU uses it too, with the driver's hold on it and the address
    /// that the GPU sees the arena's first byte at.
    Host {
        arena: Arc<HostArena>,
        tensor: usize,
        device: Option<(Option<Arc<HostRegistration>>, u64)>,
    },
    /// In the memory of a CUDA device.
    Cuda { arena: Arc<CudaArena>, tensor: usize },
}

impl HeldPart {
    fn as_slice(&self) -> Option<&[u8]> {
        match self {
            Self::Host { arena, tensor, .. } => arena.tensor(*tensor),
            Self::Cuda { .. } => None,
        }
    }

    /// As a matrix for the products of a GPU; `None` for what none reaches.
    fn weights(
        &self,
        backend: Backend,
        dtype: Dtype,
        rows: u64,
        columns: u64,
    ) -> Result<Option<Weights>, DeviceError> {
        match (self, backend) {
            (Self::Cuda { arena, tensor }, _) => {
                Ok(Weights::on_device(arena, *tensor, dtype.name(), rows, columns))
            }
            (
                Self::Host { arena, tensor, device: Some((registered, _)) },
                Backend::Cuda(ordinal),
            ) => {
                let context = Context::of(ordinal)?;
                let place = (arena, *tensor);
                let registered = registered.as_ref();
                Weights::in_host_memory(&context, place, registered, dtype.name(), rows, columns)
            }
            _ => Ok(None),
        }
    }

    /// Where a GPU finds it.
    fn device_address(&self) -> Option<u64> {
        match self {
            Self::Host { arena, tensor, device: Some((_, base)) } => {
                let offset =
                    arena.tensor(*tensor)?.as_ptr().addr() - arena.region()?.start().addr();
                Some(base + offset as u64)
            }
            Self::Host { .. } => None,
            Self::Cuda { arena, tensor } => arena.tensor(*tensor).map(|(address, _)| address),
        }
    }

    /// Copies bytes from `offset` on. The range lies inside, and the tensor is there.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        match self {
            Self::Host { arena, tensor, .. } => {
                let bytes =
                    arena.tensor(*tensor).expect("tensors are handed out once they are whole");
                let start = usize::try_from(offset).expect("an offset inside a tensor in memory");
                into.copy_from_slice(&bytes[start..start + into.len()]);
                Ok(())
            }
            Self::Cuda { arena, tensor } => arena.read(*tensor, offset, into),
        }
    }
}

/// Where the bytes of a tensor are.
#[derive(Debug)]
pub(crate) enum TensorMemory {
    Arena { part: HeldPart, interleaved: Option<Interleaved> },
    Split { home: Arc<SplitHome>, parts: Vec<HeldPart>, backends: Vec<Backend> },
    Mapped(MappedView),
    Empty,
}

/// A tensor, or the part of one that a device has, as a matrix: all outer dimensions are rows, the
/// innermost is columns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorPart {
    /// Where it is.
    pub backend: Backend,
    /// Which rows of the tensor it has.
    pub rows: Range<u64>,
    /// Which columns it has; less than all where the tensor is cut by columns.
    pub columns: Range<u64>,
    /// Its bytes, row after row without gaps.
    pub bytes: u64,
    /// Its first byte in the address space of its CUDA device; a multiple of 256, but for
    /// integrated GPUs, where it is aligned as the file aligns it, and for lent memory.
    pub device_address: Option<u64>,
}

/// The tensors of a load, landed or not, or those of one unit of a stream.
#[derive(Debug)]
pub(crate) struct Tensors {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) memory: Vec<TensorMemory>,
    pub(crate) backends: Vec<Backend>,
    /// What they are, where that is not what the catalog says: slices of its tensors.
    pub(crate) entries: Option<Vec<forebay_format::Tensor>>,
    /// How far the mapped ones have come.
    pub(crate) resident: Resident,
    /// Whether mapped pages are given back once they have been converted.
    pub(crate) reclaim: bool,
    /// Held for its drop too: pages stay locked as long as any tensor of the load is held.
    pub(crate) lock: PageLock,
    /// The staging memory for reading back from devices.
    pub(crate) staging: Option<StagingShape>,
}

impl Tensors {
    pub(crate) fn get(self: &Arc<Self>, index: usize) -> Tensor {
        Tensor { tensors: Arc::clone(self), index, place: index }
    }

    /// How many others have the arena that these are in: other tensors, products on a device.
    pub(crate) fn others(&self) -> usize {
        let users = |memory: &TensorMemory| match memory {
            TensorMemory::Arena { part: HeldPart::Host { arena, .. }, .. } => {
                Some(Arc::strong_count(arena))
            }
            TensorMemory::Arena { part: HeldPart::Cuda { arena, .. }, .. } => {
                Some(Arc::strong_count(arena))
            }
            _ => None,
        };
        let own = self.memory.iter().filter(|memory| users(memory).is_some()).count();
        let all = self.memory.iter().find_map(users).unwrap_or(own);
        all.saturating_sub(own)
    }

    /// The tensor with this number in the catalog, whose memory is at `place` of a part of them.
    pub(crate) fn at(self: &Arc<Self>, place: usize, index: usize) -> Tensor {
        Tensor { tensors: Arc::clone(self), index, place }
    }
}

/// What a CUDA device has of a matrix.
pub(crate) struct PlacedWeights {
    pub(crate) weights: Weights,
    pub(crate) rows: Range<u64>,
    pub(crate) columns: Range<u64>,
}

/// One tensor, whole and where it belongs. Cheap to clone; keeps its memory alive.
#[derive(Clone)]
pub struct Tensor {
    tensors: Arc<Tensors>,
    /// In the catalog.
    index: usize,
    /// Among those whose memory is held together.
    place: usize,
}

impl Tensor {
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.tensors.catalog
    }

    /// Gives back mapped pages whose bytes have been converted, if the load does that.
    pub(crate) fn give_back(&self, range: Range<u64>) {
        if let Some(view) = self.mapped().filter(|_| self.tensors.reclaim) {
            let start = view.file_offset();
            // Locked pages stay; what is refused costs memory and no byte.
            let _ = view.mapping().reclaim(start + range.start..start + range.end);
        }
    }

    fn entry(&self) -> &forebay_format::Tensor {
        match &self.tensors.entries {
            Some(entries) => &entries[self.place],
            None => &self.tensors.catalog.tensors()[self.index],
        }
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

    /// Where it lives; a tensor in parts ([`Tensor::parts`]), where the first of them does.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.tensors.backends[self.place]
    }

    /// The bytes, if they are in memory of ours and as the file has them: on `host`, and on `cpu`
    /// in the modes `none` and `dio`. `None` for tensors that stay in a mapping
    /// ([`Tensor::mapped`]) and for those that were repacked ([`Tensor::is_repacked`]).
    ///
    /// # Alignment
    /// On `host` the first byte lies at a multiple of 256. On `cpu`, memory is laid out as the file
    /// is, so that direct reads land in place: at a multiple of an element (of 8 for block types),
    /// and of what the file aligns its tensors to, up to a page.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part, interleaved: None } => part.as_slice(),
            TensorMemory::Empty => Some(&[]),
            TensorMemory::Arena { .. } | TensorMemory::Split { .. } | TensorMemory::Mapped(_) => {
                None
            }
        }
    }

    /// The first byte of its memory, valid for reads and writes of [`Tensor::bytes`] bytes while a
    /// [`Tensor`] or [`Loaded`] of the load is held: for whoever makes the tensor its own, and then
    /// reads it by nothing else that shares it ([`Tensor::as_slice`], products, digests). `None`
    /// where there is no such memory: on devices, in parts, repacked, of no bytes, and in mappings
    /// that refuse writes ([`Loader::mapped_writes`](crate::Loader::mapped_writes)). Tensors of a `.ptd`
    /// file that lie on the same bytes share them in a mapping.
    ///
    /// # Alignment
    /// As [`Tensor::as_slice`]; in a mapping, the file's.
    #[must_use]
    pub fn as_mut_ptr(&self) -> Option<NonNull<u8>> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena {
                part: HeldPart::Host { arena, tensor, .. },
                interleaved: None,
            } => arena.tensor_start(*tensor),
            TensorMemory::Mapped(view) => view.address_mut(),
            TensorMemory::Arena { .. } | TensorMemory::Split { .. } | TensorMemory::Empty => None,
        }
        .filter(|_| self.bytes() > 0)
    }

    /// The parts of a tensor that is split over several devices, in the order of their rows or
    /// columns; one part, which is all of it, for every other tensor.
    #[must_use]
    pub fn parts(&self) -> Vec<TensorPart> {
        if let TensorMemory::Split { home, parts, backends } = &self.tensors.memory[self.place] {
            let part = |(index, part): (usize, &HeldPart)| {
                let (rows, columns) = home.split.elements(index);
                let (backend, bytes) = (backends[index], home.split.part_bytes(index));
                let device_address = part.device_address();
                TensorPart { backend, rows, columns, bytes, device_address }
            };
            return parts.iter().enumerate().map(part).collect();
        }
        let (columns, outer) = self.shape().split_last().map_or((1, &[][..]), |(&k, m)| (k, m));
        let rows = outer.iter().product();
        let (backend, bytes, device_address) =
            (self.backend(), self.bytes(), self.device_address());
        vec![TensorPart { backend, rows: 0..rows, columns: 0..columns, bytes, device_address }]
    }

    /// Along what it is cut, if it is in parts.
    #[must_use]
    pub fn split_axis(&self) -> Option<Axis> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Split { home, .. } => Some(home.split.axis()),
            _ => None,
        }
    }

    /// Where its first byte is in the address space of the one CUDA device that has it: for
    /// kernels, which are to be done with it before the last [`Tensor`] or [`Loaded`] of the load is
    /// dropped. `None` for what is on no such device, or on several ([`Tensor::parts`]).
    #[must_use]
    pub fn device_address(&self) -> Option<u64> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part, interleaved: None } => part.device_address(),
            _ => None,
        }
    }

    /// What CUDA devices have of it, a matrix of `rows` × `columns`. Empty for what is on none.
    pub(crate) fn device_weights(
        &self,
        rows: u64,
        columns: u64,
    ) -> Result<Vec<PlacedWeights>, DeviceError> {
        let mut weights = Vec::new();
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part, interleaved: None } => {
                let whole = part.weights(self.backend(), self.dtype(), rows, columns)?;
                let place = |weights| PlacedWeights { weights, rows: 0..rows, columns: 0..columns };
                weights.extend(whole.map(place));
            }
            TensorMemory::Split { home, parts, backends } => {
                for (index, part) in parts.iter().enumerate() {
                    let (rows, columns) = home.split.elements(index);
                    let (height, width) = (rows.end - rows.start, columns.end - columns.start);
                    let part = part.weights(backends[index], self.dtype(), height, width)?;
                    weights.extend(part.map(|weights| PlacedWeights { weights, rows, columns }));
                }
            }
            _ => {}
        }
        Ok(weights)
    }

    /// The arena on a CUDA device that has all of it, and its number there.
    pub(crate) fn on_cuda(&self) -> Option<(&Arc<CudaArena>, usize)> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part: HeldPart::Cuda { arena, tensor }, .. } => {
                Some((arena, *tensor))
            }
            _ => None,
        }
    }

    /// The staging memory that its load used for devices.
    pub(crate) fn staging(&self) -> Option<&StagingShape> {
        self.tensors.staging.as_ref()
    }

    /// Whether its bytes were interleaved for the CPU's matrix products while it was loaded.
    /// [`Tensor::read_into`] gives them as the file has them all the same.
    #[must_use]
    pub fn is_repacked(&self) -> bool {
        self.repacked().is_some()
    }

    /// The layout and the bytes of a repacked tensor.
    pub(crate) fn repacked(&self) -> Option<(Interleaved, &[u8])> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part, interleaved: Some(layout) } => {
                Some((*layout, part.as_slice()?))
            }
            _ => None,
        }
    }

    /// Waits until its bytes are in memory, so that using them waits for no storage. Tensors that
    /// [`Load::next`](crate::Load) has given out are there already, but for mapped ones that are
    /// not prefetched, and those that memory pressure has since dropped.
    ///
    /// # Errors
    /// [`Error::Memory`] where the mapped file no longer reaches or its storage failed.
    pub fn wait_until_resident(&self) -> Result<(), Error> {
        let Some(view) = self.mapped() else { return Ok(()) };
        self.tensors.resident.wait_for(self.index);
        let failed = || format!("tensor '{}' can't be brought into memory", self.name());
        view.bring_in().map_err(Error::memory(failed()))
    }

    /// How many of its bytes are in memory now. For mapped files of somebody else the kernel does
    /// not tell, and all seem to be.
    ///
    /// # Errors
    /// [`Error::Memory`] with what `mincore` answers.
    pub fn resident_bytes(&self) -> Result<u64, Error> {
        let what = || format!("tensor '{}' can't be looked up", self.name());
        match self.mapped() {
            Some(view) => view.resident_bytes().map_err(Error::memory(what())),
            None => Ok(self.bytes()),
        }
    }

    /// The view into the mapped file, if that is where the tensor lives. Its alignment is the
    /// file's.
    #[must_use]
    pub fn mapped(&self) -> Option<&MappedView> {
        match &self.tensors.memory[self.place] {
            TensorMemory::Mapped(view) => Some(view),
            TensorMemory::Arena { .. } | TensorMemory::Split { .. } | TensorMemory::Empty => None,
        }
    }

    /// Copies `buffer.len()` bytes from `offset` within the tensor on, wherever it lives.
    ///
    /// # Errors
    /// [`Error::Memory`] where the mapped file no longer reaches, or past the tensor's end;
    /// [`Error::Device`] where a device does not give it back.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let failed = || format!("tensor '{}' can't be read back", self.name());
        let bytes = buffer.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            let past_end = MemoryError::past_end(Operation::ReadTensor, offset, bytes);
            return Err(Error::memory(failed())(past_end));
        }
        if let Some(view) = self.mapped() {
            return view.read_into(offset, buffer).map_err(Error::memory(failed()));
        }
        if let Some((layout, packed)) = self.repacked() {
            let gathered = layout.gather(offset, packed, buffer);
            gathered.expect("a range inside the tensor, checked above");
            return Ok(());
        }
        match &self.tensors.memory[self.place] {
            TensorMemory::Arena { part, .. } => part.read(offset, buffer)?,
            TensorMemory::Split { home, parts, .. } => {
                let read = |part: usize, at, into: &mut [u8]| parts[part].read(at, into);
                home.split.gather(offset, buffer, read)?;
            }
            TensorMemory::Mapped(_) | TensorMemory::Empty => {}
        }
        Ok(())
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
        digest::all(&self.tensors().collect::<Vec<_>>(), DigestKind::Sha256)
    }
}

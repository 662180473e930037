//! What products take and give: matrices that were loaded, and vectors.

use super::arena::CudaArena;
use super::context::Context;
use super::memory::{DeviceMemory, HostRegistration};
use crate::arena::HostArena;
use crate::error::DeviceError;
use std::sync::Arc;

/// `f32` numbers in a device's memory.
#[derive(Debug)]
pub struct DeviceFloats {
    context: Arc<Context>,
    memory: Option<Arc<DeviceMemory>>,
    length: usize,
}

impl DeviceFloats {
    /// Room for `length` numbers, at a multiple of 256 bytes; what they are is undefined.
    ///
    /// # Errors
    /// [`DeviceError::DeviceFull`].
    pub fn new(context: &Arc<Context>, length: usize) -> Result<Self, DeviceError> {
        let memory = allocate(context, length.checked_mul(4).ok_or(DeviceError::TooLarge)?)?;
        Ok(Self { context: Arc::clone(context), memory: memory.map(Arc::new), length })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where the first is, in the device's address space; 0 if there is none.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.address())
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Keeps the memory for what is queued.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.memory.as_ref().map(|memory| Owner::Numbers(Arc::clone(memory)))
    }
}

pub(super) fn allocate(
    context: &Arc<Context>,
    bytes: usize,
) -> Result<Option<DeviceMemory>, DeviceError> {
    if bytes == 0 {
        return Ok(None);
    }
    let refused = |refusal| DeviceError::driver(&context.name(), refusal);
    let memory = DeviceMemory::new(context, bytes).map_err(refused)?;
    memory.map(Some).ok_or_else(|| DeviceError::DeviceFull {
        device: context.name(),
        needed_bytes: bytes as u64,
        free_bytes: context.memory_bytes().ok().map(|(free, _)| free),
    })
}

/// A matrix that a device reaches, whole: row after row, in the blocks of its type.
#[derive(Clone, Debug)]
pub struct Weights {
    context: Arc<Context>,
    /// Its first byte, in the device's address space.
    pub(super) address: u64,
    pub(super) dtype: &'static str,
    rows: u32,
    columns: u32,
    pub(super) row_bytes: u64,
    /// Whose memory it is.
    pub(super) owner: Owner,
}

/// Keeps memory that a device uses.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "held for its drop")]
pub(super) enum Owner {
    Device(Arc<CudaArena>),
    Host(Arc<HostArena>, Option<Arc<HostRegistration>>),
    Numbers(Arc<DeviceMemory>),
}

impl Weights {
    /// A tensor of an arena on a device as a matrix of `rows` × `columns` elements of `dtype`, as
    /// formats spell it. `None` if it is not published yet, or larger than kernels count.
    ///
    /// # Panics
    /// If its bytes are not `rows` rows of equal length.
    #[must_use]
    pub fn on_device(
        arena: &Arc<CudaArena>,
        tensor: usize,
        dtype: &'static str,
        rows: u64,
        columns: u64,
    ) -> Option<Self> {
        let (address, bytes) = arena.tensor(tensor)?;
        let (context, owner) = (Arc::clone(arena.context()), Owner::Device(Arc::clone(arena)));
        Self::new(context, owner, address, bytes, dtype, rows, columns)
    }

    /// The same for a tensor in the machine's memory, which a GPU without memory of its own
    /// computes in; registered, if the GPU needs that.
    ///
    /// # Panics
    /// As [`Weights::on_device`].
    ///
    /// # Errors
    /// What the driver answers.
    pub fn in_host_memory(
        context: &Arc<Context>,
        (arena, tensor): (&Arc<HostArena>, usize),
        registered: Option<&Arc<HostRegistration>>,
        dtype: &'static str,
        rows: u64,
        columns: u64,
    ) -> Result<Option<Self>, DeviceError> {
        let Some(bytes) = arena.tensor(tensor) else { return Ok(None) };
        let Some(region) = arena.region() else { return Ok(None) };
        let start = region.start().addr() as u64;
        let base = match registered {
            Some(registered) => registered
                .device_address()
                .map_err(|refusal| DeviceError::driver(&context.name(), refusal))?,
            None => start,
        };
        let address = base + (bytes.as_ptr().addr() as u64 - start);
        let owner = Owner::Host(Arc::clone(arena), registered.cloned());
        let (context, length) = (Arc::clone(context), bytes.len() as u64);
        Ok(Self::new(context, owner, address, length, dtype, rows, columns))
    }

    fn new(
        context: Arc<Context>,
        owner: Owner,
        address: u64,
        bytes: u64,
        dtype: &'static str,
        rows: u64,
        columns: u64,
    ) -> Option<Self> {
        let row_bytes = bytes.checked_div(rows).unwrap_or(0);
        assert_eq!(row_bytes * rows, bytes, "{bytes} bytes in {rows} rows");
        // Kernels count in `int`.
        let narrow = |count: u64| i32::try_from(count).ok()?.try_into().ok();
        let (rows, columns) = (narrow(rows)?, narrow(columns)?);
        Some(Self { context, address, dtype, rows, columns, row_bytes, owner })
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Elements of an output, and of an input.
    #[must_use]
    pub fn shape(&self) -> (u32, u32) {
        (self.rows, self.columns)
    }
}

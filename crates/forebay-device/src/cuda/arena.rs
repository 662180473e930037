//! Tensors in a device's memory, and the right to fill them.

use super::context::Context;
use super::error::DriverRefusal;
use super::memory::{self, DeviceMemory};
use super::operands;
use super::pointer::DevicePointer;
use super::stream::{Event, Stream};
use super::transfer::{Transfer, inside};
use crate::arena::ArenaLayout;
use crate::error::DeviceError;
use crate::pool::Bay;
use crate::uploader::{Columns, Segment};
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};
use forebay_mem::{Draining, Filling, Slot};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the tensors of an arena lie.
#[derive(Debug)]
pub enum Memory {
    /// In one allocation that the arena makes, laid out so.
    Own(ArenaLayout),
    /// Each where the embedder says.
    Lent(Vec<DevicePointer>),
}

#[derive(Debug)]
struct Home {
    address: u64,
    bytes: u64,
    published: AtomicBool,
}

/// Memory of one device for a set of tensors.
///
/// A tensor is filled by the arena's one [`CudaWriter`] until it is published, which is after all
/// copies into it have completed, and read by anybody after that.
#[derive(Debug)]
pub struct CudaArena {
    context: Arc<Context>,
    homes: Vec<Home>,
    /// What to copy back with, made by the first who does.
    reader: Mutex<Option<(Stream, Event)>>,
    /// Dropped last: nothing refers to the memory any more then.
    _memory: Option<Backing>,
}

/// Whose memory it is.
#[derive(Debug)]
#[allow(dead_code, reason = "held for its drop")]
enum Backing {
    Own(DeviceMemory),
    Bay(Bay),
}

impl CudaArena {
    /// Room for tensors, and the right to fill them.
    ///
    /// # Panics
    /// If tensors of the layout overlap or lie outside of it: the plan would be wrong.
    ///
    /// # Errors
    /// [`DeviceError::DeviceFull`] with the bytes needed and free; [`DeviceError::NotOfDevice`] for
    /// lent memory that the driver does not know as that device's.
    pub fn new(
        context: &Arc<Context>,
        memory: Memory,
    ) -> Result<(Arc<Self>, CudaWriter), DeviceError> {
        let home = |address, bytes| Home { address, bytes, published: AtomicBool::new(false) };
        let (allocated, homes, is_own) = match memory {
            Memory::Own(layout) => {
                assert!(layout.is_disjoint(), "tensors of one arena share memory");
                let allocated = allocate(context, &layout)?;
                let base = allocated.as_ref().map_or(0, DeviceMemory::address);
                let at = |range: &Range<u64>| home(base + range.start, range.end - range.start);
                (allocated, layout.tensors.iter().map(at).collect(), true)
            }
            Memory::Lent(pointers) => {
                let is_wrong = |pointer: &&DevicePointer| {
                    pointer.ordinal() != context.ordinal()
                        || (pointer.bytes() > 0 && !memory::is_known(pointer, context))
                };
                if let Some(wrong) = pointers.iter().find(is_wrong) {
                    let (address, bytes) = (wrong.address(), wrong.bytes());
                    let device = context.name();
                    return Err(DeviceError::NotOfDevice { device, address, bytes });
                }
                let at = |pointer: &DevicePointer| home(pointer.address(), pointer.bytes());
                (None, pointers.iter().map(at).collect::<Vec<_>>(), false)
            }
        };
        Ok(Self::of(context, homes, allocated.map(Backing::Own), is_own))
    }

    /// In a bay of a pool that starts at `base`, which the caller has found to be long enough.
    pub(super) fn in_bay(
        context: &Arc<Context>,
        base: u64,
        bay: Bay,
        layout: &ArenaLayout,
    ) -> (Arc<Self>, CudaWriter) {
        assert!(layout.is_disjoint(), "tensors of one arena share memory");
        let base = base + bay.start();
        let home = |range: &Range<u64>| Home {
            address: base + range.start,
            bytes: range.end - range.start,
            published: AtomicBool::new(false),
        };
        let homes = layout.tensors.iter().map(home).collect();
        Self::of(context, homes, Some(Backing::Bay(bay)), true)
    }

    fn of(
        context: &Arc<Context>,
        homes: Vec<Home>,
        memory: Option<Backing>,
        is_own: bool,
    ) -> (Arc<Self>, CudaWriter) {
        let columns = homes.iter().map(|_| None).collect();
        let context = Arc::clone(context);
        let arena = Arc::new(Self { context, homes, reader: Mutex::new(None), _memory: memory });
        (Arc::clone(&arena), CudaWriter { arena, columns, is_own })
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Where a tensor lies on the device, and its length; `None` until it is published.
    #[must_use]
    pub fn tensor(&self, index: usize) -> Option<(u64, u64)> {
        let home = self.homes.get(index)?;
        home.published.load(Ordering::Acquire).then_some((home.address, home.bytes))
    }

    /// Copies bytes of a published tensor back, from `offset` on, and waits for them.
    ///
    /// # Panics
    /// If the tensor is not published, or ends before the bytes do.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn read(&self, tensor: usize, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        if into.is_empty() {
            return Ok(());
        }
        let address = self.published(tensor, offset, into.len());
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = self.read_by(&mut reader, address, into);
        copied.map_err(|refusal| DeviceError::driver(&self.context.name(), refusal))
    }

    fn read_by(
        &self,
        reader: &mut Option<(Stream, Event)>,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), DriverRefusal> {
        let (stream, event) = match reader {
            Some(reader) => reader,
            None => reader.insert((Stream::new(&self.context)?, Event::new(&self.context)?)),
        };
        // SAFETY: `into` is borrowed uniquely until this function returns, which is after
        // `wait` has said that nothing writes to it any more.
        let queued = unsafe { queue_read(stream, address, into.as_mut_ptr(), into.len()) };
        wait(stream, event, queued)
    }

    /// The address of a byte of a published tensor that `bytes` bytes follow.
    fn published(&self, tensor: usize, offset: u64, bytes: usize) -> u64 {
        let home = &self.homes[tensor];
        assert!(home.published.load(Ordering::Acquire), "tensor {tensor} is not there yet");
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= home.bytes), "{bytes} bytes at {offset}");
        home.address + offset
    }
}

fn allocate(
    context: &Arc<Context>,
    layout: &ArenaLayout,
) -> Result<Option<DeviceMemory>, DeviceError> {
    if layout.bytes == 0 {
        return Ok(None);
    }
    let bytes = usize::try_from(layout.bytes).map_err(|_| DeviceError::TooLarge)?;
    operands::allocate(context, bytes)
}

/// Queues a copy of `bytes` bytes from the device.
///
/// # Safety
/// `into` is valid for writes of `bytes` bytes and nobody else touches them until the stream has
/// done the copy, or has failed.
unsafe fn queue_read(
    stream: &Stream,
    address: u64,
    into: *mut u8,
    bytes: usize,
) -> Result<(), DriverRefusal> {
    let context = stream.context();
    let _entered = context.enter()?;
    // SAFETY: the caller's promise for the host side; the driver checks the device's.
    let code = unsafe {
        (context.driver().calls.cuMemcpyDtoHAsync_v2)(into.cast(), address, bytes, stream.handle())
    };
    context.driver().check("cuMemcpyDtoHAsync", code)
}

/// Waits until what was queued on the stream has been done or has failed; when this returns,
/// nothing of it is under way.
fn wait(
    stream: &Stream,
    event: &Event,
    queued: Result<(), DriverRefusal>,
) -> Result<(), DriverRefusal> {
    let waited = queued.and_then(|()| event.record(stream)).and_then(|()| event.synchronize());
    if waited.is_err() {
        // Where even this fails, the driver has given up the context and all that ran in it.
        let _ = stream.synchronize();
    }
    waited
}

/// Reads tensors back through a slot of staging memory, at the device's full rate.
#[derive(Debug)]
pub struct ReadBack {
    stream: Stream,
    event: Event,
    slot: Slot<Filling>,
}

impl ReadBack {
    /// From this device, through this slot.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn new(context: &Arc<Context>, slot: Slot<Filling>) -> Result<Self, DeviceError> {
        let made = Stream::new(context).and_then(|stream| Ok((stream, Event::new(context)?)));
        let (stream, event) =
            made.map_err(|refusal| DeviceError::driver(&context.name(), refusal))?;
        Ok(Self { stream, event, slot })
    }

    /// How much can be read at a time.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.slot.capacity()
    }

    /// The bytes of a published tensor from `offset` on.
    ///
    /// # Panics
    /// As [`CudaArena::read`]; if they are more than the slot holds; if the arena is another
    /// device's.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn read(
        &mut self,
        arena: &CudaArena,
        tensor: usize,
        offset: u64,
        bytes: usize,
    ) -> Result<&[u8], DeviceError> {
        assert!(Arc::ptr_eq(&arena.context, self.stream.context()), "another device's arena");
        assert!(bytes <= self.slot.capacity(), "{bytes} bytes through {}", self.slot.capacity());
        let address = arena.published(tensor, offset, bytes);
        if bytes > 0 {
            // SAFETY: the slot's token is borrowed uniquely, its memory lives as long as the token,
            // and `wait` returns when nothing writes to it any more.
            let queued = unsafe { queue_read(&self.stream, address, self.slot.address(), bytes) };
            let waited = wait(&self.stream, &self.event, queued);
            waited.map_err(|refusal| DeviceError::driver(&arena.context.name(), refusal))?;
        }
        Ok(&self.slot.buffer()[..bytes])
    }
}

/// The right to fill the tensors of one arena that are not published yet.
#[derive(Debug)]
pub struct CudaWriter {
    arena: Arc<CudaArena>,
    /// By tensor: which columns it takes of what is written to it.
    columns: Vec<Option<Columns>>,
    /// Whether the bytes between tensors are the arena's own.
    is_own: bool,
}

impl CudaWriter {
    /// The arena.
    #[must_use]
    pub fn arena(&self) -> &Arc<CudaArena> {
        &self.arena
    }

    /// From here on, `tensor` takes only these columns of what is written to it: segments speak of
    /// the whole matrix as the file has it.
    ///
    /// # Panics
    /// If the slice is no part of a row.
    pub fn take_columns(&mut self, tensor: usize, columns: Columns) {
        assert!(columns.slice.start < columns.slice.end && columns.slice.end <= columns.row_bytes);
        self.columns[tensor] = Some(columns);
    }

    /// Queues the copies of those `segments` that are this arena's, number `own`, and says how many
    /// they are.
    ///
    /// # Safety
    /// The slot is not released before what this queued on the stream has completed or failed.
    ///
    /// # Panics
    /// If a segment reaches past its tensor or the slot, or its tensor is published: the plan
    /// would be wrong, and going on would corrupt a neighbour.
    pub(super) unsafe fn queue(
        &self,
        stream: &Stream,
        slot: &Slot<Draining>,
        own: usize,
        segments: &[Segment],
    ) -> Result<u64, DriverRefusal> {
        let copies = self.copies(own, segments);
        let bytes = slot.bytes();
        let context = stream.context();
        let calls = &context.driver().calls;
        let _entered = context.enter()?;
        for copy in &copies {
            let rows_before = (copy.rows - 1) * copy.slot_pitch;
            let end = copy.slot_offset + rows_before + copy.bytes;
            assert!(end <= bytes.len() as u64, "a copy past its slot: {copy:?}");
            let from = bytes[inside(copy.slot_offset)..].as_ptr();
            let (address, width) = (copy.address, inside(copy.bytes));
            if copy.rows == 1 {
                // SAFETY: the source lies in the slot (checked above), which stays as it is until
                // the copy is done (the caller's promise); the target is unpublished memory of
                // this arena (`copies` checks), which lives as long as the arena.
                let code = unsafe {
                    (calls.cuMemcpyHtoDAsync_v2)(address, from.cast(), width, stream.handle())
                };
                context.driver().check("cuMemcpyHtoDAsync", code)?;
                continue;
            }
            let shape = CUDA_MEMCPY2D {
                srcXInBytes: 0,
                srcY: 0,
                srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
                srcHost: from.cast(),
                srcDevice: 0,
                srcArray: std::ptr::null_mut(),
                srcPitch: inside(copy.slot_pitch),
                dstXInBytes: 0,
                dstY: 0,
                dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: address,
                dstArray: std::ptr::null_mut(),
                dstPitch: width,
                WidthInBytes: width,
                Height: inside(copy.rows),
            };
            // SAFETY: as above, for all rows; the shape is only read during the call.
            let code = unsafe { (calls.cuMemcpy2DAsync_v2)(&raw const shape, stream.handle()) };
            context.driver().check("cuMemcpy2DAsync", code)?;
        }
        Ok(copies.len() as u64)
    }

    /// What is to be copied, neighbours as one.
    fn copies(&self, own: usize, segments: &[Segment]) -> Vec<Transfer> {
        let mut copies: Vec<Transfer> = Vec::with_capacity(segments.len());
        let mut last_tensor = None;
        for segment in segments.iter().filter(|segment| segment.arena == own && segment.bytes > 0) {
            let home = &self.arena.homes[segment.tensor];
            let whole = !home.published.load(Ordering::Relaxed);
            assert!(whole, "tensor {} is whole already", segment.tensor);
            let (offset, bytes) = (segment.tensor_offset, u64::from(segment.bytes));
            let slot_offset = u64::from(segment.slot_offset);
            match &self.columns[segment.tensor] {
                Some(columns) => {
                    columns.copies(
                        home.address..home.address + home.bytes,
                        slot_offset,
                        offset..offset + bytes,
                        &mut copies,
                    );
                }
                None => {
                    let end = offset.checked_add(bytes);
                    assert!(
                        end.is_some_and(|end| end <= home.bytes),
                        "{bytes} bytes at {offset} of a tensor of {}",
                        home.bytes
                    );
                    let address = home.address + offset;
                    let copy = Transfer { slot_offset, slot_pitch: 0, address, bytes, rows: 1 };
                    let is_same = last_tensor == Some(segment.tensor);
                    match copies.last_mut().filter(|last| self.joins(last, &copy, is_same)) {
                        Some(last) => last.bytes = slot_offset + bytes - last.slot_offset,
                        None => copies.push(copy),
                    }
                    last_tensor = Some(segment.tensor);
                }
            }
        }
        copies
    }

    /// Whether one copy goes on where another ends, in the slot and on the device: exactly, or, in
    /// memory of the arena's own, with the same few bytes of padding on both sides. What is lent
    /// for two tensors may be two allocations, which no copy may reach across.
    fn joins(&self, last: &Transfer, next: &Transfer, is_same_tensor: bool) -> bool {
        let padding_max = match (self.is_own, is_same_tensor) {
            (true, _) => crate::arena::TENSOR_ALIGNMENT.bytes() - 1,
            (false, true) => 0,
            (false, false) => return false,
        };
        let end = last.slot_offset + last.bytes;
        last.rows == 1
            && next.slot_offset >= end
            && next.slot_offset - end <= padding_max
            && next.address >= last.address
            && next.address - last.address == next.slot_offset - last.slot_offset
    }

    /// The tensor is whole: others may read it from here on. All copies into it have completed.
    pub(crate) fn publish(&mut self, tensor: usize) {
        self.arena.homes[tensor].published.store(true, Ordering::Release);
    }
}

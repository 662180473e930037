//! What the tests share: a context, pinned slots, and a ring that uploads through them.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUcontext, CUdeviceptr, CUevent, CUresult, CUstream};
use std::ffi::c_void;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) const OK: CUresult = CUresult::CUDA_SUCCESS;

/// Tests that give the driver words of their own take turns.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds up what is queued on a stream after it, until it is dropped.
pub(crate) struct Gate {
    _shut: Sender<()>,
}

impl Gate {
    pub(crate) fn on(stream: CUstream) -> Self {
        unsafe extern "C" fn wait(opened: *mut c_void) {
            // Nobody sends: it ends when the sender goes.
            let _ = unsafe { Box::from_raw(opened.cast::<Receiver<()>>()) }.recv();
        }
        let (shut, opened) = channel::<()>();
        let opened = Box::into_raw(Box::new(opened)).cast();
        assert_eq!(unsafe { sys::cuLaunchHostFunc(stream, Some(wait), opened) }, OK);
        Self { _shut: shut }
    }
}

/// A device's primary context, current in this thread until it is dropped.
pub(crate) struct Context {
    device: i32,
    context: CUcontext,
}

impl Context {
    pub(crate) fn of(ordinal: i32) -> Self {
        result::init().unwrap();
        let device = result::device::get(ordinal).unwrap();
        let context = unsafe { result::primary_ctx::retain(device) }.unwrap();
        let context = Self { device, context };
        context.enter();
        context
    }

    /// Makes it this thread's current context again.
    pub(crate) fn enter(&self) {
        unsafe { result::ctx::set_current(self.context) }.unwrap();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        unsafe { result::primary_ctx::release(self.device) }.unwrap();
    }
}

pub(crate) fn stream() -> CUstream {
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap()
}

pub(crate) fn event() -> CUevent {
    result::event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT).unwrap()
}

pub(crate) fn allocate(bytes: usize) -> CUdeviceptr {
    unsafe { result::malloc_sync(bytes) }.unwrap()
}

pub(crate) fn free(address: CUdeviceptr) {
    unsafe { result::free_sync(address) }.unwrap();
}

pub(crate) fn register(memory: &mut [u8]) -> CUresult {
    unsafe { sys::cuMemHostRegister_v2(memory.as_mut_ptr().cast(), memory.len(), 0) }
}

pub(crate) fn unregister(memory: &mut [u8]) -> CUresult {
    unsafe { sys::cuMemHostUnregister(memory.as_mut_ptr().cast()) }
}

pub(crate) fn upload(to: CUdeviceptr, from: *const u8, bytes: usize, stream: CUstream) -> CUresult {
    unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), bytes, stream) }
}

pub(crate) fn download(from: CUdeviceptr, bytes: usize) -> Vec<u8> {
    let mut back = vec![0; bytes];
    unsafe { result::memcpy_dtoh_sync(&mut back, from) }.unwrap();
    back
}

/// Bytes that differ from chunk to chunk and from place to place.
pub(crate) fn fill(bytes: &mut [u8], chunk: usize) {
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (at.wrapping_mul(31) ^ (at >> 8) ^ chunk.wrapping_mul(89)).to_le_bytes()[0];
    }
}

/// Uploads `chunks` chunks through three registered slots, each refilled when the event behind its
/// copy says that it is free. Answers how many chunks arrived otherwise than they were.
pub(crate) fn corrupt_chunks_of_ring(chunks: usize, chunk_bytes: usize) -> usize {
    const SLOTS: usize = 3;
    let (stream, target) = (stream(), allocate(chunks * chunk_bytes));
    let mut slots = vec![vec![0u8; chunk_bytes]; SLOTS];
    let events = [event(), event(), event()];
    // Each chunk is another stretch of one pattern: filling a slot must be fast beside a copy.
    let mut pattern = vec![0; chunk_bytes + chunks * 97];
    fill(&mut pattern, 0);
    let bytes_of = |chunk: usize| &pattern[chunk * 97..][..chunk_bytes];
    slots.iter_mut().for_each(|slot| assert_eq!(register(slot), OK));
    for chunk in 0..chunks {
        let (slot, event) = (&mut slots[chunk % SLOTS], events[chunk % SLOTS]);
        // The first time round, an event that was never recorded is complete.
        unsafe { result::event::synchronize(event) }.unwrap();
        slot.copy_from_slice(bytes_of(chunk));
        let place = target + (chunk * chunk_bytes) as u64;
        assert_eq!(upload(place, slot.as_ptr(), chunk_bytes, stream), OK);
        unsafe { result::event::record(event, stream) }.unwrap();
    }
    unsafe { result::stream::synchronize(stream) }.unwrap();
    slots.iter_mut().for_each(|slot| assert_eq!(unregister(slot), OK));
    unsafe { result::stream::destroy(stream) }.unwrap();
    let arrived = download(target, chunks * chunk_bytes);
    let is_corrupt = |(chunk, bytes): &(usize, &[u8])| *bytes != bytes_of(*chunk);
    let corrupt = arrived.chunks(chunk_bytes).enumerate().filter(is_corrupt).count();
    for event in events {
        unsafe { result::event::destroy(event) }.unwrap();
    }
    free(target);
    corrupt
}

//! Copies between host and device, in rows or at a stretch, and from device to device.

use super::{InContext, Out, entry_points};
use crate::copy::{self, Request};
use crate::device::Direction;
use crate::error::{Answer, Code};
use crate::memory::is_device_address;
use crate::on_device;
use crate::shape::Shape;

const HOST: u32 = 1;
const DEVICE: u32 = 2;
const UNIFIED: u32 = 4;

/// `CUDA_MEMCPY2D`, as in cuda.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    from: Side,
    to: Side,
    width_bytes: usize,
    height: usize,
}

/// One side of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Side {
    x_bytes: usize,
    y: usize,
    memory_type: u32,
    host: u64,
    device: u64,
    array: usize,
    pitch: usize,
}

impl Side {
    /// Where the rows begin, and whether that is device memory.
    fn start(&self, width_bytes: usize) -> Answer<(u64, bool)> {
        let (base, is_device) = match self.memory_type {
            HOST => (self.host, false),
            DEVICE => (self.device, true),
            UNIFIED => (self.device, is_device_address(self.device)),
            _ => return Err(Code::INVALID_VALUE),
        };
        let row_end = self.x_bytes.checked_add(width_bytes).ok_or(Code::INVALID_VALUE)?;
        if self.pitch < row_end {
            return Err(Code::INVALID_VALUE);
        }
        let before = self.y.checked_mul(self.pitch).and_then(|at| at.checked_add(self.x_bytes));
        let before = before.ok_or(Code::INVALID_VALUE)? as u64;
        Ok((base.checked_add(before).ok_or(Code::INVALID_VALUE)?, is_device))
    }
}

entry_points! {
    fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) with InContext, |call| {
        // SAFETY: the caller lends the source.
        unsafe { line(call, Direction::Upload, from, to, bytes, None) }
    }

    fn cuMemcpyHtoDAsync_v2(
        to: u64,
        from: u64,
        bytes: usize,
        stream: usize,
    ) with InContext, |call| {
        // SAFETY: the caller lends the source.
        unsafe { line(call, Direction::Upload, from, to, bytes, Some(stream)) }
    }

    fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) with InContext, |call| {
        // SAFETY: the caller lends the target.
        unsafe { line(call, Direction::Download, to, from, bytes, None) }
    }

    fn cuMemcpyDtoHAsync_v2(
        to: u64,
        from: u64,
        bytes: usize,
        stream: usize,
    ) with InContext, |call| {
        // SAFETY: the caller lends the target.
        unsafe { line(call, Direction::Download, to, from, bytes, Some(stream)) }
    }

    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) with InContext, |call| {
        let device = &call.device;
        on_device::ask_to_copy(&*call.stream(0)?, (device, to), (device, from), bytes, false)
    }

    fn cuMemcpyDtoDAsync_v2(
        to: u64,
        from: u64,
        bytes: usize,
        stream: usize,
    ) with InContext, |call| {
        let device = &call.device;
        on_device::ask_to_copy(&*call.stream(stream)?, (device, to), (device, from), bytes, true)
    }

    fn cuMemcpyPeerAsync(
        to: u64,
        to_context: usize,
        from: u64,
        from_context: usize,
        bytes: usize,
        stream: usize,
    ) with InContext, |call| {
        let to_device = call.driver.context(to_context)?;
        let from_device = call.driver.context(from_context)?;
        let stream = call.stream(stream)?;
        on_device::ask_to_copy(&stream, (&to_device, to), (&from_device, from), bytes, true)
    }

    fn cuMemcpy2D_v2(copy: *const Rows) with InContext, |call| {
        // SAFETY: the caller owes a description, and lends the host's side.
        unsafe { rows(call, copy, None) }
    }

    fn cuMemcpy2DUnaligned_v2(copy: *const Rows) with InContext, |call| {
        // SAFETY: the caller owes a description, and lends the host's side.
        unsafe { rows(call, copy, None) }
    }

    fn cuMemcpy2DAsync_v2(copy: *const Rows, stream: usize) with InContext, |call| {
        // SAFETY: the caller owes a description, and lends the host's side.
        unsafe { rows(call, copy, Some(stream)) }
    }

    fn cuMemAllocPitch_v2(
        address: Out<u64>,
        pitch: Out<usize>,
        width_bytes: usize,
        height: usize,
        _element_bytes: u32,
    ) with InContext, |call| {
        let row = width_bytes.checked_next_multiple_of(512).ok_or(Code::INVALID_VALUE)?;
        let bytes = row.checked_mul(height).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or(Code::INVALID_VALUE)?;
        pitch.give(row)?;
        let config = &call.driver.behaviour().config;
        address.give(call.driver.memory.allocate(&call.device, bytes, config)?)
    }
}

/// Without a stream, the copy is done when the call returns.
///
/// # Safety
/// As for [`copy::ask`].
unsafe fn line(
    call: &InContext,
    direction: Direction,
    host: u64,
    device: u64,
    bytes: usize,
    stream: Option<usize>,
) -> Answer {
    let shape = Shape::line(bytes);
    let request = Request { direction, host, device, shape, asynchronous: stream.is_some() };
    let stream = call.stream(stream.unwrap_or(0))?;
    // SAFETY: the caller's duty.
    unsafe { copy::ask(&stream, request) }
}

/// # Safety
/// As for [`copy::ask`]; `description` is null or a `CUDA_MEMCPY2D`.
unsafe fn rows(call: &InContext, description: *const Rows, stream: Option<usize>) -> Answer {
    if description.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's duty.
    let Rows { from, to, width_bytes, height } = unsafe { description.read_unaligned() };
    let (source, from_device) = from.start(width_bytes)?;
    let (target, to_device) = to.start(width_bytes)?;
    let (direction, host, device, host_pitch, device_pitch) = match (from_device, to_device) {
        (false, true) => (Direction::Upload, source, target, from.pitch, to.pitch),
        (true, false) => (Direction::Download, target, source, to.pitch, from.pitch),
        _ => {
            eprintln!("[cuda emulator] rows are copied between host and device alone");
            return Err(Code::NOT_SUPPORTED);
        }
    };
    let shape = Shape { width: width_bytes, rows: height, host_pitch, device_pitch };
    let request = Request { direction, host, device, shape, asynchronous: stream.is_some() };
    let stream = call.stream(stream.unwrap_or(0))?;
    // SAFETY: the caller's duty.
    unsafe { copy::ask(&stream, request) }
}

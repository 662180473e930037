//! Work on device memory alone: copies from device memory to device memory, and setting it. Both
//! are as fast as memory.

use crate::device::{Device, Direction};
use crate::driver::driver;
use crate::error::{Answer, Code};
use crate::fault::CopyFault;
use crate::stream::Stream;
use crate::timeline;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Asks a stream for a copy from device memory to device memory.
pub(crate) fn ask_to_copy(
    stream: &Stream,
    to: (&Arc<Device>, u64),
    from: (&Arc<Device>, u64),
    bytes: usize,
    asynchronous: bool,
) -> Answer {
    if bytes == 0 {
        return Ok(());
    }
    let driver = driver();
    driver.memory.find_on(to.0, to.1, bytes)?;
    driver.memory.find_on(from.0, from.1, bytes)?;
    let fault = match asynchronous {
        true => driver.behaviour().faults.copy(stream.device.ordinal),
        false => CopyFault::default(),
    };
    let (to, from) = ((Arc::clone(to.0), to.1), (Arc::clone(from.0), from.1));
    let device = Arc::clone(&stream.device);
    let take_off = |start: u64| driver.flights.take_off(start..start + bytes as u64);
    let tickets = [take_off(to.1), take_off(from.1)];
    device.copy_begins();
    let work = move |ready: Instant| {
        timeline::sleep_until(ready + fault.stall);
        if let Some(code) = fault.code {
            device.fail(code, "a copy that was told to fail");
        }
        let pieces = driver
            .memory
            .find_on(&to.0, to.1, bytes)
            .and_then(|to| Ok((to, driver.memory.find_on(&from.0, from.1, bytes)?)));
        if device.check().is_err() {
            device.dropped.fetch_add(1, Ordering::Relaxed);
        } else if let Ok((to, from)) = pieces {
            let (target, source) = (to.start() as *mut u8, from.start() as *const u8);
            // SAFETY: both pieces are held and were checked to have so many bytes.
            unsafe { target.copy_from(source, bytes) };
            device.count(Direction::OnDevice, bytes);
        } else {
            device.fail(Code::ILLEGAL_ADDRESS, "a copy found its memory freed");
        }
        tickets.iter().for_each(|ticket| driver.flights.land(*ticket));
        device.copy_ends();
        Instant::now()
    };
    if asynchronous {
        stream.push(work);
        return Ok(());
    }
    stream.perform(work);
    stream.device.check()
}

/// Asks a stream to set `bytes` bytes of its device to `value`.
pub(crate) fn ask_to_set(
    stream: &Stream,
    address: u64,
    value: u8,
    bytes: usize,
    asynchronous: bool,
) -> Answer {
    if bytes == 0 {
        return Ok(());
    }
    let driver = driver();
    driver.memory.find_on(&stream.device, address, bytes)?;
    let device = Arc::clone(&stream.device);
    let work = move |_ready: Instant| {
        if device.check().is_ok() {
            match driver.memory.find_on(&device, address, bytes) {
                // SAFETY: the piece is held and was checked to have so many bytes.
                Ok(piece) => unsafe { (piece.start() as *mut u8).write_bytes(value, bytes) },
                Err(_) => device.fail(Code::ILLEGAL_ADDRESS, "memory to be set was freed"),
            }
        }
        Instant::now()
    };
    if asynchronous {
        stream.push(work);
        return Ok(());
    }
    stream.perform(work);
    stream.device.check()
}

//! What an address is.

use super::{InContext, Out, entry_points};
use crate::error::{Answer, Code};
use std::ffi::c_void;

const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// Everything that is asked about an address.
struct Known {
    memory_type: u32,
    ordinal: i32,
    context: usize,
    start: u64,
    bytes: usize,
}

entry_points! {
    fn cuMemGetAddressRange_v2(
        start: Out<u64>,
        bytes: Out<usize>,
        address: u64,
    ) with InContext, |call| {
        let known = find(call, address).map_err(|_| Code::NOT_FOUND)?;
        start.give_if_wanted(known.start);
        bytes.give_if_wanted(known.bytes);
        Ok(())
    }

    fn cuPointerGetAttribute(
        data: Out<c_void>,
        attribute: i32,
        address: u64,
    ) with InContext, |call| {
        let known = find(call, address)?;
        give(data.address(), attribute, address, &known)
    }

    /// What an address does not have is answered as 0.
    fn cuPointerGetAttributes(
        count: u32,
        attributes: *const i32,
        data: *const *mut c_void,
        address: u64,
    ) with InContext, |call| {
        if attributes.is_null() || data.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let known = find(call, address);
        // SAFETY: the caller owes `count` attributes.
        let attributes = unsafe { std::slice::from_raw_parts(attributes, count as usize) };
        // SAFETY: the caller owes `count` addresses of room.
        let rooms = unsafe { std::slice::from_raw_parts(data, count as usize) };
        for (&attribute, &room) in attributes.iter().zip(rooms) {
            match &known {
                Ok(known) => give(room, attribute, address, known)?,
                Err(_) => give(room, attribute, 0, &Known::nothing())?,
            }
        }
        Ok(())
    }
}

impl Known {
    fn nothing() -> Self {
        Self { memory_type: 0, ordinal: -2, context: 0, start: 0, bytes: 0 }
    }
}

fn find(call: &InContext, address: u64) -> Answer<Known> {
    if let Some(piece) = call.driver.memory.find(address, 0) {
        let allocation = &piece.allocation;
        return Ok(Known {
            memory_type: DEVICE,
            ordinal: allocation.device.number(),
            context: allocation.device.context_handle(),
            start: allocation.address,
            bytes: allocation.bytes,
        });
    }
    let (range, _, context) = call.driver.host.around(address).ok_or(Code::INVALID_VALUE)?;
    Ok(Known {
        memory_type: HOST,
        ordinal: call.driver.context(context)?.number(),
        context,
        start: range.start,
        bytes: usize::try_from(range.end - range.start).unwrap_or(usize::MAX),
    })
}

/// Writes a `CUpointer_attribute`, by the numbers of cuda.h, in the size each has.
fn give(room: *mut c_void, attribute: i32, address: u64, known: &Known) -> Answer {
    let is_host = known.memory_type == HOST;
    match attribute {
        1 => out::<usize>(room).give(known.context),
        2 => out::<u32>(room).give(known.memory_type),
        3 => out::<u64>(room).give(address),
        4 if is_host || known.memory_type == 0 => out::<u64>(room).give(address),
        7 => out::<u64>(room).give(known.start),
        8 => out::<u8>(room).give(0),
        9 => out::<i32>(room).give(known.ordinal),
        11 => out::<u64>(room).give(known.start),
        12 => out::<usize>(room).give(known.bytes),
        13 => out::<u8>(room).give(u8::from(known.memory_type != 0)),
        _ => Err(Code::INVALID_VALUE),
    }
}

fn out<T>(room: *mut c_void) -> Out<T> {
    Out::at(room.cast())
}

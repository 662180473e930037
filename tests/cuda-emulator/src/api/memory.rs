//! Device memory: allocating, freeing, setting.

use super::{Freeing, InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::memory::Allocation;
use crate::on_device;
use std::sync::Arc;
use std::time::Instant;

entry_points! {
    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) with InContext, |call| {
        let all = call.device.settings().memory_bytes;
        let left = all.saturating_sub(call.device.used_bytes().0);
        free.give(usize::try_from(left).unwrap_or(usize::MAX))?;
        total.give(usize::try_from(all).unwrap_or(usize::MAX))
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) with InContext, |call| {
        allocate(call, address, bytes)
    }

    /// Memory that is allocated in stream order is there at once: earlier, never later, than on a
    /// device.
    fn cuMemAllocAsync(address: Out<u64>, bytes: usize, stream: usize) with InContext, |call| {
        call.stream(stream)?;
        if bytes == 0 {
            return address.give(0);
        }
        allocate(call, address, bytes)
    }

    /// Waits for the whole device first, as drivers do.
    fn cuMemFree_v2(address: u64) with Freeing, |call| {
        if address == 0 {
            return Ok(());
        }
        let allocation = find(call, address)?;
        call.driver.land(&allocation.range(), "free-in-flight", "cuMemFree");
        call.driver.wait_for_device(&allocation.device);
        call.driver.memory.free(address).map(drop)
    }

    fn cuMemFreeAsync(address: u64, stream: usize) with Freeing, |call| {
        if address == 0 {
            return Ok(());
        }
        let stream = call.stream(stream)?;
        find(call, address)?;
        let driver = call.driver;
        stream.push(move |_| {
            if driver.memory.free(address).is_err() {
                driver.violation("double-free", format!("cuMemFreeAsync({address:#x})"));
            }
            Instant::now()
        });
        Ok(())
    }

    fn cuMemsetD8_v2(address: u64, value: u8, bytes: usize) with InContext, |call| {
        on_device::ask_to_set(&*call.stream(0)?, address, value, bytes, false)
    }

    fn cuMemsetD8Async(
        address: u64,
        value: u8,
        bytes: usize,
        stream: usize,
    ) with InContext, |call| {
        on_device::ask_to_set(&*call.stream(stream)?, address, value, bytes, true)
    }
}

fn allocate(call: &InContext, address: Out<u64>, bytes: usize) -> Answer {
    if bytes == 0 || address.address().is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let config = &call.driver.behaviour().config;
    address.give(call.driver.memory.allocate(&call.device, bytes, config)?)
}

/// The allocation that is to be freed; that there is none may be a violation.
fn find(call: &InContext, address: u64) -> Answer<Arc<Allocation>> {
    if let Some(allocation) = call.driver.memory.starting_at(address) {
        return Ok(allocation);
    }
    if call.driver.memory.was_freed(address) {
        call.driver.violation("double-free", format!("device memory {address:#x}"));
    }
    Err(Code::INVALID_VALUE)
}

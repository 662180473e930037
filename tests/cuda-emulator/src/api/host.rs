//! Host memory: registered by the caller, allocated by the driver.

use super::{Freeing, InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::memory::is_device_address;
use crate::timeline;
use std::ops::Range;

/// `CU_MEMHOSTREGISTER_PORTABLE | DEVICEMAP | IOMEMORY | READ_ONLY`.
const REGISTER_FLAGS: u32 = 0xF;
/// `CU_MEMHOSTALLOC_PORTABLE | DEVICEMAP | WRITECOMBINED`.
const ALLOCATE_FLAGS: u32 = 0x7;

entry_points! {
    fn cuMemHostRegister_v2(start: u64, bytes: usize, flags: u32) with InContext, |call| {
        if start == 0 || bytes == 0 || flags & !REGISTER_FLAGS != 0 || is_device_address(start) {
            return Err(Code::INVALID_VALUE);
        }
        let end = start.checked_add(bytes as u64).ok_or(Code::INVALID_VALUE)?;
        let rate = call.driver.behaviour().config.register_bytes_per_s;
        std::thread::sleep(timeline::time_of(bytes, rate));
        call.driver.host.register(start..end, flags, call.device.context_handle())
    }

    fn cuMemHostUnregister(start: u64) with Freeing, |call| {
        let range = call.driver.host.registered_at(start)?;
        forget(call, &range, "unregister-in-flight", "cuMemHostUnregister");
        Ok(())
    }

    fn cuMemHostAlloc(start: Out<u64>, bytes: usize, flags: u32) with InContext, |call| {
        if flags & !ALLOCATE_FLAGS != 0 {
            return Err(Code::INVALID_VALUE);
        }
        allocate(call, start, bytes, flags)
    }

    fn cuMemAllocHost_v2(start: Out<u64>, bytes: usize) with InContext, |call| {
        allocate(call, start, bytes, 0)
    }

    fn cuMemFreeHost(start: u64) with Freeing, |call| {
        let range = allocated(call, start)?;
        forget(call, &range, "free-in-flight", "cuMemFreeHost");
        Ok(())
    }

    /// Host and device share one address space, so it is the same number.
    fn cuMemHostGetDevicePointer_v2(
        device: Out<u64>,
        start: u64,
        flags: u32,
    ) with InContext, |call| {
        if flags != 0 || call.driver.host.around(start).is_none() {
            return Err(Code::INVALID_VALUE);
        }
        device.give(start)
    }

    fn cuMemHostGetFlags(flags: Out<u32>, start: u64) with InContext, |call| {
        let (_, known, _) = call.driver.host.around(start).ok_or(Code::INVALID_VALUE)?;
        flags.give(known)
    }
}

fn allocate(call: &InContext, start: Out<u64>, bytes: usize, flags: u32) -> Answer {
    if bytes == 0 || start.address().is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let poison_bytes = call.driver.behaviour().config.poison_bytes;
    let context = call.device.context_handle();
    start.give(call.driver.host.allocate(bytes, flags, context, poison_bytes)?)
}

/// Lets go of memory that nothing uses, and that from then on no kernel finds.
fn forget(call: &InContext, range: &Range<u64>, kind: &'static str, name: &str) {
    call.driver.land(range, kind, name);
    let gone = call.driver.host.forget(range.start);
    // A kernel may have found it in between.
    call.driver.flights.wait(range);
    drop(gone);
}

fn allocated(call: &InContext, start: u64) -> Answer<Range<u64>> {
    call.driver.host.allocated_at(start).inspect_err(|_| {
        if call.driver.host.was_freed(start) {
            call.driver.violation("double-free", format!("host memory {start:#x}"));
        }
    })
}

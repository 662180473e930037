//! Memory as a kernel sees it: what its device had allocated when it began, and pinned host memory.

use crate::device::Device;
use crate::driver::{Driver, driver};
use crate::handles::lock;
use crate::memory::{Allocation, is_device_address, ordinal_of};
use forebay_ptx::{Memory, Region};
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

/// Everything it has found stays there until it is dropped.
pub(crate) struct KernelMemory {
    driver: &'static Driver,
    ordinal: usize,
    /// By address.
    allocations: Vec<Arc<Allocation>>,
    /// Pinned host memory that the kernel has touched, with the tickets of its flights.
    pinned: Mutex<Vec<(Range<u64>, u64)>>,
}

impl KernelMemory {
    pub(crate) fn of(device: &Device) -> Self {
        let driver = driver();
        let allocations = driver.memory.all_of(device);
        Self { driver, ordinal: device.ordinal, allocations, pinned: Mutex::default() }
    }

    /// The last allocation that starts at or before `address`.
    fn before(&self, address: u64) -> Option<&Allocation> {
        let next = self.allocations.partition_point(|allocation| allocation.address <= address);
        next.checked_sub(1).and_then(|index| self.allocations.get(index)).map(|found| &**found)
    }

    /// Pinned host memory. It takes part in the flights, so that it stays.
    fn pinned(&self, address: u64) -> Option<Region<'_>> {
        let mut pinned = lock(&self.pinned);
        let known = pinned.iter().find(|(range, _)| range.contains(&address));
        let range = if let Some((range, _)) = known {
            range.clone()
        } else {
            let (range, ..) = self.driver.host.around(address)?;
            let ticket = self.driver.flights.take_off(range.clone());
            // It may have been let go of before it took off.
            if self.driver.host.around(address).is_none_or(|(again, ..)| again != range) {
                self.driver.flights.land(ticket);
                return None;
            }
            pinned.push((range.clone(), ticket));
            range
        };
        // SAFETY: the range is pinned, and whoever unpins it waits until this object is dropped.
        unsafe { words_within(&range) }.filter(|region| address >= region.start)
    }
}

/// The whole words of a range, from a multiple of 16.
///
/// # Safety
/// The range is mapped as long as the region lives, and the host leaves it to the kernel.
unsafe fn words_within<'memory>(range: &Range<u64>) -> Option<Region<'memory>> {
    let start = range.start.next_multiple_of(16);
    let count = usize::try_from(range.end.checked_sub(start)? / 4).ok()?;
    // SAFETY: the caller's duty; the words lie within the range and are aligned.
    let words = unsafe { std::slice::from_raw_parts(start as *const AtomicU32, count) };
    Some(Region { start, bytes: 4 * count as u64, words })
}

impl Memory for KernelMemory {
    fn region(&self, address: u64) -> Option<Region<'_>> {
        if !is_device_address(address) {
            return self.pinned(address);
        }
        let allocation = self.before(address)?;
        allocation.range().contains(&address).then(|| allocation.region())
    }

    fn describe(&self, address: u64) -> String {
        if !is_device_address(address) {
            return "it is no device address, and no pinned host memory".into();
        }
        let ordinal = ordinal_of(address);
        if ordinal != self.ordinal {
            return format!("it is an address of device {ordinal}");
        }
        let found = self.before(address);
        let freed = self.driver.memory.freed_before(address);
        if let Some(start) = freed.filter(|start| found.is_none_or(|live| live.address < *start)) {
            return format!("byte {} from {start:#x}, which was freed", address - start);
        }
        let Some(Allocation { address: start, bytes, .. }) = found else {
            return "below every allocation".into();
        };
        format!("byte {} of the allocation of {bytes} bytes at {start:#x}", address - start)
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        for (_, ticket) in lock(&self.pinned).iter() {
            self.driver.flights.land(*ticket);
        }
    }
}

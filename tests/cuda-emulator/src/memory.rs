//! Device memory: ordinary memory behind addresses that no processor follows.
//!
//! A device address is the memory's address with bit 48 set and the device's ordinal above it. On
//! the host such an address faults; as a device address, whatever lies outside a live allocation
//! of the right device is refused. Each allocation is a mapping of its own, unmapped as soon as it
//! is freed and the last copy that uses it is done.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Answer, Code};
use crate::handles::lock;
use crate::report::Held;
use forebay_ptx::{Module, Region, Variable};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Tells a device address from one of the host.
const TAG: u64 = 1 << 48;
const ORDINAL_SHIFT: u32 = 49;
/// What memory holds that was never written: as floats, not a number.
const POISON: u8 = 0xFF;
const PAGE_BYTES: usize = 4096;
/// No mapping of a process has this bit: addresses with it are of modules' variables, which are at
/// most 64 MiB, and lie far apart.
const VARIABLE: u64 = 1 << 47;
const VARIABLE_SHIFT: u32 = 27;
const VARIABLE_NUMBER_MAX: u64 = (1 << 20) - 1;
/// Regions that kernels see begin at a multiple.
const REGION_ALIGN: u64 = 16;
const POISON_STEP_BYTES: usize = 1 << 20;

/// Anonymous memory, unmapped when the last holder lets go.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: usize,
    bytes: usize,
}

impl Mapping {
    /// Zero pages, not one of them touched.
    pub(crate) fn new(bytes: usize) -> Answer<Self> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or(Code::OUT_OF_MEMORY)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping, at an address of the kernel's choice, touches nothing
        // that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Code::OUT_OF_MEMORY);
        }
        Ok(Self { start: start as usize, bytes })
    }

    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Fills the first `whole` bytes, and beyond them a page at each end of each MiB: enough to
    /// see what was never written, without giving pages to all of it.
    pub(crate) fn poison(&self, value: u8, whole: u64) {
        let whole = usize::try_from(whole).unwrap_or(usize::MAX).min(self.bytes);
        self.fill(0..whole, value);
        let mut at = whole;
        while at < self.bytes {
            let end = (at + POISON_STEP_BYTES).min(self.bytes);
            self.fill(at..(at + PAGE_BYTES).min(end), value);
            self.fill(end.saturating_sub(PAGE_BYTES).max(at)..end, value);
            at = end;
        }
    }

    fn fill(&self, range: Range<usize>, value: u8) {
        debug_assert!(range.end <= self.bytes, "{range:?} of {}", self.bytes);
        let start = (self.start + range.start) as *mut u8;
        // SAFETY: the range lies within this mapping, which nobody else knows yet.
        unsafe { start.write_bytes(value, range.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and copies that use it hold this object.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.bytes) };
    }
}

/// Whose the bytes of an allocation are.
#[derive(Debug)]
enum Backing {
    Own(Mapping),
    /// A variable's, at an address within its module, which owns them.
    Variable(usize, #[allow(dead_code, reason = "keeps the bytes alive")] Arc<Module>),
}

/// A live allocation, or a module's variable that somebody asked the address of.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) device: Arc<Device>,
    /// As the caller knows it.
    pub(crate) address: u64,
    /// As asked for.
    pub(crate) bytes: usize,
    backing: Backing,
}

impl Allocation {
    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address + self.bytes as u64
    }

    fn start(&self) -> usize {
        match &self.backing {
            Backing::Own(mapping) => mapping.start,
            Backing::Variable(start, _) => *start,
        }
    }

    fn is_own(&self) -> bool {
        matches!(self.backing, Backing::Own(_))
    }

    /// As kernels see it: whole words from a multiple of 16.
    #[allow(clippy::cast_possible_truncation, reason = "below 16")]
    pub(crate) fn region(&self) -> Region<'_> {
        let before = (self.address % REGION_ALIGN) as usize;
        let (start, bytes) = (self.start() - before, self.bytes + before);
        let count = bytes.div_ceil(size_of::<AtomicU32>());
        // SAFETY: the words lie within memory that this allocation holds as long as the region
        // lives. A mapping is whole pages and begins at one, so `before` is 0; a variable's address
        // is as far behind a page as its place is behind its module's words, of which it covers
        // some and `before` others. Nobody has an exclusive reference to either.
        let words = unsafe { std::slice::from_raw_parts(start as *const AtomicU32, count) };
        Region { start: self.address - before as u64, bytes: bytes as u64, words }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.is_own() {
            self.device.give_back(self.bytes as u64);
        }
    }
}

/// A piece of an allocation, which stays mapped as long as the piece is held.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) allocation: Arc<Allocation>,
    offset: usize,
}

impl Piece {
    /// Where it is in the process's own memory.
    pub(crate) fn start(&self) -> usize {
        self.allocation.start() + self.offset
    }
}

/// The allocations of all devices.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    live: Mutex<BTreeMap<u64, Arc<Allocation>>>,
    /// Starts of what was freed and not allocated again.
    freed: Mutex<BTreeSet<u64>>,
    variables: AtomicU64,
}

/// Whether an address is tagged as a device's.
pub(crate) fn is_device_address(address: u64) -> bool {
    address & TAG != 0
}

/// The device that an address is tagged with.
pub(crate) fn ordinal_of(address: u64) -> usize {
    (address >> ORDINAL_SHIFT) as usize
}

impl Memory {
    pub(crate) fn allocate(
        &self,
        device: &Arc<Device>,
        bytes: usize,
        config: &Config,
    ) -> Answer<u64> {
        device.take(bytes as u64)?;
        let mapping = Mapping::new(bytes).inspect_err(|_| device.give_back(bytes as u64))?;
        mapping.poison(POISON, config.poison_bytes);
        let address = mapping.start as u64 | TAG | (device.ordinal as u64) << ORDINAL_SHIFT;
        let device = Arc::clone(device);
        let allocation =
            Arc::new(Allocation { device, address, bytes, backing: Backing::Own(mapping) });
        lock(&self.live).insert(address, allocation);
        lock(&self.freed).remove(&address);
        Ok(address)
    }

    /// Gives a module's variable an address at which copies and kernels find it.
    pub(crate) fn show(
        &self,
        device: &Arc<Device>,
        module: &Arc<Module>,
        variable: &Variable,
    ) -> Answer<u64> {
        let region = module.region(variable.address).ok_or(Code::NOT_FOUND)?;
        let offset = variable.address - region.start;
        let start = usize::try_from(offset).map_err(|_| Code::NOT_FOUND)?;
        let start = region.words.as_ptr() as usize + start;
        let number = self.variables.fetch_add(1, Ordering::Relaxed) & VARIABLE_NUMBER_MAX;
        let of_device = TAG | (device.ordinal as u64) << ORDINAL_SHIFT | VARIABLE;
        let address = of_device + (number << VARIABLE_SHIFT) + offset % PAGE_BYTES as u64;
        let backing = Backing::Variable(start, Arc::clone(module));
        let device = Arc::clone(device);
        let shown = Allocation { device, address, bytes: variable.bytes, backing };
        lock(&self.live).insert(address, Arc::new(shown));
        Ok(address)
    }

    /// Takes such an address back.
    pub(crate) fn hide(&self, address: u64) {
        lock(&self.live).remove(&address);
    }

    /// The live allocation that starts at `address`, which may be freed.
    pub(crate) fn starting_at(&self, address: u64) -> Option<Arc<Allocation>> {
        lock(&self.live).get(&address).filter(|allocation| allocation.is_own()).cloned()
    }

    /// Everything of a device, by address.
    pub(crate) fn all_of(&self, device: &Device) -> Vec<Arc<Allocation>> {
        let live = lock(&self.live);
        live.values().filter(|live| live.device.ordinal == device.ordinal).cloned().collect()
    }

    /// Takes the allocation out of the table; its memory goes with its last holder.
    pub(crate) fn free(&self, address: u64) -> Answer<Arc<Allocation>> {
        let allocation = lock(&self.live).remove(&address).ok_or(Code::INVALID_VALUE)?;
        lock(&self.freed).insert(address);
        Ok(allocation)
    }

    pub(crate) fn was_freed(&self, address: u64) -> bool {
        lock(&self.freed).contains(&address)
    }

    /// The last start at or before `address` of what was freed.
    pub(crate) fn freed_before(&self, address: u64) -> Option<u64> {
        lock(&self.freed).range(..=address).next_back().copied()
    }

    /// Takes out everything of a device.
    pub(crate) fn free_all_of(&self, device: &Device) -> Vec<Arc<Allocation>> {
        let mut live = lock(&self.live);
        let addresses: Vec<u64> = live
            .values()
            .filter(|allocation| allocation.device.ordinal == device.ordinal)
            .map(|allocation| allocation.address)
            .collect();
        addresses.iter().filter_map(|address| live.remove(address)).collect()
    }

    /// The piece of `bytes` bytes at `address`, if it lies within one allocation.
    pub(crate) fn find(&self, address: u64, bytes: usize) -> Option<Piece> {
        let live = lock(&self.live);
        let (start, allocation) = live.range(..=address).next_back()?;
        let offset = usize::try_from(address - start).ok()?;
        let end = offset.checked_add(bytes)?;
        let is_within = end <= allocation.bytes && (bytes > 0 || offset < allocation.bytes);
        is_within.then(|| Piece { allocation: Arc::clone(allocation), offset })
    }

    /// The same, of this device alone; says on standard error what is wrong.
    pub(crate) fn find_on(&self, device: &Device, address: u64, bytes: usize) -> Answer<Piece> {
        let reason = match self.find(address, bytes) {
            Some(piece) if piece.allocation.device.ordinal == device.ordinal => return Ok(piece),
            Some(piece) => format!("belongs to device {}", piece.allocation.device.ordinal),
            None if is_device_address(address) => "is not within one allocation".into(),
            None => "is no device address".into(),
        };
        let ordinal = device.ordinal;
        eprintln!("[cuda emulator] device {ordinal}: {address:#x} + {bytes} bytes {reason}");
        Err(Code::INVALID_VALUE)
    }

    pub(crate) fn held_by(&self, device: &Device) -> Held {
        let live = lock(&self.live);
        let of_device =
            live.values().filter(|live| live.is_own() && live.device.ordinal == device.ordinal);
        of_device.fold(Held::default(), |held, allocation| Held {
            count: held.count + 1,
            bytes: held.bytes + allocation.bytes as u64,
        })
    }
}

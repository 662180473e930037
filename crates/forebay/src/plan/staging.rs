//! How much staging memory, and how it is cut.

use crate::error::Error;
use crate::options::Options;
use forebay_device::cuda::{DeviceInfo, SlotGroup, StagingShape};
use forebay_mem::Alignment;
use forebay_mem::numa::NumaPolicy;

/// One read's size where nothing is asked: large enough that a disk reaches its rate with few in
/// flight, small enough that a slot stays in the processor's cache between its read and its copy.
const CHUNK_BYTES: u64 = 1 << 20;
/// The same for devices: they copy out of memory, not out of a cache, and a copy of 1 MiB takes a fast
/// link 20 µs, of which the gap to the next is a good part. Larger ones would let a slow disk's
/// first byte wait for all that is in flight.
const DEVICE_CHUNK_BYTES: u64 = 2 << 20;
/// The least size worth an operation.
const CHUNK_BYTES_MIN: u64 = 64 << 10;
/// The kernel registers at most this as one buffer, and lengths are 32 bits.
const CHUNK_BYTES_MAX: u64 = 1 << 30;
/// What [`Staging::new`] makes of a size, in words.
pub(crate) const CHUNK_RULE: &str = "reads are whole blocks of the storage, of 1 GiB at most";
/// Reads in flight where nothing is asked.
const QUEUE_DEPTH: usize = 16;
/// The same for devices: as many bytes.
const DEVICE_QUEUE_DEPTH: usize = 8;
/// Slots beyond those in flight, so that the reader need not wait for the uploader's last copy.
const SPARE_SLOTS: usize = 8;

/// The staging memory of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Staging {
    /// The size of a read at most.
    pub(crate) chunk_bytes: u64,
    /// The size of a slot: less than a chunk where all reads that need one are smaller.
    pub(crate) slot_bytes: u64,
    /// How many slots.
    pub(crate) slots: usize,
    /// Reads in flight at most.
    pub(crate) queue_depth: usize,
}

impl Staging {
    /// From what is asked, with reads aligned to `alignment`, for copies to devices or not.
    pub(crate) fn new(
        options: &Options,
        alignment: Alignment,
        to_device: bool,
    ) -> Result<Self, Error> {
        let (chunk, depth, pieces_min) = match to_device {
            true => (DEVICE_CHUNK_BYTES, DEVICE_QUEUE_DEPTH, 16),
            false => (CHUNK_BYTES, QUEUE_DEPTH, 8),
        };
        let asked = options.chunk_bytes.unwrap_or(match options.staging_bytes {
            // A small staging is better cut fine than deep.
            Some(staging) => chunk.min((staging / pieces_min).max(CHUNK_BYTES_MIN)),
            None => chunk,
        });
        if options.chunk_bytes == Some(0) {
            let remedy = "give 4096 or more, or auto";
            return Err(Error::option("--chunk", "reads of 0 bytes read nothing", remedy));
        }
        let chunk_bytes = alignment.down(asked.min(CHUNK_BYTES_MAX)).max(alignment.bytes());
        if options.queue_depth == Some(0) {
            return Err(Error::option(
                "--queue-depth",
                "0 reads in flight read nothing",
                "give 1 or more",
            ));
        }
        let depth = options.queue_depth.unwrap_or(depth);
        let slots = match options.staging_bytes {
            Some(staging) => usize::try_from(staging / chunk_bytes).unwrap_or(usize::MAX),
            None => depth.saturating_add(SPARE_SLOTS),
        };
        if slots == 0 {
            let (option, cause) =
                ("--staging", format!("is less than one read of {chunk_bytes} bytes"));
            let remedy = format!("give at least {chunk_bytes}, or a smaller --chunk");
            return Err(Error::option(option, &cause, &remedy));
        }
        let queue_depth = match options.queue_depth {
            Some(depth) => depth.min(slots),
            None => depth.min(slots - slots / 4),
        };
        Ok(Self { chunk_bytes, slot_bytes: chunk_bytes, slots, queue_depth })
    }

    /// No more slots than there are reads, nor larger than the largest that goes through one.
    pub(crate) fn bounded_by(self, reads: usize, slot_bytes_max: u64) -> Self {
        let slots = self.slots.min(reads);
        // A slot is also the token of a read that goes straight into place, so it has some size.
        let slot_bytes = Alignment::page().up(slot_bytes_max.max(1)).unwrap_or(self.chunk_bytes);
        let slot_bytes = slot_bytes.min(self.chunk_bytes);
        Self { slots, slot_bytes, queue_depth: self.queue_depth.min(slots), ..self }
    }

    pub(crate) fn bytes(self) -> u64 {
        self.slot_bytes * self.slots as u64
    }
}

/// Pinned staging memory for devices, near each of them if nobody wants it elsewhere, and the group
/// of slots that each device, in the order given, copies from.
pub(crate) fn near_devices<'info>(
    staging: &Staging,
    asked: NumaPolicy,
    devices: impl Iterator<Item = &'info DeviceInfo>,
) -> (StagingShape, Vec<usize>) {
    let mut nodes: Vec<NumaPolicy> = Vec::new();
    let mut group_of_device = Vec::new();
    for device in devices {
        let numa = match (asked, device.numa_node) {
            (NumaPolicy::Off, Some(node)) => NumaPolicy::Node(Some(node)),
            (policy, _) => policy,
        };
        let known = nodes.iter().position(|node| *node == numa);
        group_of_device.push(known.unwrap_or(nodes.len()));
        if known.is_none() {
            nodes.push(numa);
        }
    }
    // With fewer slots than nodes, some node goes without: a slot serves every device.
    nodes.truncate(staging.slots.max(1));
    let count = nodes.len().max(1);
    let bound = |index: usize| staging.slots * index / count;
    let group = |(index, numa)| SlotGroup { numa, slots: bound(index + 1) - bound(index) };
    let groups = nodes.into_iter().enumerate().map(group).collect();
    let slot_bytes = usize::try_from(staging.slot_bytes).unwrap_or(usize::MAX);
    (StagingShape { slot_bytes, groups }, group_of_device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staging(staging_bytes: Option<u64>, chunk_bytes: Option<u64>) -> Result<Staging, Error> {
        let options = Options { staging_bytes, chunk_bytes, ..Options::default() };
        Staging::new(&options, Alignment::FALLBACK, false)
    }

    #[test]
    fn staging_is_never_exceeded_and_always_cut_into_aligned_slots() {
        for bytes in [4096, 65_536, 1 << 20, 16 << 20, (16 << 20) + 5, 1 << 33] {
            for chunk in [None, Some(4096), Some(5000), Some(1 << 20), Some(1 << 35)] {
                let Ok(staging) = staging(Some(bytes), chunk) else { continue };
                assert!(staging.bytes() <= bytes, "{bytes} {chunk:?}");
                assert!(staging.queue_depth >= 1 && staging.queue_depth <= staging.slots);
                assert_eq!(staging.chunk_bytes % 4096, 0);
            }
        }
        assert!(staging(Some(4096), Some(1 << 20)).is_err());
        assert!(staging(None, Some(0)).is_err());
    }
}

//! The staging memory of a load: a slab of its own, or one that is pinned for devices and kept.

use super::memory::Contexts;
use crate::error::Error;
use crate::plan::{Plan, near_devices};
use forebay_device::cuda::{self, StagingShape};
use forebay_io::{FreeSlots, SlotReturn, slot_channel};
use forebay_mem::Slab;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Staging memory, with the channel that its free slots go round in.
pub(crate) struct Staging {
    pub(crate) slab: Arc<Slab>,
    pub(crate) free_sender: SlotReturn,
    pub(crate) free: FreeSlots,
    /// The driver's hold on it, where devices copy from it.
    pub(crate) pinned: Option<cuda::Staging>,
}

/// The staging memory that the plan takes for devices; `None` if it copies to none.
pub(super) fn staging_shape(plan: &Plan) -> Option<StagingShape> {
    near(plan).map(|(shape, _)| shape)
}

/// That, and the group of slots of each device that is copied to.
fn near(plan: &Plan) -> Option<(StagingShape, BTreeMap<u32, usize>)> {
    let devices = plan.copied_to();
    let infos = devices.iter().filter_map(|ordinal| plan.devices.get(ordinal));
    let (shape, groups) = near_devices(&plan.staging, plan.options.numa, infos);
    let groups = devices.iter().copied().zip(groups).collect();
    (!devices.is_empty()).then_some((shape, groups))
}

/// The group that most of a read's bytes are copied from by choice.
fn group_of_read(plan: &Plan, groups: &BTreeMap<u32, usize>, read: usize) -> usize {
    let mut bytes: BTreeMap<usize, u64> = BTreeMap::new();
    for segment in &plan.segments[read] {
        let device = plan.arenas[segment.arena].kind.device();
        let group = device.and_then(|ordinal| groups.get(&ordinal)).copied().unwrap_or(0);
        *bytes.entry(group).or_default() += u64::from(segment.bytes);
    }
    bytes.into_iter().max_by_key(|&(_, bytes)| bytes).map_or(0, |(group, _)| group)
}

impl Staging {
    pub(crate) fn new(plan: &Plan, contexts: &Contexts) -> Result<Self, Error> {
        let no_room = || Error::memory("no room for staging memory");
        let slots = plan.staging.slots;
        let slot_bytes = usize::try_from(plan.staging.slot_bytes).unwrap_or(usize::MAX);
        let context = plan.copied_to().first().and_then(|first| contexts.get(first));
        let (free_sender, free) = slot_channel(slots);
        let (slab, tokens, pinned, free) = match (near(plan), context) {
            (Some((shape, groups)), Some(context)) if slots > 0 => {
                let of_read = |read| group_of_read(plan, &groups, read);
                let free = match shape.groups.len() {
                    0 | 1 => free,
                    _ => {
                        let of_reads = (0..plan.reads.len()).map(of_read).collect();
                        free.grouped(shape.group_of_slot(), of_reads)
                    }
                };
                let (staging, tokens) = cuda::Staging::take(context, &shape).map_err(no_room())?;
                (Arc::clone(staging.slab()), tokens, Some(staging), free)
            }
            _ => {
                let (slab, tokens) = Slab::new(slot_bytes, slots).map_err(no_room())?;
                (slab, tokens, None, free)
            }
        };
        for token in tokens {
            let sent = free_sender.send(token);
            sent.map_err(|_| Error::Internal("no free list".to_owned()))?;
        }
        Ok(Self { slab, free_sender, free, pinned })
    }
}

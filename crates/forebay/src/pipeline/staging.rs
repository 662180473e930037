//! The staging memory of a load: a slab of its own, or one that is pinned for devices and kept.

use super::memory::Contexts;
use crate::error::Error;
use crate::plan::{Plan, staging_numa};
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay_device::cuda::{self, StagingShape};
use forebay_mem::{Free, Slab, Slot};
use std::sync::Arc;

/// Staging memory, with the channel that its free slots go round in.
pub(super) struct Staging {
    pub(super) slab: Arc<Slab>,
    pub(super) free_sender: Sender<Slot<Free>>,
    pub(super) free: Receiver<Slot<Free>>,
    /// The driver's hold on it, where devices copy from it.
    pub(super) pinned: Option<cuda::Staging>,
}

/// The staging memory that the plan takes for devices; `None` if it copies to none.
pub(super) fn staging_shape(plan: &Plan) -> Option<StagingShape> {
    let devices = plan.copied_to();
    let first = devices.first()?;
    let numa = staging_numa(plan.options.numa, plan.devices.get(first)?);
    let slot_bytes = usize::try_from(plan.staging.slot_bytes).unwrap_or(usize::MAX);
    Some(StagingShape { slot_bytes, slots: plan.staging.slots, numa })
}

impl Staging {
    pub(super) fn new(plan: &Plan, contexts: &Contexts) -> Result<Self, Error> {
        let no_room = || Error::memory("no room for staging memory");
        let slots = plan.staging.slots;
        let slot_bytes = usize::try_from(plan.staging.slot_bytes).unwrap_or(usize::MAX);
        let context = plan.copied_to().first().and_then(|first| contexts.get(first));
        let (slab, tokens, pinned) = match (staging_shape(plan), context) {
            (Some(shape), Some(context)) if slots > 0 => {
                let (staging, tokens) = cuda::Staging::take(context, shape).map_err(no_room())?;
                (Arc::clone(staging.slab()), tokens, Some(staging))
            }
            _ => {
                let (slab, tokens) = Slab::new(slot_bytes, slots).map_err(no_room())?;
                (slab, tokens, None)
            }
        };
        let (free_sender, free) = bounded(slots);
        for token in tokens {
            let sent = free_sender.send(token);
            sent.map_err(|_| Error::Internal("no free list".to_owned()))?;
        }
        Ok(Self { slab, free_sender, free, pinned })
    }
}

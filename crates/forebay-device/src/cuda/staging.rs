//! Staging memory that a device copies from and to by itself, kept from load to load.
//!
//! Pinning costs more than moving what is pinned, so a slab is pinned once and used again by later
//! loads of the process. What is kept is bounded: [`KEPT_MAX`] slabs, the last ones used.

use super::error::DriverRefusal;
use super::{Context, HostRegistration};
use forebay_mem::numa::{NumaPolicy, Placed};
use forebay_mem::{Free, MemoryError, Slab, Slot};
use std::sync::{Arc, Mutex, PoisonError};

/// How many slabs are kept for later loads.
const KEPT_MAX: usize = 2;

static KEPT: Mutex<Vec<Staging>> = Mutex::new(Vec::new());

/// Slots that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotGroup {
    /// Where: near the device that copies from them, if the machine has several nodes.
    pub numa: NumaPolicy,
    /// How many.
    pub slots: usize,
}

/// What staging memory is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagingShape {
    /// The size of one slot, in bytes: a multiple of the page's if there are several groups.
    pub slot_bytes: usize,
    /// The slots, one group behind the other.
    pub groups: Vec<SlotGroup>,
}

impl StagingShape {
    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.groups.iter().map(|group| group.slots).sum()
    }

    /// The group of each slot, by its index.
    #[must_use]
    pub fn group_of_slot(&self) -> Vec<usize> {
        let groups = self.groups.iter().enumerate();
        groups.flat_map(|(index, group)| std::iter::repeat_n(index, group.slots)).collect()
    }
}

/// A slab, and the driver's hold on it. To be dropped, or kept, after every copy out of the slab
/// has completed: an [`crate::Uploader`] waits for its own when it is dropped.
#[derive(Debug)]
pub struct Staging {
    shape: StagingShape,
    slab: Arc<Slab>,
    /// Of each group, where that could be chosen.
    placed: Vec<Placed>,
    pinned: Result<HostRegistration, DriverRefusal>,
    is_reused: bool,
}

impl Staging {
    /// Memory of that shape with the tokens of its slots: one that was kept, or a new one, pinned
    /// for all devices through `context`. What can't be pinned serves as it is.
    ///
    /// # Errors
    /// As [`Slab::new`].
    pub fn take(
        context: &Arc<Context>,
        shape: &StagingShape,
    ) -> Result<(Self, Vec<Slot<Free>>), MemoryError> {
        let kept = {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().position(|staging| staging.shape == *shape).map(|index| kept.remove(index))
        };
        if let Some(mut staging) = kept
            && let Some(tokens) = Slab::reuse(&mut staging.slab)
        {
            staging.is_reused = true;
            return Ok((staging, tokens));
        }
        let (slab, tokens) = Slab::new(shape.slot_bytes, shape.slots())?;
        let (mut placed, mut start) = (Vec::new(), 0);
        for group in &shape.groups {
            let end = start + group.slots * shape.slot_bytes;
            // Where it is refused, the memory lies where the system puts it.
            placed.extend(slab.region().place_range_on(start..end, group.numa).ok());
            start = end;
        }
        let pinned = HostRegistration::new(context, slab.region());
        let shape = shape.clone();
        Ok((Self { shape, slab, placed, pinned, is_reused: false }, tokens))
    }

    /// The slab.
    #[must_use]
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// Why the driver could not pin it, if it could not.
    #[must_use]
    pub fn refusal(&self) -> Option<&DriverRefusal> {
        self.pinned.as_ref().err()
    }

    /// Where the memory lies, group by group, if that could be chosen.
    #[must_use]
    pub fn placed(&self) -> &[Placed] {
        &self.placed
    }

    /// Whether an earlier load has paid for the pinning.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Keeps it for a later load, if it is pinned and all tokens of its slots are gone.
    pub fn keep(self) {
        if self.pinned.is_err() || Arc::strong_count(&self.slab) > 1 {
            return;
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(self);
        if kept.len() > KEPT_MAX {
            let oldest = kept.remove(0);
            drop(kept);
            drop(oldest);
        }
    }
}

/// Unpins and gives back the staging memory that is kept for later loads.
pub fn release_staging() {
    let kept = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    drop(kept);
}

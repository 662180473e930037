//! Staging memory that a device copies from and to by itself, kept from load to load.
//!
//! Pinning costs more than moving what is pinned, so a slab is pinned once and used again by later
//! loads of the process. One is kept, the last that was used, and it goes when another is made: what
//! is pinned is never more than what the loads that run were given, or the last one was.

use super::error::DriverRefusal;
use super::{Context, HostRegistration};
use forebay_mem::numa::{NumaError, NumaPolicy, Placed};
use forebay_mem::{Free, MemoryError, Slab, Slot};
use std::sync::{Arc, Mutex, PoisonError};

static KEPT: Mutex<Option<Staging>> = Mutex::new(None);

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
    /// Of each group: where it lies, or why that could not be chosen.
    placed: Vec<Result<Placed, NumaError>>,
    /// `None` once it is being dropped.
    pinned: Option<Result<HostRegistration, DriverRefusal>>,
    /// How many have taken it.
    taken: usize,
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
            kept.take()
        };
        if let Some(mut staging) = kept.filter(|staging| staging.shape == *shape)
            && let Some(tokens) = Slab::reuse(&mut staging.slab)
        {
            staging.taken += 1;
            return Ok((staging, tokens));
        }
        let (mut staging, tokens) = Self::new(context, shape)?;
        staging.taken = 1;
        Ok((staging, tokens))
    }

    /// Makes memory of that shape ready for whoever takes it next.
    ///
    /// # Errors
    /// As [`Slab::new`].
    pub fn prepare(context: &Arc<Context>, shape: &StagingShape) -> Result<(), MemoryError> {
        let is_there = {
            let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.as_ref().is_some_and(|staging| staging.shape == *shape)
        };
        if !is_there {
            let (staging, tokens) = Self::new(context, shape)?;
            drop(tokens);
            staging.keep();
        }
        Ok(())
    }

    fn new(
        context: &Arc<Context>,
        shape: &StagingShape,
    ) -> Result<(Self, Vec<Slot<Free>>), MemoryError> {
        let (slab, tokens) = Slab::new(shape.slot_bytes, shape.slots())?;
        let (mut placed, mut start) = (Vec::new(), 0);
        for group in &shape.groups {
            let end = start + group.slots * shape.slot_bytes;
            placed.push(slab.region().place_range_on(start..end, group.numa));
            start = end;
        }
        let pinned = Some(HostRegistration::new(context, slab.region()));
        Ok((Self { shape: shape.clone(), slab, placed, pinned, taken: 0 }, tokens))
    }

    /// The slab.
    #[must_use]
    pub fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    /// Why the driver could not pin it, if it could not.
    #[must_use]
    pub fn refusal(&self) -> Option<&DriverRefusal> {
        self.pinned.as_ref()?.as_ref().err()
    }

    /// Where the memory lies, group by group, or why that could not be chosen: then it lies where
    /// the system puts it.
    pub fn placed(&self) -> &[Result<Placed, NumaError>] {
        &self.placed
    }

    /// Whether somebody has used it before, and paid for the pinning.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.taken > 1
    }

    /// Keeps it for whoever wants the same next, if it is pinned and all tokens of its slots are
    /// gone. Not to be called after a failure of the device: pinned memory holds the device's
    /// context, and only a context that nobody holds is made anew.
    pub fn keep(self) {
        if !matches!(self.pinned, Some(Ok(_))) || Arc::strong_count(&self.slab) > 1 {
            return;
        }
        let before = KEPT.lock().unwrap_or_else(PoisonError::into_inner).replace(self);
        // Outside of the lock: it unpins.
        drop(before);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.slab.has_leaked() {
            // A device may still be copying from it: what it copies from stays pinned.
            std::mem::forget(self.pinned.take());
        }
    }
}

/// Unpins and gives back the staging memory that is kept for later loads. With it goes the device's
/// context, if no tensor holds that. Whoever resets a device (`cudaDeviceReset`) calls this first:
/// what was pinned does not outlive its context.
pub fn release_staging() {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(kept);
}

//! Staging memory that a device copies from and to by itself, kept from load to load.
//!
//! Pinning costs more than moving what is pinned, so a slab is pinned once and used again by later
//! loads of the process. What is kept is bounded: [`KEPT_MAX`] slabs, the last ones used.

use super::context::Context;
use super::error::DriverRefusal;
use super::memory::HostRegistration;
use forebay_mem::numa::{NumaPolicy, Placed};
use forebay_mem::{Free, MemoryError, Slab, Slot};
use std::sync::{Arc, Mutex, PoisonError};

/// How many slabs are kept for later loads.
const KEPT_MAX: usize = 2;

static KEPT: Mutex<Vec<Staging>> = Mutex::new(Vec::new());

/// What staging memory is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagingShape {
    /// The size of one slot, in bytes.
    pub slot_bytes: usize,
    /// How many slots.
    pub slots: usize,
    /// Where the memory should lie: near the device, if the machine has several nodes.
    pub numa: NumaPolicy,
}

/// A slab, and the driver's hold on it. To be dropped, or kept, after every copy out of the slab
/// has completed: an [`crate::Uploader`] waits for its own when it is dropped.
#[derive(Debug)]
pub struct Staging {
    shape: StagingShape,
    slab: Arc<Slab>,
    placed: Option<Placed>,
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
        shape: StagingShape,
    ) -> Result<(Self, Vec<Slot<Free>>), MemoryError> {
        let kept = {
            let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().position(|staging| staging.shape == shape).map(|index| kept.remove(index))
        };
        if let Some(mut staging) = kept
            && let Some(tokens) = Slab::reuse(&mut staging.slab)
        {
            staging.is_reused = true;
            return Ok((staging, tokens));
        }
        let (slab, tokens) = Slab::new(shape.slot_bytes, shape.slots)?;
        // Where it is refused, the memory lies where the system puts it.
        let placed = slab.region().place_on(shape.numa).ok();
        let pinned = HostRegistration::new(context, slab.region());
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

    /// Where the memory lies, if that could be chosen.
    #[must_use]
    pub fn placed(&self) -> Option<&Placed> {
        self.placed.as_ref()
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

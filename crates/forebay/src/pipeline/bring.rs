//! Mapped tensors that have come into memory are told like those that were copied.

use super::landing::Announcer;
use crate::loaded::Tensors;
use crate::plan::Plan;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Hears how far the prefetch is and announces the tensors that are there by that.
pub(super) fn announcer(
    plan: &Plan,
    tensors: &Arc<Tensors>,
    landed: &Announcer,
    placed_bytes: &Arc<AtomicU64>,
) -> Box<dyn Fn(u64) + Send + Sync> {
    let catalog = plan.model.shared_catalog();
    let residence = plan.residence.clone();
    let (tensors, landed) = (Arc::clone(tensors), landed.clone());
    let placed_bytes = Arc::clone(placed_bytes);
    let announced = Mutex::new(0);
    Box::new(move |position| {
        if !residence.prefetch {
            // What is locked alone is brought in; its tensors were there from the start.
            return;
        }
        tensors.resident.advance(position);
        let mut announced = announced.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(tensor, ready_at)) = residence.tensors.get(*announced)
            && ready_at <= position
        {
            *announced += 1;
            tensors.resident.note_tensor();
            placed_bytes.fetch_add(catalog.tensors()[tensor].bytes, Ordering::Relaxed);
            landed.announce(tensor);
        }
    })
}

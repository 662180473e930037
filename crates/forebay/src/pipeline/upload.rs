//! The uploader's thread: full slots in, free slots and landed tensors out.

use crate::plan::{Home, Plan};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use forebay_device::{DeviceError, Segment, Uploader};
use forebay_io::Filled;
use forebay_mem::{Free, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A tensor is whole, by its index in the catalog.
pub(super) struct Landed(pub(super) usize);

/// What the uploader knows of the plan.
pub(super) struct UploadPlan {
    segments: Arc<[Vec<Segment>]>,
    /// For each arena and tensor: the catalog's index and the bytes that are still to come.
    pending: Vec<Vec<Pending>>,
}

struct Pending {
    tensor: usize,
    bytes: u64,
}

impl UploadPlan {
    pub(super) fn new(plan: &Plan) -> Self {
        let tensors = plan.model.catalog().tensors();
        let pending = |&tensor: &usize| Pending { tensor, bytes: tensors[tensor].bytes };
        let pending = plan.arenas.iter().map(|arena| arena.tensors.iter().map(pending).collect());
        debug_assert!(plan.homes.iter().all(|home| match home {
            Home::Arena { arena, tensor } => *tensor < plan.arenas[*arena].tensors.len(),
            Home::Mapped => true,
        }));
        Self { segments: Arc::clone(&plan.segments), pending: pending.collect() }
    }
}

/// Everything the uploader's thread needs.
pub(super) struct UploadJob {
    pub(super) uploader: Box<dyn Uploader>,
    pub(super) plan: UploadPlan,
    pub(super) full: Receiver<Filled>,
    pub(super) free: Sender<Slot<Free>>,
    pub(super) landed: Sender<Landed>,
    pub(super) placed_bytes: Arc<AtomicU64>,
}

/// What the uploader did.
#[derive(Default)]
pub(crate) struct UploadOutcome {
    /// Bytes placed, read into place or copied.
    pub(crate) bytes: u64,
    /// Of these, bytes that were copied.
    pub(crate) copied_bytes: u64,
    pub(crate) copies: u64,
    pub(crate) busy: Duration,
    pub(crate) waited_for_read: Duration,
    pub(crate) first_placed: Option<Instant>,
    pub(crate) last_placed: Option<Instant>,
    pub(crate) failure: Option<DeviceError>,
}

impl UploadJob {
    /// Runs until the reader has ended and every copy has completed.
    pub(super) fn run(mut self) -> UploadOutcome {
        let mut outcome = UploadOutcome::default();
        if let Err(error) = self.upload_all(&mut outcome) {
            outcome.failure = Some(error);
        }
        outcome
    }

    fn upload_all(&mut self, outcome: &mut UploadOutcome) -> Result<(), DeviceError> {
        self.land_the_empty(outcome);
        loop {
            let filled = match self.full.try_recv() {
                Ok(filled) => Some(filled),
                Err(TryRecvError::Empty) if self.uploader.in_flight() > 0 => None,
                Err(TryRecvError::Empty) => {
                    let started = Instant::now();
                    let filled = self.full.recv().ok();
                    outcome.waited_for_read += started.elapsed();
                    if filled.is_none() {
                        return Ok(());
                    }
                    filled
                }
                Err(TryRecvError::Disconnected) if self.uploader.in_flight() > 0 => None,
                Err(TryRecvError::Disconnected) => return Ok(()),
            };
            let started = Instant::now();
            let wait = filled.is_none();
            if let Some(Filled { read, slot }) = filled {
                let segments = &self.plan.segments[read];
                if !slot.is_aimed() {
                    let bytes = segments.iter().map(|segment| u64::from(segment.bytes));
                    outcome.copied_bytes += bytes.sum::<u64>();
                    outcome.copies += segments.len() as u64;
                }
                self.uploader.upload(slot.drain(), read, segments)?;
            }
            while let Some((slot, read)) = self.uploader.completed(wait)? {
                // The reader may have ended: the slot is not needed any more then.
                let _ = self.free.send(slot);
                self.credit(read, outcome);
            }
            outcome.busy += started.elapsed();
        }
    }

    /// Tensors without bytes have no segment to wait for.
    fn land_the_empty(&mut self, outcome: &mut UploadOutcome) {
        for arena in 0..self.plan.pending.len() {
            for tensor in 0..self.plan.pending[arena].len() {
                if self.plan.pending[arena][tensor].bytes == 0 {
                    self.land(arena, tensor, outcome);
                }
            }
        }
    }

    /// Counts a read's segments as placed, and announces tensors that are whole now.
    fn credit(&mut self, read: usize, outcome: &mut UploadOutcome) {
        let segments = Arc::clone(&self.plan.segments);
        for segment in &segments[read] {
            let bytes = u64::from(segment.bytes);
            outcome.bytes += bytes;
            self.placed_bytes.fetch_add(bytes, Ordering::Relaxed);
            let pending = &mut self.plan.pending[segment.arena][segment.tensor];
            pending.bytes -= bytes;
            if pending.bytes == 0 {
                self.land(segment.arena, segment.tensor, outcome);
            }
        }
    }

    fn land(&mut self, arena: usize, tensor: usize, outcome: &mut UploadOutcome) {
        self.uploader.publish(arena, tensor);
        if outcome.bytes > 0 {
            let now = Instant::now();
            outcome.first_placed.get_or_insert(now);
            outcome.last_placed = Some(now);
        }
        // The channel holds every tensor of the plan: sending never waits, and nobody may listen.
        let _ = self.landed.send(Landed(self.plan.pending[arena][tensor].tensor));
    }
}

//! The uploader's thread: full slots in, free slots and landed tensors out.

use super::landing::Announcer;
use super::timeline::Waits;
use crate::plan::{ArenaPlan, Home, Plan};
use crossbeam_channel::{Receiver, never, select};
use forebay_device::{DeviceError, Drained, Segment, Uploader};
use forebay_io::{Filled, SlotReturn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the uploader knows of the plan.
pub(super) struct UploadPlan {
    segments: Arc<[Vec<Segment>]>,
    /// For each arena and tensor: what is still to come.
    pending: Vec<Vec<Pending>>,
    /// By the catalog's index: how many parts of the tensor are not whole yet.
    parts: Vec<usize>,
}

struct Pending {
    /// The catalog's index.
    tensor: usize,
    /// Bytes of segments; of columns, segments bring whole rows.
    bytes: u64,
    /// Whether these bytes count as the model's.
    counts: bool,
}

impl UploadPlan {
    pub(super) fn new(plan: &Plan) -> Self {
        let of_arena = |arena: &ArenaPlan| -> Vec<Pending> {
            let pending = |(&tensor, &counts)| Pending { tensor, bytes: 0, counts };
            arena.tensors.iter().zip(&arena.counts).map(pending).collect()
        };
        let pending = plan.arenas.iter().map(of_arena);
        let mut pending: Vec<Vec<Pending>> = pending.collect();
        for segment in plan.segments.iter().flatten() {
            pending[segment.arena][segment.tensor].bytes += u64::from(segment.bytes);
        }
        let parts = |home: &Home| match home {
            Home::Arena { .. } => 1,
            Home::Split(home) => home.parts.len(),
            Home::Mapped => 0,
        };
        let parts = plan.homes.iter().map(parts).collect();
        Self { segments: Arc::clone(&plan.segments), pending, parts }
    }
}

/// Everything the uploader's thread needs.
pub(super) struct UploadJob {
    pub(super) uploader: Uploader,
    pub(super) plan: UploadPlan,
    pub(super) full: Receiver<Filled>,
    pub(super) free: SlotReturn,
    pub(super) landed: Announcer,
    pub(super) placed_bytes: Arc<AtomicU64>,
    /// What records them on a timeline, if anything does.
    pub(super) waits: Option<Waits>,
}

/// What the uploader did.
#[derive(Default)]
pub(crate) struct UploadOutcome {
    /// Bytes of tensors that were read into place.
    pub(crate) in_place_bytes: u64,
    /// Bytes of tensors that were copied.
    pub(crate) copied_bytes: u64,
    pub(crate) copies: u64,
    /// Time in which at least one copy was under way.
    pub(crate) busy: Duration,
    /// Time in which there was nothing to copy.
    pub(crate) waited_for_read: Duration,
    pub(crate) first_placed: Option<Instant>,
    pub(crate) last_placed: Option<Instant>,
    pub(crate) failure: Option<DeviceError>,
}

impl UploadJob {
    /// Runs until the reader has ended, or `ended` is closed, and every copy has completed. When it
    /// returns, no device reads from any slot.
    pub(super) fn run(mut self, ended: &Receiver<()>) -> UploadOutcome {
        let mut outcome = UploadOutcome::default();
        if let Err(error) = self.upload_all(&mut outcome, ended) {
            outcome.failure = Some(error);
        }
        outcome.copies = self.uploader.copies();
        outcome
    }

    fn upload_all(
        &mut self,
        outcome: &mut UploadOutcome,
        ended: &Receiver<()>,
    ) -> Result<(), DeviceError> {
        self.land_the_empty(outcome);
        let completions = self.uploader.completions();
        let mut full = self.full.clone();
        let mut is_reading = true;
        // Since when copies have been under way without a break.
        let mut busy_since: Option<Instant> = None;
        while is_reading || self.uploader.in_flight() > 0 {
            let idle_since = busy_since.is_none().then(Instant::now);
            select! {
                recv(full) -> filled => {
                    let now = Instant::now();
                    if let Some(since) = idle_since {
                        outcome.waited_for_read += now - since;
                        self.waits.iter().for_each(|waits| waits.waited_for_read(since, now));
                    }
                    match filled {
                        Ok(filled) => {
                            busy_since.get_or_insert(now);
                            self.upload(filled, outcome)?;
                        }
                        Err(_) => {
                            is_reading = false;
                            full = never();
                        }
                    }
                }
                recv(ended) -> _ => return Ok(()),
                recv(completions) -> completion => {
                    // The uploader itself keeps the channel open.
                    let Ok(completion) = completion else { continue };
                    if let Some(drained) = self.uploader.settle(completion)? {
                        self.take_back(drained, outcome);
                    }
                }
            }
            if self.uploader.in_flight() == 0
                && let Some(since) = busy_since.take()
            {
                outcome.busy += since.elapsed();
            }
        }
        Ok(())
    }

    fn upload(&mut self, filled: Filled, outcome: &mut UploadOutcome) -> Result<(), DeviceError> {
        let Filled { read, slot } = filled;
        let segments = Arc::clone(&self.plan.segments);
        let bytes = self.counted(&segments[read]);
        if slot.is_aimed() {
            outcome.in_place_bytes += bytes;
        } else {
            outcome.copied_bytes += bytes;
        }
        if let Some(drained) = self.uploader.upload(slot.drain(), read, &segments[read])? {
            self.take_back(drained, outcome);
        }
        Ok(())
    }

    /// The bytes of tensors that a read brings.
    fn counted(&self, segments: &[Segment]) -> u64 {
        let counts = |segment: &&Segment| self.plan.pending[segment.arena][segment.tensor].counts;
        segments.iter().filter(counts).map(|segment| u64::from(segment.bytes)).sum()
    }

    fn take_back(&mut self, Drained { slot, read }: Drained, outcome: &mut UploadOutcome) {
        // The reader may have ended: the slot is not needed any more then.
        let _ = self.free.send(slot.release());
        self.credit(read, outcome);
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
        self.placed_bytes.fetch_add(self.counted(&segments[read]), Ordering::Relaxed);
        for segment in &segments[read] {
            let pending = &mut self.plan.pending[segment.arena][segment.tensor];
            pending.bytes -= u64::from(segment.bytes);
            if pending.bytes == 0 {
                self.land(segment.arena, segment.tensor, outcome);
            }
        }
    }

    fn land(&mut self, arena: usize, tensor: usize, outcome: &mut UploadOutcome) {
        self.uploader.publish(arena, tensor);
        let tensor = self.plan.pending[arena][tensor].tensor;
        self.plan.parts[tensor] -= 1;
        if self.plan.parts[tensor] > 0 {
            return;
        }
        if outcome.in_place_bytes + outcome.copied_bytes > 0 {
            let now = Instant::now();
            outcome.first_placed.get_or_insert(now);
            outcome.last_placed = Some(now);
        }
        self.landed.announce(tensor);
    }
}

//! What a stream did, as data. Field names are the command line's JSON, which scripts rely on.

use crate::report::FallbackReport;
use serde::Serialize;

/// How many bytes of the model are in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct TierBytes {
    pub resident_bytes: u64,
    pub host_bytes: u64,
    pub streamed_bytes: u64,
    /// Used by the CPU where the page cache has it.
    pub mapped_bytes: u64,
}

/// One pass over all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct PassReport {
    pub seconds: f64,
    /// The bytes of all weights, over the time.
    pub gib_per_s: f64,
    /// Bytes that were read, alignment included.
    pub read_bytes: u64,
    /// Bytes that came to the device.
    pub uploaded_bytes: u64,
    /// Time in which the caller waited for a layer.
    pub compute_waited_s: f64,
    /// Time in which layers were on their way and nothing of them was there to upload.
    pub upload_waited_s: f64,
    /// Time in which there was room for no read: no bay free on the device, or no slot.
    pub read_waited_s: f64,
}

/// A stream from its begin to its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct StreamReport {
    pub device: String,
    pub layers: usize,
    pub vram_budget: u64,
    pub host_budget: u64,
    pub tiers: TierBytes,
    /// Layers that can be on their way or in use at a time, beside those that stay.
    pub depth: usize,
    /// Memory that staging and the host tier take.
    pub host_memory_bytes: u64,
    pub why: Vec<String>,
    pub passes: Vec<PassReport>,
    pub fallbacks: Vec<FallbackReport>,
}

//! What the driver saw: plain data, written by the driver and read by tests.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Everything the driver counted since the process began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Calls of each entry point.
    pub calls: BTreeMap<String, u64>,
    /// By ordinal.
    pub devices: Vec<DeviceReport>,
    /// Host memory that is registered now.
    pub registered: Held,
    /// Host memory that the driver allocated and that has not been freed.
    pub host_allocations: Held,
    /// Handles and descriptors of cuBLASLt that were created and not destroyed.
    pub cublaslt_objects: u64,
    /// What a caller must not do, by kind: `source-changed`, `unregister-in-flight`,
    /// `free-in-flight`, `double-free`, `leak`, `kernel-fault`,
    /// `cublaslt`.
    pub violations: BTreeMap<String, u64>,
    /// The first violations in words.
    pub violation_messages: Vec<String>,
}

/// What happened on one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Host to device.
    pub upload: Traffic,
    /// Device to host.
    pub download: Traffic,
    /// Within the device, and from other devices.
    pub on_device: Traffic,
    /// Copies that were asked for and not done, at most at any time.
    pub copies_in_flight_max: u64,
    /// Copies that were not performed, since an earlier operation had failed.
    pub copies_dropped: u64,
    /// Kernels that began.
    pub launches: u64,
    /// Instructions of kernels that ended well, counted for each lane that took part.
    pub lane_instructions: u64,
    /// Device memory that is allocated now.
    pub memory: Held,
    /// The most device memory that was allocated at any time.
    pub memory_bytes_max: u64,
    /// Streams that were created and not destroyed.
    pub streams: u64,
    /// Events that were created and not destroyed.
    pub events: u64,
    /// How often the primary context is retained.
    pub contexts_retained: u64,
    /// The code of the asynchronous error that the context is in.
    pub asynchronous_error: Option<u32>,
}

/// Copies that were performed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Memory that somebody still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many pieces.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Report {
    /// Reads what a child left in the file named to it by [`crate::Emulator::report_to`].
    ///
    /// # Errors
    /// If there is no such file (the child made no call of the driver, or died of a signal), or it
    /// is not a report.
    pub fn read(path: impl AsRef<Path>) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// How often an entry point was called.
    #[must_use]
    pub fn calls_of(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }

    /// How many violations of a kind there were.
    #[must_use]
    pub fn violations_of(&self, kind: &str) -> u64 {
        self.violations.get(kind).copied().unwrap_or(0)
    }

    /// All violations together.
    #[must_use]
    pub fn violation_count(&self) -> u64 {
        self.violations.values().sum()
    }
}

//! What is known of a device.

use super::choice::Operand;
use std::fmt;

/// The link between a device and the machine, as sysfs tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcieLink {
    /// What it runs at now, for example `16.0 GT/s PCIe`. An idle link may run slower than it can.
    pub speed: String,
    /// Lanes in use.
    pub width: String,
    /// The most that both ends can.
    pub max_speed: String,
    /// The most lanes.
    pub max_width: String,
}

impl fmt::Display for PcieLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { speed, width, max_speed, max_width } = self;
        write!(f, "{speed} x{width} (at most {max_speed} x{max_width})")
    }
}

/// A CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number.
    pub ordinal: u32,
    /// What its maker calls it.
    pub name: String,
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
    /// Where on the PCI bus, as sysfs spells it.
    pub pci_bus_id: Option<String>,
    /// The NUMA node that it hangs on, where the machine has several.
    pub numa_node: Option<u32>,
    /// How it is connected, where sysfs tells.
    pub link: Option<PcieLink>,
    /// Whether it computes in the machine's own memory.
    pub is_integrated: bool,
    /// Whether it can read memory that nobody registered.
    pub reads_pageable_memory: bool,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Whether it is the tests' emulation.
    pub is_emulated: bool,
}

/// The most that a device multiplies and adds.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixCeiling {
    /// The numbers it was given.
    pub operand: Operand,
    /// Multiplications and additions a second.
    pub operations_per_s: f64,
    /// What was measured with.
    pub by: String,
}

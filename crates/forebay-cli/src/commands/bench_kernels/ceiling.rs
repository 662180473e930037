//! What a device gives at most, measured in the same run as its products.

use crate::commands::bench::median;
use crate::failure::Failure;
use forebay::{ComputeStream, DeviceContext, DeviceFloats, DeviceOperand, Error, KernelChoice};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Numbers that a copy within a device's memory moves: more bytes than any cache has. And on an
/// interpreter.
const FLUSH_FLOATS: (usize, usize) = (64 << 20, 1 << 20);
/// Up to so many inputs, memory counts for more than arithmetic, whatever its rate.
const MEMORY_BOUND_BATCH: usize = 8;
/// Rows, columns and inputs of the product that arithmetic is measured by; and on an interpreter.
const CEILING_SIZE: (u32, u32) = (8192, 128);

/// What the device gives at most, measured beside the products.
#[derive(Serialize)]
pub(super) struct Ceiling {
    /// Of its memory: bytes read and written by a copy within it.
    pub(super) bytes_per_s: f64,
    /// Of its arithmetic: multiplications and additions a second, by the type of the operands.
    pub(super) flops: BTreeMap<&'static str, f64>,
    /// What those were measured with.
    pub(super) flops_by: Vec<String>,
}

/// What a product can't be faster than.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Bound {
    /// Weights have to be read.
    Memory,
    /// Numbers have to be multiplied and added.
    Matrix,
}

impl Ceiling {
    /// Measures the device of the context, or the machine's memory.
    pub(super) fn measure(
        context: Option<&Arc<DeviceContext>>,
        is_emulated: bool,
        repeat: u32,
    ) -> Result<Self, Failure> {
        let (mut flops, mut flops_by) = (BTreeMap::new(), Vec::new());
        let Some(context) = context else {
            return Ok(Self { bytes_per_s: of_host(repeat), flops, flops_by });
        };
        let bytes_per_s = of_memory(context, is_emulated, repeat)?;
        let size = if is_emulated { CEILING_SIZE.1 } else { CEILING_SIZE.0 };
        for operand in DeviceOperand::ALL {
            let measured = forebay::matrix_ceiling(context, operand, size, repeat);
            let Some(measured) = measured.map_err(Error::from)? else { continue };
            flops.insert(operand.name(), measured.operations_per_s);
            if !flops_by.contains(&measured.by) {
                flops_by.push(measured.by);
            }
        }
        Ok(Self { bytes_per_s, flops, flops_by })
    }

    /// The ceiling that is reached first, and the share of it that a product makes; none where a
    /// product of many inputs is made of operands whose rate is not known.
    pub(super) fn share(
        &self,
        choice: Option<&KernelChoice>,
        batch: usize,
        weight_bytes_per_s: f64,
        flops: f64,
    ) -> Option<(Bound, f64)> {
        let of_memory = weight_bytes_per_s / self.bytes_per_s;
        match choice.and_then(|choice| self.flops.get(choice.inputs())) {
            Some(rate) if flops / rate > of_memory => Some((Bound::Matrix, flops / rate)),
            None if batch > MEMORY_BOUND_BATCH => None,
            _ => Some((Bound::Memory, of_memory)),
        }
    }
}

/// Bytes read and written a second by a copy within the machine's memory.
fn of_host(repeat: u32) -> f64 {
    let from = vec![1.0_f32; FLUSH_FLOATS.0];
    let mut to = vec![0.0_f32; FLUSH_FLOATS.0];
    let copies = (0..=repeat).map(|_| {
        let started = Instant::now();
        to.copy_from_slice(&from);
        started.elapsed().as_secs_f64()
    });
    moved(FLUSH_FLOATS.0) / median(copies.collect())
}

/// The same within a device's.
fn of_memory(context: &Arc<DeviceContext>, is_emulated: bool, repeat: u32) -> Result<f64, Failure> {
    let Flush { from, mut to } = Flush::new(context, is_emulated)?;
    let mut stream = ComputeStream::new(context).map_err(Error::from)?;
    let mut seconds = Vec::new();
    for _ in 0..=repeat {
        let took = stream.time(|stream| stream.copy(&from, &mut to)).map_err(Error::from)?;
        seconds.push(took.as_secs_f64());
    }
    Ok(moved(from.len()) / median(seconds))
}

/// Bytes that a copy of so many numbers reads and writes.
#[allow(clippy::cast_precision_loss, reason = "for a rate")]
fn moved(floats: usize) -> f64 {
    8.0 * floats as f64
}

/// Two stretches of a device's memory, each larger than its caches.
pub(super) struct Flush {
    pub(super) from: DeviceFloats,
    pub(super) to: DeviceFloats,
}

impl Flush {
    pub(super) fn new(context: &Arc<DeviceContext>, is_emulated: bool) -> Result<Self, Failure> {
        let floats = if is_emulated { FLUSH_FLOATS.1 } else { FLUSH_FLOATS.0 };
        let make = || DeviceFloats::new(context, floats).map_err(Error::from);
        Ok(Self { from: make()?, to: make()? })
    }
}

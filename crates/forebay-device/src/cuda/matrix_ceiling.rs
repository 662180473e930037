//! The most that a device multiplies and adds: one large product by cuBLASLt where it is installed,
//! else arithmetic on registers alone.

use super::choice::Operand;
use super::compute::ComputeStream;
use super::context::Context;
use super::cublaslt::Shape;
use super::dense::stride;
use super::info::MatrixCeiling;
use super::kernels;
use super::operands::DeviceFloats;
use crate::error::DeviceError;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// Threads of a block of the kernels in `kernels/ceiling.cu`.
const THREADS: u32 = 256;
/// Multiply-adds of such a block in a step: in `f32`, and by tensor cores.
const BLOCK_STEP: (f64, f64) = (256.0 * 128.0, 8.0 * 8.0 * 16.0 * 8.0 * 16.0);

/// Measures what a device makes of these operands at most, beside nothing else: the median of
/// `repeat` runs behind a first one that does not count. `size` is rows, columns and inputs of the
/// product, a multiple of 128; 8192 keeps a large GPU busy for a millisecond or more. `None` where
/// no kernel of ours takes such operands.
///
/// # Panics
/// If `size` is no multiple of 128.
///
/// # Errors
/// What the driver or cuBLASLt answers.
pub fn matrix_ceiling(
    context: &Arc<Context>,
    operand: Operand,
    size: u32,
    repeat: u32,
) -> Result<Option<MatrixCeiling>, DeviceError> {
    assert!(size > 0 && size.is_multiple_of(128), "{size} is no multiple of 128");
    let dtype = operand.dtype();
    let mut stream = ComputeStream::new(context)?;
    let ours = stream.choose_kernel(dtype, size as usize);
    if ours.is_none_or(|choice| choice.inputs() != operand.name()) {
        return Ok(None);
    }
    match by_library(&mut stream, operand, size, repeat)? {
        Some(ceiling) => Ok(Some(ceiling)),
        None => by_registers(&mut stream, operand, size, repeat).map(Some),
    }
}

/// A matrix times its own transpose; rounding it is not counted.
fn by_library(
    stream: &mut ComputeStream,
    operand: Operand,
    size: u32,
    repeat: u32,
) -> Result<Option<MatrixCeiling>, DeviceError> {
    let context = Arc::clone(stream.context());
    let Ok(library) = context.cublaslt() else { return Ok(None) };
    let elements = size as usize * size as usize;
    let mut numbers = DeviceFloats::new(&context, elements)?;
    let y = DeviceFloats::new(&context, elements)?;
    stream.upload(&scattered(elements), &mut numbers)?;
    let is_rounded = operand != Operand::F32;
    if is_rounded {
        stream.make_rounding_room(size, size)?;
    }
    stream.keep([numbers.owner(), y.owner()])?;
    let x = match is_rounded {
        true => stream.round(operand.name(), &numbers, size, size)?,
        false => numbers.address(),
    };
    let shape = Shape::new(operand, (size, size), size, stride(operand, size), x);
    let Ok(plan) = library.plan(&context, shape) else { return Ok(None) };
    if !stream.make_room_for(&plan)? {
        return Ok(None);
    }
    let seconds = median(stream, repeat, |stream| {
        // SAFETY: the matrix has `size` rows of `size` elements, and so have the outputs; the
        // stream keeps both.
        unsafe { stream.queue_by_library(&plan, [x, x, y.address()]) }
    })?;
    let (major, minor) = plan.version();
    let operations = 2.0 * f64::from(size).powi(3);
    let by = format!("cuBLASLt {major}.{minor}, {size} x {size} x {size}");
    Ok(Some(MatrixCeiling { operand, operations_per_s: operations / seconds, by }))
}

/// As many blocks that there is no telling the last ones from the rest.
fn by_registers(
    stream: &mut ComputeStream,
    operand: Operand,
    size: u32,
    repeat: u32,
) -> Result<MatrixCeiling, DeviceError> {
    let (blocks, steps) = (size * (size / 128) / 16, size / 32);
    let (entry, capability, block_step) = match operand {
        Operand::F32 => ("ceiling_f32", 75, BLOCK_STEP.0),
        Operand::F16 => ("ceiling_f16", 80, BLOCK_STEP.1),
        Operand::Bf16 => ("ceiling_bf16", 80, BLOCK_STEP.1),
    };
    let ptx = kernels::ceiling_module(capability);
    let function = stream.context().function(ptx, entry, 0)?;
    let sums = DeviceFloats::new(stream.context(), blocks as usize * THREADS as usize)?;
    stream.keep([sums.owner()])?;
    let seconds = median(stream, repeat, |stream| {
        let (mut to, mut steps) = (sums.address(), steps);
        let mut parameters: [*mut c_void; 2] = [(&raw mut to).cast(), (&raw mut steps).cast()];
        // SAFETY: the parameters are those of these kernels; there is a place for every thread's
        // sum, which the stream keeps.
        unsafe { stream.launch(function, (blocks, 1), THREADS, 0, &mut parameters) }
    })?;
    let operations = 2.0 * block_step * f64::from(blocks) * f64::from(steps);
    let by = format!("{entry}, on registers");
    Ok(MatrixCeiling { operand, operations_per_s: operations / seconds, by })
}

/// Seconds of a run.
fn median(
    stream: &mut ComputeStream,
    repeat: u32,
    mut run: impl FnMut(&mut ComputeStream) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    stream.time(&mut run)?;
    let mut times = Vec::new();
    for _ in 0..repeat.max(1) {
        times.push(stream.time(&mut run)?);
    }
    times.sort_unstable();
    // A clock may not have moved on.
    Ok(times[times.len() / 2].max(Duration::from_nanos(1)).as_secs_f64())
}

/// Numbers from -1 to 1 without a pattern: constant ones would take less power.
#[allow(clippy::cast_precision_loss, reason = "numbers of 24 bits")]
fn scattered(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

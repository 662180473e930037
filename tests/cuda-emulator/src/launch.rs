//! Launches: checked and copied when they are asked for, performed in the stream's order.

use crate::driver::driver;
use crate::error::{Answer, Code};
use crate::kernel_memory::KernelMemory;
use crate::modules::Function;
use forebay_ptx::{Entry, FaultKind, Limits};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many threads a launch has, and how much shared memory beside what the kernel declares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaunchShape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
}

/// A launch that waits for its turn.
pub(crate) struct Launch {
    function: Arc<Function>,
    shape: LaunchShape,
    parameters: Vec<u8>,
    /// The code with which it was told to fail.
    fault: Option<Code>,
}

const GRID_MAX: [u32; 3] = [i32::MAX.cast_unsigned(), 65535, 65535];
const BLOCK_MAX: [u32; 3] = [1024, 1024, 64];

impl Launch {
    /// Checks the shape and copies the parameters.
    ///
    /// # Safety
    /// `arguments` is null or one address a parameter, of as many bytes as the parameter has.
    pub(crate) unsafe fn ask(
        function: Arc<Function>,
        shape: LaunchShape,
        arguments: *const *const c_void,
    ) -> Answer<Self> {
        if let Err(reason) = check(&function, shape) {
            let name = &function.entry().name;
            eprintln!("[cuda emulator] launch of {name} refused: {reason}");
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's duty.
        let parameters = unsafe { copy_parameters(function.entry(), arguments) }?;
        let fault = driver().behaviour().faults.kernel(function.module.device.ordinal);
        Ok(Self { function, shape, parameters, fault })
    }

    /// Performs it, if nothing has failed before it.
    pub(crate) fn perform(self) {
        let (function, device) = (&self.function, &self.function.module.device);
        if device.check().is_err() {
            return;
        }
        if let Some(code) = self.fault {
            return device.fail(code, "a kernel that was told to fail");
        }
        let config = &driver().behaviour().config;
        let mut limits = Limits {
            warp_instructions_max: config.warp_instructions_max,
            shared_bytes_max: function.multiprocessor().shared_bytes_of_block,
            detect_races: config.races,
            ..Limits::default()
        };
        if config.workers > 0 {
            limits.threads = config.workers;
        }
        device.launches.fetch_add(1, Ordering::Relaxed);
        let LaunchShape { grid, block, shared_bytes } = self.shape;
        let memory = KernelMemory::of(device);
        let (name, parameters) = (&function.entry().name, &self.parameters);
        let ptx = &function.module.ptx;
        match ptx.launch(name, grid, block, shared_bytes, parameters, &memory, &limits) {
            Ok(stats) => {
                device.lane_instructions.fetch_add(stats.lane_instructions, Ordering::Relaxed);
            }
            Err(fault) => {
                let ordinal = device.ordinal;
                driver().violation("kernel-fault", format!("device {ordinal}: {fault}"));
                device.fail(code_of(&fault.kind), "a kernel failed");
            }
        }
    }
}

/// What hardware and driver refuse before anything runs.
fn check(function: &Function, shape: LaunchShape) -> Result<(), String> {
    let LaunchShape { grid, block, shared_bytes } = shape;
    let is_within = |shape: [u32; 3], max: [u32; 3]| {
        shape.iter().zip(max).all(|(count, max)| (1..=max).contains(count))
    };
    if !is_within(grid, GRID_MAX) {
        return Err(format!("a grid of {grid:?} blocks, of 1 to {GRID_MAX:?}"));
    }
    if !is_within(block, BLOCK_MAX) {
        return Err(format!("a block of {block:?} threads, of 1 to {BLOCK_MAX:?}"));
    }
    let (threads, threads_max) = (block.iter().product::<u32>(), function.threads_max());
    if threads > threads_max {
        return Err(format!("a block of {threads} threads, of at most {threads_max}"));
    }
    if let Some(required) = function.entry().block_required.filter(|required| *required != block) {
        return Err(format!("a block of {block:?} threads, which must be {required:?}"));
    }
    let shared_bytes_max = function.dynamic_shared_max();
    if shared_bytes > shared_bytes_max {
        return Err(format!(
            "{shared_bytes} bytes of shared memory, of at most {shared_bytes_max}"
        ));
    }
    Ok(())
}

/// # Safety
/// As for [`Launch::ask`].
unsafe fn copy_parameters(entry: &Entry, arguments: *const *const c_void) -> Answer<Vec<u8>> {
    let mut bytes = vec![0; entry.parameter_bytes];
    if entry.parameters.is_empty() {
        return Ok(bytes);
    }
    if arguments.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller owes an address for each parameter, until the launch has been asked for.
    let arguments = unsafe { std::slice::from_raw_parts(arguments, entry.parameters.len()) };
    for (parameter, argument) in entry.parameters.iter().zip(arguments) {
        if argument.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller owes as many bytes as the kernel says, until then.
        let argument = unsafe { std::slice::from_raw_parts(argument.cast(), parameter.bytes) };
        bytes[parameter.offset..][..parameter.bytes].copy_from_slice(argument);
    }
    Ok(bytes)
}

/// What a device answers after such a fault.
fn code_of(kind: &FaultKind) -> Code {
    match kind {
        FaultKind::OutOfBounds { .. } | FaultKind::ReadOnly(_) => Code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned { .. } => Code::MISALIGNED_ADDRESS,
        FaultKind::InstructionLimit(_) | FaultKind::Deadlock(_) => Code::LAUNCH_TIMEOUT,
        _ => Code::LAUNCH_FAILED,
    }
}

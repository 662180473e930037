//! Running: a launch is blocks on threads, a block is warps in turn, a warp is 32 lanes.
#![allow(clippy::cast_possible_truncation, reason = "a register's low bits are its value")]

mod access;
mod atomic;
mod barrier;
mod block;
mod collective;
mod copies;
mod execute;
mod matrix;
mod races;
mod special;
mod warp;

use crate::error::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::{Entry, Module};
use block::Block;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// What a launch may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Threads of this machine that run blocks, at least 1.
    pub threads: usize,
    /// Instructions of one warp, before it is taken for an endless loop.
    pub warp_instructions_max: u64,
    /// Shared memory of a block, static and dynamic, in bytes.
    pub shared_bytes_max: u32,
    /// Whether to look for races in shared memory between warps. Several times slower, and about
    /// forty bytes of memory for each byte of shared memory.
    pub detect_races: bool,
}

impl Default for Limits {
    /// All cores, 2^28 instructions a warp, 227 KiB of shared memory as on sm_90, no races.
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            warp_instructions_max: 1 << 28,
            shared_bytes_max: 227 << 10,
            detect_races: false,
        }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Blocks that ran.
    pub blocks: u64,
    /// Instructions that warps ran.
    pub warp_instructions: u64,
    /// The same, counted once for each lane that took part.
    pub lane_instructions: u64,
}

#[derive(Clone, Copy)]
pub(crate) struct Launch<'launch> {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) parameters: &'launch [u8],
    pub(crate) memory: &'launch dyn Memory,
    pub(crate) limits: &'launch Limits,
}

/// What all blocks of a launch read.
#[derive(Clone, Copy)]
struct Context<'launch> {
    module: &'launch Module,
    entry: &'launch Entry,
    launch: Launch<'launch>,
    threads: u32,
    /// Where dynamic shared memory begins.
    dynamic_start: u32,
    shared_bytes: u32,
}

pub(crate) fn launch(module: &Module, name: &str, launch: Launch<'_>) -> Result<Stats, Fault> {
    let refuse = |cause: String| Fault {
        kind: FaultKind::Launch(cause),
        entry: name.into(),
        line: 0,
        instruction: Box::default(),
        at: None,
    };
    let Some(entry) = module.entry(name) else {
        return Err(refuse("the module has no such entry".into()));
    };
    let context = context(module, entry, launch).map_err(refuse)?;
    let blocks: u64 = launch.grid.iter().map(|extent| u64::from(*extent)).product();
    let next = AtomicU64::new(0);
    let fault: Mutex<Option<(u64, Fault)>> = Mutex::new(None);
    let total = Mutex::new(Stats::default());
    let work = || {
        let mut block = Block::new(&context);
        loop {
            let index = next.fetch_add(1, Relaxed);
            if index >= blocks {
                break;
            }
            if let Err(error) = block.run(index) {
                // No block begins after a fault; of those under way, the first in order tells.
                next.store(blocks, Relaxed);
                let mut first = fault.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(other, _)| index < *other) {
                    *first = Some((index, *error));
                }
            }
        }
        let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
        total.blocks += block.state.stats.blocks;
        total.warp_instructions += block.state.stats.warp_instructions;
        total.lane_instructions += block.state.stats.lane_instructions;
    };
    let wanted = usize::try_from(blocks).unwrap_or(usize::MAX);
    let threads = launch.limits.threads.min(wanted).max(1);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, fault)) => Err(fault),
        None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The checks that a driver makes before anything runs.
fn context<'launch>(
    module: &'launch Module,
    entry: &'launch Entry,
    launch: Launch<'launch>,
) -> Result<Context<'launch>, String> {
    let Launch { grid, block, dynamic_shared_bytes, parameters, limits, .. } = launch;
    let threads: u64 = block.iter().map(|extent| u64::from(*extent)).product();
    if threads == 0 || grid.contains(&0) {
        return Err(format!("grid {grid:?} of blocks {block:?} is empty"));
    }
    if threads > 1024 || block[0] > 1024 || block[1] > 1024 || block[2] > 64 {
        return Err(format!("a block of {block:?} threads: 1024 are allowed, 64 in z"));
    }
    if grid[0] > 0x7FFF_FFFF || grid[1] > 65535 || grid[2] > 65535 {
        return Err(format!("a grid of {grid:?} blocks: 2^31 - 1, 65535, 65535 are allowed"));
    }
    if let Some(required) = entry.block_required
        && required != block
    {
        return Err(format!("a block of {block:?} threads, but .reqntid says {required:?}"));
    }
    if let Some(max) = entry.block_max {
        let allowed: u64 = max.iter().map(|extent| u64::from(*extent)).product();
        if threads > allowed {
            return Err(format!("a block of {threads} threads, but .maxntid says {allowed}"));
        }
    }
    if parameters.len() != entry.parameter_bytes {
        let (given, wanted) = (parameters.len(), entry.parameter_bytes);
        return Err(format!("{given} bytes of parameters, but the kernel takes {wanted}"));
    }
    let dynamic_start = entry.shared_bytes.next_multiple_of(16);
    let shared_bytes = if dynamic_shared_bytes == 0 {
        entry.shared_bytes
    } else {
        dynamic_start.saturating_add(dynamic_shared_bytes)
    };
    if shared_bytes > limits.shared_bytes_max {
        let max = limits.shared_bytes_max;
        return Err(format!("{shared_bytes} bytes of shared memory, but {max} are allowed"));
    }
    let threads = u32::try_from(threads).unwrap_or(1024);
    Ok(Context { module, entry, launch, threads, dynamic_start, shared_bytes })
}

//! Special registers that stay the same while a thread runs.

use super::Context;
use crate::numeric::lane::LANES;
use crate::program::Special;

/// What a lane of a warp of the block at `block` reads.
pub(super) fn special_value(
    special: Special,
    context: &Context<'_>,
    block: [u32; 3],
    warp: u32,
    lane: u32,
) -> u32 {
    let shape = context.launch.block;
    let linear = warp * LANES as u32 + lane;
    let below = (1_u32 << lane) - 1;
    match special {
        Special::Thread(0) => linear % shape[0],
        Special::Thread(1) => linear / shape[0] % shape[1],
        Special::Thread(_) => linear / shape[0] / shape[1],
        Special::BlockShape(axis) => shape[axis],
        Special::Block(axis) => block[axis],
        Special::GridShape(axis) => context.launch.grid[axis],
        Special::Lane => lane,
        Special::Warp => warp,
        Special::Warps => context.threads.div_ceil(LANES as u32),
        Special::LanesEqual => 1 << lane,
        Special::LanesLess => below,
        Special::LanesLessOrEqual => below | 1 << lane,
        Special::LanesGreater => !(below | 1 << lane),
        Special::LanesGreaterOrEqual => !below,
        Special::DynamicShared => context.dynamic_start,
        Special::DynamicSharedBytes => context.launch.dynamic_shared_bytes,
        Special::SharedBytes => context.shared_bytes,
        Special::Zero => 0,
        Special::One => 1,
    }
}

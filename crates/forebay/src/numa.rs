//! On which NUMA nodes a load's memory lies.

use forebay_device::HostArena;
use forebay_mem::Region;
use forebay_mem::numa::{NumaPolicy, ThreadPolicy};
use std::sync::Arc;

/// Places the memory of a load before it has pages. What is refused stays where the system puts
/// it, and is told. Pages of files are placed only where a thread of ours reads them.
pub(crate) fn place(
    policy: NumaPolicy,
    arenas: &[Arc<HostArena>],
    slab: Option<&Region>,
    own_reader: bool,
) -> Vec<String> {
    if policy == NumaPolicy::Off {
        return Vec::new();
    }
    let mut told: Vec<String> = arenas
        .iter()
        .filter_map(|arena| arena.region().map(|region| &**region))
        .chain(slab)
        .map(|region| placed(region, policy))
        .collect();
    if own_reader {
        told.push(page_cache(policy));
    }
    told.dedup();
    told
}

/// Places memory before it has pages, and says what came of it.
pub(crate) fn placed(region: &Region, policy: NumaPolicy) -> String {
    match region.place_on(policy) {
        Ok(placed) => format!("memory: {placed}"),
        Err(error) => format!("memory could not be placed: {error}"),
    }
}

/// What becomes of pages of files that a thread of ours brings in.
fn page_cache(policy: NumaPolicy) -> String {
    match ThreadPolicy::set(policy) {
        Ok(guard) => format!("page cache: {}", guard.placed()),
        Err(error) => format!("page cache could not be placed: {error}"),
    }
}

/// Makes pages that this thread, and those it starts, bring in come from the policy's nodes.
pub(crate) fn of_this_thread(policy: NumaPolicy) -> Option<ThreadPolicy> {
    // A refusal was told by `place`.
    ThreadPolicy::set(policy).ok()
}

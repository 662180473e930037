//! Where pages really are.

use super::{NumaError, kernel};
use crate::align::page_bytes;
use std::collections::BTreeMap;

/// Asked about in one system call.
const BATCH_PAGES: usize = 1024;
/// Asked about in one range: every page of 256 MiB, a sample of more.
const SAMPLES_MAX: usize = 1 << 16;

/// How many bytes of the range lie on which node, in whole pages. A page that this process's page
/// table does not have (never touched, or a file's page that no access to the mapping has brought
/// in) counts nowhere. It changes nothing and touches no byte, so any range may be asked about.
///
/// Some kernels (seen on Linux 6.1) hide pages that automatic NUMA balancing has marked to see who
/// touches them next; these count nowhere either. It marks no range that was placed.
///
/// Exact up to 65,536 pages. A longer range is cut into that many stretches of equal length, and
/// one page drawn from each speaks for its stretch.
///
/// # Errors
/// What `move_pages` answers: `EPERM` or `ENOSYS` in containers.
pub fn pages_by_node(address: *const u8, bytes: usize) -> Result<BTreeMap<u32, u64>, NumaError> {
    sampled(address, bytes, SAMPLES_MAX)
}

fn sampled(
    address: *const u8,
    bytes: usize,
    samples_max: usize,
) -> Result<BTreeMap<u32, u64>, NumaError> {
    let page = page_bytes();
    let start = address.map_addr(|address| address / page * page);
    let pages = (address.addr() - start.addr() + bytes).div_ceil(page);
    let samples = pages.min(samples_max);
    let mut found = BTreeMap::new();
    for first in (0..samples).step_by(BATCH_PAGES) {
        let stretches = first..samples.min(first + BATCH_PAGES);
        let addresses: Vec<*const u8> = (stretches.clone())
            .map(|stretch| start.wrapping_add(drawn(stretch, samples, pages) * page))
            .collect();
        let mut status = vec![0; addresses.len()];
        kernel::nodes_of(&addresses, &mut status)?;
        for (stretch, status) in stretches.zip(status) {
            // A negative status is an errno: there is no page.
            if let Ok(node) = u32::try_from(status) {
                let pages = bound(stretch + 1, samples, pages) - bound(stretch, samples, pages);
                *found.entry(node).or_default() += (pages * page) as u64;
            }
        }
    }
    Ok(found)
}

/// The first page of a stretch, one of `samples` among `pages`.
fn bound(stretch: usize, samples: usize, pages: usize) -> usize {
    stretch * (pages / samples) + stretch.min(pages % samples)
}

/// The page that speaks for a stretch: always the same one, but at another distance from the
/// start of each, since pages in turns on the nodes would all answer alike at a regular distance.
fn drawn(stretch: usize, samples: usize, pages: usize) -> usize {
    let first = bound(stretch, samples, pages);
    let length = bound(stretch + 1, samples, pages) - first;
    // Fibonacci hashing: the high bits of a multiple of 2^64 / φ are spread evenly.
    let spread = (stretch as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    #[allow(clippy::cast_possible_truncation, reason = "32 bits are left")]
    let spread = spread as usize;
    first + spread % length
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;
    use crate::numa::nodes;

    #[test]
    fn stretches_tile_the_range_and_speak_for_pages_in_turns() {
        let (samples, pages) = (1000, 4 * 1000 + 123);
        let ends: Vec<usize> = (0..=samples).map(|at| bound(at, samples, pages)).collect();
        assert_eq!((ends[0], ends[samples]), (0, pages));
        let mut in_turns = [0; 4];
        for stretch in 0..samples {
            let page = drawn(stretch, samples, pages);
            assert!((ends[stretch]..ends[stretch + 1]).contains(&page));
            in_turns[page % 4] += 1;
        }
        assert!(in_turns.iter().all(|count| (200..300).contains(count)), "{in_turns:?}");
    }

    #[test]
    fn counts_pages_once_they_are_touched() {
        let region = Region::new(1 << 20).unwrap();
        let page = page_bytes();
        let count = |at: usize, bytes| pages_by_node(region.at(at), bytes);
        let untouched = match count(0, region.bytes()) {
            Ok(found) => found,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        assert!(untouched.is_empty(), "{untouched:?}");
        // SAFETY: a byte in the fourth page of a region that this test owns alone.
        unsafe { region.at(3 * page).write(1) };
        let fourth = count(4 * page - 1, 1).unwrap();
        assert_eq!(fourth.values().sum::<u64>(), page as u64);
        let node = fourth.keys().next();
        assert!(nodes().iter().any(|one| Some(&one.id) == node), "{fourth:?}");
    }

    #[test]
    fn a_sample_speaks_for_the_whole_range() {
        let region = Region::new(16 << 20).unwrap();
        region.populate(0..region.bytes()).unwrap();
        match sampled(region.start(), region.bytes(), 1000) {
            Ok(found) => assert_eq!(found.values().sum::<u64>(), region.bytes() as u64),
            Err(error) => eprintln!("SKIPPED: {error}"),
        }
    }
}

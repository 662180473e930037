//! What becomes of the tensors that stay in their mapping: brought in, in which order, or not.

use super::build::Builder;
use super::{Home, Plan};
use crate::mode::LoadMode;
use crate::options::Prefetch;
use crate::policy;
use forebay_io::MappedRange;
use forebay_mem::{Alignment, MemoryAtHand, memory_at_hand};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The pages of the mapped tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Residence {
    /// In order of use, whole pages, none twice.
    pub(crate) ranges: Arc<[MappedRange]>,
    /// The tensors in order of use, each with how many bytes of the ranges, counted in their
    /// order, must be there for it to be there.
    pub(crate) tensors: Arc<[(usize, u64)]>,
    /// Whether the load brings them in.
    pub(crate) prefetch: bool,
    /// Whether it locks them.
    pub(crate) lock: bool,
    pub(crate) strict: bool,
}

impl Residence {
    /// Bytes of all ranges.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|it| it.range.end - it.range.start).sum()
    }
}

impl Builder<'_> {
    /// Orders the mapped tensors by use and decides whether they are brought in.
    pub(super) fn plan_residence(&mut self, why: &mut Vec<String>) {
        let mut residence = in_order_of_use(&self.plan);
        if residence.tensors.is_empty() {
            return;
        }
        let is = |mode| self.plan.backends.iter().any(|backend| backend.mode == mode);
        residence.strict = is(LoadMode::MlockStrict);
        residence.lock = residence.strict || is(LoadMode::Mlock);
        let owned = self.plan.host_bytes();
        let (prefetch, reason) =
            choose(self.options.prefetch, residence.bytes(), owned, memory_at_hand());
        residence.prefetch = prefetch;
        why.push(reason);
        if residence.lock {
            let limit = forebay_mem::memlock_limit_bytes();
            let limit = limit.map_or("no limit".to_owned(), |limit| format!("a limit of {limit}"));
            why.push(format!(
                "{} bytes are to be locked, under {limit} (RLIMIT_MEMLOCK)",
                residence.bytes()
            ));
        }
        if residence.lock && !prefetch {
            why.push("what is locked is brought in all the same: that is what locking is".into());
        }
        self.plan.residence = residence;
    }
}

fn choose(
    asked: Prefetch,
    mapped: u64,
    owned: u64,
    at_hand: Option<MemoryAtHand>,
) -> (bool, String) {
    match (asked, at_hand) {
        (Prefetch::On, _) => (true, "mapped tensors are prefetched: asked for".to_owned()),
        (Prefetch::Off, _) => (false, "mapped tensors are not prefetched: asked for".to_owned()),
        (Prefetch::Auto, Some(MemoryAtHand { bytes, by_cgroup }))
            if mapped.saturating_add(owned) > bytes =>
        {
            let whose = if by_cgroup { "the cgroup's limit leaves" } else { "the machine has" };
            let reason = format!(
                "mapped tensors are not prefetched: they take {mapped} bytes, other tensors \
                 {owned}, and {whose} {bytes} at hand; they come as they are touched"
            );
            (false, reason)
        }
        (Prefetch::Auto, _) => {
            (true, "mapped tensors are prefetched in order of use: they fit in memory".to_owned())
        }
    }
}

fn in_order_of_use(plan: &Plan) -> Residence {
    let catalog = plan.model.catalog();
    let mut tensors: Vec<usize> = (0..catalog.tensors().len())
        .filter(|&index| plan.homes[index] == Home::Mapped && catalog.tensors()[index].bytes > 0)
        .collect();
    // Sorting is stable: within a layer, the file's order stays.
    tensors.sort_by_key(|&index| policy::order_of_use(&catalog.tensors()[index].name));
    let mut covered: Vec<Covered> = vec![Covered::default(); plan.files.len()];
    let mut ranges: Vec<MappedRange> = Vec::new();
    let mut position = 0;
    let mut positions = Vec::with_capacity(tensors.len());
    for index in tensors {
        let tensor = &catalog.tensors()[index];
        let file_bytes = plan.model.files()[tensor.file].bytes();
        let pages = Alignment::page().outward(tensor.offset..tensor.end());
        let pages = pages.unwrap_or(tensor.offset..tensor.end());
        for range in covered[tensor.file].add(pages.start..pages.end.min(file_bytes)) {
            position += range.end - range.start;
            match ranges.last_mut() {
                Some(last) if last.file == tensor.file && last.range.end == range.start => {
                    last.range.end = range.end;
                }
                _ => ranges.push(MappedRange { file: tensor.file, range }),
            }
        }
        // What an earlier tensor brought lies before this position too.
        positions.push((index, position));
    }
    Residence { ranges: ranges.into(), tensors: positions.into(), ..Residence::default() }
}

/// Disjoint ranges, by start.
#[derive(Clone, Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Covers `range` and returns the parts of it that were not covered before.
    fn add(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut fresh = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back().filter(|(_, end)| **end >= at);
        let overlapping: Vec<(u64, u64)> = before
            .into_iter()
            .chain(self.0.range(range.start + 1..range.end.max(range.start + 1)))
            .map(|(&start, &end)| (start, end))
            .collect();
        for &(start, end) in &overlapping {
            if start > at {
                fresh.push(at..start.min(range.end));
            }
            at = at.max(end);
        }
        if at < range.end {
            fresh.push(at..range.end);
        }
        // One entry for all that touches, so that no later range meets the same parts again.
        let first = overlapping.first().map_or(range.start, |&(start, _)| start.min(range.start));
        for (start, _) in &overlapping {
            self.0.remove(start);
        }
        self.0.insert(first, at.max(range.end));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(range: &Range<u64>) -> Range<usize> {
        usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
    }

    proptest! {
        #[test]
        fn every_page_is_covered_once(
            asked in prop::collection::vec((0_u64..200, 1_u64..50), 1..40),
        ) {
            let mut covered = Covered::default();
            let mut times = vec![0; 256];
            let mut wanted = vec![false; 256];
            for (start, length) in asked {
                for part in covered.add(start..start + length) {
                    pages(&part).for_each(|page| times[page] += 1);
                }
                pages(&(start..start + length)).for_each(|page| wanted[page] = true);
            }
            for (times, wanted) in times.into_iter().zip(wanted) {
                prop_assert_eq!(times, i32::from(wanted));
            }
        }
    }

    #[test]
    fn a_model_larger_than_memory_is_not_prefetched_unless_asked() {
        let at_hand = |bytes, by_cgroup| Some(MemoryAtHand { bytes, by_cgroup });
        assert!(choose(Prefetch::Auto, 100, 100, at_hand(200, false)).0);
        let (prefetch, why) = choose(Prefetch::Auto, 100, 101, at_hand(200, true));
        assert!(!prefetch && why.contains("cgroup's limit leaves 200"), "{why}");
        assert!(choose(Prefetch::On, 100, 101, at_hand(200, true)).0);
        assert!(!choose(Prefetch::Off, 1, 1, at_hand(200, true)).0);
        assert!(choose(Prefetch::Auto, 1, 1, None).0);
    }
}

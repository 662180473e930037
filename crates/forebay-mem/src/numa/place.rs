//! Placing: an address range for good, a thread's page cache for a while.

use super::kernel::{self, MemoryPolicy};
use super::policy::resolve;
use super::{NumaError, NumaPolicy, Placed};
use crate::align::page_bytes;
use crate::region::Region;
use std::marker::PhantomData;
use std::ops::Range;

impl Region {
    /// Decides on which node pages of this region will lie, whichever thread touches them first.
    /// Pages that are there already stay, so this comes before populating.
    ///
    /// # Errors
    /// [`NumaError`]: no such node, or `EPERM` or `ENOSYS` in a container. The region is as good
    /// as before.
    pub fn place_on(&self, policy: NumaPolicy) -> Result<Placed, NumaError> {
        self.place_range_on(0..self.bytes(), policy)
    }

    /// The same for a part of the region, rounded outward to whole pages.
    ///
    /// # Errors
    /// As [`Region::place_on`].
    pub fn place_range_on(
        &self,
        range: Range<usize>,
        policy: NumaPolicy,
    ) -> Result<Placed, NumaError> {
        let placed = resolve(policy)?;
        if let Some(policy) = placed.memory_policy()? {
            let start = range.start / page_bytes() * page_bytes();
            let end = range.end.min(self.bytes());
            kernel::bind(self.at(start), end.saturating_sub(start), &policy)?;
        }
        Ok(placed)
    }
}

/// For as long as it lives, pages that the calling thread brings in come from the nodes of a
/// policy: pages of files, and anonymous memory that has no policy of its own. Dropping it brings
/// back the policy from before, so guards of one thread go in the reverse order of their coming.
#[derive(Debug)]
#[must_use = "the policy ends when this is dropped"]
pub struct ThreadPolicy {
    placed: Placed,
    previous: Option<MemoryPolicy>,
    /// The policy belongs to one thread, so its guard stays there.
    not_send: PhantomData<*const ()>,
}

impl ThreadPolicy {
    /// Sets the policy of the calling thread. Threads that it starts inherit it and keep it.
    ///
    /// # Errors
    /// [`NumaError`]: no such node, or `EPERM` or `ENOSYS` in a container. The thread's policy is
    /// then as before.
    pub fn set(policy: NumaPolicy) -> Result<Self, NumaError> {
        let placed = resolve(policy)?;
        let mut previous = None;
        if let Some(policy) = placed.memory_policy()? {
            previous = Some(kernel::thread_policy()?);
            kernel::set_thread_policy(&policy)?;
        }
        Ok(Self { placed, previous, not_send: PhantomData })
    }

    /// What the policy came to.
    #[must_use]
    pub fn placed(&self) -> &Placed {
        &self.placed
    }
}

impl Drop for ThreadPolicy {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            // The kernel named this policy itself. Should it be refused all the same (a cpuset
            // that has changed), pages come from other nodes, which is all that a policy is for.
            let _ = kernel::set_thread_policy(previous);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa::nodes;

    #[test]
    fn off_asks_nothing_of_anyone() {
        let region = Region::new(1 << 20).unwrap();
        assert_eq!(region.place_on(NumaPolicy::Off), Ok(Placed::Off));
        assert_eq!(ThreadPolicy::set(NumaPolicy::Off).unwrap().placed(), &Placed::Off);
    }

    #[test]
    fn one_node_is_named_and_left_alone() {
        let nodes = nodes();
        let [only] = nodes.as_slice() else {
            return eprintln!("SKIPPED: several NUMA nodes, which tests/numa.rs is for");
        };
        let region = Region::new(1 << 20).unwrap();
        let node = NumaPolicy::Node(Some(only.id));
        for policy in [NumaPolicy::Node(None), node, NumaPolicy::Interleave] {
            assert_eq!(region.place_on(policy), Ok(Placed::SingleNode(only.id)));
            let guard = ThreadPolicy::set(policy).unwrap();
            assert_eq!((guard.placed(), guard.previous), (&Placed::SingleNode(only.id), None));
        }
    }
}

//! What stays on the device when there is no room for all.

use std::collections::HashMap;
use std::ops::Range;

/// A slice of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The tensor's number in the catalog.
    pub tensor: usize,
    /// Which elements of its outermost dimension.
    pub range: Range<u64>,
}

/// Who goes first. Called under a lock: to be quick, and to call nothing of the fetcher.
pub trait CachePolicy: Send {
    /// It was asked for, there or not.
    fn used(&mut self, piece: &Piece);

    /// Which of these goes; `None` keeps them all. First come those that nobody uses; where they make
    /// no room, those in use are offered too, whose memory comes back when their users are done.
    fn victim(&mut self, candidates: &[Piece]) -> Option<usize>;

    /// It has gone.
    fn evicted(&mut self, piece: &Piece);
}

/// The one that was not asked for for the longest time goes first.
#[derive(Debug, Default)]
pub struct Lru {
    last: HashMap<Piece, u64>,
    clock: u64,
}

impl CachePolicy for Lru {
    fn used(&mut self, piece: &Piece) {
        self.clock += 1;
        self.last.insert(piece.clone(), self.clock);
    }

    fn victim(&mut self, candidates: &[Piece]) -> Option<usize> {
        let last = |&index: &usize| self.last.get(&candidates[index]).copied().unwrap_or(0);
        (0..candidates.len()).min_by_key(last)
    }

    fn evicted(&mut self, piece: &Piece) {
        self.last.remove(piece);
    }
}

/// The one that was asked for least often goes first; of several, the one not asked for for the
/// longest time. How often is remembered of what has gone, too, and halved now and then, so that old
/// fame fades.
#[derive(Debug, Default)]
pub struct Lfu {
    uses: HashMap<Piece, (u64, u64)>,
    clock: u64,
}

/// After so many uses, all counts are halved.
const FADES_AFTER: u64 = 1 << 14;

impl CachePolicy for Lfu {
    fn used(&mut self, piece: &Piece) {
        self.clock += 1;
        if self.clock.is_multiple_of(FADES_AFTER) {
            self.uses.retain(|_, (count, _)| {
                *count /= 2;
                *count > 0
            });
        }
        let (count, last) = self.uses.entry(piece.clone()).or_default();
        *count += 1;
        *last = self.clock;
    }

    fn victim(&mut self, candidates: &[Piece]) -> Option<usize> {
        let uses = |&index: &usize| self.uses.get(&candidates[index]).copied().unwrap_or_default();
        (0..candidates.len()).min_by_key(uses)
    }

    fn evicted(&mut self, _piece: &Piece) {}
}

/// Keeps what it is told to, and leaves the rest to another policy.
pub struct Pinned<Policy> {
    is_pinned: Box<dyn Fn(&Piece) -> bool + Send>,
    rest: Policy,
}

impl<Policy: CachePolicy> Pinned<Policy> {
    /// What `is_pinned` says of never goes.
    #[must_use]
    pub fn new(is_pinned: impl Fn(&Piece) -> bool + Send + 'static, rest: Policy) -> Self {
        Self { is_pinned: Box::new(is_pinned), rest }
    }
}

impl<Policy: CachePolicy> CachePolicy for Pinned<Policy> {
    fn used(&mut self, piece: &Piece) {
        self.rest.used(piece);
    }

    fn victim(&mut self, candidates: &[Piece]) -> Option<usize> {
        let may_go = |&index: &usize| !(self.is_pinned)(&candidates[index]);
        let free: Vec<usize> = (0..candidates.len()).filter(may_go).collect();
        let pieces: Vec<Piece> = free.iter().map(|&index| candidates[index].clone()).collect();
        free.get(self.rest.victim(&pieces)?).copied()
    }

    fn evicted(&mut self, piece: &Piece) {
        self.rest.evicted(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(count: u64) -> Vec<Piece> {
        (0..count).map(|at| Piece { tensor: 7, range: at..at + 1 }).collect()
    }

    #[test]
    fn each_policy_chooses_as_it_says() {
        let pieces = pieces(4);
        let uses = [0, 1, 2, 3, 0, 0, 1, 2];
        let (mut lru, mut lfu) = (Lru::default(), Lfu::default());
        for at in uses {
            lru.used(&pieces[at]);
            lfu.used(&pieces[at]);
        }
        assert_eq!(lru.victim(&pieces), Some(3));
        assert_eq!(lru.victim(&pieces[..3]), Some(0));
        assert_eq!(lfu.victim(&pieces[..3]), Some(1), "twice, and before the other");
        lru.used(&pieces[3]);
        assert_eq!(lru.victim(&pieces), Some(0));
        assert_eq!(lru.victim(&[]), None);
        let mut pinned = Pinned::new(|piece| piece.range.start < 2, lru);
        assert_eq!(pinned.victim(&pieces), Some(2));
        assert_eq!(pinned.victim(&pieces[..2]), None);
    }
}

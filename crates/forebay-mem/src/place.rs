//! A destination that is read straight into.

use crate::region::Region;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use std::ops::Range;

/// The exclusive right to fill a range of a region: what a slot is of a slab, for bytes that need
/// no copy afterwards because they are where they belong. A slot that is aimed at a place
/// ([`crate::Slot::aim`]) lends it its token; the right ends when the slot is released.
#[derive(Debug)]
pub struct Place {
    region: Arc<Region>,
    range: Range<usize>,
    returned: Arc<AtomicBool>,
}

/// Tells when the right to fill a place has ended.
#[derive(Clone, Debug)]
pub struct PlaceWatch(Arc<AtomicBool>);

impl PlaceWatch {
    /// Whether nobody writes to the place any more. Everything written to it is visible then.
    #[must_use]
    pub fn is_returned(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Place {
    /// The right to fill `range` of `region`, and the watch over its end.
    ///
    /// # Safety
    /// - Nobody else reads or writes these bytes until the watch says that the place is returned;
    ///   in particular no two places overlap.
    ///
    /// # Panics
    /// If the range is not inside the region.
    #[must_use]
    pub unsafe fn new(region: &Arc<Region>, range: Range<usize>) -> (Self, PlaceWatch) {
        assert!(range.start <= range.end && range.end <= region.bytes(), "{range:?}");
        let returned = Arc::new(AtomicBool::new(false));
        let watch = PlaceWatch(Arc::clone(&returned));
        (Self { region: Arc::clone(region), range, returned }, watch)
    }

    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.region.at(self.range.start)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.range.len()
    }

    /// Gives the place its pages.
    pub(crate) fn populate(&self) {
        self.region.ensure_populated(&self.range);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.returned.store(true, Ordering::Release);
    }
}

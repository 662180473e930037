//! An arena in ordinary memory, its writer, and the places that reads fill by themselves.

use crate::error::DeviceError;
use crate::pool::Bay;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use forebay_mem::{Alignment, HostPointer, Place, PlaceWatch, Region};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

/// Tensors start at multiples of this, on every device.
pub(crate) const TENSOR_ALIGNMENT: Alignment = match Alignment::new(256) {
    Some(alignment) => alignment,
    None => Alignment::BYTE,
};

/// Where tensors lie in an arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArenaLayout {
    /// The range of each tensor; none overlaps another.
    pub tensors: Vec<Range<u64>>,
    /// The length of the arena.
    pub bytes: u64,
}

impl ArenaLayout {
    /// Tensors of these sizes one behind the other, each at a multiple of 256 bytes.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] if they add up to more than an address space.
    pub fn packed(sizes_bytes: impl IntoIterator<Item = u64>) -> Result<Self, DeviceError> {
        let mut layout = Self::default();
        sizes_bytes.into_iter().try_for_each(|bytes| layout.append(bytes))?;
        Ok(layout)
    }

    /// One more tensor, at a multiple of 256 bytes behind what there is.
    ///
    /// # Errors
    /// As [`ArenaLayout::packed`].
    pub fn append(&mut self, bytes: u64) -> Result<(), DeviceError> {
        let start = TENSOR_ALIGNMENT.up(self.bytes).ok_or(DeviceError::TooLarge)?;
        self.bytes = start.checked_add(bytes).ok_or(DeviceError::TooLarge)?;
        self.tensors.push(start..self.bytes);
        Ok(())
    }

    pub(crate) fn is_disjoint(&self) -> bool {
        let mut ranges: Vec<_> = self.tensors.iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
            && self.tensors.iter().all(|range| range.start <= range.end && range.end <= self.bytes)
    }
}

/// An order of a tensor's bytes other than the file's.
pub trait Arrange: fmt::Debug + Send + Sync {
    /// Puts `bytes`, which begin at `offset` of the tensor as the file has it, where they belong
    /// in the arranged tensor.
    fn scatter(&self, offset: u64, bytes: &[u8], arranged: &mut [u8]);

    /// A range of the arranged tensor that holds all that such a scatter writes.
    fn touched(&self, offset: u64, bytes: u64) -> Range<u64>;
}

#[derive(Debug)]
struct Home {
    region: Arc<Region>,
    /// In the region.
    range: Range<usize>,
    published: AtomicBool,
}

/// Memory for a set of tensors: one huge-page region, a part of one, or what is lent for each.
///
/// A tensor is filled by the arena's one [`HostWriter`], and by reads into the places that it gave
/// out, until it is published, and read by anybody after that, never both.
#[derive(Debug)]
pub struct HostArena {
    /// `None` where each tensor has a region of its own, which is lent.
    region: Option<Arc<Region>>,
    homes: Vec<Home>,
    /// The part of the region that is the arena's, if others have the rest.
    _bay: Option<Bay>,
}

impl HostArena {
    /// Reserves room for tensors laid out so, and the right to fill them.
    ///
    /// # Panics
    /// If tensors of the layout overlap or lie outside of it: the plan would be wrong.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] where the system does not give that much.
    pub fn new(device: &str, layout: &ArenaLayout) -> Result<(Arc<Self>, HostWriter), DeviceError> {
        assert!(layout.is_disjoint(), "tensors of one arena share memory");
        let bytes = usize::try_from(layout.bytes).map_err(|_| DeviceError::TooLarge)?;
        let region = Region::new(bytes).map_err(|source| DeviceError::OutOfMemory {
            device: device.to_owned(),
            needed_bytes: layout.bytes,
            source,
        })?;
        Ok(Self::of(Arc::new(region), None, layout))
    }

    /// Of memory that is lent for each tensor of the layout, and the right to fill it.
    ///
    /// # Panics
    /// If less is lent for a tensor than it has bytes.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] where it is longer than an address space.
    pub fn lent(
        memory: &[HostPointer],
        layout: &ArenaLayout,
    ) -> Result<(Arc<Self>, HostWriter), DeviceError> {
        assert_eq!(memory.len(), layout.tensors.len(), "memory for each tensor");
        let home = |(memory, tensor): (&HostPointer, &Range<u64>)| {
            let bytes = tensor.end - tensor.start;
            let region = Region::lent(memory, bytes).map_err(|_| DeviceError::TooLarge)?;
            let (region, range) = (Arc::new(region), inside(&(0..bytes)));
            Ok(Home { region, range, published: AtomicBool::new(false) })
        };
        let homes = memory.iter().zip(&layout.tensors).map(home);
        let homes = homes.collect::<Result<_, DeviceError>>()?;
        Ok(Self::with(None, homes, None))
    }

    /// In a bay of that region, which the caller has found to be long enough.
    pub(crate) fn in_bay(
        region: Arc<Region>,
        bay: Bay,
        layout: &ArenaLayout,
    ) -> (Arc<Self>, HostWriter) {
        assert!(layout.is_disjoint(), "tensors of one arena share memory");
        Self::of(region, Some(bay), layout)
    }

    fn of(region: Arc<Region>, bay: Option<Bay>, layout: &ArenaLayout) -> (Arc<Self>, HostWriter) {
        let start = bay.as_ref().map_or(0, Bay::start);
        let home = |range: &Range<u64>| {
            let range = inside(&(start + range.start..start + range.end));
            Home { region: Arc::clone(&region), range, published: AtomicBool::new(false) }
        };
        let homes = layout.tensors.iter().map(home).collect();
        Self::with(Some(region), homes, bay)
    }

    fn with(
        region: Option<Arc<Region>>,
        homes: Vec<Home>,
        bay: Option<Bay>,
    ) -> (Arc<Self>, HostWriter) {
        let arrangements = homes.iter().map(|_| None).collect();
        let written = vec![0; homes.len()];
        let arena = Arc::new(Self { region, homes, _bay: bay });
        let of = Arc::clone(&arena);
        let writer = HostWriter { arena: of, arrangements, written, places: Vec::new() };
        (arena, writer)
    }

    /// The one region that all tensors lie in, for placing it on a node before it is populated, or
    /// for registering it. `None` of memory that is lent.
    #[must_use]
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    /// The bytes of a tensor, once it is published, in the order they were arranged in.
    #[must_use]
    pub fn tensor(&self, index: usize) -> Option<&[u8]> {
        let home = self.homes.get(index)?;
        if !home.published.load(Ordering::Acquire) {
            return None;
        }
        let start = home.region.at(home.range.start);
        // SAFETY: the range lies in the region, or in the bay of it, that `self` owns, or is lent for as
        // long as `self` lives; it is initialised (anonymous memory is zeroed; of lent memory,
        // `publish` has checked that as much was written as there is); and the one writer touches
        // no published tensor, nor does a read, as all places in it have been returned, nor, by the
        // contract of `HostPointer`, its lender: nothing changes it while the slice lives.
        Some(unsafe { std::slice::from_raw_parts(start, home.range.len()) })
    }

    /// The first byte of a tensor, once it is published: what [`HostArena::tensor`] borrows, for
    /// whoever makes it its own.
    #[must_use]
    pub fn tensor_start(&self, index: usize) -> Option<NonNull<u8>> {
        let home = self.homes.get(index).filter(|home| home.published.load(Ordering::Acquire))?;
        NonNull::new(home.region.at(home.range.start))
    }

    /// Gives the memory its pages ahead of the copies, step by step, until told to stop. Meant
    /// for threads of its own; several share the work.
    pub fn populate(&self, stop: &dyn Fn() -> bool) {
        let lent = self.homes.iter().map(|home| &home.region).filter(|region| region.is_lent());
        for region in self.region.iter().chain(lent) {
            while !stop() && region.populate_next() {}
        }
    }
}

/// Offsets in an arena that exists fit the address space.
#[allow(clippy::cast_possible_truncation, reason = "bounded by the region's length")]
fn inside(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The right to fill the tensors of one arena that are not published yet.
#[derive(Debug)]
pub struct HostWriter {
    arena: Arc<HostArena>,
    arrangements: Vec<Option<Arc<dyn Arrange>>>,
    /// By tensor: the bytes that were written to it.
    written: Vec<usize>,
    /// What reads fill instead of the writer, in order.
    places: Vec<(Range<usize>, PlaceWatch)>,
}

impl HostWriter {
    /// From here on, what is written to `tensor` is arranged so.
    pub fn arrange(&mut self, tensor: usize, arrangement: Arc<dyn Arrange>) {
        self.arrangements[tensor] = Some(arrangement);
    }

    /// Gives the right to fill these ranges of the arena to reads. To be called once, before
    /// anything is written.
    ///
    /// # Panics
    /// If the ranges are not in order, overlap, or lie outside of the arena; if places were given
    /// before, or a tensor has been published.
    #[must_use]
    pub fn places(&mut self, ranges: &[Range<u64>]) -> Vec<Place> {
        assert!(self.places.is_empty(), "places are given once");
        let published = |home: &Home| home.published.load(Ordering::Relaxed);
        assert!(!self.arena.homes.iter().any(published), "places come before any tensor is whole");
        let Some(region) = &self.arena.region else {
            assert!(ranges.is_empty(), "nothing is read straight into lent memory");
            return Vec::new();
        };
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "places overlap");
        let mut places = Vec::with_capacity(ranges.len());
        for range in ranges.iter().map(inside) {
            // SAFETY: the ranges are disjoint, given once, and no tensor is published yet, so nobody
            // reads them (all checked above); the writer writes to
            // none of them (`write` checks), and no tensor that reaches into one is published, and
            // so read, before its place is returned (`publish` checks).
            let (place, watch) = unsafe { Place::new(region, range.clone()) };
            places.push(place);
            self.places.push((range, watch));
        }
        places
    }

    /// The places that reach into `range`.
    fn places_in(&self, range: &Range<usize>) -> &[(Range<usize>, PlaceWatch)] {
        let first = self.places.partition_point(|(place, _)| place.end <= range.start);
        let last = self.places.partition_point(|(place, _)| place.start < range.end);
        &self.places[first..last.max(first)]
    }

    /// Copies `bytes` to `offset` of a tensor.
    ///
    /// # Panics
    /// If the tensor is published or too small, or reads fill that part of it: the plan would be
    /// wrong, and going on would corrupt a neighbour.
    pub fn write(&mut self, tensor: usize, offset: u64, bytes: &[u8]) {
        let home = &self.arena.homes[tensor];
        assert!(!home.published.load(Ordering::Relaxed), "tensor {tensor} is whole already");
        let start = usize::try_from(offset).expect("an offset inside a tensor in memory");
        assert!(
            start.checked_add(bytes.len()).is_some_and(|end| end <= home.range.len()),
            "{} bytes at {offset} of a tensor of {}",
            bytes.len(),
            home.range.len()
        );
        let region = &home.region;
        let arrangement = self.arrangements[tensor].as_ref();
        let target = match arrangement {
            Some(arrangement) => inside(&arrangement.touched(offset, bytes.len() as u64)),
            None => start..start + bytes.len(),
        };
        region.ensure_populated(&(home.range.start + target.start..home.range.start + target.end));
        let written = match arrangement {
            Some(_) => home.range.clone(),
            None => home.range.start + start..home.range.start + start + bytes.len(),
        };
        assert!(self.places_in(&written).is_empty(), "reads fill tensor {tensor} at {offset}");
        self.written[tensor] += bytes.len();
        let start = region.at(written.start);
        let Some(arrangement) = arrangement else {
            // SAFETY: the range lies in an unpublished tensor and in no place (checked above), so
            // only this writer touches it, and `&mut self` makes it one write at a time; `bytes` is
            // a slot's memory, never the arena's, nor, by the contract of `HostPointer`, lent.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
            return;
        };
        assert!(!region.is_lent(), "lent memory is filled as the file has it");
        // SAFETY: as above; it is initialised, as the region is anonymous memory of ours.
        let written = unsafe { std::slice::from_raw_parts_mut(start, written.len()) };
        arrangement.scatter(offset, bytes, written);
    }

    /// The tensor is whole: others may read it from here on.
    ///
    /// # Panics
    /// If a read may still be filling a place in it, or lent memory has not been filled.
    pub fn publish(&mut self, tensor: usize) {
        let home = &self.arena.homes[tensor];
        let returned = self.places_in(&home.range).iter().all(|(_, watch)| watch.is_returned());
        assert!(returned, "tensor {tensor} is still being read into");
        let (written, bytes) = (self.written[tensor], home.range.len());
        assert!(!home.region.is_lent() || written == bytes, "{written} bytes written of {bytes}");
        home.published.store(true, Ordering::Release);
    }
}

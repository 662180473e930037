//! The staging memory: one region cut into slots, and a type for each state a slot is in.
//!
//! ```text
//!   Free ──fill──▶ Filling ──filled(n)──▶ Full ──drain──▶ Draining ──release──▶ Free
//!                                           ▲                 │
//!                                           └───── keep ──────┘
//! ```
//!
//! A slot is a token that moves, so exactly one owner exists at any time: the free list, the
//! engine while the kernel writes, the channel, the uploader while the device reads. The
//! slab lives until its last token is gone. What the types can't see, the kernel and a device
//! writing or reading behind a token, is the duty of the two crates that start such transfers:
//! they keep the token until the completion has been reaped ("drain before drop").

use crate::error::MemoryError;
use crate::place::Place;
use crate::region::Region;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::marker::PhantomData;

/// Nobody's: to be filled next.
#[derive(Debug)]
pub enum Free {}
/// An engine's: the kernel may be writing into it.
#[derive(Debug)]
pub enum Filling {}
/// Holds bytes that wait for an uploader.
#[derive(Debug)]
pub enum Full {}
/// An uploader's: a device may be reading from it.
#[derive(Debug)]
pub enum Draining {}

const STATE_FREE: u8 = 0;
const STATE_FILLING: u8 = 1;
const STATE_FULL: u8 = 2;
const STATE_DRAINING: u8 = 3;
const STATE_DROPPED: u8 = 4;

/// One aligned, huge-page mapping cut into slots of equal size.
#[derive(Debug)]
pub struct Slab {
    region: Arc<Region>,
    slot_bytes: usize,
    /// To be counted, no more: what orders the bytes of a slot is that its token is handed on.
    states: Box<[AtomicU8]>,
    /// Slots that were given their pages by [`Slot::populate`].
    populated: Box<[AtomicBool]>,
    has_leaked: AtomicBool,
}

/// The memory that a slot's bytes go to, without any right to it: it stays mapped for as long as
/// this lives, whatever becomes of the token.
#[derive(Clone, Debug)]
pub struct SlotMemory {
    _slab: Arc<Slab>,
    _place: Option<Arc<Region>>,
}

/// How many slots are in each state, for reports and for the proof that none was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the states")]
pub struct SlotCensus {
    pub free: usize,
    pub filling: usize,
    pub full: usize,
    pub draining: usize,
    /// Slots whose token is gone; they come back with the next slab.
    pub dropped: usize,
}

impl Slab {
    /// Reserves `slots` slots of `slot_bytes` and hands out their tokens.
    ///
    /// # Alignment
    /// Every slot starts at a multiple of the page size if `slot_bytes` is one.
    ///
    /// # Errors
    /// As [`Region::new`].
    pub fn new(
        slot_bytes: usize,
        slots: usize,
    ) -> Result<(Arc<Self>, Vec<Slot<Free>>), MemoryError> {
        let region = Arc::new(Region::new(slot_bytes.saturating_mul(slots))?);
        let states = (0..slots).map(|_| AtomicU8::new(STATE_FREE)).collect();
        let populated = (0..slots).map(|_| AtomicBool::new(false)).collect();
        let has_leaked = AtomicBool::new(false);
        let slab = Arc::new(Self { region, slot_bytes, states, populated, has_leaked });
        let tokens = Self::tokens(&slab);
        Ok((slab, tokens))
    }

    /// Hands out the tokens of a slab that has been used before anew; `None` if a token of its
    /// former use (or another owner) is left. One that was leaked, since a transfer into it may
    /// still be under way, keeps the slab from ever being used again.
    #[must_use]
    pub fn reuse(slab: &mut Arc<Self>) -> Option<Vec<Slot<Free>>> {
        let unused = Arc::get_mut(slab)?;
        unused.states.iter().for_each(|state| state.store(STATE_FREE, Ordering::Relaxed));
        Some(Self::tokens(slab))
    }

    fn tokens(slab: &Arc<Self>) -> Vec<Slot<Free>> {
        let token = |index| {
            let slab = Some(Arc::clone(slab));
            Slot { slab, index, bytes: 0, place: None, state: PhantomData }
        };
        (0..slab.slots()).map(token).collect()
    }

    /// The memory under the slots, for registering it with io_uring or a device. Whoever holds it
    /// keeps it mapped.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Whether a slot was given up for the life of the process ([`Slot::leak`]): somebody may write
    /// to it or read from it for ever.
    #[must_use]
    pub fn has_leaked(&self) -> bool {
        self.has_leaked.load(Ordering::Relaxed)
    }

    /// The size of one slot in bytes.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.states.len()
    }

    /// Counts the slots by state. Exact once the threads that move slots have ended.
    #[must_use]
    pub fn census(&self) -> SlotCensus {
        let mut census = SlotCensus::default();
        for state in &self.states {
            *match state.load(Ordering::Relaxed) {
                STATE_FREE => &mut census.free,
                STATE_FILLING => &mut census.filling,
                STATE_FULL => &mut census.full,
                STATE_DRAINING => &mut census.draining,
                _ => &mut census.dropped,
            } += 1;
        }
        census
    }
}

/// The one token of a slot, typed by the state the slot is in.
#[derive(Debug)]
pub struct Slot<State> {
    /// `None` only in a token that has become the next one.
    slab: Option<Arc<Slab>>,
    index: usize,
    bytes: usize,
    /// Where its bytes go instead of into the slab.
    place: Option<Place>,
    state: PhantomData<State>,
}

impl<State> Slot<State> {
    /// Which slot of the slab it is.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    fn slab(&self) -> &Arc<Slab> {
        self.slab.as_ref().expect("a slot that moved on is not used again: `advance` consumes it")
    }

    /// Whether its bytes are where they belong already, so that there is nothing to copy.
    #[must_use]
    pub fn is_aimed(&self) -> bool {
        self.place.is_some()
    }

    fn start(&self) -> *mut u8 {
        match &self.place {
            Some(place) => place.start(),
            None => self.slab().region.at(self.index * self.slab().slot_bytes),
        }
    }

    fn advance<Next>(mut self, state: u8, bytes: usize) -> Slot<Next> {
        self.slab().states[self.index].store(state, Ordering::Relaxed);
        let (slab, place) = (self.slab.take(), self.place.take());
        Slot { slab, index: self.index, bytes, place, state: PhantomData }
    }
}

impl<State> Slot<State> {
    /// The place's right ends before anybody can take the slot again.
    fn free(mut self) -> Slot<Free> {
        drop(self.place.take());
        self.advance(STATE_FREE, 0)
    }

    /// Gives the memory up for the life of the process: for a transfer whose end can't be awaited.
    pub fn leak(mut self) {
        if let Some(slab) = self.slab.take() {
            slab.states[self.index].store(STATE_DROPPED, Ordering::Relaxed);
            slab.has_leaked.store(true, Ordering::Relaxed);
            std::mem::forget(slab);
        }
        std::mem::forget(self.place.take());
    }
}

impl<State> Drop for Slot<State> {
    fn drop(&mut self) {
        if let Some(slab) = &self.slab {
            let state = &slab.states[self.index];
            if state.load(Ordering::Relaxed) != STATE_FREE {
                state.store(STATE_DROPPED, Ordering::Relaxed);
            }
        }
    }
}

impl Slot<Free> {
    /// Takes the slot for an engine.
    #[must_use]
    pub fn fill(self) -> Slot<Filling> {
        self.advance(STATE_FILLING, 0)
    }
}

impl Slot<Filling> {
    /// Lends the token to `place`: until the slot is released, its bytes are the place's, and the
    /// slab's stand idle.
    #[must_use]
    pub fn aim(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// Where to write: valid for [`Slot::capacity`] bytes as long as this token lives.
    /// Whoever gives the address to the kernel keeps the token until the kernel is done.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.start()
    }

    /// For engines that lose sight of the token before the kernel is done.
    #[must_use]
    pub fn memory(&self) -> SlotMemory {
        let place = self.place.as_ref().map(|place| Arc::clone(place.region()));
        SlotMemory { _slab: Arc::clone(self.slab()), _place: place }
    }

    /// How many bytes it takes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.place.as_ref().map_or(self.slab().slot_bytes, Place::bytes)
    }

    /// Gives the slot its pages, once in the life of the slab: for direct reads into memory that
    /// is not registered. Some filesystems (btrfs) can't fault pages in during a direct read and
    /// would silently go through the page cache instead.
    pub fn populate(&self) {
        if let Some(place) = &self.place {
            return place.populate();
        }
        let slab = self.slab();
        if !slab.populated[self.index].swap(true, Ordering::Relaxed) {
            let start = self.index * slab.slot_bytes;
            // Where it is refused, the pages come at first touch as ever.
            let _ = slab.region.populate(start..start + slab.slot_bytes);
        }
    }

    /// The whole slot, for an engine that fills it by copying.
    pub fn buffer(&mut self) -> &mut [u8] {
        // SAFETY: the token is borrowed uniquely, the bytes of the slot (or of the place it is
        // aimed at) belong to the token, they are initialised (the kernel zeroes anonymous memory)
        // and live as long as the slab or the region that it holds.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.capacity()) }
    }

    /// The first `bytes` bytes are there, and nothing writes any more.
    ///
    /// # Panics
    /// If `bytes` is more than the slot holds.
    #[must_use]
    pub fn filled(self, bytes: usize) -> Slot<Full> {
        assert!(bytes <= self.capacity(), "{bytes} bytes in a slot of {}", self.capacity());
        self.advance(STATE_FULL, bytes)
    }

    /// Nothing was read into it after all.
    #[must_use]
    pub fn abandon(self) -> Slot<Free> {
        self.free()
    }
}

impl Slot<Full> {
    /// Takes the slot for an uploader.
    #[must_use]
    pub fn drain(self) -> Slot<Draining> {
        let bytes = self.bytes;
        self.advance(STATE_DRAINING, bytes)
    }
}

impl Slot<Draining> {
    /// What the slot holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: between `filled` and `release` nothing writes to the slot: its engine gave it
        // away after the completion, and only `fill` on the free token lets one write again.
        unsafe { std::slice::from_raw_parts(self.start(), self.bytes) }
    }

    /// All copies out of it have completed, and it is wanted again as it is.
    #[must_use]
    pub fn keep(self) -> Slot<Full> {
        let bytes = self.bytes;
        self.advance(STATE_FULL, bytes)
    }

    /// All copies out of it have completed.
    #[must_use]
    pub fn release(self) -> Slot<Free> {
        self.free()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_goes_round_and_keeps_its_bytes() {
        let (slab, mut free) = Slab::new(4096, 3).unwrap();
        let mut filling = free.pop().unwrap().fill();
        assert_eq!(slab.census(), SlotCensus { free: 2, filling: 1, ..SlotCensus::default() });
        filling.buffer()[..3].copy_from_slice(b"abc");
        let draining = filling.filled(3).drain();
        assert_eq!(draining.bytes(), b"abc");
        let draining = draining.keep().drain();
        assert_eq!(draining.bytes(), b"abc", "what is kept stays as it is");
        free.push(draining.release());
        assert_eq!(slab.census(), SlotCensus { free: 3, ..SlotCensus::default() });
    }

    #[test]
    fn an_aimed_slot_fills_its_place_and_gives_it_back() {
        let region = Arc::new(crate::Region::new(8192).unwrap());
        let (_slab, mut free) = Slab::new(4096, 1).unwrap();
        // SAFETY: this test owns the region and looks at it only after the place is returned.
        let (place, watch) = unsafe { Place::new(&region, 4096..4106) };
        let mut filling = free.pop().unwrap().fill().aim(place);
        assert_eq!((filling.capacity(), filling.is_aimed()), (10, true));
        assert_eq!(filling.address(), region.at(4096));
        filling.populate();
        filling.buffer().copy_from_slice(b"0123456789");
        let draining = filling.filled(10).drain();
        assert_eq!(draining.bytes(), b"0123456789");
        assert!(!watch.is_returned());
        let free = draining.release();
        assert!(watch.is_returned() && !free.is_aimed());
        assert_eq!(free.fill().capacity(), 4096);
        // SAFETY: the place is returned; the byte is initialised.
        assert_eq!(unsafe { region.at(4105).read() }, b'9');
    }

    #[test]
    fn a_slab_is_used_again_once_all_its_tokens_are_gone() {
        let (mut slab, mut free) = Slab::new(4096, 2).unwrap();
        let lost = free.pop().unwrap().fill();
        assert!(Slab::reuse(&mut slab).is_none(), "a token is still filling");
        drop((lost, free));
        let free = Slab::reuse(&mut slab).unwrap();
        assert_eq!(slab.census(), SlotCensus { free: 2, ..SlotCensus::default() });
        free.into_iter().next().unwrap().fill().leak();
        assert!(Slab::reuse(&mut slab).is_none(), "somebody may still write to a leaked slot");
    }

    #[test]
    fn slots_do_not_overlap_and_a_lost_one_is_counted() {
        let (slab, free) = Slab::new(8192, 2).unwrap();
        let mut filling: Vec<_> = free.into_iter().map(Slot::fill).collect();
        for (value, slot) in (1..).zip(&mut filling) {
            slot.buffer().fill(value);
        }
        assert!(filling[0].buffer().iter().all(|&byte| byte == 1));
        drop(filling);
        assert_eq!(slab.census(), SlotCensus { dropped: 2, ..SlotCensus::default() });
    }
}

//! Slots, places and pages: `forebay-mem`, and the channel that slots come back through.

use crate::channel::bounded;
use crate::free::slot_channel;
use crate::place::Place;
use crate::populate::Populated;
use crate::region::{CELL_BYTES, Region};
use crate::slab::{Filling, Full, Slab, Slot, SlotCensus};
use crate::sync::Arc;
use crate::sync::yield_now;
use loom::thread::spawn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// One slot, filled by an engine, drained by an uploader, and so again: what is drained is what was
/// filled, whole, and the slot is back at the end.
pub(super) fn slots_go_round() {
    const ROUNDS: u64 = 2;
    let (slab, tokens) = Slab::new(2 * CELL_BYTES, 1).unwrap();
    let (back, free) = slot_channel(1);
    let (filled, full) = bounded::<Slot<Full>>(1);
    tokens.into_iter().for_each(|slot| back.send(slot).unwrap());
    let region = Arc::clone(slab.region());
    let engine = spawn(move || {
        for round in 1..=ROUNDS {
            // Waits without an end.
            let filling = free.wait(Duration::ZERO).unwrap().fill();
            filling.populate();
            region.write(filling.address(), round);
            region.write(filling.address().wrapping_add(CELL_BYTES), round);
            filled.send(filling.filled(2 * CELL_BYTES)).unwrap();
        }
        free
    });
    let region = slab.region();
    let mut round = 0;
    while let Ok(slot) = full.recv() {
        round += 1;
        // Kept once, as a slot that waits for another device.
        let draining = slot.drain().keep().drain();
        let bytes = draining.bytes();
        assert_eq!(bytes.len(), 2 * CELL_BYTES);
        let halves = [0, CELL_BYTES].map(|at| region.read(bytes[at..].as_ptr()));
        assert_eq!(halves, [round; 2]);
        // The engine may have ended.
        let _ = back.send(draining.release());
    }
    assert_eq!(round, ROUNDS);
    drop(engine.join().unwrap());
    assert_eq!(slab.census(), SlotCensus { free: 1, ..SlotCensus::default() });
}

/// Whoever counts meanwhile finds every slot in a state; what is dropped on the way is told so, and
/// what is dropped free is free.
pub(super) fn any_state_is_counted_and_dropped() {
    let (slab, tokens) = Slab::new(CELL_BYTES, 2).unwrap();
    let mut threads = Vec::new();
    for (slot, goes_round) in tokens.into_iter().zip([true, false]) {
        threads.push(spawn(move || {
            let draining = slot.fill().filled(0).drain();
            if goes_round {
                drop(draining.release());
            }
        }));
    }
    let SlotCensus { free, filling, full, draining, dropped } = slab.census();
    assert_eq!(free + filling + full + draining + dropped, 2);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(slab.census(), SlotCensus { free: 1, dropped: 1, ..SlotCensus::default() });
}

/// Takes the only slot of a slab that has been used, as soon as that can be had.
fn reuse(slab: &mut Arc<Slab>) -> Slot<Filling> {
    loop {
        if let Some(tokens) = Slab::reuse(slab) {
            assert_eq!(slab.census(), SlotCensus { free: 1, ..SlotCensus::default() });
            return tokens.into_iter().next().unwrap().fill();
        }
        yield_now();
    }
}

/// A slab is used again when no token of its former use is left, and what that wrote comes before.
pub(super) fn a_slab_is_used_again_after_the_last_token() {
    let (mut slab, mut tokens) = Slab::new(CELL_BYTES, 1).unwrap();
    let region = Arc::clone(slab.region());
    let slot = tokens.pop().unwrap();
    let former = spawn(move || {
        let filling = slot.fill();
        region.write(filling.address(), 1);
        drop(filling);
    });
    let filling = reuse(&mut slab);
    slab.region().write(filling.address(), 2);
    former.join().unwrap();
    assert_eq!(slab.region().read(filling.address()), 2);
}

/// As `tokio-uring` has it: the token is gone, and the kernel still writes.
pub(super) fn memory_that_an_engine_lost_sight_of_is_not_used_again() {
    let (mut slab, mut tokens) = Slab::new(CELL_BYTES, 1).unwrap();
    let region = Arc::clone(slab.region());
    let slot = tokens.pop().unwrap();
    let former = spawn(move || {
        let filling = slot.fill();
        let (memory, address) = (filling.memory(), filling.address());
        drop(filling);
        region.write(address, 1);
        drop(memory);
    });
    let filling = reuse(&mut slab);
    slab.region().write(filling.address(), 2);
    former.join().unwrap();
    assert_eq!(slab.region().read(filling.address()), 2);
}

/// What was given up for the life of the process is never handed out again.
pub(super) fn a_leaked_slot_is_for_ever() {
    let (mut slab, mut tokens) = Slab::new(CELL_BYTES, 2).unwrap();
    let (leaked, other) = (tokens.pop().unwrap(), tokens.pop().unwrap());
    let device = spawn(move || leaked.fill().filled(0).drain().leak());
    let engine = spawn(move || drop(other.fill().filled(0).drain().release()));
    assert!(Slab::reuse(&mut slab).is_none());
    device.join().unwrap();
    engine.join().unwrap();
    assert!(slab.has_leaked() && Slab::reuse(&mut slab).is_none());
    assert_eq!(slab.census(), SlotCensus { free: 1, dropped: 1, ..SlotCensus::default() });
    // SAFETY: the count that `leak` has left behind; the device of a model is done by now, and loom
    // takes what is left behind for a mistake.
    unsafe { Arc::decrement_strong_count(Arc::as_ptr(&slab)) };
}

/// Whoever finds that a place is returned may read it, by that alone, however the slot ended.
fn a_place_is_seen_whole(end: fn(Slot<Filling>)) {
    let region = Arc::new(Region::new(2 * CELL_BYTES).unwrap());
    let (slab, mut tokens) = Slab::new(CELL_BYTES, 1).unwrap();
    // SAFETY: a region of this model's, which is read only after the place is returned.
    let (place, watch) = unsafe { Place::new(&region, CELL_BYTES..2 * CELL_BYTES) };
    let (slot, of_engine) = (tokens.pop().unwrap(), Arc::clone(&region));
    let engine = spawn(move || {
        let filling = slot.fill().aim(place);
        assert!(filling.is_aimed() && filling.capacity() == CELL_BYTES);
        of_engine.write(filling.address(), 1);
        end(filling);
    });
    if watch.is_returned() {
        assert_eq!(region.read(region.at(CELL_BYTES)), 1);
    }
    engine.join().unwrap();
    assert!(watch.is_returned());
    drop(slab);
}

pub(super) fn a_released_place_is_seen_whole() {
    a_place_is_seen_whole(|filling| drop(filling.filled(CELL_BYTES).drain().release()));
}

pub(super) fn an_abandoned_place_is_seen_whole() {
    a_place_is_seen_whole(|filling| drop(filling.abandon()));
}

pub(super) fn a_dropped_place_is_seen_whole() {
    a_place_is_seen_whole(drop);
}

/// A populating thread and a copier: no step is done twice, and the copier does not go on before it is
/// done. Of one step: of more, how long each took would decide what comes next, and loom wants to see
/// the same again.
pub(super) fn a_step_is_populated_once() {
    let populated = Arc::new(Populated::new(1 << 20));
    // No part of the model.
    let steps = std::sync::Arc::new(AtomicUsize::new(0));
    let (ahead, counted) = (Arc::clone(&populated), std::sync::Arc::clone(&steps));
    let helper =
        spawn(
            move || {
                while ahead.populate_next(|_, _| counted.fetch_add(1, Ordering::Relaxed) == 0) {}
            },
        );
    populated.ensure(&(0..1 << 20), |_, _| steps.fetch_add(1, Ordering::Relaxed) == 0);
    assert_eq!(steps.load(Ordering::Relaxed), 1);
    helper.join().unwrap();
    assert_eq!(steps.load(Ordering::Relaxed), 1);
}

//! The models. Each is run in every order; those that sleep and are woken, which take many steps, in
//! every order in which threads are interrupted twice at most.

mod arenas;
mod reads;
mod slots;
mod tensors;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs a model in every order, and counts these.
pub(crate) fn check(interruptions_max: Option<usize>, model: fn()) -> usize {
    let orders = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = interruptions_max;
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    orders.load(Ordering::Relaxed)
}

macro_rules! models {
    ($($file:ident, $bound:expr => $($name:ident)+;)+) => {
        /// By name: how many interruptions at most, and the model.
        pub(crate) const ALL: &[(&str, Option<usize>, fn())] =
            &[$($((stringify!($name), $bound, $file::$name),)+)+];
    };
}

models! {
    slots, None => slots_go_round
        any_state_is_counted_and_dropped
        a_slab_is_used_again_after_the_last_token
        memory_that_an_engine_lost_sight_of_is_not_used_again
        a_leaked_slot_is_for_ever
        a_released_place_is_seen_whole
        an_abandoned_place_is_seen_whole
        a_dropped_place_is_seen_whole
        a_step_is_populated_once;
    arenas, None => a_published_tensor_is_whole
        a_published_tensor_can_be_taken_by_its_address
        a_tensor_read_into_its_place_is_whole;
    reads, Some(2) => whoever_hears_of_a_cancel_knows_why
        every_read_of_a_feed_is_begun_once
        a_bell_for_one_wakes_another
        a_task_hears_of_reads_and_of_the_end
        a_task_hears_of_slots_and_of_the_end;
    tensors, Some(2) => a_stream_hears_of_every_tensor
        a_task_hears_of_its_tensor
        a_task_hears_that_its_tensor_never_comes
        whoever_waits_for_a_mapped_tensor_goes_on;
}

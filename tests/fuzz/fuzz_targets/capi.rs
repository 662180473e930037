//! The functions of the C interface in any order that the header allows, over any file.
//!
//! ```text
//! count of calls u8 | calls of 3 bytes: function, first and second argument | the model's file
//! ```
//!
//! Handles are alive, freed once, and used by one thread; places for answers and lent memory are as
//! the header asks. The file is cut short, lengthened or written to between any two calls.
#![no_main]

mod capi {
    pub(super) mod world;
}

use capi::world::World;
use libfuzzer_sys::fuzz_target;

/// More calls find nothing that fewer do not, and loads take their time.
const CALLS_MAX: usize = 32;

const CALL_BYTES: usize = 3;

fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let count = usize::from(*count) % (CALLS_MAX + 1);
    let Some((calls, file)) = rest.split_at_checked(count * CALL_BYTES) else { return };
    let mut world = World::new(file);
    for call in calls.chunks_exact(CALL_BYTES) {
        world.call(call[0], call[1], call[2]);
    }
});

//! The entry points, by topic. Each counts itself, may have been told to fail, asks for what it
//! needs (an initialised driver, a context), and answers a code; none lets a panic out.
//!
//! Handles are looked up, never followed. Addresses that a caller gives for answers are written
//! through [`Out`].

mod context;
mod control;
mod copies;
mod cublaslt;
mod devices;
mod errors;
mod events;
mod gate;
mod host;
mod jit;
mod kernels;
mod memory;
mod pointers;
mod streams;

pub(crate) use gate::{Anytime, Current, Freeing, InContext, Out};
use std::ffi::c_void;

/// Writes entry points: `fn NAME(ARGUMENTS) with GATE |call| { BODY }`. The body answers an
/// [`crate::error::Answer`]; `call` is what the gate gave.
macro_rules! entry_points {
    ($($(#[$note:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?)
            with $gate:ty, |$call:pat_param| $body:block
    )*) => {
        $($(#[$note])*
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            crate::api::gate::answer::<$gate>(stringify!($name), |$call| $body)
        })*

        /// The address of an entry point of this room.
        pub(super) fn address_of(name: &str) -> Option<*const std::ffi::c_void> {
            match name {
                $(stringify!($name) => Some($name as *const std::ffi::c_void),)*
                _ => None,
            }
        }
    };
}
pub(crate) use entry_points;

/// The address of an entry point, by its exact name.
pub(crate) fn address_of(name: &str) -> Option<*const c_void> {
    let rooms = [
        context::address_of,
        copies::address_of,
        cublaslt::address_of,
        devices::address_of,
        errors::address_of,
        events::address_of,
        host::address_of,
        kernels::address_of,
        memory::address_of,
        pointers::address_of,
        streams::address_of,
    ];
    rooms.iter().find_map(|room| room(name))
}

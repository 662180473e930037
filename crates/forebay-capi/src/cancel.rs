//! A flag that stops loads.

use crate::edge::{handle, place};
use crate::status::{Status, answer, guard};
use std::mem::MaybeUninit;
use std::ptr;

/// Stops the loads that were given it.
#[derive(Default)]
pub struct Cancel(pub(crate) forebay::Cancel);

/// Makes a flag that nobody has set.
///
/// Threads: any. The caller frees it with forebay_cancel_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_cancel_new(cancel: Option<&mut MaybeUninit<*mut Cancel>>) -> Status {
    guard(|| {
        let cancel = place(cancel, ptr::null_mut())?;
        *cancel = handle(Cancel::default());
        Ok(())
    })
}

/// Asks every load that has this flag to end, and returns at once; each of them ends with
/// FOREBAY_CANCELLED when what it has in flight is drained. The flag stays set: loads that are
/// given it later end at their start. NULL is fine.
///
/// Threads: any, at any time, also at once with others, and also from a signal's handler: it only
/// stores to memory.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_cancel_request(cancel: Option<&Cancel>) {
    // Not guarded: a store can't panic, and a handler must touch neither heap nor thread-locals.
    if let Some(cancel) = cancel {
        cancel.0.cancel();
    }
}

/// Frees the flag. Loads that were given it go on, and can be stopped by it no more. NULL is fine.
///
/// Threads: any, once nobody (no signal's handler either) uses the flag.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_cancel_free(cancel: Option<Box<Cancel>>) {
    answer((), || {
        drop(cancel);
        Ok(())
    });
}

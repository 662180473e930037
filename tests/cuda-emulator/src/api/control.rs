//! The emulator's own symbols, by which tests know it and speak to it.

use crate::driver::{Driver, driver};
use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;

/// The version of these symbols and of the report.
const VERSION: u32 = 1;

/// Only the emulated driver has it.
#[unsafe(no_mangle)]
extern "C" fn forebay_cuda_emulator() -> u32 {
    VERSION
}

/// Takes a new configuration: 0, or 1 if a word is wrong, which is told on standard error.
///
/// # Safety
/// `words` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn forebay_emulator_configure(words: *const c_char) -> i32 {
    if words.is_null() {
        return 1;
    }
    // SAFETY: the caller's duty.
    let words = unsafe { CStr::from_ptr(words) }.to_string_lossy();
    let done = catch_unwind(|| match Driver::parse(&words) {
        Ok(config) => {
            driver().configure(config);
            true
        }
        Err(reason) => {
            eprintln!("[cuda emulator] {reason}");
            false
        }
    });
    i32::from(!done.unwrap_or(false))
}

/// Writes the report as JSON, if it fits into `room_bytes`; answers how many bytes it has.
///
/// # Safety
/// There is room for `room_bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn forebay_emulator_report(room: *mut c_char, room_bytes: usize) -> usize {
    let report = catch_unwind(|| serde_json::to_vec(&driver().report()).unwrap_or_default());
    let report = report.unwrap_or_default();
    if !room.is_null() && report.len() <= room_bytes {
        // SAFETY: the caller owes the room, and the report fits into it.
        unsafe { room.cast::<u8>().copy_from(report.as_ptr(), report.len()) };
    }
    report.len()
}

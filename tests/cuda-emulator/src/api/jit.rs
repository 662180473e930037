//! The options of a load: where a caller wants the compiler's log.

use std::ffi::c_void;

/// By the numbers of `CUjit_option`.
const INFO_LOG: i32 = 3;
const INFO_LOG_BYTES: i32 = 4;
const ERROR_LOG: i32 = 5;
const ERROR_LOG_BYTES: i32 = 6;

/// The options as a caller of `cuModuleLoadDataEx` gave them.
pub(super) struct Options<'call> {
    names: &'call [i32],
    /// Sizes stand here themselves, and are replaced by what was written.
    values: &'call mut [*mut c_void],
}

impl Options<'_> {
    /// # Safety
    /// Both are null, or `count` elements that are the caller's until the call returns; logs have
    /// as much room as is said.
    pub(super) unsafe fn new(count: u32, names: *const i32, values: *mut *mut c_void) -> Self {
        if count == 0 || names.is_null() || values.is_null() {
            return Self { names: &[], values: &mut [] };
        }
        // SAFETY: the caller's duty.
        let names = unsafe { std::slice::from_raw_parts(names, count as usize) };
        // SAFETY: the caller's duty; nobody else knows the array while the call lasts.
        let values = unsafe { std::slice::from_raw_parts_mut(values, count as usize) };
        Self { names, values }
    }

    /// Fills both logs, each as far as there is room. Information there is none.
    pub(super) fn give_logs(&mut self, errors: &str) {
        self.give_log(INFO_LOG, INFO_LOG_BYTES, "");
        self.give_log(ERROR_LOG, ERROR_LOG_BYTES, errors);
    }

    fn give_log(&mut self, log: i32, log_bytes: i32, text: &str) {
        let place = |option: i32| self.names.iter().position(|name| *name == option);
        let (Some(log), Some(size)) = (place(log), place(log_bytes)) else { return };
        let (room, room_bytes) = (self.values[log].cast::<u8>(), self.values[size] as usize);
        // Drivers read the size as an `unsigned int`.
        let room_bytes = room_bytes & u32::MAX as usize;
        if room.is_null() || room_bytes == 0 {
            return;
        }
        let cut = text.len().min(room_bytes - 1);
        // SAFETY: the caller owes this room until the call returns.
        let room = unsafe { std::slice::from_raw_parts_mut(room, cut + 1) };
        room[..cut].copy_from_slice(&text.as_bytes()[..cut]);
        room[cut] = 0;
        self.values[size] = cut as *mut c_void;
    }
}

//! Names of errors, the driver's version, and how to find entry points.

use super::{Anytime, Out, entry_points};
use crate::error::Code;
use std::ffi::{CStr, c_char, c_void};

const SYMBOL_FOUND: i32 = 0;
const SYMBOL_NOT_FOUND: i32 = 1;

entry_points! {
    fn cuGetErrorName(error: u32, name: Out<*const c_char>) with Anytime, |_| {
        match Code(error).words() {
            Some((words, _)) => name.give(words.as_ptr()),
            None => name.give(std::ptr::null()).and(Err(Code::INVALID_VALUE)),
        }
    }

    fn cuGetErrorString(error: u32, description: Out<*const c_char>) with Anytime, |_| {
        match Code(error).words() {
            Some((_, words)) => description.give(words.as_ptr()),
            None => description.give(std::ptr::null()).and(Err(Code::INVALID_VALUE)),
        }
    }

    fn cuDriverGetVersion(version: Out<i32>) with Anytime, |call| {
        version.give(call.driver.behaviour().config.driver_version)
    }

    /// NVRTC asks for private tables, and crashes where nobody answers.
    fn cuGetExportTable(table: Out<*const c_void>, _id: *const c_void) with Anytime, |_| {
        table.give_if_wanted(std::ptr::null());
        Err(Code::NOT_FOUND)
    }

    /// Names come without the version at their end; the newest is answered.
    fn cuGetProcAddress_v2(
        symbol: *const c_char,
        address: Out<*const c_void>,
        _version: i32,
        _flags: u64,
        status: Out<i32>,
    ) with Anytime, |_| {
        if symbol.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller owes a C string.
        let name = unsafe { CStr::from_ptr(symbol) }.to_str().map_err(|_| Code::INVALID_VALUE)?;
        let found = ["_v3", "_v2", ""]
            .iter()
            .find_map(|version| super::address_of(&format!("{name}{version}")));
        status.give_if_wanted(if found.is_some() { SYMBOL_FOUND } else { SYMBOL_NOT_FOUND });
        address.give(found.unwrap_or(std::ptr::null()))?;
        found.map(|_| ()).ok_or(Code::NOT_FOUND)
    }
}

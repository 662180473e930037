//! Options, by the names of the command line's flags.

use crate::edge::{given, handle, place, text};
use crate::status::{Status, answer, guard};
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

/// What a plan or a load is to do; starts with every option at its default.
#[derive(Default)]
pub struct Options(pub(crate) forebay::Options);

/// Makes options with every default.
///
/// Threads: any. The caller frees them with forebay_options_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_options_new(options: Option<&mut MaybeUninit<*mut Options>>) -> Status {
    guard(|| {
        let options = place(options, ptr::null_mut())?;
        *options = handle(Options::default());
        Ok(())
    })
}

/// Sets an option. Keys are the long flags of `forebay load` without the dashes, values are spelt
/// as there: "device" = "cuda:0", "gpu-layers" = "20", "load-mode" = "device=dio,cpu=mmap",
/// "engine" = "threads", "staging" = "64MiB". "place" ("REGEX=BACKEND") adds a rule behind those
/// already there; "no-fallback" is "on" or "off".
///
/// FOREBAY_OPTION for a key or value that is none, and nothing has changed then. Both texts are
/// copied.
///
/// Threads: one at a time.
///
/// # Safety
/// The texts end in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_options_set(
    options: Option<&mut Options>,
    key: *const c_char,
    value: *const c_char,
) -> Status {
    guard(|| {
        let options = given(options, "options")?;
        // SAFETY: C lends the text for the call.
        let key = unsafe { text(key, "key") }?;
        // SAFETY: as above.
        let value = unsafe { text(value, "value") }?;
        Ok(options.0.set(key, value)?)
    })
}

/// Frees the options; loaders have copies of theirs. NULL is fine.
///
/// Threads: any, once nobody uses them.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_options_free(options: Option<Box<Options>>) {
    answer((), || {
        drop(options);
        Ok(())
    });
}

//! The C interface of forebay: what `include/forebay.h` declares.
//!
//! Every function goes through `status::answer` or `status::guard`, where errors become numbers
//! and panics end. Handles are boxes that C holds: a function that borrows one takes it as
//! `Option<&T>` or `Option<&mut T>`, one that consumes it as `Option<Box<T>>`, so that only texts
//! and buffers need `unsafe`. What these types demand of C is what the header's rules say: handles
//! are alive, and nobody else uses one that is not `const`.
//!
//! Structs that C looks into are made here and never by C, so they may grow at their end.
//!
//! Rust programs use the crate `forebay` itself.

// Parted so that the header declares things in the order in which they are used.

mod edge;
mod status;

mod options;

mod info;
mod model;

mod metadata;

mod cancel;
mod loader;

mod load;
mod loaded;

mod tensor;

pub use cancel::{Cancel, forebay_cancel_free, forebay_cancel_new, forebay_cancel_request};
pub use info::{File, TensorInfo};
pub use load::{
    Load, forebay_load_finish, forebay_load_free, forebay_load_next, forebay_load_progress,
    forebay_load_start,
};
pub use loaded::{
    Loaded, forebay_loaded_find_tensor, forebay_loaded_free, forebay_loaded_report_json,
    forebay_loaded_tensor, forebay_loaded_tensor_count,
};
pub use loader::{
    Loader, ProgressCallback, TensorCallback, forebay_loader_cancel_with, forebay_loader_free,
    forebay_loader_into_device, forebay_loader_into_host, forebay_loader_new, forebay_loader_of,
    forebay_loader_on_progress, forebay_loader_on_tensor, forebay_loader_run,
};
pub use metadata::{
    forebay_model_metadata_bool, forebay_model_metadata_count, forebay_model_metadata_f64,
    forebay_model_metadata_key, forebay_model_metadata_text, forebay_model_metadata_u64,
};
pub use model::{
    Model, forebay_model_file, forebay_model_file_count, forebay_model_find_tensor,
    forebay_model_format, forebay_model_free, forebay_model_open, forebay_model_tensor,
    forebay_model_tensor_count, forebay_plan_json,
};
pub use options::{Options, forebay_options_free, forebay_options_new, forebay_options_set};
pub use status::{Status, forebay_last_error_message, forebay_last_error_status};
pub use tensor::{
    Part, Tensor, TensorHandle, forebay_tensor_part, forebay_tensor_read, forebay_tensor_sha256,
};

use std::ffi::{c_char, c_void};

/// The interface that this header describes. It changes when a program that was built with an older
/// header would no longer work, and with it the name of the library, `libforebay.so.0`.
pub const FOREBAY_ABI_VERSION: u32 = 0;

/// The interface that the library has: FOREBAY_ABI_VERSION as it was when the library was built.
/// Programs that look the library up themselves (dlopen) compare the two.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_abi_version() -> u32 {
    FOREBAY_ABI_VERSION
}

/// The version of the library, "0.1.0", say; a text that lives for ever.
///
/// Threads: any, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Frees a text that a function has written to a `char **`. NULL is fine.
///
/// Threads: any. The text is gone afterwards.
///
/// # Safety
/// The text comes from this library, and has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_text_free(text: *mut c_char) {
    status::answer((), || {
        // SAFETY: a text of `edge::text_for_c`, which C hands back once.
        unsafe { edge::free_text(text) };
        Ok(())
    });
}

/// Gives back what the process keeps for its next load: pinned staging memory, and with it the
/// contexts of CUDA devices. For programs that load once, and before the library is unloaded.
///
/// Threads: any; loads under way are not touched.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_release_staging() {
    status::answer((), || {
        forebay::release_staging();
        Ok(())
    });
}

/// What the header says of threads: every handle may go to another, and those that functions take
/// as `const` may be used by several at once.
const _: () = {
    const fn goes<T: Send>() {}
    const fn is_shared<T: Sync>() {}
    goes::<Cancel>();
    goes::<Load>();
    goes::<Loaded>();
    goes::<Loader>();
    goes::<Model>();
    goes::<Options>();
    is_shared::<Cancel>();
    is_shared::<Loaded>();
    is_shared::<Model>();
    is_shared::<Options>();
    is_shared::<TensorHandle>();
    // What those hold that say so of themselves.
    goes::<forebay::Model>();
    goes::<forebay::Tensor>();
    is_shared::<forebay::Model>();
    is_shared::<forebay::Tensor>();
};

/// What a callback of C is called with.
#[derive(Clone, Copy)]
pub(crate) struct User(pub(crate) *mut c_void);

// SAFETY: the pointer is only handed back to the caller's own function, on the thread that the
// header names; what it points at stays the caller's business.
unsafe impl Send for User {}

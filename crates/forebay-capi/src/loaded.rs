//! A model that has been loaded whole.

use crate::edge::{given, place, text};
use crate::info::Infos;
use crate::model::{no_tensor, to_json};
use crate::status::{Failure, Status, answer, guard};
use crate::tensor::{Tensor, View};
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

/// Every tensor of a model, in place.
pub struct Loaded {
    loaded: forebay::Loaded,
    views: Vec<Arc<View>>,
    /// The views point into it.
    _infos: Arc<Infos>,
}

impl Loaded {
    /// Keeps the views that have been handed out already.
    pub(crate) fn new(
        loaded: forebay::Loaded,
        infos: Arc<Infos>,
        views: Vec<Option<Arc<View>>>,
    ) -> Self {
        let whole = |(index, (view, tensor)): (usize, (Option<Arc<View>>, forebay::Tensor))| {
            let info = infos.get(index).expect("they were made from the same catalog");
            view.unwrap_or_else(|| Arc::new(View::new(tensor, info)))
        };
        let views = views.into_iter().zip(loaded.tensors()).enumerate().map(whole).collect();
        Self { loaded, views, _infos: infos }
    }
}

/// How many tensors there are. 0 for NULL.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loaded_tensor_count(loaded: Option<&Loaded>) -> usize {
    answer(0, || Ok(loaded.map_or(0, |loaded| loaded.views.len())))
}

/// A tensor by its index; they are in file order. It lives as long as `loaded`.
///
/// FOREBAY_INVALID_ARGUMENT past the end.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loaded_tensor(
    loaded: Option<&Loaded>,
    index: usize,
    tensor: Option<&mut MaybeUninit<*const Tensor>>,
) -> Status {
    guard(|| {
        let tensor = place(tensor, ptr::null())?;
        let views = &given(loaded, "loaded")?.views;
        let found = views.get(index);
        *tensor = found.ok_or_else(|| Failure::past_end("tensor", index, views.len()))?.as_ptr();
        Ok(())
    })
}

/// A tensor by its name, in UTF-8. It lives as long as `loaded`.
///
/// FOREBAY_NOT_FOUND if there is none.
///
/// Threads: several at once.
///
/// # Safety
/// The name ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loaded_find_tensor(
    loaded: Option<&Loaded>,
    name: *const c_char,
    tensor: Option<&mut MaybeUninit<*const Tensor>>,
) -> Status {
    guard(|| {
        let tensor = place(tensor, ptr::null())?;
        let loaded = given(loaded, "loaded")?;
        // SAFETY: C lends the text for the call.
        let name = unsafe { text(name, "name") }?;
        let found = loaded.loaded.catalog().position(name);
        *tensor = loaded.views[found.ok_or_else(|| no_tensor(name))?].as_ptr();
        Ok(())
    })
}

/// What the load did, as one JSON object: what `forebay load --json` prints, without digests.
///
/// Threads: several at once. The caller frees the text with forebay_text_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loaded_report_json(
    loaded: Option<&Loaded>,
    json: Option<&mut MaybeUninit<*mut c_char>>,
) -> Status {
    guard(|| {
        let json = place(json, ptr::null_mut())?;
        *json = to_json(given(loaded, "loaded")?.loaded.report())?;
        Ok(())
    })
}

/// Frees the tensors and their memory, but for memory that was lent: that is the caller's alone
/// again. NULL is fine.
///
/// Threads: any, once nobody uses it or its tensors (kernels of a device included).
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loaded_free(loaded: Option<Box<Loaded>>) {
    answer((), || {
        drop(loaded);
        Ok(())
    });
}

//! What crosses the border: handles, texts and places for answers.

use crate::status::Failure;
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;

/// A handle or another argument that must be there.
pub(crate) fn given<T>(argument: Option<T>, what: &str) -> Result<T, Failure> {
    argument.ok_or_else(|| Failure::null(what))
}

/// Where an answer goes; holds `otherwise` until it is known.
pub(crate) fn place<T>(
    place: Option<&mut MaybeUninit<T>>,
    otherwise: T,
) -> Result<&mut T, Failure> {
    let place = given(place, "the place for the answer")?;
    Ok(place.write(otherwise))
}

/// Makes a handle that C owns.
pub(crate) fn handle<T>(value: T) -> *mut T {
    Box::into_raw(Box::new(value))
}

/// The bytes of a text of C's.
///
/// # Safety
/// `text` is NULL, or ends in NUL, and stays as it is for `'a`.
pub(crate) unsafe fn bytes<'a>(text: *const c_char, what: &str) -> Result<&'a [u8], Failure> {
    if text.is_null() {
        return Err(Failure::null(what));
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// A text of C's.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(text, what) }?;
    std::str::from_utf8(bytes).map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))
}

/// A text that C owns from now on.
pub(crate) fn text_for_c(text: String) -> Result<*mut c_char, Failure> {
    let text = CString::new(text).map_err(|_| Failure::invalid("the text holds a NUL"))?;
    Ok(text.into_raw())
}

/// # Safety
/// `text` is NULL, or comes from [`text_for_c`] and has not been freed.
pub(crate) unsafe fn free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// A text that C looks at: NUL comes after its bytes, and perhaps among them.
pub(crate) struct Text(Box<[u8]>);

impl Text {
    pub(crate) fn new(text: impl Into<Vec<u8>>) -> Self {
        let mut bytes = text.into();
        bytes.push(0);
        Self(bytes.into())
    }

    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// Without the NUL behind them.
    pub(crate) fn bytes(&self) -> usize {
        self.0.len() - 1
    }
}

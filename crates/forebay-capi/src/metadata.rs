//! A model's key/values.

use crate::edge::{Text, given, place, text};
use crate::model::Model;
use crate::status::{Failure, Status, answer, guard};
use forebay::Value;
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::ptr;

/// Keys and values as texts, in the file's order.
pub(crate) struct Metadata {
    entries: Vec<(String, Text, Text)>,
}

impl Metadata {
    pub(crate) fn of(metadata: &forebay::Metadata) -> Self {
        let entry = |(key, value): (&str, &Value)| {
            let text = match value {
                // Vocabularies hold fragments that are no UTF-8.
                Value::String(text) => Text::new(text.as_bytes()),
                value => Text::new(value.to_string()),
            };
            (key.to_owned(), Text::new(key), text)
        };
        Self { entries: metadata.iter().map(entry).collect() }
    }
}

/// Looks a value up, and takes out of it what `take` takes.
///
/// # Safety
/// `key` is NULL or ends in NUL, and stays as it is during the call.
unsafe fn value<T>(
    model: Option<&Model>,
    key: *const c_char,
    wanted: &str,
    take: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, Failure> {
    let model = given(model, "model")?;
    // SAFETY: the caller's promise.
    let key = unsafe { text(key, "key") }?;
    let value = model.model.catalog().metadata().get(key).ok_or_else(|| no_key(key))?;
    take(value).ok_or_else(|| {
        let message = format!("'{key}' is of type {}, not {wanted}", value.type_name());
        Failure::new(Status::ForebayNotFound, message)
    })
}

fn no_key(key: &str) -> Failure {
    Failure::new(Status::ForebayNotFound, format!("the model has no metadata '{key}'"))
}

/// How many key/values the model's metadata has. 0 for NULL.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_metadata_count(model: Option<&Model>) -> usize {
    answer(0, || Ok(model.map_or(0, |model| model.metadata.entries.len())))
}

/// A key by its index, in the file's order. The text lives as long as the model.
///
/// FOREBAY_INVALID_ARGUMENT past the end.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_metadata_key(
    model: Option<&Model>,
    index: usize,
    key: Option<&mut MaybeUninit<*const c_char>>,
) -> Status {
    guard(|| {
        let key = place(key, ptr::null())?;
        let entries = &given(model, "model")?.metadata.entries;
        let found = entries.get(index);
        let (_, found, _) = found.ok_or_else(|| Failure::past_end("key", index, entries.len()))?;
        *key = found.as_ptr();
        Ok(())
    })
}

/// The value of a key as a text: strings as the file has them (GGUF does not promise UTF-8, nor
/// that there is no NUL in them), numbers in digits, "true" and "false", arrays as type and length,
/// `string[32000]`. The text lives as long as the model; its length goes to `bytes`, which may be
/// NULL.
///
/// FOREBAY_NOT_FOUND if there is no such key.
///
/// Threads: several at once.
///
/// # Safety
/// The key ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_metadata_text(
    model: Option<&Model>,
    key: *const c_char,
    value: Option<&mut MaybeUninit<*const c_char>>,
    bytes: Option<&mut MaybeUninit<usize>>,
) -> Status {
    guard(|| {
        let value = place(value, ptr::null())?;
        let entries = &given(model, "model")?.metadata.entries;
        // SAFETY: C lends the text for the call.
        let key = unsafe { text(key, "key") }?;
        let found = entries.iter().find(|(name, _, _)| name == key);
        let (_, _, found) = found.ok_or_else(|| no_key(key))?;
        *value = found.as_ptr();
        if let Some(bytes) = bytes {
            bytes.write(found.bytes());
        }
        Ok(())
    })
}

/// The value of a key, if it is an integer of any width that is not negative.
///
/// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
///
/// Threads: several at once.
///
/// # Safety
/// The key ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_metadata_u64(
    model: Option<&Model>,
    key: *const c_char,
    value: Option<&mut MaybeUninit<u64>>,
) -> Status {
    guard(|| {
        let place = place(value, 0)?;
        // SAFETY: C lends the text for the call.
        *place = unsafe { self::value(model, key, "an integer from 0 on", Value::as_u64) }?;
        Ok(())
    })
}

/// The value of a key, if it is a float of either width.
///
/// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
///
/// Threads: several at once.
///
/// # Safety
/// The key ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_metadata_f64(
    model: Option<&Model>,
    key: *const c_char,
    value: Option<&mut MaybeUninit<f64>>,
) -> Status {
    guard(|| {
        let place = place(value, 0.0)?;
        // SAFETY: C lends the text for the call.
        *place = unsafe { self::value(model, key, "a float", Value::as_f64) }?;
        Ok(())
    })
}

/// The value of a key, if it is a boolean.
///
/// FOREBAY_NOT_FOUND if there is no such key, or it is something else.
///
/// Threads: several at once.
///
/// # Safety
/// The key ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_metadata_bool(
    model: Option<&Model>,
    key: *const c_char,
    value: Option<&mut MaybeUninit<bool>>,
) -> Status {
    guard(|| {
        let place = place(value, false)?;
        // SAFETY: C lends the text for the call.
        *place = unsafe { self::value(model, key, "a boolean", Value::as_bool) }?;
        Ok(())
    })
}

//! The functions as C calls them, with their answers taken apart.
#![allow(dead_code, reason = "every test file uses its own part")]

use forebay_capi::{
    Load, Loaded, Loader, Options, Status, Tensor, forebay_last_error_message,
    forebay_last_error_status, forebay_load_next, forebay_load_start, forebay_loader_new,
    forebay_loader_run, forebay_options_new, forebay_options_set, forebay_tensor_sha256,
};
use std::ffi::{CStr, CString, c_char};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

/// What a function wrote to its place, if it went well; else its status and its words.
pub(crate) fn made<T: Copy>(
    call: impl FnOnce(Option<&mut MaybeUninit<T>>) -> Status,
) -> Result<T, (Status, String)> {
    let mut place = MaybeUninit::uninit();
    match call(Some(&mut place)) {
        Status::ForebayOk => Ok(unsafe { place.assume_init() }),
        status => Err(failed(status)),
    }
}

/// The words of a call that answered this.
pub(crate) fn failed(status: Status) -> (Status, String) {
    assert_eq!(forebay_last_error_status(), status);
    (status, words(forebay_last_error_message()))
}

pub(crate) fn words(text: *const c_char) -> String {
    unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
}

pub(crate) fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

pub(crate) fn owned<T>(handle: *mut T) -> Option<Box<T>> {
    (!handle.is_null()).then(|| unsafe { Box::from_raw(handle) })
}

/// A loader with these options.
pub(crate) fn loader(path: &Path, settings: &[(&CStr, &CStr)]) -> Box<Loader> {
    let mut options: Box<Options> = owned(made(|to| forebay_options_new(to)).unwrap()).unwrap();
    for (key, value) in settings {
        let set = unsafe { forebay_options_set(Some(&mut options), key.as_ptr(), value.as_ptr()) };
        assert_eq!(set, Status::ForebayOk, "{key:?} {value:?}");
    }
    let path = c_path(path);
    let loader = made(|to| unsafe { forebay_loader_new(path.as_ptr(), Some(&options), to) });
    owned(loader.unwrap()).unwrap()
}

pub(crate) fn run(loader: Box<Loader>) -> Result<Box<Loaded>, (Status, String)> {
    made(|to| forebay_loader_run(Some(loader), to)).map(|loaded| owned(loaded).unwrap())
}

pub(crate) fn start(loader: Box<Loader>) -> Result<Box<Load>, (Status, String)> {
    made(|to| forebay_load_start(Some(loader), to)).map(|load| owned(load).unwrap())
}

pub(crate) fn next(load: &mut Load) -> Result<*const Tensor, (Status, String)> {
    made(|to| forebay_load_next(Some(load), to))
}

pub(crate) fn sha256(tensor: &Tensor) -> String {
    let hex = made(|to| forebay_tensor_sha256(Some(tensor), to)).unwrap();
    words(hex.as_ptr())
}

pub(crate) fn name(tensor: &Tensor) -> String {
    words(unsafe { &*tensor.info }.name)
}

/// A safetensors file with so many tensors of so many bytes, none like another.
pub(crate) fn model_of(folder: &Path, tensors: usize, bytes: usize) -> PathBuf {
    let entry = |index: usize| {
        let (offsets, shape) = ([index * bytes, (index + 1) * bytes], [bytes / 1024, 1024]);
        let entry = serde_json::json!({"dtype": "U8", "shape": shape, "data_offsets": offsets});
        (format!("layers.{index}.weight"), entry)
    };
    let header: serde_json::Map<_, _> = (0..tensors).map(entry).collect();
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    for index in 0..tensors * bytes / 8 {
        file.extend((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
    let path = folder.join("model.safetensors");
    std::fs::write(&path, file).unwrap();
    path
}

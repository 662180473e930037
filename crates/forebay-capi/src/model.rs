//! An opened model: its files, its tensors, and the plan of a load.

use crate::edge::{Text, bytes, given, handle, place, text, text_for_c};
use crate::info::{File, Infos, TensorInfo};
use crate::metadata::Metadata;
use crate::options::Options;
use crate::status::{Failure, Status, answer, guard};
use forebay::{Format, Plan};
use std::ffi::{OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

/// A model whose headers have been read, and none of its tensors.
pub struct Model {
    pub(crate) model: forebay::Model,
    infos: Infos,
    files: Box<[File]>,
    _paths: Vec<Text>,
    pub(crate) metadata: Metadata,
}

// SAFETY: the pointers lead to memory that the value owns and that nobody writes to.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    fn new(model: forebay::Model) -> Self {
        let catalog = model.catalog();
        let path = |file| Text::new(model.file_path(file).as_os_str().as_bytes());
        let paths: Vec<Text> = (0..catalog.files().len()).map(path).collect();
        let sizes = catalog.files().iter().map(|file| file.bytes);
        let files = paths.iter().zip(sizes);
        let files = files.map(|(path, bytes)| File { path: path.as_ptr(), bytes }).collect();
        let (infos, metadata) = (Infos::of(catalog), Metadata::of(catalog.metadata()));
        Self { infos, files, _paths: paths, metadata, model }
    }
}

/// A path of C's: bytes, whatever they are.
///
/// # Safety
/// As [`bytes`].
pub(crate) unsafe fn path(path: *const c_char) -> Result<PathBuf, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { bytes(path, "path") }?;
    Ok(Path::new(OsStr::from_bytes(bytes)).to_owned())
}

/// Opens a .gguf file (one part of a split one opens them all), a .safetensors file, a
/// *.safetensors.index.json, a .ptd file, or a folder that holds exactly one such model, and reads
/// its headers. The path is bytes, as the system has them.
///
/// FOREBAY_FILE where it can't be opened, FOREBAY_FORMAT where it is no model, FOREBAY_READ where
/// the headers can't be read.
///
/// Threads: any. The caller frees the model with forebay_model_free.
///
/// # Safety
/// The path ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_open(
    path: *const c_char,
    model: Option<&mut MaybeUninit<*mut Model>>,
) -> Status {
    guard(|| {
        let model = place(model, ptr::null_mut())?;
        // SAFETY: C lends the text for the call.
        let path = unsafe { self::path(path) }?;
        *model = handle(Model::new(forebay::Model::open(path)?));
        Ok(())
    })
}

/// Closes the model; what it has handed out is gone with it. NULL is fine. Loads need no open
/// model.
///
/// Threads: any, once nobody uses it.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_free(model: Option<Box<Model>>) {
    answer((), || {
        drop(model);
        Ok(())
    });
}

/// The format: "gguf", "safetensors" or "ptd"; a text that lives for ever. NULL for NULL.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_format(model: Option<&Model>) -> *const c_char {
    answer(ptr::null(), || {
        let name = match given(model, "model")?.model.catalog().format() {
            Format::Gguf => c"gguf",
            Format::Safetensors => c"safetensors",
            Format::Ptd => c"ptd",
            other => return Err(Failure::invalid(format!("'{other}' has no name in C"))),
        };
        Ok(name.as_ptr())
    })
}

/// How many files the model has. 0 for NULL.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_file_count(model: Option<&Model>) -> usize {
    answer(0, || Ok(model.map_or(0, |model| model.files.len())))
}

/// A file by its index. It lives as long as the model.
///
/// FOREBAY_INVALID_ARGUMENT past the end.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_file(
    model: Option<&Model>,
    index: usize,
    file: Option<&mut MaybeUninit<*const File>>,
) -> Status {
    guard(|| {
        let file = place(file, ptr::null())?;
        let files = &given(model, "model")?.files;
        let found = files.get(index);
        *file = found.ok_or_else(|| Failure::past_end("file", index, files.len()))?;
        Ok(())
    })
}

/// How many tensors the model has. 0 for NULL.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_tensor_count(model: Option<&Model>) -> usize {
    answer(0, || Ok(model.map_or(0, |model| model.infos.len())))
}

/// A tensor by its index; they are in file order. It lives as long as the model.
///
/// FOREBAY_INVALID_ARGUMENT past the end.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_model_tensor(
    model: Option<&Model>,
    index: usize,
    info: Option<&mut MaybeUninit<*const TensorInfo>>,
) -> Status {
    guard(|| {
        let info = place(info, ptr::null())?;
        let infos = &given(model, "model")?.infos;
        let found = infos.get(index);
        *info = found.ok_or_else(|| Failure::past_end("tensor", index, infos.len()))?;
        Ok(())
    })
}

/// A tensor by its name, in UTF-8. It lives as long as the model.
///
/// FOREBAY_NOT_FOUND if there is none.
///
/// Threads: several at once.
///
/// # Safety
/// The name ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_model_find_tensor(
    model: Option<&Model>,
    name: *const c_char,
    info: Option<&mut MaybeUninit<*const TensorInfo>>,
) -> Status {
    guard(|| {
        let info = place(info, ptr::null())?;
        let model = given(model, "model")?;
        // SAFETY: C lends the text for the call.
        let name = unsafe { text(name, "name") }?;
        let found = model.model.catalog().position(name).and_then(|index| model.infos.get(index));
        *info = found.ok_or_else(|| no_tensor(name))?;
        Ok(())
    })
}

pub(crate) fn no_tensor(name: &str) -> Failure {
    Failure::new(Status::ForebayNotFound, format!("the model has no tensor '{name}'"))
}

/// What a load of the model with these options (NULL: the defaults) would do, and why, as one JSON
/// object: what `forebay plan --json` prints. No tensor is read.
///
/// FOREBAY_OPTION where the options can't be met together.
///
/// Threads: several at once. The caller frees the text with forebay_text_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_plan_json(
    model: Option<&Model>,
    options: Option<&Options>,
    json: Option<&mut MaybeUninit<*mut c_char>>,
) -> Status {
    guard(|| {
        let json = place(json, ptr::null_mut())?;
        let model = &given(model, "model")?.model;
        let defaults = forebay::Options::default();
        let options = options.map_or(&defaults, |options| &options.0);
        *json = to_json(&Plan::new(model, options)?.report())?;
        Ok(())
    })
}

pub(crate) fn to_json(report: &impl serde::Serialize) -> Result<*mut c_char, Failure> {
    let text = serde_json::to_string(report);
    let text = text.map_err(|error| Failure::new(Status::ForebayInternal, error.to_string()))?;
    text_for_c(text)
}

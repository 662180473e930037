//! Errors of forebay as exceptions of Python.

use forebay::{Error, OpenErrorKind};
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::error::Error as _;
use std::path::Path;

/// The exception that says what `error` says, its causes and its remedy. What the system answered
/// when a file was opened or read is an `OSError`, a wrong option a `ValueError`, and everything
/// else a `forebay.Error`.
pub(crate) fn raise(error: &Error) -> PyErr {
    match error {
        Error::Open(open) => match &open.kind {
            OpenErrorKind::Errno(errno) => system(*errno as i32, &open.path),
            _ => of_class("Error", &told(error)),
        },
        Error::Header { path, source } => match source.raw_os_error() {
            Some(errno) => system(errno, path),
            None => of_class("FormatError", &told(error)),
        },
        Error::Format(_) | Error::NoModel { .. } => of_class("FormatError", &told(error)),
        Error::Option { .. } => PyValueError::new_err(told(error)),
        Error::Memory { .. } | Error::DeviceFull { .. } => PyMemoryError::new_err(told(error)),
        Error::Read { context, failure } => match (&failure.kind, &context.path) {
            (forebay::FailureKind::Errno(errno), path) => {
                let path = path.as_ref().map(|path| path.display().to_string());
                PyOSError::new_err((*errno as i32, told(error), path))
            }
            _ => of_class("Error", &told(error)),
        },
        Error::Cancelled => of_class("Cancelled", &told(error)),
        _ => of_class("Error", &told(error)),
    }
}

/// The message, its causes, and the remedy.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    match error.remedy() {
        Some(remedy) => format!("{text} ({remedy})"),
        None => text,
    }
}

/// A class of `forebay._errors` with a message.
pub(crate) fn of_class(class: &str, message: &str) -> PyErr {
    let made = |py: Python<'_>| -> PyResult<PyErr> {
        let class = py.import("forebay._errors")?.getattr(class)?;
        Ok(PyErr::from_value(class.call1((message,))?))
    };
    Python::attach(|py| made(py).unwrap_or_else(|error| error))
}

/// What the system answered for a file: `FileNotFoundError` and its likes. The words are those of
/// safetensors where the file is missing, since callers compare them.
pub(crate) fn system(errno: i32, path: &Path) -> PyErr {
    let path = path.display().to_string();
    if errno == libc::ENOENT {
        let message = format!("No such file or directory: {path}");
        return pyo3::exceptions::PyFileNotFoundError::new_err(message);
    }
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_owned();
    PyOSError::new_err((errno, text, path))
}

/// A panic of ours.
pub(crate) fn internal() -> PyErr {
    PyRuntimeError::new_err("internal error: a thread panicked; please report it")
}

//! How errors and panics reach C: a number, and a text for the thread that made the call.

use forebay::{DeviceError, Error};
use std::any::Any;
use std::cell::RefCell;
use std::error::Error as _;
use std::ffi::{CString, c_char};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended. Numbers are never given anew; later versions may add some.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "C has one space of names for all enums")]
pub enum Status {
    /// It did what it says.
    ForebayOk = 0,
    /// A NULL, an index past the end, a text that is not UTF-8, a load of the process that this one was
    /// forked from: the call itself was wrong.
    ForebayInvalidArgument = 1,
    /// There is nothing of that name, or it is of another type.
    ForebayNotFound = 2,
    /// A file can't be opened: it is not there, or may not be read.
    ForebayFile = 3,
    /// The file is damaged, or is no model.
    ForebayFormat = 4,
    /// An option that is none, or that can't be met; lent memory that does not fit.
    ForebayOption = 5,
    /// A read failed: the storage, or a file that was cut short.
    ForebayRead = 6,
    /// The system refuses memory, locks or threads.
    ForebayMemory = 7,
    /// A device, its driver, or a copy to it failed.
    ForebayDevice = 8,
    /// The tensors do not fit into the memory of a device: fewer layers may.
    ForebayDeviceMemory = 9,
    /// A file was written to while it was being loaded.
    ForebayChanged = 10,
    /// forebay_cancel_request was called.
    ForebayCancelled = 11,
    /// A callback answered other than 0.
    ForebayStopped = 12,
    /// A bug of forebay's. The handles of the call may only be freed.
    ForebayInternal = 13,
}

/// Why a call fails.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Status::ForebayInvalidArgument, message)
    }

    pub(crate) fn null(what: &str) -> Self {
        Self::invalid(format!("{what} is NULL"))
    }

    pub(crate) fn past_end(what: &str, index: usize, count: usize) -> Self {
        Self::invalid(format!("{what} {index} of {count}: they are counted from 0"))
    }

    fn panicked(payload: &(dyn Any + Send)) -> Self {
        let words = payload.downcast_ref::<&str>().copied();
        let words = words.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let words = words.unwrap_or("a panic without words");
        Self::from(Error::Internal(words.to_owned()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // Writing to a string does not fail.
            let _ = write!(message, "\n  because: {error}");
            cause = error.source();
        }
        if let Some(remedy) = error.remedy() {
            let _ = write!(message, "\n  remedy: {remedy}");
        }
        Self { status: status_of(&error), message }
    }
}

fn status_of(error: &Error) -> Status {
    match error {
        Error::Open(_) => Status::ForebayFile,
        Error::NoModel { .. } | Error::Format(_) => Status::ForebayFormat,
        // The end of the file before the header's has no errno.
        Error::Header { source, .. } if source.raw_os_error().is_none() => Status::ForebayFormat,
        Error::Header { .. } | Error::Read { .. } => Status::ForebayRead,
        Error::Option { .. } | Error::Budget { .. } => Status::ForebayOption,
        Error::Changed { .. } => Status::ForebayChanged,
        Error::Memory { .. } | Error::LockRefused { .. } | Error::Thread { .. } => {
            Status::ForebayMemory
        }
        Error::Device(DeviceError::OutOfMemory { .. }) | Error::DeviceFull { .. } => {
            Status::ForebayDeviceMemory
        }
        Error::Device(_) | Error::Copy { .. } => Status::ForebayDevice,
        Error::Cancelled => Status::ForebayCancelled,
        Error::Forked { .. } => Status::ForebayInvalidArgument,
        _ => Status::ForebayInternal,
    }
}

thread_local! {
    static LAST: RefCell<(Status, CString)> = RefCell::new((Status::ForebayOk, CString::default()));
}

fn note(failure: &Failure) -> Status {
    let status = failure.status;
    let message = failure.message.replace('\0', "\\0");
    let message = CString::new(message).expect("its NULs have just been replaced");
    // While the thread ends there is nobody to ask for it.
    let _ = LAST.try_with(|last| last.replace((status, message)));
    status
}

fn caught<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // Whatever a panic leaves half done is only freed afterwards: the header says so.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        #[cfg(test)]
        tests::panic_if_asked();
        work()
    }));
    outcome.unwrap_or_else(|payload| Err(Failure::panicked(&*payload)))
}

/// The end of a function that answers a status.
pub(crate) fn guard(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    caught(work).map_or_else(|failure| note(&failure), |()| Status::ForebayOk)
}

/// The end of a function that answers something else, and `otherwise` where that can't be had.
pub(crate) fn answer<T>(otherwise: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    caught(work).unwrap_or_else(|failure| {
        note(&failure);
        otherwise
    })
}

/// How the last call that failed on this thread ended; FOREBAY_OK if none has. Calls that go well
/// leave it alone.
///
/// Threads: each has its own.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_last_error_status() -> Status {
    LAST.try_with(|last| last.borrow().0).unwrap_or(Status::ForebayOk)
}

/// What was wrong with the last call that failed on this thread: a line, then a line for each cause
/// ("  because: ...") and one for what to do about it ("  remedy: ..."), where that is known.
/// UTF-8, never NULL, "" if none has failed. It lives until the next call that fails on the same
/// thread.
///
/// Threads: each has its own.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_last_error_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().1.as_ptr()).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cancel, Loaded, Loader, Model};
    use std::cell::Cell;
    use std::ffi::CStr;
    use std::mem::MaybeUninit;
    use std::ptr;

    thread_local! {
        static PANICS: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn panic_if_asked() {
        assert!(!PANICS.take(), "asked to\0panic");
    }

    fn message() -> String {
        // SAFETY: a text of this thread's, which nothing replaces before it is copied.
        unsafe { CStr::from_ptr(forebay_last_error_message()) }.to_str().unwrap().to_owned()
    }

    /// What a function answers when there is a panic inside it.
    fn with_panic<T>(call: impl FnOnce() -> T) -> T {
        PANICS.set(true);
        let answer = call();
        assert!(!PANICS.get(), "the function is not guarded");
        assert_eq!(forebay_last_error_status(), Status::ForebayInternal);
        assert!(message().starts_with("internal error: asked to\\0panic\n  remedy: "));
        answer
    }

    #[test]
    fn a_panic_inside_is_an_answer() {
        let internal = Status::ForebayInternal;
        assert_eq!((forebay_last_error_status(), message()), (Status::ForebayOk, String::new()));
        let mut model = MaybeUninit::<*mut Model>::new(ptr::dangling_mut());
        let path = c"nowhere".as_ptr();
        // SAFETY: a text that lives for ever.
        let open = || unsafe { crate::forebay_model_open(path, Some(&mut model)) };
        assert_eq!(with_panic(open), internal);
        let mut loaded = MaybeUninit::<*mut Loaded>::uninit();
        let loader = Box::new(Loader::new(forebay::Loader::new("nowhere"), None));
        let run = || crate::forebay_loader_run(Some(loader), Some(&mut loaded));
        assert_eq!(with_panic(run), internal);
        assert_eq!(with_panic(|| crate::forebay_model_tensor_count(None)), 0);
        assert_eq!(with_panic(|| crate::forebay_model_format(None)), ptr::null());
        with_panic(|| crate::forebay_release_staging());
        let mut cancel = MaybeUninit::<*mut Cancel>::uninit();
        assert_eq!(with_panic(|| crate::forebay_cancel_new(Some(&mut cancel))), internal);
    }

    #[test]
    fn each_thread_has_its_own_last_error() {
        assert_eq!(crate::forebay_cancel_new(None), Status::ForebayInvalidArgument);
        assert!(message().ends_with("is NULL"), "{}", message());
        let other = std::thread::spawn(|| (forebay_last_error_status(), message()));
        assert_eq!(other.join().unwrap(), (Status::ForebayOk, String::new()));
        assert_eq!(forebay_last_error_status(), Status::ForebayInvalidArgument);
    }
}

//! What to load and how, put together before it starts.

use crate::User;
use crate::cancel::Cancel;
use crate::edge::{given, handle, place, text};
use crate::load::Load;
use crate::loaded::Loaded;
use crate::model::{self, Model};
use crate::options::Options;
use crate::status::{Failure, Status, answer, guard};
use crate::tensor::Tensor;
use forebay::{DevicePointer, HostPointer, Progress};
use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Called for each tensor that has landed, with what was given along with it. Any answer but 0
/// stops the load, which ends with FOREBAY_STOPPED. The tensor lives on as one of forebay_load_next
/// does.
pub type TensorCallback =
    Option<unsafe extern "C" fn(user: *mut c_void, tensor: *const Tensor) -> c_int>;

/// Called with how many bytes of how many are where they belong. Any answer but 0 stops the load,
/// which ends with FOREBAY_STOPPED.
pub type ProgressCallback =
    Option<unsafe extern "C" fn(user: *mut c_void, done_bytes: u64, total_bytes: u64) -> c_int>;

/// A load that has not begun.
pub struct Loader {
    /// Without what is set below.
    loader: forebay::Loader,
    host: Vec<(String, HostPointer)>,
    device: Vec<(String, DevicePointer)>,
    cancel: forebay::Cancel,
    on_tensor: Option<OnTensor>,
    on_progress: Option<(OnProgress, Option<Duration>)>,
}

impl Loader {
    pub(crate) fn new(loader: forebay::Loader, options: Option<&Options>) -> Self {
        let options = options.map_or_else(Default::default, |options| options.0.clone());
        Self {
            loader: loader.options(options),
            host: Vec::new(),
            device: Vec::new(),
            cancel: forebay::Cancel::default(),
            on_tensor: None,
            on_progress: None,
        }
    }

    pub(crate) fn start(self) -> Result<Load, Failure> {
        // Its own flag: a callback that stops this load stops no other.
        let stop = Stop { cancel: self.cancel.child(), by_callback: Arc::default() };
        let mut loader = self.loader.cancel_with(&stop.cancel);
        for (name, memory) in self.host {
            loader = loader.into_host_memory(&name, memory);
        }
        for (name, memory) in self.device {
            loader = loader.into_device_memory(&name, memory);
        }
        if let Some((on_progress, interval)) = self.on_progress {
            let stop = stop.clone();
            loader = loader.on_progress(move |progress| on_progress.call(progress, &stop));
            if let Some(interval) = interval {
                loader = loader.progress_interval(interval);
            }
        }
        Ok(Load::new(loader.start()?, stop, self.on_tensor))
    }
}

/// How a load is told to end before its time.
#[derive(Clone)]
pub(crate) struct Stop {
    cancel: forebay::Cancel,
    by_callback: Arc<AtomicBool>,
}

impl Stop {
    pub(crate) fn stop(&self) {
        self.by_callback.store(true, Ordering::Relaxed);
        self.cancel.cancel();
    }

    /// That a callback has stopped the load, if one has.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.by_callback.load(Ordering::Relaxed) {
            return Err(Failure::new(Status::ForebayStopped, "a callback has stopped the load"));
        }
        Ok(())
    }
}

/// The caller's function for tensors.
pub(crate) struct OnTensor {
    function: unsafe extern "C" fn(*mut c_void, *const Tensor) -> c_int,
    user: User,
}

impl OnTensor {
    /// Whether the load goes on.
    pub(crate) fn call(&self, tensor: *const Tensor) -> bool {
        // SAFETY: `forebay_loader_on_tensor` demands a function that may be called with this.
        unsafe { (self.function)(self.user.0, tensor) == 0 }
    }
}

struct OnProgress {
    function: unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int,
    user: User,
}

impl OnProgress {
    fn call(&self, progress: Progress, stop: &Stop) {
        let Progress { done_bytes, total_bytes } = progress;
        // Who has said stop is not asked again while what is in flight ends.
        if stop.check().is_err() {
            return;
        }
        // SAFETY: `forebay_loader_on_progress` demands a function that may be called with this.
        if unsafe { (self.function)(self.user.0, done_bytes, total_bytes) } != 0 {
            stop.stop();
        }
    }
}

/// Makes a loader of the model at `path` (as forebay_model_open takes it) with these options (NULL:
/// the defaults), which are copied. Opens nothing yet.
///
/// Threads: any. The caller hands it to forebay_loader_run or forebay_load_start, or frees it with
/// forebay_loader_free.
///
/// # Safety
/// The path ends in NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loader_new(
    path: *const c_char,
    options: Option<&Options>,
    loader: Option<&mut MaybeUninit<*mut Loader>>,
) -> Status {
    guard(|| {
        let loader = place(loader, ptr::null_mut())?;
        // SAFETY: C lends the text for the call.
        let path = unsafe { model::path(path) }?;
        *loader = handle(Loader::new(forebay::Loader::new(path), options));
        Ok(())
    })
}

/// Makes a loader of a model that is open already: of those files, whatever their paths lead to by
/// now. The model may be freed before the load. That one of its files is written to between its
/// opening and the end of the load is FOREBAY_CHANGED.
///
/// Threads: any. The caller hands it to forebay_loader_run or forebay_load_start, or frees it with
/// forebay_loader_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loader_of(
    model: Option<&Model>,
    options: Option<&Options>,
    loader: Option<&mut MaybeUninit<*mut Loader>>,
) -> Status {
    guard(|| {
        let loader = place(loader, ptr::null_mut())?;
        let model = given(model, "model")?;
        *loader = handle(Loader::new(forebay::Loader::of(&model.model), options));
        Ok(())
    })
}

/// Lends memory of the caller's for a tensor, whatever the options say of it: its bytes are written
/// to `memory` on, as the file has them. `bytes` are at least the tensor's; what is behind them is
/// not touched. As many tensors as the model has may be lent memory, at any alignment; places must
/// not overlap. `memory` may be NULL if `bytes` are 0.
///
/// An unknown name and memory that is too small are FOREBAY_OPTION when the load starts.
///
/// Threads: one at a time.
///
/// # Safety
/// - The name ends in NUL.
/// - The memory stays the caller's. It stays allocated, and nobody reads or writes it, until the
///   tensor has been handed out; then it may be read, and stays allocated and unwritten until
///   forebay_loader_run, forebay_load_start or forebay_load_finish has failed, or the forebay_load
///   or forebay_loaded has been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loader_into_host(
    loader: Option<&mut Loader>,
    name: *const c_char,
    memory: *mut c_void,
    bytes: u64,
) -> Status {
    guard(|| {
        let loader = given(loader, "loader")?;
        // SAFETY: C lends the text for the call.
        let name = unsafe { text(name, "name") }?.to_owned();
        if memory.is_null() && bytes > 0 {
            return Err(Failure::null("memory"));
        }
        // SAFETY: C's promise; the header says until when it holds.
        let memory = unsafe { HostPointer::new(memory.cast(), bytes) };
        loader.host.push((name, memory));
        Ok(())
    })
}

/// The same with memory of the CUDA device `ordinal`, at `address` of its address space (a
/// CUdeviceptr of the device's primary context, which is the one of CUDA's runtime).
///
/// An unknown name and memory that is too small are FOREBAY_OPTION when the load starts, memory
/// that is not the device's is FOREBAY_DEVICE.
///
/// Threads: one at a time.
///
/// # Safety
/// - The name ends in NUL.
/// - The memory as in forebay_loader_into_host; and whatever was queued on it before has completed,
///   since copies go through streams that wait for no other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loader_into_device(
    loader: Option<&mut Loader>,
    name: *const c_char,
    ordinal: u32,
    address: u64,
    bytes: u64,
) -> Status {
    guard(|| {
        let loader = given(loader, "loader")?;
        // SAFETY: C lends the text for the call.
        let name = unsafe { text(name, "name") }?.to_owned();
        // SAFETY: C's promise; the header says until when it holds.
        let memory = unsafe { DevicePointer::new(ordinal, address, bytes) };
        loader.device.push((name, memory));
        Ok(())
    })
}

/// Has `callback` called for every tensor as it lands, by forebay_loader_run and
/// forebay_load_finish (forebay_load_next hands its tensor out instead). NULL for none.
///
/// Threads: one at a time.
///
/// # Safety
/// The callback may be called with `user` until the load ends, on the thread that runs it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loader_on_tensor(
    loader: Option<&mut Loader>,
    callback: TensorCallback,
    user: *mut c_void,
) -> Status {
    guard(|| {
        let on_tensor = callback.map(|function| OnTensor { function, user: User(user) });
        given(loader, "loader")?.on_tensor = on_tensor;
        Ok(())
    })
}

/// Has `callback` called with the progress, at most every `interval_ms` milliseconds (0: 100) and
/// at the end, by forebay_loader_run, forebay_load_next and forebay_load_finish. NULL for none.
///
/// Threads: one at a time.
///
/// # Safety
/// The callback may be called with `user` until the load ends, on the thread that runs it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_loader_on_progress(
    loader: Option<&mut Loader>,
    callback: ProgressCallback,
    user: *mut c_void,
    interval_ms: u32,
) -> Status {
    guard(|| {
        let interval = (interval_ms > 0).then(|| Duration::from_millis(interval_ms.into()));
        let on_progress = callback.map(|function| OnProgress { function, user: User(user) });
        given(loader, "loader")?.on_progress = on_progress.map(|it| (it, interval));
        Ok(())
    })
}

/// Lets `cancel` stop the load. The flag may be freed before the load ends.
///
/// Threads: one at a time for the loader, any for the flag.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loader_cancel_with(
    loader: Option<&mut Loader>,
    cancel: Option<&Cancel>,
) -> Status {
    guard(|| {
        given(loader, "loader")?.cancel = given(cancel, "cancel")?.0.clone();
        Ok(())
    })
}

/// Loads everything, and returns when all of it is there or the load has failed; then nothing is in
/// flight and no thread of it runs. The loader is consumed, also by a failure.
///
/// Fails with everything that forebay_status names.
///
/// Threads: one at a time; it blocks. The caller frees the result with forebay_loaded_free.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loader_run(
    loader: Option<Box<Loader>>,
    loaded: Option<&mut MaybeUninit<*mut Loaded>>,
) -> Status {
    guard(|| {
        let loaded = place(loaded, ptr::null_mut())?;
        *loaded = handle(given(loader, "loader")?.start()?.finish()?);
        Ok(())
    })
}

/// Frees a loader that was never run or started. NULL is fine.
///
/// Threads: any, once nobody uses it.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_loader_free(loader: Option<Box<Loader>>) {
    answer((), || {
        drop(loader);
        Ok(())
    });
}

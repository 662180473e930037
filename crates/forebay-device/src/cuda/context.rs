//! A device's primary context, shared with everybody in the process who uses that device.

use super::cublaslt;
use super::driver::Driver;
use super::error::{DriverRefusal, Unavailable};
use super::module::Modules;
use super::query;
use cudarc::driver::sys::{CUcontext, CUdevice, CUstreamCaptureMode};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A device that is in use. Cheap to share; the context goes with its last owner.
#[derive(Debug)]
pub struct Context {
    driver: &'static Driver,
    device: CUdevice,
    ordinal: u32,
    handle: CUcontext,
    pub(super) modules: Modules,
    pub(super) cublaslt: cublaslt::OfContext,
}

// SAFETY: a context handle belongs to the process, not to a thread; it is valid until `drop`
// releases it, and the driver's functions may be called from every thread.
unsafe impl Send for Context {}
// SAFETY: as above; all methods are calls of the driver, which serialises them.
unsafe impl Sync for Context {}

impl Context {
    /// The context of a device, made by the first who asks.
    ///
    /// # Errors
    /// Where there is no such device, or the driver gives no context (its memory is full, or
    /// somebody holds the device for himself).
    pub fn of(ordinal: u32) -> Result<Arc<Self>, Unavailable> {
        type Known = Arc<Mutex<Weak<Context>>>;
        static CONTEXTS: Mutex<BTreeMap<u32, Known>> = Mutex::new(BTreeMap::new());
        let known = {
            let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(contexts.entry(ordinal).or_default())
        };
        // Making one takes long; others are made meanwhile.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = known.upgrade() {
            return Ok(context);
        }
        let driver = Driver::get()?;
        let device = query::handle(driver, ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle to a variable of this frame; the device is the driver's own.
        let code = unsafe { (driver.calls.cuDevicePrimaryCtxRetain)(&raw mut handle, device) };
        let refused = |refusal| Unavailable::Refused { refusal };
        driver.check("cuDevicePrimaryCtxRetain", code).map_err(refused)?;
        let (modules, cublaslt) = Default::default();
        let context = Arc::new(Self { driver, device, ordinal, handle, modules, cublaslt });
        *known = Arc::downgrade(&context);
        Ok(context)
    }

    /// The device's number.
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The device's name in reports.
    #[must_use]
    pub fn name(&self) -> String {
        format!("cuda:{}", self.ordinal)
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Makes the context current on this thread for as long as the guard lives. What was current
    /// before is so again afterwards: the thread may be that of a program with contexts of its own.
    pub(super) fn enter(&self) -> Result<Entered<'_>, DriverRefusal> {
        // SAFETY: the context is retained until `self` is dropped.
        let code = unsafe { (self.driver.calls.cuCtxPushCurrent_v2)(self.handle) };
        self.driver.check("cuCtxPushCurrent", code)?;
        // Somebody may be capturing a graph; what is done here belongs to none.
        let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let capture_mode = self.exchange_capture_mode(relaxed);
        Ok(Entered { context: self, capture_mode, not_send: PhantomData })
    }

    /// Sets how strictly graphs that others capture take calls of this thread; returns how it was.
    fn exchange_capture_mode(&self, mut mode: CUstreamCaptureMode) -> CUstreamCaptureMode {
        // SAFETY: reads and writes one mode, a variable of this frame; the driver answers with one
        // of the three that there are, having been given one of them.
        unsafe { (self.driver.calls.cuThreadExchangeStreamCaptureMode)(&raw mut mode) };
        mode
    }

    /// Waits until the device has done all that was queued on it.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn synchronize(&self) -> Result<(), DriverRefusal> {
        let _entered = self.enter()?;
        // SAFETY: takes nothing; a context is current.
        let code = unsafe { (self.driver.calls.cuCtxSynchronize)() };
        self.driver.check("cuCtxSynchronize", code)
    }

    /// Free and total bytes of the device's memory.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn memory_bytes(&self) -> Result<(u64, u64), DriverRefusal> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers to variables of this frame.
        let code = unsafe { (self.driver.calls.cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.driver.check("cuMemGetInfo", code)?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.close_cublaslt();
        self.unload_modules();
        // SAFETY: retained once by `of`. Whoever has memory, streams or events in this context
        // holds an owner of it, so all of those are gone.
        unsafe { (self.driver.calls.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

/// The context is current on the thread that this is on.
pub(super) struct Entered<'context> {
    context: &'context Context,
    /// The thread's own, to be given back to it.
    capture_mode: CUstreamCaptureMode,
    not_send: PhantomData<*const ()>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.context.exchange_capture_mode(self.capture_mode);
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what `enter` has pushed on this very thread, guards ending in the reverse
        // order of their coming; writes one handle to a variable of this frame.
        unsafe { (self.context.driver.calls.cuCtxPopCurrent_v2)(&raw mut popped) };
    }
}

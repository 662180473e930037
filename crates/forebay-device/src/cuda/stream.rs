//! Streams and the events that mark points in them.

use super::context::Context;
use super::error::DriverRefusal;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUstream, CUstream_flags};
use std::sync::Arc;
use std::time::Duration;

/// A queue of work for a device, independent of all others.
#[derive(Debug)]
pub(super) struct Stream {
    context: Arc<Context>,
    handle: CUstream,
}

// SAFETY: the handle belongs to the process and is valid until `drop`; the driver's functions may
// be called from every thread.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver serialises calls on one stream.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverRefusal> {
        let _entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle to a variable of this frame; a context is current.
        let code = unsafe { (context.driver().calls.cuStreamCreate)(&raw mut handle, flags) };
        context.driver().check("cuStreamCreate", code)?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn handle(&self) -> CUstream {
        self.handle
    }

    /// Waits for all that was queued. After an error nothing of it runs any more.
    pub(super) fn synchronize(&self) -> Result<(), DriverRefusal> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream lives until `self` is dropped.
        let code = unsafe { (self.context.driver().calls.cuStreamSynchronize)(self.handle) };
        self.context.driver().check("cuStreamSynchronize", code)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created by `new`, destroyed once; the driver keeps it until its work is done.
            unsafe { (self.context.driver().calls.cuStreamDestroy_v2)(self.handle) };
        }
    }
}

/// A point in a stream that can be waited for, without keeping a core busy. May be recorded again
/// and again.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: as for `Stream`.
unsafe impl Send for Event {}
// SAFETY: as for `Stream`.
unsafe impl Sync for Event {}

impl Event {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, DriverRefusal> {
        Self::with(context, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// One that notes when it is come to, by the device's clock.
    pub(super) fn timed(context: &Arc<Context>) -> Result<Self, DriverRefusal> {
        Self::with(context, 0)
    }

    fn with(context: &Arc<Context>, flags: u32) -> Result<Self, DriverRefusal> {
        let _entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32 | flags;
        // SAFETY: writes one handle to a variable of this frame; a context is current.
        let code = unsafe { (context.driver().calls.cuEventCreate)(&raw mut handle, flags) };
        context.driver().check("cuEventCreate", code)?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    /// Marks what has been queued so far.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), DriverRefusal> {
        let _entered = self.context.enter()?;
        // SAFETY: event and stream live, and belong to the same context.
        let code =
            unsafe { (self.context.driver().calls.cuEventRecord)(self.handle, stream.handle()) };
        self.context.driver().check("cuEventRecord", code)
    }

    /// From another one to this, both of which were timed and have been come to.
    pub(super) fn since(&self, begin: &Self) -> Result<Duration, DriverRefusal> {
        let _entered = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: both events live; writes one number to a variable of this frame.
        let code = unsafe {
            (self.context.driver().calls.cuEventElapsedTime)(
                &raw mut milliseconds,
                begin.handle,
                self.handle,
            )
        };
        self.context.driver().check("cuEventElapsedTime", code)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    /// Sleeps until the device has come to the mark.
    pub(super) fn synchronize(&self) -> Result<(), DriverRefusal> {
        let _entered = self.context.enter()?;
        // SAFETY: the event lives until `self` is dropped.
        let code = unsafe { (self.context.driver().calls.cuEventSynchronize)(self.handle) };
        self.context.driver().check("cuEventSynchronize", code)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: created by `new`, destroyed once; allowed even before it has completed.
            unsafe { (self.context.driver().calls.cuEventDestroy_v2)(self.handle) };
        }
    }
}

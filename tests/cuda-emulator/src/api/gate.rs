//! What every entry point does before its own work, and the current context of a thread.

use crate::device::Device;
use crate::driver::{Driver, driver};
use crate::error::{Answer, Code};
use crate::event::Event;
use crate::stream::Stream;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

thread_local! {
    /// Handles of the contexts that the thread pushed, the current one last.
    static CONTEXTS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Where a caller wants an answer.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Room that a caller named in another way.
    pub(crate) fn at(room: *mut T) -> Self {
        Self(room)
    }

    /// Writes the answer.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` if the address is null.
    pub(crate) fn give(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: an `Out` only comes from a caller of an entry point, who owes room for a `T`.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// Writes the answer, if it is wanted.
    pub(crate) fn give_if_wanted(self, value: T) {
        let _ = self.give(value);
    }

    /// The room itself, for answers of several elements.
    pub(crate) fn address(self) -> *mut T {
        self.0
    }
}

/// What an entry point needs before it does anything.
pub(crate) trait Gate: Sized {
    fn enter(current: Current) -> Answer<Self>;

    /// What the call answers after all, when its own work has succeeded.
    fn leave(&self) -> Answer {
        Ok(())
    }
}

/// Needs nothing.
pub(crate) struct Anytime {
    pub(crate) driver: &'static Driver,
}

/// Needs `cuInit`; knows the thread's current context, if there is one.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) driver: &'static Driver,
    device: Option<Arc<Device>>,
}

/// Needs a current context in which nothing has failed.
pub(crate) struct InContext {
    pub(crate) driver: &'static Driver,
    pub(crate) device: Arc<Device>,
}

/// Needs a current context. If something has failed in it, the call does its work all the same,
/// and answers the error: else nothing could be freed after an error.
pub(crate) struct Freeing(InContext);

impl Gate for Anytime {
    fn enter(current: Current) -> Answer<Self> {
        Ok(Self { driver: current.driver })
    }
}

impl Gate for Current {
    fn enter(current: Current) -> Answer<Self> {
        if current.driver.is_initialised() { Ok(current) } else { Err(Code::NOT_INITIALIZED) }
    }
}

impl Gate for InContext {
    fn enter(current: Current) -> Answer<Self> {
        let Freeing(call) = Freeing::enter(current)?;
        call.device.check()?;
        Ok(call)
    }
}

impl Gate for Freeing {
    fn enter(current: Current) -> Answer<Self> {
        let current = Current::enter(current)?;
        Ok(Self(InContext { driver: current.driver, device: current.device()? }))
    }

    fn leave(&self) -> Answer {
        self.device.check()
    }
}

impl std::ops::Deref for Freeing {
    type Target = InContext;

    fn deref(&self) -> &InContext {
        &self.0
    }
}

impl Current {
    fn now() -> Self {
        let driver = driver();
        let device = current_context().and_then(|handle| driver.context(handle).ok());
        Self { driver, device }
    }

    /// The device of the current context.
    pub(crate) fn device(&self) -> Answer<Arc<Device>> {
        let device = self.device.clone().ok_or(Code::INVALID_CONTEXT)?;
        if device.retained() == 0 { Err(Code::CONTEXT_IS_DESTROYED) } else { Ok(device) }
    }

    /// The stream of a handle, of whichever device; null is the current device's default one.
    pub(crate) fn any_stream(&self, handle: usize) -> Answer<Arc<Stream>> {
        match handle {
            // Null, legacy, and the thread's own default stream, which is not told apart.
            0..=2 => self.device()?.default_stream(),
            _ => self.driver.streams.get(handle),
        }
    }

    pub(crate) fn event(&self, handle: usize) -> Answer<Arc<Event>> {
        self.driver.events.get(handle)
    }
}

impl InContext {
    /// The stream of a handle, for work: it must belong to the current context.
    pub(crate) fn stream(&self, handle: usize) -> Answer<Arc<Stream>> {
        if handle <= 2 {
            return self.device.default_stream();
        }
        let stream = self.driver.streams.get(handle)?;
        if stream.device.ordinal == self.device.ordinal {
            return Ok(stream);
        }
        let (is, current) = (stream.device.ordinal, self.device.ordinal);
        eprintln!("[cuda emulator] a stream of device {is} in the context of device {current}");
        Err(Code::INVALID_HANDLE)
    }
}

/// The handle of the thread's current context.
pub(crate) fn current_context() -> Option<usize> {
    with_contexts(|contexts| contexts.last().copied()).flatten()
}

/// Works on the thread's contexts; `None` in a thread that is ending.
pub(crate) fn with_contexts<T>(work: impl FnOnce(&mut Vec<usize>) -> T) -> Option<T> {
    CONTEXTS.try_with(|contexts| work(&mut contexts.borrow_mut())).ok()
}

/// Performs an entry point: counted, perhaps told to fail, behind its gate.
pub(crate) fn answer<G: Gate>(name: &'static str, work: impl FnOnce(&G) -> Answer) -> u32 {
    let call = || -> Answer {
        let current = Current::now();
        let behaviour = current.driver.behaviour();
        current.driver.count_call(name);
        if behaviour.config.log {
            eprintln!("[cuda emulator] {name}");
        }
        let ordinal = current.device.as_ref().map(|device| device.ordinal);
        if let Some(code) = behaviour.faults.call(name, ordinal) {
            return Err(code);
        }
        let gate = G::enter(current)?;
        work(&gate)?;
        gate.leave()
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => {
            eprintln!("[cuda emulator] {name} failed by a fault of the emulator");
            Code::UNKNOWN.0
        }
    }
}

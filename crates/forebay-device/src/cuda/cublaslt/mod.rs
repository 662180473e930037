//! NVIDIA's cuBLASLt, for dense products where it is installed.
//!
//! It is never linked, and its absence is no error: whoever asks for a product is told why it does
//! not serve, and takes a kernel that is built in. A context has one handle, made when it is first
//! asked for, and keeps the algorithms that the library chose.

mod descriptors;
mod library;
mod plan;

use super::context::Context;
use super::error::LibraryRefusal;
use super::stream::Stream;
use cudarc::cublaslt::sys::cublasLtHandle_t;
use library::Library;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub(super) use plan::{Plan, Shape};

/// What an algorithm may have beside the operands, once a stream: as much as NVIDIA recommends for
/// Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// So many algorithms are kept; whoever has more shapes than that starts anew.
const PLANS_MAX: usize = 1 << 12;

type Planned = Result<Arc<Plan>, Arc<str>>;

/// The library on one device.
#[derive(Debug)]
pub(super) struct CublasLt {
    library: &'static Library,
    handle: cublasLtHandle_t,
    plans: Mutex<BTreeMap<Shape, Planned>>,
}

// SAFETY: the handle belongs to the process, not to a thread, and is valid until `close`; the
// library's functions may be called from every thread, with the same handle too.
unsafe impl Send for CublasLt {}
// SAFETY: as above; all else is behind a lock.
unsafe impl Sync for CublasLt {}

/// A context's library, or why it has none.
#[derive(Debug, Default)]
pub(super) struct OfContext(OnceLock<Result<CublasLt, Arc<str>>>);

impl Context {
    /// The library on this device, opened if it was not yet; else why it does not serve, which is
    /// found out once a context.
    pub(super) fn cublaslt(&self) -> Result<&CublasLt, Arc<str>> {
        self.cublaslt.0.get_or_init(|| CublasLt::open(self)).as_ref().map_err(Arc::clone)
    }

    /// To be called once, when the context goes: whoever multiplies holds the context until the
    /// products have been made.
    pub(super) fn close_cublaslt(&mut self) {
        let Some(Ok(library)) = self.cublaslt.0.take() else { return };
        if let Ok(_entered) = self.enter() {
            library.close();
        }
    }
}

impl CublasLt {
    fn open(context: &Context) -> Result<Self, Arc<str>> {
        let library = Library::get(context.driver())?;
        let _entered = context.enter().map_err(|refusal| refusal.to_string())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle to a variable of this frame; the context it is for is current.
        let code = unsafe { (library.calls.cublasLtCreate)(&raw mut handle) };
        library.check("cublasLtCreate", code).map_err(|refusal| refusal.to_string())?;
        Ok(Self { library, handle, plans: Mutex::default() })
    }

    /// What the library does for products of that shape; else why it does none.
    pub(super) fn plan(&self, context: &Context, shape: Shape) -> Planned {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(planned) = plans.get(&shape) {
            return planned.clone();
        }
        let planned = self.make(context, shape);
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        plans.insert(shape, planned.clone());
        planned
    }

    fn make(&self, context: &Context, shape: Shape) -> Planned {
        let _entered = context.enter().map_err(|refusal| refusal.to_string())?;
        let plan = Plan::new(self.library, self.handle, shape);
        let plan = plan.map_err(|refusal| refusal.to_string())?;
        let (major, minor) = self.library.version;
        let none = || format!("version {major}.{minor} has no algorithm for this product");
        Ok(Arc::new(plan.ok_or_else(none)?))
    }

    /// Queues a product on a stream of the device, whose context is current.
    ///
    /// # Safety
    /// As for [`Plan::queue`], but for the handle.
    pub(super) unsafe fn queue(
        &self,
        plan: &Plan,
        operands: [u64; 3],
        workspace: u64,
        stream: &Stream,
    ) -> Result<(), LibraryRefusal> {
        // SAFETY: the caller's promise; the handle is this library's, and of this device.
        unsafe { plan.queue(self.handle, operands, workspace, stream) }
    }

    /// Gives the handle back; the context is current.
    fn close(self) {
        drop(self.plans);
        // SAFETY: created by `open`, destroyed once; nobody uses it any more (`close_cublaslt`).
        unsafe { (self.library.calls.cublasLtDestroy)(self.handle) };
    }
}

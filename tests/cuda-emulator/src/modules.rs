//! Modules and kernels: the room for an interpreter. There is none yet, so images are refused.

use crate::device::Device;
use crate::error::{Answer, Code};
use std::ffi::c_void;
use std::sync::Arc;

/// Kernels that were loaded together.
pub(crate) trait Module: Send + Sync {
    /// The kernel of this name.
    fn function(&self, name: &str) -> Option<Arc<dyn Function>>;
}

/// A kernel.
pub(crate) trait Function: Send + Sync {
    /// A `CUfunction_attribute`, by number.
    fn attribute(&self, attribute: i32) -> Answer<i32>;
    /// Sets one.
    fn set_attribute(&self, attribute: i32, value: i32) -> Answer;
    /// Copies the arguments, checks the shape, and answers what a stream is to perform.
    ///
    /// # Safety
    /// `arguments` is what the caller of `cuLaunchKernel` gave: one address a parameter.
    unsafe fn prepare(
        &self,
        device: &Arc<Device>,
        shape: LaunchShape,
        arguments: *mut *mut c_void,
    ) -> Answer<Box<dyn FnOnce() -> Answer + Send>>;
}

/// How many threads a launch has, and how much shared memory beside what the kernel declares.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "read by the interpreter to come")]
pub(crate) struct LaunchShape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
}

/// Loads an image for a device.
///
/// # Safety
/// `image` is what the caller of `cuModuleLoadData` gave.
#[allow(clippy::unnecessary_wraps, reason = "an interpreter will answer modules")]
pub(crate) unsafe fn load(_device: &Device, _image: *const c_void) -> Answer<Arc<dyn Module>> {
    Err(Code::NOT_SUPPORTED)
}

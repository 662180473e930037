//! Modules of kernels: compiled by the driver once a device, and kept as long as its context.

use super::context::Context;
use super::error::DriverRefusal;
use super::kernels;
use crate::error::DeviceError;
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule};
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

/// The kernels that a context has compiled.
#[derive(Debug, Default)]
pub(super) struct Modules(Mutex<Compiled>);

#[derive(Debug, Default)]
struct Compiled {
    /// By file.
    modules: BTreeMap<&'static str, CUmodule>,
    /// By file and entry.
    functions: BTreeMap<(&'static str, &'static str), Function>,
}

// SAFETY: the handles belong to the process, not to a thread, and are valid as long as the context
// that has them; the driver's functions may be called from every thread.
unsafe impl Send for Modules {}
// SAFETY: as above; they are behind a lock.
unsafe impl Sync for Modules {}

/// A kernel of a context that lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub(super) CUfunction);

impl Context {
    /// A kernel, compiled if it was not yet, allowed so much shared memory of its own asking.
    pub(super) fn function(
        &self,
        ptx: &'static str,
        entry: &'static str,
        dynamic_shared_bytes: u32,
    ) -> Result<Function, DeviceError> {
        let mut compiled = self.modules.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = compiled.functions.get(&(ptx, entry)) {
            return Ok(*function);
        }
        let module = match compiled.modules.get(ptx) {
            Some(module) => *module,
            None => {
                let text = kernels::module(ptx).expect("the table names modules that are built in");
                let module = self.compile(text).map_err(|(refusal, log)| {
                    let device = self.name();
                    DeviceError::Compiler { device, kernel: entry, log, refusal }
                })?;
                compiled.modules.insert(ptx, module);
                module
            }
        };
        let function = self.look_up(module, entry, dynamic_shared_bytes);
        let function = function.map_err(|refusal| DeviceError::driver(&self.name(), refusal))?;
        compiled.functions.insert((ptx, entry), function);
        Ok(function)
    }

    /// Compiles `ptx`, which a zero ends; else what the driver answered, and its compiler wrote.
    fn compile(&self, ptx: &'static str) -> Result<CUmodule, (DriverRefusal, String)> {
        const LOG_BYTES: usize = 8 << 10;
        assert!(ptx.ends_with('\0'), "a text without an end");
        let mut log = vec![0_u8; LOG_BYTES];
        let _entered = self.enter().map_err(|refusal| (refusal, String::new()))?;
        let mut handle = std::ptr::null_mut();
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // Numbers are passed in the place of pointers.
        let mut values =
            [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES - 1)];
        // SAFETY: the text ends with a zero; there are two options and two values; the log has as
        // many bytes as it is said to have, all of which live until the call has returned.
        let code = unsafe {
            (self.driver().calls.cuModuleLoadDataEx)(
                &raw mut handle,
                ptx.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let loaded = self.driver().check("cuModuleLoadDataEx", code);
        loaded.map(|()| handle).map_err(|refusal| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            (refusal, String::from_utf8_lossy(&log[..end]).trim().to_owned())
        })
    }

    fn look_up(
        &self,
        module: CUmodule,
        entry: &str,
        dynamic_shared_bytes: u32,
    ) -> Result<Function, DriverRefusal> {
        let _entered = self.enter()?;
        let name = CString::new(entry).expect("kernels' names have no zeros");
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded until the context goes; the name ends with a zero; writes one
        // handle to a variable of this frame.
        let code = unsafe {
            (self.driver().calls.cuModuleGetFunction)(&raw mut function, module, name.as_ptr())
        };
        self.driver().check("cuModuleGetFunction", code)?;
        if let Ok(bytes @ 1..) = i32::try_from(dynamic_shared_bytes) {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is the module's, as above.
            let code =
                unsafe { (self.driver().calls.cuFuncSetAttribute)(function, attribute, bytes) };
            self.driver().check("cuFuncSetAttribute", code)?;
        }
        Ok(Function(function))
    }

    /// To be called once, when the context goes: whoever launches kernels holds the context until
    /// they have ended.
    pub(super) fn unload_modules(&self) {
        let compiled =
            std::mem::take(&mut *self.modules.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Ok(_entered) = self.enter() {
            for module in compiled.modules.into_values() {
                // SAFETY: loaded by `compile`, unloaded once; nobody uses it any more (above).
                unsafe { (self.driver().calls.cuModuleUnload)(module) };
            }
        }
    }
}

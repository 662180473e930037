//! Modules, functions, launches: handles here, everything else in [`crate::modules`].

use super::{InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::modules::{self, LaunchShape};
use std::ffi::{CStr, c_char, c_void};
use std::time::Instant;

entry_points! {
    fn cuModuleLoadData(module: Out<usize>, image: *const c_void) with InContext, |call| {
        // SAFETY: the caller owes an image.
        unsafe { load(call, module, image) }
    }

    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: *const c_void,
        _options: u32,
        _names: *const i32,
        _values: *const *mut c_void,
    ) with InContext, |call| {
        // SAFETY: the caller owes an image.
        unsafe { load(call, module, image) }
    }

    fn cuModuleUnload(module: usize) with InContext, |call| {
        call.driver.wait_for_device(&call.device);
        call.driver.modules.remove(module).map(drop)
    }

    fn cuModuleGetFunction(
        function: Out<usize>,
        module: usize,
        name: *const c_char,
    ) with InContext, |call| {
        let module = call.driver.modules.get(module)?;
        if name.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller owes a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = module.function(&name).ok_or(Code::NOT_FOUND)?;
        function.give(call.driver.functions.add(found))
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: i32, function: usize) with InContext, |call| {
        value.give(call.driver.functions.get(function)?.attribute(attribute)?)
    }

    fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) with InContext, |call| {
        call.driver.functions.get(function)?.set_attribute(attribute, value)
    }

    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_bytes: u32,
        stream: usize,
        arguments: *mut *mut c_void,
        _extra: *mut *mut c_void,
    ) with InContext, |call| {
        let function = call.driver.functions.get(function)?;
        let stream = call.stream(stream)?;
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let shape = LaunchShape { grid, block, shared_bytes };
        let device = stream.device.clone();
        // SAFETY: the caller owes the arguments.
        let launch = unsafe { function.prepare(&device, shape, arguments) }?;
        stream.push(move |_ready| {
            if device.check().is_ok()
                && let Err(code) = launch()
            {
                device.fail(code, "a kernel failed");
            }
            Instant::now()
        });
        Ok(())
    }
}

/// # Safety
/// `image` is null or an image.
unsafe fn load(call: &InContext, module: Out<usize>, image: *const c_void) -> Answer {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's duty.
    let loaded = unsafe { modules::load(&call.device, image) }?;
    module.give(call.driver.modules.add(loaded))
}

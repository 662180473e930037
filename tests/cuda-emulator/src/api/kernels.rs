//! Modules, functions, launches: handles here, everything else in [`crate::modules`] and
//! [`crate::launch`].

use super::jit::Options;
use super::{Freeing, InContext, Out, entry_points};
use crate::error::{Answer, Code};
use crate::launch::{Launch, LaunchShape};
use crate::modules::Module;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;
use std::time::Instant;

entry_points! {
    fn cuModuleLoadData(module: Out<usize>, image: *const c_void) with InContext, |call| {
        // SAFETY: without options, nothing is owed.
        let options = unsafe { Options::new(0, std::ptr::null(), std::ptr::null_mut()) };
        // SAFETY: the caller owes an image.
        unsafe { load(call, module, image, options) }
    }

    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: *const c_void,
        count: u32,
        names: *const i32,
        values: *mut *mut c_void,
    ) with InContext, |call| {
        // SAFETY: the caller owes so many options, and the room that they name.
        let options = unsafe { Options::new(count, names, values) };
        // SAFETY: the caller owes an image.
        unsafe { load(call, module, image, options) }
    }

    /// Waits for the whole device first. The module's functions and variables go with it.
    fn cuModuleUnload(module: usize) with Freeing, |call| {
        call.driver.wait_for_device(&call.driver.modules.get(module)?.device);
        let module = call.driver.modules.remove(module)?;
        call.driver.functions.remove_where(|function| Arc::ptr_eq(&function.module, &module));
        Ok(())
    }

    fn cuModuleGetFunction(
        function: Out<usize>,
        module: usize,
        name: *const c_char,
    ) with InContext, |call| {
        let module = call.driver.modules.get(module)?;
        // SAFETY: the caller owes a C string.
        let found = module.function(&unsafe { text(name) }?)?;
        function.give(call.driver.functions.add(Arc::new(found)))
    }

    fn cuModuleGetGlobal_v2(
        address: Out<u64>,
        bytes: Out<usize>,
        module: usize,
        name: *const c_char,
    ) with InContext, |call| {
        let module = call.driver.modules.get(module)?;
        // SAFETY: the caller owes a C string.
        let (start, size) = module.variable(&unsafe { text(name) }?)?;
        address.give_if_wanted(start);
        bytes.give_if_wanted(size);
        Ok(())
    }

    fn cuFuncGetAttribute(value: Out<i32>, attribute: i32, function: usize) with InContext, |call| {
        value.give(call.driver.functions.get(function)?.attribute(attribute)?)
    }

    fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) with InContext, |call| {
        call.driver.functions.get(function)?.set_attribute(attribute, value)
    }

    /// As many as memory and threads allow: nothing is known of registers.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<i32>,
        function: usize,
        threads: i32,
        shared_bytes: usize,
    ) with InContext, |call| {
        let function = call.driver.functions.get(function)?;
        let threads = u32::try_from(threads).ok().filter(|threads| *threads > 0);
        let threads = threads.ok_or(Code::INVALID_VALUE)?;
        let dynamic_bytes = u32::try_from(shared_bytes).map_err(|_| Code::INVALID_VALUE)?;
        let all_bytes = function.entry().shared_bytes.saturating_add(dynamic_bytes);
        let fit = match threads <= function.threads_max() {
            true => function.multiprocessor().blocks_that_fit(threads, all_bytes),
            false => 0,
        };
        blocks.give(i32::try_from(fit).unwrap_or(i32::MAX))
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
        arguments: *const *const c_void,
        extra: *const *const c_void,
    ) with InContext, |call| {
        let function = call.driver.functions.get(function)?;
        let stream = call.stream(stream)?;
        let (of, on) = (function.module.device.ordinal, stream.device.ordinal);
        if of != on {
            eprintln!("[cuda emulator] a function of device {of} in the context of device {on}");
            return Err(Code::INVALID_HANDLE);
        }
        if !extra.is_null() {
            eprintln!("[cuda emulator] arguments in one buffer (`extra`) are not emulated");
            return Err(Code::NOT_SUPPORTED);
        }
        let grid = [grid_x, grid_y, grid_z];
        let block = [block_x, block_y, block_z];
        let shape = LaunchShape { grid, block, shared_bytes };
        // SAFETY: the caller owes an address for each parameter.
        let launch = unsafe { Launch::ask(function, shape, arguments) }?;
        stream.push(move |ready| {
            launch.perform();
            ready.max(Instant::now())
        });
        Ok(())
    }
}

/// Loads an image, and gives its handle or what is wrong with it.
///
/// # Safety
/// `image` is null or an image. Of one that is no text, what comes before its first 0 is read.
unsafe fn load(
    call: &InContext,
    module: Out<usize>,
    image: *const c_void,
    mut options: Options<'_>,
) -> Answer {
    if image.is_null() || module.address().is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's duty; the image is the caller's until the call returns.
    let image = unsafe { CStr::from_ptr(image.cast()) };
    match Module::load(&call.device, image.to_bytes()) {
        Ok(loaded) => {
            options.give_logs("");
            module.give(call.driver.modules.add(Arc::new(loaded)))
        }
        Err(refusal) => {
            eprintln!("[cuda emulator] an image was refused: {}", refusal.log);
            options.give_logs(&refusal.log);
            Err(refusal.code)
        }
    }
}

/// # Safety
/// `name` is null or a C string.
unsafe fn text(name: *const c_char) -> Answer<String> {
    if name.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller's duty.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

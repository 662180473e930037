//! Tensors on GPUs, on the emulated driver: lent memory, parts, and what comes back.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "every call is what the header allows, or of the emulated driver, which checks"
)]
#![cfg(feature = "cuda")]

#[path = "support/calls.rs"]
mod calls;
mod support;

use calls::{loader, made, model_of, run, sha256, words};
use cudarc::driver::{result, sys};
use forebay_capi::*;
use forebay_cuda_emulator::Emulator;

/// Memory of a device's primary context.
struct Memory {
    device: i32,
    context: sys::CUcontext,
    address: u64,
}

impl Memory {
    fn new(device: i32, bytes: usize) -> Self {
        result::init().unwrap();
        let handle = result::device::get(device).unwrap();
        let context = unsafe { result::primary_ctx::retain(handle) }.unwrap();
        unsafe { result::ctx::set_current(context) }.unwrap();
        let address = unsafe { result::malloc_sync(bytes) }.unwrap();
        unsafe { result::ctx::set_current(std::ptr::null_mut()) }.unwrap();
        Self { device, context, address }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unsafe { result::ctx::set_current(self.context) }.unwrap();
        unsafe { result::free_sync(self.address) }.unwrap();
        unsafe { result::ctx::set_current(std::ptr::null_mut()) }.unwrap();
        unsafe { result::primary_ctx::release(self.device) }.unwrap();
    }
}

#[test]
fn tensors_land_on_devices_whole_and_in_parts() {
    Emulator::new().devices(2).install();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (count, bytes) = (4, 64 << 10);
    let model = model_of(folder.path(), count, bytes);
    let on_host = forebay::Loader::new(&model).device("host".parse().unwrap()).load().unwrap();
    let expected = on_host.digests().unwrap();
    let memory = Memory::new(1, bytes);
    let mut loader = loader(&model, &[(c"device", c"cuda:0,cuda:1"), (c"split", c"rows")]);
    let lent = c"layers.2.weight".as_ptr();
    let into = unsafe {
        forebay_loader_into_device(Some(&mut loader), lent, 1, memory.address, bytes as u64)
    };
    assert_eq!(into, Status::ForebayOk);
    let loaded = run(loader).unwrap();
    for index in 0..count {
        let tensor = made(|to| forebay_loaded_tensor(Some(&loaded), index, to)).unwrap();
        let tensor = unsafe { &*tensor };
        let name = calls::name(tensor);
        assert_eq!(sha256(tensor), expected[&name]);
        assert!(tensor.data.is_null() && !tensor.is_mapped);
        let parts: Vec<&Part> = (0..tensor.part_count)
            .map(|part| made(|to| forebay_tensor_part(Some(tensor), part, to)).unwrap())
            .map(|part| unsafe { &*part })
            .collect();
        if index == 2 {
            assert_eq!((tensor.device, tensor.device_address), (1, memory.address));
            assert_eq!((words(tensor.backend).as_str(), parts.len()), ("cuda:1", 1));
            assert_eq!((parts[0].device, parts[0].device_address), (1, memory.address));
            continue;
        }
        assert_eq!((tensor.device_address, parts.len()), (0, 2));
        for (part, (device, rows)) in parts.iter().zip([(0, (0, 32)), (1, (32, 64))]) {
            assert_eq!((part.device, words(part.backend)), (device, format!("cuda:{device}")));
            assert_eq!((part.rows_begin, part.rows_end), rows);
            assert_eq!((part.columns_begin, part.columns_end), (0, 1024));
            assert!(part.bytes == bytes as u64 / 2 && part.device_address != 0);
        }
    }
    forebay_loaded_free(Some(loaded));
    drop(memory);
    // A device that is not there is a device's failure.
    let (status, words) = run(calls::loader(&model, &[(c"device", c"cuda:7")])).err().unwrap();
    assert_eq!(status, Status::ForebayDevice, "{words}");
    forebay_release_staging();
    let report = Emulator::report();
    assert_eq!(report.violations.len(), 0, "{:?}", report.violation_messages);
    assert!(report.devices.iter().all(|device| device.contexts_retained == 0));
}

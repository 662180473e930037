//! Several devices are several: memory, contexts, streams, engines.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, download, event, free, register, stream, unregister, upload};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute, CUevent, CUresult, CUstream};
use forebay_cuda_emulator::Emulator;

fn install() {
    let device = |d: forebay_cuda_emulator::DeviceWords| d.upload_bytes_per_s(100e6).latency_us(0);
    Emulator::new()
        .devices(3)
        .each_device(device)
        .device(1, |d| d.memory_bytes(64 << 20).integrated(true).pci(0, 0x41).numa_node(1))
        .device(2, |d| d.memory_bytes(64 << 20).upload_bytes_per_s(50e6))
        .install();
}

/// Uploads `copies` times 1 MiB and answers the events before and after.
fn uploads(stream: CUstream, slot: &[u8], target: u64, copies: usize) -> (CUevent, CUevent) {
    let (before, after) = (event(), event());
    unsafe { result::event::record(before, stream) }.unwrap();
    for _ in 0..copies {
        assert_eq!(upload(target, slot.as_ptr(), slot.len(), stream), OK);
    }
    unsafe { result::event::record(after, stream) }.unwrap();
    (before, after)
}

/// What the emulated clock says: never less than the bytes take, however late threads wake up.
fn elapsed_ms(before: CUevent, after: CUevent) -> f32 {
    unsafe { result::event::synchronize(after) }.unwrap();
    unsafe { result::event::elapsed(before, after) }.unwrap()
}

#[test]
fn devices_are_told_apart() {
    let _turn = common::turn();
    install();
    result::init().unwrap();
    assert_eq!(result::device::get_count().unwrap(), 3);
    let device = result::device::get(1).unwrap();
    assert_eq!(result::device::get_name(device).unwrap(), "forebay emulated GPU 1");
    assert_eq!(unsafe { result::device::total_mem(device) }.unwrap(), 64 << 20);
    let attribute = |name| unsafe { result::device::get_attribute(device, name) }.unwrap();
    assert_eq!(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED), 1);
    assert_eq!(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID), 0x41);
    assert_eq!(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID), 1);
    assert_eq!(attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR), 8);
    let mut text = [0; 16];
    let told = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), 16, device) };
    assert_eq!(told, OK);
    assert_eq!(text.map(|c| c.to_le_bytes()[0])[..13], *b"0000:41:00.0\0");
    assert_eq!(result::device::get(3).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_DEVICE);
    let uuid = |ordinal| result::device::get_uuid(result::device::get(ordinal).unwrap()).unwrap();
    assert_ne!(uuid(0).bytes, uuid(1).bytes);
}

#[test]
fn memory_and_streams_belong_to_one_device() {
    let _turn = common::turn();
    install();
    let first = Context::of(0);
    let (stream, theirs) = (stream(), allocate(4096));
    let second = Context::of(1);
    let ours = allocate(4096);
    let bytes = [7u8; 4096];
    let null = std::ptr::null_mut();
    assert_eq!(upload(ours, bytes.as_ptr(), 4096, stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
    assert_eq!(upload(theirs, bytes.as_ptr(), 4096, null), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(upload(ours, bytes.as_ptr(), 4096, null), OK);
    assert_eq!(download(ours, 4096), bytes);
    let event = common::event();
    let recorded = unsafe { sys::cuEventRecord(event, stream) };
    assert_eq!(recorded, CUresult::CUDA_ERROR_INVALID_HANDLE);
    let free_bytes = result::mem_get_info().unwrap().0;
    assert_eq!(free_bytes, (64 << 20) - 4096);
    unsafe { result::event::destroy(event) }.unwrap();
    free(ours);
    drop(second);
    first.enter();
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(theirs);
    drop(first);
    assert_eq!(Emulator::report().devices[1].contexts_retained, 0);
}

#[test]
fn a_rate_is_shared_by_the_streams_of_a_device() {
    let _turn = common::turn();
    install();
    let mut slot = vec![1u8; 1 << 20];
    let first = Context::of(0);
    assert_eq!(register(&mut slot), OK);
    let target = allocate(1 << 20);
    let streams = [stream(), stream()];
    let pairs = streams.map(|stream| uploads(stream, &slot, target, 4));
    let second = Context::of(2);
    let other = (allocate(1 << 20), stream());
    let alone = uploads(other.1, &slot, other.0, 4);
    // 4 MiB at 50 MB/s; beside it, twice 4 MiB through one engine at 100 MB/s.
    let alone_ms = elapsed_ms(alone.0, alone.1);
    assert!(alone_ms >= 83.8, "{alone_ms}");
    let [first_ms, second_ms] = pairs.map(|(_, after)| elapsed_ms(pairs[0].0, after));
    assert!(first_ms.max(second_ms) >= 83.8, "{first_ms}, {second_ms}");
    for (before, after) in [alone, pairs[0], pairs[1]] {
        unsafe { result::event::destroy(before) }.unwrap();
        unsafe { result::event::destroy(after) }.unwrap();
    }
    free(other.0);
    unsafe { result::stream::destroy(other.1) }.unwrap();
    drop(second);
    first.enter();
    assert_eq!(unregister(&mut slot), OK);
    for stream in streams {
        unsafe { result::stream::destroy(stream) }.unwrap();
    }
    free(target);
    drop(first);
}

#[test]
fn a_context_is_asked_for() {
    let _turn = common::turn();
    install();
    result::init().unwrap();
    std::thread::spawn(|| {
        let refused = unsafe { result::malloc_sync(16) }.unwrap_err();
        assert_eq!(refused.0, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert!(result::ctx::get_current().unwrap().is_none());
        drop(Context::of(1));
        let refused = unsafe { result::malloc_sync(16) }.unwrap_err();
        assert_eq!(refused.0, CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    })
    .join()
    .unwrap();
}

//! Device memory: exact, bounded, poisoned; copies of rows; what an address is.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{
    Context, Gate, OK, allocate, download, fill, free, register, stream, unregister, upload,
};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUDA_MEMCPY2D, CUmemorytype, CUpointer_attribute, CUresult};
use forebay_cuda_emulator::Emulator;
use std::ffi::c_void;

/// One device for each test: they run at the same time.
fn context(ordinal: i32) -> Context {
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        Emulator::new()
            .devices(8)
            .memory_bytes(8 << 20)
            .device(6, |device| device.memory_bytes(16 << 30))
            .upload_bytes_per_s(200e6)
            .install();
    });
    Context::of(ordinal)
}

#[test]
fn out_of_memory_is_exact() {
    let _context = context(0);
    let (all, one) = (allocate((8 << 20) - 1), allocate(1));
    let refused = unsafe { result::malloc_sync(1) }.unwrap_err();
    assert_eq!(refused.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(result::mem_get_info().unwrap(), (0, 8 << 20));
    free(one);
    free(allocate(1));
    free(all);
    free(allocate(8 << 20));
}

#[test]
fn copies_stay_within_one_allocation() {
    let _context = context(1);
    let (target, bytes) = (allocate(1000), [1u8; 1001]);
    let null = std::ptr::null_mut();
    let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(upload(target, bytes.as_ptr(), 1001, null), refused);
    assert_eq!(upload(target + 1, bytes.as_ptr(), 1000, null), refused);
    assert_eq!(upload(target - 1, bytes.as_ptr(), 1, null), refused);
    // A host address is no device address, and the other way round.
    assert_eq!(upload(bytes.as_ptr() as u64, bytes.as_ptr(), 1, null), refused);
    assert_eq!(upload(target, target as *const u8, 1, null), refused);
    assert_eq!(upload(target + 1, bytes.as_ptr(), 998, null), OK);
    let arrived = download(target, 1000);
    assert_eq!(arrived[1..999], [1; 998]);
    assert_eq!((arrived[0], arrived[999]), (0xFF, 0xFF), "what was never written is poisoned");
    free(target);
    assert_eq!(upload(target, bytes.as_ptr(), 1, null), refused);
}

#[test]
fn a_source_that_is_not_registered_is_staged() {
    let _context = context(2);
    let (target, stream) = (allocate(1 << 20), stream());
    let mut source = vec![0; 1 << 20];
    fill(&mut source, 3);
    let sent = source.clone();
    assert_eq!(upload(target, source.as_ptr(), source.len(), stream), OK);
    source.fill(0);
    unsafe { result::stream::synchronize(stream) }.unwrap();
    assert!(download(target, 1 << 20) == sent);
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(target);
}

#[test]
fn a_registered_source_is_read_late() {
    let _context = context(3);
    let (target, stream) = (allocate(1 << 20), stream());
    let mut source = vec![1; 1 << 20];
    assert_eq!(register(&mut source), OK);
    assert_eq!(register(&mut source[5..9]), CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    let gate = Gate::on(stream);
    assert_eq!(upload(target, source.as_ptr(), source.len(), stream), OK);
    assert_eq!(unsafe { sys::cuStreamQuery(stream) }, CUresult::CUDA_ERROR_NOT_READY);
    source.fill(2);
    drop(gate);
    unsafe { result::stream::synchronize(stream) }.unwrap();
    assert!(download(target, 1 << 20).contains(&2));
    let report = Emulator::report();
    assert!(report.violation_messages.iter().any(|told| told.contains("to device 3")));
    assert_eq!(unregister(&mut source), OK);
    assert_eq!(unregister(&mut source), CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(target);
}

#[test]
fn registered_memory_is_a_target_too() {
    let _context = context(3);
    let (source, stream) = (allocate(1 << 20), stream());
    assert_eq!(unsafe { sys::cuMemsetD8_v2(source, 6, 1 << 20) }, OK);
    let mut target = vec![0u8; 1 << 20];
    assert_eq!(register(&mut target), OK);
    let to = target.as_mut_ptr().cast::<c_void>();
    assert_eq!(unsafe { sys::cuMemcpyDtoHAsync_v2(to, source, 1 << 20, stream) }, OK);
    unsafe { result::stream::synchronize(stream) }.unwrap();
    assert!(target.iter().all(|byte| *byte == 6));
    assert_eq!(unregister(&mut target), OK);
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(source);
}

#[test]
fn a_copy_over_the_end_of_registered_memory_is_refused() {
    let _context = context(4);
    let target = allocate(8192);
    let mut source = vec![1; 8192];
    assert_eq!(register(&mut source[..4096]), OK);
    let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(upload(target, source.as_ptr(), 8192, std::ptr::null_mut()), refused);
    // Nor do two registrations beside each other make one.
    assert_eq!(register(&mut source[4096..]), OK);
    assert_eq!(upload(target, source.as_ptr(), 8192, std::ptr::null_mut()), refused);
    assert_eq!(upload(target, source.as_ptr(), 4096, std::ptr::null_mut()), OK);
    result::ctx::synchronize().unwrap();
    assert_eq!(unregister(&mut source[..4096]), OK);
    assert_eq!(unregister(&mut source[4096..]), OK);
    free(target);
}

/// Ten rows of 32 bytes, 40 apart on the host and 64 apart on the device.
fn rows(host: &mut [u8], device: u64, upload: bool) -> CUDA_MEMCPY2D {
    let (on_host, on_device) =
        (CUmemorytype::CU_MEMORYTYPE_HOST, CUmemorytype::CU_MEMORYTYPE_DEVICE);
    CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: if upload { on_host } else { on_device },
        srcHost: host.as_ptr().cast(),
        srcDevice: device,
        srcArray: std::ptr::null_mut(),
        srcPitch: if upload { 40 } else { 64 },
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: if upload { on_device } else { on_host },
        dstHost: host.as_mut_ptr().cast(),
        dstDevice: device,
        dstArray: std::ptr::null_mut(),
        dstPitch: if upload { 64 } else { 40 },
        WidthInBytes: 32,
        Height: 10,
    }
}

#[test]
fn rows_go_both_ways() {
    let _context = context(5);
    let target = allocate(64 * 9 + 32);
    let mut source = vec![0; 40 * 10];
    fill(&mut source, 1);
    for is_registered in [false, true] {
        if is_registered {
            assert_eq!(register(&mut source), OK);
        }
        let copy = rows(&mut source, target, true);
        assert_eq!(unsafe { sys::cuMemcpy2DAsync_v2(&copy, std::ptr::null_mut()) }, OK);
        let arrived = download(target, 64 * 9 + 32);
        for row in 0..10 {
            assert_eq!(arrived[row * 64..][..32], source[row * 40..][..32], "row {row}");
        }
        assert_eq!(arrived[32..64], [0xFF; 32]);
        let mut back = vec![9; 40 * 10];
        let copy = rows(&mut back, target, false);
        assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, OK);
        assert_eq!(back[40..72], source[40..72]);
        assert_eq!(back[32..40], [9; 8]);
    }
    let mut copy = rows(&mut source, target, true);
    copy.dstXInBytes = 1;
    let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, refused, "one byte over the end");
    copy.Height = 9;
    copy.dstY = 1;
    copy.dstXInBytes = 0;
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, OK);
    copy.srcPitch = 31;
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, refused, "rows that overlap");
    assert_eq!(unregister(&mut source), OK);
    free(target);
}

#[test]
fn large_memory_is_given_lazily() {
    let _context = context(6);
    let target = allocate(8 << 30);
    let bytes = [5u8; 100];
    let last = target + (8 << 30) - 100;
    assert_eq!(upload(last, bytes.as_ptr(), 100, std::ptr::null_mut()), OK);
    assert_eq!(download(last, 100), bytes);
    assert_eq!(download((last & !0xFFF) - (1 << 20), 16), [0xFF; 16]);
    free(target);
}

#[test]
fn an_address_is_known() {
    let _context = context(7);
    let target = allocate(5000);
    let ask = |attribute: CUpointer_attribute, address: u64| {
        let mut answer = 0u64;
        let room = (&raw mut answer).cast::<c_void>();
        unsafe { sys::cuPointerGetAttribute(room, attribute, address) }.result().map(|()| answer)
    };
    let memory_type = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let ordinal = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    assert_eq!(ask(memory_type, target + 4999), Ok(2));
    assert_eq!(ask(ordinal, target), Ok(7));
    assert!(ask(memory_type, target + 5000).is_err());
    let mut pinned = vec![0u8; 4096];
    assert!(ask(memory_type, pinned.as_ptr() as u64).is_err());
    assert_eq!(register(&mut pinned), OK);
    assert_eq!(ask(memory_type, pinned.as_ptr() as u64), Ok(1));
    assert_eq!(unregister(&mut pinned), OK);
    let (mut start, mut bytes) = (0, 0);
    let found = unsafe { sys::cuMemGetAddressRange_v2(&mut start, &mut bytes, target + 7) };
    assert_eq!((found, start, bytes), (OK, target, 5000));
    free(target);
}

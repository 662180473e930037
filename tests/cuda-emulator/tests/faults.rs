//! Failures on purpose: the nth call, the nth copy, and what a context in error answers.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{
    Context, Gate, OK, allocate, download, event, free, register, stream, unregister, upload,
};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};
use forebay_cuda_emulator::Emulator;

const LAUNCH_FAILED: CUresult = CUresult::CUDA_ERROR_LAUNCH_FAILED;

#[test]
fn the_nth_call_fails_and_no_other() {
    let _turn = common::turn();
    Emulator::new().fail_call("cuMemAlloc_v2", 2, 2).fail_call("cuStreamCreate", 0, 801).install();
    let _context = Context::of(0);
    let first = allocate(16);
    let refused = unsafe { result::malloc_sync(16) }.unwrap_err();
    assert_eq!(refused.0, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    free(allocate(16));
    free(first);
    for _ in 0..3 {
        let refused = result::stream::create(result::stream::StreamKind::Default).unwrap_err();
        assert_eq!(refused.0, CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
}

#[test]
fn an_error_of_a_copy_surfaces_later_and_stays() {
    let _turn = common::turn();
    Emulator::new().fail_copy(2, 719).install();
    let _context = Context::of(0);
    let (target, stream, event) = (allocate(3 << 20), stream(), event());
    let mut slot = vec![1u8; 1 << 20];
    assert_eq!(register(&mut slot), OK);
    let gate = Gate::on(stream);
    for copy in 0..3 {
        // Asked for while none has begun: nothing has failed yet.
        assert_eq!(upload(target + (copy << 20), slot.as_ptr(), 1 << 20, stream), OK);
    }
    assert_eq!(unsafe { sys::cuEventRecord(event, stream) }, OK);
    drop(gate);
    assert_eq!(unsafe { sys::cuEventSynchronize(event) }, LAUNCH_FAILED);
    assert_eq!(unsafe { sys::cuStreamSynchronize(stream) }, LAUNCH_FAILED);
    assert_eq!(unsafe { sys::cuCtxSynchronize() }, LAUNCH_FAILED);
    assert_eq!(unsafe { sys::cuEventQuery(event) }, LAUNCH_FAILED);
    assert_eq!(upload(target, slot.as_ptr(), 1 << 20, stream), LAUNCH_FAILED);
    let mut address = 0;
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut address, 16) }, LAUNCH_FAILED);
    let device = &Emulator::report().devices[0];
    assert_eq!((device.copies_dropped, device.asynchronous_error), (2, Some(719)));
    // What is given back in a context in error is given back, and answers the error.
    assert_eq!(unregister(&mut slot), LAUNCH_FAILED);
    // A new configuration forgets the error: only the first copy was performed.
    Emulator::new().install();
    let arrived = download(target, 3 << 20);
    assert!(arrived[..1 << 20].iter().all(|byte| *byte == 1));
    assert!(arrived[1 << 20..].iter().all(|byte| *byte == 0xFF));
    assert_eq!(Emulator::report().registered.count, 0);
    free(target);
    unsafe { result::event::destroy(event) }.unwrap();
    unsafe { result::stream::destroy(stream) }.unwrap();
}

#[test]
fn an_error_is_of_one_device_and_ends_with_its_context() {
    let _turn = common::turn();
    Emulator::new().devices(2).device(1, |device| device.fail_copy(1, 700)).install();
    let healthy = Context::of(0);
    let target = allocate(16);
    assert_eq!(upload(target, [1; 16].as_ptr(), 16, std::ptr::null_mut()), OK);
    std::thread::spawn(|| {
        let broken = Context::of(1);
        let target = allocate(16);
        assert_eq!(upload(target, [1; 16].as_ptr(), 16, std::ptr::null_mut()), OK);
        let illegal = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert_eq!(unsafe { sys::cuCtxSynchronize() }, illegal);
        assert_eq!(unsafe { sys::cuMemFree_v2(target) }, illegal);
        drop(broken);
        let _again = Context::of(1);
        result::ctx::synchronize().unwrap();
    })
    .join()
    .unwrap();
    result::ctx::synchronize().unwrap();
    free(target);
    drop(healthy);
    assert_eq!(Emulator::report().violations_of("leak"), 0);
}

#[test]
fn a_copy_that_stalls_holds_up_what_follows() {
    let _turn = common::turn();
    Emulator::new().device(0, |device| device.stall_copy(2, 30)).install();
    let _context = Context::of(0);
    let (target, stream, events) = (allocate(16), stream(), [event(), event(), event()]);
    let bytes = [3u8; 16];
    for event in events {
        unsafe { result::event::record(event, stream) }.unwrap();
        assert_eq!(upload(target, bytes.as_ptr(), 16, stream), OK);
    }
    unsafe { result::stream::synchronize(stream) }.unwrap();
    let ms = unsafe { result::event::elapsed(events[1], events[2]) }.unwrap();
    assert!(ms >= 30.0, "{ms}");
    for event in events {
        unsafe { result::event::destroy(event) }.unwrap();
    }
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(target);
}

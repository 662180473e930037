//! What a caller must not do is counted, and made harmless.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, free, register, stream, unregister, upload};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUresult};
use forebay_cuda_emulator::Emulator;

/// A copy of 1 MiB takes half a second, in which a busy machine comes round to the next call.
fn install() {
    Emulator::new().upload_bytes_per_s(2e6).install();
}

#[test]
fn unregistering_under_a_copy_is_told_and_waits() {
    let _turn = common::turn();
    install();
    let _context = Context::of(0);
    let before = Emulator::report();
    let (target, stream) = (allocate(1 << 20), stream());
    let mut slot = vec![1u8; 1 << 20];
    assert_eq!(register(&mut slot), OK);
    assert_eq!(upload(target, slot.as_ptr(), 1 << 20, stream), OK);
    assert_eq!(unregister(&mut slot), OK);
    let after = Emulator::report();
    let told = |kind| after.violations_of(kind) - before.violations_of(kind);
    assert_eq!(told("unregister-in-flight"), 1);
    assert_eq!(after.devices[0].upload.copies - before.devices[0].upload.copies, 1);
    assert_eq!(told("source-changed"), 0);
    unsafe { result::stream::destroy(stream) }.unwrap();
    free(target);
}

#[test]
fn freeing_under_a_copy_and_freeing_twice_are_told() {
    let _turn = common::turn();
    install();
    let _context = Context::of(0);
    let before = Emulator::report();
    let (target, stream) = (allocate(1 << 20), stream());
    let slot = unsafe { result::malloc_host(1 << 20, 0) }.unwrap();
    assert_eq!(upload(target, slot.cast(), 1 << 20, stream), OK);
    unsafe { result::free_host(slot) }.unwrap();
    let twice = unsafe { result::free_host(slot) }.unwrap_err();
    assert_eq!(twice.0, CUresult::CUDA_ERROR_INVALID_VALUE);
    free(target);
    assert_eq!(unsafe { sys::cuMemFree_v2(target) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    let after = Emulator::report();
    let told = |kind| after.violations_of(kind) - before.violations_of(kind);
    assert_eq!((told("free-in-flight"), told("double-free")), (1, 2));
    unsafe { result::stream::destroy(stream) }.unwrap();
}

#[test]
fn what_a_context_leaves_behind_is_a_leak() {
    let _turn = common::turn();
    install();
    let before = Emulator::report().violations_of("leak");
    let context = Context::of(0);
    let _ = allocate(100);
    drop(context);
    assert_eq!(Emulator::report().violations_of("leak") - before, 1);
    assert_eq!(Emulator::report().devices[0].memory.count, 0);
}

#[test]
fn handles_are_looked_up_and_never_followed() {
    let _turn = common::turn();
    install();
    let _context = Context::of(0);
    let refused = CUresult::CUDA_ERROR_INVALID_HANDLE;
    assert_eq!(unsafe { sys::cuStreamSynchronize(0x1234_usize as *mut _) }, refused);
    assert_eq!(unsafe { sys::cuStreamDestroy_v2(0x1234_usize as *mut _) }, refused);
    assert_eq!(unsafe { sys::cuEventQuery(0x1234_usize as *mut _) }, refused);
    let nowhere = unsafe { sys::cuEventCreate(std::ptr::null_mut(), 0) };
    assert_eq!(nowhere, CUresult::CUDA_ERROR_INVALID_VALUE);
}

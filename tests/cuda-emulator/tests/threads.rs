//! Many threads at once: rings on two devices, streams that wait for each other, and contexts that
//! come and go.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, corrupt_chunks_of_ring, download, event, free, stream};
use cudarc::driver::result;
use cudarc::driver::sys;
use forebay_cuda_emulator::{Emulator, Held};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Fills a buffer on one stream, and copies it on another one that waits for the first.
fn hand_over() {
    let (first, second, filled) = (stream(), stream(), event());
    let (from, to) = (allocate(1 << 16), allocate(1 << 16));
    for value in 0..20u8 {
        assert_eq!(unsafe { sys::cuMemsetD8Async(from, value, 1 << 16, first) }, OK);
        unsafe { result::event::record(filled, first) }.unwrap();
        assert_eq!(unsafe { sys::cuStreamWaitEvent(second, filled, 0) }, OK);
        unsafe { result::memcpy_dtod_async(to, from, 1 << 16, second) }.unwrap();
        unsafe { result::stream::synchronize(second) }.unwrap();
        assert_eq!(download(to, 1 << 16), [value; 1 << 16]);
    }
    for stream in [first, second] {
        unsafe { result::stream::destroy(stream) }.unwrap();
    }
    unsafe { result::event::destroy(filled) }.unwrap();
    free(from);
    free(to);
}

/// Host functions run in the order of their stream.
fn host_functions() {
    static LAST: AtomicUsize = AtomicUsize::new(0);
    unsafe extern "C" fn note(number: *mut std::ffi::c_void) {
        let before = LAST.swap(number as usize, Ordering::SeqCst);
        assert_eq!(before + 1, number as usize);
    }
    let stream = stream();
    for number in 1..=100usize {
        let data = number as *mut std::ffi::c_void;
        assert_eq!(unsafe { sys::cuLaunchHostFunc(stream, Some(note), data) }, OK);
    }
    unsafe { result::stream::destroy(stream) }.unwrap();
    assert_eq!(LAST.load(Ordering::SeqCst), 100, "destroying a stream waits for its work");
}

#[test]
fn everything_at_once_is_as_if_alone() {
    Emulator::new().devices(2).upload_bytes_per_s(2e9).download_bytes_per_s(2e9).install();
    std::thread::scope(|scope| {
        for device in [0, 1, 0, 1] {
            scope.spawn(move || {
                let _context = Context::of(device);
                assert_eq!(corrupt_chunks_of_ring(64, 1 << 16), 0);
            });
            scope.spawn(move || {
                let _context = Context::of(device);
                hand_over();
            });
        }
        scope.spawn(|| {
            let _context = Context::of(0);
            host_functions();
        });
    });
    let report = Emulator::report();
    assert_eq!(report.violation_count(), 0, "{:?}", report.violation_messages);
    for device in &report.devices {
        assert_eq!(device.upload.copies, 128);
        assert_eq!(device.memory, Held::default());
        assert_eq!((device.streams, device.events, device.contexts_retained), (0, 0, 0));
    }
}

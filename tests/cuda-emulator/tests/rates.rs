//! How exactly the emulated rates hold: measured by hand, since no test asserts a time.
//!
//! `cargo test -p forebay-cuda-emulator --test rates -- --ignored --nocapture`, on an idle machine.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, event, free, stream, upload};
use cudarc::driver::result;
use forebay_cuda_emulator::Emulator;
use std::time::Instant;

const SLOTS: usize = 4;

/// Uploads so many chunks through a ring of slots; answers the rate in bytes a second.
fn measured(chunk_bytes: usize, copies: usize) -> f64 {
    let (stream, target) = (stream(), allocate(SLOTS * chunk_bytes));
    let slots = unsafe { result::malloc_host(SLOTS * chunk_bytes, 0) }.unwrap();
    let events = [event(), event(), event(), event()];
    let start = Instant::now();
    for copy in 0..copies {
        let (event, offset) = (events[copy % SLOTS], copy % SLOTS * chunk_bytes);
        unsafe { result::event::synchronize(event) }.unwrap();
        let slot = slots.cast::<u8>().wrapping_add(offset);
        assert_eq!(upload(target + offset as u64, slot, chunk_bytes, stream), OK);
        unsafe { result::event::record(event, stream) }.unwrap();
    }
    unsafe { result::stream::synchronize(stream) }.unwrap();
    let rate = (chunk_bytes * copies) as f64 / start.elapsed().as_secs_f64();
    for event in events {
        unsafe { result::event::destroy(event) }.unwrap();
    }
    unsafe { result::stream::destroy(stream) }.unwrap();
    unsafe { result::free_host(slots) }.unwrap();
    free(target);
    rate
}

#[test]
#[ignore = "measures time"]
fn rates() {
    for strict in [false, true] {
        for (rate, chunk_kib) in [(1e9, 1024), (2e9, 4096), (4e9, 256), (4e9, 1024), (8e9, 4096)] {
            Emulator::new().upload_bytes_per_s(rate).strict(strict).install();
            let _context = Context::of(0);
            let chunk_bytes = chunk_kib << 10;
            let copies = (0..).take_while(|copy| (copy * chunk_bytes) as f64 <= rate / 2.0).count();
            let measured = measured(chunk_bytes, copies);
            println!(
                "strict {strict:5}  {chunk_kib:4} KiB  set {:.0} GB/s  got {:.3} GB/s  {:+.2} %",
                rate / 1e9,
                measured / 1e9,
                (measured / rate - 1.0) * 100.0,
            );
        }
    }
}

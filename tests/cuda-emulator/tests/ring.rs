//! A ring of three pinned slots: what arrives is what was sent.

mod common;

use common::{Context, corrupt_chunks_of_ring};
use forebay_cuda_emulator::{Emulator, Held};

#[test]
fn a_ring_that_waits_arrives_intact() {
    Emulator::new().upload_bytes_per_s(400e6).install();
    let context = Context::of(0);
    assert_eq!(corrupt_chunks_of_ring(16, 1 << 20), 0);
    drop(context);
    let report = Emulator::report();
    assert_eq!(report.violation_count(), 0, "{:?}", report.violation_messages);
    let device = &report.devices[0];
    assert_eq!((device.upload.copies, device.upload.bytes), (16, 16 << 20));
    assert!((1..=3).contains(&device.copies_in_flight_max), "{}", device.copies_in_flight_max);
    assert_eq!((device.memory, device.memory_bytes_max), (Held::default(), 16 << 20));
    assert_eq!((device.streams, device.events, device.contexts_retained), (0, 0, 0));
    assert_eq!(report.registered, Held::default());
    assert_eq!(report.calls_of("cuMemHostRegister_v2"), 3);
}

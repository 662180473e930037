//! The same ring with its waits taken out: the emulator shows that they were needed.

mod common;

use common::{Context, corrupt_chunks_of_ring};
use forebay_cuda_emulator::Emulator;

#[test]
fn a_ring_that_does_not_wait_arrives_corrupt() {
    Emulator::new().upload_bytes_per_s(40e6).immediate_events().install();
    let _context = Context::of(0);
    assert!(corrupt_chunks_of_ring(16, 1 << 20) > 0);
    let report = Emulator::report();
    assert!(report.violations_of("source-changed") > 0);
    assert!(report.violations_of("unregister-in-flight") > 0);
    assert!(report.devices[0].copies_in_flight_max > 3);
}

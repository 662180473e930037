//! The wait on a copy's event taken out: the suite would notice.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::{small_loader, turn};
use forebay_cuda_emulator::{Emulator, Held};
use support::TestModel;

/// Tensors whose bytes are not those of the file.
fn wrong(model: &TestModel, emulator: &Emulator) -> usize {
    emulator.install();
    let loaded = small_loader(model).load().unwrap();
    // When the load has ended the copies have been made; from here on events tell the truth.
    Emulator::new().install();
    let is_wrong = |tensor: &forebay::Tensor| {
        let mut bytes = vec![0; usize::try_from(tensor.bytes()).unwrap()];
        tensor.read_into(0, &mut bytes).unwrap();
        bytes != model.tensors[tensor.name()]
    };
    loaded.tensors().filter(is_wrong).count()
}

#[test]
fn a_load_whose_waits_are_left_out_arrives_corrupt() {
    let slow = Emulator::new().upload_bytes_per_s(40e6);
    let turn = turn(&slow);
    let model = TestModel::new(4 << 20);
    assert_eq!(wrong(&model, &slow), 0);
    assert_eq!(turn.violations_of("source-changed"), 0);
    // Four slots, each filled anew at once: a tenth of a second of copies reads later bytes.
    assert!(wrong(&model, &slow.immediate_events()) > 0, "every byte is right");
    assert!(turn.violations_of("source-changed") > 0);
    forebay::release_staging();
    assert_eq!(Emulator::report().registered, Held::default());
}

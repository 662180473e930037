//! Pinned staging memory, kept from load to load of one process.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::{loader_to, small_loader, turn};
use forebay::{Cancel, Error, SplitMode, release_staging};
use forebay_cuda_emulator::{Emulator, Held};
use support::TestModel;

fn registered() -> Held {
    Emulator::report().registered
}

#[test]
fn later_loads_use_what_the_first_has_pinned() {
    let turn = turn(&Emulator::new().devices(2));
    let model = TestModel::new(1 << 20);
    for number in 0..4 {
        let loaded = small_loader(&model).load().unwrap();
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        // Reading back goes through it too.
        assert_eq!(loaded.digests().unwrap().len(), model.tensors.len());
        assert_eq!(loaded.report().upload.pinned, Some(true));
        drop(loaded);
        turn.expect_ended(&format!("load {number}"));
        assert_eq!((turn.calls("cuMemHostRegister_v2"), registered().count), (1, 1), "{number}");
    }
    assert!(registered().bytes >= 256 << 10);
    // Other devices use the same memory.
    let loaded = loader_to(&model, "cuda:1", SplitMode::Layers);
    let loaded = loaded.chunk_bytes(64 << 10).staging_bytes(256 << 10).load().unwrap();
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
    assert_eq!(turn.calls("cuMemHostRegister_v2"), 1);
    drop(loaded);
    release_staging();
    assert_eq!((registered(), turn.calls("cuMemHostUnregister")), (Held::default(), 1));
    turn.end();
}

#[test]
fn the_report_says_who_has_paid_for_the_pinning() {
    let turn = turn(&Emulator::new());
    let model = TestModel::new(1 << 20);
    let reused = || small_loader(&model).load().unwrap().report().upload.staging_reused;
    assert!(!reused(), "the first load has pinned it itself");
    assert!(reused());
    let plan = small_loader(&model).plan().unwrap();
    let planned = || plan.start().unwrap().finish().unwrap().report().upload.staging_reused;
    assert!(planned());
    release_staging();
    assert!(!planned());
    assert!(planned());
    turn.end();
}

#[test]
fn shapes_are_not_mixed_up_and_what_is_kept_is_bounded() {
    let turn = turn(&Emulator::new());
    let model = TestModel::new(1 << 20);
    let staging = |kib: u64| {
        let loaded = small_loader(&model).staging_bytes(kib << 10).load().unwrap();
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        assert_eq!(loaded.report().memory.staging_bytes, kib << 10);
        assert!((1..=2).contains(&registered().count), "{:?}", registered());
    };
    [128, 256, 512].into_iter().for_each(staging);
    assert_eq!(turn.calls("cuMemHostRegister_v2"), 3);
    staging(512);
    assert_eq!(turn.calls("cuMemHostRegister_v2"), 3);
    staging(128);
    assert_eq!(turn.calls("cuMemHostRegister_v2"), 4);
    turn.end();
}

#[test]
fn a_load_that_fails_or_is_stopped_keeps_nothing() {
    let turn = turn(&Emulator::new().fail_copy(3, 719));
    let model = TestModel::new(4 << 20);
    let error = small_loader(&model).load().unwrap_err();
    assert!(matches!(error, Error::Copy { .. }), "{error}");
    turn.expect_nothing_held("failed");
    Emulator::new().upload_bytes_per_s(20e6).install();
    let cancel = Cancel::default();
    let from_callback = cancel.clone();
    let loader = small_loader(&model).cancel_with(&cancel);
    let error = loader.on_progress(move |_| from_callback.cancel()).load().unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    turn.expect_nothing_held("cancelled");
    let mut load = small_loader(&model).start().unwrap();
    let _ = load.next();
    drop(load);
    turn.expect_nothing_held("dropped");
    turn.end();
}

/// The memory of a load that never began: the warm-up has pinned it for nothing.
#[test]
fn a_load_that_can_not_begin_keeps_at_most_what_can_be_released() {
    let turn = turn(&Emulator::new().memory_bytes(1000));
    let model = TestModel::new(1 << 20);
    let error = small_loader(&model).load().unwrap_err();
    assert!(matches!(error, Error::DeviceFull { .. }), "{error}");
    turn.expect_ended("refused");
    assert!(registered().count <= 1);
    let absent = forebay::Loader::new("/no/such/model.gguf").device("cuda".parse().unwrap());
    assert!(absent.load().is_err());
    turn.expect_ended("absent");
    turn.end();
}

#[test]
fn memory_that_can_not_be_pinned_serves_and_is_not_kept() {
    let turn = turn(&Emulator::new().fail_call("cuMemHostRegister_v2", 0, 800));
    let model = TestModel::new(2 << 20);
    for _ in 0..2 {
        let loaded = small_loader(&model).load().unwrap();
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        let upload = &loaded.report().upload;
        assert_eq!((upload.pinned, upload.staging_reused), (Some(false), false));
        assert!(upload.pin_refused.as_ref().is_some_and(|why| why.contains("800")), "{upload:?}");
    }
    turn.expect_nothing_held("unpinned");
    turn.end();
}

/// Loads at once each have slots of their own; afterwards two are kept.
#[test]
fn loads_at_once_have_slots_of_their_own() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(100e6));
    let model = TestModel::new(2 << 20);
    for _ in 0..3 {
        let loads: Vec<_> = (0..3).map(|_| small_loader(&model).start().unwrap()).collect();
        for load in loads {
            let loaded = load.finish().unwrap();
            loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        }
        assert!(registered().count <= 2);
    }
    turn.expect_ended("all of them");
    turn.end();
}

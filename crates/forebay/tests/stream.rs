//! Tensors as they land, and every way to end a load early.
//!
//! One test function: the checks for threads and pinned pages that a load left behind look at the
//! whole process, where another test's load would be seen too.

mod support;

use forebay::{Backend, Cancel, Error, GpuLayers};
use forebay_tests::{Answer, Rule, Script};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{TestModel, is_without_load_threads, load_threads, status_kib};

const MODES: [&str; 5] = ["auto", "dio", "none", "mmap", "mlock"];

fn assert_nothing_left(what: &str) {
    assert!(is_without_load_threads(), "{what}: a thread is left");
    assert_eq!(status_kib("VmPin:"), 0, "{what}: memory is still pinned");
}

#[test]
fn tensors_land_whole_and_a_load_leaves_nothing_behind_however_it_ends() {
    let model = TestModel::new(6 << 20);
    every_tensor_lands_once_and_whole(&model);
    tensors_outlive_their_load(&model);
    dropping_at_any_moment_drains(&model);
    cancelling_is_an_error_and_drains(&model);
    a_panic_in_the_callback_drains(&model);
    a_plan_can_be_started_twice_at_once(&model);
    a_lock_outlives_another_load_of_the_same_plan(&model);
}

fn every_tensor_lands_once_and_whole(model: &TestModel) {
    for mode in MODES {
        for layers in [GpuLayers::Count(0), GpuLayers::Count(3), GpuLayers::All] {
            let mut load = model.loader(mode).gpu_layers(layers).start().unwrap();
            let mut names = BTreeSet::new();
            for tensor in &mut load {
                let tensor = tensor.unwrap();
                model.assert_right(&tensor);
                assert!(names.insert(tensor.name().to_owned()), "{} came twice", tensor.name());
            }
            assert_eq!(names.len(), model.tensors.len(), "{mode}");
            let loaded = load.finish().unwrap();
            assert_eq!(loaded.tensors().len(), names.len());
            let offloaded = loaded.tensors().filter(|tensor| tensor.backend() == Backend::Host);
            let expected = match layers {
                GpuLayers::Count(count) => count as usize * 2,
                GpuLayers::All => 16,
            };
            assert_eq!(offloaded.count(), expected, "{mode}");
            assert_nothing_left(mode);
        }
    }
}

fn tensors_outlive_their_load(model: &TestModel) {
    let mut load = model.loader("dio").start().unwrap();
    let first = load.next().unwrap().unwrap();
    drop(load);
    model.assert_right(&first);
}

fn dropping_at_any_moment_drains(model: &TestModel) {
    let mut rng = fastrand::Rng::with_seed(11);
    for round in 0..150 {
        let mode = MODES[round % MODES.len()];
        let mut load = model.loader(mode).staging_bytes(256 << 10).start().unwrap();
        for tensor in load.by_ref().take(rng.usize(..16)) {
            model.assert_right(&tensor.unwrap());
        }
        std::thread::sleep(std::time::Duration::from_micros(rng.u64(..2000)));
        drop(load);
        assert_nothing_left(mode);
    }
}

/// Every read takes a while, so that the load is under way when something happens.
fn slow() -> Box<Script> {
    let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
    Box::new(Script::new(Rule::new(Answer::Meanwhile(Box::new(pause)))))
}

fn cancelling_is_an_error_and_drains(model: &TestModel) {
    for mode in ["dio", "none", "mmap"] {
        for cancel_before_start in [true, false] {
            let cancel = Cancel::default();
            if cancel_before_start {
                cancel.cancel();
            }
            let from_callback = cancel.clone();
            let loader = model.loader(mode).staging_bytes(256 << 10).fault(slow());
            let loader = loader.cancel_with(&cancel).on_progress(move |_| from_callback.cancel());
            let error = loader.load().unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{mode}: {error}");
            assert_nothing_left(mode);
        }
    }
    let cancel = Cancel::default();
    cancel.cancel();
    let nothing_to_read = model.loader("mmap").gpu_layers(GpuLayers::Count(0));
    let error = nothing_to_read.cancel_with(&cancel).load().unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

fn a_panic_in_the_callback_drains(model: &TestModel) {
    for mode in ["dio", "none", "mmap"] {
        let was_running = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&was_running);
        let loader = model.loader(mode).staging_bytes(256 << 10).fault(slow());
        let loader = loader.on_progress(move |_| {
            seen.store(load_threads() > 0, Ordering::Relaxed);
            panic!("the callback's own fault");
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| loader.load().map(drop)));
        assert!(outcome.is_err(), "{mode}: the panic was swallowed");
        assert!(was_running.load(Ordering::Relaxed), "{mode}: the load was over by then");
        assert_nothing_left(mode);
    }
}

fn a_plan_can_be_started_twice_at_once(model: &TestModel) {
    let plan = model.loader("dio").plan().unwrap();
    let (first, second) = (plan.start().unwrap(), plan.start().unwrap());
    for loaded in [first.finish().unwrap(), second.finish().unwrap()] {
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
    }
    assert_nothing_left("two loads");
}

/// Locks do not nest: were the mapping shared, ending one load would unlock the other's pages.
fn a_lock_outlives_another_load_of_the_same_plan(model: &TestModel) {
    let plan = model.loader("mlock").gpu_layers(GpuLayers::Count(0)).plan().unwrap();
    let first = plan.start().unwrap().finish().unwrap();
    let locked = first.report().memory.locked_bytes;
    if locked == 0 {
        eprintln!("SKIPPED: this user may lock no memory");
        return;
    }
    drop(plan.start().unwrap().finish().unwrap());
    // The kernel counts the last page whole, the report only as far as the file goes.
    assert_eq!(status_kib("VmLck:") << 10, locked.next_multiple_of(4096));
    drop(first);
    assert_eq!(status_kib("VmLck:"), 0);
}

//! A prefetch that does not come to its end: dropped, cancelled, or its file cut short. It stops,
//! leaves nothing behind, and is an error or nothing, never a signal.

mod support;

use forebay::{Cancel, Error, GpuLayers, Loader, Prefetch, Tensor};
use forebay_tests::residence::{cached_bytes, forget};
use std::fs::OpenOptions;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;
use support::{TestModel, alone, is_without_load_threads, on_a_thread, status_kib};

const MIB: usize = 1 << 20;

fn mapped(model: &TestModel, mode: &str) -> Loader {
    model.loader(mode).gpu_layers(GpuLayers::Count(0)).prefetch(Prefetch::On)
}

/// Panics of the loader's threads so far: a dropped load has nobody to tell of them.
fn panics() -> usize {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("forebay-")) {
                COUNT.fetch_add(1, Ordering::Relaxed);
            }
            before(panic);
        }));
    });
    COUNT.load(Ordering::Relaxed)
}

fn assert_nothing_left(what: &str) {
    assert!(is_without_load_threads(), "{what}: a thread is left");
    assert_eq!((status_kib("VmLck:"), status_kib("VmPin:")), (0, 0), "{what}: pages are locked");
    assert_eq!(panics(), 0, "{what}: a thread of the load panicked");
}

/// Tensors that a load was dropped with, and all that is left to do with them, still serve.
fn assert_serve(model: &TestModel, tensors: Vec<Tensor>) {
    for tensor in tensors {
        tensor.wait_until_resident().unwrap();
        model.assert_right(&tensor);
    }
}

#[test]
fn dropping_a_prefetch_stops_it_and_leaves_nothing_behind() {
    let _alone = alone();
    let _ = panics();
    let model = Arc::new(TestModel::layered(8, 20 * MIB));
    let mut rng = fastrand::Rng::with_seed(5);
    let mut least = u64::MAX;
    for round in 0..60 {
        let is_cold = forget(&model.path);
        let mode = ["cpu=mmap", "mlock", "device=dio,cpu=mmap", "mmap"][round % 4];
        let layers = GpuLayers::Count(if round % 4 < 2 { 0 } else { 4 });
        let mut load = mapped(&model, mode).gpu_layers(layers).start().unwrap();
        let tensors = load.mapped_tensors();
        for tensor in load.by_ref().take(rng.usize(..3)) {
            model.assert_right(&tensor.unwrap());
        }
        std::thread::sleep(Duration::from_micros(rng.u64(..3000)));
        drop(load);
        if is_cold && round % 4 == 0 {
            least = least.min(cached_bytes(&model.path, 0..model.file_bytes));
        }
        if round % 10 == 0 {
            let model = Arc::clone(&model);
            on_a_thread("using what is left", move || assert_serve(&model, tensors));
        } else {
            drop(tensors);
        }
        assert_nothing_left(mode);
    }
    // That it stops shows in what it leaves undone; one round of many is enough.
    let told = "a dropped prefetch brought the whole file every time";
    assert!(least == u64::MAX || least < model.file_bytes, "{told}");
}

#[test]
fn cancelling_a_prefetch_is_an_error_or_came_too_late() {
    let _alone = alone();
    let _ = panics();
    let model = TestModel::layered(8, 16 * MIB);
    let mut cancelled = 0;
    for round in 0..20 {
        let is_cold = forget(&model.path);
        let cancel = Cancel::default();
        let loader = mapped(&model, ["cpu=mmap", "mlock"][round % 2]).cancel_with(&cancel);
        let mut load = loader.start().unwrap();
        // The first tensor of many is there.
        let first = load.next().unwrap().unwrap();
        cancel.cancel();
        let rest: Vec<_> = load.by_ref().collect();
        match rest.into_iter().find_map(Result::err) {
            Some(error) => {
                assert!(matches!(error, Error::Cancelled), "{error}");
                drop(load);
                cancelled += usize::from(is_cold);
            }
            // It had come to its end by then: nothing may be missing.
            None => {
                let loaded = load.finish().unwrap();
                let brought = loaded.report().memory.prefetched_bytes;
                let told = "a load that was cut off by its cancellation passes for a whole one";
                assert_eq!(brought, model.paged_bytes_of(|_| true), "{told}");
            }
        }
        model.assert_right(&first);
        drop(first);
        assert_nothing_left("cancelled");
    }
    if cancelled == 0 && forget(&model.path) {
        panic!("no prefetch of a cold file heard of its cancellation");
    }
}

/// Cut before the prefetch comes to it: every page behind the cut is missing.
#[test]
fn a_file_cut_short_before_its_prefetch_is_one_error_that_names_it() {
    let _alone = alone();
    let _ = panics();
    for mode in ["cpu=mmap", "device=dio,cpu=mmap", "mmap"] {
        for keep_bytes in [0, 4096, 5 * MIB as u64 + 100] {
            let model = TestModel::layered(4, 4 * MIB);
            let _ = forget(&model.path);
            let loader = mapped(&model, mode).gpu_layers(GpuLayers::Count(2));
            let plan = loader.plan().unwrap();
            let file = OpenOptions::new().write(true).open(&model.path).unwrap();
            file.set_len(keep_bytes).unwrap();
            let what = format!("{mode}, cut to {keep_bytes}");
            let load = plan.start().unwrap();
            let tensors = load.mapped_tensors();
            let error = load.finish().unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::Changed { .. } | Error::Read { .. }), "{what}: {said}");
            assert!(said.contains(model.path.to_str().unwrap()), "{what}: {said}");
            assert!(error.remedy().is_some(), "{what}: {said}");
            let is_there = |tensor: &Tensor| model.range(tensor.name()).end <= keep_bytes;
            for tensor in tensors {
                match tensor.wait_until_resident() {
                    Ok(()) => assert!(is_there(&tensor), "{what}: {tensor:?} can't be there"),
                    Err(error) => {
                        assert!(!is_there(&tensor), "{what}: {tensor:?}: {error}");
                        assert!(error.to_string().contains(tensor.name()), "{what}: {error}");
                    }
                }
            }
            assert_nothing_left(&what);
        }
    }
}

/// Cut at any moment of a load: an error, or the load had ended by then.
#[test]
fn a_file_cut_short_during_its_prefetch_is_no_signal() {
    let _alone = alone();
    let _ = panics();
    let mut rng = fastrand::Rng::with_seed(6);
    let mut refused = 0;
    for round in 0..24 {
        let model = TestModel::layered(4, 6 * MIB);
        let _ = forget(&model.path);
        let mode = ["cpu=mmap", "mlock", "device=none,cpu=mmap"][round % 3];
        let layers = GpuLayers::Count(if round % 3 == 2 { 2 } else { 0 });
        let load = mapped(&model, mode).gpu_layers(layers).start().unwrap();
        let file = OpenOptions::new().write(true).open(&model.path).unwrap();
        std::thread::sleep(Duration::from_micros(rng.u64(..6000)));
        file.set_len(rng.u64(..model.file_bytes)).unwrap();
        match load.finish() {
            Ok(_) => {}
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(said.contains(model.path.to_str().unwrap()), "{mode}: {said}");
                assert!(error.remedy().is_some(), "{mode}: {said}");
            }
        }
        assert_nothing_left(mode);
    }
    assert!(refused > 0, "every load had ended before its file was cut");
}

//! Tensors on emulated CUDA devices: as they land, in parts, outliving their load; and every way
//! to end such a load early.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::{loader_to, small_loader, turn};
use cudarc::driver::result;
use forebay::{
    Axis, Backend, Cancel, DeviceError, Error, GpuLayers, Loaded, Model, Plan, SplitMode, Tensor,
};
use forebay_cuda_emulator::Emulator;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use support::TestModel;

/// Matrices of odd sizes, a vector, and two without bytes.
fn matrices() -> TestModel {
    let shapes: [&[usize]; 8] =
        [&[37, 5003], &[4001, 7], &[1, 9001], &[9001, 1], &[2, 3, 40_099], &[8195], &[0], &[4, 0]];
    let named = |(number, shape): (usize, &&[usize])| {
        (format!("model.layers.{number}.weight"), shape.to_vec())
    };
    TestModel::shaped(shapes.iter().enumerate().map(named))
}

fn all_right(model: &TestModel, loaded: &Loaded) {
    assert_eq!(loaded.tensors().len(), model.tensors.len());
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
}

#[test]
fn tensors_land_whole_while_the_rest_is_on_its_way() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(60e6));
    let model = TestModel::new(4 << 20);
    let mut load = small_loader(&model).start().unwrap();
    let mut names = BTreeSet::new();
    let mut were_early = 0;
    for tensor in &mut load {
        let tensor = tensor.unwrap();
        assert_eq!((tensor.backend(), tensor.as_slice()), (Backend::Cuda(0), None));
        model.assert_right(&tensor);
        assert!(names.insert(tensor.name().to_owned()), "{} came twice", tensor.name());
        // Reading back takes the time of a copy or so: most of the load is still to come.
        were_early += usize::from(turn.uploaded(0) < 3 << 20);
    }
    assert_eq!(names.len(), model.tensors.len());
    assert!(were_early > 2, "tensors were kept back until the end");
    let loaded = load.finish().unwrap();
    all_right(&model, &loaded);
    let report = loaded.report();
    assert_eq!(report.upload.bytes, model.bytes_of(|_| true));
    assert_eq!(report.upload.pinned, Some(true));
    assert!(report.devices[0].emulated);
    assert_eq!(report.memory.staging_bytes, 256 << 10);
    drop(loaded);
    turn.end();
}

fn read(tensor: &Tensor, offset: u64, bytes: usize) -> Result<Vec<u8>, Error> {
    let mut into = vec![0xAA; bytes];
    tensor.read_into(offset, &mut into)?;
    Ok(into)
}

#[test]
fn any_piece_of_a_tensor_can_be_read_and_none_past_its_end() {
    let turn = turn(&Emulator::new().devices(3));
    let model = matrices();
    let mut rng = fastrand::Rng::with_seed(4);
    for split in [SplitMode::Layers, SplitMode::Rows, SplitMode::Columns] {
        let loaded = loader_to(&model, "cuda:2,cuda:0,cuda:1", split).load().unwrap();
        all_right(&model, &loaded);
        for tensor in loaded.tensors() {
            let whole = &model.tensors[tensor.name()];
            for _ in 0..40 {
                let start = rng.usize(..=whole.len());
                let bytes = rng.usize(..=(whole.len() - start).min(9000));
                let piece = read(&tensor, start as u64, bytes).unwrap();
                assert!(piece == whole[start..start + bytes], "{bytes} at {start}: {tensor:?}");
            }
            let end = tensor.bytes();
            assert!(read(&tensor, end, 0).unwrap().is_empty());
            for (offset, bytes) in [(end, 1), (end + 1, 0), (0, whole.len() + 1), (u64::MAX, 2)] {
                let error = read(&tensor, offset, bytes).unwrap_err();
                assert!(matches!(error, Error::Memory { .. }), "{error}");
                assert!(error.to_string().contains(tensor.name()), "{error}");
            }
        }
    }
    turn.end();
}

#[test]
fn parts_say_what_each_device_has_and_where() {
    let turn = turn(&Emulator::new().devices(3));
    let model = matrices();
    let devices = [Backend::Cuda(2), Backend::Cuda(0), Backend::Cuda(1)];
    for (split, axis) in [(SplitMode::Rows, Axis::Rows), (SplitMode::Columns, Axis::Columns)] {
        let loaded = loader_to(&model, "cuda:2,cuda:0,cuda:1", split).load().unwrap();
        for tensor in loaded.tensors() {
            let parts = tensor.parts();
            let shape = tensor.shape();
            let columns = *shape.last().unwrap();
            let rows: u64 = shape[..shape.len() - 1].iter().product();
            let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
            assert_eq!(bytes, tensor.bytes());
            assert_eq!(tensor.backend(), parts[0].backend);
            for part in &parts {
                let area =
                    (part.rows.end - part.rows.start) * (part.columns.end - part.columns.start);
                assert_eq!(area, part.bytes, "{tensor:?}: {part:?}");
            }
            let is_cut = shape.len() > 1 && tensor.bytes() > 0;
            assert_eq!(tensor.split_axis(), is_cut.then_some(axis), "{tensor:?}");
            if !is_cut {
                assert_eq!((parts.len(), parts[0].backend), (1, Backend::Cuda(2)), "{tensor:?}");
                assert_eq!(tensor.device_address(), parts[0].device_address);
                continue;
            }
            assert_eq!(tensor.device_address(), None, "{tensor:?}");
            let count = if axis == Axis::Rows { rows } else { columns }.min(3);
            assert_eq!(parts.len() as u64, count, "{tensor:?}");
            let mut at = 0;
            for (part, device) in parts.iter().zip(devices) {
                assert_eq!(part.backend, device);
                let address = part.device_address.unwrap();
                assert_eq!(address % 256, 0, "{tensor:?}: {part:?}");
                // The emulator's addresses have the device's ordinal above bit 49.
                let Backend::Cuda(ordinal) = device else { panic!("{device}") };
                assert_eq!(address >> 49, u64::from(ordinal), "{tensor:?}: {part:?}");
                let (cut, whole, all) = match axis {
                    Axis::Rows => (&part.rows, &part.columns, columns),
                    _ => (&part.columns, &part.rows, rows),
                };
                assert_eq!((cut.start, whole.clone()), (at, 0..all), "{tensor:?}: {part:?}");
                assert!(cut.end > cut.start);
                at = cut.end;
            }
            assert_eq!(at, if axis == Axis::Rows { rows } else { columns });
        }
    }
    turn.end();
}

/// The bytes at the addresses that `parts` gives, asked of the driver and not of forebay.
#[test]
fn what_kernels_find_at_the_addresses_is_the_part() {
    let turn = turn(&Emulator::new().devices(2));
    let model = matrices();
    for split in [SplitMode::Layers, SplitMode::Rows, SplitMode::Columns] {
        let loaded = loader_to(&model, "cuda:all", split).load().unwrap();
        for tensor in loaded.tensors() {
            let whole = &model.tensors[tensor.name()];
            let row = usize::try_from(*tensor.shape().last().unwrap()).unwrap();
            for part in tensor.parts().iter().filter(|part| part.bytes > 0) {
                let Backend::Cuda(ordinal) = part.backend else { panic!("{part:?}") };
                let mut there = vec![0; usize::try_from(part.bytes).unwrap()];
                with_context(ordinal, || {
                    let from = part.device_address.unwrap();
                    unsafe { result::memcpy_dtoh_sync(&mut there, from) }.unwrap();
                });
                let inside = |range: &std::ops::Range<u64>| {
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
                };
                let (rows, columns) = (inside(&part.rows), inside(&part.columns));
                let expected: Vec<u8> = rows
                    .flat_map(|number| &whole[number * row..][columns.clone()])
                    .copied()
                    .collect();
                assert!(there == expected, "{tensor:?}: {part:?}");
            }
        }
    }
    turn.end();
}

/// Works with a device's primary context current on this thread.
fn with_context<T>(ordinal: u32, work: impl FnOnce() -> T) -> T {
    let device = result::device::get(i32::try_from(ordinal).unwrap()).unwrap();
    let context = unsafe { result::primary_ctx::retain(device) }.unwrap();
    unsafe { result::ctx::set_current(context) }.unwrap();
    let done = work();
    unsafe { result::ctx::set_current(std::ptr::null_mut()) }.unwrap();
    unsafe { result::primary_ctx::release(device) }.unwrap();
    done
}

#[test]
fn dropping_a_load_at_any_moment_leaves_nothing_behind() {
    let emulator = Emulator::new().devices(2).upload_bytes_per_s(40e6);
    let turn = turn(&emulator);
    let model = TestModel::shaped(
        (0..16).map(|number| (format!("model.layers.{number}.weight"), vec![31 + number, 4001])),
    );
    let mut rng = fastrand::Rng::with_seed(5);
    for round in 0..40 {
        let split = [SplitMode::Layers, SplitMode::Rows, SplitMode::Columns][round % 3];
        let loader = loader_to(&model, "cuda:all", split);
        let loader = loader.chunk_bytes(16 << 10).staging_bytes(64 << 10);
        let mut load = loader.start().unwrap();
        let taken: Vec<Tensor> =
            load.by_ref().take(rng.usize(..12)).collect::<Result<_, _>>().unwrap();
        std::thread::sleep(Duration::from_micros(rng.u64(..3000)));
        drop(load);
        // What was handed out stays, and is right.
        taken.iter().for_each(|tensor| model.assert_right(tensor));
        drop(taken);
        turn.expect_nothing_held(&format!("round {round}, {split:?}"));
    }
    turn.end();
}

#[test]
fn cancelling_from_another_thread_is_an_error_and_leaves_nothing_behind() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(20e6));
    let model = TestModel::new(8 << 20);
    for delay_ms in [0, 1, 5, 30] {
        let cancel = Cancel::default();
        let from_there = cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(delay_ms));
            from_there.cancel();
        });
        let error = small_loader(&model).cancel_with(&cancel).load().unwrap_err();
        canceller.join().unwrap();
        assert!(matches!(error, Error::Cancelled), "{error}");
        drop(error);
        turn.expect_ended("cancelled");
    }
    let panics = small_loader(&model).on_progress(|_| panic!("the callback's own fault"));
    assert!(catch_unwind(AssertUnwindSafe(|| panics.load().map(drop))).is_err());
    turn.expect_ended("a panic");
    turn.end();
}

#[test]
fn a_stalled_device_is_waited_for_when_the_load_is_dropped() {
    let emulator = Emulator::new().devices(2).device(1, |device| device.stall_copy(2, 200));
    let turn = turn(&emulator);
    let model = matrices();
    let mut load = loader_to(&model, "cuda:all", SplitMode::Rows).start().unwrap();
    let _ = load.next();
    drop(load);
    turn.expect_nothing_held("dropped");
    turn.end();
}

#[test]
fn memory_goes_with_the_last_tensor() {
    let turn = turn(&Emulator::new().devices(2));
    let model = matrices();
    for split in [SplitMode::Layers, SplitMode::Rows] {
        let loaded = loader_to(&model, "cuda:all", split).load().unwrap();
        let tensor = loaded.tensors().find(|tensor| tensor.bytes() > 100_000).unwrap();
        let report = loaded.report().clone();
        assert_eq!(report.devices.len(), 2);
        drop(loaded);
        let clone = tensor.clone();
        drop(tensor);
        model.assert_right(&clone);
        let held = |device: usize| Emulator::report().devices[device].memory.count;
        assert!(held(0) + held(1) > 0);
        // Read on a thread that has never heard of the device.
        let clone = std::thread::scope(|scope| {
            let read = || {
                model.assert_right(&clone);
                clone
            };
            scope.spawn(read).join().unwrap()
        });
        drop(clone);
        turn.expect_ended("the last tensor is gone");
    }
    turn.end();
}

#[test]
fn loads_at_once_do_not_disturb_each_other() {
    let turn = turn(&Emulator::new().devices(3).upload_bytes_per_s(200e6));
    let model = matrices();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let model = &model;
            scope.spawn(move || {
                let devices = ["cuda:0", "cuda:0,cuda:1", "cuda:all"][number % 3];
                let split = [SplitMode::Columns, SplitMode::Rows][number % 2];
                for _ in 0..3 {
                    let loader = loader_to(model, devices, split);
                    let loaded = loader.chunk_bytes(32 << 10).staging_bytes(128 << 10).load();
                    let loaded = loaded.unwrap();
                    all_right(model, &loaded);
                    let digests = loaded.digests().unwrap();
                    assert_eq!(digests.len(), model.tensors.len());
                }
            });
        }
    });
    turn.expect_ended("all of them");
    turn.end();
}

#[test]
fn a_plan_can_be_started_twice_at_once() {
    let turn = turn(&Emulator::new().devices(2));
    let model = matrices();
    let plan = loader_to(&model, "cuda:all", SplitMode::Columns).plan().unwrap();
    let (first, second) = (plan.start().unwrap(), plan.start().unwrap());
    let (first, second) = (first.finish().unwrap(), second.finish().unwrap());
    all_right(&model, &first);
    all_right(&model, &second);
    drop((first, second, plan));
    turn.end();
}

#[test]
fn planning_takes_nothing_of_the_device() {
    let turn = turn(&Emulator::new());
    let model = matrices();
    let opened = Model::open(&model.path).unwrap();
    let mut options = forebay::Options::default();
    options.device = "cuda".parse().unwrap();
    let plan = Plan::new(&opened, &options).unwrap();
    assert_eq!(plan.backends()[0].backend, Backend::Cuda(0));
    for call in ["cuDevicePrimaryCtxRetain", "cuMemAlloc_v2", "cuMemHostRegister_v2"] {
        assert_eq!(turn.calls(call), 0, "{call}");
    }
    turn.end();
}

/// The thread may be that of a program with a context of its own.
#[test]
fn the_callers_current_context_stays_what_it_was() {
    let turn = turn(&Emulator::new().devices(2));
    let model = matrices();
    let current = || result::ctx::get_current().unwrap();
    result::init().unwrap();
    assert_eq!(current(), None);
    let load_and_drop = || {
        let before = current();
        let mut load = loader_to(&model, "cuda:0", SplitMode::Layers).start().unwrap();
        let first = load.next().unwrap().unwrap();
        assert_eq!(current(), before, "started");
        model.assert_right(&first);
        assert_eq!(current(), before, "read back");
        drop(load);
        drop(first);
        assert_eq!(current(), before, "dropped");
        let loaded = loader_to(&model, "cuda:all", SplitMode::Rows).load().unwrap();
        loaded.digests().unwrap();
        drop(loaded);
        forebay::release_staging();
        assert_eq!(current(), before, "all is gone");
    };
    load_and_drop();
    with_context(1, load_and_drop);
    assert_eq!(current(), None);
    turn.end();
}

#[test]
fn a_device_that_fails_ends_the_iterator_with_one_error() {
    let slow = Emulator::new().devices(2).upload_bytes_per_s(60e6);
    let turn = turn(&slow.device(1, |device| device.fail_copy(9, 719)));
    let model = TestModel::new(4 << 20);
    let loader = loader_to(&model, "cuda:all", SplitMode::Layers);
    let mut load = loader.chunk_bytes(64 << 10).staging_bytes(256 << 10).start().unwrap();
    let (mut landed, mut errors) = (Vec::new(), Vec::new());
    for tensor in &mut load {
        match tensor {
            Ok(tensor) => landed.push(tensor),
            Err(error) => errors.push(error),
        }
    }
    assert!(load.next().is_none());
    assert_eq!(errors.len(), 1);
    let Error::Copy { context, device, refusal } = &errors[0] else { panic!("{}", errors[0]) };
    assert_eq!((&**device, refusal.code), ("cuda:1", 719));
    assert_eq!(context.path.as_deref(), Some(&*model.path));
    assert!(context.tensor.is_some() && errors[0].remedy().is_some());
    assert!(landed.len() < model.tensors.len());
    assert!(matches!(load.finish(), Err(Error::AlreadyReported)));
    // What the other device has is there still.
    let on_first = landed.iter().filter(|tensor| tensor.backend() == Backend::Cuda(0));
    on_first.for_each(|tensor| model.assert_right(tensor));
    for tensor in landed.iter().filter(|it| it.backend() == Backend::Cuda(1) && it.bytes() > 0) {
        let error = read(tensor, 0, 1).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error}");
    }
    drop(landed);
    turn.expect_nothing_held("failed");
    turn.end();
}

/// Once the device has recovered, which takes its context's end, it serves again.
#[test]
fn a_load_after_a_failed_one_is_right() {
    let turn = turn(&Emulator::new().fail_copy(3, 700));
    let model = TestModel::new(4 << 20);
    assert!(small_loader(&model).load().is_err());
    turn.expect_nothing_held("failed");
    let loaded = small_loader(&model).load().unwrap();
    all_right(&model, &loaded);
    drop(loaded);
    turn.end();
}

#[test]
fn tensors_of_the_cpu_and_of_devices_share_a_load() {
    let turn = turn(&Emulator::new().devices(2));
    let model = TestModel::new(2 << 20);
    for mode in ["auto", "none", "mmap", "dio", "mlock"] {
        for layers in [0, 3, 8] {
            let loader = model.loader(mode).device("cuda:all".parse().unwrap());
            let loaded = loader.gpu_layers(GpuLayers::Count(layers)).load().unwrap();
            all_right(&model, &loaded);
            let on_cuda = loaded.tensors().filter(|it| matches!(it.backend(), Backend::Cuda(_)));
            assert_eq!(on_cuda.count(), layers as usize * 2, "{mode} {layers}");
            for tensor in loaded.tensors() {
                let is_there = matches!(tensor.backend(), Backend::Cuda(_));
                assert_eq!(tensor.device_address().is_some(), is_there, "{tensor:?}");
                tensor.wait_until_resident().unwrap();
            }
        }
    }
    turn.end();
}

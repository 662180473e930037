//! GPUs that compute in the machine's memory: nothing is copied to them.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::{loader_to, turn};
use forebay::{Backend, DeviceError, Error, SplitMode};
use forebay_cuda_emulator::{Emulator, Held};
use support::TestModel;

fn integrated() -> Emulator {
    Emulator::new().device(0, |device| device.integrated(true))
}

#[test]
fn what_was_read_into_place_is_where_the_device_sees_it() {
    let turn = turn(&integrated());
    let model = TestModel::new(2 << 20);
    for mode in ["dio", "none", "auto"] {
        let loader = model.loader(mode).device("cuda".parse().unwrap());
        let loaded = loader.load().unwrap();
        for tensor in loaded.tensors() {
            model.assert_right(&tensor);
            assert_eq!(tensor.backend(), Backend::Cuda(0));
            let slice = tensor.as_slice().unwrap();
            // The emulator's host memory has one address for both.
            assert_eq!(tensor.device_address(), Some(slice.as_ptr() as u64), "{tensor:?}");
        }
        let report = loaded.report();
        assert_eq!(report.memory.in_place_bytes, model.bytes_of(|_| true), "{mode}");
        assert_eq!((report.upload.bytes, report.upload.pinned), (0, None), "{mode}");
        assert!(report.why.iter().any(|why| why.contains("machine's memory")), "{mode}");
        assert_eq!(Emulator::report().registered.count, 1, "{mode}");
        let last = loaded.tensors().next().unwrap();
        drop(loaded);
        model.assert_right(&last);
        assert_eq!(Emulator::report().registered.count, 1, "{mode}: the device may read it");
        drop(last);
        assert_eq!(Emulator::report().registered, Held::default(), "{mode}");
        turn.expect_nothing_held(mode);
    }
    assert_eq!(turn.uploaded(0), 0);
    assert_eq!(turn.calls("cuMemAlloc_v2") + turn.calls("cuMemcpyHtoDAsync_v2"), 0);
    turn.end();
}

#[test]
fn memory_that_the_device_may_not_read_is_an_error() {
    for call in ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"] {
        let turn = turn(&integrated().fail_call(call, 0, 800));
        let model = TestModel::new(1 << 20);
        let error = model.loader("dio").device("cuda".parse().unwrap()).load().unwrap_err();
        let Error::Device(DeviceError::Driver { device, refusal }) = &error else {
            panic!("{error}")
        };
        assert_eq!((&**device, refusal.code), ("cuda:0", 800));
        assert!(error.remedy().is_some());
        turn.expect_nothing_held(call);
        turn.end();
    }
}

#[test]
fn an_ordinary_device_beside_it_is_copied_to() {
    let turn = turn(&integrated().devices(2));
    let shapes = (0..9).map(|number| (format!("blk.{number}.w"), vec![30 + number, 2003]));
    let model = TestModel::shaped(shapes);
    for split in [SplitMode::Layers, SplitMode::Rows] {
        let loaded = loader_to(&model, "cuda:all", split).load().unwrap();
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        for tensor in loaded.tensors() {
            for part in tensor.parts() {
                assert!(part.device_address.is_some(), "{tensor:?}: {part:?}");
            }
        }
    }
    assert_eq!(turn.uploaded(0), 0);
    assert!(turn.uploaded(1) > 0);
    turn.end();
}

#[test]
fn dropping_a_load_to_it_leaves_nothing_behind() {
    let turn = turn(&integrated());
    let model = TestModel::new(4 << 20);
    for taken in [0, 1, 5, 16] {
        let loader = loader_to(&model, "cuda:0", SplitMode::Layers).chunk_bytes(64 << 10);
        let mut load = loader.start().unwrap();
        for tensor in load.by_ref().take(taken) {
            model.assert_right(&tensor.unwrap());
        }
        drop(load);
        turn.expect_nothing_held("dropped");
    }
    turn.end();
}

//! Layers and experts that come to an emulated CUDA device and go: their bytes, products with them,
//! the memory that they take, and every way such a stream ends.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/matrices.rs"]
mod matrices;
mod support;

use cuda::{Turn, turn};
use forebay::{
    Backend, ComputeStream, DeviceError, DeviceFloats, Error, Fetcher, Layer, LayerStream,
    LayerStreamBuilder, Options, Tensor, Tier,
};
use forebay_cuda_emulator::{Emulator, Held};
use forebay_tests::{Answer, Rule, Script};
use matrices::{TYPES, Type};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{TestModel, on_a_thread};

/// What the driver's allocations are rounded up to, at most, and what products need beside weights.
const BESIDE: u64 = 1 << 20;

fn options() -> Options {
    let mut options = Options::default();
    options.device = "cuda:0".parse().unwrap();
    options.load_mode = "dio".parse().unwrap();
    options.chunk_bytes = Some(32 << 10);
    options.staging_bytes = Some(256 << 10);
    options
}

fn stream(path: &Path, budget: u64, host: u64) -> LayerStreamBuilder {
    LayerStream::builder(path).options(options()).device_budget(budget).host_budget(host)
}

fn uneven() -> TestModel {
    let layer = |layer: usize| {
        let name = move |part: usize| format!("model.layers.{layer}.part{part}.weight");
        let length = move |part: usize| 20_011 + (layer * 29 + part * 17) % 11 * 9001;
        (0..1 + layer % 3).map(move |part| (name(part), if part == 1 { 0 } else { length(part) }))
    };
    let head = ("lm_head.weight".to_owned(), 100_001);
    TestModel::of((0..14).rev().flat_map(layer).chain([head]))
}

fn even(layers: usize, bytes: usize) -> TestModel {
    TestModel::of((0..layers).map(|layer| (format!("model.layers.{layer}.weight"), bytes)))
}

fn bytes_of(model: &TestModel) -> u64 {
    model.bytes_of(|_| true)
}

/// A pass in which every tensor comes once and right.
fn pass(model: &TestModel, stream: &mut LayerStream) {
    let mut seen = 0;
    while let Some(layer) = stream.next_layer().unwrap() {
        for tensor in layer.tensors() {
            assert_eq!(tensor.backend(), Backend::Cuda(0));
            model.assert_right(&tensor);
            seen += 1;
        }
    }
    assert_eq!(seen, model.tensors.len());
}

fn device_bytes_now() -> u64 {
    Emulator::report().devices[0].memory.bytes
}

#[test]
fn every_layer_has_the_bytes_of_the_file_and_the_budget_holds() {
    let model = uneven();
    let all = bytes_of(&model);
    for budget in [2 * all, all / 2, all / 4] {
        for host in [0, all / 3, 2 * all] {
            // More than the budget is refused by the device itself.
            let turn = turn(&Emulator::new().memory_bytes(budget + (64 << 10)));
            let mut stream = stream(&model.path, budget, host).start().unwrap();
            for _ in 0..4 {
                pass(&model, &mut stream);
                assert!(device_bytes_now() <= budget);
            }
            let report = stream.finish().unwrap();
            assert_eq!(report.device, "cuda:0");
            let tiers = report.tiers;
            assert!(tiers.resident_bytes <= budget && tiers.host_bytes <= host);
            assert_eq!(tiers.resident_bytes + tiers.host_bytes + tiers.streamed_bytes, all);
            let again = all - tiers.resident_bytes;
            assert!(report.passes[3].uploaded_bytes <= 2 * again);
            turn.expect_ended("streamed");
            turn.end();
        }
    }
}

/// Where products go.
struct Products {
    stream: ComputeStream,
    batch: usize,
    x: BTreeMap<usize, DeviceFloats>,
    queued: Vec<(String, DeviceFloats)>,
    seed: u64,
}

impl Products {
    fn new(stream: &LayerStream, batch: usize) -> Self {
        let stream = ComputeStream::new(stream.context().unwrap()).unwrap();
        Self { stream, batch, x: BTreeMap::new(), queued: Vec::new(), seed: 3 }
    }

    /// Queues the products of a layer, and waits for none.
    fn queue(&mut self, layer: &Layer) {
        for tensor in layer.tensors() {
            let Ok(shape) = tensor.matrix_shape() else { continue };
            if tensor.kernel(self.batch).unwrap().is_none() {
                continue;
            }
            let weights = tensor.weights().unwrap().unwrap();
            let (batch, seed) = (self.batch, self.seed);
            let stream = &mut self.stream;
            let x = self.x.entry(shape.columns).or_insert_with(|| {
                let mut random = fastrand::Rng::with_seed(seed);
                let numbers: Vec<f32> =
                    (0..shape.columns * batch).map(|_| random.f32() - 0.5).collect();
                let mut x = DeviceFloats::new(weights.context(), numbers.len()).unwrap();
                stream.upload(&numbers, &mut x).unwrap();
                x
            });
            let mut y = DeviceFloats::new(weights.context(), shape.rows * batch).unwrap();
            stream.matmul(&weights, x, batch, &mut y).unwrap();
            self.queued.push((tensor.name().to_owned(), y));
        }
    }

    fn collect(&mut self, into: &mut BTreeMap<String, Vec<u32>>) {
        for (name, y) in self.queued.drain(..) {
            let mut numbers = vec![f32::NAN; y.len()];
            self.stream.download(&y, &mut numbers).unwrap();
            into.insert(name, numbers.iter().map(|it| it.to_bits()).collect());
        }
    }
}

/// The products of three passes: with all layers in turn, or with several queued at a time.
fn products(path: &Path, budget: u64, waits: bool) -> BTreeMap<String, Vec<u32>> {
    let mut stream = stream(path, budget, 0).passes(3).start().unwrap();
    let mut products = Products::new(&stream, 5);
    let mut first = BTreeMap::new();
    for number in 0..3 {
        let mut outputs = BTreeMap::new();
        while let Some(layer) = stream.next_layer().unwrap() {
            products.queue(&layer);
            products.stream.retire().unwrap();
            drop(layer);
            if waits {
                products.collect(&mut outputs);
            }
        }
        products.collect(&mut outputs);
        if number == 0 {
            first = outputs;
        } else {
            assert!(first == outputs, "the products of pass {number} are others");
        }
    }
    first
}

fn typed(types: usize, rows: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    matrices::model(&TYPES.iter().take(types).collect::<Vec<&Type>>(), rows, 512)
}

#[test]
fn products_are_bit_equal_to_those_of_a_model_that_is_there() {
    let (_folder, path) = typed(10, 40);
    let all = std::fs::metadata(&path).unwrap().len();
    let turn = turn(&Emulator::new());
    let resident = products(&path, 2 * all, true);
    assert!(resident.len() > 8);
    // The first type has matrices of four bytes an element: more than a quarter.
    for budget in [all / 2, all / 3] {
        assert!(products(&path, budget, true) == resident, "with {budget}");
    }
    turn.end();
}

/// Products that are queued when their layer is dropped find it as it was, however late they run.
#[test]
fn a_layer_that_is_dropped_is_not_overwritten_under_its_products() {
    let (_folder, path) = typed(10, 40);
    let all = std::fs::metadata(&path).unwrap().len();
    let turn = turn(&Emulator::new().workers(1));
    let resident = products(&path, 2 * all, true);
    let late =
        on_a_thread("products that nobody waits for", move || products(&path, all / 3, false));
    assert!(late == resident);
    turn.end();
}

/// Nobody waits for the products and nobody lets go of what they use: an error, not a wait without
/// end; and once somebody does, the stream goes on.
#[test]
fn products_that_nobody_waits_for_are_an_error_in_the_end() {
    let (_folder, path) = typed(10, 40);
    let turn = turn(&Emulator::new());
    on_a_thread("held by products", move || {
        let bytes = std::fs::metadata(&path).unwrap().len();
        let mut stream = stream(&path, bytes / 3, 0).passes(2).start().unwrap();
        let mut products = Products::new(&stream, 3);
        let error = loop {
            match stream.next_layer() {
                Ok(Some(layer)) => products.queue(&layer),
                Ok(None) => panic!("there is room for all"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Option { .. }), "{error}");
        assert!(error.remedy().unwrap().contains("release_after"), "{error}");
        products.stream.synchronize().unwrap();
        assert!(stream.next_layer().unwrap().is_some());
    });
    turn.end();
}

/// The split is changed while a layer of the first one is in use: not both may be on the device.
#[test]
fn the_budget_holds_while_the_split_changes() {
    let model = even(6, 200_003);
    let budget = 4 * 200_192;
    for holds in [None, Some(Tier::Streamed), Some(Tier::Resident)] {
        let turn = turn(&Emulator::new().memory_bytes(budget + (64 << 10)));
        let pause = || std::thread::sleep(Duration::from_millis(3));
        let slow = Script::new(Rule::new(Answer::Meanwhile(Box::new(pause))));
        let mut stream = stream(&model.path, budget, 0).fault(Box::new(slow)).start().unwrap();
        assert!(stream.tiers().contains(&Tier::Resident) && stream.report().depth == 2);
        let mut held = None;
        while let Some(layer) = stream.next_layer().unwrap() {
            layer.tensors().for_each(|tensor| model.assert_right(&tensor));
            if holds == Some(layer.tier()) {
                held = Some(layer);
            }
        }
        for _ in 0..3 {
            if let Some(layer) = &held {
                layer.tensors().for_each(|tensor| model.assert_right(&tensor));
            }
            pass(&model, &mut stream);
            assert!(device_bytes_now() <= budget);
        }
        drop(held);
        let report = stream.finish().unwrap();
        let has_changed = report.why.iter().any(|why| why.starts_with("after the first pass"));
        assert_eq!(has_changed, holds.is_none(), "{holds:?}: {:#?}", report.why);
        turn.expect_ended("another split");
        turn.end();
    }
}

/// Goes on until something ends the stream.
fn error_of(what: &str, builder: LayerStreamBuilder) -> Error {
    on_a_thread(what, move || {
        let mut stream = match builder.start() {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        for _ in 0..10_000 {
            if let Err(error) = stream.next_layer() {
                assert!(matches!(stream.next_layer(), Err(Error::AlreadyReported)));
                assert!(matches!(stream.finish(), Err(Error::AlreadyReported)));
                return error;
            }
        }
        panic!("nothing ended it: {:?}", std::thread::current().name());
    })
}

#[test]
fn a_copy_that_fails_ends_the_stream_with_one_error_and_leaves_nothing() {
    let model = uneven();
    let all = bytes_of(&model);
    for nth in [1, 2, 9, 40, 77] {
        let turn = turn(&Emulator::new().fail_copy(nth, 719));
        let error = error_of("a copy", stream(&model.path, all / 4, all / 4));
        let Error::Copy { context, device, refusal } = &error else { panic!("{nth}: {error}") };
        assert_eq!((&**device, refusal.code), ("cuda:0", 719));
        assert_eq!(context.path.as_deref(), Some(&*model.path));
        assert!(context.tensor.is_some() && error.remedy().is_some());
        turn.expect_nothing_held("a copy failed");
        // The device serves again.
        let mut next = stream(&model.path, all / 4, 0).start().unwrap();
        pass(&model, &mut next);
        drop(next);
        turn.end();
    }
}

#[test]
fn calls_that_fail_are_clean_errors() {
    let model = uneven();
    let all = bytes_of(&model);
    for (call, nth, code) in [
        ("cuMemAlloc_v2", 1, 2),
        ("cuStreamCreate", 1, 2),
        ("cuStreamCreate", 2, 2),
        ("cuMemcpyHtoDAsync_v2", 3, 1),
        ("cuEventCreate", 2, 2),
        ("cuEventRecord", 5, 1),
        ("cuDevicePrimaryCtxRetain", 0, 2),
    ] {
        let what = format!("{call} {nth}");
        let turn = turn(&Emulator::new().fail_call(call, nth, code));
        let error = error_of(&what, stream(&model.path, all / 4, all / 4));
        assert!(matches!(error, Error::Device(_) | Error::Copy { .. }), "{what}: {error:?}");
        assert!(turn.calls(call) > 0, "{what}");
        turn.expect_ended(&what);
        turn.end();
    }
    let turn = turn(&Emulator::new().memory_bytes(all / 8));
    let error = error_of("no room", stream(&model.path, all / 2, 0));
    let Error::Device(DeviceError::DeviceFull { .. }) = &error else { panic!("{error:?}") };
    turn.expect_ended("no room");
    turn.end();
}

#[test]
fn memory_that_can_not_be_pinned_serves_as_it_is() {
    let turn = turn(&Emulator::new().fail_call("cuMemHostRegister_v2", 0, 1));
    let model = uneven();
    let all = bytes_of(&model);
    let mut stream = stream(&model.path, all / 4, all / 4).start().unwrap();
    for _ in 0..3 {
        pass(&model, &mut stream);
    }
    stream.finish().unwrap();
    turn.end();
}

#[test]
fn a_device_without_memory_of_its_own_computes_where_layers_land() {
    let turn = turn(&Emulator::new().device(0, |device| device.integrated(true)));
    let model = uneven();
    let all = bytes_of(&model);
    let mut stream = stream(&model.path, all / 4, all / 4).start().unwrap();
    let mut last = None;
    for _ in 0..3 {
        drop(last.take());
        while let Some(layer) = stream.next_layer().unwrap() {
            for tensor in layer.tensors() {
                assert_eq!(tensor.backend(), Backend::Cuda(0));
                model.assert_right(&tensor);
                if tensor.bytes() > 0 {
                    let slice = tensor.as_slice().unwrap();
                    assert_eq!(tensor.device_address(), Some(slice.as_ptr() as u64));
                }
            }
            if layer.name() == "output" {
                last = layer.tensors().next();
            }
        }
    }
    assert!(Emulator::report().registered.count > 0);
    drop(stream);
    let last = last.unwrap();
    model.assert_right(&last);
    assert!(Emulator::report().registered.count > 0, "the device may read it");
    drop(last);
    assert_eq!((turn.uploaded(0), device_bytes_now()), (0, 0));
    turn.end();
    for call in ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"] {
        let emulator = Emulator::new().device(0, |device| device.integrated(true));
        let turn = cuda::turn(&emulator.fail_call(call, 0, 800));
        let error = error_of(call, self::stream(&model.path, all / 4, 0));
        assert!(matches!(error, Error::Device(DeviceError::Driver { .. })), "{error:?}");
        turn.expect_nothing_held(call);
        turn.end();
    }
}

fn dropped_at_any_moment(turn: &Turn, model: &TestModel, rounds: usize) {
    let all = bytes_of(model);
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..rounds {
        let builder = stream(&model.path, all / 4 + random.u64(..all), random.u64(..all));
        let mut stream = builder.start().unwrap();
        let mut kept: Vec<Tensor> = Vec::new();
        for _ in 0..random.usize(..25) {
            kept.clear();
            if let Some(layer) = stream.next_layer().unwrap() {
                kept = layer.tensors().collect();
            }
        }
        std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        drop(stream);
        kept.iter().for_each(|tensor| model.assert_right(tensor));
        drop(kept);
        turn.expect_ended(&format!("round {round}"));
    }
}

#[test]
fn dropping_a_stream_at_any_moment_leaves_nothing_behind() {
    let model = uneven();
    let turn = turn(&Emulator::new().upload_bytes_per_s(200e6).stall_copy(30, 40));
    dropped_at_any_moment(&turn, &model, 30);
    turn.end();
}

#[test]
fn memory_is_the_devices_until_the_last_tensor_is_gone() {
    let turn = turn(&Emulator::new());
    let model = uneven();
    let mut stream = stream(&model.path, bytes_of(&model) / 2, 0).start().unwrap();
    let layer = stream.next_layer().unwrap().unwrap();
    let tensor = layer.tensors().next().unwrap();
    drop((layer, stream));
    assert!(device_bytes_now() > 0);
    model.assert_right(&tensor);
    drop(tensor);
    assert_eq!(Emulator::report().devices[0].memory, Held::default());
    turn.end();
}

fn experts() -> TestModel {
    TestModel::shaped([("experts".to_owned(), vec![24, 64, 128])])
}

fn fetcher(model: &TestModel, slices: u64) -> Fetcher {
    let builder = Fetcher::builder(&model.path).options(options());
    builder.device_budget(slices * 8192).start().unwrap()
}

fn assert_expert(model: &TestModel, tensor: &Tensor, slice: usize) {
    let mut bytes = vec![0xAA; 8192];
    tensor.read_into(0, &mut bytes).unwrap();
    assert!(bytes == model.tensors["experts"][slice * 8192..(slice + 1) * 8192], "{slice}");
}

#[test]
fn experts_come_to_the_device_and_stay_right_while_they_are_used() {
    let turn = turn(&Emulator::new().memory_bytes(BESIDE));
    let model = Arc::new(experts());
    let of_thread = Arc::clone(&model);
    on_a_thread("experts", move || {
        let model = of_thread;
        let fetcher = fetcher(&model, 5);
        assert!(fetcher.context().is_some());
        let mut random = fastrand::Rng::with_seed(12);
        let mut held: Vec<(usize, Tensor)> = Vec::new();
        for _ in 0..300 {
            let slice = random.usize(..24);
            let from = slice as u64;
            let fetch = fetcher.fetch("experts", from..from + 1, 0).unwrap();
            if random.u8(..4) == 0 {
                drop(fetch);
                continue;
            }
            let tensor = fetch.wait().unwrap();
            assert_expert(&model, &tensor, slice);
            held.push((slice, tensor));
            held.iter().for_each(|(slice, tensor)| assert_expert(&model, tensor, *slice));
            if held.len() > 4 {
                held.swap_remove(random.usize(..5));
            }
            assert!(device_bytes_now() <= 5 * 8192 + 4096);
        }
        drop(fetcher);
        held.iter().for_each(|(slice, tensor)| assert_expert(&model, tensor, *slice));
    });
    turn.expect_ended("experts");
    turn.end();
}

#[test]
fn a_device_that_fails_ends_a_fetcher() {
    let turn = turn(&Emulator::new().fail_copy(4, 719));
    let model = Arc::new(experts());
    on_a_thread("fails", move || {
        let fetcher = fetcher(&model, 20);
        let wishes: Vec<_> =
            (0..12).map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap()).collect();
        let ended: Vec<_> = wishes.into_iter().map(forebay::Fetch::wait).collect();
        let failed = ended.iter().filter_map(|it| it.as_ref().err());
        assert!(failed.clone().count() > 0);
        assert!(failed.clone().all(|it| matches!(it, Error::AlreadyReported)));
        let error = fetcher.check().unwrap_err();
        let Error::Copy { context, refusal, .. } = &error else { panic!("{error:?}") };
        assert_eq!((context.tensor.as_deref(), refusal.code), (Some("experts"), 719));
        assert!(matches!(fetcher.check(), Err(Error::AlreadyReported)));
    });
    turn.expect_nothing_held("failed");
    turn.end();
}

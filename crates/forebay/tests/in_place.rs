//! Memory of our own on the cpu (`cpu=dio`, `cpu=none`): reads land where tensors live, only heads
//! and tails that others' reads bring are copied, no block is read twice, and every byte is right
//! wherever its neighbours go.

mod support;

use forebay::{Backend, EngineChoice, Errno, GpuLayers, Loaded, Loader, PlaceRule, Tensor};
use forebay_io::{Fault, Op};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use support::{TestModel, alone, fixtures};

const MIB: usize = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
const ENGINES: [EngineChoice; 2] = [EngineChoice::Auto, EngineChoice::Threads];

/// A completion: where in the file, how many bytes, to which address.
#[derive(Clone, Copy, Debug)]
struct Landing {
    file: usize,
    offset: u64,
    bytes: u64,
    address: usize,
}

impl Landing {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes
    }
}

/// Notes where every read lands, and changes nothing.
#[derive(Clone, Default)]
struct Landings(Arc<Mutex<Vec<Landing>>>);

impl Fault for Landings {
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        buffer: &mut [u8],
    ) -> Result<u32, Errno> {
        if let Ok(bytes) = result {
            let address = buffer.as_ptr() as usize;
            let landing =
                Landing { file: op.file, offset: op.offset, bytes: bytes.into(), address };
            self.0.lock().unwrap().push(landing);
        }
        result
    }
}

/// A load, and where its reads landed, in file order.
fn watched(loader: Loader) -> (Loaded, Vec<Landing>) {
    let landings = Landings::default();
    let loaded = loader.fault(Box::new(landings.clone())).load().unwrap();
    let mut landings = landings.0.lock().unwrap().clone();
    landings.sort_by_key(|landing| (landing.file, landing.offset));
    (loaded, landings)
}

fn address(tensor: &Tensor) -> usize {
    tensor.as_slice().unwrap().as_ptr() as usize
}

/// How many bytes of a tensor's range landed where they live.
fn landed_in_place(tensor: &Tensor, range: &Range<u64>, landings: &[Landing]) -> u64 {
    let in_place = |landing: &&Landing| {
        let start = landing.offset.max(range.start);
        let at = landing.address + usize::try_from(start - landing.offset).unwrap();
        landing.range().end > range.start
            && landing.offset < range.end
            && at == address(tensor) + usize::try_from(start - range.start).unwrap()
    };
    let overlap =
        |landing: &Landing| landing.range().end.min(range.end) - landing.offset.max(range.start);
    landings.iter().filter(in_place).map(overlap).sum()
}

/// No block was read twice; bytes of it may have come in several goes.
fn assert_each_block_read_once(landings: &[Landing], what: &str) {
    for pair in landings.windows(2) {
        let again = pair[0].file == pair[1].file && pair[0].range().end > pair[1].offset;
        assert!(!again, "{what}: {:?} and {:?}", pair[0].range(), pair[1].range());
    }
}

fn assert_all_right(model: &TestModel, loaded: &Loaded) {
    assert_eq!(loaded.tensors().len(), model.tensors.len());
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
}

fn whole_on_cpu(model: &TestModel, mode: &str, engine: EngineChoice) -> Loader {
    model.loader(mode).gpu_layers(GpuLayers::Count(0)).engine(engine)
}

#[test]
fn every_byte_is_read_to_where_it_lives_and_none_is_copied() {
    let _alone = alone();
    let model = TestModel::new(6 * MIB);
    for mode in ["cpu=dio", "cpu=none"] {
        for engine in ENGINES {
            let what = format!("{mode} {engine:?}");
            let (loaded, landings) = watched(whole_on_cpu(&model, mode, engine));
            let bytes = model.bytes_of(|_| true);
            let report = loaded.report();
            assert_eq!(report.memory.in_place_bytes, bytes, "{what}");
            assert_eq!((report.upload.bytes, report.upload.copies), (0, 0), "{what}");
            for tensor in loaded.tensors() {
                let range = model.range(tensor.name());
                let landed = landed_in_place(&tensor, &range, &landings);
                assert_eq!(landed, tensor.bytes(), "{what}: {tensor:?}");
            }
            assert_each_block_read_once(&landings, &what);
            // What is read in is not held a second time: slots are tokens here.
            assert!(report.memory.staging_bytes <= 1 << 20, "{}", report.memory.staging_bytes);
            assert_all_right(&model, &loaded);
        }
    }
}

/// Every second tensor to `host`: the blocks at the edges come with the other's reads.
#[test]
fn between_tensors_of_the_device_only_heads_and_tails_are_copied() {
    let _alone = alone();
    let model = TestModel::new(6 * MIB);
    let rule: PlaceRule = "part0=host".parse().unwrap();
    for engine in ENGINES {
        let what = format!("{engine:?}");
        let loader = whole_on_cpu(&model, "dio", engine).place(rule.clone());
        let (loaded, landings) = watched(loader);
        let backend = |name: &str| loaded.tensor(name).unwrap().backend();
        let on_host = model.bytes_of(|name| backend(name) == Backend::Host);
        let on_cpu = model.bytes_of(|name| backend(name) == Backend::Cpu);
        assert!(on_host > 2 << 20 && on_cpu > 2 << 20);
        let (memory, upload) = (&loaded.report().memory, &loaded.report().upload);
        assert_eq!(memory.in_place_bytes + upload.bytes, on_host + on_cpu, "{what}");
        // Seven tensors of the cpu have bytes, each with a head and a tail.
        assert!(upload.bytes <= on_host + 14 * BLOCK_BYTES, "{what}: {} copied", upload.bytes);
        assert!(upload.bytes > on_host, "{what}: no tensor begins at a block here");
        assert_each_block_read_once(&landings, &what);
        for tensor in loaded.tensors().filter(|tensor| tensor.backend() == Backend::Cpu) {
            let range = model.range(tensor.name());
            let landed = landed_in_place(&tensor, &range, &landings);
            assert!(landed + 2 * BLOCK_BYTES >= tensor.bytes(), "{what}: {tensor:?}: {landed}");
        }
        assert_all_right(&model, &loaded);
    }
}

/// A norm of 2 KiB for the device among large matrices that stay: its block lies in the middle of
/// what is read into place.
#[test]
fn a_block_within_a_run_that_another_tensor_shares_is_read_once() {
    let _alone = alone();
    let tensor = |number: usize| {
        let (name, length) = if number % 3 == 1 { ("norm", 2048) } else { ("w", 300_001) };
        (format!("model.layers.{}.{name}{number}", number / 3), length)
    };
    let model = TestModel::of((0..12).map(tensor));
    for engine in ENGINES {
        let loader = whole_on_cpu(&model, "dio", engine).place("norm=host".parse().unwrap());
        let (loaded, landings) = watched(loader);
        assert_all_right(&model, &loaded);
        assert_each_block_read_once(&landings, &format!("{engine:?}"));
    }
}

/// Lengths and placements as they come: whatever lies around a tensor, its bytes are its own.
#[test]
fn random_lengths_and_placements_land_right() {
    let _alone = alone();
    let mut rng = fastrand::Rng::with_seed(31);
    for round in 0..60 {
        let lengths: Vec<usize> = (0..rng.usize(1..24))
            .map(|_| match rng.u8(..4) {
                0 => rng.usize(..4),
                1 => rng.usize(..9000),
                2 => 4096 * rng.usize(..4),
                _ => rng.usize(..200_000),
            })
            .collect();
        let name = |number| format!("model.layers.{number}.w");
        let named = lengths.iter().enumerate().map(|(number, &length)| (name(number), length));
        let model = TestModel::of(named);
        let mode = ["dio", "none", "cpu=dio,device=none", "cpu=none,device=dio"][round % 4];
        let mut loader = whole_on_cpu(&model, mode, ENGINES[round / 4 % 2]);
        loader = loader.chunk_bytes(4096 << rng.u32(..9)).queue_depth(rng.usize(1..9));
        for number in (0..lengths.len()).filter(|_| rng.bool()) {
            loader = loader.place(format!(r"layers\.{number}\.=host").parse().unwrap());
        }
        let (loaded, _) = watched(loader);
        assert_all_right(&model, &loaded);
        let report = loaded.report();
        let placed = report.memory.in_place_bytes + report.upload.bytes;
        assert_eq!(placed, model.bytes_of(|_| true), "round {round}");
    }
}

/// As `Tensor::as_slice` promises.
fn assert_aligned(tensor: &Tensor, file_alignment: u64, what: &str) {
    let Some(bytes) = tensor.as_slice().filter(|bytes| !bytes.is_empty()) else { return };
    let (elements, block_bytes) = (tensor.dtype().block_elements(), tensor.dtype().block_bytes());
    let promised = match tensor.backend() {
        Backend::Cpu => file_alignment.max(if elements == 1 { block_bytes } else { 8 }),
        _ => 256,
    };
    let address = bytes.as_ptr() as usize as u64;
    assert!(address.is_multiple_of(promised), "{what}: {tensor:?} at {address:#x}, {promised}");
}

/// What all tensors of a file begin at a multiple of, up to a page.
fn file_alignment(loaded: &Loaded, file: usize) -> u64 {
    let tensors = loaded.catalog().tensors().iter();
    let offsets = tensors.filter(|tensor| tensor.file == file && tensor.bytes > 0);
    let shared = offsets.fold(BLOCK_BYTES, |all, tensor| all | tensor.offset);
    1 << shared.trailing_zeros()
}

#[test]
fn every_fixture_lands_right_and_aligned_wherever_its_tensors_go() {
    let _alone = alone();
    for (path, tensors) in fixtures() {
        let names: Vec<_> = tensors.iter().map(|it| it["name"].as_str().unwrap()).collect();
        for mode in ["cpu=dio", "cpu=none", "dio", "none", "cpu=dio,device=mmap"] {
            for layers in [GpuLayers::Count(0), GpuLayers::Count(1), GpuLayers::All] {
                for every in [None, Some(2), Some(3)] {
                    for engine in ENGINES {
                        let mut loader = Loader::new(&path).load_mode(mode.parse().unwrap());
                        loader = loader.gpu_layers(layers).engine(engine);
                        for name in names.iter().step_by(every.unwrap_or(usize::MAX)).skip(1) {
                            let rule = format!("^{}$=host", regex::escape(name));
                            loader = loader.place(rule.parse().unwrap());
                        }
                        let file = path.display();
                        let what = format!("{file} {mode} {layers:?} {every:?} {engine:?}");
                        assert_fixture(&tensors, &loader.load().unwrap(), &what);
                    }
                }
            }
        }
    }
}

fn assert_fixture(tensors: &[serde_json::Value], loaded: &Loaded, what: &str) {
    let digests = loaded.digests().unwrap();
    assert_eq!(digests.len(), tensors.len(), "{what}");
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        assert_eq!(digests[name], tensor["sha256"], "{what}: {name}");
    }
    for (tensor, entry) in loaded.tensors().zip(loaded.catalog().tensors()) {
        assert_aligned(&tensor, file_alignment(loaded, entry.file), what);
    }
}

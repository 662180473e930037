//! Memory of the machine that the embedder has allocated.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer is into a buffer that outlives the loads of its test"
)]

mod support;

use forebay::{Backend, Cancel, EngineChoice, Error, HostPointer, Loader, Model, Repack};
use std::path::{Path, PathBuf};
use support::{TestModel, small_slots};

const GUARD: u8 = 0x5A;
/// Between two tensors in a buffer, so that the second lies at an odd address.
const GAP: usize = 33;

/// An embedder's memory: room for every tensor of a model, full of [`GUARD`] at first.
struct Buffer {
    bytes: Vec<u8>,
    /// Name, where it begins, length.
    tensors: Vec<(String, usize, usize)>,
}

impl Buffer {
    fn new(path: &Path) -> Self {
        let model = Model::open(path).unwrap();
        let mut end = GAP;
        let tensors = model.catalog().tensors().iter().map(|tensor| {
            let (start, length) = (end, usize::try_from(tensor.bytes).unwrap());
            end = start + length + GAP;
            (tensor.name.clone(), start, length)
        });
        let tensors = tensors.collect();
        Self { bytes: vec![GUARD; end], tensors }
    }

    fn lend(&mut self, loader: Loader, which: impl Fn(usize) -> bool) -> Loader {
        let start = self.bytes.as_mut_ptr();
        let chosen = self.tensors.iter().enumerate().filter(|(number, _)| which(*number));
        chosen.fold(loader, |loader, (_, (name, offset, length))| {
            let memory = unsafe { HostPointer::new(start.wrapping_add(*offset), *length as u64) };
            loader.into_host_memory(name, memory)
        })
    }

    fn tensor(&self, number: usize) -> &[u8] {
        let (_, start, length) = self.tensors[number];
        &self.bytes[start..start + length]
    }

    fn assert_guards(&self) {
        let mut at = 0;
        let ends = self.tensors.iter().map(|(_, start, length)| (*start, start + length));
        for (start, end) in ends.chain([(self.bytes.len(), 0)]) {
            assert!(self.bytes[at..start].iter().all(|byte| *byte == GUARD), "{at}..{start}");
            at = end;
        }
    }
}

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let files = |kind: &str| {
        let entries = std::fs::read_dir(folder.join(kind)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let all = ["gguf", "safetensors", "ptd"].into_iter().flat_map(files);
    // Of what is split, the first file or the index stands for all of it.
    let opens = |path: &PathBuf| path.is_file() && Model::open(path).is_ok();
    all.filter(opens).collect()
}

#[test]
fn every_kind_of_model_lands_where_the_embedder_says_and_nowhere_else() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 8, "{fixtures:?}");
    for path in &fixtures {
        let expected = Loader::new(path).device("host".parse().unwrap()).load().unwrap();
        for mode in ["auto", "none", "dio", "mmap"] {
            for engine in [EngineChoice::Auto, EngineChoice::Threads] {
                let mut buffer = Buffer::new(path);
                let options = small_slots(mode, engine);
                let loader = buffer.lend(Loader::new(path).options(options), |_| true);
                let loaded = loader.load().unwrap();
                for tensor in loaded.tensors() {
                    assert_eq!(tensor.backend(), Backend::Host);
                    let own = expected.tensor(tensor.name()).unwrap();
                    assert_eq!(
                        tensor.as_slice(),
                        own.as_slice(),
                        "{path:?} {mode} {}",
                        tensor.name()
                    );
                }
                drop(loaded);
                buffer.assert_guards();
                for (number, (name, ..)) in buffer.tensors.iter().enumerate() {
                    let own = expected.tensor(name).unwrap();
                    assert_eq!(
                        Some(buffer.tensor(number)),
                        own.as_slice(),
                        "{path:?} {mode} {name}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_not_lent_for_goes_where_it_would() {
    let model = TestModel::new(3 << 20);
    let mut buffer = Buffer::new(&model.path);
    let mut options = small_slots("auto", EngineChoice::Auto);
    options.gpu_layers = forebay::GpuLayers::Count(0);
    let even = |number: usize| number.is_multiple_of(2);
    let loaded = buffer.lend(Loader::new(&model.path).options(options), even).load().unwrap();
    for (number, tensor) in loaded.tensors().enumerate() {
        let backend = if even(number) { Backend::Host } else { Backend::Cpu };
        assert_eq!(tensor.backend(), backend);
        model.assert_right(&tensor);
    }
    let backends = &loaded.report().backends;
    let names: Vec<_> = backends.iter().map(|it| it.backend.as_str()).collect();
    assert_eq!(names, ["host", "cpu"]);
    drop(loaded);
    buffer.assert_guards();
    for number in 0..buffer.tensors.len() {
        if even(number) {
            assert_eq!(buffer.tensor(number), model.tensors[&buffer.tensors[number].0]);
        } else {
            assert!(buffer.tensor(number).iter().all(|byte| *byte == GUARD));
        }
    }
}

#[test]
fn lent_memory_is_never_arranged_anew() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf");
    let paths = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut quantised = 0;
    for path in paths.filter(|path| Model::open(path).is_ok()) {
        let load = |repack| {
            let mut options = small_slots("dio", EngineChoice::Auto);
            options.repack = repack;
            let mut buffer = Buffer::new(&path);
            let loaded = buffer.lend(Loader::new(&path).options(options), |_| true).load().unwrap();
            quantised += loaded.tensors().filter(|it| it.dtype().name() == "Q4_0").count();
            drop(loaded);
            buffer.bytes
        };
        let [plain, repacked] = [Repack::Off, Repack::On].map(load);
        assert_eq!(plain, repacked, "{path:?}");
    }
    assert!(quantised > 0, "nothing here is ever repacked");
}

#[test]
fn more_memory_than_a_tensor_needs_is_left_alone() {
    let model = TestModel::of([("tensor".to_owned(), 10_001)]);
    let mut memory = vec![GUARD; 20_000];
    let pointer = unsafe { HostPointer::new(memory.as_mut_ptr(), 20_000) };
    let loaded = Loader::new(&model.path).into_host_memory("tensor", pointer).load().unwrap();
    assert_eq!(loaded.tensor("tensor").unwrap().as_slice().unwrap(), model.tensors["tensor"]);
    drop(loaded);
    assert_eq!(memory[..10_001], model.tensors["tensor"]);
    assert!(memory[10_001..].iter().all(|byte| *byte == GUARD));
}

#[test]
fn memory_that_can_not_serve_is_refused_by_name() {
    let model = TestModel::of([("one".to_owned(), 5000), ("two".to_owned(), 5000)]);
    let mut memory = vec![GUARD; 12_000];
    let start = memory.as_mut_ptr();
    let pointer = |offset, bytes| unsafe { HostPointer::new(start.wrapping_add(offset), bytes) };
    let cases: [(&[(&str, HostPointer)], &str); 4] = [
        (&[("three", pointer(0, 5000))], "no tensor 'three'"),
        (&[("one", pointer(0, 4999))], "has 5000 bytes, and 4999 are lent"),
        (&[("one", pointer(0, 5000)), ("one", pointer(6000, 5000))], "'one' is lent memory twice"),
        (&[("one", pointer(0, 5000)), ("two", pointer(4999, 5000))], "of host is lent for two"),
    ];
    for (lent, cause) in cases {
        let loader = Loader::new(&model.path);
        let loader = (lent.iter().cloned())
            .fold(loader, |loader, (name, memory)| loader.into_host_memory(name, memory));
        let Err(error) = loader.load() else { panic!("{cause}: it was taken") };
        assert!(matches!(error, Error::Option { option: "lent memory", .. }), "{error}");
        assert!(error.to_string().contains(cause), "{error}");
    }
    assert!(memory.iter().all(|byte| *byte == GUARD));
    let loader = Loader::new(&model.path).into_host_memory("one", pointer(0, 5000));
    let plan = loader.plan().unwrap();
    assert!(matches!(plan.start(), Err(Error::Option { option: "lent memory", .. })));
}

#[test]
fn nothing_is_written_after_a_load_has_been_dropped() {
    let model = TestModel::new(8 << 20);
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..50 {
        let mut buffer = Buffer::new(&model.path);
        let cancel = Cancel::default();
        let options = small_slots("dio", EngineChoice::Auto);
        let loader = Loader::new(&model.path).options(options).cancel_with(&cancel);
        let mut load = buffer.lend(loader, |_| true).start().unwrap();
        for _ in 0..random.usize(0..12) {
            let _ = load.next();
        }
        if round % 2 == 0 {
            cancel.cancel();
        }
        drop(load);
        let before = buffer.bytes.clone();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(buffer.bytes, before);
        buffer.assert_guards();
    }
}

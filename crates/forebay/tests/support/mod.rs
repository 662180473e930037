//! A model made on the spot, with its bytes at hand to compare with.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]

use forebay::{EngineChoice, Loader, Options, Tensor};
use forebay_mem::page_bytes;
use forebay_tests::{pattern, residence};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

/// A safetensors file of byte tensors whose lengths are odd, so that no offset is aligned.
pub struct TestModel {
    folder: tempfile::TempDir,
    pub path: PathBuf,
    pub tensors: BTreeMap<String, Vec<u8>>,
    ranges: BTreeMap<String, Range<u64>>,
    pub file_bytes: u64,
}

/// A temporary folder on the disk that the build lies on; `FOREBAY_SCRATCH` lets another user run
/// a copied test.
pub fn scratch() -> tempfile::TempDir {
    let target = env!("CARGO_TARGET_TMPDIR").into();
    tempfile::tempdir_in(std::env::var_os("FOREBAY_SCRATCH").unwrap_or(target)).unwrap()
}

/// To the stand-in device, through a few small slots, so that a layer takes several.
pub fn small_slots(mode: &str, engine: EngineChoice) -> Options {
    let mut options = Options::default();
    options.device = "host".parse().unwrap();
    options.load_mode = mode.parse().unwrap();
    // Mappings are copied out of by threads alone.
    options.engine = if mode == "mmap" { EngineChoice::Auto } else { engine };
    options.chunk_bytes = Some(32 << 10);
    options.staging_bytes = Some(256 << 10);
    options
}

impl TestModel {
    /// Eight layers of two tensors each, one of them empty, about `bytes` in all.
    pub fn new(bytes: usize) -> Self {
        let part = |number: usize| {
            let name = format!("model.layers.{}.part{}.weight", number / 2, number % 2);
            let length = if number == 5 { 0 } else { bytes / 16 + 977 * number + 1 };
            (name, length)
        };
        Self::of((0..16).map(part))
    }

    /// A model whose file has its tensors in the reverse of their order of use: the output, the
    /// layers from the last to the first (of two tensors each, whose order stays), the embeddings.
    pub fn layered(layers: u32, layer_bytes: usize) -> Self {
        let layer = |number: u32| {
            let name = |part| format!("model.layers.{number}.part{part}.weight");
            [(name(0), layer_bytes / 3), (name(1), layer_bytes - layer_bytes / 3 + 1)]
        };
        let head = ("lm_head.weight".to_owned(), layer_bytes / 4 + 1);
        let embeddings = ("model.embed_tokens.weight".to_owned(), layer_bytes / 4 + 3);
        let layers = (0..layers).rev().flat_map(layer);
        Self::of([head].into_iter().chain(layers).chain([embeddings]))
    }

    /// Tensors of these names and lengths, in this order in the file.
    pub fn of(tensors: impl IntoIterator<Item = (String, usize)>) -> Self {
        Self::shaped(tensors.into_iter().map(|(name, length)| (name, vec![length])))
    }

    /// Tensors of these names and shapes, in this order in the file.
    pub fn shaped(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let folder = scratch();
        let path = folder.path().join("model.safetensors");
        let (mut contents, mut ranges) = (BTreeMap::new(), BTreeMap::new());
        let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
        for (number, (name, shape)) in tensors.into_iter().enumerate() {
            let length = shape.iter().product();
            let bytes = pattern(number as u64, length);
            let offsets = [data.len(), data.len() + length];
            let entry = serde_json::json!({
                "dtype": "U8", "shape": shape, "data_offsets": offsets,
            });
            entries.insert(name.clone(), entry);
            ranges.insert(name.clone(), offsets.map(|offset| offset as u64));
            data.extend_from_slice(&bytes);
            contents.insert(name, bytes);
        }
        let header = serde_json::Value::Object(entries).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.into_bytes());
        let start = file.len() as u64;
        file.extend(data);
        std::fs::write(&path, &file).unwrap();
        let ranges = ranges.into_iter().map(|(name, [from, to])| (name, start + from..start + to));
        let (ranges, file_bytes) = (ranges.collect(), file.len() as u64);
        Self { folder, path, tensors: contents, ranges, file_bytes }
    }

    /// Where in the file a tensor's bytes are.
    pub fn range(&self, name: &str) -> Range<u64> {
        self.ranges[name].clone()
    }

    /// The bytes of all tensors that `which` holds for.
    pub fn bytes_of(&self, which: impl Fn(&str) -> bool) -> u64 {
        let ranges = self.ranges.iter().filter(|(name, _)| which(name));
        ranges.map(|(_, range)| range.end - range.start).sum()
    }

    /// How much of the file lies in pages that hold a byte of such a tensor.
    pub fn paged_bytes_of(&self, which: impl Fn(&str) -> bool) -> u64 {
        let page = page_bytes() as u64;
        let ranges = self.ranges.iter().filter(|(name, range)| which(name) && !range.is_empty());
        let pages: BTreeSet<u64> =
            ranges.flat_map(|(_, range)| range.start / page..range.end.div_ceil(page)).collect();
        pages.into_iter().map(|number| page.min(self.file_bytes - number * page)).sum()
    }

    /// How much of the tensors that `which` holds for is in the page cache.
    pub fn cached_bytes_of(&self, which: impl Fn(&str) -> bool) -> u64 {
        let ranges = self.ranges.iter().filter(|(name, range)| which(name) && !range.is_empty());
        ranges.map(|(_, range)| residence::cached_bytes(&self.path, range.clone())).sum()
    }

    /// Leaves nothing of the file in the page cache; says so and returns `false` where that can't
    /// be done, and nothing can be shown.
    pub fn make_cold(&self) -> bool {
        let is_cold = residence::forget(&self.path);
        if !is_cold {
            eprintln!("SKIPPED: the filesystem of the target folder keeps its files in memory");
        }
        is_cold
    }

    pub fn loader(&self, mode: &str) -> Loader {
        Loader::new(&self.path).load_mode(mode.parse().unwrap())
    }

    /// Panics unless the tensor's bytes are those written to the file.
    pub fn assert_right(&self, tensor: &Tensor) {
        let mut bytes = vec![0xAA; usize::try_from(tensor.bytes()).unwrap()];
        tensor.read_into(0, &mut bytes).unwrap();
        assert!(bytes == self.tensors[tensor.name()], "{} is wrong", tensor.name());
        if let Some(slice) = tensor.as_slice() {
            assert!(slice == bytes);
        }
    }
}

/// Waits until no thread of a load is listed: the kernel lets a joiner go a moment before it takes
/// the thread off its list. `false` if one stays.
pub fn is_without_load_threads() -> bool {
    (0..20_000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        load_threads() == 0
    })
}

/// Threads of this process that belong to a load.
pub fn load_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(Path::new(&task.path()).join("comm")).ok());
    names.filter(|name| name.starts_with("forebay-")).count()
}

/// A line of this process's status in KiB: `VmPin:` is what is pinned for io_uring or a device,
/// `VmLck:` what is locked.
pub fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Held by each test of a file that looks at the whole process: faults of other threads it may
/// take for its own, and their locks and their page cache.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does `work` on a thread of its own, which ends with it: for what binds a thread for good, and
/// for what may wait for ever.
pub fn on_a_thread<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::channel();
    let thread = std::thread::Builder::new().name(what.to_owned());
    let thread = thread.spawn(move || drop(sender.send(work()))).unwrap();
    match done.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => {
            thread.join().unwrap();
            result
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(thread.join().unwrap_err())
        }
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: it waits for ever"),
    }
}

/// The models that the official writers made, with what the official readers say of each tensor.
pub fn fixtures() -> Vec<(PathBuf, Vec<serde_json::Value>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let models = manifest.as_object().unwrap().iter();
    let model = |(path, model): (&String, &serde_json::Value)| {
        (folder.join(path), model["tensors"].as_array().unwrap().clone())
    };
    models.map(model).collect()
}

/// The engines that this build has.
pub fn engines() -> Vec<EngineChoice> {
    let mut engines = vec![EngineChoice::Uring, EngineChoice::Threads];
    engines.extend(cfg!(feature = "tokio-uring").then_some(EngineChoice::TokioUring));
    engines
}

/// Whether there is a runtime of tokio-uring to be had; says so if not.
pub fn has_tokio_uring() -> bool {
    let refused = forebay_io::uring_support().err();
    refused.iter().for_each(|errno| eprintln!("SKIPPED: no io_uring here ({errno})"));
    refused.is_none()
}

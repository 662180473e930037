//! Loads on kernels and NVMe drives of a virtual machine: what differs by kernel, and what comes of
//! drives that are pulled out, reset, or can't read a sector.
//!
//! Only in the machines of `tests/vm/kernels`; elsewhere these tests say so and pass. There, the
//! variable `FOREBAY_VM_BAD` names a tensor of the GGUF, `FOREBAY_VM_POLL_QUEUES` says whether drives
//! have queues to poll, `/dev/ttyS2` is QEMU's monitor, and there are these drives:
//!
//! | mounted at | sectors of | what it is |
//! |---|---|---|
//! | `/nvme0` | 512 bytes | a GGUF, and the first shard of another model |
//! | `/nvme1` | 4096 bytes | its second shard, and in `sharded/` its index with links to both |
//! | `/nvme2` to `/nvme7` | 512 bytes | the same as the first, and slow |
//! | `/nvme8` | 512 bytes | the same, but the sector in the middle of the tensor can't be read |
//! | `/nvme9`, `/nvme10` | 512 bytes | the same, but it can't be read the first time |

use forebay::{Access, EngineChoice, Errno, Error, FailureKind, GpuLayers, Loader, Tensor};
use forebay_io::cache::cached_bytes;
use forebay_io::{AlignmentSource, ModelFile, uring_support};
use forebay_mem::{FileMapping, Writes};
use forebay_tests::{Answer, Rule, Script, residence};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const RINGS: [EngineChoice; 3] =
    [EngineChoice::Uring, EngineChoice::UringPolled, EngineChoice::TokioUring];
const ENGINES: [EngineChoice; 4] = [RINGS[0], RINGS[1], RINGS[2], EngineChoice::Threads];

/// Of loads during which something happens to the drive: little in flight at any time.
const CHUNK_BYTES: u64 = 64 << 10;
const QUEUE_DEPTH: usize = 4;
/// The longest that a load may take to notice, in a machine that is emulated on a busy one.
const PATIENCE: Duration = Duration::from_secs(60);

/// The name of the tensor that can't be read, if this is the machine for these tests.
fn bad_tensor() -> Option<String> {
    let name = std::env::var("FOREBAY_VM_BAD").ok();
    if name.is_none() {
        eprintln!("SKIPPED: this takes the virtual machines of tests/vm/kernels");
    }
    name
}

/// A model on a drive, and what is truly in it.
struct Model {
    path: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Vec<u8>>,
}

impl Model {
    /// Reads its files plainly, and compares them with the sums that were made outside.
    fn new(path: &str) -> Self {
        let opened = forebay::Model::open(path).unwrap();
        let catalog = opened.catalog();
        let files: Vec<PathBuf> = (0..catalog.files().len())
            .map(|file| opened.file_path(file).canonicalize().unwrap())
            .collect();
        let contents: Vec<Vec<u8>> = files.iter().map(|file| checked(file)).collect();
        let tensors = catalog.tensors().iter().map(|tensor| {
            let range = as_usize(tensor.offset)..as_usize(tensor.end());
            (tensor.name.clone(), contents[tensor.file][range].to_owned())
        });
        Self { tensors: tensors.collect(), path: path.into(), files }
    }

    /// The same model on another drive.
    fn on(&self, drive: u32) -> Self {
        let path = PathBuf::from(format!("/nvme{drive}/model.gguf"));
        Self { files: vec![path.clone()], path, tensors: self.tensors.clone() }
    }

    fn make_cold(&self) {
        for file in &self.files {
            assert!(residence::forget(file), "{} stays in the page cache", file.display());
        }
    }

    fn loader(&self, mode: &str, engine: EngineChoice) -> Loader {
        let loader = Loader::new(&self.path).device("host".parse().unwrap());
        loader.load_mode(mode.parse().unwrap()).engine(engine)
    }

    /// With little in flight.
    fn slow_loader(&self, mode: &str, engine: EngineChoice) -> Loader {
        self.loader(mode, engine).chunk_bytes(CHUNK_BYTES).queue_depth(QUEUE_DEPTH)
    }

    fn assert_right(&self, tensor: &Tensor, what: &str) {
        let mut bytes = vec![0xAA; as_usize(tensor.bytes())];
        tensor.read_into(0, &mut bytes).unwrap();
        assert!(bytes == self.tensors[tensor.name()], "{what}: '{}' is wrong", tensor.name());
    }

    fn assert_whole(&self, loader: Loader, what: &str) -> forebay::LoadReport {
        let loaded = loader.load().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(loaded.tensors().len(), self.tensors.len(), "{what}");
        loaded.tensors().for_each(|tensor| self.assert_right(&tensor, what));
        loaded.report().clone()
    }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn checked(file: &Path) -> Vec<u8> {
    let bytes = fs::read(file).unwrap();
    let sums = fs::read_to_string(file.with_file_name("SHA256SUMS")).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let sum: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(sums.lines().any(|line| line == format!("{sum}  {name}")), "{name} is damaged");
    bytes
}

/// Major and minor number of the running kernel.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

const POPULATE_SINCE: (u32, u32) = (6, 9);
const CACHESTAT_SINCE: (u32, u32) = (6, 5);
const DONTCACHE_SINCE: (u32, u32) = (6, 14);

/// The word for a file of the request queue of the drive that `path` lies on.
fn queue(path: &Path, name: &str) -> String {
    let device = fs::metadata(path).unwrap().dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let file = format!("/sys/dev/block/{major}:{minor}/queue/{name}");
    fs::read_to_string(file).unwrap().trim().to_owned()
}

/// The steps down of a file: from, to, errno.
fn steps_of(file: &forebay::FileReport) -> Vec<[String; 3]> {
    let step = |step: &forebay::FallbackReport| {
        [step.from.to_owned(), step.to.to_owned(), step.errno.clone()]
    };
    file.fallbacks.iter().map(step).collect()
}

/// Those of a model in one file.
fn steps(report: &forebay::LoadReport) -> Vec<[String; 3]> {
    assert_eq!(report.files.len(), 1);
    steps_of(&report.files[0])
}

/// What a load comes to whose direct reads are all refused: the kernel says what it has instead.
fn without_direct(model: &Model, engine: EngineChoice) -> forebay::LoadReport {
    let refusal = Rule::new(Answer::Errno(Errno::EINVAL)).only(|op| op.access == Access::Direct);
    model.make_cold();
    let loader = model.loader("dio", engine).fault(Box::new(Script::new(refusal)));
    model.assert_whole(loader, &format!("{engine:?} without direct reads"))
}

#[test]
fn the_kernel_has_what_its_release_says_and_the_ladder_goes_by_it() {
    let Some(_) = bad_tensor() else { return };
    let model = Model::new("/nvme0/model.gguf");
    let opened = ModelFile::open(&model.path).unwrap();
    let file = File::open(&model.path).unwrap();
    let mapping = FileMapping::new(&file, opened.bytes(), Writes::Refused).unwrap();
    let populated = mapping.populate(0..4096);
    // What is mapped stays in the page cache.
    drop(mapping);
    let dontcache = steps(&without_direct(&model, EngineChoice::Threads));
    let refused = dontcache.iter().find(|[from, ..]| from == "dontcache");
    let source = opened.direct().unwrap().1.source;
    let said = |errno: Errno| format!("{errno:?}");
    let facts: [(&str, (u32, u32), Option<String>); 5] = [
        (
            "populating mapped files safely",
            POPULATE_SINCE,
            populated.err().map(|it| said(it.errno)),
        ),
        (
            "deferred task work of io_uring",
            (6, 1),
            (!uring_support().unwrap().deferred_taskrun).then(|| "refused".to_owned()),
        ),
        (
            "alignment of direct reads by statx",
            (6, 1),
            (source != AlignmentSource::Statx).then(|| format!("{source:?}")),
        ),
        ("cachestat", CACHESTAT_SINCE, cached_bytes(&file, 0..4096).err().map(said)),
        ("RWF_DONTCACHE", DONTCACHE_SINCE, refused.map(|[.., errno]| errno.clone())),
    ];
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!("Linux {}", release.trim());
    for (what, since @ (major, minor), refusal) in &facts {
        let found = refusal.as_ref().map_or("yes".to_owned(), |errno| format!("no ({errno})"));
        println!("  {what:36} since {major}.{minor:<3} {found}");
        assert_eq!(refusal.is_none(), kernel() >= *since, "{what}");
    }
    for engine in [EngineChoice::Uring, EngineChoice::TokioUring, EngineChoice::Threads] {
        let has_dontcache = kernel() >= DONTCACHE_SINCE && engine != EngineChoice::TokioUring;
        let report = without_direct(&model, engine);
        let expected: &[[&str; 3]] = match engine {
            EngineChoice::TokioUring => &[["direct", "buffered", "EINVAL"]],
            _ if has_dontcache => &[["direct", "dontcache", "EINVAL"]],
            _ => &[["direct", "dontcache", "EINVAL"], ["dontcache", "buffered", "EOPNOTSUPP"]],
        };
        assert_eq!(steps(&report), expected, "{engine:?}");
        let last = if has_dontcache { "dontcache" } else { "buffered" };
        assert_eq!(report.files[0].access, last, "{engine:?}");
    }
}

#[test]
fn every_engine_and_mode_is_exact_on_one_drive_and_on_two() {
    let Some(_) = bad_tensor() else { return };
    let on_rings = ["none", "dio", "auto", "device=dio,cpu=mmap", "device=none,cpu=mlock"];
    let on_threads = ["none", "dio", "auto", "mmap", "mlock"];
    let engines = RINGS.map(|ring| (ring, on_rings)).into_iter();
    let engines: Vec<_> = engines.chain([(EngineChoice::Threads, on_threads)]).collect();
    let second = "/nvme1/model-00002-of-00002.safetensors";
    let mut loads = 0;
    for (path, alignments) in [
        ("/nvme0/model.gguf", vec![512]),
        (second, vec![4096]),
        ("/nvme1/sharded/model.safetensors.index.json", vec![512, 4096]),
    ] {
        let model = Model::new(path);
        for &(engine, modes) in &engines {
            for mode in modes {
                let what = format!("{path} {mode} {engine:?}");
                model.make_cold();
                let loader = model.loader(mode, engine).gpu_layers(GpuLayers::Count(1));
                let report = model.assert_whole(loader, &what);
                assert_steps(&report, mode, engine, &what);
                let told = report.files.iter().map(|file| file.dio_align);
                let expected = alignments.iter().map(|&bytes| Some(bytes));
                assert!(told.eq(expected), "{what}: {:?}", report.files);
                for file in &report.files {
                    // The model is cold, so the answer can only be nothing, or none.
                    let told = (kernel() >= CACHESTAT_SINCE).then_some(0);
                    assert_eq!(file.cached_bytes_before, told, "{what}");
                    let accesses: Vec<_> = file.bytes_by_access.keys().copied().collect();
                    let expected = accesses_of(mode);
                    assert!(!accesses.is_empty(), "{what}");
                    assert!(
                        accesses.iter().all(|it| expected.contains(it)),
                        "{what}: {accesses:?}"
                    );
                }
                let is_ring = RINGS.contains(&engine);
                assert_eq!(report.read.registered_buffers, is_ring, "{what}");
                loads += 1;
            }
        }
    }
    println!("{loads} loads, every byte compared");
}

/// That a load was done as it was asked for, but for what this kernel has not.
fn assert_steps(report: &forebay::LoadReport, mode: &str, engine: EngineChoice, what: &str) {
    let is_polled = |step: &[String; 3]| *step == ["uring-polled", "uring", "EOPNOTSUPP"];
    let is_touched = |step: &[String; 3]| *step == ["populate", "touch", "ENOSYS"];
    let mut touched = 0;
    for file in &report.files {
        let steps = steps_of(file);
        let polled = steps.iter().filter(|step| is_polled(step)).count();
        // Only direct reads can be polled for; what concerns all files is told with each.
        let is_read = file.bytes_by_access.contains_key("buffered");
        let expected = engine == EngineChoice::UringPolled && is_read;
        assert_eq!(polled, usize::from(expected), "{what}: {steps:?}");
        touched += steps.iter().filter(|step| is_touched(step)).count();
        assert!(steps.iter().all(|step| is_polled(step) || is_touched(step)), "{what}: {steps:?}");
    }
    let is_mapped = mode == "auto" || mode.contains("mmap") || mode.contains("mlock");
    let expected = is_mapped && kernel() < POPULATE_SINCE;
    assert_eq!(touched, usize::from(expected), "{what}");
}

/// How the bytes of a cold file may come; of a shard, all of them may stay on the CPU.
fn accesses_of(mode: &str) -> &'static [&'static str] {
    match mode {
        "none" => &["buffered"],
        "dio" => &["direct"],
        "mmap" | "mlock" => &["mmap"],
        "device=none,cpu=mlock" => &["buffered", "mmap"],
        _ => &["direct", "mmap"],
    }
}

#[test]
fn what_is_cached_is_taken_from_there_whether_the_kernel_tells_or_not() {
    let Some(_) = bad_tensor() else { return };
    let model = Model::new("/nvme0/model.gguf");
    for engine in [EngineChoice::Uring, EngineChoice::TokioUring, EngineChoice::Threads] {
        checked(&model.path);
        let report = model.assert_whole(model.loader("auto", engine), "warm");
        let by_access: Vec<_> = report.files[0].bytes_by_access.keys().copied().collect();
        assert_eq!(by_access, ["buffered"], "{engine:?}");
        assert_eq!(steps(&report), [[""; 3]; 0], "{engine:?}");
    }
}

/// Without queues to poll nothing is polled for, whatever the kernel would do.
#[test]
fn polled_reads_are_exact_with_poll_queues_and_without() {
    let Some(_) = bad_tensor() else { return };
    let queues = std::env::var("FOREBAY_VM_POLL_QUEUES").unwrap();
    for path in ["/nvme0/model.gguf", "/nvme1/model-00002-of-00002.safetensors"] {
        assert_eq!(queue(Path::new(path), "io_poll"), queues, "{path}");
        let model = Model::new(path);
        let loader = model.loader("dio", EngineChoice::UringPolled);
        let report = model.assert_whole(loader, "polled");
        let (engine, steps) = (report.files[0].engine, steps(&report));
        println!("{path}, io_poll {queues}: by {engine}, {steps:?}");
        let polled = steps.is_empty() && engine == "uring-polled";
        let stepped = engine == "uring" && steps == [["uring-polled", "uring", "EOPNOTSUPP"]];
        assert!(if queues == "0" { stepped } else { polled }, "{path}: {engine} {steps:?}");
    }
}

/// What a load that failed may have left behind.
fn assert_nothing_left(descriptors: usize, what: &str) {
    let pinned = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("VmPin:")).unwrap().to_owned()
    };
    let is_unpinned = |_| {
        std::thread::sleep(Duration::from_millis(10));
        pinned().ends_with(" 0 kB")
    };
    assert!((0..500).any(is_unpinned), "{what}: {}", pinned());
    assert_eq!(descriptor_count(), descriptors, "{what}");
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.flat_map(|thread| fs::read_to_string(thread.path().join("comm")));
    let left: Vec<_> = names.filter(|name| name.starts_with("forebay-")).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
}

fn descriptor_count() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Lets a load run until a quarter of its bytes have landed, then lets something happen. Every
/// tensor that lands is right; the error that ends the load, if one does, is the only one.
fn and_meanwhile(model: &Model, loader: Loader, what: &str, happens: impl Fn()) -> Option<Error> {
    let total: usize = model.tensors.values().map(Vec::len).sum();
    let mut load = loader.start().unwrap();
    let (mut landed, mut happened, mut failure) = (0, None, None);
    for tensor in &mut load {
        match tensor {
            Ok(tensor) => {
                model.assert_right(&tensor, what);
                landed += as_usize(tensor.bytes());
            }
            Err(error) => failure = Some(error),
        }
        if happened.is_none() && landed > total / 4 {
            happens();
            happened = Some(Instant::now());
        }
    }
    let took = happened.expect("a quarter lands").elapsed();
    assert!(took < PATIENCE, "{what}: it took {took:?}");
    match &failure {
        Some(_) => assert!(matches!(load.finish(), Err(Error::AlreadyReported)), "{what}"),
        None => assert_eq!(landed, total, "{what}"),
    }
    println!("{what}: {landed} of {total} bytes landed; it was over {took:.1?} later");
    failure
}

/// That an error is one of reading, names what it should, and says what to do.
fn assert_names(error: &Error, path: &Path, errnos: &[Errno], what: &str) -> (String, u64) {
    let Error::Read { context, failure } = error else { panic!("{what}: {error}") };
    let FailureKind::Errno(errno) = failure.kind else { panic!("{what}: {error}") };
    println!("{what}: {error}");
    assert!(errnos.contains(&errno), "{what}: {errno:?}");
    assert_eq!(context.path.as_deref(), Some(path), "{what}");
    assert!(error.remedy().is_some(), "{what}: {error}");
    (context.tensor.clone().expect(what), failure.offset)
}

#[test]
fn a_drive_that_is_pulled_out_ends_its_load_by_one_error_and_no_other_load() {
    let Some(_) = bad_tensor() else { return };
    let sound = Model::new("/nvme0/model.gguf");
    for (drive, mode, engine) in [
        (2, "dio", EngineChoice::Uring),
        (3, "dio", EngineChoice::Threads),
        (4, "dio", EngineChoice::TokioUring),
        (5, "mmap", EngineChoice::Threads),
        (6, "dio", EngineChoice::UringPolled),
    ] {
        let what = format!("{mode} {engine:?}, pulled out");
        let model = sound.on(drive);
        let descriptors = descriptor_count();
        let loader = model.slow_loader(mode, engine);
        let pull = || fs::write("/dev/ttyS2", format!("device_del nvme{drive}\n")).unwrap();
        let error = and_meanwhile(&model, loader, &what, pull).expect("it could not be whole");
        let (tensor, offset) =
            assert_names(&error, &model.path, &[Errno::EIO, Errno::ENODEV], &what);
        assert!(sound.tensors.contains_key(&tensor) && offset > 0, "{what}: {error}");
        assert_nothing_left(descriptors, &what);
        let again = model.slow_loader(mode, engine).load().unwrap_err();
        println!("{what}, and loaded again: {again}");
        sound.make_cold();
        sound.assert_whole(sound.slow_loader(mode, engine), "the next load");
        assert_nothing_left(descriptors, &what);
    }
}

/// The driver calls its commands back and asks again.
#[test]
fn a_drive_that_is_reset_under_a_load_costs_it_nothing() {
    let Some(_) = bad_tensor() else { return };
    let model = Model::new("/nvme0/model.gguf").on(7);
    let drives = fs::read_dir("/sys/class/nvme").unwrap().flatten().map(|drive| drive.path());
    let is_ours =
        |drive: &PathBuf| fs::read_to_string(drive.join("serial")).unwrap().trim() == "drive7";
    let drive = drives.into_iter().find(is_ours).unwrap();
    for engine in [EngineChoice::Uring, EngineChoice::UringPolled, EngineChoice::Threads] {
        let what = format!("{engine:?}, reset");
        let reset = || fs::write(drive.join("reset_controller"), "1").unwrap();
        let failure = and_meanwhile(&model, model.slow_loader("dio", engine), &what, reset);
        assert!(failure.is_none(), "{what}: {failure:?}");
    }
}

/// What the driver makes of a medium's error: not the same for direct reads and the page cache.
const MEDIUM: [Errno; 2] = [Errno::EIO, Errno::ENODATA];

#[test]
fn a_sector_that_cannot_be_read_is_told_by_tensor_and_offset() {
    let Some(bad) = bad_tensor() else { return };
    let sound = Model::new("/nvme0/model.gguf");
    let model = sound.on(8);
    let bad_at = middle_of(&sound, &bad);
    for (mode, engine) in [
        ("dio", EngineChoice::Uring),
        ("dio", EngineChoice::UringPolled),
        ("dio", EngineChoice::TokioUring),
        ("dio", EngineChoice::Threads),
        ("none", EngineChoice::Uring),
        ("none", EngineChoice::Threads),
        ("mmap", EngineChoice::Threads),
    ] {
        let what = format!("{mode} {engine:?}, a bad sector at {bad_at}");
        // Of neighbours that are asked for at once the kernel may make one request, which fails whole.
        for depth in [1, QUEUE_DEPTH, 8 * QUEUE_DEPTH] {
            let loader = model.slow_loader(mode, engine).queue_depth(depth);
            let error = loader.load().unwrap_err();
            let (tensor, offset) = assert_names(&error, &model.path, &MEDIUM, &what);
            assert_eq!(tensor, bad, "{what}");
            let step = if mode == "dio" { 512 } else { 4096 };
            assert_eq!(offset, bad_at - bad_at % step, "{what}, {depth} at once: {error}");
        }
    }
    for mode in ["mmap", "mlock"] {
        let loader = model.loader(mode, EngineChoice::Auto).gpu_layers(GpuLayers::Count(0));
        let error = loader.prefetch(forebay::Prefetch::On).load().unwrap_err();
        let (tensor, offset) = assert_names(&error, &model.path, &MEDIUM, mode);
        assert_eq!(tensor, bad, "{mode}");
        assert_eq!(offset, bad_at - bad_at % 4096, "{mode}: {error}");
    }
}

/// Where in its file the middle of a tensor is.
fn middle_of(model: &Model, name: &str) -> u64 {
    let opened = forebay::Model::open(&model.path).unwrap();
    let tensor = opened.catalog().tensor(name).unwrap();
    tensor.offset + tensor.bytes / 2
}

#[test]
fn tensors_elsewhere_load_and_the_bad_one_is_an_error_when_it_is_read() {
    let Some(bad) = bad_tensor() else { return };
    let sound = Model::new("/nvme0/model.gguf");
    let model = sound.on(8);
    for engine in ENGINES {
        // It stays in its mapping, where nobody touches it.
        let rule = format!("^{}$=cpu", bad.replace('.', r"\.")).parse().unwrap();
        let loader = model.loader("device=dio,cpu=mmap", engine).place(rule);
        let loaded = loader.prefetch(forebay::Prefetch::Off).load().unwrap();
        for tensor in loaded.tensors().filter(|tensor| tensor.name() != bad) {
            model.assert_right(&tensor, "elsewhere");
        }
        let tensor = loaded.tensor(&bad).unwrap();
        let mut bytes = vec![0; as_usize(tensor.bytes())];
        let error = tensor.read_into(0, &mut bytes).unwrap_err();
        println!("{engine:?}, read where it is: {error}");
        assert!(error.to_string().contains(&bad) && error.remedy().is_some(), "{error}");
    }
}

#[test]
fn a_sector_that_fails_once_is_read_again_by_the_driver_or_told() {
    let Some(bad) = bad_tensor() else { return };
    let sound = Model::new("/nvme0/model.gguf");
    let again = sound.on(9);
    let report = again.assert_whole(again.slow_loader("dio", EngineChoice::Uring), "once");
    assert_eq!((steps(&report).len(), report.read.resubmitted), (0, 0));

    let retries = "/sys/module/nvme_core/parameters/max_retries";
    let usual = fs::read_to_string(retries).unwrap();
    fs::write(retries, "0").unwrap();
    let model = sound.on(10);
    let error = model.slow_loader("dio", EngineChoice::Uring).load().unwrap_err();
    fs::write(retries, usual).unwrap();
    let (tensor, _) = assert_names(&error, &model.path, &MEDIUM, "once, not read again");
    assert_eq!(tensor, bad);
    model.assert_whole(model.slow_loader("dio", EngineChoice::Uring), "the second time");
}

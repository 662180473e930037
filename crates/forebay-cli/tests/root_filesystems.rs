//! Every way to load, on every filesystem that this kernel has: right to the byte, with the steps
//! down that the filesystem asks for and no others.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`: each test mounts what it needs and takes it
//! down again. Packages: xfsprogs, btrfs-progs, squashfs-tools, erofs-utils, bindfs.

#[path = "support/mapped.rs"]
mod mapped;
#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use forebay::GpuLayers;
use model::{Model, Step, cached_permille, expect_steps, forget};
use root::{Loop, Mount, UringLock, Work, may_run, run_tool, skipped};
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{failure, json, text};

/// What `squashfs` answers: no such open, then no such flag.
const NO_DIRECT: [Step; 2] =
    [("direct", "dontcache", "EINVAL", "open"), ("dontcache", "buffered", "EOPNOTSUPP", "read")];

/// What a filesystem is expected to do.
struct Expected {
    /// The steps of a load that wants direct reads.
    steps: &'static [Step],
    /// What `dio_align` says.
    align_bytes: Option<u64>,
    /// How much of a model may be in the page cache after such a load, in thousandths; `None`
    /// where the filesystem itself goes through the cache.
    cached_permille_max: Option<u64>,
}

/// Direct reads as they should be.
fn direct(align_bytes: u64) -> Expected {
    Expected { steps: &[], align_bytes: Some(align_bytes), cached_permille_max: Some(10) }
}

struct Case {
    /// The models as they are on the filesystem under test.
    models: Vec<(Model, PathBuf)>,
    /// What `cachestat` must be asked about in place of a model's folder: on a layered filesystem
    /// the cache is that of the lower one.
    cache_in: Option<PathBuf>,
    expected: Expected,
    /// Who reads where nobody is named.
    engine: &'static str,
    _lock: UringLock,
}

impl Case {
    /// With copies of the models in `folder`.
    fn new(work: &Work, folder: &Path, expected: Expected) -> Self {
        let models = models(work).into_iter();
        let copied = models.map(|model| {
            let copy = model.copy_to(folder);
            (model, copy)
        });
        Self::with(copied.collect(), expected)
    }

    /// With models that are in `folder` already.
    fn over(work: &Work, folder: &Path, expected: Expected) -> Self {
        let models = models(work).into_iter();
        let found = models.map(|model| {
            let path = folder.join(model.path.file_name().unwrap());
            (model, path)
        });
        Self::with(found.collect(), expected)
    }

    fn with(models: Vec<(Model, PathBuf)>, expected: Expected) -> Self {
        Self { models, cache_in: None, expected, engine: "uring", _lock: UringLock::shared() }
    }

    fn check(&self) {
        for (model, path) in &self.models {
            for mode in ["auto", "dio", "none", "mmap"] {
                for engine in ["auto", "threads"] {
                    for layers in ["0", "1", "all"] {
                        self.load(model, path, [mode, engine, layers]);
                    }
                }
            }
            self.check_without_fallback(model, path);
            for layers in [GpuLayers::Count(0), GpuLayers::Count(4)] {
                mapped::check_prefetch(model, path, layers);
            }
        }
    }

    fn load(&self, model: &Model, path: &Path, [mode, engine, layers]: [&str; 3]) {
        let what = format!("{} {mode} {engine} {layers}", path.display());
        forget(path);
        let report = load(path, &["-lm", mode, "--engine", engine, "--gpu-layers", layers]);
        model.expect_in(&report, &what);
        let file = &report["files"][0];
        assert_eq!(file["dio_align"].as_u64(), self.expected.align_bytes, "{what}");
        let is_read = report["read"]["ops"] != 0;
        if is_read && mode != "mmap" {
            let expected = if engine == "auto" { self.engine } else { "threads" };
            assert_eq!(file["engine"], expected, "{what}");
        }
        match mode {
            "dio" => {
                assert!(is_read, "{what}");
                expect_steps(&report, self.expected.steps, &what);
                self.check_access(&report, path, &what);
                check_places(&report, path, layers, &what);
            }
            // What is cached already `auto` takes from there; of a large file that is not all.
            "auto" if layers == "all" && is_large(path) && !self.is_memory() => {
                expect_steps(&report, self.expected.steps, &what);
            }
            "auto" => {}
            _ => expect_steps(&report, &[], &what),
        }
    }

    /// After a load that wanted direct reads: how the bytes came, and that none stayed behind.
    fn check_access(&self, report: &Value, path: &Path, what: &str) {
        let by_access = report["files"][0]["bytes_by_access"].as_object().unwrap();
        let last = self.expected.steps.last().map_or("direct", |(_, to, ..)| to);
        assert_eq!(by_access.keys().collect::<Vec<_>>(), [last], "{what}");
        let Some(permille_max) = self.expected.cached_permille_max else { return };
        let name = path.file_name().unwrap();
        let path = self.cache_in.as_ref().map_or(path.to_owned(), |folder| folder.join(name));
        if is_large(&path) {
            let cached = cached_permille(&path);
            assert!(cached <= permille_max, "{what}: {cached} ‰ of it is in the page cache");
        }
    }

    /// Where a step is needed `--no-fallback` says so; where none is, it changes nothing.
    fn check_without_fallback(&self, model: &Model, path: &Path) {
        forget(path);
        if self.expected.steps.is_empty() {
            let report = load(path, &["-lm", "dio", "--no-fallback"]);
            model.expect_in(&report, "--no-fallback");
        } else {
            let arguments = ["load", text(path), "--load-mode", "dio", "--no-fallback"];
            let said = failure(&arguments);
            assert!(said.contains(text(path)) && said.contains("EINVAL"), "{said}");
            assert!(said.contains("  remedy: leave --no-fallback out"), "{said}");
        }
        let report = load(path, &["-lm", "auto", "--no-fallback"]);
        model.expect_in(&report, "auto --no-fallback");
        expect_steps(&report, &[], "auto --no-fallback");
    }

    /// Whether the files are page cache and nothing else.
    fn is_memory(&self) -> bool {
        self.expected.steps.is_empty() && self.expected.cached_permille_max.is_none()
    }
}

/// After a load whose tensors of the cpu have memory of their own: what was read to where it lives
/// was not copied.
fn check_places(report: &Value, path: &Path, layers: &str, what: &str) {
    let number = |value: &Value| value.as_u64().unwrap();
    let (bytes, placed) = (&report["model"]["bytes"], &report["memory"]["in_place_bytes"]);
    let (bytes, placed) = (number(bytes), number(placed));
    assert_eq!(placed + number(&report["upload"]["bytes"]), bytes, "{what}");
    match layers {
        "all" => assert_eq!(placed, 0, "{what}"),
        // Of the small model, elements are at odd offsets, which serves no place of their own.
        "0" if is_large(path) => assert_eq!(placed, bytes, "{what}"),
        _ => {}
    }
}

/// Enough that readahead and a cached tail are small beside it.
fn is_large(path: &Path) -> bool {
    std::fs::metadata(path).unwrap().len() > 16 << 20
}

fn load(path: &Path, flags: &[&str]) -> Value {
    let mut arguments = vec!["load", text(path), "--json", "--digest", "--device", "host"];
    arguments.extend(flags);
    json(&arguments)
}

fn models(work: &Work) -> Vec<Model> {
    let folder = work.folder("models");
    vec![Model::gguf(&folder), Model::compressible(&folder), Model::odd()]
}

/// A filesystem made by `mkfs` in an image on a loop device.
fn on_loop(work: &Work, mkfs: &[&str], sector_bytes: u32, options: &str) -> Mount {
    let image = work.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    let device = Loop::new(&image, sector_bytes);
    let node = device.device().to_owned();
    run_tool(mkfs[0], &[&mkfs[1..], &[&node]].concat());
    Mount::new(&["-o", options, &node], &work.folder("mount"), Some(device))
}

/// A read-only filesystem made by a tool from the folder of the models.
fn packed(work: &Work, kind: &str, tool: &[&str]) -> Option<Mount> {
    let folder = work.folder("packed");
    for model in models(work) {
        model.copy_to(&folder);
    }
    let image = work.path().join("image");
    let (image, folder) = (text(&image), text(&folder));
    let arguments = match kind {
        "squashfs" => [&[folder, image], &tool[1..]].concat(),
        _ => [&tool[1..], &[image, folder]].concat(),
    };
    run_tool(tool[0], &arguments);
    let device = Loop::new(Path::new(image), 512);
    let node = device.device().to_owned();
    if !is_supported(kind) {
        skipped(&format!("this kernel has no {kind}"));
        return None;
    }
    Some(Mount::new(&["-t", kind, "-o", "ro", &node], &work.folder("mount"), Some(device)))
}

fn is_supported(kind: &str) -> bool {
    let _ = std::process::Command::new("modprobe").args(["-q", kind]).status();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap();
    known.lines().any(|line| line.trim_start_matches("nodev").trim() == kind)
}

fn check_on_loop(kind: &str, mkfs: &[&str], sector_bytes: u32) {
    if !may_run(&[mkfs[0], "losetup", "mount"]) {
        return;
    }
    if !is_supported(kind) {
        return skipped(&format!("this kernel has no {kind}"));
    }
    let work = Work::new();
    let mount = on_loop(&work, mkfs, sector_bytes, "rw");
    let expected = direct(if kind == "btrfs" { 4096 } else { sector_bytes.into() });
    Case::new(&work, mount.path(), expected).check();
}

#[test]
fn ext4_on_sectors_of_512_bytes() {
    check_on_loop("ext4", &["mkfs.ext4", "-q", "-F"], 512);
}

#[test]
fn ext4_on_sectors_of_4096_bytes() {
    check_on_loop("ext4", &["mkfs.ext4", "-q", "-F"], 4096);
}

#[test]
fn xfs_on_sectors_of_512_bytes() {
    check_on_loop("xfs", &["mkfs.xfs", "-q", "-f"], 512);
}

#[test]
fn xfs_on_sectors_of_4096_bytes() {
    check_on_loop("xfs", &["mkfs.xfs", "-q", "-f"], 4096);
}

/// It tells no alignment, so pages are assumed; and it takes a direct read into memory without
/// pages through the page cache, silently, which the cache's share shows.
#[test]
fn btrfs() {
    check_on_loop("btrfs", &["mkfs.btrfs", "-q", "-f"], 512);
}

/// Compressed extents it unpacks in the page cache, whatever was asked.
#[test]
fn btrfs_that_compresses() {
    if !may_run(&["mkfs.btrfs", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    let mount = on_loop(&work, &["mkfs.btrfs", "-q", "-f"], 512, "compress-force=zstd");
    let expected = Expected { steps: &[], align_bytes: Some(4096), cached_permille_max: None };
    let case = Case::new(&work, mount.path(), expected);
    for (_, path) in &case.models {
        let report = load(path, &["-lm", "dio"]);
        assert_eq!(report["files"][0]["access"], "direct", "{}", path.display());
    }
    case.check();
}

#[test]
fn tmpfs() {
    if !may_run(&["mount"]) {
        return;
    }
    let work = Work::new();
    let mount = Mount::new(&["-t", "tmpfs", "-o", "size=64m", "none"], &work.folder("mount"), None);
    let expected = Expected { steps: &[], align_bytes: Some(4096), cached_permille_max: None };
    let case = Case::new(&work, mount.path(), expected);
    case.check();
    for (_, path) in &case.models {
        let report = load(path, &["-lm", "auto"]);
        assert_eq!(report["files"][0]["access"], "buffered", "all of it is cached");
    }
}

#[test]
fn overlay_over_ext4() {
    if !may_run(&["mkfs.ext4", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    let lower = on_loop(&work, &["mkfs.ext4", "-q", "-F"], 512, "rw");
    let part = |name: &str| {
        let folder = lower.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (low, up, scratch) = (part("low"), part("up"), part("scratch"));
    for model in models(&work) {
        model.copy_to(&low);
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", text(&low), text(&up), text(&scratch));
    let point = work.folder("overlay");
    let overlay = Mount::new(&["-t", "overlay", "-o", &options, "none"], &point, None);
    let mut case = Case::over(&work, overlay.path(), direct(512));
    case.cache_in = Some(low);
    case.check();
}

#[test]
fn squashfs() {
    if !may_run(&["mksquashfs", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    let Some(mount) = packed(&work, "squashfs", &["mksquashfs", "-quiet", "-no-progress"]) else {
        return;
    };
    let expected = Expected { steps: &NO_DIRECT, align_bytes: None, cached_permille_max: Some(30) };
    Case::over(&work, mount.path(), expected).check();
}

#[test]
fn erofs() {
    if !may_run(&["mkfs.erofs", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    if let Some(mount) = packed(&work, "erofs", &["mkfs.erofs", "--quiet"]) {
        Case::over(&work, mount.path(), direct(512)).check();
    }
}

#[test]
fn ext4_mounted_read_only() {
    if !may_run(&["mkfs.ext4", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    let mount = on_loop(&work, &["mkfs.ext4", "-q", "-F"], 512, "rw");
    let case = Case::new(&work, mount.path(), direct(512));
    run_tool("mount", &["-o", "remount,ro", text(mount.path())]);
    assert!(std::fs::write(mount.path().join("x"), "x").is_err(), "it is not read-only");
    case.check();
}

/// FUSE takes direct reads, and they go to the daemon; it tells no alignment. Rings are not used:
/// `root_fuse` says why.
#[test]
fn fuse_over_ext4() {
    if !may_run(&["mkfs.ext4", "losetup", "mount", "bindfs"]) {
        return;
    }
    let work = Work::new();
    let lower = on_loop(&work, &["mkfs.ext4", "-q", "-F"], 512, "rw");
    for model in models(&work) {
        model.copy_to(lower.path());
    }
    let point = work.folder("fuse");
    let fuse = Mount::by("bindfs", &[text(lower.path())], &point, None);
    let mut case = Case::over(&work, fuse.path(), direct(4096));
    case.engine = "threads";
    case.check();
}

/// The daemon passes `O_DIRECT` on to a filesystem that refuses it.
#[test]
fn fuse_that_refuses_direct_reads() {
    if !may_run(&["mksquashfs", "losetup", "mount", "bindfs"]) {
        return;
    }
    let work = Work::new();
    let Some(lower) = packed(&work, "squashfs", &["mksquashfs", "-quiet", "-no-progress"]) else {
        return;
    };
    let point = work.folder("fuse");
    let arguments = ["--forward-odirect=512", text(lower.path())];
    let fuse = Mount::by("bindfs", &arguments, &point, None);
    let expected = Expected { steps: &NO_DIRECT, align_bytes: None, cached_permille_max: Some(30) };
    let mut case = Case::over(&work, fuse.path(), expected);
    case.engine = "threads";
    case.check();
}

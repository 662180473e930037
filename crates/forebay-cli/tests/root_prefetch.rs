//! A prefetch at every readahead that a disk may have.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`: the disk is a loop device of the test's own,
//! since its readahead is the whole system's. Packages: e2fsprogs, util-linux.

#[path = "support/mapped.rs"]
mod mapped;
#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use forebay::GpuLayers;
use mapped::check_prefetch;
use model::{Model, cached_permille};
use root::{Loop, Mount, Work, may_run, run_tool};
use std::path::{Path, PathBuf};
use support::text;

/// How far the kernel reads a loop device ahead, until dropped: the device may be the next test's.
struct Readahead {
    setting: PathBuf,
    before: String,
}

impl Readahead {
    fn of(node: &str) -> Self {
        let name = Path::new(node).file_name().unwrap();
        let setting = Path::new("/sys/block").join(name).join("queue/read_ahead_kb");
        let before = std::fs::read_to_string(&setting).unwrap();
        Self { setting, before }
    }

    fn set(&self, kib: u64) {
        std::fs::write(&self.setting, kib.to_string()).unwrap();
    }
}

impl Drop for Readahead {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.setting, self.before.trim());
    }
}

/// Small: the prefetch asks for pages ahead of itself. Large: the kernel's own readahead does that.
/// None at all: every page is asked for.
#[test]
fn a_prefetch_brings_the_cpus_pages_and_no_others_whatever_the_readahead() {
    if !may_run(&["mkfs.ext4", "losetup", "mount"]) {
        return;
    }
    let work = Work::new();
    let model = Model::gguf(&work.folder("models"));
    let image = work.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
    let device = Loop::new(&image, 512);
    let node = device.device().to_owned();
    run_tool("mkfs.ext4", &["-q", "-F", &node]);
    let readahead = Readahead::of(&node);
    let mount = Mount::new(&[&node], &work.folder("mount"), Some(device));
    let path = model.copy_to(mount.path());
    let bytes = std::fs::metadata(&path).unwrap().len();
    for readahead_kib in [0_u64, 128, 8192] {
        readahead.set(readahead_kib);
        check_prefetch(&model, &path, GpuLayers::Count(0));
        // The offloaded layers are one stretch of the file: two edges, each with one readahead.
        let report = check_prefetch(&model, &path, GpuLayers::Count(4));
        let cached = cached_permille(&path) * bytes / 1000;
        let on_cpu = report.backends.iter().find(|backend| backend.backend == "cpu").unwrap();
        let most = on_cpu.bytes + 2 * (readahead_kib << 10) + bytes / 500;
        assert!(cached <= most, "{readahead_kib} KiB: {cached} bytes cached of {}", text(&path));
    }
}

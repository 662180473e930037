//! What the tests that change the machine share: whether they may, and putting back what they
//! changed, on a panic too. What a killed run left is put back by the next one.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Begins the name of every work folder; the process that made it follows.
const WORK_PREFIX: &str = "forebay-root-";

/// Whether a root test may run here with these programs; says visibly why not.
pub(crate) fn may_run(tools: &[&str]) -> bool {
    let obstacle = if std::env::var_os("FOREBAY_ROOT_TESTS").is_none_or(|value| value != "1") {
        "FOREBAY_ROOT_TESTS=1 is not set".to_owned()
    } else if !nix::unistd::geteuid().is_root() {
        "this is not root".to_owned()
    } else if let Some(tool) = tools.iter().find(|tool| !is_installed(tool)) {
        format!("{tool} is not installed")
    } else {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep_leftovers);
        return true;
    };
    skipped(&obstacle);
    false
}

/// Past the test harness, which shows nothing that a passing test prints.
pub(crate) fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED: {name}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|folder| Path::new(folder).join(tool).is_file())
}

/// A program that must succeed; its standard output.
pub(crate) fn run_tool(tool: &str, arguments: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(tool).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{tool}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder for images and mount points, gone when dropped. Drop mounts before it.
pub(crate) struct Work(PathBuf);

impl Work {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{WORK_PREFIX}{}-{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A new empty folder in it.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Were something still mounted in it, its files must not be taken for ours.
        if !mounts().iter().any(|(point, _)| point.starts_with(&self.0)) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// An image as a block device, until dropped.
pub(crate) struct Loop(String);

impl Loop {
    pub(crate) fn new(image: &Path, sector_bytes: u32) -> Self {
        let sector = sector_bytes.to_string();
        let image = image.to_str().unwrap();
        Self(run_tool("losetup", &["--find", "--show", "--sector-size", &sector, image]))
    }

    pub(crate) fn device(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Something mounted, until dropped; then the loop device under it goes too.
pub(crate) struct Mount {
    point: PathBuf,
    _device: Option<Loop>,
}

impl Mount {
    /// By `mount`, with these arguments before the mount point.
    pub(crate) fn new(arguments: &[&str], point: &Path, device: Option<Loop>) -> Self {
        Self::by("mount", arguments, point, device)
    }

    /// By a program that takes the mount point last.
    pub(crate) fn by(tool: &str, arguments: &[&str], point: &Path, device: Option<Loop>) -> Self {
        let mut arguments = arguments.to_vec();
        arguments.push(point.to_str().unwrap());
        run_tool(tool, &arguments);
        Self { point: point.to_owned(), _device: device }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.point);
    }
}

/// A daemon of a filesystem in user space may hold what is under it for a moment longer.
fn unmount(point: &Path) {
    for _ in 0..50 {
        let output = Command::new("umount").arg(point).output();
        if output.is_ok_and(|output| output.status.success()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = Command::new("umount").arg("-l").arg(point).status();
}

/// Every mount point with its filesystem.
fn mounts() -> Vec<(PathBuf, String)> {
    let text = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        Some((PathBuf::from(words.next()?), words.next()?.to_owned()))
    };
    text.lines().filter_map(mount).collect()
}

/// Undoes what runs that are no more left behind.
fn sweep_leftovers() {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let is_left = |path: &Path| {
        let first = path.strip_prefix(base).ok().and_then(|path| path.iter().next());
        let name = first.and_then(|name| name.to_str()?.strip_prefix(WORK_PREFIX));
        let process = name.and_then(|name| name.split('-').next());
        process.is_some_and(|process| !Path::new("/proc").join(process).exists())
    };
    for (point, _) in mounts().iter().rev().filter(|(point, _)| is_left(point)) {
        unmount(point);
    }
    let loops = Command::new("losetup").args(["-n", "-O", "NAME,BACK-FILE", "--raw"]).output();
    let loops = loops.map(|output| output.stdout).unwrap_or_default();
    for line in String::from_utf8_lossy(&loops).lines() {
        if let Some((device, image)) = line.split_once(' ')
            && is_left(Path::new(image))
        {
            let _ = Command::new("losetup").args(["-d", device]).status();
        }
    }
    for entry in std::fs::read_dir(base).unwrap().flatten() {
        if is_left(&entry.path()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    restore_setting(&setting_record());
}

const IO_URING_DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// Where the value that a setting had is kept while it has another one.
fn setting_record() -> PathBuf {
    std::env::temp_dir().join("forebay-root-tests.io_uring_disabled")
}

/// Held by a test that needs io_uring, and alone by one that takes it away; across processes.
pub(crate) struct UringLock(File);

impl UringLock {
    fn file() -> File {
        let path = std::env::temp_dir().join("forebay-root-tests.lock");
        File::options().create(true).append(true).open(path).unwrap()
    }

    pub(crate) fn shared() -> Self {
        let file = Self::file();
        file.lock_shared().unwrap();
        Self(file)
    }

    fn alone() -> Self {
        let file = Self::file();
        file.lock().unwrap();
        Self(file)
    }
}

/// `kernel.io_uring_disabled` at 2, until dropped.
pub(crate) struct UringDisabled {
    _lock: UringLock,
}

impl UringDisabled {
    /// `None` where the kernel has no such setting.
    pub(crate) fn new() -> Option<Self> {
        let lock = UringLock::alone();
        restore_setting(&setting_record());
        let before = std::fs::read_to_string(IO_URING_DISABLED).ok()?;
        std::fs::write(setting_record(), before).unwrap();
        let disabled = Self { _lock: lock };
        std::fs::write(IO_URING_DISABLED, "2").unwrap();
        Some(disabled)
    }
}

impl Drop for UringDisabled {
    fn drop(&mut self) {
        restore_setting(&setting_record());
    }
}

fn restore_setting(record: &Path) {
    if let Ok(before) = std::fs::read_to_string(record) {
        let restored = std::fs::write(IO_URING_DISABLED, before.trim());
        if restored.and_then(|()| std::fs::remove_file(record)).is_err() {
            skipped(&format!("{IO_URING_DISABLED} could not be set back to {}", before.trim()));
        }
    }
}

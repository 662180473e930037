//! For tests in Rust: how the driver is to behave, and where it is found.
//!
//! Everything here goes through the environment of a child, or through symbols that are looked up
//! in the shared library: the driver's state lives there and nowhere else.

use crate::driver::{CONFIG_VARIABLE, REPORT_VARIABLE};
use crate::report::Report;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What cargo calls the shared library.
const LIBRARY: &str = "libforebay_cuda_emulator.so";
/// What programs call it. (For cuBLASLt, it is `libcublasLt.so.` and its major version.)
const NAMES: [&str; 2] = ["libcuda.so", "libcuda.so.1"];

/// Set in a process that a test has made for itself.
const OWN_PROCESS_VARIABLE: &str = "FOREBAY_CUDA_EMULATOR_OWN_PROCESS";

/// An emulated driver as a test wants it. Without further words: one device of 1 GiB, unthrottled.
///
/// ```no_run
/// use forebay_cuda_emulator::{Emulator, Report};
///
/// // In this process: before anything opens libcuda.so.
/// let emulator = Emulator::new().devices(2).upload_bytes_per_s(2e9).fail_copy(5, 719);
/// emulator.install();
/// assert_eq!(Emulator::report().violation_count(), 0);
///
/// // In a child.
/// let mut program = std::process::Command::new("program");
/// emulator.report_to("/tmp/report.json").command(&mut program).status()?;
/// assert_eq!(Report::read("/tmp/report.json")?.devices[0].memory.count, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Emulator {
    words: Vec<String>,
    report_path: Option<PathBuf>,
}

/// Words of one device, or of all: see [`Emulator::device`] and [`Emulator::each_device`].
#[derive(Clone, Debug, Default)]
pub struct DeviceWords {
    words: Vec<String>,
}

impl DeviceWords {
    /// How much memory it has. 1 GiB if not said.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        self.word(format!("memory={bytes}"))
    }

    /// The rate from host to device; 0, or not said, is no limit.
    #[must_use]
    pub fn upload_bytes_per_s(self, rate: f64) -> Self {
        self.word(format!("upload={rate}"))
    }

    /// The rate from device to host; 0, or not said, is no limit.
    #[must_use]
    pub fn download_bytes_per_s(self, rate: f64) -> Self {
        self.word(format!("download={rate}"))
    }

    /// How long after a copy is asked for it begins at the earliest. 10 µs if not said.
    #[must_use]
    pub fn latency_us(self, latency: u64) -> Self {
        self.word(format!("latency_us={latency}"))
    }

    /// The compute capability. 8.0 if not said.
    #[must_use]
    pub fn capability(self, major: u32, minor: u32) -> Self {
        self.word(format!("capability={major}.{minor}"))
    }

    /// Whether it shares the host's memory. No if not said.
    #[must_use]
    pub fn integrated(self, is: bool) -> Self {
        self.word(format!("integrated={}", u8::from(is)))
    }

    /// Whether it reads pageable memory, and whether it does so by the host's page tables. Neither
    /// if not said.
    #[must_use]
    pub fn pageable(self, is: bool, by_host_page_tables: bool) -> Self {
        let tables = u8::from(by_host_page_tables);
        self.word(format!("pageable={}", u8::from(is))).word(format!("host_page_tables={tables}"))
    }

    /// The host's node that it is next to; -1, or not said, is none.
    #[must_use]
    pub fn numa_node(self, node: i32) -> Self {
        self.word(format!("numa={node}"))
    }

    /// Where it is on the host's buses. Domain 0 and bus 1 + ordinal if not said.
    #[must_use]
    pub fn pci(self, domain: u16, bus: u8) -> Self {
        self.word(format!("domain={domain}")).word(format!("bus={bus}"))
    }

    /// The `nth` call of an entry point in this device's context (from 1; 0 is every one) answers
    /// `code`.
    #[must_use]
    pub fn fail_call(self, name: &str, nth: u64, code: u32) -> Self {
        self.word(format!("fail={name}:{nth}:{code}"))
    }

    /// This device's `nth` asynchronous copy (from 1; 0 is every one) fails when it is performed.
    #[must_use]
    pub fn fail_copy(self, nth: u64, code: u32) -> Self {
        self.word(format!("fail=copy:{nth}:{code}"))
    }

    /// This device's `nth` launch (from 1; 0 is every one) fails when it is performed.
    #[must_use]
    pub fn fail_kernel(self, nth: u64, code: u32) -> Self {
        self.word(format!("fail=kernel:{nth}:{code}"))
    }

    /// This device's `nth` asynchronous copy (from 1; 0 is every one) takes so much longer.
    #[must_use]
    pub fn stall_copy(self, nth: u64, ms: u64) -> Self {
        self.word(format!("stall={nth}:{ms}"))
    }

    /// Any other word of a device, as it stands in the configuration.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }
}

impl Emulator {
    /// One device, as everything is if nothing is said.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many devices there are. 1 if not said.
    #[must_use]
    pub fn devices(self, count: usize) -> Self {
        self.word(format!("devices={count}"))
    }

    /// `cuInit` answers `CUDA_ERROR_NO_DEVICE`.
    #[must_use]
    pub fn no_device(self) -> Self {
        self.word("no-device")
    }

    /// Words of every device that is not told otherwise.
    #[must_use]
    pub fn each_device(mut self, say: impl FnOnce(DeviceWords) -> DeviceWords) -> Self {
        self.words.extend(say(DeviceWords::default()).words);
        self
    }

    /// Words of one device.
    #[must_use]
    pub fn device(mut self, ordinal: usize, say: impl FnOnce(DeviceWords) -> DeviceWords) -> Self {
        let words = say(DeviceWords::default()).words;
        self.words.extend(words.into_iter().map(|word| format!("device.{ordinal}.{word}")));
        self
    }

    /// [`DeviceWords::memory_bytes`] of every device.
    #[must_use]
    pub fn memory_bytes(self, bytes: u64) -> Self {
        self.each_device(|device| device.memory_bytes(bytes))
    }

    /// [`DeviceWords::upload_bytes_per_s`] of every device.
    #[must_use]
    pub fn upload_bytes_per_s(self, rate: f64) -> Self {
        self.each_device(|device| device.upload_bytes_per_s(rate))
    }

    /// [`DeviceWords::download_bytes_per_s`] of every device.
    #[must_use]
    pub fn download_bytes_per_s(self, rate: f64) -> Self {
        self.each_device(|device| device.download_bytes_per_s(rate))
    }

    /// The driver's version, 1000 · major + 10 · minor. 13000 if not said.
    #[must_use]
    pub fn driver_version(self, version: u32) -> Self {
        self.word(format!("driver={version}"))
    }

    /// The rate at which host memory is registered; 0, or not said, is at once.
    #[must_use]
    pub fn register_bytes_per_s(self, rate: f64) -> Self {
        self.word(format!("register={rate}"))
    }

    /// The `nth` call of an entry point (from 1; 0 is every one) answers `code`.
    #[must_use]
    pub fn fail_call(self, name: &str, nth: u64, code: u32) -> Self {
        self.each_device(|device| device.fail_call(name, nth, code))
    }

    /// The `nth` asynchronous copy of all devices together (from 1; 0 is every one) fails when it
    /// is performed; its context is in error from then on.
    #[must_use]
    pub fn fail_copy(self, nth: u64, code: u32) -> Self {
        self.each_device(|device| device.fail_copy(nth, code))
    }

    /// The `nth` launch on all devices together (from 1; 0 is every one) fails when it is
    /// performed; its context is in error from then on.
    #[must_use]
    pub fn fail_kernel(self, nth: u64, code: u32) -> Self {
        self.each_device(|device| device.fail_kernel(nth, code))
    }

    /// How many threads run one kernel; 0, or not said, is as many as there are processors.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.word(format!("workers={count}"))
    }

    /// Whether races in kernels' shared memory are looked for, and are faults. No if not said.
    #[must_use]
    pub fn detect_races(self, is: bool) -> Self {
        self.word(format!("races={}", u8::from(is)))
    }

    /// How many instructions a warp may run before its kernel is taken for endless. 2^28 if not
    /// said.
    #[must_use]
    pub fn warp_instructions_max(self, count: u64) -> Self {
        self.word(format!("instructions={count}"))
    }

    /// cuBLASLt of this version is installed, for children and for tests in a process of their own
    /// ([`Emulator::in_own_process`]). It is not if not said.
    #[must_use]
    pub fn cublaslt(self, major: u32, minor: u32) -> Self {
        self.word(format!("cublaslt={major}.{minor}"))
    }

    /// cuBLASLt's heuristic finds no algorithm for anything.
    #[must_use]
    pub fn no_algorithms(self) -> Self {
        self.word("algorithms=0")
    }

    /// The `nth` asynchronous copy of all devices together (from 1; 0 is every one) takes so much
    /// longer.
    #[must_use]
    pub fn stall_copy(self, nth: u64, ms: u64) -> Self {
        self.each_device(|device| device.stall_copy(nth, ms))
    }

    /// Every question whether something is complete is answered yes at once: as if the program
    /// under test had left out its waits. A test that still passes tests nothing.
    #[must_use]
    pub fn immediate_events(self) -> Self {
        self.word("events=immediate")
    }

    /// Whether pinned sources are compared with what arrived. They are if not said.
    #[must_use]
    pub fn strict(self, is: bool) -> Self {
        self.word(format!("strict={}", u8::from(is)))
    }

    /// Any other word, as it stands in the configuration.
    #[must_use]
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Where a child writes its report when it ends: see [`Report::read`].
    #[must_use]
    pub fn report_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.report_path = Some(path.into());
        self
    }

    /// The words, for the environment variable `FOREBAY_CUDA_EMULATOR`.
    #[must_use]
    pub fn config(&self) -> String {
        self.words.join(" ")
    }

    /// A folder in which the driver has the names that programs look for, for `LD_LIBRARY_PATH`.
    ///
    /// # Panics
    /// If the shared library is not where cargo puts it, or the folder can't be made.
    #[must_use]
    pub fn folder() -> &'static Path {
        static FOLDER: OnceLock<PathBuf> = OnceLock::new();
        FOLDER.get_or_init(|| folder_of_links("forebay-cuda-emulator", &NAMES))
    }

    /// The folders that a child looks for libraries in before all others.
    fn folders(&self) -> Vec<PathBuf> {
        let cublaslt = self.words.iter().rev().find_map(|word| word.strip_prefix("cublaslt="));
        let major = cublaslt.and_then(|version| version.split('.').next());
        let cublaslt = major.map(|major| {
            let folder = format!("forebay-cublaslt-emulator-{major}");
            folder_of_links(&folder, &[&format!("libcublasLt.so.{major}")])
        });
        cublaslt.into_iter().chain([Self::folder().to_owned()]).collect()
    }

    /// Runs the test of that name, which calls this, once more: in a process of its own that finds
    /// the driver and all that it says is installed. Answers whether this is that process. For
    /// tests of what a process looks for by name; in others, [`Emulator::install`] does.
    ///
    /// # Panics
    /// If the test fails there.
    #[must_use]
    pub fn in_own_process(&self, test: &str) -> bool {
        if std::env::var_os(OWN_PROCESS_VARIABLE).is_some() {
            return true;
        }
        let executable = std::env::current_exe().expect("a process knows its executable");
        let mut command = Command::new(executable);
        command.args(["--exact", test, "--nocapture"]).env(OWN_PROCESS_VARIABLE, "1");
        let ran = self.command(&mut command).output().expect("the executable runs");
        let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (output, errors) = (told(&ran.stdout), told(&ran.stderr));
        let is_run = output.contains("1 passed");
        assert!(ran.status.success() && is_run, "{test}: {}\n{output}\n{errors}", ran.status);
        false
    }

    /// Prepares a child so that it finds the driver, and no other.
    ///
    /// # Panics
    /// As [`Emulator::folder`].
    pub fn command<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let mut folders = self.folders();
        if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
            folders.extend(std::env::split_paths(&rest));
        }
        let path = std::env::join_paths(folders).expect("no folder has a colon in its name");
        command.env("LD_LIBRARY_PATH", path).env(CONFIG_VARIABLE, self.config());
        match &self.report_path {
            Some(report) => command.env(REPORT_VARIABLE, report),
            None => command.env_remove(REPORT_VARIABLE),
        }
    }

    /// Opens the driver in this process, so that whoever opens `libcuda.so` from now on finds it,
    /// and gives it this configuration. Again, it only gives it this configuration: faults count
    /// anew, asynchronous errors are forgotten, memory stays as it is.
    ///
    /// # Panics
    /// If there is no such library, a word is wrong, or another `libcuda.so` was opened before.
    pub fn install(&self) {
        let words = CString::new(self.config()).expect("words have no NUL");
        let configure = symbol(c"forebay_emulator_configure");
        // SAFETY: the symbol is this function in every version of the library.
        let configure: unsafe extern "C" fn(*const c_char) -> i32 =
            unsafe { std::mem::transmute(configure) };
        // SAFETY: a C string that outlives the call.
        let wrong = unsafe { configure(words.as_ptr()) };
        assert_eq!(wrong, 0, "the emulated driver refused `{}`", self.config());
    }

    /// What the driver in this process saw until now.
    ///
    /// # Panics
    /// If there is no such library, or its report can't be read.
    #[must_use]
    pub fn report() -> Report {
        let report = symbol(c"forebay_emulator_report");
        // SAFETY: the symbol is this function in every version of the library.
        let report: unsafe extern "C" fn(*mut c_char, usize) -> usize =
            unsafe { std::mem::transmute(report) };
        let mut text = vec![0u8; 1 << 16];
        loop {
            // SAFETY: there is as much room as is said.
            let bytes = unsafe { report(text.as_mut_ptr().cast(), text.len()) };
            if bytes <= text.len() {
                return serde_json::from_slice(&text[..bytes]).expect("the library's own JSON");
            }
            text.resize(bytes * 2, 0);
        }
    }
}

/// The shared library: beside the test's executable, or a folder above.
fn library() -> PathBuf {
    let executable = std::env::current_exe().expect("a process knows its executable");
    let folders = executable.ancestors().skip(1).take(2);
    let places: Vec<_> = folders
        .flat_map(|folder| [folder.join(LIBRARY), folder.join("deps").join(LIBRARY)])
        .collect();
    let found = places.iter().find(|place| place.exists());
    found.unwrap_or_else(|| panic!("no {LIBRARY}: looked at {places:?}")).clone()
}

/// A folder beside the library in which it has these names.
fn folder_of_links(name: &str, links: &[&str]) -> PathBuf {
    let library = library();
    let folder = library.parent().expect("a file has a folder").join(name);
    std::fs::create_dir_all(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for name in links {
        link(&library, &folder, name);
    }
    folder
}

/// Makes the link, or leaves it if it is right already: other tests, of this process and of
/// others, may be using or making it.
fn link(library: &Path, folder: &Path, name: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let link = folder.join(name);
    if std::fs::read_link(&link).is_ok_and(|target| target == library) {
        return;
    }
    let fresh = folder.join(format!("{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    std::os::unix::fs::symlink(library, &fresh)
        .and_then(|()| std::fs::rename(&fresh, &link))
        .unwrap_or_else(|error| panic!("{}: {error}", link.display()));
}

/// A symbol of the library, which is opened for the whole process at first need.
fn symbol(name: &CStr) -> *mut c_void {
    static OPENED: OnceLock<usize> = OnceLock::new();
    let library = *OPENED.get_or_init(|| open() as usize);
    // SAFETY: the library is open and stays so; the name is a C string.
    let symbol = unsafe { libc::dlsym(library as *mut c_void, name.as_ptr()) };
    assert!(!symbol.is_null(), "the emulated driver lacks {name:?}");
    symbol
}

/// Opens the library by its path; by its SONAME it is then found as `libcuda.so`.
fn open() -> *mut c_void {
    let path = library();
    let text = CString::new(path.as_os_str().as_encoded_bytes()).expect("a path has no NUL");
    let flags = libc::RTLD_NOW | libc::RTLD_GLOBAL;
    // SAFETY: the library's constructors are those of the Rust runtime alone.
    let library = unsafe { libc::dlopen(text.as_ptr(), flags) };
    assert!(!library.is_null(), "{} can't be opened", path.display());
    // SAFETY: as above; with NOLOAD, only what is open already is answered.
    let found = unsafe { libc::dlopen(c"libcuda.so".as_ptr(), flags | libc::RTLD_NOLOAD) };
    assert_eq!(found, library, "another libcuda.so was opened before the emulated one");
    library
}

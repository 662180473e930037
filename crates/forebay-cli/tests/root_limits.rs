//! What a system forbids: io_uring to everybody, memory, threads and descriptors to one process,
//! files to one user. The load goes on right to the byte and says what it did without, or it ends
//! with the limit and the way to raise it.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`, because only root may become somebody else and
//! set what holds for the whole system. Packages: util-linux (setpriv, prlimit).

#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use model::{Model, Step, expect_steps, steps};
use root::{UringDisabled, UringLock, may_run, skipped};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use support::{failure, fixtures, json, text};

const UNPINNED: [Step; 1] = [("registered buffers", "plain buffers", "ENOMEM", "setup")];
const NO_RING: [Step; 1] = [("uring", "threads", "EPERM", "setup")];

/// The first of the users that own nothing and run nothing else.
const USER_FIRST: u32 = 61_234;

/// The command and models where every user may read them.
struct Public {
    folder: tempfile::TempDir,
    /// Of no other process: limits that count by user count only this one's.
    user: String,
    command: PathBuf,
    model: Model,
    model_path: PathBuf,
}

impl Public {
    fn new() -> Self {
        static USERS: AtomicU32 = AtomicU32::new(USER_FIRST);
        let user = USERS.fetch_add(1, Ordering::Relaxed).to_string();
        let folder = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let command = folder.path().join("forebay");
        fs::copy(env!("CARGO_BIN_EXE_forebay"), &command).unwrap();
        fs::set_permissions(&command, Permissions::from_mode(0o755)).unwrap();
        let made = folder.path().join("made");
        fs::create_dir(&made).unwrap();
        let model = Model::gguf(&made);
        let model_path = model.copy_to(folder.path());
        fs::set_permissions(&model_path, Permissions::from_mode(0o644)).unwrap();
        Self { folder, user, command, model, model_path }
    }

    /// Runs the command under `limits`, options of prlimit, as an ordinary user.
    fn run(&self, limits: &[&str], arguments: &[&str]) -> Output {
        let user = ["setpriv", "--reuid", &self.user, "--regid", &self.user, "--clear-groups"];
        let mut command = Command::new("prlimit");
        command.args(limits).args(user).arg(&self.command).args(arguments);
        command.current_dir(self.folder.path()).output().unwrap()
    }

    /// Loads the model so; the outcome must be an error or a report with the right digests.
    fn load(&self, limits: &[&str], flags: &[&str]) -> Result<Value, String> {
        let path = text(&self.model_path);
        let mut arguments = vec!["load", path, "--json", "--digest", "--device", "host"];
        arguments.extend(flags);
        let outcome = outcome(&self.run(limits, &arguments), &format!("{limits:?} {flags:?}"));
        if let Ok(report) = &outcome {
            self.model.expect_in(report, &format!("{limits:?} {flags:?}"));
        }
        outcome
    }
}

/// A report, or what was said at exit status 1; anything else fails the test.
fn outcome(output: &Output, what: &str) -> Result<Value, String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{what}: {said}");
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    assert_eq!(output.status.code(), Some(1), "{what}: {:?} {said}", output.status);
    assert!(said.starts_with("error: "), "{what}: {said}");
    assert_eq!(said.matches("error: ").count(), 1, "{what}: {said}");
    assert!(output.stdout.is_empty(), "{what}");
    Err(said)
}

fn check<'report>(report: &'report Value, name: &str) -> &'report Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()
}

/// What a script would find in an error: each of `words`, and a remedy.
fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    assert!(said.contains("\n  remedy: "), "no remedy in: {said}");
}

#[test]
fn without_io_uring_threads_read_and_the_report_says_so() {
    if !may_run(&[]) {
        return;
    }
    let folder = support::scratch();
    let models = [Model::gguf(folder.path()), Model::odd()];
    let Some(disabled) = UringDisabled::new() else {
        return skipped("the kernel has no io_uring_disabled");
    };
    let load = |model: &Model, flags: &[&str]| {
        let mut arguments = vec!["load", text(&model.path), "--json", "--digest"];
        arguments.extend(flags);
        let report = json(&arguments);
        model.expect_in(&report, &format!("{flags:?}"));
        report
    };
    for model in &models {
        for mode in ["auto", "dio", "none"] {
            for flags in [&[][..], &["--engine", "uring"], &["--no-fallback"]] {
                let report = load(model, &[&["-lm", mode], flags].concat());
                expect_steps(&report, &NO_RING, &format!("{mode} {flags:?}"));
                assert_eq!(report["files"][0]["engine"], "threads");
                assert_eq!(report["read"]["registered_buffers"], false);
            }
        }
        // Who asks for threads, or copies out of mappings, does without nothing.
        expect_steps(&load(model, &["-lm", "dio", "--engine", "threads"]), &[], "threads");
        expect_steps(&load(model, &["-lm", "mmap"]), &[], "mmap");
    }
    let path = text(&models[0].path);
    let said = failure(&["load", path, "--engine", "uring", "--no-fallback"]);
    assert_says(&said, &["uring is refused", "EPERM", "--engine auto", "forebay doctor"]);
    let doctor = json(&["doctor", path, "--json"]);
    let io_uring = check(&doctor, "io_uring");
    assert_eq!(io_uring["ok"], false, "{io_uring}");
    assert!(io_uring["remedy"].as_str().unwrap().contains("kernel.io_uring_disabled"));
    drop(disabled);
}

#[test]
fn with_little_lockable_memory_reads_go_to_plain_buffers() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let _lock = UringLock::shared();
    let public = Public::new();
    let limits = ["--memlock=65536:65536"];
    for mode in ["auto", "dio", "none", "mmap", "mlock", "device=dio,cpu=mlock"] {
        for layers in ["0", "1", "all"] {
            let report = public.load(&limits, &["-lm", mode, "--gpu-layers", layers]).unwrap();
            let what = format!("{mode} {layers}");
            let file = &report["files"][0];
            let by_ring = report["read"]["ops"] != 0 && file["engine"] == "uring";
            assert_eq!(report["read"]["registered_buffers"], false, "{what}");
            if by_ring {
                expect_steps(&report, &UNPINNED, &what);
                assert!(file["fallbacks"][0]["reason"].as_str().unwrap().contains("MEMLOCK"));
            }
            let must_use_ring = layers == "all" && ["auto", "dio", "none"].contains(&mode);
            assert!(by_ring || !must_use_ring, "{what}: {file}");
        }
    }
    let report = public.run(&limits, &["doctor", text(&public.model_path), "--json"]);
    let doctor = outcome(&report, "doctor").unwrap();
    assert_eq!(check(&doctor, "memlock limit")["ok"], false);
    // What is little enough is registered as ever.
    let limits = ["--memlock=4194304:4194304"];
    let report = public.load(&limits, &["-lm", "dio", "--staging", "1MiB"]).unwrap();
    expect_steps(&report, &[], "1 of 4 MiB");
    assert_eq!(report["read"]["registered_buffers"], true);
}

#[test]
fn what_may_not_be_locked_is_reported_or_refused() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let public = Public::new();
    let limits = ["--memlock=65536:65536"];
    let report = public.load(&limits, &["-lm", "mlock", "--gpu-layers", "0"]).unwrap();
    let memory = &report["memory"];
    let refused = memory["lock_refused_bytes"].as_u64().unwrap();
    let locked = memory["locked_bytes"].as_u64().unwrap();
    let model_bytes = report["model"]["bytes"].as_u64().unwrap();
    assert!(locked <= 65536, "{memory}");
    assert!((model_bytes..model_bytes + 8192).contains(&(locked + refused)), "{memory}");
    assert_eq!(memory["lock_errno"], "ENOMEM");
    let said = public.load(&limits, &["-lm", "mlock-strict", "--gpu-layers", "0"]).unwrap_err();
    let needed = (locked + refused).to_string();
    let command = format!("ulimit -l {}", (locked + refused).div_ceil(1024));
    assert_says(&said, &["mlock-strict", "65536", &needed, &command, "ENOMEM"]);
    // Nothing was read for that but the header, of which pages stay behind only where the kernel
    // does not tell whether it was cached before: to those who don't own the file.
    model::forget(&public.model_path);
    public.load(&limits, &["-lm", "mlock-strict", "--gpu-layers", "0"]).unwrap_err();
    let cached = model::cached_permille(&public.model_path);
    assert!(cached * 24 <= 2 * 1000, "{cached} ‰ of 24 MiB were read before the refusal");
    // A limit of zero is a right that one does not have.
    let none = ["--memlock=0:0"];
    let report = public.load(&none, &["-lm", "mlock", "--gpu-layers", "0"]).unwrap();
    let memory = &report["memory"];
    assert_eq!((&memory["locked_bytes"], &memory["lock_errno"]), (&0.into(), &"EPERM".into()));
    assert_eq!(memory["lock_refused_bytes"], locked + refused);
    let said = public.load(&none, &["-lm", "mlock-strict", "--gpu-layers", "0"]).unwrap_err();
    assert_says(&said, &["mlock-strict", "the limit is 0 bytes", &needed, &command, "EPERM"]);
    // A model that is small enough both lock whole.
    let small = public.folder.path().join("small.safetensors");
    fs::copy(Model::odd().path, &small).unwrap();
    fs::set_permissions(&small, Permissions::from_mode(0o644)).unwrap();
    for mode in ["mlock", "mlock-strict"] {
        let arguments = ["load", text(&small), "--json", "-lm", mode, "--gpu-layers", "0"];
        let report = outcome(&public.run(&limits, &arguments), mode).unwrap();
        let memory = &report["memory"];
        assert!(memory["locked_bytes"].as_u64() >= report["model"]["bytes"].as_u64(), "{memory}");
        assert_eq!(memory["lock_refused_bytes"], 0);
        assert_eq!(memory["lock_errno"], Value::Null);
    }
}

#[test]
fn a_file_of_somebody_else_is_refused_with_a_remedy() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let public = Public::new();
    fs::set_permissions(&public.model_path, Permissions::from_mode(0o600)).unwrap();
    for mode in ["auto", "dio", "none", "mmap", "mlock"] {
        let said = public.load(&[], &["-lm", mode]).unwrap_err();
        assert_says(&said, &[text(&public.model_path), "permission denied", "chmod"]);
    }
    fs::set_permissions(&public.model_path, Permissions::from_mode(0o644)).unwrap();
    assert!(public.load(&[], &[]).is_ok());
}

/// However many descriptors are missing, no file is taken for one that refuses direct reads.
#[test]
fn too_few_descriptors_for_the_shards_is_one_clear_error() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let _lock = UringLock::shared();
    let public = Public::new();
    let mut index = PathBuf::new();
    for entry in fs::read_dir(fixtures().join("safetensors")).unwrap() {
        let path = entry.unwrap().path();
        let copy = public.folder.path().join(path.file_name().unwrap());
        if text(&copy).contains("/model") {
            fs::copy(&path, &copy).unwrap();
            fs::set_permissions(&copy, Permissions::from_mode(0o644)).unwrap();
        }
        if text(&copy).ends_with("model.safetensors.index.json") {
            index = copy;
        }
    }
    let mut refused = 0;
    for limit in 5..24 {
        let limits = format!("--nofile={limit}");
        let arguments = ["load", text(&index), "--json", "--digest", "-lm", "dio"];
        match outcome(&public.run(&[&limits], &arguments), &limits) {
            Err(said) => {
                refused += 1;
                assert_says(&said, &["too many open files", "ulimit -n"]);
            }
            Ok(report) => {
                for [from, _, errno, at] in steps(&report) {
                    assert_eq!([&*from, &*errno, &*at], ["uring", "EMFILE", "setup"], "{limits}");
                }
                assert_eq!(report["model"]["files"], 3);
            }
        }
    }
    assert!((3..16).contains(&refused), "{refused} of the limits were too small");
}

#[test]
fn too_little_address_space_names_what_had_no_room() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let public = Public::new();
    let large = public.folder.path().join("large.gguf");
    assert!(support::run(&["synth", text(&large), "--size", "192MiB"]).status.success());
    let load = |limit_mib: u64, flags: &[&str]| {
        let limit = format!("--as={}", limit_mib << 20);
        let mut arguments = vec!["load", text(&large), "--json", "--device", "host"];
        arguments.extend(flags);
        outcome(&public.run(&[&limit], &arguments), &format!("{limit} {flags:?}"))
    };
    for mode in ["auto", "dio", "none"] {
        for engine in ["auto", "threads"] {
            let said = load(160, &["-lm", mode, "--engine", engine]).unwrap_err();
            assert_says(&said, &["no room for", "host memory", "ENOMEM", "--gpu-layers"]);
        }
    }
    let staging = ["-lm", "dio", "--chunk", "32MiB", "--staging", "192MiB"];
    let said = load(352, &staging).unwrap_err();
    assert_says(&said, &["staging memory", "ENOMEM", "--staging"]);
    let said = load(160, &["-lm", "mmap", "--gpu-layers", "0", "--no-fallback"]).unwrap_err();
    assert_says(&said, &[text(&large), "can't be mapped", "ENOMEM"]);
    assert!(load(4096, &staging).is_ok());
}

/// A filesystem in memory that ends with it.
struct Full(tempfile::TempDir);

impl Full {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir_in(std::env::temp_dir()).unwrap();
        let size = format!("size={size}");
        let mount = ["-t", "tmpfs", "-o", &size, "forebay-test", text(folder.path())];
        assert!(Command::new("mount").args(mount).status().unwrap().success());
        Self(folder)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_one_clear_error_and_nothing_half_written() {
    if !may_run(&["mount", "umount"]) {
        return;
    }
    let full = Full::new("3m");
    for name in ["model.gguf", "model.safetensors"] {
        let out = full.0.path().join(name);
        let said = failure(&["synth", text(&out), "--size", "8MiB"]);
        assert!(said.contains(text(&out)) && said.contains("No space left"), "{said}");
        assert_eq!(fs::read_dir(full.0.path()).unwrap().count(), 0, "{name}");
    }
    let small = full.0.path().join("small.gguf");
    assert!(support::run(&["synth", text(&small), "--size", "1MiB"]).status.success());
    fs::write(full.0.path().join("rest"), vec![0; 8 << 20]).unwrap_err();
    for (flag, name) in [("--trace", "trace.json"), ("--manifest", "manifest")] {
        let out = full.0.path().join(name);
        let mut arguments = vec!["verify", text(&small), flag, text(&out), "--write"];
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        if flag == "--trace" {
            arguments.extend(["--manifest", text(elsewhere.path())]);
        }
        let said = failure(&arguments);
        assert!(said.contains(text(&out)) && said.contains("No space left"), "{said}");
    }
}

/// What the system's setting for huge pages was, and is again afterwards.
struct NoHugePages(String);

const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

impl NoHugePages {
    fn new() -> Option<Self> {
        let before = fs::read_to_string(HUGE_PAGES).ok()?;
        let before = before.split(['[', ']']).nth(1)?.to_owned();
        fs::write(HUGE_PAGES, "never").ok()?;
        Some(Self(before))
    }
}

impl Drop for NoHugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, &self.0);
    }
}

#[test]
fn without_huge_pages_base_pages_serve() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let Some(_never) = NoHugePages::new() else {
        return skipped("this kernel has no huge pages to forbid");
    };
    let _lock = UringLock::shared();
    let public = Public::new();
    for mode in ["auto", "dio", "none", "mmap"] {
        for flags in [&["-lm", mode][..], &["-lm", mode, "--gpu-layers", "0"]] {
            public.load(&[], flags).unwrap();
        }
    }
}

/// Threads that a load can't do without are an error; of those it can, it takes what there are.
#[test]
fn too_few_threads_are_one_clear_error_or_enough() {
    if !may_run(&["setpriv", "prlimit"]) {
        return;
    }
    let _lock = UringLock::shared();
    let public = Public::new();
    let mut loaded = 0;
    for limit in 1..24 {
        let limits = format!("--nproc={limit}");
        for engine in ["auto", "threads"] {
            match public.load(&[&limits], &["-lm", "dio", "--engine", engine]) {
                Err(said) => assert_says(&said, &["thread", "ulimit -u"]),
                Ok(_) => loaded += 1,
            }
        }
        assert!(limit > 1 || loaded == 0, "one thread can't load");
    }
    assert!(loaded > 0, "none of the limits was enough");
}

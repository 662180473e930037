//! Ctrl-C, and the signal by which services are stopped: the load ends in order, and says so.

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::{command, text};

const MODEL_BYTES: u64 = 512 << 20;
/// Only so that a command which does not end fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A model of zeroes: its file takes no room on the disk.
fn sparse_model(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    let tensor = format!(
        r#"{{"weight":{{"dtype":"U8","shape":[{MODEL_BYTES}],"data_offsets":[0,{MODEL_BYTES}]}}}}"#
    );
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&(tensor.len() as u64).to_le_bytes()).unwrap();
    file.write_all(tensor.as_bytes()).unwrap();
    file.set_len(8 + tensor.len() as u64 + MODEL_BYTES).unwrap();
    path
}

/// Ends the command if the test ends before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    /// Waits until the thread that reads runs: the load is under way then.
    fn wait_until_it_reads(&mut self) {
        let started = Instant::now();
        let tasks = format!("/proc/{}/task", self.0.id());
        let reads = |task: &fs::DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim() == "forebay-read"
        };
        loop {
            if fs::read_dir(&tasks).unwrap().flatten().any(|task| reads(&task)) {
                return;
            }
            assert!(self.0.try_wait().unwrap().is_none(), "it ended before it read");
            assert!(started.elapsed() < PATIENCE, "it never began to read");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its exit status, standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let (mut said, mut printed) = (String::new(), String::new());
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        self.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        (status.code(), printed, said)
    }
}

fn start(model: &Path, flags: &[&str]) -> Running {
    let mut command = command();
    command.args(["load", text(model), "--json", "--device", "host"]).args(flags);
    // So many and so small reads, one after another, that the load lasts.
    command.args(["--chunk", "4096", "--queue-depth", "1", "--staging", "4096"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    Running(command.spawn().unwrap())
}

#[test]
fn a_signal_cancels_the_load_in_every_mode() {
    let folder = support::scratch();
    let model = sparse_model(folder.path());
    let ways = [
        ["-lm", "dio", "--engine", "auto"],
        ["-lm", "dio", "--engine", "threads"],
        ["-lm", "none", "--engine", "auto"],
        ["-lm", "mmap", "--engine", "auto"],
    ];
    for flags in ways {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let what = format!("{flags:?} {signal}");
            let mut load = start(&model, &flags);
            load.wait_until_it_reads();
            kill(load.pid(), signal).unwrap();
            let (status, printed, said) = load.end();
            assert_eq!(status, Some(1), "{what}: {said}");
            assert_eq!(said.lines().next(), Some("error: cancelled"), "{what}");
            assert_eq!(said.matches("error: ").count(), 1, "{what}: {said}");
            assert!(!said.contains("panicked"), "{what}: {said}");
            assert_eq!(printed, "", "{what}");
        }
    }
}

/// Nobody cleans up after it: there must be nothing to clean up, neither files nor what the next
/// load would trip over.
#[test]
fn a_load_that_is_killed_leaves_nothing_behind() {
    let folder = support::scratch();
    let model = sparse_model(folder.path());
    let files = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.collect::<std::collections::BTreeSet<_>>()
    };
    let temporary = std::env::temp_dir();
    let ours = |path: &PathBuf| path.to_string_lossy().contains("forebay");
    let shared = |folder: &Path| files(folder).into_iter().filter(ours).collect::<Vec<_>>();
    let before = (files(folder.path()), shared(&temporary), shared(Path::new("/dev/shm")));
    for (number, mode) in ["auto", "dio", "none", "mmap"].into_iter().cycle().take(12).enumerate() {
        let mut load = start(&model, &["-lm", mode]);
        load.wait_until_it_reads();
        std::thread::sleep(Duration::from_millis(7 * number as u64));
        kill(load.pid(), Signal::SIGKILL).unwrap();
        let (status, printed, _) = load.end();
        assert_eq!((status, &*printed), (None, ""), "{mode}");
    }
    let after = (files(folder.path()), shared(&temporary), shared(Path::new("/dev/shm")));
    assert_eq!(after, before);
}

/// Two at once share the file and the page cache, and nothing else.
#[test]
fn loads_of_the_same_file_at_once_are_all_right() {
    let folder = support::scratch();
    let path = folder.path().join("model.gguf");
    assert!(support::run(&["synth", text(&path), "--size", "24MiB"]).status.success());
    let digests = |flags: &[&str]| {
        let mut command = command();
        command.args(["load", text(&path), "--json", "--digest"]).args(flags);
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let ways: [&[&str]; 6] = [
        &["-lm", "dio", "--device", "host"],
        &["-lm", "auto", "--device", "host"],
        &["-lm", "mlock", "--gpu-layers", "0"],
        &["-lm", "none", "--gpu-layers", "0"],
        &["-lm", "mmap", "--device", "host"],
        &["-lm", "dio", "--engine", "threads", "--gpu-layers", "0"],
    ];
    let loads: Vec<_> = ways.iter().map(|flags| digests(flags)).collect();
    let reports = loads.into_iter().map(|load| {
        let output = load.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["digests"].take()
    });
    let reports: Vec<_> = reports.collect();
    assert!(reports[0].as_object().unwrap().len() > 10);
    assert!(reports.iter().all(|digests| *digests == reports[0]));
}

/// A person who presses it twice does not wait for the second to be noticed.
#[test]
fn a_second_signal_ends_it_too() {
    let folder = support::scratch();
    let model = sparse_model(folder.path());
    let mut load = start(&model, &["-lm", "dio"]);
    load.wait_until_it_reads();
    kill(load.pid(), Signal::SIGINT).unwrap();
    // It may have ended already, and then there is nobody to press it for.
    let _ = kill(load.pid(), Signal::SIGINT);
    let (status, printed, said) = load.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(printed, "");
}

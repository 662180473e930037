//! `--trace FILE`: a timeline of the load, written however it ends.

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::run_on;
use forebay_cuda_emulator::Emulator;
use forebay_tests::{Event, Timeline};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use support::{command, failure, run, scratch, text};

/// Small reads, so that there are many.
const SMALL: [&str; 4] = ["--chunk", "64KiB", "--staging", "512KiB"];

/// A folder with a model, and room for a trace.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = scratch();
        let model = folder.path().join("model.gguf");
        assert!(run(&["synth", text(&model), "--size", "5MiB"]).status.success());
        Self { folder, model }
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace.json")
    }

    /// The command line of a load that is recorded.
    fn load<'all>(&'all self, trace: &'all Path, flags: &[&'all str]) -> Vec<&'all str> {
        let load = ["load", text(&self.model), "--json", "--trace", text(trace)];
        [&load[..], &SMALL, flags].concat()
    }
}

fn bytes_of(spans: &[&Event]) -> u64 {
    spans.iter().map(|span| span.count("bytes")).sum()
}

/// The spans of reads, or of copies, without waits.
fn work<'all>(timeline: &'all Timeline, group: &'all str) -> Vec<&'all Event> {
    timeline.of(group).filter(|span| span.track != "waits").collect()
}

/// That it said where the trace is and how much it holds.
fn assert_noticed(output: &Output, trace: &Path, timeline: &Timeline) {
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = timeline.counters.values().map(Vec::len).sum::<usize>();
    let events = timeline.spans.len() + timeline.instants.len() + counted;
    let notice = format!("notice: {} holds {events} events", trace.display());
    assert!(said.contains(&notice) && said.contains("https://ui.perfetto.dev"), "{said}");
}

fn assert_tells(timeline: &Timeline, report: &Value, what: &str) {
    let reads = work(timeline, "reads");
    assert_eq!(Some(bytes_of(&reads)), report["read"]["bytes"].as_u64(), "{what}");
    let numbers: BTreeSet<u64> = reads.iter().map(|read| read.count("read")).collect();
    assert_eq!(numbers, (0..reads.len() as u64).collect(), "{what}");
    let uploads = work(timeline, "uploads");
    assert_eq!(Some(bytes_of(&uploads)), report["upload"]["bytes"].as_u64(), "{what}");
    let copies: u64 = uploads.iter().map(|upload| upload.count("copies")).sum();
    assert_eq!(Some(copies), report["upload"]["copies"].as_u64(), "{what}");
}

#[test]
fn load_writes_what_its_report_tells() {
    let place = Place::new();
    let trace = place.trace();
    for flags in [
        ["--device", "host", "-lm", "dio", "--engine", "auto"],
        ["--device", "host", "-lm", "dio", "--engine", "threads"],
        ["--device", "host", "-lm", "none", "--engine", "auto"],
        ["--device", "host", "-lm", "mmap", "--engine", "auto"],
    ] {
        let output = run(&place.load(&trace, &flags));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let timeline = Timeline::read(&trace);
        let report = serde_json::from_slice(&output.stdout).unwrap();
        assert_tells(&timeline, &report, &format!("{flags:?}"));
        assert_noticed(&output, &trace, &timeline);
    }
}

#[test]
fn verify_records_its_load_and_plan_has_none() {
    let place = Place::new();
    let (trace, manifest) = (place.trace(), place.folder.path().join("sums"));
    let model = text(&place.model);
    assert!(run(&["plan", model, "--trace", text(&trace)]).status.success());
    assert!(!trace.exists());
    let verify = ["verify", model, "--manifest", text(&manifest), "--trace", text(&trace)];
    assert!(run(&[&verify[..], &["--write"]].concat()).status.success());
    std::fs::remove_file(&trace).unwrap();
    assert!(run(&verify).status.success());
    assert!(!work(&Timeline::read(&trace), "reads").is_empty());
}

#[test]
fn a_wrong_path_is_known_before_anything_is_read() {
    let place = Place::new();
    let nowhere = place.folder.path().join("no/such/folder/trace.json");
    let said = failure(&["load", "no-model-either.gguf", "--trace", text(&nowhere)]);
    assert!(said.contains(text(&nowhere)) && said.contains("No such file"), "{said}");
    let said = failure(&place.load(place.folder.path(), &[]));
    assert!(said.contains("Is a directory"), "{said}");
}

#[test]
fn only_an_earlier_trace_is_replaced() {
    let place = Place::new();
    let before = std::fs::read(&place.model).unwrap();
    let said = failure(&place.load(&place.model, &[]));
    assert!(said.contains("holds something else than a trace"), "{said}");
    assert!(std::fs::read(&place.model).unwrap() == before);
    let trace = place.trace();
    std::fs::write(&trace, "").unwrap();
    for _ in 0..2 {
        assert!(run(&place.load(&trace, &[])).status.success());
    }
    // The larger one leaves nothing behind its end.
    let coarse = ["--chunk", "4MiB", "--staging", "8MiB"];
    let load = ["load", text(&place.model), "--trace", text(&trace)];
    assert!(run(&[&load[..], &coarse].concat()).status.success());
    assert!(work(&Timeline::read(&trace), "reads").len() < 10);
}

#[test]
fn a_trace_that_can_not_be_written_is_an_error() {
    let place = Place::new();
    let full = Path::new("/dev/full");
    if !full.exists() {
        return eprintln!("SKIPPED: there is no /dev/full");
    }
    let said = failure(&place.load(full, &[]));
    assert!(said.contains("the trace can't be written"), "{said}");
    // Where the load fails too, that is the verdict.
    let output = run(&["load", "no-such-model.gguf", "--trace", "/dev/full"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.matches("error: ").count()), (Some(1), 1), "{said}");
    assert!(said.contains("no-such-model.gguf") && !said.contains("error: /dev/full"), "{said}");
}

#[test]
fn a_trace_goes_down_a_pipe_too() {
    let place = Place::new();
    let mut load = command();
    load.args(["load", text(&place.model), "--trace", "/dev/fd/2"]).args(SMALL);
    let output = load.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(!work(&Timeline::parse(said.split("notice: ").next().unwrap()), "reads").is_empty());
}

#[test]
fn a_load_that_is_cancelled_writes_its_trace() {
    let place = Place::new();
    let (model, trace) = (place.folder.path().join("sparse.safetensors"), place.trace());
    sparse(&model, 1 << 30);
    let slow = ["--chunk", "4096", "--queue-depth", "1", "--staging", "4096"];
    let mut load = command();
    load.args(["load", text(&model), "--device", "host", "--trace", text(&trace)]).args(slow);
    let output = interrupt(load.stdout(Stdio::null()).stderr(Stdio::piped()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.ends_with("error: cancelled\n"), "{said}");
    let timeline = Timeline::read(&trace);
    assert_noticed(&output, &trace, &timeline);
    assert!(timeline.of("load").any(|span| span.name == "load"));
}

/// A model of zeroes: its file takes no room on the disk.
fn sparse(path: &Path, bytes: u64) {
    let offsets = format!(r#""shape":[{bytes}],"data_offsets":[0,{bytes}]"#);
    let header = format!(r#"{{"weight":{{"dtype":"U8",{offsets}}}}}"#);
    let begin = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(path, &begin).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(begin.len() as u64 + bytes).unwrap();
}

/// Runs a load and interrupts it once it reads.
fn interrupt(load: &mut Command) -> Output {
    let mut load = load.spawn().unwrap();
    let tasks = format!("/proc/{}/task", load.id());
    let is_reading = || {
        let names = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        let names = names.map(|task| std::fs::read_to_string(task.path().join("comm")));
        names.flatten().any(|name| name.trim() == "forebay-read")
    };
    while !is_reading() {
        assert!(load.try_wait().unwrap().is_none(), "it ended before it read");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    kill(Pid::from_raw(i32::try_from(load.id()).unwrap()), Signal::SIGINT).unwrap();
    load.wait_with_output().unwrap()
}

#[test]
fn copies_to_devices_are_told_for_each() {
    let place = Place::new();
    let trace = place.trace();
    let slow = Emulator::new().devices(2).upload_bytes_per_s(500e6);
    for (flags, devices) in [
        (&["--device", "cuda"][..], &["cuda:0"][..]),
        (&["--device", "cuda:all"], &["cuda:0", "cuda:1"]),
        (&["--device", "cuda:all", "--split", "rows"], &["cuda:0", "cuda:1"]),
        (&["--device", "cuda", "--gpu-layers", "1", "-lm", "cpu=none"], &["cuda:0"]),
    ] {
        let ran = run_on(&slow, &place.load(&trace, flags));
        let report = ran.json();
        ran.expect_clean();
        let timeline = Timeline::read(&trace);
        let what = format!("{flags:?}");
        let reads = work(&timeline, "reads");
        assert_eq!(Some(bytes_of(&reads)), report["read"]["bytes"].as_u64(), "{what}");
        let uploads = work(&timeline, "uploads");
        assert_eq!(Some(bytes_of(&uploads)), report["upload"]["bytes"].as_u64(), "{what}");
        let copies: u64 = uploads.iter().map(|upload| upload.count("copies")).sum();
        assert_eq!(Some(copies), report["upload"]["copies"].as_u64(), "{what}");
        let tracks: BTreeSet<&str> = uploads.iter().map(|upload| &*upload.track).collect();
        assert_eq!(tracks, devices.iter().copied().collect(), "{what}");
        for upload in uploads {
            let read = reads.iter().find(|read| read.count("read") == upload.count("read"));
            let read = read.unwrap_or_else(|| panic!("{what}: no read of {upload:?}"));
            assert!(read.ended_ns <= upload.started_ns, "{what}: {upload:?} before {read:?}");
        }
        // The device is slow, so that several slots wait for it at a time.
        assert!(timeline.rows_of("uploads", "cuda:0") > 1, "{what}");
        let counter = ("uploads".to_owned(), "slots being copied".to_owned());
        assert_eq!(timeline.counters[&counter].last().unwrap().1, 0.0, "{what}");
    }
}

#[test]
fn a_device_that_fails_leaves_a_trace_with_what_it_refused() {
    let place = Place::new();
    let trace = place.trace();
    let slow = || Emulator::new().upload_bytes_per_s(200e6);
    for emulator in [
        slow().fail_call("cuMemcpyHtoDAsync_v2", 5, 1),
        slow().fail_call("cuEventSynchronize", 5, 719),
        slow().fail_copy(5, 700),
    ] {
        let ran = run_on(&emulator, &place.load(&trace, &["--device", "cuda"]));
        assert_eq!(ran.output.status.code(), Some(1), "{}", ran.errors());
        let timeline = Timeline::read(&trace);
        assert_noticed(&ran.output, &trace, &timeline);
        let refused = |upload: &&&Event| upload.text("unfinished").is_some();
        let uploads = work(&timeline, "uploads");
        let told: Vec<_> = uploads.iter().filter(refused).collect();
        assert!(told.iter().any(|it| it.text("unfinished").unwrap().contains("answered")));
    }
}

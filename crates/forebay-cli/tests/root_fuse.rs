//! Loads from a filesystem that lies: whatever it answers, a load ends with every byte right and
//! the steps down told, or with one error that says where. Never with a wrong byte, by a panic, or
//! not at all.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`. Mounting takes `/dev/fuse` and no package.
//! `FOREBAY_FUSE_SEED` is where the random scripts begin, `FOREBAY_FUSE_SCRIPTS` how many they are.

#[path = "support/liar.rs"]
mod liar;
#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use forebay_io::Errno;
use forebay_tests::pattern;
use liar::{Answer, Change, Kind, Liar, Lie, Of, Rule, Script};
use model::{Digests, Model, Step, steps};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use root::{UringLock, Work, may_run, skipped};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};
use support::{command, text};

/// Only so that a load which does not end fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The header is looked for up to here: faults of tensors lie behind.
const HEADER_BYTES: u64 = 1 << 20;

/// In the midst of a tensor and of a page.
const MIDST: u64 = (2 << 20) + 12_345;

const TENSORS: usize = 10;

/// The filesystem, and the model that it serves.
struct Lab {
    liar: Liar,
    model: Model,
    file_bytes: u64,
    _work: Work,
    _lock: UringLock,
}

impl Lab {
    /// `None`, and said so, where this machine has no FUSE.
    fn new(kind: Kind) -> Option<Self> {
        if !may_run(&[]) {
            return None;
        }
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/fuse") {
            skipped(&format!("/dev/fuse: {error}"));
            return None;
        }
        let (contents, digests) = contents();
        let file_bytes = contents.len() as u64;
        let work = Work::new();
        let point = work.folder("mount");
        let liar = Liar::mount(&point, contents, kind).unwrap();
        let model = Model { path: PathBuf::new(), digests };
        let _lock = UringLock::shared();
        Some(Self { liar, model, file_bytes, _work: work, _lock })
    }

    fn load(&self, script: &Script, way: &Way, what: &str) -> (Lie, Result<Value, String>) {
        let lie = self.liar.serve(script.clone());
        let outcome = self.end(way.start(&lie, &[]), &lie, what);
        (lie, outcome)
    }

    /// What a load comes to, if that is anything it may come to.
    fn end(&self, child: Child, lie: &Lie, what: &str) -> Result<Value, String> {
        let Output { status, stdout, stderr } = self.wait(child, lie, what);
        let said = String::from_utf8(stderr).unwrap();
        assert!(!said.contains("panicked"), "{what}: {said}");
        if status.code() == Some(0) {
            let report: Value = serde_json::from_slice(&stdout).unwrap();
            let asked = self.liar.asked(lie);
            self.model.expect_in(&report, &format!("{what}\n{asked}{}\n", report["files"]));
            return Ok(report);
        }
        assert_eq!(status.code(), Some(1), "{what}: {status} {said}");
        assert!(said.starts_with("error: "), "{what}: {said}");
        assert_eq!(said.matches("error: ").count(), 1, "{what}: {said}");
        assert_eq!(String::from_utf8(stdout).unwrap(), "", "{what}: {said}");
        Err(said)
    }

    fn wait(&self, child: Child, lie: &Lie, what: &str) -> Output {
        let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let (sender, ended) = mpsc::channel();
        let waiting = std::thread::spawn(move || sender.send(child.wait_with_output()));
        if let Ok(output) = ended.recv_timeout(PATIENCE) {
            waiting.join().unwrap().unwrap();
            return output.unwrap();
        }
        // No signal ends a process that waits for the answer to a read.
        self.liar.release(lie);
        self.liar.abort();
        kill(process, Signal::SIGKILL).unwrap();
        let _ = ended.recv_timeout(PATIENCE);
        panic!("{what}: it does not end");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                // The threads of the filesystem come and go.
                let children = std::fs::read_to_string(task.path().join("children"));
                assert_eq!(children.unwrap_or_default(), "", "processes are left");
            }
        }
    }
}

/// A safetensors file of byte tensors at odd offsets, and their digests.
fn contents() -> (Vec<u8>, Digests) {
    let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
    let mut digests = Digests::new();
    for number in 0..TENSORS {
        let name = format!("model.layers.{}.part{}.weight", number / 2, number % 2);
        let bytes = pattern(number as u64, 330_001 + 977 * number);
        let digest: String = Sha256::digest(&bytes).iter().map(|it| format!("{it:02x}")).collect();
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = json!({ "dtype": "U8", "shape": [bytes.len()], "data_offsets": offsets });
        entries.insert(name.clone(), entry);
        digests.insert(name, digest);
        data.extend(bytes);
    }
    let header = Value::Object(entries).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    (file, digests)
}

/// How the bytes of a load come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Direct,
    Buffered,
    /// Copied out of a mapping.
    Copies,
    /// Used in a mapping.
    Mapping,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    by: By,
    mode: &'static str,
    /// `host` or `cpu`.
    backend: &'static str,
    engine: &'static str,
}

impl Way {
    /// Every load mode on every backend.
    fn all() -> Vec<Self> {
        let modes = [
            (By::Direct, "auto", "host"),
            (By::Direct, "dio", "host"),
            (By::Direct, "dio", "cpu"),
            (By::Buffered, "none", "host"),
            (By::Buffered, "none", "cpu"),
            (By::Copies, "mmap", "host"),
            (By::Copies, "mlock", "host"),
            (By::Mapping, "auto", "cpu"),
            (By::Mapping, "mmap", "cpu"),
            (By::Mapping, "mlock", "cpu"),
        ];
        modes.map(|(by, mode, backend)| Self { by, mode, backend, engine: "auto" }).to_vec()
    }

    /// The same by io_uring, where it is asked for by name and could read.
    fn by_rings() -> Vec<Self> {
        let mut ways = Self::all();
        ways.retain(|way| !way.is_mapped());
        let rings = ["uring", "tokio-uring"]
            .map(|engine| ways.iter().map(move |way| Self { engine, ..*way }));
        rings.into_iter().flatten().collect()
    }

    fn name(&self) -> String {
        format!("{} to {} by {}", self.mode, self.backend, self.engine)
    }

    /// Starts a load of small reads, several in flight.
    fn start(&self, lie: &Lie, flags: &[&str]) -> Child {
        let mut command = command();
        command.args(["load", text(&lie.path), "--json", "--digest", "--device", "host"]);
        command.args(["-lm", self.mode, "--engine", self.engine]);
        command.args(["--chunk", "256KiB", "--staging", "2MiB", "--queue-depth", "4"]);
        command.args(if self.backend == "cpu" { &["--gpu-layers", "0"][..] } else { &[] });
        command.args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn is_mapped(&self) -> bool {
        matches!(self.by, By::Copies | By::Mapping)
    }
}

/// The steps down from direct reads that are refused.
fn ladder(errno: &'static str, at: &'static str) -> Vec<Step> {
    vec![("direct", "dontcache", errno, at), ("dontcache", "buffered", "EOPNOTSUPP", "read")]
}

/// What a load must come to.
enum Want {
    /// Every byte right, after exactly these steps, however often each was taken.
    Steps(Vec<Step>),
    /// Every byte right, after the first of these steps and any of them.
    StepsAmong(Vec<Step>),
    /// An error that has one of these words in it, and the file's path.
    Fails(&'static [&'static str]),
    /// What no reader can know; any of them that is no wrong byte.
    Anything,
}

fn exact() -> Option<Want> {
    Some(Want::Steps(Vec::new()))
}

fn fails(words: &'static [&'static str]) -> Option<Want> {
    Some(Want::Fails(words))
}

/// What is wanted of a load; `None` for ways on which a fault shows nothing.
type WantBy = dyn Fn(&Way) -> Option<Want>;

/// A fault, and what becomes of loads.
struct Case {
    fault: String,
    script: Script,
    want: Box<WantBy>,
}

impl Case {
    fn new(
        fault: impl Into<String>,
        script: Script,
        want: impl Fn(&Way) -> Option<Want> + 'static,
    ) -> Self {
        Self { fault: fault.into(), script, want: Box::new(want) }
    }

    /// The same through the page cache.
    fn cached(self) -> Self {
        let script = Script { cached: true, ..self.script };
        Self { fault: format!("{}, cached", self.fault), script, ..self }
    }
}

/// Outcomes by fault: how many were exact at once, exact after steps, an error.
#[derive(Default)]
struct Tally(BTreeMap<String, [u32; 3]>);

impl Tally {
    fn count(&mut self, fault: &str, outcome: &Result<Value, String>) {
        let column = match outcome {
            Ok(report) if steps(report).is_empty() => 0,
            Ok(_) => 1,
            Err(_) => 2,
        };
        self.0.entry(fault.to_owned()).or_default()[column] += 1;
    }

    fn print(&self) {
        println!("{:<58} {:>6} {:>9} {:>6}", "fault", "exact", "by steps", "error");
        for (fault, [exact, steps, error]) in &self.0 {
            println!("{fault:<58} {exact:>6} {steps:>9} {error:>6}");
        }
    }
}

/// A report's steps, each told once.
fn taken(report: &Value) -> Vec<[String; 4]> {
    let mut taken = Vec::new();
    for step in steps(report) {
        if !taken.contains(&step) {
            taken.push(step);
        }
    }
    taken
}

impl Want {
    /// What is wrong with an outcome.
    fn check(&self, lie: &Lie, way: &Way, outcome: &Result<Value, String>) -> Result<(), String> {
        let words = |steps: &[Step]| -> Vec<[String; 4]> {
            let words = |&(from, to, errno, at): &Step| [from, to, errno, at].map(str::to_owned);
            steps.iter().map(words).collect()
        };
        let (is_right, outcome) = match outcome {
            Ok(report) => {
                let mut taken = taken(report);
                if way.engine != "auto" {
                    // The kernel's rings misplace what FUSE answers short: they are left at once.
                    let left = (way.engine, "threads", "EOPNOTSUPP", "setup");
                    if taken.is_empty() || taken.remove(0) != words(&[left])[0] {
                        return Err(format!("it has not left the ring: {:?}", steps(report)));
                    }
                }
                let is_right = match self {
                    Self::Steps(steps) => taken == words(steps),
                    Self::StepsAmong(steps) => {
                        let steps = words(steps);
                        taken.first() == steps.first() && taken.iter().all(|it| steps.contains(it))
                    }
                    Self::Fails(_) => false,
                    Self::Anything => true,
                };
                (is_right, format!("no error, steps {taken:?}"))
            }
            Err(said) => {
                is_clear(lie, said)?;
                let is_right = match self {
                    Self::Steps(_) | Self::StepsAmong(_) => false,
                    Self::Fails(words) => words.iter().any(|word| said.contains(word)),
                    Self::Anything => true,
                };
                (is_right, said.clone())
            }
        };
        if is_right { Ok(()) } else { Err(outcome) }
    }
}

/// That an error says where.
fn is_clear(lie: &Lie, said: &str) -> Result<(), String> {
    let said = said.lines().next().unwrap_or_default();
    let of_file = format!("error: {}: ", text(&lie.path));
    let Some(what) = said.strip_prefix(&of_file) else {
        return Err(format!("it does not name the file: {said}"));
    };
    let is_read = what.contains(" failed: ") || what.contains("the file ends at byte");
    if is_read && !what.starts_with("tensor '") {
        return Err(format!("it does not name the tensor: {said}"));
    }
    Ok(())
}

/// What the kernel answers to reads.
fn refusals() -> Vec<Case> {
    let mut cases = Vec::new();
    for errno in [Errno::EINVAL, Errno::EFAULT, Errno::EOPNOTSUPP, Errno::EPERM, Errno::ENOSYS] {
        let script = Script::of([Rule::new(Of::Direct, Answer::Errno(errno))]);
        let name = name(errno);
        cases.push(Case::new(format!("direct reads: {name}"), script, move |way| {
            Some(Want::Steps(match way.by {
                By::Direct => ladder(name, "read"),
                _ => Vec::new(),
            }))
        }));
    }
    for errno in [Errno::EIO, Errno::ENOMEM, Errno::ESTALE] {
        let script = Script::of([Rule::new(Of::Direct, Answer::Errno(errno)).only(MIDST)]);
        let words: &[&str] = match errno {
            Errno::EIO => {
                &["tensor 'model.layers.3.part0.weight': read at offset 2097152 failed: EIO"]
            }
            Errno::ENOMEM => &["failed: ENOMEM"],
            _ => &["failed: ESTALE"],
        };
        cases.push(Case::new(format!("one direct read: {}", name(errno)), script, move |way| {
            if way.by == By::Direct { fails(words) } else { exact() }
        }));
    }
    for errno in [Errno::EAGAIN, Errno::EINTR] {
        let rules = [Of::Direct, Of::Buffered]
            .map(|of| Rule::new(of, Answer::Errno(errno)).from(MIDST).times(7));
        let name = format!("reads put off seven times: {}", name(errno));
        cases.push(Case::new(name, Script::of(rules), |way| {
            if way.is_mapped() { None } else { exact() }
        }));
    }
    let eio = || Answer::Errno(Errno::EIO);
    let buffered = || Script::of([Rule::new(Of::Buffered, eio()).from(MIDST)]);
    let all = || Script::of([Rule::new(Of::Any, eio()).from(MIDST)]);
    let refused = || Rule::new(Of::Direct, Answer::Errno(Errno::EINVAL));
    let both = || Script::of([refused(), Rule::new(Of::Buffered, eio()).from(MIDST)]);
    let of_buffered =
        |way: &Way| if way.by == By::Direct { exact() } else { fails(&["failed: EIO"]) };
    cases.extend([
        Case::new("buffered reads: EIO", buffered(), of_buffered),
        Case::new("buffered reads: EIO", buffered(), of_buffered).cached(),
        Case::new("all reads: EIO", all(), |_| fails(&["failed: EIO"])),
        Case::new("all reads: EIO", all(), |_| fails(&["failed: EIO"])).cached(),
        Case::new("direct reads: EINVAL, buffered: EIO", both(), |_| fails(&["failed: EIO"])),
        Case::new("direct reads: EINVAL, buffered: EIO", both(), |_| fails(&["failed: EIO"]))
            .cached(),
        Case::new("direct reads: EINVAL", Script::of([refused()]), |way| {
            Some(Want::Steps(match way.by {
                By::Direct => ladder("EINVAL", "read"),
                _ => Vec::new(),
            }))
        })
        .cached(),
        Case::new(
            "one read: EIO",
            Script::of([Rule::new(Of::Any, eio()).from(MIDST).times(1)]),
            |way| {
                // The kernel asks a second time for what it wants in the page cache.
                if way.is_mapped() { Some(Want::Anything) } else { fails(&["failed: EIO"]) }
            },
        ),
    ]);
    cases
}

/// What it answers to opens, and to the look at the header.
fn openings() -> Vec<Case> {
    let mut cases = Vec::new();
    for errno in [Errno::EINVAL, Errno::EIO, Errno::EACCES] {
        let script = Script { direct_open: Some(errno), ..Script::default() };
        let name = name(errno);
        cases.push(Case::new(format!("open with O_DIRECT: {name}"), script, move |way| {
            Some(Want::Steps(match way.by {
                By::Direct => ladder(name, "open"),
                _ => Vec::new(),
            }))
        }));
    }
    let full = Script { direct_open: Some(Errno::EMFILE), ..Script::default() };
    let failing = Script { buffered_open: Some(Errno::EIO), ..Script::default() };
    let replaced = Script { replaced_when_opened: true, ..Script::default() };
    let header = |answer, times| Script::of([Rule::new(Of::Buffered, answer).times(times)]);
    cases.extend([
        Case::new("open with O_DIRECT: EMFILE", full, |_| fails(&["too many open files"])),
        Case::new("open: EIO", failing, |_| fails(&["i/o error"])),
        Case::new("replaced between two opens", replaced, |_| {
            fails(&["was replaced while it was being opened"])
        }),
        Case::new("header: EIO", header(Answer::Errno(Errno::EIO), u64::MAX), |_| {
            fails(&["the header can't be read"])
        }),
        Case::new("header: EIO", header(Answer::Errno(Errno::EIO), u64::MAX), |_| {
            fails(&["the header can't be read"])
        })
        .cached(),
        Case::new("header: EINTR, three times", header(Answer::Errno(Errno::EINTR), 3), |_| {
            exact()
        }),
        Case::new("header: 1009 bytes at a time", header(Answer::Short(1009), 3), |_| exact()),
        Case::new("header: no bytes", header(Answer::Short(0), u64::MAX), |_| {
            fails(&["the header can't be read"])
        }),
    ]);
    cases
}

/// Counts that are smaller than what was asked for.
fn short_counts() -> Vec<Case> {
    let mut cases = Vec::new();
    for bytes in [1, 511, 512, 4095, 4096, 4097, 65_536] {
        let script = Script::of([Rule::new(Of::Direct, Answer::Short(bytes))]);
        cases.push(Case::new(format!("direct reads: {bytes} bytes at most"), script, move |way| {
            if way.by != By::Direct || bytes % 4096 == 0 {
                return exact();
            }
            let mut steps = ladder("EINVAL", "read");
            steps.push(("direct", "buffered", "EINVAL", "read"));
            Some(Want::StepsAmong(steps))
        }));
    }
    for bytes in [4097, 50_001] {
        let script = Script::of([Rule::new(Of::Buffered, Answer::Short(bytes))]);
        cases.push(Case::new(format!("buffered reads: {bytes} bytes at most"), script, |way| {
            if way.is_mapped() { None } else { exact() }
        }));
    }
    let once = Script::of([Rule::new(Of::Buffered, Answer::Short(1)).from(HEADER_BYTES).times(60)]);
    cases.push(Case::new("sixty buffered reads: 1 byte", once, |way| {
        if way.is_mapped() { None } else { exact() }
    }));
    let ends = |of| Script::of([Rule::new(of, Answer::Short(0)).only(MIDST)]);
    cases.push(Case::new("direct reads: no bytes", ends(Of::Direct), |way| {
        if way.by == By::Direct { fails(&["the file ends at byte 2097152"]) } else { exact() }
    }));
    cases.push(Case::new("buffered reads: no bytes", ends(Of::Buffered), |way| match way.by {
        By::Direct => exact(),
        By::Buffered => fails(&["the file ends at byte"]),
        // The kernel takes it for the end, and is told of another by whoever asks next.
        By::Copies | By::Mapping => None,
    }));
    cases
}

/// What takes its time.
fn delays() -> Vec<Case> {
    let late = || {
        Script::of([Rule::new(Of::Any, Answer::Late(Duration::from_millis(300)))
            .from(MIDST)
            .times(1)])
    };
    let reversed = || Script::of([Rule::new(Of::Any, Answer::Reversed).from(HEADER_BYTES)]);
    vec![
        Case::new("a read that takes 300 ms", late(), |_| exact()),
        Case::new("a read that takes 300 ms", late(), |_| exact()).cached(),
        Case::new("answers in reverse", reversed(), |_| exact()),
        Case::new("answers in reverse", reversed(), |_| exact()).cached(),
    ]
}

/// What is done to the file meanwhile.
fn changes(file_bytes: u64) -> Vec<Case> {
    const CHANGED: &[&str] = &["the file changed during the load: "];
    const CUT: &[&str] = &["the file ends at byte", "the file changed during the load: it had "];
    let meanwhile =
        |change| Script::of([Rule::new(Of::Any, Answer::Meanwhile(change)).from(MIDST).times(1)]);
    let cut = Change::Length(MIDST + 300_000);
    let believed = |change| Script { believed_for: Duration::from_secs(3600), ..meanwhile(change) };
    vec![
        Case::new("cut short", meanwhile(cut), |_| fails(CUT)),
        Case::new("cut short", meanwhile(cut), |_| fails(CUT)).cached(),
        Case::new("cut short, and the kernel not told", believed(cut), |way| {
            // What the kernel takes for the end it fills up with zeroes.
            if way.is_mapped() { Some(Want::Anything) } else { fails(CUT) }
        }),
        Case::new("cut to nothing", meanwhile(Change::Length(0)), |_| fails(CUT)),
        Case::new("grown", meanwhile(Change::Length(file_bytes + 1)), |_| fails(CHANGED)),
        Case::new("grown", meanwhile(Change::Length(file_bytes + 1)), |_| fails(CHANGED)).cached(),
        Case::new("written to", meanwhile(Change::Touched), |_| fails(CHANGED)),
        Case::new("written to", meanwhile(Change::Touched), |_| fails(CHANGED)).cached(),
        Case::new("replaced", meanwhile(Change::Replaced), |_| exact()),
        Case::new("replaced", meanwhile(Change::Replaced), |_| exact()).cached(),
    ]
}

fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::EINVAL => "EINVAL",
        Errno::EFAULT => "EFAULT",
        Errno::EOPNOTSUPP => "EOPNOTSUPP",
        Errno::EPERM => "EPERM",
        Errno::ENOSYS => "ENOSYS",
        Errno::EIO => "EIO",
        Errno::ENOMEM => "ENOMEM",
        Errno::ESTALE => "ESTALE",
        Errno::EAGAIN => "EAGAIN",
        Errno::EINTR => "EINTR",
        Errno::EACCES => "EACCES",
        _ => "another errno",
    }
}

/// Loads wait for most of their time.
fn several_at_once<T: Sync>(all: &[T], work: impl Fn(&T) + Sync) {
    const WORKERS: usize = 4;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(one);
                }
            });
        }
    });
}

/// Every case on every way on which it shows anything.
fn check_all(lab: &Lab, cases: &[Case], ways: &[Way]) {
    let all = cases.iter().flat_map(|case| ways.iter().map(move |way| (case, way)));
    let wanted = all.filter_map(|(case, way)| Some((case, way, (case.want)(way)?)));
    let wanted: Vec<_> =
        wanted.map(|(case, way, want)| (&case.fault, &case.script, way, want)).collect();
    let (tally, wrong) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    several_at_once(&wanted, |(fault, script, way, want)| {
        let what = format!("{fault}: {}", way.name());
        let (lie, outcome) = lab.load(script, way, &what);
        tally.lock().unwrap().count(fault, &outcome);
        if let Err(why) = want.check(&lie, way, &outcome) {
            wrong.lock().unwrap().push(format!("{what}: {why}"));
        }
    });
    tally.into_inner().unwrap().print();
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} loads went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn honest() -> Case {
    Case::new("none", Script::default(), |_| exact())
}

#[test]
fn whatever_a_read_is_answered() {
    let Some(lab) = Lab::new(Kind::Plain) else { return };
    let mut cases = vec![honest(), honest().cached()];
    cases.extend(openings());
    cases.extend(refusals());
    cases.extend(short_counts());
    cases.extend(delays());
    cases.extend(changes(lab.file_bytes));
    check_all(&lab, &cases, &Way::all());
}

/// The kernel waits for no answer before it asks for more, and completes reads later.
#[test]
fn whatever_a_read_is_answered_later() {
    let Some(lab) = Lab::new(Kind::Asynchronous) else { return };
    let mut cases = vec![honest()];
    cases.extend(refusals());
    cases.extend(short_counts());
    cases.extend(delays());
    let mut ways = Way::all();
    ways.retain(|way| way.by == By::Direct);
    check_all(&lab, &cases, &ways);
}

/// By io_uring, short answers came out as wrong bytes, and with asynchronous direct reads, refused
/// ones were tried again by the kernel without end.
#[test]
fn rings_are_left_to_other_filesystems() {
    for kind in [Kind::Plain, Kind::Asynchronous] {
        let Some(lab) = Lab::new(kind) else { return };
        let mut cases = vec![honest()];
        cases.extend(short_counts());
        let refused = Rule::new(Of::Direct, Answer::Errno(Errno::EOPNOTSUPP));
        cases.push(Case::new("direct reads: EOPNOTSUPP", Script::of([refused]), |way| {
            let steps =
                if way.by == By::Direct { ladder("EOPNOTSUPP", "read") } else { Vec::new() };
            Some(Want::Steps(steps))
        }));
        check_all(&lab, &cases, &Way::by_rings());
    }
}

/// What is read past the page cache can't be mapped unless the filesystem says so.
#[test]
fn files_that_cannot_be_mapped() {
    let Some(lab) = Lab::new(Kind::Unmappable) else { return };
    const REFUSED: Step = ("mmap", "buffered", "ENODEV", "open");
    let eio = || Script::of([Rule::new(Of::Buffered, Answer::Errno(Errno::EIO)).from(MIDST)]);
    let cases = [
        Case::new("mmap: ENODEV", Script::default(), |way| {
            Some(Want::Steps(if way.is_mapped() { vec![REFUSED] } else { Vec::new() }))
        }),
        Case::new("mmap: ENODEV, buffered reads: EIO", eio(), |way| match (way.by, way.mode) {
            (By::Direct, _) => exact(),
            // It had rather read directly what it can't map.
            (By::Mapping, "auto") => Some(Want::Steps(vec![REFUSED])),
            _ => fails(&["failed: EIO"]),
        }),
        Case::new("through the page cache", Script::default(), |_| exact()).cached(),
    ];
    check_all(&lab, &cases, &Way::all());
}

/// "Try again", for ever, is an error too.
#[test]
fn reads_that_are_put_off_without_end() {
    let Some(lab) = Lab::new(Kind::Plain) else { return };
    for errno in [Errno::EAGAIN, Errno::EINTR] {
        let way = Way { by: By::Direct, mode: "dio", backend: "host", engine: "auto" };
        let script = Script::of([Rule::new(Of::Direct, Answer::Errno(errno)).only(MIDST)]);
        let what = format!("{} for ever: {}", name(errno), way.name());
        let (lie, outcome) = lab.load(&script, &way, &what);
        let said = outcome.unwrap_err();
        let wanted = "tensor 'model.layers.3.part0.weight': read at offset 2097152 was put off \
                      without end";
        assert!(said.contains(wanted) && said.contains(text(&lie.path)), "{what}: {said}");
    }
}

/// Those of [`Way::all`] that differ in how they wait.
fn ways_of_waiting() -> Vec<Way> {
    let mut ways = Way::all();
    ways.retain(|way| matches!((way.mode, way.backend), ("dio" | "none" | "mmap", _)));
    ways
}

/// A load whose third MiB is never answered, once it waits for that.
fn stalled(lab: &Lab, way: &Way) -> (Lie, Child) {
    let lie = lab.liar.serve(Script::of([Rule::new(Of::Any, Answer::Never).from(MIDST)]));
    let child = way.start(&lie, &[]);
    let started = Instant::now();
    while lab.liar.held(&lie) == 0 {
        assert!(started.elapsed() < PATIENCE, "{}: it never came to that read", way.name());
        std::thread::sleep(Duration::from_millis(1));
    }
    (lie, child)
}

/// What is in flight may still be written to the load's memory: whoever cancels waits for it, and
/// for nothing else.
#[test]
fn a_stalled_load_that_is_cancelled_ends_with_its_reads() {
    let Some(lab) = Lab::new(Kind::Plain) else { return };
    for way in ways_of_waiting() {
        let (lie, child) = stalled(&lab, &way);
        let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
        kill(process, Signal::SIGTERM).unwrap();
        // Long enough to be noticed.
        std::thread::sleep(Duration::from_millis(100));
        lab.liar.release(&lie);
        let released = Instant::now();
        let what = format!("cancelled while it waits: {}", way.name());
        let said = lab.end(child, &lie, &what).unwrap_err();
        assert!(released.elapsed() < PATIENCE, "{what}");
        assert_eq!(said, "error: cancelled\n", "{what}");
    }
}

/// The connection of a filesystem whose server is gone, and that somebody has cut.
#[test]
fn a_stalled_load_whose_filesystem_is_aborted_fails() {
    for way in ways_of_waiting() {
        let Some(lab) = Lab::new(Kind::Plain) else { return };
        let (lie, child) = stalled(&lab, &way);
        lab.liar.abort();
        let what = format!("aborted: {}", way.name());
        let said = lab.end(child, &lie, &what).unwrap_err();
        assert!(said.contains(text(&lie.path)) && said.contains("failed: E"), "{what}: {said}");
    }
}

/// Some faults of any kind, one after the other or together.
fn random_script(rng: &mut fastrand::Rng, file_bytes: u64, way: &Way) -> Script {
    const ERRNOS: [Errno; 12] = [
        Errno::EINVAL,
        Errno::EFAULT,
        Errno::EOPNOTSUPP,
        Errno::EPERM,
        Errno::ENOSYS,
        Errno::EIO,
        Errno::ENOMEM,
        Errno::ESTALE,
        Errno::EAGAIN,
        Errno::EINTR,
        Errno::EBUSY,
        Errno::ENXIO,
    ];
    let cached = rng.bool();
    let direct_open = ERRNOS[rng.usize(..ERRNOS.len())];
    // Nobody gives up an open that is interrupted; and to the kernel, `ENOSYS` says that no file of
    // the filesystem needs one.
    let is_apt = |errno: &Errno| !matches!(errno, Errno::EINTR | Errno::ENOSYS);
    let direct_open = Some(direct_open).filter(|errno| rng.u8(..6) == 0 && is_apt(errno));
    let mut rules = Vec::new();
    for _ in 0..rng.usize(1..=4) {
        // What the page cache is told the kernel believes: see the head of `liar`.
        let shortens = !cached && !way.is_mapped();
        let answer = match rng.u8(..10) {
            0..4 => Answer::Errno(ERRNOS[rng.usize(..ERRNOS.len())]),
            4 | 5 if shortens => {
                let bytes = [0, 1, 511, 512, 4095, 4096, 4097, rng.u32(2..300_000)];
                Answer::Short(bytes[rng.usize(..bytes.len())])
            }
            6 => Answer::Reversed,
            7 => Answer::Meanwhile(match rng.u8(..4) {
                0 => Change::Length(rng.u64(..file_bytes)),
                1 => Change::Length(file_bytes + rng.u64(1..10_000)),
                2 => Change::Touched,
                _ => Change::Replaced,
            }),
            _ => Answer::Late(Duration::from_millis(rng.u64(1..40))),
        };
        let start = if rng.bool() { 0 } else { rng.u64(..file_bytes) };
        let range = start..if rng.bool() { u64::MAX } else { start + rng.u64(1..file_bytes) };
        let of = [Of::Direct, Of::Buffered, Of::Any][rng.usize(..3)];
        let times = match answer {
            // Each costs a thread, or would be tried ten thousand times.
            Answer::Errno(Errno::EAGAIN | Errno::EINTR) | Answer::Late(_) => rng.u64(1..20),
            Answer::Meanwhile(_) => 1,
            _ if rng.bool() => rng.u64(1..8),
            Answer::Short(bytes) if bytes < 4096 => 50,
            _ => u64::MAX,
        };
        rules.push(Rule { of, range, skip: rng.u64(..6), times, answer });
    }
    Script { direct_open, cached, rules, ..Script::default() }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_else_it_answers() {
    let (Some(plain), Some(later)) = (Lab::new(Kind::Plain), Lab::new(Kind::Asynchronous)) else {
        return;
    };
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let first = setting("FOREBAY_FUSE_SEED").unwrap_or_else(|| now().into());
    let scripts = setting("FOREBAY_FUSE_SCRIPTS").unwrap_or(150);
    let ways = [Way::all(), Way::by_rings()].concat();
    let (tally, struck) = (Mutex::new(Tally::default()), AtomicUsize::new(0));
    several_at_once(&(first..first + scripts).collect::<Vec<_>>(), |&seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let way = ways[rng.usize(..ways.len())];
        let lab = if rng.bool() { &plain } else { &later };
        let script = random_script(&mut rng, lab.file_bytes, &way);
        let what = format!("FOREBAY_FUSE_SEED={seed}: {}: {script:?}", way.name());
        let (lie, outcome) = lab.load(&script, &way, &what);
        if let Err(why) = outcome.as_ref().map_or_else(|said| is_clear(&lie, said), |_| Ok(())) {
            panic!("{what}: {why}");
        }
        struck.fetch_add(usize::from(lab.liar.struck(&lie) > 0), Ordering::Relaxed);
        tally.lock().unwrap().count(&format!("random scripts from {first} on"), &outcome);
    });
    tally.into_inner().unwrap().print();
    let struck = struck.into_inner() as u64;
    assert!(struck > scripts / 2, "{struck} of {scripts} scripts did anything");
}

//! What the kernel is really asked for, by strace: that direct loads go past the page cache with
//! one ring and registered memory, not only that they say so.
//!
//! For root, and only with `FOREBAY_ROOT_TESTS=1`. Package: strace.

#[path = "support/model.rs"]
mod model;
#[path = "support/root.rs"]
mod root;
mod support;

use model::{Model, expect_steps};
use root::{UringLock, may_run, run_tool};
use std::collections::BTreeMap;
use std::path::Path;
use support::text;

/// Of the model's header and no more.
const HEADER_BYTES_MAX: u64 = 2 << 20;

/// One finished system call.
struct Call {
    name: String,
    arguments: String,
    result: String,
}

impl Call {
    /// What it returned; `None` for an error.
    fn count(&self) -> Option<u64> {
        self.result.split_whitespace().next()?.parse().ok()
    }
}

/// A load as strace saw it.
struct Trace {
    calls: Vec<Call>,
    /// How each thread ended.
    ends: Vec<String>,
}

impl Trace {
    fn of_load(model: &Model, folder: &Path, flags: &[&str]) -> Self {
        let log = folder.join("trace");
        let (path, command) = (text(&model.path), env!("CARGO_BIN_EXE_forebay"));
        let traced = "trace=openat,read,readv,pread64,preadv,preadv2,sendfile,splice,mmap,\
                      io_uring_setup,io_uring_register";
        let mut arguments = vec!["-f", "-y", "-e", traced, "-s", "0", "-o", text(&log), command];
        arguments.extend(["load", path, "--json", "--digest", "--device", "host"]);
        arguments.extend(flags);
        let report = run_tool("strace", &arguments);
        let report = serde_json::from_str(&report).unwrap();
        model.expect_in(&report, &format!("{flags:?}"));
        expect_steps(&report, &[], &format!("{flags:?}"));
        Self::parse(&std::fs::read_to_string(log).unwrap())
    }

    /// Joins the two halves of calls that others came between.
    fn parse(text: &str) -> Self {
        let mut trace = Self { calls: Vec::new(), ends: Vec::new() };
        let mut begun: BTreeMap<&str, String> = BTreeMap::new();
        for line in text.lines() {
            let (thread, line) = line.split_once(' ').unwrap();
            let line = line.trim_start();
            if line.starts_with("+++") {
                trace.ends.push(line.to_owned());
            } else if let Some(start) = line.strip_suffix(" <unfinished ...>") {
                begun.insert(thread, start.to_owned());
            } else if let Some((_, rest)) = line.split_once(" resumed>") {
                trace.push(&(begun.remove(thread).unwrap() + rest));
            } else {
                trace.push(line);
            }
        }
        trace
    }

    /// `name(arguments) = result`; what is no call, such as a signal, is left out.
    fn push(&mut self, line: &str) {
        if let Some((call, result)) = line.rsplit_once(" = ")
            && let Some((name, arguments)) = call.split_once('(')
        {
            let (name, result) = (name.to_owned(), result.to_owned());
            self.calls.push(Call { name, arguments: arguments.to_owned(), result });
        }
    }

    fn named<'trace>(&'trace self, name: &'trace str) -> impl Iterator<Item = &'trace Call> {
        self.calls.iter().filter(move |call| call.name == name)
    }

    /// The calls by which bytes come out of a descriptor of `path`.
    fn reads_of<'trace>(&'trace self, path: &Path) -> impl Iterator<Item = &'trace Call> {
        let file = format!("<{}>", text(path));
        let is_read = |name: &str| name.contains("read") || ["sendfile", "splice"].contains(&name);
        self.calls.iter().filter(move |call| {
            is_read(&call.name)
                && call.arguments.split(',').next().is_some_and(|first| first.contains(&file))
        })
    }

    fn bytes_read(&self, path: &Path) -> u64 {
        self.reads_of(path).filter_map(Call::count).sum()
    }

    fn registrations(&self, what: &str) -> Vec<Option<u64>> {
        let of = |call: &&Call| call.arguments.contains(what);
        self.named("io_uring_register").filter(of).map(Call::count).collect()
    }

    fn opens_directly(&self, path: &Path) -> bool {
        let of = |call: &Call| {
            call.arguments.contains(&format!("\"{}\"", text(path)))
                && call.arguments.contains("O_DIRECT")
                && !call.result.starts_with('-')
        };
        self.named("openat").any(of)
    }

    fn maps(&self, path: &Path) -> bool {
        self.named("mmap").any(|call| call.arguments.contains(&format!("<{}>", text(path))))
    }

    fn expect_clean_end(&self) {
        assert!(self.ends.len() > 3, "a load has threads: {:?}", self.ends);
        assert!(self.ends.iter().all(|end| end == "+++ exited with 0 +++"), "{:?}", self.ends);
    }
}

#[test]
fn a_direct_load_by_io_uring_reads_only_the_header_by_descriptor() {
    if !may_run(&["strace"]) {
        return;
    }
    let _lock = UringLock::shared();
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    let trace = Trace::of_load(&model, folder.path(), &["-lm", "dio", "--engine", "uring"]);
    let rings: Vec<_> = trace.named("io_uring_setup").collect();
    assert_eq!(rings.len(), 1, "{:?}", rings.iter().map(|ring| &ring.result).collect::<Vec<_>>());
    assert!(!rings[0].result.starts_with('-'), "{}", rings[0].result);
    assert_eq!(trace.registrations("IORING_REGISTER_BUFFERS"), [Some(0)]);
    assert_eq!(trace.registrations("IORING_REGISTER_FILES"), [Some(0)]);
    assert_eq!(trace.registrations("IORING_UNREGISTER_BUFFERS"), [Some(0)]);
    assert!(trace.opens_directly(&model.path));
    let bytes = trace.bytes_read(&model.path);
    assert!((1..=HEADER_BYTES_MAX).contains(&bytes), "{bytes} bytes were read by descriptor");
    assert!(!trace.maps(&model.path), "the model was mapped");
    trace.expect_clean_end();
}

#[test]
fn a_direct_load_by_threads_reads_every_byte_by_preadv2_and_sets_up_no_ring() {
    if !may_run(&["strace"]) {
        return;
    }
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    let trace = Trace::of_load(&model, folder.path(), &["-lm", "dio", "--engine", "threads"]);
    assert_eq!(trace.named("io_uring_setup").count(), 0);
    assert!(trace.opens_directly(&model.path));
    let file_bytes = std::fs::metadata(&model.path).unwrap().len();
    let by_vector = trace.reads_of(&model.path).filter(|call| call.name == "preadv2");
    let by_vector: Vec<_> = by_vector.collect();
    assert!(by_vector.iter().all(|call| call.count().is_some()), "a read was refused");
    let bytes: u64 = by_vector.iter().filter_map(|call| call.count()).sum();
    let header_bytes = file_bytes - bytes;
    assert!(header_bytes < HEADER_BYTES_MAX, "{bytes} of {file_bytes} bytes were read");
    // And not twice: what else is read is the header.
    assert!(trace.bytes_read(&model.path) - bytes <= HEADER_BYTES_MAX);
    assert!(!trace.maps(&model.path), "the model was mapped");
    trace.expect_clean_end();
}

#[test]
fn a_mapped_load_reads_only_the_header_and_asks_for_no_ring() {
    if !may_run(&["strace"]) {
        return;
    }
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    let trace = Trace::of_load(&model, folder.path(), &["-lm", "mmap", "--gpu-layers", "0"]);
    assert!(trace.maps(&model.path), "the model was not mapped");
    assert!(trace.bytes_read(&model.path) <= HEADER_BYTES_MAX);
    trace.expect_clean_end();
}

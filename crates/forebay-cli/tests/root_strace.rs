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
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
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

    /// The argument of this number, counted from 0, of a call whose arguments hold no commas.
    fn argument(&self, index: usize) -> &str {
        self.arguments.trim_end().trim_end_matches(')').split(", ").nth(index).unwrap()
    }

    /// The range of the file that a `preadv2` brought: its last arguments are offset and flags.
    fn range(&self) -> Range<u64> {
        let start: u64 = self.arguments.rsplit(", ").nth(1).unwrap().parse().unwrap();
        start..start + self.count().unwrap()
    }

    /// The addresses that an `madvise` or `mlock2` is about.
    fn addresses(&self) -> Range<u64> {
        let start = hex(self.argument(0));
        start..start + self.argument(1).parse::<u64>().unwrap()
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// A load as strace saw it.
struct Trace {
    report: Value,
    calls: Vec<Call>,
    /// How each thread ended.
    ends: Vec<String>,
}

impl Trace {
    fn of_load(model: &Model, folder: &Path, flags: &[&str]) -> Self {
        let log = folder.join("trace");
        let (path, command) = (text(&model.path), env!("CARGO_BIN_EXE_forebay"));
        let traced = "trace=openat,read,readv,pread64,preadv,preadv2,sendfile,splice,mmap,\
                      io_uring_setup,io_uring_register,madvise,mlock,mlock2";
        let mut arguments = vec!["-f", "-y", "-e", traced, "-s", "0", "-o", text(&log), command];
        arguments.extend(["load", path, "--json", "--digest", "--device", "host"]);
        arguments.extend(flags);
        let report = run_tool("strace", &arguments);
        let report = serde_json::from_str(&report).unwrap();
        model.expect_in(&report, &format!("{flags:?}"));
        expect_steps(&report, &[], &format!("{flags:?}"));
        Self::parse(&std::fs::read_to_string(log).unwrap(), report)
    }

    /// Joins the two halves of calls that others came between.
    fn parse(text: &str, report: Value) -> Self {
        let mut trace = Self { report, calls: Vec::new(), ends: Vec::new() };
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
        self.mapping(path).is_some()
    }

    /// The call that maps the file for the load: an earlier one only tries whether it can be.
    fn mapping(&self, path: &Path) -> Option<&Call> {
        let file = format!("<{}>", text(path));
        self.calls.iter().rfind(|call| call.name == "mmap" && call.arguments.contains(&file))
    }

    /// Calls of `madvise` with this advice, inside the mapping of the file.
    fn advised(&self, path: &Path, advice: &str) -> Vec<&Call> {
        let Some(mapping) = self.mapping(path) else { return Vec::new() };
        let start = hex(&mapping.result);
        let end = start + mapping.argument(1).parse::<u64>().unwrap().next_multiple_of(4096);
        let inside = |range: Range<u64>| start <= range.start && range.end <= end;
        let of = |call: &&Call| call.argument(2) == advice && inside(call.addresses());
        self.named("madvise").filter(of).collect()
    }

    /// What `preadv2` brought of the file, in file order; none of them may have failed.
    fn brought(&self, path: &Path) -> Vec<Range<u64>> {
        let by_vector = self.reads_of(path).filter(|call| call.name == "preadv2");
        let mut ranges: Vec<_> = by_vector.map(Call::range).collect();
        ranges.sort_by_key(|range| range.start);
        ranges
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

/// The bytes that live where they were read to, and those that were copied there.
fn placed(trace: &Trace) -> [u64; 2] {
    [&trace.report["memory"]["in_place_bytes"], &trace.report["upload"]["bytes"]]
        .map(|bytes| bytes.as_u64().unwrap())
}

fn assert_none_twice(brought: &[Range<u64>]) {
    for pair in brought.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{:?} and {:?}", pair[0], pair[1]);
    }
}

#[test]
fn memory_of_the_cpu_is_read_straight_into_place_and_each_block_once() {
    if !may_run(&["strace"]) {
        return;
    }
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    let file_bytes = std::fs::metadata(&model.path).unwrap().len();
    let flags = ["-lm", "dio", "--gpu-layers", "0", "--engine", "threads"];
    let trace = Trace::of_load(&model, folder.path(), &flags);
    let model_bytes = trace.report["model"]["bytes"].as_u64().unwrap();
    assert_eq!(placed(&trace), [model_bytes, 0]);
    let brought = trace.brought(&model.path);
    assert_none_twice(&brought);
    let bytes: u64 = brought.iter().map(|range| range.end - range.start).sum();
    assert!((model_bytes..=file_bytes).contains(&bytes), "{bytes} of {model_bytes}");
    assert!(!trace.maps(&model.path), "the model was mapped");
    trace.expect_clean_end();
    // Half of the layers elsewhere: what heads and tails share with them is read once, and copied.
    let flags = ["-lm", "dio", "--gpu-layers", "4", "--engine", "threads"];
    let trace = Trace::of_load(&model, folder.path(), &flags);
    let brought = trace.brought(&model.path);
    assert_none_twice(&brought);
    let backends = trace.report["backends"].as_array().unwrap();
    let on_cpu = backends.iter().find(|backend| backend["backend"] == "cpu").unwrap();
    let on_cpu = on_cpu["bytes"].as_u64().unwrap();
    let [in_place, copied] = placed(&trace);
    assert_eq!(in_place + copied, model_bytes);
    assert!(in_place <= on_cpu && in_place + 4 * 4096 >= on_cpu, "{in_place} of {on_cpu}");
    trace.expect_clean_end();
}

#[test]
fn a_prefetch_populates_the_cpus_pages_in_steps_and_no_others() {
    const STEP_BYTES_MAX: u64 = 2 << 20;
    if !may_run(&["strace"]) {
        return;
    }
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    for layers in ["0", "4"] {
        let flags = ["-lm", "device=dio,cpu=mmap", "--gpu-layers", layers, "--prefetch", "on"];
        let trace = Trace::of_load(&model, folder.path(), &flags);
        let mapping = trace.mapping(&model.path).unwrap();
        assert!(!mapping.arguments.contains("MAP_POPULATE"), "{}", mapping.arguments);
        let populated = trace.advised(&model.path, "MADV_POPULATE_READ");
        let mut ranges: Vec<_> = populated.iter().map(|call| call.addresses()).collect();
        assert!(populated.iter().all(|call| call.count() == Some(0)));
        ranges.sort_by_key(|range| range.start);
        assert_none_twice(&ranges);
        let longest = ranges.iter().map(|range| range.end - range.start).max().unwrap();
        assert!(longest <= STEP_BYTES_MAX, "one call populates {longest} bytes");
        let bytes: u64 =
            ranges.iter().map(|range| (range.end - range.start).next_multiple_of(4096)).sum();
        let prefetched = trace.report["memory"]["prefetched_bytes"].as_u64().unwrap();
        assert_eq!(bytes, prefetched.next_multiple_of(4096));
        let backends = trace.report["backends"].as_array().unwrap();
        let on_cpu = backends.iter().find(|backend| backend["backend"] == "cpu").unwrap();
        let on_cpu = on_cpu["bytes"].as_u64().unwrap();
        // Two stretches at most: what is before the offloaded layers, and what is behind.
        assert!((on_cpu..=on_cpu + 4 * 4096).contains(&bytes), "{bytes} for {on_cpu}");
        // Advice about readahead brings nothing; this does.
        let asked = trace.advised(&model.path, "MADV_WILLNEED");
        let mut asked: Vec<_> = asked.iter().map(|call| call.addresses()).collect();
        asked.sort_by_key(|range| range.start);
        for range in &asked {
            let inside = |it: &&Range<u64>| it.start <= range.start && range.end <= it.end;
            assert!(
                ranges.iter().any(|it| inside(&it)),
                "{range:x?} is asked for and not populated"
            );
        }
        trace.expect_clean_end();
    }
}

/// Locked first, which is where the limits speak, and on fault: nothing is read by that.
#[test]
fn locks_come_before_pages_and_fault_none_in() {
    if !may_run(&["strace"]) {
        return;
    }
    let folder = support::scratch();
    let model = Model::gguf(folder.path());
    let flags = ["-lm", "mlock-strict", "--gpu-layers", "0"];
    let trace = Trace::of_load(&model, folder.path(), &flags);
    assert_eq!(trace.named("mlock").count(), 0, "a plain mlock can't be cancelled");
    let locks: Vec<_> = trace.named("mlock2").collect();
    assert!(!locks.is_empty());
    assert!(locks.iter().all(|call| call.argument(2) == "MLOCK_ONFAULT"));
    let bytes: u64 = locks.iter().map(|call| call.addresses()).map(|at| at.end - at.start).sum();
    let locked = trace.report["memory"]["locked_bytes"].as_u64().unwrap();
    assert_eq!(bytes, locked.next_multiple_of(4096));
    let position = |name: &str, advice: &str| {
        let is_it = |call: &Call| call.name == name && call.arguments.contains(advice);
        trace.calls.iter().position(is_it).unwrap()
    };
    let last_lock = trace.calls.iter().rposition(|call| call.name == "mlock2").unwrap();
    assert!(last_lock < position("madvise", "MADV_POPULATE_READ"));
    trace.expect_clean_end();
}

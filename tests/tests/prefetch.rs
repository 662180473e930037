//! The prefetch of mapped ranges by itself: in the order it was given, told without a gap, modest
//! while others read, and exact about where a file ends.

use crossbeam_channel::{Receiver, Sender, bounded};
use forebay_io::{Cancel, FailureKind, MappedRange, ModelFile, PrefetchJob, PrefetchOutcome};
use forebay_mem::FileMapping;
use forebay_tests::Scratch;
use forebay_tests::residence::{cached_bytes, forget};
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What the prefetch brings in one go, at most.
const STEP_BYTES: u64 = 2 * MIB;

/// Two cold files, mapped.
struct Mapped {
    scratch: Scratch,
    files: Arc<[ModelFile]>,
    mappings: Vec<Option<Arc<FileMapping>>>,
}

impl Mapped {
    /// `None`, and said so, where no file is ever cold.
    fn new(bytes: &[usize]) -> Option<Self> {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), bytes);
        let files = scratch.open();
        let map = |file: &ModelFile| {
            Some(Arc::new(
                FileMapping::new(file.buffered(), file.bytes(), forebay_mem::Writes::Refused)
                    .unwrap(),
            ))
        };
        let mappings = files.iter().map(map).collect();
        let mapped = Self { scratch, files, mappings };
        let is_cold = mapped.paths().iter().all(|path| forget(path));
        if !is_cold {
            eprintln!("SKIPPED: the filesystem of the target folder keeps its files in memory");
        }
        is_cold.then_some(mapped)
    }

    fn paths(&self) -> Vec<PathBuf> {
        (0..self.files.len()).map(|file| self.scratch.path(file)).collect()
    }

    fn job(
        &self,
        ranges: &[MappedRange],
        reads_end: Receiver<()>,
        on_resident: impl Fn(u64) + Send + Sync + 'static,
    ) -> PrefetchJob {
        PrefetchJob {
            files: Arc::clone(&self.files),
            mappings: self.mappings.clone(),
            ranges: ranges.to_vec(),
            reads_end,
            cancel: Cancel::default(),
            on_resident: Box::new(on_resident),
            trace: None,
        }
    }
}

/// What a job came to, which must come to something.
fn in_time(job: PrefetchJob) -> PrefetchOutcome {
    let (sender, outcome) = bounded(1);
    std::thread::spawn(move || sender.send(job.run()));
    outcome.recv_timeout(Duration::from_secs(60)).expect("the prefetch does not end")
}

/// Reads that go on as long as the sender lives.
fn reads_go_on() -> (Sender<()>, Receiver<()>) {
    bounded(0)
}

fn range(file: usize, start: u64, end: u64) -> MappedRange {
    MappedRange { file, range: start..end }
}

fn total(ranges: &[MappedRange]) -> u64 {
    ranges.iter().map(|it| it.range.end - it.range.start).sum()
}

/// How many bytes of the ranges are in the page cache, and whether the first `position` are.
fn cached(paths: &[PathBuf], ranges: &[MappedRange], position: u64) -> (u64, bool) {
    let (mut all, mut missing, mut at) = (0, 0, 0);
    for MappedRange { file, range } in ranges {
        all += cached_bytes(&paths[*file], range.clone());
        let bytes = (range.end - range.start).min(position.saturating_sub(at));
        missing += bytes - cached_bytes(&paths[*file], range.start..range.start + bytes);
        at += range.end - range.start;
    }
    (all, missing == 0)
}

/// Positions as they were told; what was told must be so at that moment.
type Told = Arc<Mutex<Vec<u64>>>;

fn watch(mapped: &Mapped, ranges: &[MappedRange]) -> (Told, impl Fn(u64) + Send + Sync + 'static) {
    let told = Told::default();
    let (paths, ranges, seen) = (mapped.paths(), ranges.to_vec(), Arc::clone(&told));
    let on_resident = move |position| {
        let (_, is_there) = cached(&paths, &ranges, position);
        assert!(is_there, "told of {position} bytes, and some are not there");
        seen.lock().unwrap().push(position);
    };
    (told, on_resident)
}

fn assert_whole(outcome: &PrefetchOutcome, told: &Told, ranges: &[MappedRange]) {
    assert!(outcome.failure.is_none() && outcome.steps.is_empty(), "{outcome:?}");
    let all = total(ranges);
    assert_eq!((outcome.populated_bytes, outcome.resident_bytes), (all, all));
    let told = told.lock().unwrap();
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "{told:?}");
    assert_eq!(told.last(), Some(&all));
}

#[test]
fn ranges_of_several_files_come_in_the_order_they_were_given_in() {
    let end = 24 * MIB + 5;
    let ranges = [
        range(1, 8 * MIB, 12 * MIB),
        range(0, 20 * MIB, end),
        range(1, 4096, 8192),
        range(0, 0, 9 * MIB),
    ];
    for busy in [false, true] {
        let Some(mapped) = Mapped::new(&[(24 << 20) + 5, 12 << 20]) else { return };
        let (told, on_resident) = watch(&mapped, &ranges);
        let (reads, reads_end) = reads_go_on();
        let reads = busy.then_some(reads);
        // A job that waits for the end of the reads would wait for ever here.
        let outcome = in_time(mapped.job(&ranges, reads_end, on_resident));
        drop(reads);
        assert_whole(&outcome, &told, &ranges);
    }
}

/// While others need the disk, one step is on its way at a time, and no readahead beside it.
#[test]
fn while_others_read_one_step_is_on_its_way() {
    let Some(mapped) = Mapped::new(&[48 << 20]) else { return };
    let ranges = [range(0, 4 * MIB, 40 * MIB)];
    let (paths, most) = (mapped.paths(), Arc::new(Mutex::new(0)));
    let seen = Arc::clone(&most);
    let file = [range(0, 0, 48 * MIB)];
    let on_resident = move |position| {
        let (all, _) = cached(&paths, &file, 0);
        let mut most = seen.lock().unwrap();
        *most = (*most).max(all - position);
    };
    let (reads, reads_end) = reads_go_on();
    let outcome = in_time(mapped.job(&ranges, reads_end, on_resident));
    drop(reads);
    assert_eq!(outcome.populated_bytes, 36 * MIB);
    let most = *most.lock().unwrap();
    assert!(most <= STEP_BYTES, "{most} bytes beside those that were told");
}

/// Others' reads end in the middle: from then on the rest comes as if they had never been.
#[test]
fn the_end_of_the_reads_is_noticed_on_the_way() {
    let Some(mapped) = Mapped::new(&[40 << 20]) else { return };
    let ranges = [range(0, 0, 40 * MIB)];
    let (told, check) = watch(&mapped, &ranges);
    let (reads, reads_end) = reads_go_on();
    let reads = Mutex::new(Some(reads));
    let on_resident = move |position| {
        check(position);
        if position >= 8 * MIB {
            drop(reads.lock().unwrap().take());
        }
    };
    let outcome = in_time(mapped.job(&ranges, reads_end, on_resident));
    assert_whole(&outcome, &told, &ranges);
}

#[test]
fn a_cancelled_prefetch_stops_and_says_so() {
    let Some(mapped) = Mapped::new(&[96 << 20]) else { return };
    let ranges = [range(0, 0, 96 * MIB)];
    for busy in [false, true] {
        let (reads, reads_end) = reads_go_on();
        let reads = busy.then_some(reads);
        let cancel = Cancel::default();
        let heard = cancel.clone();
        let mut job = mapped.job(&ranges, reads_end, move |_| heard.cancel());
        job.cancel = cancel;
        let outcome = in_time(job);
        drop(reads);
        let failure = outcome.failure.as_ref().map(|failure| failure.kind.clone());
        assert_eq!(failure, Some(FailureKind::Cancelled), "{outcome:?}");
        // What the threads had begun by then; how far they come while the one that cancels is not
        // running is the scheduler's business.
        assert!(outcome.populated_bytes < 96 * MIB, "{outcome:?}");
    }
}

#[test]
fn a_file_that_was_cut_short_ends_it_where_the_file_ends() {
    /// What is copied out at a time to find out what is wrong.
    const TOUCH_BYTES: u64 = 128 << 10;
    for kept in [0, 1, 4096, 3 * MIB, 7 * MIB + 12_345] {
        for busy in [false, true] {
            let (reads, reads_end) = reads_go_on();
            let reads = busy.then_some(reads);
            let Some(mapped) = Mapped::new(&[4 << 20, 12 << 20]) else { return };
            let ranges = [range(0, 0, 4 * MIB), range(1, 0, 12 * MIB)];
            let file = OpenOptions::new().write(true).open(mapped.scratch.path(1)).unwrap();
            file.set_len(kept).unwrap();
            let told = Told::default();
            let seen = Arc::clone(&told);
            let on_resident = move |position| seen.lock().unwrap().push(position);
            let outcome = in_time(mapped.job(&ranges, reads_end, on_resident));
            drop(reads);
            let failure = outcome.failure.expect("there are no such bytes");
            assert_eq!((failure.kind, failure.file), (FailureKind::EndOfFile, Some(1)));
            let what = format!("{kept}: the failure is at {}", failure.offset);
            // Several threads are at it; each that finds the end says where it looked.
            assert!(failure.offset + TOUCH_BYTES > kept, "{what}");
            assert!(failure.offset < 12 * MIB, "{what}");
            let last = told.lock().unwrap().last().copied().unwrap_or(0);
            assert!(last <= 4 * MIB + kept.next_multiple_of(4096), "{what}, told of {last}");
        }
    }
}

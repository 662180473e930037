//! Reads that are asked for while others run, on both performers: none is lost, doubled or
//! overtaken, and none of the slots is.

use crossbeam_channel::{Receiver, bounded, unbounded};
use forebay_io::{
    Access, Cancel, Errno, FailureKind, Fallback, Fault, Feed, Filled, ModelFile, Op, Performer,
    ReadJob, ReadOutcome, ReadSpec, Schedule, SlotReturn, slot_channel, uring_support,
};
use forebay_mem::{Alignment, Slab};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const SLOT_BYTES: usize = 16 << 10;
const FILE_BYTES: usize = (1 << 20) + 77;
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// Those that this machine has.
fn performers() -> Vec<Performer> {
    let mut performers = vec![Performer::Threads];
    if uring_support().is_ok() {
        performers.push(Performer::Uring);
        performers.extend(cfg!(feature = "tokio-uring").then_some(Performer::TokioUring));
    }
    performers
}

/// A file of numbers, none of which occurs twice.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
    contents: Vec<u8>,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("file");
        let numbers = (0..u64::MAX).map(|number| number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let bytes = numbers.flat_map(u64::to_le_bytes);
        let contents: Vec<u8> = bytes.take(FILE_BYTES).collect();
        std::fs::write(&path, &contents).unwrap();
        Self { _folder: folder, path, contents }
    }

    /// The page with that number, and some behind it.
    fn read(&self, page: usize, pages: usize, access: Access) -> ReadSpec {
        let (offset, bytes) = (page * 4096, pages * 4096);
        let need_bytes = u32::try_from(bytes.min(FILE_BYTES - offset)).unwrap();
        let bytes =
            if access == Access::Direct { u32::try_from(bytes).unwrap() } else { need_bytes };
        ReadSpec { file: 0, offset: offset as u64, bytes, need_bytes, access }
    }

    fn pages() -> usize {
        FILE_BYTES.div_ceil(4096)
    }
}

/// A job that runs.
struct Fed {
    feed: Feed,
    cancel: Cancel,
    slab: Arc<Slab>,
    full: Receiver<Filled>,
    free: SlotReturn,
    thread: JoinHandle<ReadOutcome>,
}

struct With {
    slots: usize,
    queue_depth: usize,
    fallback: Fallback,
    fault: Option<Box<dyn Fault>>,
}

impl Default for With {
    fn default() -> Self {
        Self { slots: 6, queue_depth: 4, fallback: Fallback::Allowed, fault: None }
    }
}

impl Fed {
    fn start(file: &File, performer: Performer, feed: Feed, with: With) -> Self {
        let (slab, tokens) = Slab::new(SLOT_BYTES, with.slots).unwrap();
        let (free_sender, free) = slot_channel(with.slots);
        let (full_sender, full) = bounded(with.slots);
        tokens.into_iter().for_each(|token| free_sender.send(token).unwrap());
        let cancel = Cancel::default();
        let files: Arc<[ModelFile]> = Arc::new([ModelFile::open(&file.path).unwrap()]);
        let alignment = Alignment::FALLBACK;
        let schedule =
            Schedule::fed(feed.clone(), &[alignment], with.slots, performer, with.fallback);
        let job = ReadJob {
            files,
            mappings: vec![None],
            schedule,
            places: Vec::new(),
            slab: Arc::clone(&slab),
            free,
            full: full_sender,
            cancel: cancel.clone(),
            queue_depth: with.queue_depth,
            buffered_by_workers: false,
            reclaim: Vec::new(),
            trace: None,
            fault: with.fault,
        };
        let thread = std::thread::spawn(move || job.run());
        Self { feed, cancel, slab, full, free: free_sender, thread }
    }

    /// The next read that is done, right or not at all; its slot goes back.
    fn take(&self, file: &File, specs: &BTreeMap<usize, ReadSpec>) -> usize {
        let Filled { read, slot } = self.full.recv_timeout(LONG).expect("a read is done");
        let slot = slot.drain();
        let spec = specs[&read];
        let start = usize::try_from(spec.offset).unwrap();
        let needed = spec.need_bytes as usize;
        assert!(slot.bytes().len() >= needed);
        assert!(slot.bytes()[..needed] == file.contents[start..start + needed], "read {read}");
        // The job may be over by now.
        let _ = self.free.send(slot.release());
        read
    }

    fn end(self) -> ReadOutcome {
        self.feed.close();
        self.join()
    }

    fn join(self) -> ReadOutcome {
        let Self { slab, full, thread, .. } = self;
        let outcome = joined(thread);
        assert!(full.try_recv().is_err(), "a read that nobody asked for");
        let census = slab.census();
        assert_eq!((census.filling, census.draining), (0, 0), "{census:?}");
        outcome
    }

    /// That as many reads can be done at a time as there are slots.
    fn has_all_slots(&self, file: &File, slots: usize) {
        let first = 1_000_000;
        let specs = (0..slots).map(|index| (first + index, file.read(index, 1, Access::Buffered)));
        self.feed.push(0, specs);
        let mut held = Vec::new();
        for _ in 0..slots {
            held.push(self.full.recv_timeout(LONG).expect("a slot for each"));
        }
        assert_eq!(self.slab.census().full, slots);
        let slots = held.into_iter().map(|filled| filled.slot.drain().release());
        slots.for_each(|slot| self.free.send(slot).unwrap());
    }
}

/// It ends, and not only because somebody gives up.
fn joined(thread: JoinHandle<ReadOutcome>) -> ReadOutcome {
    let (sender, done) = bounded(1);
    std::thread::spawn(move || drop(sender.send(thread.join())));
    done.recv_timeout(LONG).expect("the job ends").unwrap()
}

/// What the job is told of each completion.
struct Tamper<F>(F);

impl<F: FnMut(&Op, Result<u32, Errno>) -> Result<u32, Errno> + Send> Fault for Tamper<F> {
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        buffer: &mut [u8],
    ) -> Result<u32, Errno> {
        let answer = (self.0)(op, result);
        if answer != result {
            let kept = answer.unwrap_or(0) as usize;
            buffer[kept..].iter_mut().for_each(|byte| *byte = !*byte);
        }
        answer
    }
}

fn with_fault(
    fault: impl FnMut(&Op, Result<u32, Errno>) -> Result<u32, Errno> + Send + 'static,
) -> With {
    With { fault: Some(Box::new(Tamper(fault))), ..With::default() }
}

fn numbered(reads: impl IntoIterator<Item = ReadSpec>) -> BTreeMap<usize, ReadSpec> {
    reads.into_iter().enumerate().collect()
}

#[test]
fn bursts_with_pauses_between_them_are_all_read() {
    let file = File::new();
    for performer in performers() {
        for access in [Access::Direct, Access::Buffered, Access::DontCache] {
            let fed = Fed::start(&file, performer, Feed::default(), With::default());
            for (burst, pause_ms) in [(1, 0), (40, 30), (3, 60), (1, 0), (100, 1)] {
                let reads = (0..burst).map(|read| file.read(read * 7 % 250, 1 + read % 4, access));
                let specs = numbered(reads);
                fed.feed.push(0, specs.clone());
                let done: BTreeSet<usize> = (0..burst).map(|_| fed.take(&file, &specs)).collect();
                assert_eq!(done.len(), burst, "{performer:?} {access:?}");
                std::thread::sleep(Duration::from_millis(pause_ms));
            }
            assert!(fed.feed.idle() > Duration::ZERO);
            let outcome = fed.end();
            assert!(outcome.schedule.failure().is_none() && outcome.schedule.is_done());
            let wanted = outcome.schedule.received(0).total();
            assert!(wanted > 0);
        }
    }
}

/// One read is put off until one that was asked for later is there: it must not have to wait.
#[test]
fn a_read_asked_for_later_does_not_wait_for_one_that_stalls() {
    let file = File::new();
    for performer in performers() {
        let is_there = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_there);
        let (stalls, stalled) = unbounded();
        let with = with_fault(move |op, result| {
            if op.read == 0 && !seen.load(Ordering::Acquire) {
                let _ = stalls.send(());
                std::thread::sleep(Duration::from_millis(1));
                return Err(Errno::EAGAIN);
            }
            result
        });
        let fed = Fed::start(&file, performer, Feed::default(), with);
        let specs = numbered((0..9).map(|page| file.read(page, 1, Access::Buffered)));
        fed.feed.push(9, [(0, specs[&0])]);
        stalled.recv_timeout(LONG).unwrap();
        for read in 1..9 {
            fed.feed.push(0, [(read, specs[&read])]);
            assert_eq!(fed.take(&file, &specs), read, "{performer:?}");
        }
        is_there.store(true, Ordering::Release);
        assert_eq!(fed.take(&file, &specs), 0);
        assert!(fed.end().schedule.failure().is_none());
    }
}

#[test]
fn the_urgent_go_first_and_equals_in_turn() {
    let file = File::new();
    for performer in performers() {
        let feed = Feed::default();
        let specs = numbered((0..60).map(|page| file.read(page, 1, Access::Buffered)));
        let priority = |read: usize| [3, -1, 0, 7, 0, i32::MIN, i32::MAX][read % 7];
        for (&read, &spec) in &specs {
            feed.push(priority(read), [(read, spec)]);
        }
        // One at a time, so that the order in which they are done is that in which they began.
        let with = With { slots: 1, queue_depth: 1, ..With::default() };
        let fed = Fed::start(&file, performer, feed, with);
        let done: Vec<usize> = (0..60).map(|_| fed.take(&file, &specs)).collect();
        let mut expected: Vec<usize> = (0..60).collect();
        expected.sort_by_key(|&read| std::cmp::Reverse(priority(read)));
        assert_eq!(done, expected, "{performer:?}");
        fed.end();
    }
}

#[test]
fn what_is_taken_back_is_not_read_and_costs_no_slot() {
    let file = File::new();
    for performer in performers() {
        let with = With { slots: 5, queue_depth: 5, ..With::default() };
        let fed = Fed::start(&file, performer, Feed::default(), with);
        let (mut number, mut all_taken) = (0, 0);
        for round in 0..3000_usize {
            let count = 1 + round % 3;
            let reads = (0..count).map(|read| file.read((round + read) % 200, 1, Access::Buffered));
            let specs: BTreeMap<usize, ReadSpec> = (number..).zip(reads).collect();
            let first = number;
            number += count;
            fed.feed.push(0, specs.clone());
            if round % 5 > 0 {
                std::thread::yield_now();
            }
            // Now and then nothing is taken back: the reader may be late for all the others.
            let is_taken = |read| read >= first && round % 50 > 0;
            let taken: BTreeSet<usize> = fed.feed.take_back(is_taken).into_iter().collect();
            all_taken += taken.len();
            let begun: BTreeSet<usize> =
                (0..count - taken.len()).map(|_| fed.take(&file, &specs)).collect();
            let expected: BTreeSet<usize> =
                specs.into_keys().filter(|read| !taken.contains(read)).collect();
            assert_eq!(begun, expected, "{performer:?}");
        }
        assert!((1..number).contains(&all_taken), "{all_taken} of {number}");
        fed.has_all_slots(&file, 5);
        let outcome = fed.end();
        assert!(outcome.schedule.failure().is_none());
        assert_eq!(outcome.schedule.op_counts().0, (number - all_taken + 5) as u64);
    }
}

#[test]
fn closing_ends_the_job_once_all_is_read() {
    let file = File::new();
    for performer in performers() {
        for reads in [0, 1, 50] {
            let feed = Feed::default();
            let specs = numbered((0..reads).map(|page| file.read(page, 2, Access::Direct)));
            feed.push(0, specs.clone());
            feed.close();
            let fed = Fed::start(&file, performer, feed, With::default());
            for _ in 0..reads {
                fed.take(&file, &specs);
            }
            let outcome = fed.join();
            assert!(outcome.schedule.is_done() && outcome.schedule.failure().is_none());
        }
        // One that sleeps is woken.
        let fed = Fed::start(&file, performer, Feed::default(), With::default());
        std::thread::sleep(Duration::from_millis(5));
        assert!(fed.end().schedule.is_done());
    }
}

#[test]
fn cancelling_ends_the_job_with_reads_that_are_not_begun() {
    let file = File::new();
    for performer in performers() {
        for reads in [0, 3, 200] {
            let fed = Fed::start(&file, performer, Feed::default(), With::default());
            let specs = numbered((0..reads).map(|page| file.read(page, 1, Access::Buffered)));
            fed.feed.push(0, specs);
            fed.cancel.cancel();
            let Fed { slab, full, thread, .. } = fed;
            let outcome = joined(thread);
            let failure = outcome.schedule.failure().unwrap();
            assert_eq!(failure.kind, FailureKind::Cancelled, "{performer:?}");
            assert!(full.len() <= 6);
            drop(full);
            assert_eq!((slab.census().filling, slab.census().draining), (0, 0));
        }
    }
}

#[test]
fn one_read_that_fails_ends_the_job_and_is_named() {
    let file = File::new();
    for performer in performers() {
        let with = with_fault(|op, result| if op.read == 17 { Err(Errno::EIO) } else { result });
        let fed = Fed::start(&file, performer, Feed::default(), with);
        let specs = numbered((0..40).map(|page| file.read(page, 1, Access::Buffered)));
        fed.feed.push(0, specs.clone());
        let mut done = 0;
        while let Ok(Filled { read, slot }) = fed.full.recv_timeout(LONG) {
            assert_ne!(read, 17);
            done += 1;
            // The job may be over.
            let _ = fed.free.send(slot.drain().release());
        }
        assert!(done < 40);
        let outcome = joined(fed.thread);
        let failure = outcome.schedule.failure().unwrap();
        assert_eq!(
            (failure.kind.clone(), failure.read),
            (FailureKind::Errno(Errno::EIO), Some(17))
        );
        assert_eq!((failure.file, failure.offset), (Some(0), 17 * 4096));
    }
}

#[test]
fn a_reader_whose_receiver_or_slots_are_gone_ends() {
    let file = File::new();
    for performer in performers() {
        for is_receiver in [true, false] {
            let fed = Fed::start(&file, performer, Feed::default(), With::default());
            let specs = numbered((0..40).map(|page| file.read(page, 1, Access::Buffered)));
            let Fed { feed, full, free, thread, .. } = fed;
            let mut kept = None;
            if is_receiver {
                drop(full);
            } else {
                drop(free);
                kept = Some(full);
            }
            feed.push(0, specs);
            let outcome = joined(thread);
            assert_eq!(outcome.schedule.failure().unwrap().kind, FailureKind::ReceiverGone);
            drop(kept);
        }
    }
}

/// The job sleeps between bursts; what was refused in one binds the next, and no byte is lost.
#[test]
fn what_is_refused_is_stepped_down_between_bursts_too() {
    let file = File::new();
    for performer in performers() {
        for (errno, of_performer) in [(Errno::EINVAL, false), (Errno::ENOSYS, true)] {
            let mut completions = 0_u32;
            let with = with_fault(move |op, result| {
                completions += 1;
                match result {
                    _ if op.access == Access::Direct && completions > 5 && !of_performer => {
                        Err(errno)
                    }
                    _ if completions == 6 && of_performer => Err(errno),
                    Ok(bytes) if u32::is_multiple_of(completions, 3) => Ok(bytes.div_ceil(3)),
                    result => result,
                }
            });
            let fed = Fed::start(&file, performer, Feed::default(), with);
            for _ in 0..12 {
                let pages = [0, 3, File::pages() - 2, 9, 31];
                let specs = numbered(pages.map(|page| file.read(page, 2, Access::Direct)));
                fed.feed.push(0, specs.clone());
                let done: BTreeSet<usize> = (0..5).map(|_| fed.take(&file, &specs)).collect();
                assert_eq!(done.len(), 5, "{performer:?} {errno}");
                std::thread::sleep(Duration::from_millis(2));
            }
            fed.has_all_slots(&file, 6);
            let outcome = fed.end();
            assert!(outcome.schedule.failure().is_none(), "{performer:?} {errno}");
            assert!(!outcome.schedule.steps().is_empty(), "{performer:?} {errno}");
            if of_performer {
                assert_eq!(outcome.schedule.performer(), Performer::Threads);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { priority: i32, reads: Vec<(usize, usize)> },
    TakeBack { every: usize },
    Take { count: usize },
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let read = (0..File::pages() - 4, 1..=4_usize);
    prop_oneof![
        (-2..3_i32, prop::collection::vec(read, 1..12))
            .prop_map(|(priority, reads)| Step::Push { priority, reads }),
        (1..5_usize).prop_map(|every| Step::TakeBack { every }),
        (1..20_usize).prop_map(|count| Step::Take { count }),
        Just(Step::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Whatever is asked for and taken back: what was not taken back is read, once and right.
    #[test]
    fn what_is_asked_for_is_read_once_or_taken_back(
        steps in prop::collection::vec(step(), 1..40),
        slots in 1..7_usize,
        queue_depth in 1..6_usize,
        access in prop::sample::select(vec![Access::Direct, Access::Buffered]),
        shortens in any::<bool>(),
    ) {
        let file = File::new();
        for performer in performers() {
            let fault = move |op: &Op, result: Result<u32, Errno>| match result {
                Ok(bytes) if shortens && op.read.is_multiple_of(3) && op.slot_offset == 0 => {
                    Ok(bytes.div_ceil(2))
                }
                result => result,
            };
            let with = With { slots, queue_depth, ..with_fault(fault) };
            let fed = Fed::start(&file, performer, Feed::default(), with);
            let mut specs = BTreeMap::new();
            let mut missing = BTreeSet::new();
            for step in &steps {
                match step {
                    Step::Push { priority, reads } => {
                        let first = specs.len();
                        let asked = reads.iter().map(|&(page, pages)| file.read(page, pages, access));
                        let asked: Vec<_> = (first..).zip(asked).collect();
                        specs.extend(asked.iter().copied());
                        missing.extend(asked.iter().map(|(read, _)| *read));
                        fed.feed.push(*priority, asked);
                    }
                    Step::TakeBack { every } => {
                        for read in fed.feed.take_back(|read| read % every == 0) {
                            prop_assert!(read % every == 0 && missing.remove(&read), "{}", read);
                        }
                    }
                    Step::Take { count } => {
                        for _ in 0..*count.min(&missing.len()) {
                            let read = fed.take(&file, &specs);
                            prop_assert!(missing.remove(&read), "read {} twice", read);
                        }
                    }
                    Step::Pause => std::thread::sleep(Duration::from_micros(200)),
                }
            }
            while !missing.is_empty() {
                let read = fed.take(&file, &specs);
                prop_assert!(missing.remove(&read), "read {} twice, or though taken back", read);
            }
            fed.has_all_slots(&file, slots);
            let outcome = fed.end();
            prop_assert!(outcome.schedule.failure().is_none() && outcome.schedule.is_done());
        }
    }
}

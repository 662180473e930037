//! Tensors and slices on demand, on the stand-in device: their bytes, what is read for them, what
//! makes room for what, and every way to give a wish up.

mod support;

use forebay::{
    CachePolicy, Cancel, EngineChoice, Errno, Error, FailureKind, Fetch, FetchStats, Fetcher,
    FetcherBuilder, Lfu, Model, Piece, Pinned, Tensor,
};
use forebay_io::{Fault, Op};
use forebay_tests::{Answer, Rule, Script};
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use support::{
    TestModel, alone, engines, is_without_load_threads, on_a_thread, scratch, small_slots,
    status_kib,
};

/// Of a slice of `even`: two blocks, so that it takes as much of the device as of the file.
const SLICE: u64 = 8192;

fn fetcher(model: &TestModel, budget: u64) -> FetcherBuilder {
    let builder = Fetcher::builder(&model.path).device_budget(budget);
    builder.options(small_slots("dio", EngineChoice::Auto))
}

/// Experts of several sizes, and what may lie beside them.
fn uneven() -> TestModel {
    let shapes: [(&str, &[usize]); 8] = [
        ("a.experts", &[16, 31, 97]),
        ("b.experts", &[8, 64, 128]),
        ("c.experts", &[5, 3, 40_003]),
        ("d.vector", &[1003]),
        ("e.matrix", &[77, 13]),
        ("f.thin", &[6, 0, 3]),
        ("g.none", &[0, 5]),
        ("h.scalar", &[]),
    ];
    TestModel::shaped(shapes.map(|(name, shape)| (name.to_owned(), shape.to_vec())))
}

/// One stacked tensor, `experts`.
fn even(slices: usize) -> TestModel {
    TestModel::shaped([("experts".to_owned(), vec![slices, 64, 128])])
}

fn slices_of(model: &TestModel, name: &str, fetcher: &Fetcher) -> (u64, u64) {
    let catalog = fetcher.model().catalog();
    let tensor = &catalog.tensors()[catalog.position(name).unwrap()];
    let slices = tensor.shape.first().copied().unwrap_or(1);
    let all = model.tensors[name].len() as u64;
    (slices, all.checked_div(slices).unwrap_or(0))
}

/// Panics unless it is these slices of the tensor.
fn assert_slices(model: &TestModel, tensor: &Tensor, name: &str, range: Range<u64>, slice: u64) {
    let mut bytes = vec![0xAA; usize::try_from(tensor.bytes()).unwrap()];
    tensor.read_into(0, &mut bytes).unwrap();
    let [from, to] = [range.start, range.end].map(|at| usize::try_from(at * slice).unwrap());
    assert!(bytes == model.tensors[name][from..to], "{name} {range:?} is wrong");
    assert_eq!(tensor.as_slice(), Some(&bytes[..]));
}

/// Of `even`.
fn assert_experts(model: &TestModel, tensor: &Tensor, range: Range<u64>) {
    assert_eq!(tensor.shape(), [range.end - range.start, 64, 128]);
    assert_slices(model, tensor, "experts", range, SLICE);
}

fn assert_nothing_left(what: &str) {
    assert!(is_without_load_threads(), "{what}: a thread is left");
    assert_eq!(status_kib("VmPin:"), 0, "{what}: memory is still pinned");
}

/// What was read, as the engines saw it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Range<u64>>>>);

impl Seen {
    fn take(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Fault for Seen {
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        _buffer: &mut [u8],
    ) -> Result<u32, Errno> {
        self.0.lock().unwrap().push(op.offset..op.offset + u64::from(op.bytes));
        result
    }
}

#[test]
fn slices_are_those_of_the_file_and_nothing_else_is_read() {
    let _alone = alone();
    let model = uneven();
    let mut random = fastrand::Rng::with_seed(6);
    for engine in engines() {
        for mode in ["dio", "none", "mmap", "auto"] {
            let seen = Seen::default();
            let builder = fetcher(&model, 4 << 20).options(small_slots(mode, engine));
            let fetcher = builder.fault(Box::new(seen.clone())).start().unwrap();
            assert_eq!((fetcher.budget_bytes(), fetcher.stats()), (4 << 20, FetchStats::default()));
            let names: Vec<&String> = model.tensors.keys().collect();
            let mut known = BTreeSet::new();
            let (mut wanted, mut bound) = (0, 0);
            for _ in 0..60 {
                let name = names[random.usize(..names.len())];
                let (slices, slice) = slices_of(&model, name, &fetcher);
                let start = random.u64(..=slices);
                let end = random.u64(start..=slices);
                // A scalar has no slices.
                let range = if name == "h.scalar" { 0..1 } else { start..end };
                let what = format!("{engine:?} {mode} {name} {range:?}");
                seen.take();
                let tensor = fetcher.fetch(name, range.clone(), 0).unwrap().wait().unwrap();
                assert_slices(&model, &tensor, name, range.clone(), slice);
                let reads = seen.take();
                if known.insert((name, range.start, range.end)) && range.end > range.start {
                    let first = model.range(name).start + range.start * slice;
                    let last = first + (range.end - range.start) * slice;
                    let (low, high) = (first / 4096 * 4096, last.next_multiple_of(4096));
                    let is_inside = |it: &Range<u64>| it.start >= low && it.end <= high;
                    assert!(reads.iter().all(is_inside), "{what}: {reads:?}, not {low}..{high}");
                    assert_eq!(reads.is_empty(), slice == 0, "{what}");
                    wanted += last - first;
                    bound += if slice == 0 { 0 } else { high - low };
                } else {
                    assert!(reads.is_empty(), "{what}: {reads:?}");
                }
            }
            let stats = fetcher.stats();
            assert_eq!((stats.fetches, stats.hits), (60, 60 - known.len() as u64));
            assert_eq!((stats.wanted_bytes, stats.evicted, stats.cancelled), (wanted, 0, 0));
            assert!((wanted..=bound).contains(&stats.read_bytes), "{stats:?} {bound}");
        }
    }
    assert_nothing_left("slices");
}

#[test]
fn whole_tensors_are_what_the_model_has() {
    let _alone = alone();
    let model = uneven();
    let fetcher = fetcher(&model, 4 << 20).start().unwrap();
    let fetches: Vec<Fetch> =
        model.tensors.keys().map(|name| fetcher.fetch_whole(name, 0).unwrap()).collect();
    for (fetch, name) in fetches.into_iter().zip(model.tensors.keys()) {
        let tensor = fetch.wait().unwrap();
        assert_eq!(tensor.name(), name);
        model.assert_right(&tensor);
    }
    let slice = fetcher.fetch("a.experts", 2..5, 0).unwrap().wait().unwrap();
    assert_eq!((slice.shape(), slice.name()), (&[3, 31, 97][..], "a.experts[2..5]"));
    // They outlive the fetcher.
    drop(fetcher);
    assert_nothing_left("whole tensors");
    assert_slices(&model, &slice, "a.experts", 2..5, 31 * 97);
}

/// Fetches slice by slice, using none of them longer, and says which had to be read.
fn missed(fetcher: &Fetcher, model: &TestModel, slices: &[u64]) -> Vec<u64> {
    let mut missed = Vec::new();
    for &slice in slices {
        let before = fetcher.stats().hits;
        let tensor = fetcher.fetch("experts", slice..slice + 1, 0).unwrap().wait().unwrap();
        assert_experts(model, &tensor, slice..slice + 1);
        if fetcher.stats().hits == before {
            missed.push(slice);
        }
    }
    missed
}

#[test]
fn each_policy_makes_room_as_it_says() {
    let _alone = alone();
    let model = even(12);
    let start = || fetcher(&model, 3 * SLICE);
    let lru = start().start().unwrap();
    assert_eq!(missed(&lru, &model, &[0, 1, 2, 0, 3, 0, 2, 3, 1]), [0, 1, 2, 3, 1]);
    assert_eq!(missed(&lru, &model, &[0, 2]), [0, 2], "they were used before 3 and 1");
    let stats = lru.stats();
    assert_eq!((stats.fetches, stats.hits, stats.evicted), (11, 4, 4));
    assert_eq!(stats.wanted_bytes, 7 * SLICE);
    assert!((7 * SLICE..=7 * (SLICE + 4096)).contains(&stats.read_bytes), "{stats:?}");
    let lfu = start().policy(Lfu::default()).start().unwrap();
    assert_eq!(missed(&lfu, &model, &[0, 0, 0, 1, 1, 2, 3, 2, 3, 3, 3]), [0, 1, 2, 3, 2, 3]);
    assert_eq!(missed(&lfu, &model, &[0, 3]), [0_u64; 0]);
    let keeps = |piece: &Piece| piece.range.start == 0;
    let pinned = start().policy(Pinned::new(keeps, forebay::Lru::default())).start().unwrap();
    assert_eq!(missed(&pinned, &model, &[0, 1, 2, 3, 4, 5, 6, 0, 7, 0]), [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// Fills the budget of `slices` with slices that are used.
fn held(fetcher: &Fetcher, slices: u64) -> Vec<Tensor> {
    let fetches: Vec<Fetch> =
        (0..slices).map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap()).collect();
    fetches.into_iter().map(|fetch| fetch.wait().unwrap()).collect()
}

/// Whichever of them is given back.
#[test]
fn what_waits_for_room_is_served_when_a_holder_is_done() {
    let _alone = alone();
    let model = Arc::new(even(16));
    for dropped in 0..4 {
        for waits in ["before", "meanwhile"] {
            let model = Arc::clone(&model);
            on_a_thread(&format!("{dropped} is given back"), move || {
                let fetcher = fetcher(&model, 4 * SLICE).start().unwrap();
                let mut held = held(&fetcher, 4);
                let fetch = fetcher.fetch("experts", 9..10, 0).unwrap();
                if waits == "before" {
                    std::thread::sleep(Duration::from_millis(20));
                }
                assert!(!fetch.is_ready());
                let other = held.remove(dropped);
                std::thread::scope(|scope| {
                    scope.spawn(move || drop(other));
                    let tensor = fetch.wait().unwrap();
                    assert_experts(&model, &tensor, 9..10);
                });
                let mut rest: Vec<u64> = (0..4).collect();
                rest.remove(dropped);
                for (tensor, slice) in held.iter().zip(rest) {
                    assert_experts(&model, tensor, slice..slice + 1);
                }
            });
        }
    }
    assert_nothing_left("room");
}

/// One that needs more room than one holder gives back.
#[test]
fn a_large_piece_gets_its_room_from_several_holders() {
    let _alone = alone();
    let model = Arc::new(even(16));
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20 {
        let (model, mut random) = (Arc::clone(&model), random.fork());
        on_a_thread("a large piece", move || {
            let fetcher = fetcher(&model, 5 * SLICE).start().unwrap();
            let mut held = held(&fetcher, 5);
            random.shuffle(&mut held);
            let fetch = fetcher.fetch("experts", 8..13, 0).unwrap();
            while let Some(tensor) = held.pop() {
                assert!(!fetch.is_ready());
                let slice = tensor.name().split(['[', '.']).nth(1).unwrap().parse::<u64>().unwrap();
                assert_experts(&model, &tensor, slice..slice + 1);
                drop(tensor);
                std::thread::sleep(Duration::from_micros(random.u64(..500)));
            }
            assert_experts(&model, &fetch.wait().unwrap(), 8..13);
        });
    }
}

#[test]
fn what_is_in_use_stays_right_whatever_is_fetched_meanwhile() {
    let _alone = alone();
    let model = even(64);
    for engine in engines() {
        let builder = fetcher(&model, 6 * SLICE).options(small_slots("dio", engine));
        let fetcher = builder.start().unwrap();
        let held = held(&fetcher, 3);
        let mut random = fastrand::Rng::with_seed(2);
        for _ in 0..150 {
            let start = random.u64(..62);
            let range = start..start + random.u64(1..=2);
            let fetch = fetcher.fetch("experts", range.clone(), 0).unwrap();
            assert_experts(&model, &fetch.wait().unwrap(), range);
            for (slice, tensor) in (0..).zip(&held) {
                assert_experts(&model, tensor, slice..slice + 1);
            }
        }
        assert!(fetcher.stats().evicted > 50);
        // Still known, since they never had to go.
        let before = fetcher.stats().hits;
        let again = fetcher.fetch("experts", 1..2, 0).unwrap().wait().unwrap();
        assert_eq!(again.as_slice().unwrap().as_ptr(), held[1].as_slice().unwrap().as_ptr());
        assert_eq!(fetcher.stats().hits, before + 1);
    }
}

/// Given up by the cache while they are used, pieces are found by whoever wants them meanwhile, and
/// stay once there is room.
#[test]
fn what_had_to_be_given_up_is_there_as_long_as_it_is_used() {
    let _alone = alone();
    let model = Arc::new(even(8));
    on_a_thread("again", move || {
        let fetcher = fetcher(&model, 3 * SLICE).start().unwrap();
        let mut held = held(&fetcher, 3);
        let waits = fetcher.fetch("experts", 5..6, 0).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let again = fetcher.fetch("experts", 1..2, 0).unwrap();
        assert!(again.is_ready(), "it is used, so it is there");
        let again = again.wait().unwrap();
        assert_eq!(again.as_slice().unwrap().as_ptr(), held[1].as_slice().unwrap().as_ptr());
        drop(held.remove(0));
        assert_experts(&model, &waits.wait().unwrap(), 5..6);
        let hits = fetcher.stats().hits;
        drop((held, again));
        // What gave its memory up has gone, the others have not.
        assert_eq!(missed(&fetcher, &model, &[1, 2, 5, 0]), [0]);
        assert_eq!(fetcher.stats().hits, hits + 3);
    });
}

#[test]
fn pieces_without_bytes_need_no_room() {
    let _alone = alone();
    let model = Arc::new(uneven());
    on_a_thread("no bytes", move || {
        let fetcher = fetcher(&model, SLICE).start().unwrap();
        let _all = fetcher.fetch_whole("b.experts", 0).map(drop).unwrap_err();
        let all = fetcher.fetch("b.experts", 3..4, 0).unwrap().wait().unwrap();
        for (name, range) in [("f.thin", 0..6), ("g.none", 0..0), ("b.experts", 2..2)] {
            let tensor = fetcher.fetch(name, range.clone(), 0).unwrap().wait().unwrap();
            assert_eq!(tensor.bytes(), 0, "{name}");
            assert_eq!(tensor.shape()[0], range.end - range.start);
        }
        assert_slices(&model, &all, "b.experts", 3..4, SLICE);
    });
}

#[test]
fn any_number_of_wishes_can_be_given_up_at_any_moment() {
    let _alone = alone();
    for engine in engines() {
        let model = Arc::new(even(24));
        let (waited, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counts, of_model) = ((Arc::clone(&waited), Arc::clone(&dropped)), Arc::clone(&model));
        let fetcher = on_a_thread("wishes", move || {
            let (waited, dropped) = counts;
            let model = of_model;
            let builder = fetcher(&model, 7 * SLICE).options(small_slots("none", engine));
            let fetcher = builder.start().unwrap();
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (fetcher, model, waited, dropped) = (&fetcher, &model, &waited, &dropped);
                    scope.spawn(move || {
                        let mut random = fastrand::Rng::with_seed(thread);
                        for _ in 0..2500 {
                            let start = random.u64(..22);
                            let range = start..start + random.u64(1..=2);
                            let priority = random.i32(-1..2);
                            let fetch = fetcher.fetch("experts", range.clone(), priority).unwrap();
                            if random.u8(..3) > 0 {
                                if random.bool() {
                                    std::thread::yield_now();
                                }
                                dropped.fetch_add(1, Ordering::Relaxed);
                                drop(fetch);
                                continue;
                            }
                            let tensor = fetch.wait().unwrap();
                            assert_experts(model, &tensor, range);
                            waited.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            // Nothing is in use, and all of the room is there.
            let all = fetcher.fetch("experts", 3..10, 0).unwrap().wait().unwrap();
            assert_experts(&model, &all, 3..10);
            fetcher
        });
        let stats = fetcher.stats();
        let (waited, dropped) = (waited.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed));
        assert_eq!((waited + dropped, stats.fetches), (10_000, 10_001));
        assert!(stats.cancelled <= dropped as u64 && stats.cancelled > 0, "{stats:?}");
        assert!(stats.hits < stats.fetches && stats.wanted_bytes % SLICE == 0, "{stats:?}");
        assert!(stats.evicted <= stats.fetches - stats.hits, "{stats:?}");
        fetcher.check().unwrap();
        drop(fetcher);
        assert_nothing_left("wishes");
    }
}

#[test]
fn a_wish_that_is_given_up_before_it_is_begun_is_not_read() {
    let _alone = alone();
    let model = Arc::new(even(32));
    on_a_thread("not begun", move || {
        let seen = Seen::default();
        let builder = fetcher(&model, 2 * SLICE).fault(Box::new(seen.clone()));
        let fetcher = builder.start().unwrap();
        let held = held(&fetcher, 2);
        seen.take();
        // No room for any of them.
        let wishes: Vec<Fetch> =
            (10..20).map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap()).collect();
        let (given_up, wanted) = (wishes, fetcher.fetch("experts", 25..26, 0).unwrap());
        drop(given_up);
        drop(held);
        assert_experts(&model, &wanted.wait().unwrap(), 25..26);
        let of_wanted = seen.take();
        let from = model.range("experts").start + 25 * SLICE;
        assert!(of_wanted.iter().all(|it| it.end > from && it.start < from + SLICE));
        assert_eq!(fetcher.stats().cancelled, 10);
    });
}

/// The least that runs futures: polls when it was woken, and else sleeps.
struct Unparks {
    thread: std::thread::Thread,
    woken: AtomicUsize,
    is_woken: AtomicBool,
}

impl Wake for Unparks {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::Relaxed);
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

fn run_all(mut futures: Vec<Fetch>) -> (Vec<Result<Tensor, Error>>, usize) {
    let thread = std::thread::current();
    let unparks =
        Arc::new(Unparks { thread, woken: AtomicUsize::new(0), is_woken: AtomicBool::new(true) });
    let waker = Waker::from(Arc::clone(&unparks));
    let mut done = Vec::new();
    while !futures.is_empty() {
        while !unparks.is_woken.swap(false, Ordering::AcqRel) {
            std::thread::park();
        }
        let mut pending = Vec::new();
        for mut future in futures {
            match Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(tensor) => done.push(tensor),
                Poll::Pending => pending.push(future),
            }
        }
        futures = pending;
    }
    (done, unparks.woken.load(Ordering::Relaxed))
}

#[test]
fn fetches_are_futures_of_any_runtime() {
    let _alone = alone();
    let model = Arc::new(even(40));
    on_a_thread("futures", move || {
        let pause = || std::thread::sleep(Duration::from_millis(1));
        let slow = Script::new(Rule::new(Answer::Meanwhile(Box::new(pause))));
        let builder = fetcher(&model, 40 * SLICE).fault(Box::new(slow));
        let fetcher = builder.start().unwrap();
        // Some are wanted twice.
        let wishes = (0..60).map(|wish| fetcher.fetch("experts", wish % 40..wish % 40 + 1, 0));
        let (tensors, woken) = run_all(wishes.collect::<Result<_, _>>().unwrap());
        assert_eq!(tensors.len(), 60);
        for tensor in tensors {
            let tensor = tensor.unwrap();
            let slice = tensor.name().split(['[', '.']).nth(1).unwrap().parse::<u64>().unwrap();
            assert_experts(&model, &tensor, slice..slice + 1);
        }
        assert!(woken > 0, "all were there at once");
        assert_eq!(fetcher.stats().hits, 20);
    });
    assert_nothing_left("futures");
}

/// A task that goes with the last waker that leads to it, and with it what it had wished.
struct Owns {
    _wish: Mutex<Fetch>,
}

impl Wake for Owns {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn a_future_that_moves_on_may_be_the_last_to_know_its_task() {
    let _alone = alone();
    let model = Arc::new(even(8));
    on_a_thread("moved on", move || {
        let fetcher = fetcher(&model, 2 * SLICE).start().unwrap();
        // No room for any of those that follow.
        let held = held(&fetcher, 2);
        let mut moving = fetcher.fetch("experts", 4..5, 0).unwrap();
        let other = fetcher.fetch("experts", 5..6, 0).unwrap();
        let first = Waker::from(Arc::new(Owns { _wish: Mutex::new(other) }));
        let poll = |fetch: &mut Fetch, waker: &Waker| {
            Pin::new(fetch).poll(&mut Context::from_waker(waker)).is_pending()
        };
        assert!(poll(&mut moving, &first));
        drop(first);
        assert!(poll(&mut moving, Waker::noop()));
        assert_eq!(fetcher.stats().cancelled, 1);
        drop(held);
        assert_experts(&model, &moving.wait().unwrap(), 4..5);
    });
}

#[test]
fn futures_are_woken_when_the_fetcher_ends() {
    let _alone = alone();
    let model = Arc::new(even(8));
    on_a_thread("ends", move || {
        let fetcher = fetcher(&model, SLICE).start().unwrap();
        let held = held(&fetcher, 1);
        let wishes: Vec<Fetch> =
            (2..5).map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap()).collect();
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || sender.send(run_all(wishes)));
        std::thread::sleep(Duration::from_millis(10));
        drop(fetcher);
        let (tensors, _) = ended.recv().unwrap();
        assert_eq!(tensors.len(), 3);
        assert!(tensors.iter().all(|it| matches!(it, Err(Error::AlreadyReported))));
        assert_experts(&model, &held[0], 0..1);
    });
    assert_nothing_left("ended");
}

#[test]
fn the_urgent_come_first() {
    let _alone = alone();
    let model = Arc::new(even(32));
    on_a_thread("urgent", move || {
        let seen = Seen::default();
        let builder = fetcher(&model, SLICE).fault(Box::new(seen.clone()));
        let fetcher = builder.start().unwrap();
        let held = held(&fetcher, 1);
        seen.take();
        let priorities = [(5, 0), (6, 0), (7, 3), (8, -1), (9, 3), (10, i32::MAX)];
        let wishes = priorities.map(|(slice, priority)| {
            (slice, fetcher.fetch("experts", slice..slice + 1, priority).unwrap())
        });
        // They are known to whoever brings them before there is any room.
        std::thread::sleep(Duration::from_millis(200));
        drop(held);
        std::thread::scope(|scope| {
            for (slice, wish) in wishes {
                let model = &model;
                scope.spawn(move || {
                    assert_experts(model, &wish.wait().unwrap(), slice..slice + 1);
                });
            }
        });
        let first = model.range("experts").start;
        let slice = |read: &Range<u64>| (read.end.saturating_sub(first) - 1) / SLICE;
        let mut order: Vec<u64> = seen.take().iter().map(slice).collect();
        order.dedup();
        // A read ends up to a block behind its slice.
        let expected = [10, 7, 9, 5, 6, 8];
        let fits = |(read, expected): (&u64, &u64)| *read == *expected || *read == expected + 1;
        assert_eq!(order.len(), expected.len(), "{order:?}");
        assert!(order.iter().zip(&expected).all(fits), "{order:?}");
    });
}

fn refusal(result: Result<Fetch, Error>) -> String {
    match result.map(drop).unwrap_err() {
        error @ Error::Option { .. } => {
            assert!(error.remedy().is_some());
            error.to_string()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_can_not_be_fetched_is_refused_at_once() {
    let _alone = alone();
    let model = uneven();
    let mut options = small_slots("dio", EngineChoice::Auto);
    options.load_mode = "device=dio,cpu=mmap".parse().unwrap();
    options.place.push("^e\\.=cpu".parse().unwrap());
    let builder = fetcher(&model, 100_000).options(options);
    let fetcher = builder.start().unwrap();
    assert!(refusal(fetcher.fetch("nobody", 0..1, 0)).contains("nobody"));
    assert!(refusal(fetcher.fetch_whole("nobody", 0)).contains("nobody"));
    #[allow(clippy::reversed_empty_ranges, reason = "what a caller may ask for")]
    for range in [16..17, 0..17, 5..3, u64::MAX..u64::MAX, 17..17] {
        assert!(refusal(fetcher.fetch("a.experts", range, 0)).contains("16 slices"));
    }
    assert!(refusal(fetcher.fetch("g.none", 0..1, 0)).contains("0 slices"));
    for range in [0..2, 0..0, 1..1] {
        assert!(refusal(fetcher.fetch("h.scalar", range, 0)).contains("h.scalar"));
    }
    assert!(refusal(fetcher.fetch_whole("c.experts", 0)).contains("100000"));
    assert!(refusal(fetcher.fetch("c.experts", 0..1, 0)).contains("120009"));
    assert!(refusal(fetcher.fetch_whole("e.matrix", 0)).contains("cpu"));
    assert_eq!(fetcher.stats(), FetchStats::default());
    // All of that did no harm.
    let tensor = fetcher.fetch("a.experts", 15..16, 0).unwrap().wait().unwrap();
    assert_slices(&model, &tensor, "a.experts", 15..16, 31 * 97);
}

/// Their outermost dimension is not what lies together in the file.
#[test]
fn slices_that_do_not_lie_together_are_refused() {
    let _alone = alone();
    let mut reordered = 0;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/ptd");
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let Ok(model) = Model::open(&path) else { continue };
        let builder = Fetcher::builder(&path).device_budget(1 << 20);
        let fetcher = builder.options(small_slots("none", EngineChoice::Auto)).start().unwrap();
        for tensor in model.catalog().tensors() {
            let order = model.catalog().metadata().get(&format!("ptd.dim_order.{}", tensor.name));
            if order.is_some() {
                reordered += 1;
                // All but the whole.
                assert!(refusal(fetcher.fetch(&tensor.name, 0..0, 0)).contains("of their own"));
            }
            let whole = fetcher.fetch_whole(&tensor.name, 0).unwrap().wait().unwrap();
            assert_eq!((whole.bytes(), whole.shape()), (tensor.bytes, &tensor.shape[..]));
        }
    }
    assert!(reordered > 0);
}

/// A block of several elements has no slices.
#[test]
fn slices_of_parts_of_bytes_are_refused() {
    let _alone = alone();
    let folder = scratch();
    let path = folder.path().join("blocks.gguf");
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(string("vector"));
    file.extend(1_u32.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    // Q8_0: blocks of 32 elements in 34 bytes.
    file.extend(8_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(0_u8..68);
    std::fs::write(&path, file).unwrap();
    let builder = Fetcher::builder(&path).device_budget(1 << 20);
    let fetcher = builder.options(small_slots("none", EngineChoice::Auto)).start().unwrap();
    refusal(fetcher.fetch("vector", 0..32, 0));
    refusal(fetcher.fetch("vector", 3..4, 0));
    let whole = fetcher.fetch("vector", 0..64, 0).unwrap().wait().unwrap();
    assert_eq!(whole.as_slice().unwrap(), (0..68).collect::<Vec<u8>>());
}

#[test]
fn a_read_that_fails_ends_all_that_waits_and_is_told_once() {
    let _alone = alone();
    let model = Arc::new(even(32));
    for engine in engines() {
        let model = Arc::clone(&model);
        on_a_thread("fails", move || {
            let script = Script::new(Rule::new(Answer::Errno(Errno::EIO)).after(3).times(1));
            let builder = fetcher(&model, 20 * SLICE).options(small_slots("dio", engine));
            let fetcher = builder.fault(Box::new(script)).start().unwrap();
            fetcher.check().unwrap();
            let known = held(&fetcher, 1);
            let wishes: Vec<Fetch> = (1..19)
                .map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap())
                .collect();
            let ended: Vec<_> = wishes.into_iter().map(Fetch::wait).collect();
            assert!(ended.iter().any(|it| matches!(it, Err(Error::AlreadyReported))));
            for (slice, tensor) in (1..).zip(ended) {
                match tensor {
                    Ok(tensor) => assert_experts(&model, &tensor, slice..slice + 1),
                    Err(error) => assert!(matches!(error, Error::AlreadyReported), "{error}"),
                }
            }
            let error = fetcher.check().unwrap_err();
            let Error::Read { context, failure } = &error else { panic!("{error}") };
            assert_eq!(failure.kind, FailureKind::Errno(Errno::EIO));
            assert_eq!(context.path.as_deref(), Some(model.path.as_path()));
            assert_eq!(context.tensor.as_deref(), Some("experts"));
            assert!(matches!(fetcher.check(), Err(Error::AlreadyReported)));
            // What is new ends likewise, and what is there is there.
            let late = fetcher.fetch("experts", 25..26, 0).unwrap();
            assert!(matches!(late.wait(), Err(Error::AlreadyReported)));
            assert_experts(&model, &known[0], 0..1);
        });
        assert_nothing_left("failed");
    }
}

#[test]
fn cancelling_and_dropping_end_a_fetcher_at_any_moment() {
    let _alone = alone();
    let model = Arc::new(even(32));
    let mut random = fastrand::Rng::with_seed(9);
    for round in 0..80 {
        let (model, mut random) = (Arc::clone(&model), random.fork());
        on_a_thread(&format!("round {round}"), move || {
            let cancel = Cancel::default();
            let builder = fetcher(&model, 6 * SLICE).cancel_with(&cancel);
            let builder = builder.options(small_slots("dio", engines()[round % engines().len()]));
            let fetcher = builder.start().unwrap();
            let mut wishes: Vec<Fetch> = (0..random.u64(..30))
                .map(|slice| fetcher.fetch("experts", slice..slice + 1, 0).unwrap())
                .collect();
            random.shuffle(&mut wishes);
            std::thread::sleep(Duration::from_micros(random.u64(..1500)));
            if random.bool() {
                cancel.cancel();
                for wish in wishes.drain(..) {
                    match wish.wait() {
                        Ok(_) | Err(Error::AlreadyReported) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                if let Err(error) = fetcher.check() {
                    assert!(matches!(error, Error::Cancelled), "{error}");
                }
            }
            drop(fetcher);
            for wish in wishes {
                if let Ok(tensor) = wish.wait() {
                    let from = tensor.name().split(['[', '.']).nth(1).unwrap();
                    let from: u64 = from.parse().unwrap();
                    assert_experts(&model, &tensor, from..from + 1);
                }
            }
        });
        assert_nothing_left("ended");
    }
}

/// A policy of the caller's that keeps count.
#[derive(Default)]
struct Counts {
    last: Option<Piece>,
    evicted: Arc<Mutex<Vec<u64>>>,
}

impl CachePolicy for Counts {
    fn used(&mut self, piece: &Piece) {
        self.last = Some(piece.clone());
    }

    /// The most recent goes first; one that nobody has goes never.
    fn victim(&mut self, candidates: &[Piece]) -> Option<usize> {
        assert!(!candidates.is_empty() && !candidates.contains(self.last.as_ref()?));
        candidates.len().checked_sub(1)
    }

    fn evicted(&mut self, piece: &Piece) {
        self.evicted.lock().unwrap().push(piece.range.start);
    }
}

#[test]
fn a_policy_of_the_callers_decides() {
    let _alone = alone();
    let model = even(12);
    let evicted = Arc::new(Mutex::new(Vec::new()));
    let policy = Counts { evicted: Arc::clone(&evicted), ..Counts::default() };
    let fetcher = fetcher(&model, 3 * SLICE).policy(policy).start().unwrap();
    assert_eq!(missed(&fetcher, &model, &[4, 2, 6, 0, 8, 2]), [4, 2, 6, 0, 8]);
    assert_eq!(*evicted.lock().unwrap(), [6, 4]);
    assert_eq!(fetcher.stats().evicted, 2);
}

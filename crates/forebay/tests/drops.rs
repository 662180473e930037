//! Loads, streams, futures and runtimes, cancelled or dropped at random moments, or whole: nothing of
//! the load is left in flight, nothing leaks, and no byte is wrong afterwards.
//!
//! `FOREBAY_DROPS=10000` is how often of each kind; a hundred if it is not given.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer is into a buffer that outlives the loads of its test"
)]

mod support;

use forebay::{Cancel, EngineChoice, Error, HostPointer, LoadStream, Loader, Tensor};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;
use support::{TestModel, alone, is_without_load_threads, small_slots, status_kib};

/// The longest that a load is let run, which is about as long as it takes.
const PATIENCE_US_MAX: u64 = 3000;
const PAINT: u8 = 0xC5;

fn rounds() -> u64 {
    let given = std::env::var("FOREBAY_DROPS").ok();
    given.map_or(100, |given| given.parse().expect("FOREBAY_DROPS is a number"))
}

/// What rounds leave behind for later ones to look at.
struct After<'model> {
    model: &'model TestModel,
    random: fastrand::Rng,
    /// Handed out by loads that were dropped.
    tensors: VecDeque<Tensor>,
    /// Memory that was taken right after a drop, which the kernel may have taken from the load's.
    decoys: VecDeque<Vec<u8>>,
    /// Memory that was lent to a load that was dropped, with what it held then.
    lent: VecDeque<(Vec<u8>, Vec<u8>)>,
    loads: u64,
    whole: u64,
}

impl<'model> After<'model> {
    fn new(model: &'model TestModel) -> Self {
        let random = fastrand::Rng::with_seed(0xF0);
        let (tensors, decoys, lent) = Default::default();
        Self { model, random, tensors, decoys, lent, loads: 0, whole: 0 }
    }

    fn patience(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(0..PATIENCE_US_MAX))
    }

    /// A load to anywhere, of which one tensor lands in `memory`.
    fn loader(&mut self, memory: &mut [u8], engine: EngineChoice) -> Loader {
        self.loads += 1;
        let modes = ["dio", "none", "host=dio,cpu=dio", "host=none,cpu=none"];
        let mut options = small_slots(modes[self.random.usize(0..4)], engine);
        options.gpu_layers = forebay::GpuLayers::Count(self.random.u32(0..8));
        options.engine = engine;
        let pointer = unsafe { HostPointer::new(memory.as_mut_ptr(), memory.len() as u64) };
        Loader::new(&self.model.path).options(options).into_host_memory(&lent_name(), pointer)
    }

    fn memory(&self) -> Vec<u8> {
        vec![PAINT; self.model.tensors[&lent_name()].len()]
    }

    /// For later rounds to look at, which outlive what was lent.
    fn keep(&mut self, tensor: Tensor) {
        self.model.assert_right(&tensor);
        if tensor.name() != lent_name() {
            self.tensors.push_front(tensor);
        }
    }

    /// The load is over; what it has done must stay as it is.
    fn dropped(&mut self, memory: Vec<u8>) {
        self.decoys.push_back(vec![PAINT; 256 << 10]);
        let held = memory.clone();
        self.lent.push_back((memory, held));
        for tensor in &self.tensors {
            self.model.assert_right(tensor);
        }
        for (memory, held) in &self.lent {
            assert!(memory == held, "written to after the drop");
        }
        for decoy in &self.decoys {
            assert!(decoy.iter().all(|byte| *byte == PAINT), "somebody else's memory is written");
        }
        self.tensors.truncate(8);
        self.decoys.truncate(4);
        self.lent.truncate(4);
    }

    /// Takes what comes, until it is time.
    async fn take(&mut self, stream: &mut LoadStream, until: impl Future<Output = ()>) {
        let mut until = pin!(until);
        loop {
            match select(stream.next(), until.as_mut()).await {
                Either::Left((Some(tensor), _)) => self.keep(tensor.unwrap()),
                Either::Left((None, _)) => {
                    self.whole += 1;
                    return;
                }
                Either::Right(_) => return,
            }
        }
    }
}

/// One tensor of the model that is lent memory.
fn lent_name() -> String {
    "model.layers.3.part1.weight".to_owned()
}

/// What a process has that loads might leak.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    mappings: usize,
    resident_kib: u64,
}

impl Held {
    fn now() -> Self {
        // The kernel unpins what a closed ring had a moment later.
        let is_unpinned = |_| {
            std::thread::sleep(Duration::from_millis(1));
            status_kib("VmPin:") == 0
        };
        assert!((0..5000).any(is_unpinned), "{} KiB stay pinned", status_kib("VmPin:"));
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        Self { descriptors, mappings, resident_kib: status_kib("VmRSS:") }
    }

    fn assert_no_more_than(&self, before: &Self) {
        assert_eq!(self.descriptors, before.descriptors, "{self:?}, before: {before:?}");
        // The allocator keeps some.
        assert!(self.mappings < before.mappings + 40, "{self:?}, before: {before:?}");
        let room_kib = 64 << 10;
        assert!(self.resident_kib < before.resident_kib + room_kib, "{self:?}, before: {before:?}");
    }
}

/// Drops again and again, and looks whether anything is left.
fn again_and_again(mut round: impl FnMut(&mut After<'_>, u64)) {
    let _alone = alone();
    let model = TestModel::new(1 << 20);
    let mut after = After::new(&model);
    // What the first ones make stays.
    (0..20).for_each(|number| round(&mut after, number));
    // Mapped ones hold their file.
    after.tensors.clear();
    let before = Held::now();
    let rounds = rounds();
    for number in 0..rounds {
        round(&mut after, number);
    }
    assert!(is_without_load_threads());
    after.tensors.clear();
    Held::now().assert_no_more_than(&before);
    eprintln!("{} loads, {} of them whole", after.loads, after.whole);
    assert!(after.whole < after.loads, "every load was whole before it was dropped");
}

fn tokio() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_time().build().unwrap()
}

/// One load after the other, in every mode, none of them ended early but every eighth.
#[test]
fn whole_loads() {
    let modes = ["auto", "dio", "none", "mmap", "mlock"];
    again_and_again(|after, number| {
        let mut memory = after.memory();
        let engine = [EngineChoice::Auto, EngineChoice::Threads][usize::from(number % 3 == 0)];
        let spec = modes[after.random.usize(0..modes.len())].parse().unwrap();
        let mut load = after.loader(&mut memory, engine).load_mode(spec).start().unwrap();
        let most = if number % 8 == 7 { 3 } else { usize::MAX };
        for tensor in load.by_ref().take(most) {
            after.keep(tensor.unwrap());
        }
        if most == usize::MAX {
            load.finish().unwrap();
            after.whole += 1;
        } else {
            drop(load);
        }
        after.dropped(memory);
    });
}

/// From another thread, as a person does who changes his mind.
#[test]
fn cancels() {
    again_and_again(|after, number| {
        let mut memory = after.memory();
        let engine = [EngineChoice::Auto, EngineChoice::Threads][usize::from(number % 3 == 0)];
        let cancel = Cancel::default();
        let patience = after.patience();
        let loader = after.loader(&mut memory, engine).cancel_with(&cancel);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(patience);
                cancel.cancel();
            });
            let mut load = loader.start()?;
            for tensor in &mut load {
                after.keep(tensor?);
            }
            load.finish().map(drop)
        });
        match outcome {
            Ok(()) => after.whole += 1,
            Err(error) => assert!(matches!(error, Error::Cancelled), "{error}"),
        }
        after.dropped(memory);
    });
}

#[test]
fn streams_without_a_runtime() {
    again_and_again(|after, _| {
        let mut memory = after.memory();
        let engine = [EngineChoice::Uring, EngineChoice::Threads][after.random.usize(0..2)];
        let mut stream = after.loader(&mut memory, engine).start().unwrap().stream();
        let polls = after.random.u32(0..12);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..polls {
            if let std::task::Poll::Ready(Some(tensor)) = stream.poll_next_unpin(&mut context) {
                after.keep(tensor.unwrap());
            }
            std::thread::sleep(after.patience() / 8);
        }
        drop(stream);
        assert!(is_without_load_threads());
        after.dropped(memory);
    });
}

#[test]
fn streams_on_tokio() {
    let runtime = tokio();
    again_and_again(|after, _| {
        let mut memory = after.memory();
        let mut stream = after.loader(&mut memory, EngineChoice::Auto).start().unwrap().stream();
        let patience = after.patience();
        runtime.block_on(async { after.take(&mut stream, tokio::time::sleep(patience)).await });
        drop(stream);
        assert!(is_without_load_threads());
        after.dropped(memory);
    });
}

#[test]
fn futures_on_tokio() {
    let runtime = tokio();
    again_and_again(|after, _| {
        let mut memory = after.memory();
        let load = after.loader(&mut memory, EngineChoice::Auto).start().unwrap();
        let one = load.tensor("model.layers.1.part0.weight").unwrap();
        let patience = after.patience();
        let finished = runtime.block_on(async {
            let both = futures_util::future::join(load.finished(), one);
            tokio::time::timeout(patience, both).await.ok()
        });
        if let Some((loaded, one)) = finished {
            after.whole += 1;
            after.keep(one.unwrap());
            drop(loaded.unwrap());
        }
        assert!(is_without_load_threads());
        after.dropped(memory);
    });
}

#[test]
fn runtimes_of_tokio() {
    again_and_again(|after, _| {
        let mut memory = after.memory();
        let runtime = tokio();
        let load = after.loader(&mut memory, EngineChoice::Auto).start().unwrap();
        runtime.spawn(load.finished());
        std::thread::sleep(after.patience());
        drop(runtime);
        assert!(is_without_load_threads());
        after.dropped(memory);
    });
}

#[cfg(feature = "tokio-uring")]
mod on_tokio_uring {
    use super::*;
    use support::has_tokio_uring;

    /// Half of the streams while the runtime goes on, half with it.
    #[test]
    fn streams() {
        if !has_tokio_uring() {
            return;
        }
        again_and_again(|after, number| {
            let mut memory = after.memory();
            tokio_uring::start(async {
                for _ in 0..1 + number % 3 {
                    let loader = after.loader(&mut memory, EngineChoice::TokioUring);
                    let mut stream = loader.stream_on_tokio_uring().unwrap();
                    let patience = after.patience();
                    after.take(&mut stream, tokio::time::sleep(patience)).await;
                    drop(stream);
                    let held = memory.clone();
                    tokio::time::sleep(after.patience() / 4 * u32::from(number % 2 == 0)).await;
                    assert!(memory == held, "written to after the drop");
                }
            });
            assert!(is_without_load_threads());
            after.dropped(memory);
        });
    }

    #[test]
    fn futures() {
        if !has_tokio_uring() {
            return;
        }
        again_and_again(|after, number| {
            let mut memory = after.memory();
            let patience = after.patience();
            let loader = after.loader(&mut memory, EngineChoice::TokioUring);
            let finished = tokio_uring::start(async {
                let stream = loader.stream_on_tokio_uring().unwrap();
                let one = stream.tensor("model.layers.1.part0.weight").unwrap();
                let both = futures_util::future::join(stream.finished(), one);
                let finished = tokio::time::timeout(patience, both).await.ok();
                tokio::time::sleep(patience * u32::from(number % 2 == 0)).await;
                finished
            });
            if let Some((loaded, one)) = finished {
                after.whole += 1;
                after.keep(one.unwrap());
                drop(loaded.unwrap());
            }
            assert!(is_without_load_threads());
            after.dropped(memory);
        });
    }

    /// The runtime ends while somebody else still has the stream.
    #[test]
    fn runtimes() {
        if !has_tokio_uring() {
            return;
        }
        again_and_again(|after, number| {
            let mut memory = after.memory();
            let loader = after.loader(&mut memory, EngineChoice::TokioUring);
            let patience = after.patience();
            let mut stream = tokio_uring::start(async {
                let stream = loader.stream_on_tokio_uring().unwrap();
                tokio::time::sleep(patience).await;
                stream
            });
            if number % 2 == 0 {
                let rest = tokio().block_on(stream.by_ref().collect::<Vec<_>>());
                match rest.last() {
                    Some(Err(error)) => {
                        assert!(matches!(error, forebay::Error::Cancelled), "{error}");
                    }
                    _ => after.whole += 1,
                }
                rest.into_iter().flatten().for_each(|tensor| after.keep(tensor));
            }
            drop(stream);
            assert!(is_without_load_threads());
            after.dropped(memory);
        });
    }
}

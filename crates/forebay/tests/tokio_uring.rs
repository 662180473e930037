//! Loads whose reads are a task of a tokio-uring runtime.
#![cfg(feature = "tokio-uring")]

mod support;

use forebay::{Backend, EngineChoice, Error, Loader};
use forebay_tests::{Answer, Rule, Script};
use futures_util::StreamExt;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use support::{TestModel, alone, fixtures, has_tokio_uring, is_without_load_threads, small_slots};

#[test]
fn every_kind_of_model_lands_whole_and_the_report_says_who_read() {
    if !has_tokio_uring() {
        return;
    }
    let _alone = alone();
    for (path, _) in fixtures() {
        let expected = Loader::new(&path).device("host".parse().unwrap()).load().unwrap();
        for mode in ["auto", "dio", "none", "host=dio,cpu=dio", "host=none,cpu=mmap"] {
            let mut options = small_slots(mode, EngineChoice::Auto);
            options.gpu_layers = forebay::GpuLayers::Count(1);
            let loader = Loader::new(&path).options(options);
            let loaded = tokio_uring::start(async {
                let mut stream = loader.stream_on_tokio_uring()?;
                while let Some(tensor) = stream.next().await {
                    tensor?;
                }
                stream.finished().await
            });
            let loaded = loaded.unwrap();
            for tensor in loaded.tensors() {
                let own = expected.tensor(tensor.name()).unwrap();
                let read = |tensor: &forebay::Tensor| {
                    let mut bytes = vec![0; usize::try_from(tensor.bytes()).unwrap()];
                    tensor.read_into(0, &mut bytes).unwrap();
                    bytes
                };
                assert!(read(&tensor) == read(&own), "{path:?} {mode} {}", tensor.name());
            }
            let reads = loaded.report().read.ops > 0;
            let files = &loaded.report().files;
            let is_read_so = files.iter().any(|file| file.engine == "tokio-uring");
            assert_eq!(is_read_so, reads, "{path:?} {mode}: {files:?}");
        }
    }
    assert!(is_without_load_threads());
}

#[test]
fn the_runtime_goes_on_with_its_other_tasks_and_no_thread_reads() {
    if !has_tokio_uring() {
        return;
    }
    let _alone = alone();
    let model = TestModel::new(16 << 20);
    tokio_uring::start(async {
        let turns = Rc::new(Cell::new(0));
        let counted = Rc::clone(&turns);
        tokio_uring::spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let loader = model.loader("dio").staging_bytes(256 << 10).chunk_bytes(32 << 10);
        let mut stream = loader.stream_on_tokio_uring().unwrap();
        let one = stream.tensor(model.tensors.keys().next().unwrap()).unwrap();
        model.assert_right(&one.await.unwrap());
        assert!(!thread_names().contains("forebay-read"), "{}", thread_names());
        let mut tensors = 0;
        while let Some(tensor) = stream.next().await {
            model.assert_right(&tensor.unwrap());
            tensors += 1;
        }
        assert_eq!(tensors, model.tensors.len());
        stream.finished().await.unwrap();
        assert!(turns.get() > 1, "{} turns", turns.get());
    });
    assert!(is_without_load_threads());
}

fn thread_names() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.collect::<Vec<_>>().join(" ")
}

/// A runtime has room for the buffers of one: the other reads without, and says so.
#[test]
fn two_loads_share_a_runtime() {
    if !has_tokio_uring() {
        return;
    }
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    tokio_uring::start(async {
        let load = || async {
            let stream = model.loader("dio").stream_on_tokio_uring().unwrap();
            stream.finished().await.unwrap()
        };
        for _ in 0..3 {
            let (one, other) = futures_util::future::join(load(), load()).await;
            one.tensors().chain(other.tensors()).for_each(|tensor| model.assert_right(&tensor));
            let without = |loaded: &forebay::Loaded| {
                let fallbacks = loaded.report().files.iter().flat_map(|file| &file.fallbacks);
                fallbacks.filter(|step| step.to == "plain buffers").count()
            };
            let both = [without(&one), without(&other)];
            assert_eq!(both.iter().sum::<usize>(), 1, "{both:?}");
        }
    });
}

#[test]
fn a_ring_that_refuses_is_left_to_threads_while_the_runtime_goes_on() {
    if !has_tokio_uring() {
        return;
    }
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    let refuse = Rule::new(Answer::Errno(forebay::Errno::EPERM)).after(3);
    let loader = model.loader("dio").fault(Box::new(Script::new(refuse.times(1))));
    let loaded = tokio_uring::start(async {
        loader.stream_on_tokio_uring().unwrap().finished().await.unwrap()
    });
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
    let steps: Vec<_> = loaded.report().files.iter().flat_map(|file| &file.fallbacks).collect();
    assert!(
        steps.iter().any(|step| (step.from, step.to) == ("tokio-uring", "threads")),
        "{steps:?}"
    );
    assert!(is_without_load_threads());
}

#[test]
fn a_failure_ends_the_stream_with_its_cause() {
    if !has_tokio_uring() {
        return;
    }
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    let broken = Rule::new(Answer::Errno(forebay::Errno::EIO)).after(2);
    let loader = model.loader("dio").fault(Box::new(Script::new(broken)));
    tokio_uring::start(async {
        let mut stream = loader.stream_on_tokio_uring().unwrap();
        let last = loop {
            match stream.next().await {
                Some(Ok(tensor)) => model.assert_right(&tensor),
                Some(Err(error)) => break error,
                None => panic!("it went well"),
            }
        };
        assert!(matches!(last, Error::Read { .. }), "{last}");
        assert!(matches!(stream.finished().await, Err(Error::AlreadyReported)));
    });
    assert!(is_without_load_threads());
}

#[test]
fn the_engine_has_a_runtime_of_its_own_where_nobody_gives_it_one() {
    let model = TestModel::new(4 << 20);
    let loaded = model.loader("dio").engine(EngineChoice::TokioUring).load().unwrap();
    for tensor in loaded.tensors() {
        model.assert_right(&tensor);
        assert_eq!(tensor.backend(), Backend::Host);
    }
    assert_eq!(loaded.report().files[0].engine, "tokio-uring");
    let mapped = model.loader("mmap").engine(EngineChoice::TokioUring).load();
    assert!(matches!(mapped, Err(Error::Option { option: "--engine", .. })));
    let cancelled = model.loader("dio").engine(EngineChoice::TokioUring).start().unwrap();
    cancelled.cancel_handle().cancel();
    std::thread::sleep(Duration::from_millis(1));
    match cancelled.finish() {
        Ok(loaded) => loaded.tensors().for_each(|tensor| model.assert_right(&tensor)),
        Err(error) => assert!(matches!(error, Error::Cancelled), "{error}"),
    }
}

#[test]
fn a_runtime_of_another_kind_ends_the_load_with_an_error() {
    let _alone = alone();
    let model = TestModel::new(1 << 20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        model.loader("dio").stream_on_tokio_uring().unwrap().finished().await
    });
    let Err(error) = ended else { panic!("there is no tokio-uring here") };
    assert!(matches!(error, Error::Internal(_)), "{error}");
    drop((local, runtime));
    assert!(is_without_load_threads());
}

//! Wakers that run their task there and then, on the thread of the load that wakes: C++ coroutines do
//! so, and executors made by hand. Whatever the task does, no thread waits for itself.

mod support;

use forebay::{Errno, Error, Fetcher, Load, Prefetch};
use forebay_tests::{Answer, Rule, Script};
use futures_util::StreamExt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use support::{TestModel, alone, is_without_load_threads};

/// A task that is run by whoever wakes it; once more if it is woken while it runs.
struct Inline {
    task: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    is_woken: Mutex<bool>,
}

impl Inline {
    fn run(task: impl Future<Output = ()> + Send + 'static) {
        let task = Mutex::new(Some(Box::pin(task) as _));
        let inline = Arc::new(Self { task, is_woken: Mutex::new(false) });
        inline.wake();
    }
}

impl Wake for Inline {
    fn wake(self: Arc<Self>) {
        *self.is_woken.lock().unwrap() = true;
        let waker = Waker::from(Arc::clone(&self));
        loop {
            // Whoever runs it looks again.
            let Ok(mut task) = self.task.try_lock() else { return };
            if !std::mem::take(&mut *self.is_woken.lock().unwrap()) {
                drop(task);
                // Whoever woke it before the lock was free has gone.
                match *self.is_woken.lock().unwrap() {
                    true => continue,
                    false => return,
                }
            }
            let Some(future) = &mut *task else { return };
            if future.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
                *task = None;
                return;
            }
        }
    }
}

/// What a task says, if it does not wait for ever.
fn said<T: Send + 'static>(
    what: &str,
    task: impl FnOnce(mpsc::Sender<T>) -> Pin<Box<dyn Future<Output = ()> + Send>>,
) -> T {
    let (sender, answer) = mpsc::channel();
    Inline::run(task(sender));
    let answer = answer.recv_timeout(Duration::from_secs(60));
    let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(is_without_load_threads(), "{what}");
    answer
}

fn modes() -> [&'static str; 3] {
    ["dio", "none", "cpu=mmap"]
}

fn load(model: &TestModel, mode: &str) -> Load {
    model.loader(mode).prefetch(Prefetch::On).chunk_bytes(64 << 10).start().unwrap()
}

#[test]
fn a_task_that_is_run_by_a_load_may_take_all_of_it() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    for mode in modes() {
        for _ in 0..10 {
            let load = load(&model, mode);
            let loaded = said(mode, |answer| {
                Box::pin(async move {
                    let mut stream = load.stream();
                    while let Some(tensor) = stream.next().await {
                        tensor.unwrap();
                    }
                    answer.send(stream.finished().await).unwrap();
                })
            });
            loaded.unwrap().tensors().for_each(|tensor| model.assert_right(&tensor));
        }
    }
}

#[test]
fn and_may_drop_it_anywhere() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    for mode in modes() {
        for taken in 0..20 {
            let load = load(&model, mode);
            let tensors = said(mode, |answer| {
                Box::pin(async move {
                    let mut stream = load.stream();
                    let mut tensors = Vec::new();
                    while tensors.len() < taken
                        && let Some(tensor) = stream.next().await
                    {
                        tensors.push(tensor.unwrap());
                    }
                    drop(stream);
                    answer.send(tensors).unwrap();
                })
            });
            tensors.iter().for_each(|tensor| model.assert_right(tensor));
        }
    }
}

#[test]
fn and_hears_why_it_failed() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    for after in [0, 3, 20] {
        let rule = Rule::new(Answer::Errno(Errno::EIO)).after(after).times(1);
        let loader = model.loader("dio").chunk_bytes(64 << 10).fault(Box::new(Script::new(rule)));
        let load = loader.start().unwrap();
        let error = said("a read fails", |answer| {
            Box::pin(async move {
                let mut stream = load.stream();
                while let Some(tensor) = stream.next().await {
                    if let Err(error) = tensor {
                        return answer.send(error).unwrap();
                    }
                }
            })
        });
        assert!(matches!(error, Error::Read { .. }), "{error}");
    }
}

#[test]
fn a_fetcher_may_be_asked_and_dropped_by_tasks_that_it_runs() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    let names: Vec<String> = model.tensors.keys().cloned().collect();
    for fails in [false, true] {
        let mut builder = Fetcher::builder(&model.path).device_budget(64 << 20);
        if fails {
            let rule = Rule::new(Answer::Errno(Errno::EIO)).after(2);
            builder = builder.fault(Box::new(Script::new(rule)));
        }
        let fetcher = builder.start().unwrap();
        let names = names.clone();
        let fetched = said("fetching", |answer| {
            Box::pin(async move {
                let mut fetched = Vec::new();
                for name in names {
                    let Ok(fetch) = fetcher.fetch_whole(&name, 0) else { break };
                    match fetch.await {
                        Ok(tensor) => fetched.push(tensor),
                        Err(error) => {
                            assert!(matches!(error, Error::AlreadyReported), "{error}");
                            let why = fetcher.check().unwrap_err();
                            assert!(
                                matches!(why, Error::Read { .. } | Error::AlreadyReported),
                                "{why}"
                            );
                            break;
                        }
                    }
                }
                drop(fetcher);
                answer.send(fetched).unwrap();
            })
        });
        assert_eq!(fetched.len() == model.tensors.len(), !fails);
        fetched.iter().for_each(|tensor| model.assert_right(tensor));
    }
}

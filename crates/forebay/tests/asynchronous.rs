//! Loads on async runtimes: the same tensors, by stream and by name, and every way to end early.

mod support;

use forebay::{Error, Loaded};
use forebay_tests::{Answer, Rule, Script};
use futures_util::StreamExt;
// It polls when it is woken, and sleeps until then: what is never woken hangs.
use pollster::block_on;
use std::collections::BTreeSet;
use std::sync::Arc;
use support::{TestModel, alone, is_without_load_threads};

async fn all_of(model: &TestModel, mode: &str) -> Loaded {
    let mut load = model.loader(mode).start().unwrap().stream();
    let mut names = BTreeSet::new();
    while let Some(tensor) = load.next().await {
        let tensor = tensor.unwrap();
        model.assert_right(&tensor);
        assert!(names.insert(tensor.name().to_owned()), "{} came twice", tensor.name());
    }
    assert_eq!(names.len(), model.tensors.len());
    load.finished().await.unwrap()
}

#[test]
fn every_tensor_lands_once_on_any_runtime() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    let single = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let several = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for mode in ["auto", "dio", "none", "mmap", "cpu=mmap,host=dio"] {
        for loaded in [
            block_on(all_of(&model, mode)),
            single.block_on(all_of(&model, mode)),
            several.block_on(all_of(&model, mode)),
        ] {
            loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
        }
        assert!(is_without_load_threads(), "{mode}");
    }
}

#[test]
fn single_tensors_come_by_name_beside_the_stream() {
    let _alone = alone();
    let model = Arc::new(TestModel::new(4 << 20));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let load = model.loader("dio").start().unwrap();
        assert!(load.tensor("none of that name").is_none());
        let tasks: Vec<_> = (model.tensors.keys())
            .flat_map(|name| [name, name])
            .map(|name| {
                let (landing, model) = (load.tensor(name).unwrap(), Arc::clone(&model));
                let name = name.clone();
                tokio::spawn(async move {
                    let tensor = landing.await.unwrap();
                    assert_eq!(tensor.name(), name);
                    model.assert_right(&tensor);
                })
            })
            .collect();
        let after = load.tensor(model.tensors.keys().next().unwrap()).unwrap();
        load.finished().await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        model.assert_right(&after.await.unwrap());
    });
    assert!(is_without_load_threads());
}

#[test]
fn a_failure_ends_the_stream_with_its_cause_and_wakes_those_who_wait() {
    let _alone = alone();
    let model = TestModel::new(4 << 20);
    let broken = Rule::new(Answer::Errno(forebay::Errno::EIO)).after(2);
    let loader = model.loader("dio").fault(Box::new(Script::new(broken)));
    let mut load = loader.start().unwrap().stream();
    let landings: Vec<_> = model.tensors.keys().map(|name| load.tensor(name).unwrap()).collect();
    block_on(async {
        let error = loop {
            match load.next().await {
                Some(Ok(tensor)) => model.assert_right(&tensor),
                Some(Err(error)) => break error,
                None => panic!("it went well"),
            }
        };
        assert!(matches!(error, Error::Read { .. }), "{error}");
        assert!(load.next().await.is_none());
        let mut missing = 0;
        for landing in landings {
            match landing.await {
                Ok(tensor) => model.assert_right(&tensor),
                Err(error) => {
                    assert!(matches!(error, Error::AlreadyReported), "{error}");
                    missing += 1;
                }
            }
        }
        assert!(missing > 0);
        assert!(matches!(load.finished().await, Err(Error::AlreadyReported)));
    });
    assert!(is_without_load_threads());
}

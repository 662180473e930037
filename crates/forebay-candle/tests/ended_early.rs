//! Loads that do not come to their end hand out nothing, and leave nothing behind that writes.

use candle_core::Device;
use forebay::{Cancel, Loader};
use forebay_candle::{Error, Tensors};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const BYTES: usize = 64 << 20;

fn model(folder: &Path) -> std::path::PathBuf {
    let half = BYTES / 2;
    let tensor = |name: &str, dtype: &str, elements: usize, from: usize| {
        let offsets = format!("[{from},{}]", from + half);
        format!(r#""{name}":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":{offsets}}}"#)
    };
    let (a, b) = (tensor("a", "F32", half / 4, 0), tensor("b", "U8", half, half));
    let header = format!("{{{a},{b}}}");
    let path = folder.join("model.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&vec![7; BYTES]).unwrap();
    path
}

fn loader(path: &Path) -> Loader {
    Loader::new(path).progress_interval(Duration::from_millis(1)).chunk_bytes(64 << 10)
}

#[test]
fn a_cancelled_load_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path());
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let loader = loader(&path).cancel_with(&cancel).on_progress(move |_| stop.cancel());
    let error = Tensors::load(loader, &Device::Cpu).err().expect("it was cancelled");
    assert!(matches!(error, Error::Load(forebay::Error::Cancelled)), "{error}");
    let error = candle_core::Error::from(error).to_string();
    assert!(error.contains("cancelled"), "{error}");
}

#[test]
fn a_panic_of_the_caller_goes_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path());
    let loader = loader(&path).on_progress(|_| panic!("the caller's"));
    let panic = catch_unwind(AssertUnwindSafe(|| Tensors::load(loader, &Device::Cpu).map(drop)));
    assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"the caller's"));
}

#[test]
fn progress_is_told_to_the_end_and_all_bytes_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path());
    let done = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&done);
    let loader = loader(&path).on_progress(move |progress| {
        seen.store(progress.done_bytes, Ordering::Relaxed);
    });
    let tensors = Tensors::load(loader, &Device::Cpu).unwrap();
    assert_eq!(done.load(Ordering::Relaxed), BYTES as u64);
    let all = tensors.tensor("b").unwrap().to_vec1::<u8>().unwrap();
    assert!(all.len() == BYTES / 2 && all.iter().all(|it| *it == 7));
    let seven = f32::from_le_bytes([7; 4]).to_bits();
    let all = tensors.tensor("a").unwrap().to_vec1::<f32>().unwrap();
    assert!(all.len() == BYTES / 8 && all.iter().all(|it| it.to_bits() == seven));
}

#[test]
fn a_file_that_is_no_model_is_an_error_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, b"no model at all").unwrap();
    let error = forebay_candle::load(&path, &Device::Cpu).unwrap_err();
    let remedy = match &error {
        Error::Load(error) => error.remedy().expect("damaged files have one"),
        other => panic!("{other}"),
    };
    assert!(candle_core::Error::from(error).to_string().contains(&remedy));
}

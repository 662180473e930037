//! What C sees of models and of tensors that have landed.
#![allow(clippy::undocumented_unsafe_blocks, reason = "every call is what the header allows")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "every call is what the header allows")]

#[path = "support/calls.rs"]
mod calls;
mod support;

use calls::{c_path, failed, loader, made, name, next, owned, run, sha256, start, words};
use forebay_capi::*;
use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use support::{MODELS, fixture};

fn open(path: &Path) -> Box<Model> {
    let path = c_path(path);
    owned(made(|to| unsafe { forebay_model_open(path.as_ptr(), to) }).unwrap()).unwrap()
}

fn tensors(loaded: &Loaded) -> Vec<&Tensor> {
    let tensor = |index| made(|to| forebay_loaded_tensor(Some(loaded), index, to)).unwrap();
    (0..forebay_loaded_tensor_count(Some(loaded))).map(|index| unsafe { &*tensor(index) }).collect()
}

#[test]
fn metadata_is_what_rust_reads() {
    let path = fixture("gguf/values.gguf");
    let (model, rust) = (open(&path), forebay::Model::open(&path).unwrap());
    let metadata = rust.catalog().metadata();
    assert_eq!(forebay_model_metadata_count(Some(&model)), metadata.len());
    let mut kinds = [0; 4];
    for (index, (key, value)) in metadata.iter().enumerate() {
        let found = made(|to| forebay_model_metadata_key(Some(&model), index, to)).unwrap();
        assert_eq!(words(found), key);
        let mut bytes = std::mem::MaybeUninit::uninit();
        let text = made(|to| unsafe {
            forebay_model_metadata_text(Some(&model), found, to, Some(&mut bytes))
        });
        let bytes = unsafe { bytes.assume_init() };
        let text = unsafe { std::slice::from_raw_parts(text.unwrap().cast::<u8>(), bytes + 1) };
        let expected = match value {
            forebay::Value::String(text) => text.as_bytes().to_vec(),
            other => other.to_string().into_bytes(),
        };
        assert_eq!(text.split_last(), Some((&0, &expected[..])), "{key}");
        let number = made(|to| unsafe { forebay_model_metadata_u64(Some(&model), found, to) });
        assert_eq!(number.ok(), value.as_u64(), "{key}");
        let float = made(|to| unsafe { forebay_model_metadata_f64(Some(&model), found, to) });
        assert_eq!(float.ok().map(f64::to_bits), value.as_f64().map(f64::to_bits), "{key}");
        let boolean = made(|to| unsafe { forebay_model_metadata_bool(Some(&model), found, to) });
        assert_eq!(boolean.ok(), value.as_bool(), "{key}");
        let is = [
            value.as_u64().is_some(),
            value.as_f64().is_some(),
            value.as_bool().is_some(),
            value.as_str().is_some(),
        ];
        kinds = std::array::from_fn(|kind| kinds[kind] + usize::from(is[kind]));
    }
    assert!(
        kinds.iter().all(|&count| count > 0),
        "the fixture has a value of each kind: {kinds:?}"
    );
}

#[test]
fn every_file_of_a_model_is_named() {
    for name in MODELS {
        let (model, rust) = (open(&fixture(name)), forebay::Model::open(fixture(name)).unwrap());
        let files = rust.catalog().files();
        assert_eq!(forebay_model_file_count(Some(&model)), files.len());
        for (index, expected) in files.iter().enumerate() {
            let file = made(|to| forebay_model_file(Some(&model), index, to)).unwrap();
            let file = unsafe { &*file };
            assert_eq!(Path::new(&words(file.path)), rust.file_path(index));
            assert_eq!(file.bytes, expected.bytes);
        }
        for expected in rust.catalog().tensors() {
            let name = CString::new(expected.name.as_str()).unwrap();
            let found =
                made(|to| unsafe { forebay_model_find_tensor(Some(&model), name.as_ptr(), to) });
            let found = unsafe { &*found.unwrap() };
            let shape = unsafe { std::slice::from_raw_parts(found.shape, found.rank) };
            assert_eq!(
                (found.offset, found.bytes, shape),
                (expected.offset, expected.bytes, &expected.shape[..])
            );
            assert_eq!(words(found.dtype), expected.dtype.name());
        }
    }
}

/// Handed out by `next`, they stay where they are when the load is finished.
#[test]
fn tensors_that_were_handed_out_live_on_in_what_was_loaded() {
    for model in MODELS.map(fixture) {
        for settings in [&[(c"device", c"host")][..], &[(c"gpu-layers", c"0")]] {
            let mut load = start(loader(&model, settings)).unwrap();
            let mut handed_out = BTreeMap::new();
            // All but one: finishing brings the last.
            let count = forebay_model_tensor_count(Some(&open(&model)));
            for _ in 1..count {
                let tensor = next(&mut load).unwrap();
                handed_out.insert(name(unsafe { &*tensor }), tensor);
            }
            assert_eq!(handed_out.len(), count - 1);
            let loaded = made(|to| forebay_load_finish(Some(load), to)).unwrap();
            let loaded = owned(loaded).unwrap();
            for (name, tensor) in handed_out {
                let name = CString::new(name).unwrap();
                let found = made(|to| unsafe {
                    forebay_loaded_find_tensor(Some(&loaded), name.as_ptr(), to)
                });
                assert_eq!(found, Ok(tensor));
            }
            let digests = forebay::Loader::new(&model).load().unwrap().digests().unwrap();
            for tensor in tensors(&loaded) {
                assert_eq!(Some(&sha256(tensor)), digests.get(&name(tensor)));
            }
        }
    }
}

#[test]
fn bytes_are_the_same_wherever_they_are_read() {
    let model = fixture("gguf/every-type.gguf");
    for (settings, backend, is_mapped) in [
        (&[(c"device", c"host")][..], "host", false),
        (&[(c"gpu-layers", c"0"), (c"load-mode", c"mmap")], "cpu", true),
        (&[(c"gpu-layers", c"0"), (c"load-mode", c"dio")], "cpu", false),
    ] {
        let loaded = run(loader(&model, settings)).unwrap();
        for tensor in tensors(&loaded) {
            assert_eq!((words(tensor.backend).as_str(), tensor.device), (backend, -1));
            assert_eq!((tensor.is_mapped, tensor.device_address), (is_mapped, 0));
            let bytes = usize::try_from(unsafe { &*tensor.info }.bytes).unwrap();
            let mut read = vec![0; bytes];
            let buffer = read.as_mut_ptr().cast();
            let status = unsafe { forebay_tensor_read(Some(tensor), 0, buffer, bytes) };
            assert_eq!(status, Status::ForebayOk);
            let seen = unsafe { std::slice::from_raw_parts(tensor.data.cast::<u8>(), bytes) };
            assert_eq!(seen, read);
            let past = unsafe { forebay_tensor_read(Some(tensor), 1, buffer, bytes) };
            assert_eq!(failed(past).0, Status::ForebayInvalidArgument);
            let part = made(|to| forebay_tensor_part(Some(tensor), 0, to)).unwrap();
            assert_eq!((tensor.part_count, unsafe { &*part }.bytes), (1, bytes as u64));
            assert!(made(|to| forebay_tensor_part(Some(tensor), 1, to)).is_err());
        }
    }
}

/// Neighbours of what is lent stay as they are, and repacked tensors read back as in the file.
#[test]
fn lent_memory_holds_the_tensor_and_nothing_around_it_changes() {
    const GUARD: u8 = 0x5A;
    let model = fixture("gguf/aligned-4096.gguf");
    for settings in
        [&[(c"engine", c"threads")][..], &[(c"load-mode", c"dio")], &[(c"repack", c"on")]]
    {
        let mut memory = vec![GUARD; 5000];
        let mut loader = loader(&model, settings);
        let at = unsafe { memory.as_mut_ptr().add(101) };
        let name = c"second".as_ptr();
        let lent = unsafe { forebay_loader_into_host(Some(&mut loader), name, at.cast(), 4899) };
        assert_eq!(lent, Status::ForebayOk);
        let loaded = run(loader).unwrap();
        let tensor = made(|to| unsafe { forebay_loaded_find_tensor(Some(&loaded), name, to) });
        let tensor = unsafe { &*tensor.unwrap() };
        assert_eq!((tensor.data, words(tensor.backend)), (at.cast_const().cast(), "host".into()));
        let digest = sha256(tensor);
        forebay_loaded_free(Some(loaded));
        let digests = forebay::Loader::new(&model).load().unwrap().digests().unwrap();
        assert_eq!(Some(&digest), digests.get("second"));
        let around = memory[..101].iter().chain(&memory[101 + 4224..]);
        assert!(around.copied().all(|byte| byte == GUARD));
    }
}

unsafe extern "C" fn collect(user: *mut c_void, tensor: *const Tensor) -> c_int {
    let (thread, names) = unsafe { &mut *user.cast::<(std::thread::ThreadId, Vec<String>)>() };
    assert_eq!(*thread, std::thread::current().id());
    names.push(name(unsafe { &*tensor }));
    0
}

#[test]
fn callbacks_hear_of_every_tensor_on_the_thread_that_runs_the_load() {
    let model = fixture(MODELS[0]);
    let mut heard = (std::thread::current().id(), Vec::<String>::new());
    let mut loader = loader(&model, &[(c"device", c"host")]);
    let user = (&raw mut heard).cast();
    unsafe { forebay_loader_on_tensor(Some(&mut loader), Some(collect), user) };
    let loaded = run(loader).unwrap();
    let mut names: Vec<String> = tensors(&loaded).into_iter().map(name).collect();
    names.sort_unstable();
    heard.1.sort_unstable();
    assert_eq!(heard.1, names);
}

/// As the header promises: const handles serve several threads, others go from one to another.
#[test]
fn threads_share_what_is_const_and_pass_on_the_rest() {
    let model = fixture(MODELS[0]);
    let load = start(loader(&model, &[(c"device", c"host")])).unwrap();
    let finish = || owned(made(|to| forebay_load_finish(Some(load), to)).unwrap()).unwrap();
    let loaded = std::thread::scope(|scope| scope.spawn(finish).join().unwrap());
    let digest = || {
        let loaded: &Loaded = &loaded;
        tensors(loaded).into_iter().map(sha256).collect::<Vec<_>>()
    };
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(digest)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(all.iter().all(|digests| *digests == all[0] && !digests.is_empty()));
}

#[test]
fn versions_are_told() {
    assert_eq!(forebay_abi_version(), FOREBAY_ABI_VERSION);
    assert_eq!(words(forebay_version()), env!("CARGO_PKG_VERSION"));
}

/// Neither paths nor names are what C would like them to be.
#[test]
fn paths_are_bytes_and_names_have_their_length() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe.safetensors"));
    let header = br#"{"a\u0000b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(b"xyz");
    std::fs::write(&path, file).unwrap();
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let model = made(|to| unsafe { forebay_model_open(path.as_ptr(), to) }).unwrap();
    let model = owned(model).unwrap();
    let found = made(|to| forebay_model_file(Some(&model), 0, to)).unwrap();
    assert_eq!(unsafe { std::ffi::CStr::from_ptr((*found).path) }, path.as_c_str());
    let info = unsafe { &*made(|to| forebay_model_tensor(Some(&model), 0, to)).unwrap() };
    let name = unsafe { std::slice::from_raw_parts(info.name.cast::<u8>(), info.name_bytes + 1) };
    assert_eq!(name, b"a\0b\0");
    let loader = made(|to| unsafe { forebay_loader_new(path.as_ptr(), None, to) }).unwrap();
    let loaded = run(owned(loader).unwrap()).unwrap();
    assert_eq!(forebay_loaded_tensor_count(Some(&loaded)), 1);
    // Of the open model, wherever its file has gone, and when the model has been freed.
    std::fs::remove_file(std::ffi::OsStr::from_bytes(path.as_bytes())).unwrap();
    let loader = made(|to| forebay_loader_of(Some(&model), None, to)).unwrap();
    drop(model);
    let loaded = run(owned(loader).unwrap()).unwrap();
    assert_eq!(forebay_loaded_tensor_count(Some(&loaded)), 1);
}

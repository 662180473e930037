//! What a caller may do wrong, and how a load ends before its time.
#![allow(clippy::undocumented_unsafe_blocks, reason = "every call is what the header allows")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "every call is what the header allows")]

#[path = "support/calls.rs"]
mod calls;
mod support;

use calls::{c_path, failed, loader, made, model_of, name, next, owned, run, start};
use forebay_capi::*;
use std::ffi::{CStr, c_int, c_void};
use std::path::Path;
use std::ptr;
use support::{MODELS, fixture};

#[test]
fn null_is_an_answer_and_no_crash() {
    type Call = (&'static str, fn() -> Status);
    let calls: [Call; 20] = [
        ("options_new", || forebay_options_new(None)),
        ("options_set", || unsafe { forebay_options_set(None, c"a".as_ptr(), c"b".as_ptr()) }),
        ("model_open", || unsafe { forebay_model_open(c"a".as_ptr(), None) }),
        ("model_file", || forebay_model_file(None, 0, None)),
        ("model_tensor", || forebay_model_tensor(None, 0, None)),
        ("find_tensor", || unsafe { forebay_model_find_tensor(None, ptr::null(), None) }),
        ("plan_json", || forebay_plan_json(None, None, None)),
        ("metadata_key", || forebay_model_metadata_key(None, 0, None)),
        ("metadata_u64", || unsafe { forebay_model_metadata_u64(None, ptr::null(), None) }),
        ("loader_new", || unsafe { forebay_loader_new(c"a".as_ptr(), None, None) }),
        ("loader_of", || forebay_loader_of(None, None, None)),
        ("into_host", || unsafe {
            forebay_loader_into_host(None, c"a".as_ptr(), ptr::null_mut(), 0)
        }),
        ("into_device", || unsafe { forebay_loader_into_device(None, c"a".as_ptr(), 0, 0, 0) }),
        ("on_tensor", || unsafe { forebay_loader_on_tensor(None, None, ptr::null_mut()) }),
        ("cancel_with", || forebay_loader_cancel_with(None, None)),
        ("loader_run", || forebay_loader_run(None, None)),
        ("load_next", || forebay_load_next(None, None)),
        ("load_finish", || forebay_load_finish(None, None)),
        ("loaded_tensor", || forebay_loaded_tensor(None, 0, None)),
        ("tensor_sha256", || forebay_tensor_sha256(None, None)),
    ];
    for (what, call) in calls {
        let (status, words) = failed(call());
        assert_eq!(status, Status::ForebayInvalidArgument, "{what}");
        assert!(words.ends_with("is NULL"), "{what}: {words}");
    }
    // With a place for the answer, the handle is what is missing, and the place holds NULL.
    let mut model = std::mem::MaybeUninit::new(ptr::dangling_mut::<Model>());
    let open = unsafe { forebay_model_open(ptr::null(), Some(&mut model)) };
    assert_eq!(failed(open).1, "path is NULL");
    assert!(unsafe { model.assume_init() }.is_null());
    assert_eq!((forebay_model_tensor_count(None), forebay_loaded_tensor_count(None)), (0, 0));
    assert!(forebay_model_format(None).is_null());
    forebay_options_free(None);
    forebay_model_free(None);
    forebay_loader_free(None);
    forebay_load_free(None);
    forebay_loaded_free(None);
    forebay_cancel_free(None);
    forebay_cancel_request(None);
    unsafe { forebay_text_free(ptr::null_mut()) };
}

#[test]
fn files_that_are_no_models_are_told_apart() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    std::fs::write(in_folder("prose.gguf"), "not a model").unwrap();
    for (path, status) in [
        (in_folder("missing.gguf"), Status::ForebayFile),
        (in_folder("prose.gguf"), Status::ForebayFormat),
        (folder.path().to_owned(), Status::ForebayFormat),
    ] {
        let open = made(|to| unsafe { forebay_model_open(c_path(&path).as_ptr(), to) });
        let (found, words) = open.unwrap_err();
        assert_eq!(found, status, "{words}");
        assert!(words.contains("\n  remedy: "), "{words}");
        assert_eq!(run(loader(&path, &[])).err().unwrap().0, status);
        assert_eq!(start(loader(&path, &[])).err().unwrap().0, status);
    }
}

fn set(key: &CStr, value: &CStr) -> (Status, String) {
    let mut options = owned(made(|to| forebay_options_new(to)).unwrap()).unwrap();
    failed(unsafe { forebay_options_set(Some(&mut options), key.as_ptr(), value.as_ptr()) })
}

#[test]
fn options_that_are_none_are_named() {
    for (key, value, words) in [
        (c"speed", c"high", "'speed' is no option"),
        (c"engine", c"steam", "--engine: 'steam' is no engine"),
        (c"staging", c"64 parsecs", "--staging"),
    ] {
        let (status, said) = set(key, value);
        assert_eq!(status, Status::ForebayOption);
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(set(c"device", c"\xff").0, Status::ForebayInvalidArgument);
    // Options that are right each, and can't be met.
    let model = fixture(MODELS[0]);
    let too_small = [(c"staging", c"4096"), (c"chunk", c"1MiB"), (c"device", c"host")];
    assert_eq!(run(loader(&model, &too_small)).err().unwrap().0, Status::ForebayOption);
}

#[test]
fn what_is_not_there_is_not_found() {
    let model = c_path(&fixture(MODELS[0]));
    let model = made(|to| unsafe { forebay_model_open(model.as_ptr(), to) }).unwrap();
    let model = owned(model).unwrap();
    let name = c"no.such.weight".as_ptr();
    let found = made(|to| unsafe { forebay_model_find_tensor(Some(&model), name, to) });
    assert_eq!(found.unwrap_err().0, Status::ForebayNotFound);
    let count = forebay_model_tensor_count(Some(&model));
    let past = made(|to| forebay_model_tensor(Some(&model), count, to)).unwrap_err();
    assert_eq!(past.0, Status::ForebayInvalidArgument);
    let text = made(|to| unsafe { forebay_model_metadata_text(Some(&model), name, to, None) });
    assert_eq!(text.unwrap_err().0, Status::ForebayNotFound);
    let architecture = c"general.architecture".as_ptr();
    let number = made(|to| unsafe { forebay_model_metadata_u64(Some(&model), architecture, to) });
    let (status, words) = number.unwrap_err();
    assert_eq!(status, Status::ForebayNotFound);
    assert!(words.contains("is of type string"), "{words}");
}

#[test]
fn memory_that_is_too_small_or_for_nothing_is_refused() {
    let model = fixture("gguf/aligned-4096.gguf");
    let mut memory = [0_u8; 16];
    let mut lend = |name: &CStr, bytes: u64| {
        let mut loader = loader(&model, &[]);
        let at = memory.as_mut_ptr().cast();
        let lent = unsafe { forebay_loader_into_host(Some(&mut loader), name.as_ptr(), at, bytes) };
        assert_eq!(lent, Status::ForebayOk);
        run(loader).map(|_| ())
    };
    assert_eq!(lend(c"first", 12), Ok(()));
    let (status, words) = lend(c"first", 11).unwrap_err();
    assert_eq!(status, Status::ForebayOption);
    assert!(words.contains("12 bytes, and 11 are lent"), "{words}");
    let (status, words) = lend(c"no.such.weight", 16).unwrap_err();
    assert_eq!(status, Status::ForebayOption);
    assert!(words.contains("no tensor 'no.such.weight'"), "{words}");
}

/// Many tensors through little memory, so that the load is far from its end when the first lands.
const SLOW: [(&CStr, &CStr); 4] =
    [(c"device", c"host"), (c"load-mode", c"dio"), (c"chunk", c"64KiB"), (c"queue-depth", c"1")];

fn large_model(folder: &Path) -> std::path::PathBuf {
    model_of(folder, 64, 512 << 10)
}

#[test]
fn a_load_is_cancelled_before_and_during() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = large_model(folder.path());
    let cancel = owned(made(|to| forebay_cancel_new(to)).unwrap()).unwrap();
    let with_cancel = || {
        let mut loader = loader(&model, &SLOW);
        let given = forebay_loader_cancel_with(Some(&mut loader), Some(&cancel));
        assert_eq!(given, Status::ForebayOk);
        loader
    };
    let mut load = start(with_cancel()).unwrap();
    assert!(!next(&mut load).unwrap().is_null());
    std::thread::scope(|scope| {
        scope.spawn(|| forebay_cancel_request(Some(&cancel)));
    });
    let error = loop {
        match next(&mut load) {
            Ok(tensor) => assert!(!tensor.is_null(), "the load went on to its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, (Status::ForebayCancelled, "cancelled".to_owned()));
    // It says so again, and finishing says it too.
    assert_eq!(next(&mut load).unwrap_err(), error);
    let finished = made(|to| forebay_load_finish(Some(load), to));
    assert_eq!(finished.unwrap_err(), error);
    // The flag stays set.
    assert_eq!(run(with_cancel()).err().unwrap().0, Status::ForebayCancelled);
    forebay_cancel_free(Some(cancel));
}

unsafe extern "C" fn stop_at_third(user: *mut c_void, _tensor: *const Tensor) -> c_int {
    let seen = unsafe { &mut *user.cast::<u32>() };
    *seen += 1;
    c_int::from(*seen == 3)
}

unsafe extern "C" fn stop_progress(user: *mut c_void, done: u64, total: u64) -> c_int {
    assert!(done <= total);
    *unsafe { &mut *user.cast::<u32>() } += 1;
    -1
}

#[test]
fn callbacks_stop_the_load_and_no_other() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = large_model(folder.path());
    let cancel = owned(made(|to| forebay_cancel_new(to)).unwrap()).unwrap();
    let mut seen = 0_u32;
    let user = (&raw mut seen).cast();
    for (which, calls) in [("tensor", 3), ("progress", 1)] {
        seen = 0;
        let mut loader = loader(&model, &SLOW);
        forebay_loader_cancel_with(Some(&mut loader), Some(&cancel));
        let given = match which {
            "tensor" => unsafe {
                forebay_loader_on_tensor(Some(&mut loader), Some(stop_at_third), user)
            },
            _ => unsafe {
                forebay_loader_on_progress(Some(&mut loader), Some(stop_progress), user, 1)
            },
        };
        assert_eq!(given, Status::ForebayOk);
        let (status, words) = run(loader).err().unwrap();
        assert_eq!((status, seen), (Status::ForebayStopped, calls), "{which}: {words}");
    }
    // The flag that the loads shared is not set by that.
    let mut loader = loader(&model, &[(c"device", c"host")]);
    forebay_loader_cancel_with(Some(&mut loader), Some(&cancel));
    assert_eq!(forebay_loaded_tensor_count(Some(&run(loader).ok().unwrap())), 64);
}

/// Who is told that a load was stopped may free what was lent to it.
#[test]
fn nothing_is_written_once_a_step_has_failed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = model_of(folder.path(), 4, 8 << 20);
    for _ in 0..5 {
        let mut seen = 0_u32;
        let mut loader = loader(&model, &[(c"device", c"host")]);
        let mut memory = vec![0_u8; 8 << 20];
        let (start_of, bytes) = (memory.as_mut_ptr().cast(), memory.len() as u64);
        let name = c"layers.3.weight".as_ptr();
        let lent = unsafe { forebay_loader_into_host(Some(&mut loader), name, start_of, bytes) };
        assert_eq!(lent, Status::ForebayOk);
        let callback = Some(stop_progress as unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int);
        let user = (&raw mut seen).cast();
        unsafe { forebay_loader_on_progress(Some(&mut loader), callback, user, 1) };
        let mut load = start(loader).unwrap();
        let status = loop {
            match next(&mut load) {
                Ok(tensor) => assert!(!tensor.is_null(), "the callback has not stopped it"),
                Err((status, _)) => break status,
            }
        };
        assert_eq!(status, Status::ForebayStopped);
        let held = memory.clone();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(memory == held, "written to after the load has failed");
        assert_eq!(next(&mut load).unwrap_err().0, Status::ForebayStopped);
        forebay_load_free(Some(load));
    }
}

/// However small the model is: an answer other than 0 never ends in FOREBAY_OK.
#[test]
fn a_stop_at_the_very_end_still_counts() {
    let mut seen = 0_u32;
    let user = (&raw mut seen).cast();
    let mut loader = loader(&fixture(MODELS[0]), &[(c"device", c"host")]);
    let callback = Some(stop_progress as unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int);
    unsafe { forebay_loader_on_progress(Some(&mut loader), callback, user, 60_000) };
    assert_eq!(run(loader).err().unwrap().0, Status::ForebayStopped);
    assert!(seen > 0);
}

#[test]
fn a_load_that_nobody_waits_for_can_be_freed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = large_model(folder.path());
    let mut load = start(loader(&model, &SLOW)).unwrap();
    let tensor = unsafe { &*next(&mut load).unwrap() };
    assert!(name(tensor).starts_with("layers."));
    let mut progress = [0; 2].map(std::mem::MaybeUninit::<u64>::new);
    let [done, total] = &mut progress;
    assert_eq!(forebay_load_progress(Some(&mut load), Some(done), Some(total)), Status::ForebayOk);
    let [done, total] = progress.map(|number| unsafe { number.assume_init() });
    assert!(done >= 512 << 10 && done < total && total == 32 << 20, "{done} of {total}");
    forebay_load_free(Some(load));
}

#[test]
fn a_file_that_changes_meanwhile_is_no_success() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let model = model_of(folder.path(), 4, 1 << 20);
    let load = start(loader(&model, &[(c"device", c"host")])).unwrap();
    // Some file systems count time in steps: the length tells as well.
    let mut file = std::fs::OpenOptions::new().append(true).open(&model).unwrap();
    std::io::Write::write_all(&mut file, b"more").unwrap();
    let (status, words) = made(|to| forebay_load_finish(Some(load), to)).unwrap_err();
    assert_eq!(status, Status::ForebayChanged, "{words}");
}

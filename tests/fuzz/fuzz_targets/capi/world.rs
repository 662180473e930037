//! A program in C that has some handles, and what it may do with them.
#![allow(clippy::vec_box, reason = "handles are boxes, whose address C holds")]

use forebay_capi::*;
use forebay_fuzz::folder;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::OpenOptions;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::ptr;

/// Handles of a kind at most; a further one takes the place of the oldest, which is freed.
const HANDLES_MAX: usize = 2;

/// Lent memory of a load is at most this.
const LENT_BYTES_MAX: u64 = 1 << 20;

const OPTIONS: [(&CStr, &CStr); 24] = [
    (c"device", c"host"),
    (c"device", c"cuda:0"),
    (c"gpu-layers", c"0"),
    (c"gpu-layers", c"all"),
    (c"gpu-layers", c"1"),
    (c"place", c"w=cpu"),
    (c"place", c".=host"),
    (c"load-mode", c"mmap"),
    (c"load-mode", c"dio"),
    (c"load-mode", c"none"),
    (c"load-mode", c"mlock"),
    (c"load-mode", c"mlock-strict"),
    (c"load-mode", c"device=mmap,cpu=none"),
    (c"no-fallback", c"on"),
    (c"engine", c"threads"),
    (c"engine", c"uring"),
    (c"chunk", c"4096"),
    (c"queue-depth", c"1"),
    (c"staging", c"8KiB"),
    (c"staging", c"1"),
    (c"prefetch", c"on"),
    (c"reclaim", c"off"),
    (c"repack", c"on"),
    (c"no-such", c"option"),
];

/// A load's loader, and what its callbacks need.
struct Prepared {
    loader: Box<Loader>,
    /// Calls that are left until a callback answers that it has had enough.
    patience: Box<c_int>,
}

pub(crate) struct World {
    // In the order in which they are to go: the lent memory and the callbacks' last.
    loadeds: Vec<Box<Loaded>>,
    loads: Vec<(Box<Load>, Box<c_int>)>,
    prepared: Vec<Prepared>,
    models: Vec<Box<Model>>,
    options: Vec<Box<Options>>,
    cancels: Vec<Box<Cancel>>,
    lent: Vec<Box<[u8]>>,
    path: PathBuf,
    c_path: CString,
    contents: Vec<u8>,
    /// Whether the file has been as it is from the start.
    is_untouched: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        (self.loadeds.drain(..)).for_each(|loaded| forebay_loaded_free(Some(loaded)));
        (self.loads.drain(..)).for_each(|(load, _)| forebay_load_free(Some(load)));
        (self.prepared.drain(..)).for_each(|it| forebay_loader_free(Some(it.loader)));
        (self.models.drain(..)).for_each(|model| forebay_model_free(Some(model)));
        (self.options.drain(..)).for_each(|options| forebay_options_free(Some(options)));
        (self.cancels.drain(..)).for_each(|cancel| forebay_cancel_free(Some(cancel)));
    }
}

impl World {
    pub(crate) fn new(file: &[u8]) -> Self {
        let path = folder::put("model", file, file.len() as u64);
        let c_path = CString::new(path.to_str().expect("made of ASCII")).expect("no NUL in it");
        Self {
            loadeds: Vec::new(),
            loads: Vec::new(),
            prepared: Vec::new(),
            models: Vec::new(),
            options: Vec::new(),
            cancels: Vec::new(),
            lent: Vec::new(),
            path,
            c_path,
            contents: file.to_vec(),
            is_untouched: true,
        }
    }

    pub(crate) fn call(&mut self, function: u8, first: u8, second: u8) {
        match function % 26 {
            0 => self.new_options(),
            1 => self.set_option(first, second),
            2 => forebay_options_free(oldest(&mut self.options)),
            3 => self.open_model(),
            4 => self.look_at_model(),
            5 => self.plan(first),
            6 => forebay_model_free(oldest(&mut self.models)),
            7 => self.new_cancel(),
            8 => forebay_cancel_request(self.cancels.last().map(|it| &**it)),
            9 => forebay_cancel_free(oldest(&mut self.cancels)),
            10 | 11 => self.new_loader(first),
            12 => self.lend(first, second),
            13 => self.on_tensor(first),
            14 => self.on_progress(first, second),
            15 => self.cancel_with(),
            16 => self.run(),
            17 => forebay_loader_free(self.prepared.pop().map(|it| it.loader)),
            18 => self.start(),
            19 => self.next(),
            20 => self.progress(),
            21 => self.finish(),
            22 => forebay_load_free(self.loads.pop().map(|(load, _)| load)),
            23 => self.look_at_loaded(),
            24 => forebay_loaded_free(oldest(&mut self.loadeds)),
            _ => self.change_file(first, second),
        }
    }

    fn new_options(&mut self) {
        let options = made(|to| forebay_options_new(to)).expect("there is nothing to refuse");
        keep(&mut self.options, options, |it| forebay_options_free(Some(it)));
    }

    fn set_option(&mut self, first: u8, second: u8) {
        let (key, mut value) = OPTIONS[usize::from(first) % OPTIONS.len()];
        // Now and then a value of another option.
        if second >= 240 {
            value = OPTIONS[usize::from(second) % OPTIONS.len()].1;
        }
        let options = self.options.last_mut().map(|it| &mut **it);
        // SAFETY: both texts live for ever.
        checked(unsafe { forebay_options_set(options, key.as_ptr(), value.as_ptr()) });
    }

    fn open_model(&mut self) {
        let path = self.c_path.as_ptr();
        // SAFETY: the path outlives the call.
        let Some(model) = made(|to| unsafe { forebay_model_open(path, to) }) else { return };
        keep(&mut self.models, model, |it| forebay_model_free(Some(it)));
    }

    fn look_at_model(&self) {
        let model = self.models.last().map(|it| &**it);
        let count = forebay_model_tensor_count(model);
        for index in 0..=count {
            let info = made_pointer(|to| forebay_model_tensor(model, index, to));
            assert_eq!(info.is_some(), index < count);
            let Some(info) = info else { continue };
            let name = assert_info(info, index);
            // SAFETY: a text of the model's, which is alive.
            let found =
                made_pointer(|to| unsafe { forebay_model_find_tensor(model, name.as_ptr(), to) });
            // A name that holds a NUL can't be given.
            let is_whole = name.to_bytes().len() == info.name_bytes;
            assert!(!is_whole || found.is_some_and(|found| ptr::eq(found, info)));
        }
        let files = forebay_model_file_count(model);
        for index in 0..=files {
            let file = made_pointer(|to| forebay_model_file(model, index, to));
            assert_eq!(file.is_some(), index < files);
        }
        assert_eq!(forebay_model_format(model).is_null(), model.is_none());
        for index in 0..=forebay_model_metadata_count(model) {
            let Some(key) = made(|to| forebay_model_metadata_key(model, index, to)) else { break };
            look_at_value(model, key);
        }
    }

    fn plan(&self, first: u8) {
        let model = self.models.last().map(|it| &**it);
        let options = self.options.last().filter(|_| first.is_multiple_of(2)).map(|it| &**it);
        if let Some(json) = made_text(|to| forebay_plan_json(model, options, to)) {
            check_json(json);
        }
    }

    fn new_cancel(&mut self) {
        let cancel = made(|to| forebay_cancel_new(to)).expect("there is nothing to refuse");
        keep(&mut self.cancels, cancel, |it| forebay_cancel_free(Some(it)));
    }

    fn new_loader(&mut self, first: u8) {
        let options = self.options.last().filter(|_| first.is_multiple_of(2)).map(|it| &**it);
        let path = self.c_path.as_ptr();
        // SAFETY: the path outlives the call.
        let loader = made(|to| unsafe { forebay_loader_new(path, options, to) });
        let loader = owned(loader.expect("nothing is opened yet"));
        if self.prepared.len() == HANDLES_MAX {
            forebay_loader_free(Some(self.prepared.remove(0).loader));
        }
        self.prepared.push(Prepared { loader, patience: Box::new(c_int::MAX) });
    }

    /// Lends memory for a tensor of the open model, or of none; too little of it at times.
    fn lend(&mut self, first: u8, second: u8) {
        let model = self.models.last().map(|it| &**it);
        let info = made_pointer(|to| forebay_model_tensor(model, first.into(), to));
        let (name, wanted) = info.map_or((c"no such".as_ptr(), 16), |info| (info.name, info.bytes));
        let bytes = match second % 8 {
            0 => wanted.saturating_sub(1),
            1 => wanted.saturating_add(1),
            _ => wanted,
        };
        let loader = self.prepared.last_mut().map(|it| &mut *it.loader);
        if second % 8 == 7 {
            // SAFETY: a text of the model's; there is no device to copy anything.
            checked(unsafe { forebay_loader_into_device(loader, name, 0, 4096, bytes) });
        } else if bytes <= LENT_BYTES_MAX {
            let bytes = usize::try_from(bytes).expect("a small one");
            // Odd addresses too.
            let odd = usize::from(second / 8 % 8);
            let mut memory = vec![0; bytes + odd].into_boxed_slice();
            let place: *mut c_void = memory[odd..].as_mut_ptr().cast();
            // SAFETY: a text of the model's; memory that goes when all loads are gone.
            checked(unsafe { forebay_loader_into_host(loader, name, place, bytes as u64) });
            self.lent.push(memory);
        }
    }

    fn on_tensor(&mut self, first: u8) {
        let Some(Prepared { loader, patience }) = self.prepared.last_mut() else { return };
        **patience = c_int::from(first);
        let user: *mut c_void = (&raw mut **patience).cast();
        // SAFETY: the callback's number goes after the load, and nobody else looks at it.
        checked(unsafe { forebay_loader_on_tensor(Some(loader), Some(tensor_landed), user) });
    }

    fn on_progress(&mut self, first: u8, second: u8) {
        let Some(Prepared { loader, patience }) = self.prepared.last_mut() else { return };
        **patience = c_int::from(first);
        let user: *mut c_void = (&raw mut **patience).cast();
        let callback: ProgressCallback =
            if second.is_multiple_of(4) { None } else { Some(progressed) };
        let interval_ms = u32::from(second % 2);
        // SAFETY: as above.
        checked(unsafe { forebay_loader_on_progress(Some(loader), callback, user, interval_ms) });
    }

    fn cancel_with(&mut self) {
        let cancel = self.cancels.last().map(|it| &**it);
        let loader = self.prepared.last_mut().map(|it| &mut *it.loader);
        checked(forebay_loader_cancel_with(loader, cancel));
    }

    fn run(&mut self) {
        let Some(Prepared { loader, patience: _patience }) = self.prepared.pop() else { return };
        let Some(loaded) = made(|to| forebay_loader_run(Some(loader), to)) else { return };
        keep(&mut self.loadeds, loaded, |it| forebay_loaded_free(Some(it)));
    }

    fn start(&mut self) {
        let Some(Prepared { loader, patience }) = self.prepared.pop() else { return };
        let Some(load) = made(|to| forebay_load_start(Some(loader), to)) else { return };
        if self.loads.len() == HANDLES_MAX {
            forebay_load_free(Some(self.loads.remove(0).0));
        }
        self.loads.push((owned(load), patience));
    }

    fn next(&mut self) {
        let load = self.loads.last_mut().map(|(load, _)| &mut **load);
        let Some(tensor) = made(|to| forebay_load_next(load, to)) else { return };
        // SAFETY: NULL at the end; else alive as long as the load.
        if let Some(tensor) = unsafe { tensor.as_ref() } {
            self.look_at_tensor(tensor);
        }
    }

    fn progress(&mut self) {
        let load = self.loads.last_mut().map(|(load, _)| &mut **load);
        let (mut done, mut total) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        if checked(forebay_load_progress(load, Some(&mut done), Some(&mut total))) {
            // SAFETY: it has answered OK.
            let done = unsafe { done.assume_init() };
            // SAFETY: as above.
            let total = unsafe { total.assume_init() };
            assert!(done <= total, "{done} of {total}");
        }
    }

    fn finish(&mut self) {
        let Some((load, _patience)) = self.loads.pop() else { return };
        let Some(loaded) = made(|to| forebay_load_finish(Some(load), to)) else { return };
        keep(&mut self.loadeds, loaded, |it| forebay_loaded_free(Some(it)));
    }

    fn look_at_loaded(&self) {
        let loaded = self.loadeds.last().map(|it| &**it);
        let count = forebay_loaded_tensor_count(loaded);
        for index in 0..=count {
            let tensor = made_pointer(|to| forebay_loaded_tensor(loaded, index, to));
            assert_eq!(tensor.is_some(), index < count);
            let Some(tensor) = tensor else { continue };
            self.look_at_tensor(tensor);
            // SAFETY: alive as long as the tensor.
            let info = unsafe { &*tensor.info };
            assert_info(info, index);
            // SAFETY: a text of the tensor's.
            let found =
                made_pointer(|to| unsafe { forebay_loaded_find_tensor(loaded, info.name, to) });
            assert!(found.is_some() || info.name_bytes > 0);
        }
        if let Some(json) = made_text(|to| forebay_loaded_report_json(loaded, to)) {
            check_json(json);
        }
    }

    /// Reads a tensor in every way that there is, and compares, if nobody has changed the file.
    fn look_at_tensor(&self, tensor: &Tensor) {
        // SAFETY: alive as long as the tensor.
        let info = unsafe { &*tensor.info };
        let bytes = usize::try_from(info.bytes).expect("of a small file");
        let mut copy = vec![0; bytes];
        // SAFETY: the buffer has room for so many bytes.
        let was_read = checked(unsafe {
            forebay_tensor_read(Some(tensor), 0, copy.as_mut_ptr().cast(), bytes)
        });
        // SAFETY: as above; but past the tensor's end.
        let past = unsafe { forebay_tensor_read(Some(tensor), 1, copy.as_mut_ptr().cast(), bytes) };
        assert!(!checked(past));
        if self.is_untouched {
            assert!(was_read);
            let from = usize::try_from(info.offset).expect("a small file");
            let wanted = self.contents.get(from..from + bytes).unwrap_or_default();
            assert!(bytes == 0 || copy == wanted, "wrong bytes");
        }
        let is_safe = !tensor.is_mapped || self.is_untouched;
        if !tensor.data.is_null() && bytes > 0 && was_read && is_safe {
            // SAFETY: so many bytes, in memory of the load's or in a mapping of a file that is all
            // there.
            let data = unsafe { std::slice::from_raw_parts(tensor.data.cast::<u8>(), bytes) };
            assert!(data == copy, "`data` is not what is read");
        }
        let hex = made(|to| forebay_tensor_sha256(Some(tensor), to));
        assert!(hex.is_some() || !was_read || !self.is_untouched);
        for index in 0..=tensor.part_count {
            let part = made_pointer(|to| forebay_tensor_part(Some(tensor), index, to));
            assert_eq!(part.is_some(), index < tensor.part_count);
            assert!(part.is_none_or(|part| part.bytes <= info.bytes));
        }
    }

    /// Somebody else writes to the file, or cuts it short.
    fn change_file(&mut self, first: u8, second: u8) {
        self.is_untouched = false;
        let file = OpenOptions::new().write(true).open(&self.path).expect("it is there");
        let share = self.contents.len() as u64 * u64::from(second) / 256;
        let written = match first % 4 {
            0 => file.set_len(share),
            1 => file.set_len(self.contents.len() as u64 + share),
            2 => file.write_all_at(&[first ^ second], share),
            _ => file.write_all_at(&self.contents, 0),
        };
        written.expect("room for it");
    }
}

extern "C" fn tensor_landed(user: *mut c_void, tensor: *const Tensor) -> c_int {
    assert!(!tensor.is_null());
    tired(user)
}

extern "C" fn progressed(user: *mut c_void, done_bytes: u64, total_bytes: u64) -> c_int {
    assert!(done_bytes <= total_bytes, "{done_bytes} of {total_bytes}");
    tired(user)
}

/// Whether the callback has been called often enough.
fn tired(user: *mut c_void) -> c_int {
    // SAFETY: the loader's number, which is alive, and used by one thread.
    let patience = unsafe { &mut *user.cast::<c_int>() };
    *patience = patience.saturating_sub(1);
    c_int::from(*patience < 0)
}

fn look_at_value(model: Option<&Model>, key: *const c_char) {
    let (mut text, mut bytes) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: a text of the model's.
    let found =
        unsafe { forebay_model_metadata_text(model, key, Some(&mut text), Some(&mut bytes)) };
    if checked(found) {
        // SAFETY: it has answered OK.
        let text: *const c_char = unsafe { text.assume_init() };
        // SAFETY: as above.
        let bytes: usize = unsafe { bytes.assume_init() };
        // SAFETY: a text of the model's with its NUL.
        let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), bytes + 1) };
        assert_eq!(text.last(), Some(&0));
    }
    // SAFETY: a text of the model's.
    made(|to| unsafe { forebay_model_metadata_u64(model, key, to) });
    // SAFETY: as above.
    made(|to| unsafe { forebay_model_metadata_f64(model, key, to) });
    // SAFETY: as above.
    made(|to| unsafe { forebay_model_metadata_bool(model, key, to) });
}

/// That the info is whole; its name.
fn assert_info(info: &TensorInfo, index: usize) -> &CStr {
    assert_eq!(info.index, index);
    // SAFETY: so many bytes and a NUL.
    let name = unsafe { std::slice::from_raw_parts(info.name.cast::<u8>(), info.name_bytes + 1) };
    assert_eq!(name.last(), Some(&0));
    // SAFETY: so many dimensions.
    let shape = unsafe { std::slice::from_raw_parts(info.shape, info.rank) };
    assert!(info.bytes > 0 || shape.contains(&0) || shape.is_empty());
    // SAFETY: a text that lives as long as the info.
    assert!(!unsafe { CStr::from_ptr(info.dtype) }.is_empty());
    CStr::from_bytes_until_nul(name).expect("it ends in one")
}

/// Whether a call went well. One that did not has said why, and was no bug.
fn checked(status: Status) -> bool {
    if status == Status::ForebayOk {
        return true;
    }
    assert_ne!(status, Status::ForebayInternal);
    assert_eq!(forebay_last_error_status(), status);
    // SAFETY: a text of this thread's, which nothing replaces meanwhile.
    let message = unsafe { CStr::from_ptr(forebay_last_error_message()) };
    assert!(!message.to_str().expect("it is UTF-8").is_empty());
    false
}

/// What a function wrote to its place, if it went well.
fn made<T: Copy>(call: impl FnOnce(Option<&mut MaybeUninit<T>>) -> Status) -> Option<T> {
    let mut place = MaybeUninit::uninit();
    let is_made = checked(call(Some(&mut place)));
    // SAFETY: it has answered OK.
    is_made.then(|| unsafe { place.assume_init() })
}

/// The same for what is to be looked at; NULL where the function failed.
fn made_pointer<'a, T>(
    call: impl FnOnce(Option<&mut MaybeUninit<*const T>>) -> Status,
) -> Option<&'a T> {
    let mut place = MaybeUninit::new(ptr::dangling());
    let is_made = checked(call(Some(&mut place)));
    // SAFETY: written in any case, as the header's rules say.
    let pointer = unsafe { place.assume_init() };
    assert_eq!(pointer.is_null(), !is_made);
    // SAFETY: what it points at lives as long as the handle that was asked.
    unsafe { pointer.as_ref() }
}

fn made_text(
    call: impl FnOnce(Option<&mut MaybeUninit<*mut c_char>>) -> Status,
) -> Option<CString> {
    let text = made(call)?;
    // SAFETY: a text that is the caller's.
    let copy = unsafe { CStr::from_ptr(text) }.to_owned();
    // SAFETY: once.
    unsafe { forebay_text_free(text) };
    Some(copy)
}

fn check_json(text: CString) {
    let text = text.into_string().expect("it is UTF-8");
    serde_json::from_str::<serde_json::Value>(&text).expect("it is JSON");
}

fn owned<T>(handle: *mut T) -> Box<T> {
    assert!(!handle.is_null());
    // SAFETY: handles are boxes that C holds, and this one was just made.
    unsafe { Box::from_raw(handle) }
}

fn keep<T>(handles: &mut Vec<Box<T>>, handle: *mut T, free: impl FnOnce(Box<T>)) {
    if handles.len() == HANDLES_MAX {
        free(handles.remove(0));
    }
    handles.push(owned(handle));
}

fn oldest<T>(handles: &mut Vec<Box<T>>) -> Option<Box<T>> {
    (!handles.is_empty()).then(|| handles.remove(0))
}

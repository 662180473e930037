//! Any GGUF model, in one file or in parts, under any options: planned, and if it is small loaded,
//! and every byte compared.
#![no_main]

use arbitrary::Arbitrary;
use forebay::{Backend, Dtype, Error, FailureKind, Loaded, Model, Options, Plan};
use forebay_fuzz::folder;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use std::path::PathBuf;

const PARTS_MAX: usize = 3;
const TENSORS_MAX: usize = 48;
const SETTINGS_MAX: usize = 12;

/// Larger models are files with a hole, and planned only.
const LOADED_BYTES_MAX: u64 = 1 << 20;
/// Larger ones have more reads, and no other ones.
const PART_BYTES_MAX: u64 = 128 << 20;

#[derive(Arbitrary, Debug)]
struct Case {
    parts: u8,
    is_huge: bool,
    tensors: Vec<Entry>,
    settings: Vec<(u8, Setting)>,
}

#[derive(Arbitrary, Debug)]
struct Entry {
    name: u8,
    layer: u8,
    dtype: u8,
    blocks: u8,
    rows: u8,
    outer: u8,
    rank: u8,
    gap_bytes: u16,
}

/// A value out of the table of its key, a number, or any text.
#[derive(Arbitrary, Debug)]
enum Setting {
    Known(u8),
    Number(u64),
    Text(String),
}

/// The options, and values of each that mean something.
const SETTINGS: [(&str, &[&str]); 14] = [
    ("device", &["host", "auto", "cuda:0", "cuda:0,cuda:1", "cuda:all"]),
    ("split", &["layers", "rows", "columns"]),
    ("gpu-layers", &["all", "0", "1", "3"]),
    ("place", &["blk=cpu", "embd=host", "=device", r"\.1\.=cpu", "w=rows:cuda:0,cuda:1", "(=cpu"]),
    (
        "load-mode",
        &[
            "auto",
            "none",
            "mmap",
            "mlock",
            "mlock-strict",
            "dio",
            "device=dio,cpu=mmap",
            "device=mmap,cpu=dio",
            "device=none,cpu=none",
            "host=mmap,cpu=mlock",
        ],
    ),
    ("no-fallback", &["on", "off"]),
    ("engine", &["threads", "auto", "uring", "tokio-uring"]),
    ("chunk", &["auto", "1", "4096", "8KiB", "64KiB", "1GiB", "16777215TiB"]),
    ("queue-depth", &["auto", "0", "1", "2", "7", "18446744073709551615"]),
    ("staging", &["auto", "1", "4096", "12KiB", "64KiB", "1MiB", "16777215TiB"]),
    ("reclaim", &["auto", "on", "off"]),
    ("prefetch", &["auto", "on", "off"]),
    ("repack", &["off", "on"]),
    ("numa", &["off", "node:0", "node:1023", "interleave"]),
];

fuzz_target!(|case: Case| {
    let mut options = Options::default();
    for (key, setting) in case.settings.iter().take(SETTINGS_MAX) {
        set(&mut options, *key, setting);
    }
    let (path, files) = write(&case);
    let model = Model::open(path).expect("a good model");
    assert_eq!(model.catalog().tensors().len(), case.tensors.len().min(TENSORS_MAX));
    let plan = match Plan::new(&model, &options) {
        Ok(plan) => plan,
        Err(error) => return assert_expected(&error),
    };
    assert_sound(&model, &plan);
    if model.catalog().bytes() > LOADED_BYTES_MAX || files.iter().any(Vec::is_empty) {
        return;
    }
    match plan.start().and_then(forebay::Load::finish) {
        Ok(loaded) => assert_loaded(&loaded, &files),
        Err(error) => assert_expected(&error),
    }
});

fn set(options: &mut Options, key: u8, setting: &Setting) {
    let (key, known) = SETTINGS[usize::from(key) % SETTINGS.len()];
    let before = format!("{options:?}");
    let set = match setting {
        Setting::Known(index) => options.set(key, known[usize::from(*index) % known.len()]),
        Setting::Number(number) => options.set(key, &number.to_string()),
        Setting::Text(text) => options.set(key, text),
    };
    if let Err(error) = set {
        assert!(matches!(error, Error::Option { .. }), "{error}");
        assert_eq!(format!("{options:?}"), before, "{error}");
    }
}

/// Writes the model; its first file, and what is in each, nothing of those that are too large.
fn write(case: &Case) -> (PathBuf, Vec<Vec<u8>>) {
    let count = 1 + usize::from(case.parts) % PARTS_MAX;
    let tensors = &case.tensors[..case.tensors.len().min(TENSORS_MAX)];
    let mut files = Vec::new();
    for part in 0..count {
        let (mut contents, bytes) = header(case.is_huge, tensors, part, count);
        let name = match count {
            1 => "model.gguf".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.gguf", part + 1),
        };
        if bytes <= 2 * LOADED_BYTES_MAX {
            let byte =
                |at: u64| ((at ^ (at >> 8)).wrapping_add(part as u64 * 151)).to_le_bytes()[0];
            contents.extend((contents.len() as u64..bytes).map(byte));
            folder::put(&name, &contents, bytes);
        } else {
            folder::put(&name, &contents, bytes);
            contents.clear();
        }
        files.push(contents);
    }
    let first = if count == 1 { "model.gguf" } else { "model-00001-of-0000" };
    let first = if count == 1 { first.to_owned() } else { format!("{first}{count}.gguf") };
    (folder::path(&first), files)
}

/// The header of a part, and how long the part is.
fn header(is_huge: bool, tensors: &[Entry], part: usize, parts: usize) -> (Vec<u8>, u64) {
    let mut infos = Vec::new();
    let mut data_bytes = 0_u64;
    let here = (tensors.iter().enumerate()).filter(|(index, _)| index % parts == part);
    for (index, entry) in here.clone() {
        let huge = is_huge.then(|| entry.shape(true));
        let huge = huge.filter(|(_, _, bytes)| data_bytes + bytes <= PART_BYTES_MAX);
        let (dtype, dims, bytes) = huge.unwrap_or_else(|| entry.shape(false));
        infos.extend(string(&entry.name(index)));
        infos.extend(u32::try_from(dims.len()).expect("few").to_le_bytes());
        infos.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
        infos.extend(dtype.gguf_id().expect("one of GGUF's").to_le_bytes());
        data_bytes += u64::from(entry.gap_bytes);
        infos.extend(data_bytes.to_le_bytes());
        data_bytes += bytes;
    }
    let split = [("split.no", part), ("split.count", parts)];
    let split = if parts > 1 { &split[..] } else { &[] };
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((here.count() as u64).to_le_bytes());
    header.extend((split.len() as u64).to_le_bytes());
    for (key, value) in split {
        header.extend(string(key));
        header.extend([2, 0, 0, 0]);
        header.extend(u16::try_from(*value).expect("few").to_le_bytes());
    }
    header.extend(infos);
    let data_offset = (header.len() as u64).next_multiple_of(32);
    (header, data_offset + data_bytes)
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Entry {
    fn name(&self, index: usize) -> String {
        let layer = match self.layer {
            255 => u64::MAX,
            254 => 1 << 20,
            253 => u64::from(u32::MAX),
            layer => u64::from(layer % 8),
        };
        match self.name % 5 {
            0 => format!("token_embd.{index}"),
            1 => format!("output.{index}"),
            2 => format!("model.layers.{layer}.w{index}"),
            3 => format!("w{index}"),
            _ => format!("blk.{layer}.w{index}"),
        }
    }

    /// Its type, its dimensions innermost first, its bytes.
    fn shape(&self, is_huge: bool) -> (Dtype, Vec<u64>, u64) {
        let in_gguf: Vec<Dtype> =
            Dtype::ALL.iter().copied().filter(|dtype| dtype.gguf_id().is_some()).collect();
        let mut dtype = in_gguf[usize::from(self.dtype) % in_gguf.len()];
        let rank = usize::from(self.rank % 5);
        if rank == 0 && dtype.block_elements() > 1 {
            dtype = Dtype::F32;
        }
        let rows = u64::from(self.rows) * if is_huge { 1 << 8 } else { 1 };
        let columns = u64::from(self.blocks % 40) * dtype.block_elements();
        let dims = [columns, rows, u64::from(self.outer % 4), 1];
        let dims = dims[..rank].to_vec();
        let elements = dims.iter().product();
        let bytes = dtype.bytes_for(elements).expect("whole blocks, and not very many");
        (dtype, dims, bytes)
    }
}

/// That the plan is one for all of the model, and no more.
fn assert_sound(model: &Model, plan: &Plan) {
    let catalog = model.catalog();
    let mut backends: BTreeMap<Backend, (usize, u64)> = BTreeMap::new();
    let mut files = vec![0; catalog.files().len()];
    for tensor in catalog.tensors() {
        let backend = plan.backend_of(&tensor.name).expect("every tensor has one");
        let (tensors, bytes) = backends.entry(backend).or_default();
        (*tensors, *bytes) = (*tensors + 1, *bytes + tensor.bytes);
        files[tensor.file] += tensor.bytes;
    }
    assert_eq!(plan.backends().len(), backends.len());
    for planned in plan.backends() {
        assert_eq!(backends.get(&planned.backend), Some(&(planned.tensors, planned.bytes)));
        assert!(!planned.why.is_empty());
    }
    assert_eq!(plan.files().len(), files.len());
    for (planned, bytes) in plan.files().iter().zip(files) {
        assert_eq!(planned.wanted_bytes + planned.mapped_bytes, bytes, "{planned:?}");
        assert!(planned.read_bytes >= planned.wanted_bytes, "{planned:?}");
        assert_eq!(planned.reads == 0, planned.wanted_bytes == 0, "{planned:?}");
    }
    serde_json::to_string(&plan.report()).expect("a report is JSON");
}

/// That every tensor has its bytes.
fn assert_loaded(loaded: &Loaded, files: &[Vec<u8>]) {
    for (tensor, entry) in loaded.tensors().zip(loaded.catalog().tensors()) {
        assert_eq!(tensor.name(), entry.name);
        let mut bytes = vec![0; usize::try_from(entry.bytes).expect("a small one")];
        tensor.read_into(0, &mut bytes).expect("it is there");
        if entry.bytes > 0 {
            let from = usize::try_from(entry.offset).expect("a small file");
            assert!(bytes == files[entry.file][from..][..bytes.len()], "{} is wrong", entry.name);
        }
    }
}

/// That a good model was refused for the options' sake, or the machine's.
fn assert_expected(error: &Error) {
    let is_expected = match error {
        Error::Option { .. } | Error::Memory { .. } | Error::LockRefused { .. } => true,
        // CUDA, of which there is none here.
        Error::Device(_) => true,
        Error::Read { failure, .. } => {
            matches!(failure.kind, FailureKind::FallbackForbidden { .. })
        }
        _ => false,
    };
    assert!(is_expected, "{error}: {error:?}");
}

//! A model made on the spot, with its bytes at hand to compare with.
#![allow(dead_code, unreachable_pub, reason = "every test file uses its own part")]

use forebay::{Loader, Tensor};
use forebay_tests::pattern;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A safetensors file of byte tensors whose lengths are odd, so that no offset is aligned.
pub struct TestModel {
    folder: tempfile::TempDir,
    pub path: PathBuf,
    pub tensors: BTreeMap<String, Vec<u8>>,
}

impl TestModel {
    /// Eight layers of two tensors each, one of them empty, about `bytes` in all.
    pub fn new(bytes: usize) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("model.safetensors");
        let mut tensors = BTreeMap::new();
        let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
        for number in 0..16 {
            let name = format!("model.layers.{}.part{}.weight", number / 2, number % 2);
            let length = if number == 5 { 0 } else { bytes / 16 + 977 * number + 1 };
            let contents = pattern(number as u64, length);
            let offsets = [data.len(), data.len() + length];
            let entry = serde_json::json!({
                "dtype": "U8", "shape": [length], "data_offsets": offsets,
            });
            entries.insert(name.clone(), entry);
            data.extend_from_slice(&contents);
            tensors.insert(name, contents);
        }
        let header = serde_json::Value::Object(entries).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.into_bytes());
        file.extend(data);
        std::fs::write(&path, file).unwrap();
        Self { folder, path, tensors }
    }

    pub fn loader(&self, mode: &str) -> Loader {
        Loader::new(&self.path).load_mode(mode.parse().unwrap())
    }

    /// Panics unless the tensor's bytes are those written to the file.
    pub fn assert_right(&self, tensor: &Tensor) {
        let mut bytes = vec![0xAA; usize::try_from(tensor.bytes()).unwrap()];
        tensor.read_into(0, &mut bytes).unwrap();
        assert!(bytes == self.tensors[tensor.name()], "{} is wrong", tensor.name());
        if let Some(slice) = tensor.as_slice() {
            assert!(slice == bytes);
        }
    }
}

/// Waits until no thread of a load is listed: the kernel lets a joiner go a moment before it takes
/// the thread off its list. `false` if one stays.
pub fn is_without_load_threads() -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        load_threads() == 0
    })
}

/// Threads of this process that belong to a load.
pub fn load_threads() -> usize {
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(Path::new(&task.path()).join("comm")).ok());
    names.filter(|name| name.starts_with("forebay-")).count()
}

/// A line of this process's status in KiB: `VmPin:` is what is pinned for io_uring or a device,
/// `VmLck:` what is locked.
pub fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

//! Tensors of the cpu in more separate pieces than a process may have areas of memory: each piece
//! that is locked or advised by itself becomes an area of its own, and past the limit nothing can be
//! mapped any more, by anybody in the process.

mod support;

use forebay::{Backend, Error, GpuLayers, Loader, Prefetch};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use support::{alone, scratch, status_kib};

/// A quarter of the areas that Linux allows by default are locked pieces at most.
const PIECES: usize = 17_000;
/// With a gap of a page at least between any two small ones, wherever the header ends.
const LENGTHS: [usize; 2] = [100, 12_288];

/// A model of zeroes, whose file takes no room on the disk.
fn sparse_model(folder: &Path) -> PathBuf {
    let path = folder.join("model.safetensors");
    let (mut header, mut end) = (String::from("{"), 0);
    for number in 0..PIECES {
        for (length, kind) in LENGTHS.into_iter().zip(["small", "large"]) {
            let offsets = format!("[{end},{}]", end + length);
            let comma = if end == 0 { "" } else { "," };
            header += &format!(
                r#"{comma}"{kind}.{number}":{{"dtype":"U8","shape":[{length}],"data_offsets":{offsets}}}"#
            );
            end += length;
        }
    }
    header.push('}');
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    path
}

/// The small ones stay on the cpu.
fn loader(path: &Path, mode: &str) -> Loader {
    let loader = Loader::new(path).load_mode(mode.parse().unwrap()).gpu_layers(GpuLayers::All);
    loader.place("small=cpu".parse().unwrap())
}

fn areas() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

fn areas_max() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

#[test]
fn scattered_tensors_leave_areas_of_memory_to_the_rest_of_the_process() {
    let _alone = alone();
    let folder = scratch();
    let path = sparse_model(folder.path());
    let most = areas_max();
    for mode in ["device=dio,cpu=mmap", "device=dio,cpu=mlock"] {
        let loaded = loader(&path, mode).prefetch(Prefetch::On).load().unwrap();
        assert!(areas() <= most / 4 * 3, "{mode}: {} areas of {most}", areas());
        let memory = &loaded.report().memory;
        // A small one may lie across the border of two pages.
        let pages = PIECES as u64 * 4096;
        assert!((pages..2 * pages).contains(&memory.prefetched_bytes), "{memory:?}");
        assert_eq!(memory.resident_bytes, memory.prefetched_bytes, "{mode}");
        let asked = memory.locked_bytes + memory.lock_refused_bytes;
        assert_eq!(asked, if mode.contains("mlock") { memory.prefetched_bytes } else { 0 });
        assert_eq!(status_kib("VmLck:") << 10, memory.locked_bytes);
        let on_cpu = loaded.tensors().filter(|tensor| tensor.backend() == Backend::Cpu);
        let mut bytes = [1; LENGTHS[0]];
        for tensor in on_cpu.step_by(100) {
            tensor.read_into(0, &mut bytes).unwrap();
            assert_eq!(bytes, [0; LENGTHS[0]], "{tensor:?}");
        }
    }
    let error = loader(&path, "device=dio,cpu=mlock-strict").load().map(drop);
    if most / 4 < PIECES {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::LockRefused { .. }), "{error}");
        // Whichever of its two limits a process meets first.
        let remedy = error.remedy().unwrap();
        let named = ["vm.max_map_count", "ulimit -l"].iter().any(|limit| remedy.contains(limit));
        assert!(named, "{remedy}");
    }
    assert_eq!(status_kib("VmLck:"), 0);
}

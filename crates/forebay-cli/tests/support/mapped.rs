//! Loads that keep tensors mapped, made by this process, so that it can count its own faults.
#![allow(dead_code, reason = "every test file uses its own part")]

use crate::model::{Model, forget};
use forebay::{Backend, GpuLayers, LoadReport, Loader, Prefetch, sha256_hex};
use nix::sys::resource::{UsageWho, getrusage};
use std::path::Path;

/// Faults of the calling thread that waited for storage.
fn major_faults() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).unwrap().major_page_faults()
}

/// Prefetches a copy of the model and reads it: every byte right, nothing waited for any more.
pub(crate) fn check_prefetch(model: &Model, path: &Path, layers: GpuLayers) -> LoadReport {
    let what = format!("{} {layers:?}", path.display());
    forget(path);
    let loader = Loader::new(path).load_mode("device=dio,cpu=mmap".parse().unwrap());
    let loaded = loader.gpu_layers(layers).prefetch(Prefetch::On).load().unwrap();
    let memory = &loaded.report().memory;
    assert_eq!(memory.resident_bytes, memory.prefetched_bytes, "{what}");
    let on_cpu = loaded.tensors().filter(|tensor| tensor.backend() == Backend::Cpu);
    let on_cpu: u64 = on_cpu.map(|tensor| tensor.bytes()).sum();
    assert!(memory.prefetched_bytes >= on_cpu, "{what}: {memory:?}");
    assert_eq!(loaded.tensors().len(), model.digests.len(), "{what}");
    for tensor in loaded.tensors() {
        let is_mapped = tensor.mapped().is_some() || tensor.bytes() == 0;
        assert!(is_mapped || tensor.backend() == Backend::Host, "{what}: {tensor:?}");
        assert_eq!(tensor.resident_bytes().unwrap(), tensor.bytes(), "{what}: {tensor:?}");
        let before = major_faults();
        let digest = sha256_hex(&tensor).unwrap();
        assert_eq!(digest, model.digests[tensor.name()], "{what}: {tensor:?}");
        assert_eq!(major_faults(), before, "{what}: {tensor:?} waited for storage");
    }
    loaded.report().clone()
}

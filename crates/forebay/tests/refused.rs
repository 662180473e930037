//! Kernels and sandboxes that know less: no populating, no lock on fault, no copies out of a
//! mapping. Every byte comes all the same, and what was done without is told.
//!
//! The filters bind one thread and those it starts, so they disturb nobody.

mod support;

use forebay::{Errno, FallbackReport, GpuLayers, Loaded, Loader, Prefetch, Tensor};
use forebay_tests::memlock::{MemlockLimit, give_up_locking_past_limits};
use forebay_tests::residence::{self, faults_of_touching};
use forebay_tests::seccomp;
use nix::libc;
use support::{TestModel, alone, on_a_thread, status_kib};

const MIB: usize = 1 << 20;
/// Linux 5.14; `libc` has it on glibc only.
const MADV_POPULATE_READ: i32 = 22;

/// What is refused to a load.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Populating,
    LockOnFault(Errno),
    CopiesOutOfMappings,
}

impl Refused {
    fn forbid(self) -> Result<(), Errno> {
        match self {
            // Answered so by Linux before 5.14.
            Self::Populating => {
                seccomp::forbid_with(libc::SYS_madvise, 2, MADV_POPULATE_READ, Errno::EINVAL)
            }
            Self::LockOnFault(errno) => seccomp::forbid(&[libc::SYS_mlock2], errno),
            Self::CopiesOutOfMappings => {
                seccomp::forbid(&[libc::SYS_process_vm_readv], Errno::EPERM)
            }
        }
    }
}

fn mapped(model: &TestModel, mode: &str) -> Loader {
    model.loader(mode).gpu_layers(GpuLayers::Count(0)).prefetch(Prefetch::On)
}

/// Runs `check` on a thread to which all of these are refused, with its own model.
fn without(refused: &'static [Refused], check: impl FnOnce(&str) + Send + 'static) {
    on_a_thread("a thread in a sandbox", move || {
        for it in refused {
            if let Err(errno) = it.forbid() {
                return eprintln!("SKIPPED: seccomp filters are refused here ({errno})");
            }
        }
        check(&format!("{refused:?}"));
    });
}

fn steps(loaded: &Loaded) -> Vec<(&'static str, &'static str, String, &'static str)> {
    let step = |step: &FallbackReport| (step.from, step.to, step.errno.clone(), step.at);
    loaded.report().files[0].fallbacks.iter().map(step).collect()
}

fn populate_to_touch() -> (&'static str, &'static str, String, &'static str) {
    ("populate", "touch", "EINVAL".to_owned(), "read")
}

fn assert_resident_and_right(model: &TestModel, loaded: &Loaded, what: &str) {
    let pages = model.paged_bytes_of(|_| true);
    let cached = residence::cached_bytes(&model.path, 0..model.file_bytes);
    assert!(cached >= pages / 100 * 99, "{what}: {cached} of {pages} bytes in the page cache");
    let memory = &loaded.report().memory;
    assert_eq!((memory.prefetched_bytes, memory.resident_bytes), (pages, pages), "{what}");
    let tensors: Vec<_> = loaded.tensors().collect();
    let faults = faults_of_touching(tensors.iter().filter_map(Tensor::mapped));
    assert_eq!(faults.major, 0, "{what}");
    tensors.iter().for_each(|tensor| model.assert_right(tensor));
}

#[test]
fn without_populating_pages_come_by_touching_and_it_is_told_once() {
    let _alone = alone();
    without(&[Refused::Populating], |what| {
        let model = TestModel::layered(4, 8 * MIB);
        let _ = residence::forget(&model.path);
        let loaded = mapped(&model, "cpu=mmap").load().unwrap();
        assert_eq!(steps(&loaded), [populate_to_touch()], "{what}");
        let step = &loaded.report().files[0].fallbacks[0];
        assert!(step.offset.is_some() && step.reason.contains("5.14"), "{step:?}");
        assert_resident_and_right(&model, &loaded, what);
    });
}

#[test]
fn without_populating_and_copies_pages_come_by_reading() {
    let _alone = alone();
    without(&[Refused::Populating, Refused::CopiesOutOfMappings], |what| {
        let model = TestModel::layered(4, 8 * MIB);
        let _ = residence::forget(&model.path);
        let loaded = mapped(&model, "cpu=mmap").load().unwrap();
        assert_eq!(steps(&loaded), [populate_to_touch()], "{what}");
        assert_resident_and_right(&model, &loaded, what);
    });
}

#[test]
fn without_copies_out_of_mappings_every_mode_lands_its_bytes() {
    let _alone = alone();
    without(&[Refused::CopiesOutOfMappings], |what| {
        let model = TestModel::layered(4, MIB);
        for mode in ["mmap", "mlock", "device=mmap,cpu=mmap", "cpu=dio", "cpu=none"] {
            for layers in [GpuLayers::Count(0), GpuLayers::Count(2), GpuLayers::All] {
                let loaded = mapped(&model, mode).gpu_layers(layers).load().unwrap();
                loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
                // An ordinary user may have no memory to register with a ring; that is all.
                let mut steps = steps(&loaded).into_iter();
                assert!(steps.all(|step| step.0 == "registered buffers"), "{what} {mode}");
            }
        }
    });
}

/// Those who wait for a tensor that nobody has brought bring it without populating, too.
#[test]
fn without_populating_a_tensor_can_be_waited_for() {
    let _alone = alone();
    without(&[Refused::Populating], |what| {
        let model = TestModel::layered(2, 2 * MIB);
        let _ = residence::forget(&model.path);
        let load = mapped(&model, "cpu=mmap").start().unwrap();
        let tensors = load.mapped_tensors();
        drop(load);
        for tensor in tensors {
            tensor.wait_until_resident().unwrap();
            assert_eq!(tensor.resident_bytes().unwrap(), tensor.bytes(), "{what}");
            assert_eq!(faults_of_touching(tensor.mapped().into_iter()).major, 0, "{what}");
        }
    });
}

/// What the smallest limit of locked memory takes whole.
fn small() -> TestModel {
    TestModel::layered(2, 20_000)
}

fn assert_locks(refused: &'static [Refused]) {
    let Some(limit) = MemlockLimit::new(64 << 10) else {
        return eprintln!("SKIPPED: the hard limit of locked memory is below 64 KiB");
    };
    without(refused, |what| {
        give_up_locking_past_limits();
        let model = small();
        let pages = model.paged_bytes_of(|_| true).next_multiple_of(4096);
        for prefetch in [Prefetch::On, Prefetch::Off] {
            let _ = residence::forget(&model.path);
            let loaded = mapped(&model, "cpu=mlock-strict").prefetch(prefetch).load().unwrap();
            assert_eq!(loaded.report().memory.locked_bytes.next_multiple_of(4096), pages);
            assert_eq!(status_kib("VmLck:") << 10, pages, "{what}");
            let there = residence::mapped(&model.path).locked_present;
            assert_eq!(there, pages, "{what} {prefetch:?}: locked in name only");
            loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
            drop(loaded);
            assert_eq!(status_kib("VmLck:"), 0, "{what}");
        }
    });
    drop(limit);
}

#[test]
fn without_locks_on_fault_the_older_lock_serves() {
    let _alone = alone();
    assert_locks(&[Refused::LockOnFault(Errno::ENOSYS)]);
    assert_locks(&[Refused::LockOnFault(Errno::EINVAL)]);
}

#[test]
fn without_populating_what_is_locked_is_in_memory() {
    let _alone = alone();
    assert_locks(&[Refused::Populating]);
}

/// Nothing is left that brings a page into the mapping but touching it; what is reported as locked
/// must be so all the same, or be reported as refused.
#[test]
fn without_populating_and_copies_what_is_locked_is_in_memory() {
    let _alone = alone();
    assert_locks(&[Refused::Populating, Refused::CopiesOutOfMappings]);
}

/// Under a limit, the older lock takes as much of it as the newer one.
#[test]
fn the_older_lock_meets_the_limit_too() {
    let _alone = alone();
    let Some(limit) = MemlockLimit::new(64 << 10) else {
        return eprintln!("SKIPPED: the hard limit of locked memory is below 64 KiB");
    };
    without(&[Refused::LockOnFault(Errno::ENOSYS)], |what| {
        give_up_locking_past_limits();
        let model = TestModel::layered(2, MIB);
        let loaded = mapped(&model, "cpu=mlock").load().unwrap();
        let memory = &loaded.report().memory;
        assert_eq!(memory.locked_bytes, 64 << 10, "{what}");
        assert_eq!(memory.lock_errno.as_deref(), Some("ENOMEM"), "{what}");
        assert_eq!(status_kib("VmLck:"), 64, "{what}");
        loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
    });
    drop(limit);
}

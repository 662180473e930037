//! Locked tensors: exactly what the report says, in deed and not only in name, for as long as
//! anybody holds them, under any limit.

mod support;

use forebay::{Backend, Error, GpuLayers, Loaded, Loader, PlaceRule, Prefetch, Reclaim};
use forebay_tests::memlock::{MemlockLimit, give_up_locking_past_limits};
use forebay_tests::residence::{self, Mapped, cached_bytes};
use support::{TestModel, alone, on_a_thread, status_kib};

const MIB: usize = 1 << 20;
/// Of the smallest limit that is common.
const LIMIT_BYTES: u64 = 64 << 10;

fn all(_name: &str) -> bool {
    true
}

fn mlock(model: &TestModel, mode: &str) -> Loader {
    model.loader(mode).gpu_layers(GpuLayers::Count(0))
}

fn locked_bytes() -> u64 {
    status_kib("VmLck:") << 10
}

/// Enough tensors for locks with gaps and shared pages, in all less than the smallest limit.
fn small() -> TestModel {
    let lengths = [5000, 100, 9000, 1, 4096, 12_000];
    let tensor = |(number, length)| (format!("model.layers.{}.w", 5 - number), length);
    TestModel::of(lengths.into_iter().enumerate().map(tensor))
}

/// Runs `work` as an ordinary user with this limit of locked memory.
fn limited<T: Send + 'static>(bytes: u64, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let Some(limit) = MemlockLimit::new(bytes) else {
        eprintln!("SKIPPED: the hard limit of locked memory is below {bytes} bytes");
        return None;
    };
    let result = on_a_thread("an ordinary user", move || {
        give_up_locking_past_limits();
        work()
    });
    drop(limit);
    Some(result)
}

fn assert_all_right(model: &TestModel, loaded: &Loaded) {
    assert_eq!(loaded.tensors().len(), model.tensors.len());
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
}

/// Locked is what the report says, and every page of it is there: a lock on fault alone would hold
/// nothing.
fn assert_locked_in_deed(model: &TestModel, loaded: &Loaded, what: &str) {
    let memory = &loaded.report().memory;
    // The kernel counts the last page whole, the report maybe only as far as the file goes.
    assert_eq!(locked_bytes(), memory.locked_bytes.next_multiple_of(4096), "{what}");
    let Mapped { locked, locked_present, .. } = residence::mapped(&model.path);
    assert_eq!((locked, locked_present), (locked_bytes(), locked_bytes()), "{what}");
}

#[test]
fn what_is_locked_is_in_memory_until_its_last_tensor_goes() {
    let _alone = alone();
    limited(LIMIT_BYTES, || {
        let model = small();
        let pages = model.paged_bytes_of(all).next_multiple_of(4096);
        for mode in ["cpu=mlock", "cpu=mlock-strict"] {
            for prefetch in [Prefetch::On, Prefetch::Off] {
                let what = format!("{mode} {prefetch:?}");
                let _ = residence::forget(&model.path);
                let loaded = mlock(&model, mode).prefetch(prefetch).load().unwrap();
                let memory = loaded.report().memory.clone();
                assert_eq!(memory.locked_bytes.next_multiple_of(4096), pages, "{what}");
                assert_eq!((memory.lock_refused_bytes, memory.lock_errno), (0, None), "{what}");
                assert_locked_in_deed(&model, &loaded, &what);
                assert_all_right(&model, &loaded);
                let last = loaded.tensors().last().unwrap();
                drop(loaded);
                assert_eq!(locked_bytes(), pages, "{what}: a tensor is still held");
                let view = last.mapped().unwrap().clone();
                drop(last);
                assert_eq!(locked_bytes(), 0, "{what}: a view of the mapping holds no lock");
                drop(view);
            }
        }
    });
}

#[test]
fn under_a_limit_what_is_used_first_is_locked_to_the_page_and_the_rest_is_reported() {
    let _alone = alone();
    // The last is no multiple of a page: a page that does not fit whole is not locked.
    for limit_bytes in [LIMIT_BYTES, LIMIT_BYTES + 100] {
        let outcome = limited(limit_bytes, || {
            let model = TestModel::layered(4, 2 * MIB);
            let _ = residence::forget(&model.path);
            let loaded = mlock(&model, "cpu=mlock").load().unwrap();
            let memory = loaded.report().memory.clone();
            assert_eq!(memory.locked_bytes, LIMIT_BYTES);
            assert_eq!(memory.lock_errno.as_deref(), Some("ENOMEM"));
            let pages = model.paged_bytes_of(all).next_multiple_of(4096);
            let asked = memory.locked_bytes + memory.lock_refused_bytes;
            assert_eq!(asked.next_multiple_of(4096), pages);
            assert_locked_in_deed(&model, &loaded, "64 KiB");
            // The embeddings are the last tensor of the file and the first that is used.
            let embeddings = model.range("model.embed_tokens.weight");
            assert_eq!(
                locked_range(&model),
                embeddings.start / 4096 * 4096..embeddings.start / 4096 * 4096 + LIMIT_BYTES
            );
            // What is not locked is in memory all the same.
            assert_eq!(memory.resident_bytes, model.paged_bytes_of(all));
            assert_all_right(&model, &loaded);
            // The limit is the process's: for a second load nothing is left.
            let second = mlock(&model, "cpu=mlock").load().unwrap();
            assert_eq!(second.report().memory.locked_bytes, 0);
            assert_all_right(&model, &second);
            drop(second);
            assert_eq!(locked_bytes(), LIMIT_BYTES);
            drop(loaded);
            assert_eq!(locked_bytes(), 0);
        });
        if outcome.is_none() {
            return;
        }
    }
}

/// Where in the file the locked part of its mapping lies, if it is in one piece.
fn locked_range(model: &TestModel) -> std::ops::Range<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let path = model.path.canonicalize().unwrap();
    let (mut at, mut found) = (0..0, Vec::new());
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if words.last() == path.to_str().as_ref() {
            let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = words[0].split_once('-').unwrap();
            at = hex(words[2])..hex(words[2]) + hex(end) - hex(start);
        } else if words.first() == Some(&"VmFlags:") {
            if words.contains(&"lo") {
                found.push(at.clone());
            }
            at = 0..0;
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_limit_of_zero_locks_nothing_and_loads() {
    let _alone = alone();
    limited(0, || {
        let model = small();
        for prefetch in [Prefetch::On, Prefetch::Off] {
            let loaded = mlock(&model, "cpu=mlock").prefetch(prefetch).load().unwrap();
            let memory = &loaded.report().memory;
            assert_eq!(memory.locked_bytes, 0);
            assert_eq!(memory.lock_errno.as_deref(), Some("EPERM"));
            let pages = model.paged_bytes_of(all).next_multiple_of(4096);
            assert_eq!(memory.lock_refused_bytes.next_multiple_of(4096), pages);
            assert_locked_in_deed(&model, &loaded, "0");
            assert_all_right(&model, &loaded);
        }
    });
}

#[test]
fn a_strict_lock_past_the_limit_is_refused_before_a_tensor_is_read() {
    let _alone = alone();
    for limit_bytes in [0, LIMIT_BYTES] {
        limited(limit_bytes, move || {
            let model = TestModel::layered(4, 2 * MIB);
            let is_cold = residence::forget(&model.path);
            for (mode, layers) in [("mlock-strict", 0), ("device=dio,cpu=mlock-strict", 2)] {
                let loader = model.loader(mode).gpu_layers(GpuLayers::Count(layers));
                let error = loader.load().unwrap_err();
                let Error::LockRefused {
                    requested_bytes, refused_bytes, limit_bytes: limit, ..
                } = error
                else {
                    panic!("{mode}: {error}")
                };
                assert_eq!(limit, Some(limit_bytes));
                assert!(refused_bytes + limit_bytes >= requested_bytes && refused_bytes > 0);
                let remedy = error.remedy().unwrap();
                for word in [
                    &format!("ulimit -l {}", requested_bytes.div_ceil(1024)),
                    &format!("the limit is {limit_bytes} bytes"),
                    &requested_bytes.to_string(),
                    "LimitMEMLOCK",
                    "--load-mode mlock",
                ] {
                    assert!(remedy.contains(word), "no '{word}' in: {remedy}");
                }
                let cached = cached_bytes(&model.path, 0..model.file_bytes);
                assert!(!is_cold || cached == 0, "{cached} bytes were read before the refusal");
                assert_eq!(locked_bytes(), 0);
            }
        });
    }
}

/// Every second tensor is copied out of the mapping and given back, the others are locked in it,
/// and pages and small gaps are shared.
#[test]
fn giving_back_what_was_copied_leaves_locked_neighbours_alone() {
    let _alone = alone();
    let model = neighbours(4000);
    for reclaim in [Reclaim::On, Reclaim::Auto, Reclaim::Off] {
        let loaded = match every_second(&model, "device=mmap,cpu=mlock").reclaim(reclaim).load() {
            Ok(loaded) => loaded,
            Err(error) => panic!("{reclaim:?}: {error}"),
        };
        if loaded.report().memory.lock_refused_bytes > 0 {
            return eprintln!("SKIPPED: this user may not lock {} bytes", model.file_bytes);
        }
        assert_locked_in_deed(&model, &loaded, &format!("{reclaim:?}"));
        assert_all_right(&model, &loaded);
    }
}

/// No more is given back than was copied away: pages of neighbours that stay are theirs.
#[test]
fn no_more_is_given_back_than_was_copied() {
    let _alone = alone();
    for small_bytes in [4000, 40_000] {
        let model = neighbours(small_bytes);
        let loader = every_second(&model, "device=mmap,cpu=mmap").reclaim(Reclaim::On);
        let loaded = loader.prefetch(Prefetch::On).load().unwrap();
        let reclaimed = loaded.report().memory.reclaimed_bytes;
        let is_copied = |name: &str| loaded.tensor(name).unwrap().backend() == Backend::Host;
        let copied = model.bytes_of(is_copied);
        assert!(reclaimed <= copied, "{reclaimed} bytes given back, {copied} copied");
        assert!(reclaimed >= copied / 10 * 9, "{reclaimed} bytes given back, {copied} copied");
        assert_all_right(&model, &loaded);
    }
}

/// Large tensors for the device, each followed by a small one for the cpu.
fn neighbours(small_bytes: usize) -> TestModel {
    let tensor = |number: usize| {
        let length = if number.is_multiple_of(2) { 150_001 } else { small_bytes + number };
        (format!("model.layers.{}.part{}.weight", number / 2, number % 2), length)
    };
    TestModel::of((0..16).map(tensor))
}

fn every_second(model: &TestModel, mode: &str) -> Loader {
    let rule: PlaceRule = "part1=cpu".parse().unwrap();
    model.loader(mode).place(rule).gpu_layers(GpuLayers::All)
}

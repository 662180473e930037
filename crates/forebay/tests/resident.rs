//! Tensors that stay in their mapping: brought in ahead of use, those and no others, in order of
//! use, and waited for. What is in memory is asked of the kernel, not of the loader.

mod support;

use forebay::{Backend, GpuLayers, Load, Loaded, Loader, Prefetch, Tensor};
use forebay_tests::residence::{self, Faults, cached_bytes, faults_of_touching};
use std::sync::{Arc, Mutex};
use support::{TestModel, alone, fixtures, on_a_thread};

const MIB: usize = 1 << 20;

/// A load that keeps everything on the cpu, mapped.
fn mapped(model: &TestModel, prefetch: Prefetch) -> Loader {
    model.loader("cpu=mmap").gpu_layers(GpuLayers::Count(0)).prefetch(prefetch)
}

fn all(_name: &str) -> bool {
    true
}

/// The tensors of [`TestModel::layered`] in the order in which a model uses them.
fn in_order_of_use(layers: u32) -> Vec<String> {
    let layer = |number| [0, 1].map(|part| format!("model.layers.{number}.part{part}.weight"));
    let mut names = vec!["model.embed_tokens.weight".to_owned()];
    names.extend((0..layers).flat_map(layer));
    names.push("lm_head.weight".to_owned());
    names
}

fn touch(tensors: &[Tensor]) -> Faults {
    faults_of_touching(tensors.iter().filter_map(Tensor::mapped))
}

fn assert_all_right(model: &TestModel, loaded: &Loaded) {
    assert_eq!(loaded.tensors().len(), model.tensors.len());
    loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
}

#[test]
fn a_cold_file_is_in_memory_when_the_load_says_so_and_reading_it_waits_for_no_disk() {
    let _alone = alone();
    let model = TestModel::layered(6, 8 * MIB);
    for prefetch in [Prefetch::On, Prefetch::Auto] {
        if !model.make_cold() {
            return;
        }
        let loaded = mapped(&model, prefetch).load().unwrap();
        let cached = cached_bytes(&model.path, 0..model.file_bytes);
        let pages = model.paged_bytes_of(all);
        assert!(cached >= pages / 100 * 99, "{cached} of {pages} bytes are in the page cache");
        let memory = &loaded.report().memory;
        assert_eq!((memory.prefetched_bytes, memory.resident_bytes), (pages, pages));
        assert_eq!(loaded.report().prefetch.bytes, pages);
        let tensors: Vec<_> = loaded.tensors().collect();
        for tensor in &tensors {
            assert_eq!(tensor.resident_bytes().unwrap(), tensor.bytes(), "{tensor:?}");
        }
        let Faults { major, minor } = touch(&tensors);
        assert_eq!(major, 0, "reading the tensors waited for storage");
        // They are in the page table too: at most a stray page, not one in sixteen (which is what
        // the kernel maps around a fault).
        assert!(minor < pages / 4096 / 64, "{minor} faults for {} pages", pages / 4096);
        assert_all_right(&model, &loaded);
    }
}

#[test]
fn without_prefetch_no_page_comes_before_it_is_touched() {
    let _alone = alone();
    let model = TestModel::layered(4, 4 * MIB);
    if !model.make_cold() {
        return;
    }
    let loaded = mapped(&model, Prefetch::Off).load().unwrap();
    assert_eq!(cached_bytes(&model.path, 0..model.file_bytes), 0);
    let memory = &loaded.report().memory;
    assert_eq!((memory.prefetched_bytes, memory.resident_bytes), (0, 0));
    let tensors: Vec<_> = loaded.tensors().collect();
    assert!(tensors.iter().all(|tensor| tensor.resident_bytes().unwrap() == 0));
    // What the other tests find none of can be counted here.
    assert!(touch(&tensors).major > 0, "pages came from storage, and no fault was major");
    assert_all_right(&model, &loaded);
}

/// The other half goes past the page cache to `host`; what of it is cached all the same is what
/// readahead brought at the edges.
#[test]
fn only_what_stays_on_the_cpu_is_brought_in() {
    let _alone = alone();
    let model = TestModel::layered(8, 12 * MIB);
    if !model.make_cold() {
        return;
    }
    let file = forebay_io::ModelFile::open(&model.path).unwrap();
    let window_bytes = file.readahead().window_bytes.unwrap_or(128 << 10);
    if file.direct().is_err() {
        return eprintln!("SKIPPED: no direct reads on the filesystem of the target folder");
    }
    let loader = model.loader("device=dio,cpu=mmap").gpu_layers(GpuLayers::Count(4));
    let loaded = loader.prefetch(Prefetch::On).load().unwrap();
    let is_offloaded = |name: &str| loaded.tensor(name).unwrap().backend() == Backend::Host;
    let offloaded = model.bytes_of(is_offloaded);
    assert!(offloaded > 47 * MIB as u64 && offloaded < model.file_bytes * 6 / 10);
    let pages = model.paged_bytes_of(|name| !is_offloaded(name));
    let memory = &loaded.report().memory;
    assert_eq!((memory.prefetched_bytes, memory.resident_bytes), (pages, pages));
    let kept = model.cached_bytes_of(|name| !is_offloaded(name));
    assert_eq!(kept, model.bytes_of(|name| !is_offloaded(name)));
    let cached = model.cached_bytes_of(is_offloaded);
    // The offloaded layers are one stretch of the file: two edges.
    let slack = 2 * window_bytes;
    if slack * 2 > offloaded {
        return eprintln!("SKIPPED: readahead of {window_bytes} bytes hides everything");
    }
    assert!(cached <= slack, "{cached} of {offloaded} offloaded bytes are in the page cache");
    let on_cpu: Vec<_> =
        loaded.tensors().filter(|tensor| tensor.backend() == Backend::Cpu).collect();
    assert_eq!(touch(&on_cpu).major, 0);
    assert_all_right(&model, &loaded);
}

/// Neighbouring tensors share pages: none is counted twice, and none is missed.
#[test]
fn every_page_is_brought_once_however_small_the_tensors() {
    let _alone = alone();
    let lengths = [1, 4096, 100, 5000, 3, 70_000, 8192, 1, 4095, 12_345];
    let tensor = |(number, length)| (format!("model.layers.{}.w{number}", 9 - number), length);
    let model = TestModel::of(lengths.into_iter().enumerate().map(tensor));
    if !model.make_cold() {
        return;
    }
    let loaded = mapped(&model, Prefetch::On).load().unwrap();
    let pages = model.paged_bytes_of(all);
    let memory = &loaded.report().memory;
    assert_eq!((memory.prefetched_bytes, memory.resident_bytes), (pages, pages));
    assert_eq!(touch(&loaded.tensors().collect::<Vec<_>>()).major, 0);
    assert_all_right(&model, &loaded);
}

fn names_of(load: &mut Load, backend: Backend) -> Vec<String> {
    let tensors = load.map(Result::unwrap).filter(|tensor| tensor.backend() == backend);
    tensors.map(|tensor| tensor.name().to_owned()).collect()
}

#[test]
fn mapped_tensors_are_handed_out_in_order_of_use_and_there() {
    let _alone = alone();
    let model = TestModel::layered(6, 4 * MIB);
    let _ = residence::forget(&model.path);
    let mut load = mapped(&model, Prefetch::On).start().unwrap();
    let mut names = Vec::new();
    for tensor in &mut load {
        let tensor = tensor.unwrap();
        assert_eq!(tensor.resident_bytes().unwrap(), tensor.bytes(), "{tensor:?}");
        assert_eq!(touch(std::slice::from_ref(&tensor)).major, 0, "{tensor:?}");
        names.push(tensor.name().to_owned());
    }
    assert_eq!(names, in_order_of_use(6));
    drop(load.finish().unwrap());
    // Also among tensors that are copied away meanwhile.
    let loader = model.loader("device=dio,cpu=mmap").gpu_layers(GpuLayers::Count(2));
    let mut load = loader.prefetch(Prefetch::On).start().unwrap();
    let names = names_of(&mut load, Backend::Cpu);
    let mut expected = in_order_of_use(4);
    assert_eq!(names, expected);
    // What is not brought in is handed out at once, as the file has it.
    let mut load = mapped(&model, Prefetch::Off).start().unwrap();
    let mut names = names_of(&mut load, Backend::Cpu);
    assert_eq!(names[0], "lm_head.weight");
    names.sort_unstable();
    expected = in_order_of_use(6);
    expected.sort_unstable();
    assert_eq!(names, expected);
}

/// Those who wait find the tensor there, whatever becomes of the load meanwhile.
fn wait_for(what: &str, tensors: Vec<Tensor>) {
    let said = what.to_owned();
    on_a_thread(what, move || {
        for tensor in tensors {
            tensor.wait_until_resident().unwrap_or_else(|error| panic!("{said}: {error}"));
            assert_eq!(tensor.resident_bytes().unwrap(), tensor.bytes(), "{said}: {tensor:?}");
            assert_eq!(touch(&[tensor]).major, 0, "{said}");
        }
    });
}

#[test]
fn waiting_for_a_tensor_works_while_the_load_runs_and_after_it_has_ended() {
    let _alone = alone();
    let model = TestModel::layered(6, 4 * MIB);
    let cold = |prefetch| {
        let _ = residence::forget(&model.path);
        mapped(&model, prefetch).start().unwrap()
    };
    let load = cold(Prefetch::On);
    let mut tensors = load.mapped_tensors();
    assert_eq!(tensors.len(), model.tensors.len());
    tensors.reverse();
    wait_for("while it runs and nobody iterates", tensors);
    let loaded = load.finish().unwrap();
    wait_for("after it has ended", loaded.tensors().collect());

    let load = cold(Prefetch::On);
    let tensors = load.mapped_tensors();
    load.cancel_handle().cancel();
    let outcomes: Vec<_> = { load }.collect();
    assert!(outcomes.iter().filter(|outcome| outcome.is_err()).count() <= 1);
    wait_for("after it was cancelled", tensors);

    // The modes without mapped tensors have nobody to wait for.
    let loaded = model.loader("dio").gpu_layers(GpuLayers::Count(0)).load().unwrap();
    wait_for("in memory of its own", loaded.tensors().collect());
}

/// So large that it can't be there by the time that the load is dropped.
#[test]
fn waiting_for_a_tensor_of_a_dropped_load_brings_it() {
    let _alone = alone();
    let model = TestModel::layered(4, 40 * MIB);
    let _ = residence::forget(&model.path);
    let load = mapped(&model, Prefetch::On).start().unwrap();
    let tensors = load.mapped_tensors();
    drop(load);
    wait_for("after it was dropped", tensors);
}

#[test]
fn waiting_for_a_tensor_that_nobody_brings_brings_it() {
    let _alone = alone();
    let model = TestModel::layered(3, MIB);
    for when in ["while the load runs", "after it has ended", "after it was dropped"] {
        let _ = residence::forget(&model.path);
        let load = mapped(&model, Prefetch::Off).start().unwrap();
        let tensors = load.mapped_tensors();
        let keep: Option<Box<dyn std::any::Any>> = match when {
            "while the load runs" => Some(Box::new(load)),
            "after it has ended" => Some(Box::new(load.finish().unwrap())),
            _ => {
                drop(load);
                None
            }
        };
        wait_for(&format!("without prefetch, {when}"), tensors);
        drop(keep);
    }
}

/// Half offloaded: a tensor of the cpu can be waited for while the device's reads go on.
#[test]
fn waiting_does_not_depend_on_the_reads_of_the_device() {
    let _alone = alone();
    let model = TestModel::layered(4, 2 * MIB);
    let _ = residence::forget(&model.path);
    let loader = model.loader("device=dio,cpu=mmap").gpu_layers(GpuLayers::Count(2));
    let (sender, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let pause = move || assert!(held.lock().unwrap().recv().is_err());
    let rule = forebay_tests::Rule::new(forebay_tests::Answer::Meanwhile(Box::new(pause))).times(1);
    let load = loader.fault(Box::new(forebay_tests::Script::new(rule))).start().unwrap();
    // Dropped before the load if this fails: the load could not be joined else.
    let sender = sender;
    wait_for("while a read of the device hangs", load.mapped_tensors());
    drop(sender);
    assert_all_right(&model, &load.finish().unwrap());
}

/// Progress counts each byte once, whichever way it comes.
#[test]
fn progress_ends_at_the_whole_model() {
    let _alone = alone();
    let model = TestModel::layered(4, MIB);
    for mode in ["cpu=mmap", "mlock", "cpu=dio", "cpu=none", "mmap"] {
        for prefetch in [Prefetch::On, Prefetch::Off] {
            for layers in [GpuLayers::Count(0), GpuLayers::Count(2)] {
                let last = Arc::new(Mutex::new((0, 0)));
                let seen = Arc::clone(&last);
                let loader = model.loader(mode).gpu_layers(layers).prefetch(prefetch);
                let loader = loader.on_progress(move |progress| {
                    *seen.lock().unwrap() = (progress.done_bytes, progress.total_bytes);
                });
                assert_all_right(&model, &loader.load().unwrap());
                let (done, total) = *last.lock().unwrap();
                assert_eq!(done, total, "{mode} {prefetch:?} {layers:?}");
                assert_eq!(total, model.bytes_of(all), "{mode}");
            }
        }
    }
}

/// Files of several parts, of shared and nested tensors: each tensor comes once, and right.
#[test]
fn every_fixture_is_prefetched_whole() {
    let _alone = alone();
    for (path, tensors) in fixtures() {
        let loader = || Loader::new(&path).load_mode("cpu=mmap".parse().unwrap());
        for layers in [GpuLayers::Count(0), GpuLayers::Count(1)] {
            let load = loader().gpu_layers(layers).prefetch(Prefetch::On).start().unwrap();
            let loaded = load.finish().unwrap();
            let memory = &loaded.report().memory;
            assert_eq!(memory.resident_bytes, memory.prefetched_bytes, "{}", path.display());
            let digests = loaded.digests().unwrap();
            for tensor in &tensors {
                let name = tensor["name"].as_str().unwrap();
                assert_eq!(digests[name], tensor["sha256"], "{}: {name}", path.display());
            }
            assert_eq!(digests.len(), tensors.len());
        }
        let mut load = loader().gpu_layers(GpuLayers::Count(0)).start().unwrap();
        let mut names = names_of(&mut load, Backend::Cpu);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), tensors.len(), "{}", path.display());
    }
}

//! Layers that come to the stand-in device and go: their bytes, their tiers, what may be held, and
//! every way to end such a stream.

mod support;

use forebay::{
    Backend, Cancel, EngineChoice, Errno, Error, FailureKind, GpuLayers, Layer, LayerStream,
    LayerStreamBuilder, Tensor, Tier,
};
use forebay_io::{Fault, Op};
use forebay_tests::{Answer, Rule, Script};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{
    TestModel, alone, engines, is_without_load_threads, on_a_thread, small_slots, status_kib,
};

const MODES: [&str; 4] = ["dio", "none", "mmap", "auto"];
const KIB: usize = 1 << 10;

fn stream(model: &TestModel, budget: u64) -> LayerStreamBuilder {
    let options = small_slots("dio", EngineChoice::Auto);
    LayerStream::builder(&model.path).options(options).device_budget(budget).host_budget(0)
}

/// Layers of unequal sizes and numbers of tensors, some without bytes, in no order of use.
fn uneven() -> TestModel {
    let mut tensors = vec![("lm_head.weight".to_owned(), 90 * KIB + 1)];
    for layer in (0..9).rev() {
        let name = |part: usize| format!("model.layers.{layer}.part{part}.weight");
        for part in 0..1 + layer % 3 {
            let length = 13 * KIB + (layer * 29 + part * 17) % 11 * 9 * KIB + layer * 3 + 1;
            tensors.push((name(part), if part == 1 && layer % 2 == 0 { 0 } else { length }));
        }
    }
    // One that has no bytes at all.
    tensors.push(("model.layers.9.part0.weight".to_owned(), 0));
    tensors.push(("model.layers.10.part0.weight".to_owned(), 40 * KIB));
    tensors.push(("model.norm.weight".to_owned(), 301));
    tensors.push(("model.embed_tokens.weight".to_owned(), 150 * KIB + 7));
    TestModel::of(tensors)
}

/// Layers that are alike.
fn even(layers: usize, bytes: usize) -> TestModel {
    TestModel::of((0..layers).map(|layer| (format!("model.layers.{layer}.weight"), bytes)))
}

fn bytes_of(model: &TestModel) -> u64 {
    model.bytes_of(|_| true)
}

/// The layers of `uneven` as they are to come.
fn names_of_uneven() -> Vec<String> {
    let layers = (0..11).map(|layer| format!("layer {layer}"));
    ["input".to_owned()].into_iter().chain(layers).chain(["output".to_owned()]).collect()
}

/// Goes through a pass, which is to have every tensor of the model once and right.
fn pass(model: &TestModel, stream: &mut LayerStream) -> Vec<String> {
    let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(layer) = stream.next_layer().unwrap() {
        names.push(layer.name().to_owned());
        let mut bytes = 0;
        for tensor in layer.tensors() {
            model.assert_right(&tensor);
            bytes += tensor.bytes();
            assert!(seen.insert(tensor.name().to_owned()), "{tensor:?} came twice");
            assert_eq!(layer.tensor(tensor.name()).unwrap().name(), tensor.name());
        }
        assert_eq!(bytes, layer.bytes(), "{}", layer.name());
        assert!(layer.tensor("no such").is_none());
    }
    assert_eq!(seen.len(), model.tensors.len());
    names
}

fn least_bytes(model: &TestModel) -> u64 {
    match stream(model, 0).start().map(drop).unwrap_err() {
        Error::Budget { budget_bytes: 0, least_bytes, .. } => least_bytes,
        other => panic!("{other}"),
    }
}

fn assert_nothing_left(what: &str) {
    assert!(is_without_load_threads(), "{what}: a thread is left");
    assert_eq!(status_kib("VmPin:"), 0, "{what}: memory is still pinned");
}

/// What was read, as the engines saw it.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(u64, u64)>>>);

impl Seen {
    /// How often each tensor was read that is large enough to have a byte in no other one's block.
    fn times(&self, model: &TestModel) -> BTreeMap<String, usize> {
        let reads = self.0.lock().unwrap().clone();
        let large = model.tensors.iter().filter(|(_, bytes)| bytes.len() > 2 * 4096);
        let times = large.map(|(name, _)| {
            let inside = model.range(name).start + 4096;
            let times = reads.iter().filter(|(from, to)| (*from..*to).contains(&inside)).count();
            (name.clone(), times)
        });
        times.collect()
    }
}

impl Fault for Seen {
    fn tamper(
        &mut self,
        op: &Op,
        result: Result<u32, Errno>,
        _buffer: &mut [u8],
    ) -> Result<u32, Errno> {
        if let Ok(bytes) = result {
            self.0.lock().unwrap().push((op.offset, op.offset + u64::from(bytes)));
        }
        result
    }
}

/// Each read takes so long.
fn slow(time: Duration) -> Box<Script> {
    let pause = move || std::thread::sleep(time);
    Box::new(Script::new(Rule::new(Answer::Meanwhile(Box::new(pause)))))
}

#[test]
fn every_layer_of_every_pass_has_the_bytes_of_the_file() {
    let _alone = alone();
    let model = uneven();
    let (all, least) = (bytes_of(&model), least_bytes(&model));
    for engine in engines() {
        for mode in MODES {
            for budget in [2 * all, all / 2, all / 4, least] {
                for host in [0, all / 4, 2 * all] {
                    let what = format!("{engine:?} {mode} {budget} {host}");
                    let mut stream = LayerStream::builder(&model.path)
                        .options(small_slots(mode, engine))
                        .device_budget(budget)
                        .host_budget(host)
                        .start()
                        .unwrap();
                    assert_eq!(stream.layers(), names_of_uneven().len());
                    for _ in 0..3 {
                        assert_eq!(pass(&model, &mut stream), names_of_uneven(), "{what}");
                    }
                    let report = stream.finish().unwrap();
                    let tiers = report.tiers;
                    assert_eq!((report.vram_budget, report.host_budget), (budget, host));
                    assert_eq!(report.passes.len(), 3);
                    assert_eq!(report.device, "host");
                    assert_eq!(
                        tiers.resident_bytes + tiers.host_bytes + tiers.streamed_bytes,
                        all,
                        "{what}"
                    );
                    assert_eq!(tiers.mapped_bytes, 0);
                    assert!(tiers.resident_bytes <= budget && tiers.host_bytes <= host, "{what}");
                    assert!(report.host_memory_bytes <= host + (256 << 10), "{what}");
                    if host == 2 * all {
                        assert_eq!(tiers.streamed_bytes, 0, "{what}");
                    }
                    if budget == 2 * all {
                        assert_eq!(tiers.resident_bytes, all, "{what}");
                    }
                }
            }
        }
    }
    assert_nothing_left("all streams");
}

#[test]
fn only_what_is_in_no_tier_is_read_again() {
    let _alone = alone();
    let model = uneven();
    let all = bytes_of(&model);
    for engine in engines() {
        for host in [0, all / 4, 2 * all] {
            let seen = Seen::default();
            let mut stream = LayerStream::builder(&model.path)
                .options(small_slots("dio", engine))
                .device_budget(all / 2)
                .host_budget(host)
                // Of two passes, the first is not measured for a better split.
                .passes(2)
                .fault(Box::new(seen.clone()))
                .start()
                .unwrap();
            let mut tier_of = BTreeMap::new();
            for _ in 0..2 {
                while let Some(layer) = stream.next_layer().unwrap() {
                    for tensor in layer.tensors() {
                        model.assert_right(&tensor);
                        let tier = *tier_of.entry(tensor.name().to_owned()).or_insert(layer.tier());
                        assert_eq!(tier, layer.tier());
                    }
                }
            }
            assert!(stream.next_layer().unwrap().is_none(), "a third pass");
            let streamed = stream.report().tiers.streamed_bytes;
            let report = stream.finish().unwrap();
            for (name, times) in seen.times(&model) {
                let expected = if tier_of[&name] == Tier::Streamed { 2 } else { 1 };
                assert_eq!(times, expected, "{engine:?} {host} {name} {:?}", tier_of[&name]);
            }
            if host == 2 * all {
                assert_eq!(streamed, 0);
                assert_eq!(report.passes[1].read_bytes, 0, "all is held in memory");
            } else {
                // Some may have come while the first pass was still going on.
                let second = report.passes[1].read_bytes;
                assert!(second <= streamed + 4096 * 64 && streamed > 0, "{second} of {streamed}");
            }
        }
    }
}

#[test]
fn a_budget_that_is_too_small_names_the_least_that_works() {
    let _alone = alone();
    for model in [uneven(), even(3, 100 * KIB), even(1, 1)] {
        let least = least_bytes(&model);
        let error = stream(&model, least - 1).start().map(drop).unwrap_err();
        let Error::Budget { budget_bytes, least_bytes, layer } = &error else { panic!("{error}") };
        assert_eq!((*budget_bytes, *least_bytes), (least - 1, least));
        assert!(!layer.is_empty() && error.to_string().contains(layer.as_str()), "{error}");
        assert!(error.remedy().unwrap().contains(&least.to_string()), "{:?}", error.remedy());
        let mut stream = stream(&model, least).start().unwrap();
        for _ in 0..2 {
            pass(&model, &mut stream);
        }
        assert!(stream.report().tiers.resident_bytes <= least);
    }
}

#[test]
fn tensors_of_the_cpu_stay_mapped_and_come_with_their_layer() {
    let _alone = alone();
    let model = Arc::new(uneven());
    for mode in ["auto", "device=dio,cpu=mmap", "mmap"] {
        for rule in ["part0=cpu", "layers\\.[0-4]\\.=cpu", "embed|lm_head=cpu", ".=cpu"] {
            let mut options = small_slots(mode, EngineChoice::Auto);
            options.place.push(rule.parse().unwrap());
            let is_on_cpu = |tensor: &Tensor| tensor.backend() == Backend::Cpu;
            let budget = least_bytes(&model) + 70 * KIB as u64;
            let model = Arc::clone(&model);
            on_a_thread(&format!("{mode} {rule}"), move || {
                let builder = LayerStream::builder(&model.path).options(options);
                let mut stream = builder.device_budget(budget).host_budget(0).start().unwrap();
                for _ in 0..2 {
                    pass(&model, &mut stream);
                }
                let mut mapped = 0;
                while let Some(layer) = stream.next_layer().unwrap() {
                    for tensor in layer.tensors().filter(is_on_cpu) {
                        assert!(tensor.mapped().is_some() || tensor.bytes() == 0, "{tensor:?}");
                        tensor.wait_until_resident().unwrap();
                        mapped += tensor.bytes();
                    }
                }
                let tiers = stream.finish().unwrap().tiers;
                assert!(mapped > 0 && tiers.mapped_bytes == mapped, "{tiers:?}");
            });
        }
    }
    let mut none = small_slots("auto", EngineChoice::Auto);
    none.gpu_layers = GpuLayers::Count(0);
    let builder = LayerStream::builder(&model.path).options(none).device_budget(0);
    on_a_thread("nothing on the device", move || {
        let mut stream = builder.start().unwrap();
        for _ in 0..3 {
            pass(&model, &mut stream);
        }
    });
    assert_nothing_left("tensors of the cpu");
}

#[test]
fn holding_all_bays_is_an_error_and_the_stream_goes_on_after_a_drop() {
    let _alone = alone();
    let model = even(12, 60 * KIB + 5);
    let budget = 4 * 61 * KIB as u64;
    let started = stream(&model, budget).passes(2).start().unwrap();
    let depth = started.report().depth;
    assert!(depth > 1 && started.tiers().contains(&Tier::Resident));
    on_a_thread("holds", move || {
        let mut stream = started;
        let mut held: Vec<Layer> = Vec::new();
        let mut refused = 0;
        for _ in 0..2 {
            loop {
                match stream.next_layer() {
                    Ok(Some(layer)) => held.push(layer),
                    Ok(None) => break,
                    Err(error) => {
                        assert!(matches!(error, Error::Option { .. }), "{error}");
                        let bays = held.iter().filter(|it| it.tier() != Tier::Resident).count();
                        assert!(bays >= depth, "{bays} held: {error}");
                        let checked = held.iter().flat_map(|layer| layer.tensors());
                        checked.for_each(|tensor| model.assert_right(&tensor));
                        let first = held.iter().position(|it| it.tier() != Tier::Resident);
                        held.remove(first.unwrap());
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 4, "{refused}");
        held.iter().flat_map(Layer::tensors).for_each(|tensor| model.assert_right(&tensor));
        drop(held);
        stream.finish().unwrap();
    });
    assert_nothing_left("held");
}

/// The guard is gone, and its memory is still not free: that too is to be an error, not a wait
/// without end.
#[test]
fn holding_tensors_without_their_layers_is_the_same() {
    let _alone = alone();
    let model = even(8, 60 * KIB + 5);
    let stream = stream(&model, 3 * 61 * KIB as u64).passes(2).start().unwrap();
    on_a_thread("holds tensors", move || {
        let mut stream = stream;
        let mut held: Vec<Tensor> = Vec::new();
        let mut refused = 0;
        for _ in 0..2 {
            loop {
                match stream.next_layer() {
                    Ok(Some(layer)) => held.extend(layer.tensors()),
                    Ok(None) => break,
                    Err(error) => {
                        assert!(matches!(error, Error::Option { .. }), "{error}");
                        held.iter().for_each(|tensor| model.assert_right(tensor));
                        held.clear();
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused > 2, "{refused}");
    });
    assert_nothing_left("held tensors");
}

/// One layer less than there are bays may always be held, wherever those that stay lie.
#[test]
fn one_bay_is_enough_to_go_on() {
    let _alone = alone();
    let mut random = fastrand::Rng::with_seed(8);
    for round in 0..60 {
        let sizes: Vec<usize> = (0..12).map(|_| random.usize(1..120 * KIB)).collect();
        let named = |(layer, &bytes): (usize, &usize)| (format!("blk.{layer}.w"), bytes);
        let model = TestModel::of(sizes.iter().enumerate().map(named));
        let (all, least) = (bytes_of(&model), least_bytes(&model));
        let budget = random.u64(least..all.max(least + 1));
        let stream = stream(&model, budget).passes(2).start().unwrap();
        let what = format!("round {round}: {sizes:?} in {budget}");
        on_a_thread(&what.clone(), move || {
            let mut stream = stream;
            let may_hold = stream.report().depth.saturating_sub(1);
            let mut held = std::collections::VecDeque::new();
            for _ in 0..2 {
                while let Some(layer) = stream.next_layer().unwrap() {
                    if layer.tier() != Tier::Resident {
                        held.push_back(layer);
                    }
                    for layer in &held {
                        layer.tensors().for_each(|tensor| model.assert_right(&tensor));
                    }
                    while held.len() > may_hold {
                        held.pop_front();
                    }
                    // What comes next takes what room there is.
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
        });
    }
}

#[test]
fn a_tensor_that_is_held_stays_right_while_others_come() {
    let _alone = alone();
    let model = even(10, 50 * KIB + 3);
    for engine in engines() {
        let builder = LayerStream::builder(&model.path).options(small_slots("dio", engine));
        let builder = builder.device_budget(3 * 51 * KIB as u64).host_budget(100 * KIB as u64);
        let mut stream = builder.start().unwrap();
        let mut held: Option<Tensor> = None;
        for _ in 0..6 {
            while let Some(layer) = stream.next_layer().unwrap() {
                if let Some(tensor) = &held {
                    model.assert_right(tensor);
                }
                if stream.report().depth > 1 && layer.number().unwrap() % 3 == 0 {
                    held = layer.tensors().next();
                } else if layer.number().unwrap() % 3 == 2 {
                    held = None;
                }
            }
            held = None;
        }
    }
}

#[test]
fn dropping_a_stream_at_any_moment_leaves_nothing_and_what_was_handed_out_is_right() {
    let _alone = alone();
    let model = uneven();
    let all = bytes_of(&model);
    let mut random = fastrand::Rng::with_seed(4);
    for round in 0..120 {
        let (mode, engine) = (MODES[round % 4], engines()[round / 4 % engines().len()]);
        let budget = all / [1, 2, 4][random.usize(..3)] + 256 * 1024;
        let builder = LayerStream::builder(&model.path).options(small_slots(mode, engine));
        let builder = builder.device_budget(budget).host_budget(random.u64(..all));
        let mut stream = builder.start().unwrap();
        let mut last = None;
        for _ in 0..random.usize(..30) {
            drop(last.take());
            last = stream.next_layer().unwrap();
        }
        std::thread::sleep(Duration::from_micros(random.u64(..1500)));
        let tensors: Vec<Tensor> = last.iter().flat_map(|layer| layer.tensors()).collect();
        drop(stream);
        drop(last);
        assert_nothing_left(&format!("round {round}"));
        tensors.iter().for_each(|tensor| model.assert_right(tensor));
    }
}

/// Goes on until something ends the stream.
fn error_of(mut stream: LayerStream) -> (LayerStream, Error) {
    on_a_thread("ends", move || {
        for _ in 0..100_000 {
            match stream.next_layer() {
                Ok(layer) => drop(layer),
                Err(error) => return (stream, error),
            }
        }
        panic!("nothing ended it");
    })
}

#[test]
fn a_failed_read_names_file_and_tensor_once() {
    let _alone = alone();
    let model = uneven();
    for engine in engines() {
        for after in [0, 7, 40] {
            let script = Script::new(Rule::new(Answer::Errno(Errno::EIO)).after(after).times(1));
            let builder = LayerStream::builder(&model.path).options(small_slots("dio", engine));
            let builder = builder.device_budget(bytes_of(&model) / 4).host_budget(0).passes(2);
            let stream = builder.fault(Box::new(script)).start().unwrap();
            let (mut stream, error) = error_of(stream);
            let Error::Read { context, failure } = &error else { panic!("{error}") };
            assert_eq!(failure.kind, FailureKind::Errno(Errno::EIO));
            assert_eq!(context.path.as_deref(), Some(model.path.as_path()));
            let tensor = context.tensor.as_deref().unwrap();
            let range = model.range(tensor);
            assert!(failure.offset <= range.end && failure.offset + (64 << 10) > range.start);
            assert!(matches!(stream.next_layer(), Err(Error::AlreadyReported)));
            assert!(matches!(stream.finish(), Err(Error::AlreadyReported)));
            assert_nothing_left("a failed read");
        }
    }
}

#[test]
fn a_file_that_changes_ends_the_stream() {
    let _alone = alone();
    for mode in MODES {
        for is_cut in [false, true] {
            let model = even(8, 70 * KIB);
            // Clocks of file times are coarse.
            std::thread::sleep(Duration::from_millis(20));
            let builder = LayerStream::builder(&model.path);
            let builder = builder.options(small_slots(mode, EngineChoice::Auto));
            let mut stream =
                builder.device_budget(200 * KIB as u64).host_budget(0).start().unwrap();
            pass(&model, &mut stream);
            let file = OpenOptions::new().write(true).open(&model.path).unwrap();
            if is_cut {
                file.set_len(100 << 10).unwrap();
            } else {
                file.write_all_at(b"another", 300 << 10).unwrap();
            }
            let (mut stream, error) = error_of(stream);
            let is_named = match &error {
                Error::Changed { .. } => true,
                Error::Read { failure, .. } => is_cut && failure.kind == FailureKind::EndOfFile,
                _ => false,
            };
            assert!(is_named && error.to_string().contains("model.safetensors"), "{mode}: {error}");
            assert!(matches!(stream.next_layer(), Err(Error::AlreadyReported)));
        }
    }
}

#[test]
fn cancelling_ends_the_stream_wherever_it_is() {
    let _alone = alone();
    let model = even(8, 70 * KIB);
    for before in [0, 1, 5, 11] {
        for engine in engines() {
            let cancel = Cancel::default();
            let builder = LayerStream::builder(&model.path).options(small_slots("dio", engine));
            let builder = builder.device_budget(200 * KIB as u64).cancel_with(&cancel);
            let mut stream = builder.host_budget(0).start().unwrap();
            for _ in 0..before {
                drop(stream.next_layer().unwrap());
            }
            cancel.cancel();
            let (stream, error) = error_of(stream);
            assert!(matches!(error, Error::Cancelled), "{error}");
            assert!(matches!(stream.finish(), Err(Error::AlreadyReported)));
            assert_nothing_left("cancelled");
        }
    }
    // One that ends by itself does not cancel what shares the flag.
    let cancel = Cancel::default();
    let mut stream = stream(&model, 200 * KIB as u64).cancel_with(&cancel).start().unwrap();
    pass(&model, &mut stream);
    stream.finish().unwrap();
    assert!(!cancel.is_cancelled());
}

#[test]
fn refusals_are_stepped_down_exactly_and_reported() {
    let _alone = alone();
    let model = uneven();
    for engine in engines() {
        let direct = |op: &Op| op.access == forebay::Access::Direct;
        let refusal = Rule::new(Answer::Errno(Errno::EINVAL)).only(direct).after(9);
        let short = Rule::new(Answer::AnyShort(fastrand::Rng::with_seed(3))).times(300);
        let script = Script::default().and(refusal).and(short);
        let changed = script.changed();
        let builder = LayerStream::builder(&model.path).options(small_slots("dio", engine));
        let builder = builder.device_budget(bytes_of(&model) / 4).host_budget(0).passes(3);
        let mut stream = builder.fault(Box::new(script)).start().unwrap();
        for _ in 0..3 {
            pass(&model, &mut stream);
        }
        assert!(changed.load(std::sync::atomic::Ordering::Relaxed) > 100);
        let fallbacks = stream.finish().unwrap().fallbacks;
        assert!(
            fallbacks.iter().any(|it| it.from == "direct" && it.errno == "EINVAL"),
            "{fallbacks:?}"
        );
    }
}

#[test]
fn the_callers_groups_come_in_the_order_of_their_numbers() {
    let _alone = alone();
    let model = even(12, 20 * KIB + 9);
    let group = |name: &str| {
        let layer: u32 = name.split('.').nth(2).unwrap().parse().unwrap();
        100 - layer / 5
    };
    let mut stream = stream(&model, 210 * KIB as u64).group_by(group).start().unwrap();
    assert_eq!(stream.layers(), 3);
    for _ in 0..3 {
        let mut numbers = Vec::new();
        while let Some(layer) = stream.next_layer().unwrap() {
            numbers.push((layer.number().unwrap(), layer.tensors().len()));
            layer.tensors().for_each(|tensor| {
                assert_eq!(Some(group(tensor.name())), layer.number());
                model.assert_right(&tensor);
            });
        }
        assert_eq!(numbers, [(98, 2), (99, 5), (100, 5)]);
    }
}

#[test]
fn nothing_is_brought_beyond_the_passes_that_were_asked_for() {
    let _alone = alone();
    let model = even(6, 40 * KIB);
    for passes in 0..3 {
        let seen = Seen::default();
        let builder = stream(&model, 120 * KIB as u64).passes(passes).fault(Box::new(seen.clone()));
        let mut stream = builder.start().unwrap();
        for _ in 0..passes {
            assert_eq!(pass(&model, &mut stream).len(), 6);
        }
        for _ in 0..3 {
            assert!(stream.next_layer().unwrap().is_none());
        }
        // What should not come would come now.
        std::thread::sleep(Duration::from_millis(30));
        let report = stream.finish().unwrap();
        assert_eq!(report.passes.len() as u64, passes);
        for (name, times) in seen.times(&model) {
            assert!(times as u64 <= passes, "{name}: {times} of {passes}");
        }
        let last = seen.times(&model).into_values().max().unwrap();
        assert_eq!(last as u64, passes);
    }
}

/// Reads are so slow that one more layer that stays is better than a second bay.
fn restarting(model: &TestModel, budget: u64) -> LayerStreamBuilder {
    stream(model, budget).fault(slow(Duration::from_millis(3)))
}

#[test]
fn another_split_after_the_first_pass_keeps_every_byte_right() {
    let _alone = alone();
    let model = even(6, 90 * KIB + 1);
    for holds in [false, true] {
        let mut stream = restarting(&model, 4 * 91 * KIB as u64).start().unwrap();
        assert_eq!(stream.report().depth, 2);
        let mut held: Option<Layer> = None;
        for number in 0..5 {
            while let Some(layer) = stream.next_layer().unwrap() {
                layer.tensors().for_each(|tensor| model.assert_right(&tensor));
                if holds && number == 0 {
                    held = Some(layer);
                }
            }
            if let Some(layer) = &held {
                layer.tensors().for_each(|tensor| model.assert_right(&tensor));
            }
            if number == 2 {
                held = None;
            }
        }
        let report = stream.finish().unwrap();
        let has_restarted = report.why.iter().any(|why| why.starts_with("after the first pass"));
        // With a layer in use, both would be on the device at once.
        assert_eq!(has_restarted, !holds, "{:#?}", report.why);
        assert_eq!(report.passes.len(), 5);
    }
    assert_nothing_left("another split");
}

#[test]
fn what_can_not_be_streamed_is_refused() {
    let _alone = alone();
    let model = uneven();
    let (all, layer) = (bytes_of(&model), "layers\\.1\\.=cpu");
    for mode in ["device=dio,cpu=none", "device=dio,cpu=mlock"] {
        let mut options = small_slots(mode, EngineChoice::Auto);
        options.place.push(layer.parse().unwrap());
        let builder = LayerStream::builder(&model.path).options(options).device_budget(all);
        let error = builder.start().map(drop).unwrap_err();
        assert!(matches!(error, Error::Option { .. }), "{error}");
    }
    let missing = LayerStream::builder(model.path.with_extension("none")).start();
    assert!(matches!(missing.map(drop), Err(Error::Open(_) | Error::NoModel { .. })));
    assert_nothing_left("refused");
}

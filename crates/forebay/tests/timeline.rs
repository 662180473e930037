//! What a load records on a timeline, however it ends.

mod support;

use forebay::{Cancel, EngineChoice, Errno, GpuLayers, LoadReport, Loader, Prefetch, Trace};
use forebay_tests::{Answer, Event, Rule, Script, Timeline};
use std::collections::BTreeMap;
use support::{TestModel, engines};

/// Copies out of a mapping are the threads' alone.
fn serves(engine: EngineChoice, mode: &str) -> bool {
    engine == EngineChoice::Threads || !mode.contains("mmap")
}

fn timeline(trace: &Trace, folder: &TestModel) -> Timeline {
    let path = folder.path.with_extension("trace.json");
    trace.write_to(&path).unwrap();
    let timeline = Timeline::read(&path);
    assert_eq!(timeline.dropped, 0);
    timeline
}

fn small_reads(model: &TestModel, mode: &str) -> Loader {
    model.loader(mode).chunk_bytes(64 << 10).staging_bytes(512 << 10)
}

/// Spans that carry the bytes of reads, by the read's number; waits are none of them.
fn by_read<'all>(timeline: &'all Timeline, group: &'all str) -> BTreeMap<u64, &'all Event> {
    let mut reads = BTreeMap::new();
    for span in timeline.of(group).filter(|span| span.track != "waits") {
        let twice = reads.insert(span.count("read"), span);
        assert!(twice.is_none(), "{span:?} is told twice");
    }
    reads
}

fn bytes_of<'all>(spans: impl IntoIterator<Item = &'all Event>) -> u64 {
    spans.into_iter().map(|span| span.count("bytes")).sum()
}

/// That all happened between the begin and the end of the load.
fn assert_within_the_load(timeline: &Timeline) {
    let whole: Vec<_> = timeline.of("load").filter(|span| span.name == "load").collect();
    let [whole] = whole[..] else { panic!("{whole:?}") };
    assert_eq!(timeline.rows_of("load", "load"), 1, "its parts lie within it");
    for event in timeline.spans.iter().chain(&timeline.instants) {
        let is_within = whole.started_ns <= event.started_ns && event.ended_ns <= whole.ended_ns;
        assert!(is_within, "{event:?} is not within {whole:?}");
    }
}

/// That the timeline of a load which went well tells what its report does.
fn assert_tells(timeline: &Timeline, report: &LoadReport, planned_reads: usize, what: &str) {
    assert_within_the_load(timeline);
    let reads = by_read(timeline, "reads");
    let numbers: Vec<u64> = reads.keys().copied().collect();
    assert_eq!(numbers, (0..planned_reads as u64).collect::<Vec<_>>(), "{what}");
    assert_eq!(bytes_of(reads.values().copied()), report.read.bytes, "{what}");
    let uploads = by_read(timeline, "uploads");
    assert_eq!(bytes_of(uploads.values().copied()), report.upload.bytes, "{what}");
    let copies: u64 = uploads.values().map(|span| span.count("copies")).sum();
    assert_eq!(copies, report.upload.copies, "{what}");
    for (number, upload) in uploads {
        let read = reads[&number];
        assert_eq!(upload.name, read.name, "{what}");
        assert!(read.ended_ns <= upload.started_ns, "{what}: {upload:?} before {read:?}");
    }
    for span in reads.values() {
        assert_eq!(timeline.rows_of("reads", &span.track), 1, "{what}: two reads in a slot");
        assert!(span.text("unfinished").is_none(), "{what}: {span:?}");
    }
    assert_eq!(timeline.instants.len() as u64, told_events(report), "{what}");
}

/// What happens at a moment: operations that are continued, and steps down.
fn told_events(report: &LoadReport) -> u64 {
    let steps: usize = report.files.iter().map(|file| file.fallbacks.len()).sum();
    report.read.resubmitted + steps as u64
}

#[test]
fn every_read_and_every_upload_is_told_once() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        for (mode, layers) in [
            ("dio", GpuLayers::All),
            ("none", GpuLayers::All),
            ("mmap", GpuLayers::All),
            ("device=dio,cpu=none", GpuLayers::Count(3)),
            ("device=mmap,cpu=dio", GpuLayers::Count(3)),
            ("auto", GpuLayers::Count(3)),
        ] {
            if !serves(engine, mode) {
                continue;
            }
            let what = format!("{engine:?} {mode} {layers:?}");
            let trace = Trace::new();
            let loader = small_reads(&model, mode).engine(engine).gpu_layers(layers);
            let planned = loader.plan().unwrap().files()[0].reads;
            let loaded = loader.trace(&trace).load().unwrap();
            let timeline = timeline(&trace, &model);
            assert!(planned > 10, "{what}: {planned} reads");
            assert_tells(&timeline, loaded.report(), planned, &what);
        }
    }
}

#[test]
fn a_read_tells_which_bytes_of_which_tensors_it_brings_and_how() {
    let model = TestModel::new(1 << 20);
    for (mode, accesses) in [("dio", &["direct", "dontcache", "buffered"][..]), ("mmap", &["mmap"])]
    {
        let trace = Trace::new();
        small_reads(&model, mode).trace(&trace).load().unwrap();
        let timeline = timeline(&trace, &model);
        for (_, read) in by_read(&timeline, "reads") {
            assert_eq!(read.text("file"), model.path.to_str());
            assert!(accesses.contains(&read.text("access").unwrap()), "{read:?}");
            let names: Vec<&str> = read.text("tensors").unwrap().split(", ").collect();
            let (from, bytes) = (read.count("offset"), read.count("bytes"));
            let is_touched = |name: &&String| {
                let range = model.range(name);
                !range.is_empty() && range.start < from + bytes && from < range.end
            };
            for name in &names {
                assert!(is_touched(&&(*name).to_owned()), "{read:?} holds nothing of {name}");
            }
            assert!(read.name.starts_with(names[0]), "{read:?}");
            assert_eq!(read.name.ends_with(&format!("+{}", names.len() - 1)), names.len() > 1);
        }
        let told: Vec<_> = timeline.of("reads").filter_map(|read| read.text("tensors")).collect();
        for (name, bytes) in &model.tensors {
            assert_eq!(told.iter().any(|it| it.contains(&**name)), !bytes.is_empty(), "{name}");
        }
    }
}

#[test]
fn counters_come_back_to_nothing() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        let trace = Trace::new();
        small_reads(&model, "dio").engine(engine).trace(&trace).load().unwrap();
        let timeline = timeline(&trace, &model);
        let values = |name: &str| &timeline.counters[&("reads".to_owned(), name.to_owned())];
        let in_flight = values("reads in flight");
        assert_eq!(in_flight.last().unwrap().1, 0.0);
        assert!(in_flight.iter().all(|&(_, reads)| (0.0..=8.0).contains(&reads)), "8 slots");
        assert!(in_flight.iter().any(|&(_, reads)| reads > 1.0));
        assert_eq!(values("bytes/s read").last().unwrap().1, 0.0);
    }
}

#[test]
fn refusals_and_short_reads_are_told_where_they_happened() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        let direct = |op: &forebay_io::Op| op.access == forebay::Access::Direct;
        let refused = Rule::new(Answer::Errno(Errno::EINVAL)).only(direct).after(5);
        let short = Rule::new(Answer::Short(4096)).after(2).times(3);
        let trace = Trace::new();
        let loader = small_reads(&model, "dio").engine(engine);
        let planned = loader.plan().unwrap().files()[0].reads;
        let loader = loader.fault(Box::new(Script::new(short).and(refused)));
        let loaded = loader.trace(&trace).load().unwrap();
        let timeline = timeline(&trace, &model);
        assert_tells(&timeline, loaded.report(), planned, "refused");
        let of_name = |name| timeline.instants.iter().filter(move |it| it.name == name);
        assert_eq!(of_name("short").count(), 3);
        for refused in of_name("refused") {
            assert_eq!(refused.text("errno"), Some("EINVAL"));
            assert_eq!(refused.text("access"), Some("direct"));
            assert_ne!(refused.text("next"), Some("direct"));
            assert!(refused.track.starts_with("slot "));
        }
        assert!(of_name("refused").count() > 0);
        let step = match engine {
            EngineChoice::TokioUring => "direct → buffered",
            _ => "direct → dontcache",
        };
        let step = of_name(step).next().unwrap();
        assert_eq!((step.text("errno"), step.text("at")), (Some("EINVAL"), Some("read")));
    }
}

/// How much of the model the finished and the unfinished reads of a timeline make.
fn ended_early(timeline: &Timeline) -> (usize, usize) {
    assert_within_the_load(timeline);
    let reads = by_read(timeline, "reads");
    let unfinished = reads.values().filter(|read| read.text("unfinished").is_some()).count();
    (reads.len() - unfinished, unfinished)
}

#[test]
fn a_load_that_fails_has_told_everything_up_to_then() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        for mode in ["dio", "mmap"].into_iter().filter(|mode| serves(engine, mode)) {
            let trace = Trace::new();
            let fault = Script::new(Rule::new(Answer::Errno(Errno::EIO)).after(9).times(1));
            let loader = small_reads(&model, mode).engine(engine).fault(Box::new(fault));
            loader.trace(&trace).load().unwrap_err();
            let timeline = timeline(&trace, &model);
            let (finished, unfinished) = ended_early(&timeline);
            assert!(finished >= 9 && unfinished >= 1, "{finished} {unfinished}");
            let refused = timeline.instants.iter().find(|it| it.text("errno") == Some("EIO"));
            assert!(refused.is_some_and(|it| it.text("next").is_none()), "{refused:?}");
        }
    }
}

#[test]
fn a_load_that_is_cancelled_or_dropped_has_told_everything_up_to_then() {
    let model = TestModel::new(4 << 20);
    for engine in engines() {
        let (trace, cancel) = (Trace::new(), Cancel::default());
        let flag = cancel.clone();
        let stop = Rule::new(Answer::Meanwhile(Box::new(move || flag.cancel()))).after(9);
        let loader = small_reads(&model, "dio").engine(engine).cancel_with(&cancel);
        loader.fault(Box::new(Script::new(stop))).trace(&trace).load().unwrap_err();
        let (finished, _) = ended_early(&timeline(&trace, &model));
        assert!((9..60).contains(&finished), "{finished}");

        let trace = Trace::new();
        let mut load = small_reads(&model, "dio").engine(engine).trace(&trace).start().unwrap();
        load.next().unwrap().unwrap();
        drop(load);
        ended_early(&timeline(&trace, &model));
    }
}

#[test]
fn a_load_that_never_begins_leaves_a_trace_all_the_same() {
    let model = TestModel::new(1 << 20);
    let trace = Trace::new();
    Loader::new("/nowhere/at/all.gguf").trace(&trace).load().unwrap_err();
    assert!(timeline(&trace, &model).spans.is_empty());
}

#[test]
fn pages_that_are_brought_in_are_told() {
    let model = TestModel::layered(6, 1 << 20);
    let loader = |trace| {
        let loader = model.loader("cpu=mmap").gpu_layers(GpuLayers::Count(0));
        loader.prefetch(Prefetch::On).trace(trace)
    };
    let trace = Trace::new();
    let loaded = loader(&trace).load().unwrap();
    let timeline = timeline(&trace, &model);
    assert_within_the_load(&timeline);
    let spans = timeline.on("prefetch", "mapped pages");
    assert_eq!(bytes_of(spans.iter().copied()), loaded.report().memory.prefetched_bytes);
    assert!(loaded.report().memory.prefetched_bytes > 6 << 20);
    for name in model.tensors.keys() {
        let tells = |span: &&&Event| span.text("tensors").unwrap().contains(&**name);
        assert!(spans.iter().any(|span| tells(&span)), "{name}");
    }
}

#[test]
fn two_loads_share_a_trace() {
    let model = TestModel::new(1 << 20);
    let trace = Trace::new();
    let loads: Vec<_> =
        (0..2).map(|_| small_reads(&model, "dio").trace(&trace).start().unwrap()).collect();
    let reports: Vec<_> = loads.into_iter().map(|load| load.finish().unwrap()).collect();
    let timeline = timeline(&trace, &model);
    let reads = timeline.of("reads").filter(|span| span.track != "waits");
    let bytes = reports.iter().map(|loaded| loaded.report().read.bytes).sum::<u64>();
    assert_eq!(bytes_of(reads), bytes);
}

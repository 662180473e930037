//! What is recorded is what a reader of the format finds.

use forebay_tests::Timeline;
use forebay_trace::{Arg, FILE_BEGINS_WITH, Rate, Text, Trace};
use std::time::{Duration, Instant};

fn written(trace: &Trace) -> Timeline {
    let mut file = Vec::new();
    trace.write(&mut file).unwrap();
    let text = String::from_utf8(file).unwrap();
    assert!(text.starts_with(FILE_BEGINS_WITH));
    Timeline::parse(&text)
}

/// Moments by their distance from one that is later than the begin of the trace.
struct Clock(Instant);

impl Clock {
    fn at(&self, microseconds: u64) -> Instant {
        self.0 + Duration::from_micros(microseconds)
    }
}

fn trace_and_clock() -> (Trace, Clock) {
    (Trace::new(), Clock(Instant::now()))
}

#[test]
fn an_empty_trace_is_a_file_too() {
    let timeline = written(&Trace::default());
    assert!(timeline.spans.is_empty() && timeline.instants.is_empty());
}

#[test]
fn names_arguments_and_times_are_those_that_were_recorded() {
    let (trace, clock) = trace_and_clock();
    let track = trace.track("reads", "slot 0");
    assert_eq!(track, trace.track("reads", "slot 0"));
    assert_ne!(track, trace.track("uploads", "slot 0"));
    let name = "a \"quoted\" \\ name,\nof two lines\u{7f}\u{85}, and é and 𝛼\u{0}";
    let args = vec![
        Arg::new("bytes", u64::MAX),
        Arg::new("access", "direct"),
        Arg::new("file", name.to_owned()),
    ];
    let ended = clock.at(17) + Duration::from_nanos(123);
    trace.span(track, name.to_owned(), clock.at(5), ended, args);
    trace.instant(track, "refused", clock.at(7), vec![Arg::new("errno", "EINVAL")]);
    trace.count(trace.counter("reads", "in flight"), clock.at(5), 1.5);
    trace.count(trace.counter("reads", "in flight"), clock.at(6), f64::INFINITY);
    let timeline = written(&trace);
    let [span] = &timeline.spans[..] else { panic!("{timeline:?}") };
    assert_eq!((&*span.group, &*span.track, &*span.name), ("reads", "slot 0", name));
    assert_eq!(span.ended_ns - span.started_ns, 12_123);
    assert_eq!((span.count("bytes"), span.text("file")), (u64::MAX, Some(name)));
    assert_eq!(timeline.instants[0].text("errno"), Some("EINVAL"));
    assert_eq!(timeline.instants[0].started_ns - span.started_ns, 2_000);
    let counter = &timeline.counters[&("reads".to_owned(), "in flight".to_owned())];
    assert_eq!(counter, &[(span.started_ns, 1.5)]);
}

#[test]
fn spans_that_share_time_get_rows_and_those_within_others_need_none() {
    let (trace, clock) = trace_and_clock();
    let spans = [(0, 10), (0, 10), (2, 5), (5, 10), (8, 12), (10, 10), (10, 20), (30, 40)];
    let (nested, lanes) = (trace.track("layers", "nested"), trace.lanes("layers", "beside"));
    for track in [nested, lanes] {
        // Those that ended first are recorded first, as it would be.
        let mut ended = spans;
        ended.sort_by_key(|&(_, end)| end);
        for (start, end) in ended {
            trace.span(track, "span", clock.at(start), clock.at(end), Vec::new());
        }
    }
    let timeline = written(&trace);
    assert_eq!(timeline.spans.len(), 2 * spans.len());
    assert_eq!(timeline.rows_of("layers", "nested"), 2, "(8, 12) reaches out of (0, 10)");
    assert_eq!(timeline.rows_of("layers", "beside"), 4, "so many are under way at 9");
}

#[test]
fn what_ends_before_it_starts_takes_no_time() {
    let (trace, clock) = trace_and_clock();
    let track = trace.track("load", "load");
    trace.span(track, "before", clock.at(9), clock.at(3), Vec::new());
    let before_all = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
    trace.instant(track, "before all", before_all, Vec::new());
    let timeline = written(&trace);
    assert_eq!(timeline.spans[0].started_ns, timeline.spans[0].ended_ns);
    assert_eq!(timeline.instants[0].started_ns, 0);
}

#[test]
fn a_full_trace_says_what_is_missing() {
    let trace = Trace::with_room_for(10);
    let track = trace.track("reads", "slot 0");
    for number in 0..25 {
        let now = Instant::now();
        trace.span(track, format!("read {number}"), now, now, Vec::new());
    }
    assert_eq!((trace.events(), trace.dropped()), (10, 15));
    let timeline = written(&trace);
    assert_eq!((timeline.spans.len(), timeline.dropped), (10, 15));
    assert_eq!(timeline.spans[9].name, "read 9");
}

#[test]
fn a_rate_is_of_windows_and_ends_at_zero() {
    let trace = Trace::new();
    let mut rate = Rate::new(&trace, "reads", "bytes/s");
    let clock = Clock(Instant::now());
    for step in 1..=30 {
        rate.note(clock.at(step * 1000), 1_000_000);
    }
    drop(rate);
    let timeline = written(&trace);
    let [(_, values)] = timeline.counters.iter().collect::<Vec<_>>()[..] else { panic!() };
    let (last, rates) = values.split_last().unwrap();
    assert!(last.1 == 0.0 && rates.len() >= 3, "{values:?}");
    // A megabyte a millisecond, but for the time between making it and the first.
    assert!(rates.iter().all(|(_, rate)| (0.5e9..1.5e9).contains(rate)), "{values:?}");
}

#[test]
fn threads_record_into_one_trace() {
    let trace = Trace::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let trace = trace.clone();
            scope.spawn(move || {
                let track = trace.lanes("reads", "all");
                for _ in 0..100 {
                    let started = Instant::now();
                    trace.span(
                        track,
                        Text::from(format!("{thread}")),
                        started,
                        Instant::now(),
                        vec![],
                    );
                }
            });
        }
    });
    assert_eq!(written(&trace).on("reads", "all").len(), 400);
}

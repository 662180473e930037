//! A trace file, checked after Chrome's trace event format as Perfetto takes it, and taken apart.

use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A complete event or an instant.
#[derive(Clone, Debug)]
pub struct Event {
    /// The name of its process.
    pub group: String,
    /// The name of its thread, without the number of a further row.
    pub track: String,
    /// Its name.
    pub name: String,
    /// Nanoseconds from the begin of the trace on.
    pub started_ns: u64,
    /// The same.
    pub ended_ns: u64,
    /// Its row.
    tid: u64,
    /// What else is known of it.
    args: Map<String, Value>,
}

impl Event {
    /// An argument that is a number.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.args.get(name).and_then(Value::as_u64).unwrap_or_else(|| panic!("{name} of {self:?}"))
    }

    /// An argument in words, if it is there.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.args.get(name).and_then(Value::as_str)
    }
}

/// All of a trace file.
#[derive(Debug, Default)]
pub struct Timeline {
    /// What took time.
    pub spans: Vec<Event>,
    /// What happened at a moment.
    pub instants: Vec<Event>,
    /// The values of each counter, by group and name, in order.
    pub counters: BTreeMap<(String, String), Vec<(u64, f64)>>,
    /// How many events came when the trace was full.
    pub dropped: u64,
}

type Names = BTreeMap<u64, String>;

impl Timeline {
    /// Reads a file.
    ///
    /// # Panics
    /// If it is no trace as the format has it.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        Self::parse(&std::fs::read_to_string(path).expect("a trace was written"))
    }

    /// Takes a file's text apart.
    ///
    /// # Panics
    /// If it is no trace as the format has it.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let file: Value = serde_json::from_str(text).expect("a trace is JSON");
        let keys: Vec<&str> = object(&file).keys().map(String::as_str).collect();
        assert_eq!(keys, ["otherData", "traceEvents"]);
        let events = file["traceEvents"].as_array().expect("a list of events");
        let (processes, threads) = names(events);
        let mut timeline = Self {
            dropped: file["otherData"]["dropped_events"].as_u64().expect("a number"),
            ..Self::default()
        };
        for event in events {
            timeline.take(event, &processes, &threads);
        }
        let told = timeline.spans.len()
            + timeline.instants.len()
            + timeline.counters.values().map(Vec::len).sum::<usize>();
        assert_eq!(file["otherData"]["events"].as_u64(), Some(told as u64));
        assert_eq!(timeline.dropped > 0, text.contains("the trace was full"));
        timeline.check_rows();
        timeline
    }

    fn take(&mut self, event: &Value, processes: &Names, threads: &Names) {
        let (pid, tid) = (number(event, "pid"), number(event, "tid"));
        let group = processes.get(&pid).unwrap_or_else(|| panic!("a process of no name: {event}"));
        let track = threads.get(&tid).unwrap_or_else(|| panic!("a thread of no name: {event}"));
        let phase = event["ph"].as_str().expect("a phase");
        if phase == "M" {
            return;
        }
        let started_ns = nanoseconds(event, "ts");
        let name = event["name"].as_str().filter(|name| !name.is_empty()).expect("a name");
        match phase {
            "i" if event["s"] == "g" => return,
            "C" => {
                let value = event["args"]["value"].as_f64().expect("a value");
                assert!(value.is_finite() && value >= 0.0, "{event}");
                let counter = (group.clone(), name.to_owned());
                return self.counters.entry(counter).or_default().push((started_ns, value));
            }
            _ => {}
        }
        let track = track.split(" (").next().unwrap_or(track);
        let mut told = Event {
            group: group.clone(),
            track: track.to_owned(),
            name: name.to_owned(),
            started_ns,
            ended_ns: started_ns,
            tid,
            args: object(&event["args"]).clone(),
        };
        match phase {
            "X" => {
                told.ended_ns += nanoseconds(event, "dur");
                self.spans.push(told);
            }
            "i" => {
                assert_eq!(event["s"], "t", "{event}");
                self.instants.push(told);
            }
            _ => panic!("a phase that nobody told of: {event}"),
        }
    }

    /// On a row, spans lie within each other or beside each other.
    fn check_rows(&self) {
        let mut open: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        let mut spans: Vec<&Event> = self.spans.iter().collect();
        spans.sort_by_key(|span| (span.started_ns, std::cmp::Reverse(span.ended_ns)));
        for span in spans {
            let row = open.entry(span.tid).or_default();
            row.retain(|it| it.ended_ns > span.started_ns);
            if let Some(outer) = row.last() {
                assert!(span.ended_ns <= outer.ended_ns, "{span:?} reaches out of {outer:?}");
            }
            row.push(span);
        }
    }

    /// The spans of a group.
    pub fn of<'all>(&'all self, group: &'all str) -> impl Iterator<Item = &'all Event> {
        self.spans.iter().filter(move |span| span.group == group)
    }

    /// The spans of a track.
    #[must_use]
    pub fn on(&self, group: &str, track: &str) -> Vec<&Event> {
        self.spans.iter().filter(|span| span.group == group && span.track == track).collect()
    }

    /// How many rows hold spans of a track.
    #[must_use]
    pub fn rows_of(&self, group: &str, track: &str) -> usize {
        self.on(group, track).iter().map(|span| span.tid).collect::<BTreeSet<_>>().len()
    }
}

/// The names of processes and threads. Perfetto keeps those of threads by number alone.
fn names(events: &[Value]) -> (Names, Names) {
    let (mut processes, mut threads) = (Names::new(), Names::new());
    let mut process_of = BTreeMap::new();
    for event in events {
        let (pid, tid) = (number(event, "pid"), number(event, "tid"));
        assert!(pid > 0 && tid > 0 && pid != tid, "{event}");
        assert_eq!(*process_of.entry(tid).or_insert(pid), pid, "{event}: in two processes");
        let name = || event["args"]["name"].as_str().expect("a name").to_owned();
        let (names, number) = match event["name"].as_str() {
            Some("process_name") if event["ph"] == "M" => (&mut processes, pid),
            Some("thread_name") if event["ph"] == "M" => (&mut threads, tid),
            _ => continue,
        };
        assert!(names.insert(number, name()).is_none(), "{event}: named twice");
    }
    (processes, threads)
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object"))
}

fn number(event: &Value, key: &str) -> u64 {
    event[key].as_u64().unwrap_or_else(|| panic!("{key} of {event}"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
fn nanoseconds(event: &Value, key: &str) -> u64 {
    let microseconds = event[key].as_f64().unwrap_or_else(|| panic!("{key} of {event}"));
    assert!((0.0..1e12).contains(&microseconds), "{event}");
    (microseconds * 1e3).round() as u64
}

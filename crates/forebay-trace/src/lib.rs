//! A timeline of what happened, written as a file that Perfetto (ui.perfetto.dev) opens: Chrome's
//! trace event format, as JSON.
//!
//! ```
//! use forebay_trace::{Arg, Trace};
//! use std::time::Instant;
//!
//! let trace = Trace::new();
//! let copies = trace.lanes("uploads", "cuda:0");
//! let started = Instant::now();
//! // … copy …
//! let args = vec![Arg::new("bytes", 4096_u64)];
//! trace.span(copies, "blk.0.attn_q.weight", started, Instant::now(), args);
//! let mut file = Vec::new();
//! trace.write(&mut file)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Whoever records holds an `Option<Trace>`: without one, nothing is measured and nothing is kept.
//! Events stay in memory until they are written, once, at the end.

#![forbid(unsafe_code)]

mod rate;
mod rows;
mod text;
mod write;

pub use rate::Rate;
pub use text::{Arg, Label, Labels, Text, Value};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Events kept by default; with their arguments, about half a GiB.
const EVENTS_MAX: usize = 2_000_000;

/// How a file begins that this crate has written.
pub const FILE_BEGINS_WITH: &str = "{\"otherData\":{\"recorder\":\"forebay";

/// A row of the timeline, or as many as its spans need. Belongs to the [`Trace`] that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Track(usize);

/// A number that changes over time. Belongs to the [`Trace`] that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counter(usize);

/// What a track does with spans that share some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Overlap {
    /// One within another is drawn below it.
    Nests,
    /// Each gets a row of its own.
    Splits,
}

#[derive(Debug)]
struct Event {
    /// Since the trace was made.
    at_ns: u64,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Span { track: Track, ns: u64, name: Text, args: Box<[Arg]> },
    Instant { track: Track, name: Text, args: Box<[Arg]> },
    Count { counter: Counter, value: f64 },
}

#[derive(Debug)]
struct TrackInfo {
    group: usize,
    name: String,
    overlap: Overlap,
}

#[derive(Debug)]
struct CounterInfo {
    group: usize,
    name: String,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    dropped: u64,
    groups: Vec<String>,
    tracks: Vec<TrackInfo>,
    counters: Vec<CounterInfo>,
    track_of: BTreeMap<(usize, Overlap, String), Track>,
}

impl State {
    fn group(&mut self, name: &str) -> usize {
        self.groups.iter().position(|group| group == name).unwrap_or_else(|| {
            self.groups.push(name.to_owned());
            self.groups.len() - 1
        })
    }
}

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    events_max: usize,
    state: Mutex<State>,
}

/// A timeline under way. Clones share it; any thread may record.
#[derive(Clone, Debug)]
pub struct Trace {
    shared: Arc<Shared>,
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl Trace {
    /// An empty one that begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::with_room_for(EVENTS_MAX)
    }

    /// One that keeps so many events and counts those that come later.
    #[must_use]
    pub fn with_room_for(events_max: usize) -> Self {
        let shared = Shared { epoch: Instant::now(), events_max, state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The track of this name in a group, whose spans lie within or beside each other. The same
    /// names are the same track.
    #[must_use]
    pub fn track(&self, group: &str, name: &str) -> Track {
        self.track_of(group, name, Overlap::Nests)
    }

    /// The same for spans that may share time without belonging together: each is drawn on a row on
    /// which there is room for it.
    #[must_use]
    pub fn lanes(&self, group: &str, name: &str) -> Track {
        self.track_of(group, name, Overlap::Splits)
    }

    fn track_of(&self, group: &str, name: &str, overlap: Overlap) -> Track {
        let mut state = self.lock();
        let group = state.group(group);
        let State { tracks, track_of, .. } = &mut *state;
        *track_of.entry((group, overlap, name.to_owned())).or_insert_with(|| {
            tracks.push(TrackInfo { group, name: name.to_owned(), overlap });
            Track(tracks.len() - 1)
        })
    }

    /// The counter of this name in a group. The same names are the same counter.
    #[must_use]
    pub fn counter(&self, group: &str, name: &str) -> Counter {
        let mut state = self.lock();
        let group = state.group(group);
        let is_it = |it: &CounterInfo| it.group == group && it.name == name;
        Counter(state.counters.iter().position(is_it).unwrap_or_else(|| {
            state.counters.push(CounterInfo { group, name: name.to_owned() });
            state.counters.len() - 1
        }))
    }

    /// Something that took from `started` to `ended`.
    pub fn span(
        &self,
        track: Track,
        name: impl Into<Text>,
        started: Instant,
        ended: Instant,
        args: Vec<Arg>,
    ) {
        let ns = nanoseconds(started, ended);
        let (name, args) = (name.into(), args.into_boxed_slice());
        self.keep(started, Kind::Span { track, ns, name, args });
    }

    /// Something that happened at a moment.
    pub fn instant(&self, track: Track, name: impl Into<Text>, at: Instant, args: Vec<Arg>) {
        let (name, args) = (name.into(), args.into_boxed_slice());
        self.keep(at, Kind::Instant { track, name, args });
    }

    /// What a counter says from `at` on. What is no number (infinite, NaN) is left out.
    pub fn count(&self, counter: Counter, at: Instant, value: f64) {
        if value.is_finite() {
            self.keep(at, Kind::Count { counter, value });
        }
    }

    fn keep(&self, at: Instant, kind: Kind) {
        let at_ns = nanoseconds(self.shared.epoch, at);
        let mut state = self.lock();
        if state.events.len() < self.shared.events_max {
            state.events.push(Event { at_ns, kind });
        } else {
            state.dropped += 1;
        }
    }

    /// How many events it has.
    #[must_use]
    pub fn events(&self) -> usize {
        self.lock().events.len()
    }

    /// How many came when it was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Writes all that has been recorded so far to a file, which is replaced.
    ///
    /// # Errors
    /// What the system answers.
    pub fn write_to(&self, path: impl AsRef<Path>) -> io::Result<()> {
        self.write(File::create(path)?)
    }

    /// Writes all that has been recorded so far. Those who record meanwhile wait for it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn write(&self, file: impl Write) -> io::Result<()> {
        let mut file = BufWriter::new(file);
        write::file(&mut file, &self.lock())?;
        file.flush()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From one moment to another; none if that came first.
fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

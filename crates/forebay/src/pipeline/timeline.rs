//! What a load records on a timeline, where the caller wants one.

use crate::plan::Plan;
use forebay_device::{Segment, UploadTrace};
use forebay_format::Catalog;
use forebay_io::{PrefetchTrace, RangeLabels, ReadTrace};
use forebay_trace::{Arg, Label, Labels, Text, Trace, Track};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits shorter than this are none: what was waited for was there.
pub(crate) const WAIT_MIN: Duration = Duration::from_micros(5);

/// The trace of a load, with the names of what it moves. However the load ends, it has taken until
/// this is dropped.
pub(super) struct Timeline {
    trace: Trace,
    row: Track,
    labels: Labels,
    since: Instant,
}

impl Timeline {
    /// Of a load that began at `since` and had its plan at `planned`.
    pub(super) fn new(trace: &Trace, plan: &Plan, since: Instant, planned: Instant) -> Self {
        let row = trace.track("load", "load");
        trace.span(row, "open and plan", since, planned, Vec::new());
        let labels = labels_of_reads(plan);
        let labels = Arc::new(move |read: usize| labels[read].clone());
        Self { trace: trace.clone(), row, labels, since }
    }

    /// Memory is there and the threads run.
    pub(super) fn note_ready(&self, started: Instant) {
        self.trace.span(self.row, "make ready", started, Instant::now(), Vec::new());
    }

    pub(super) fn of_reads(&self) -> ReadTrace {
        ReadTrace::new(&self.trace, Arc::clone(&self.labels))
    }

    pub(super) fn of_uploads(&self, plan: &Plan) -> UploadTrace {
        let names = plan.arenas.iter().map(|arena| arena.backend.to_string()).collect();
        UploadTrace::new(&self.trace, Arc::clone(&self.labels), names)
    }

    pub(super) fn of_prefetch(&self, plan: &Plan) -> PrefetchTrace {
        PrefetchTrace::new(&self.trace, labels_of_ranges(plan.model.shared_catalog()))
    }

    pub(super) fn of_waits(&self) -> Waits {
        Waits { row: self.trace.track("uploads", "waits"), trace: self.trace.clone() }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.trace.span(self.row, "load", self.since, Instant::now(), Vec::new());
    }
}

/// Records when the uploader has nothing to copy.
pub(super) struct Waits {
    trace: Trace,
    row: Track,
}

impl Waits {
    pub(super) fn waited_for_read(&self, since: Instant, until: Instant) {
        if until.saturating_duration_since(since) >= WAIT_MIN {
            self.trace.span(self.row, "waits for a read", since, until, Vec::new());
        }
    }
}

/// A read is called after the tensors that it carries.
fn labels_of_reads(plan: &Plan) -> Vec<Label> {
    let catalog = plan.model.catalog();
    let tensor_of = |segment: &Segment| plan.arenas[segment.arena].tensors[segment.tensor];
    let mut last: (Vec<usize>, Label) = (Vec::new(), label(catalog, &[]));
    let label_of = |segments: &Vec<Segment>| {
        let mut tensors: Vec<usize> = segments.iter().map(tensor_of).collect();
        tensors.sort_unstable();
        tensors.dedup();
        // The reads of a large tensor follow each other, and share its name.
        if tensors != last.0 {
            let label = label(catalog, &tensors);
            last = (tensors, label);
        }
        last.1.clone()
    };
    plan.segments.iter().map(label_of).collect()
}

/// A range of a mapped file is called after the tensors that lie in it.
fn labels_of_ranges(catalog: Arc<Catalog>) -> RangeLabels {
    Arc::new(move |file, range| {
        let tensors = catalog.tensors();
        let first = tensors.partition_point(|it| (it.file, it.end()) <= (file, range.start));
        let is_in = |index: &usize| {
            let tensor = &tensors[*index];
            (tensor.file, tensor.offset) < (file, range.end)
        };
        let in_range = (first..tensors.len()).take_while(is_in);
        let tensors: Vec<usize> = in_range.filter(|&index| tensors[index].bytes > 0).collect();
        label(&catalog, &tensors)
    })
}

/// The first name, and how many more there are; all names beside.
pub(crate) fn label(catalog: &Catalog, tensors: &[usize]) -> Label {
    let name = |&tensor: &usize| catalog.tensors()[tensor].name.as_str();
    let Some(first) = tensors.first().map(name) else {
        return Label { name: Text::from("no tensor"), args: Vec::new() };
    };
    let (name, all) = match tensors.len() - 1 {
        0 => {
            let name = Text::from(first.to_owned());
            (name.clone(), name)
        }
        more => {
            let all: Vec<&str> = tensors.iter().map(name).collect();
            (Text::from(format!("{first} +{more}")), Text::from(all.join(", ")))
        }
    };
    Label { name, args: vec![Arg::new("tensors", all)] }
}

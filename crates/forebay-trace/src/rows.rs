//! Which row of its track a span is drawn on.
//!
//! In the format, spans of one row lie within or beside each other; two that only share some time
//! are not allowed, and viewers show them wrongly.

use crate::{Event, Kind, Overlap, State};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The events in the order in which they are written, and where each is drawn.
pub(crate) struct Rows {
    /// Events by index: by time, of two that begin together the longer first.
    pub(crate) order: Vec<usize>,
    /// By index of the event: its row within its track.
    pub(crate) row: BTreeMap<usize, usize>,
    /// By track: how many rows it has.
    pub(crate) count: Vec<usize>,
}

/// A row, as the ends of the spans that are open on it, the innermost last.
#[derive(Clone, Default)]
struct Row(Vec<u64>);

impl Row {
    fn takes(&mut self, started: u64, ended: u64, overlap: Overlap) -> bool {
        while self.0.last().is_some_and(|&end| end <= started) {
            self.0.pop();
        }
        let has_room = match (self.0.last(), overlap) {
            (None, _) => true,
            (Some(&end), Overlap::Nests) => ended <= end,
            (Some(_), Overlap::Splits) => false,
        };
        if has_room {
            self.0.push(ended);
        }
        has_room
    }
}

impl Rows {
    pub(crate) fn new(state: &State) -> Self {
        let mut order: Vec<usize> = (0..state.events.len()).collect();
        order.sort_by_key(|&index| {
            let Event { at_ns, kind } = &state.events[index];
            let ns = if let Kind::Span { ns, .. } = kind { *ns } else { 0 };
            (*at_ns, Reverse(ns))
        });
        let mut rows: Vec<Vec<Row>> = state.tracks.iter().map(|_| vec![Row::default()]).collect();
        let mut row = BTreeMap::new();
        for &index in &order {
            let Event { at_ns, kind: Kind::Span { track, ns, .. } } = &state.events[index] else {
                continue;
            };
            let (ended, overlap) = (at_ns.saturating_add(*ns), state.tracks[track.0].overlap);
            let rows = &mut rows[track.0];
            let found = rows.iter_mut().position(|row| row.takes(*at_ns, ended, overlap));
            let found = found.unwrap_or_else(|| {
                rows.push(Row(vec![ended]));
                rows.len() - 1
            });
            if found > 0 {
                row.insert(index, found);
            }
        }
        Self { order, row, count: rows.iter().map(Vec::len).collect() }
    }
}

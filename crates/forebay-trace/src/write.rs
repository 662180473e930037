//! The file: Chrome's trace event format, JSON.
//!
//! Perfetto's reader has its limits, which the order of things heeds: what is known of the whole
//! comes first, since it must lie in the first piece that is read; an event's time comes before its
//! name, since what stands before the time may hold no `\u` escape; row numbers are unlike each
//! other in the whole file, since it keeps names by row alone.

use crate::rows::Rows;
use crate::{Arg, Event, FILE_BEGINS_WITH, Kind, State, Value};
use std::io::{self, Write};

/// The numbers of groups and rows in the file. Groups count from one, and rows go on from there: a
/// row with its group's number would be taken for a main thread, and zero for the idle one.
struct Numbers {
    /// By track: its first row.
    rows: Vec<usize>,
    /// The row of the first group's counters; the other groups' follow.
    counters: usize,
}

impl Numbers {
    fn new(state: &State, rows: &Rows) -> Self {
        let counters = state.groups.len() + 1;
        let first_row = rows.count.iter().scan(counters + state.groups.len(), |next, rows| {
            *next += rows;
            Some(*next - rows)
        });
        Self { rows: first_row.collect(), counters }
    }
}

pub(crate) fn file(file: &mut impl Write, state: &State) -> io::Result<()> {
    let rows = Rows::new(state);
    let numbers = Numbers::new(state, &rows);
    let mut writer = Writer { file, state, numbers, separator: "\n" };
    writer.head()?;
    writer.names(&rows)?;
    for &index in &rows.order {
        writer.event(&state.events[index], rows.row.get(&index).copied().unwrap_or(0))?;
    }
    writer.file.write_all(b"\n]}\n")
}

struct Writer<'trace, File> {
    file: &'trace mut File,
    state: &'trace State,
    numbers: Numbers,
    /// Before the next event.
    separator: &'static str,
}

impl<File: Write> Writer<'_, File> {
    /// What is known of the whole.
    fn head(&mut self) -> io::Result<()> {
        let (events, dropped) = (self.state.events.len(), self.state.dropped);
        let version = env!("CARGO_PKG_VERSION");
        write!(self.file, "{FILE_BEGINS_WITH} {version}\",\"events\":{events},")?;
        write!(self.file, "\"dropped_events\":{dropped}}},\n\"traceEvents\":[")?;
        if dropped == 0 {
            return Ok(());
        }
        self.begin("i", 0, 0, self.numbers.counters)?;
        self.file.write_all(br#","s":"g","name":"#)?;
        let name = format!("the trace was full: the last {dropped} events are missing");
        string(self.file, &name)?;
        self.file.write_all(b"}")
    }

    /// The names of groups and rows, and their order on the screen.
    fn names(&mut self, rows: &Rows) -> io::Result<()> {
        let State { groups, tracks, .. } = self.state;
        for (group, name) in groups.iter().enumerate() {
            let (pid, tid) = (group + 1, self.numbers.counters + group);
            self.name("process", pid, tid, pid, name)?;
            self.name("thread", pid, tid, tid, "counters")?;
        }
        for (track, info) in tracks.iter().enumerate() {
            for row in 0..rows.count[track] {
                let tid = self.numbers.rows[track] + row;
                let name = match row {
                    0 => info.name.clone(),
                    _ => format!("{} ({})", info.name, row + 1),
                };
                self.name("thread", info.group + 1, tid, tid, &name)?;
            }
        }
        Ok(())
    }

    fn name(
        &mut self,
        what: &str,
        pid: usize,
        tid: usize,
        sort_index: usize,
        name: &str,
    ) -> io::Result<()> {
        for (key, value) in [("name", None), ("sort_index", Some(sort_index))] {
            let separator = std::mem::replace(&mut self.separator, ",\n");
            write!(self.file, r#"{separator}{{"ph":"M","pid":{pid},"tid":{tid},"name":"#)?;
            write!(self.file, r#""{what}_{key}","args":{{"{key}":"#)?;
            match value {
                Some(value) => write!(self.file, "{value}")?,
                None => string(self.file, name)?,
            }
            self.file.write_all(b"}}")?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event, row: usize) -> io::Result<()> {
        let Event { at_ns, kind } = event;
        match kind {
            Kind::Span { track, ns, name, args } => {
                let (group, tid) = (self.state.tracks[track.0].group, self.numbers.rows[track.0]);
                self.begin("X", *at_ns, group, tid + row)?;
                write!(self.file, ",\"dur\":{},\"name\":", Microseconds(*ns))?;
                string(self.file, name.as_str())?;
                self.args(args)
            }
            Kind::Instant { track, name, args } => {
                let (group, tid) = (self.state.tracks[track.0].group, self.numbers.rows[track.0]);
                self.begin("i", *at_ns, group, tid)?;
                self.file.write_all(br#","s":"t","name":"#)?;
                string(self.file, name.as_str())?;
                self.args(args)
            }
            Kind::Count { counter, value } => {
                let info = &self.state.counters[counter.0];
                self.begin("C", *at_ns, info.group, self.numbers.counters + info.group)?;
                self.file.write_all(br#","name":"#)?;
                string(self.file, &info.name)?;
                write!(self.file, r#","args":{{"value":{value}}}}}"#)
            }
        }
    }

    fn begin(&mut self, phase: &str, at_ns: u64, group: usize, tid: usize) -> io::Result<()> {
        let (ts, pid) = (Microseconds(at_ns), group + 1);
        let separator = std::mem::replace(&mut self.separator, ",\n");
        write!(self.file, r#"{separator}{{"ph":"{phase}","ts":{ts},"pid":{pid},"tid":{tid}"#)
    }

    fn args(&mut self, args: &[Arg]) -> io::Result<()> {
        self.file.write_all(br#","args":{"#)?;
        for (index, Arg { name, value }) in args.iter().enumerate() {
            self.file.write_all(if index == 0 { b"" } else { b"," })?;
            string(self.file, name)?;
            match value {
                Value::Count(count) => write!(self.file, ":{count}")?,
                Value::Text(text) => {
                    self.file.write_all(b":")?;
                    string(self.file, text.as_str())?;
                }
            }
        }
        self.file.write_all(b"}}")
    }
}

/// Nanoseconds, as the format wants them.
struct Microseconds(u64);

impl std::fmt::Display for Microseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

fn string(file: &mut impl Write, text: &str) -> io::Result<()> {
    file.write_all(b"\"")?;
    let mut rest = text;
    while let Some(at) = rest.find(|letter: char| letter.is_control() || "\"\\".contains(letter)) {
        file.write_all(&rest.as_bytes()[..at])?;
        let letter = rest[at..].chars().next().unwrap_or_default();
        match letter {
            '"' | '\\' => write!(file, "\\{letter}")?,
            _ => write!(file, "\\u{:04x}", u32::from(letter))?,
        }
        rest = &rest[at + letter.len_utf8()..];
    }
    file.write_all(rest.as_bytes())?;
    file.write_all(b"\"")
}

//! Bytes a second, from single arrivals.

use crate::{Counter, Trace};
use std::time::{Duration, Instant};

/// A rate is the mean of at least this long.
const WINDOW: Duration = Duration::from_millis(10);

/// A counter of bytes a second. Says what it still has when it is dropped.
#[derive(Debug)]
pub struct Rate {
    trace: Trace,
    counter: Counter,
    since: Instant,
    last: Instant,
    bytes: u64,
}

impl Rate {
    /// The rate `name` of a group, measured from now on.
    #[must_use]
    pub fn new(trace: &Trace, group: &str, name: &str) -> Self {
        let now = Instant::now();
        let counter = trace.counter(group, name);
        Self { trace: trace.clone(), counter, since: now, last: now, bytes: 0 }
    }

    /// So many bytes have arrived.
    pub fn note(&mut self, at: Instant, bytes: u64) {
        self.bytes += bytes;
        self.last = self.last.max(at);
        if at.saturating_duration_since(self.since) >= WINDOW {
            self.tell();
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a rate")]
    fn tell(&mut self) {
        let seconds = (self.last - self.since).as_secs_f64();
        self.trace.count(self.counter, self.since, self.bytes as f64 / seconds);
        (self.since, self.bytes) = (self.last, 0);
    }
}

impl Drop for Rate {
    fn drop(&mut self) {
        if self.bytes > 0 && self.last > self.since {
            self.tell();
        }
        self.trace.count(self.counter, self.last, 0.0);
    }
}

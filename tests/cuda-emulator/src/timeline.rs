//! Time as the hardware would keep it.
//!
//! ```text
//!   asked   ready          begin              end = begin + bytes / rate
//!     |-------|--- waits ----|■■■■■■■■■■■■■■■■■|
//!                            ^ the engine's previous copy was due to end here
//! ```
//!
//! Threads wake up late, by tens of microseconds and now and then by milliseconds. So nothing is
//! ever timed from when a thread woke: a copy begins when the one before it was *due* to end, and
//! what a late thread missed it catches up with. Lateness does not add up, and a rate holds over
//! any number of copies back to back.

use crate::handles::lock;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One copy engine: a device has one for each direction, whatever the number of streams.
#[derive(Debug, Default)]
pub(crate) struct Engine {
    /// When the last copy it was given is due to end.
    free_at: Mutex<Option<Instant>>,
}

/// When a copy is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
}

impl Engine {
    /// Gives the engine a copy that could begin at `ready` and takes `time`.
    pub(crate) fn reserve(&self, ready: Instant, time: Duration) -> Span {
        let mut free_at = lock(&self.free_at);
        let begin = free_at.map_or(ready, |at| at.max(ready));
        let end = begin + time;
        *free_at = Some(end);
        Span { begin, end }
    }
}

impl Span {
    /// When `done` of `all` bytes are due.
    pub(crate) fn due(&self, done: usize, all: usize) -> Instant {
        #[allow(clippy::cast_precision_loss, reason = "a share of a copy's time")]
        let share = done as f64 / all as f64;
        self.begin + (self.end - self.begin).mul_f64(share)
    }
}

/// How long `bytes` take; a rate of 0 is no limit.
pub(crate) fn time_of(bytes: usize, bytes_per_s: f64) -> Duration {
    if bytes_per_s > 0.0 {
        #[allow(clippy::cast_precision_loss, reason = "a time to within nanoseconds")]
        let seconds = bytes as f64 / bytes_per_s;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    }
}

/// Sleeps, without burning a core, until `due`.
pub(crate) fn sleep_until(due: Instant) {
    let now = Instant::now();
    if due > now {
        std::thread::sleep(due - now);
    }
}

/// Lets the calling thread's sleeps end on time: Linux rounds them up by 50 µs otherwise.
pub(crate) fn sleep_exactly() {
    let slack_ns: libc::c_ulong = 1;
    // SAFETY: the call takes a number and concerns the calling thread alone.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, slack_ns) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_does_not_add_up() {
        let engine = Engine::default();
        let start = Instant::now();
        let time = Duration::from_millis(1);
        let first = engine.reserve(start, time);
        // Asked for early, though its thread wakes up only now.
        let second = engine.reserve(start, time);
        assert_eq!(second.begin, first.end);
        let idle = start + Duration::from_millis(5);
        assert_eq!(engine.reserve(idle, time), Span { begin: idle, end: idle + time });
    }
}

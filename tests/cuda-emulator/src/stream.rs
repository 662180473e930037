//! Streams: a thread each, which performs its operations in order.

use crate::device::Device;
use crate::error::Code;
use crate::handles::lock;
use crate::timeline;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Given when it could begin by the stream's timeline, an operation answers when it was due to
/// end.
type Work = Box<dyn FnOnce(Instant) -> Instant + Send>;

/// A stream of a device's context.
pub(crate) struct Stream {
    pub(crate) device: Arc<Device>,
    pub(crate) priority: i32,
    pub(crate) flags: u32,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Instant, Work)>,
    /// Operations ever asked for and ever finished.
    asked: u64,
    finished: u64,
    closing: bool,
}

impl Stream {
    /// Starts the stream's thread.
    ///
    /// # Errors
    /// `CUDA_ERROR_OPERATING_SYSTEM` if there is no thread to be had.
    pub(crate) fn start(device: Arc<Device>, flags: u32, priority: i32) -> Result<Arc<Self>, Code> {
        let queue = Mutex::new(Queue::default());
        let stream = Arc::new(Self { device, priority, flags, queue, changed: Condvar::new() });
        let (worker, started_at) = (Arc::clone(&stream), Instant::now());
        std::thread::Builder::new()
            .name("emulated-stream".into())
            .spawn(move || worker.perform_all(started_at))
            .map_err(|_| Code::OPERATING_SYSTEM)?;
        Ok(stream)
    }

    /// Asks for an operation; answers its number.
    pub(crate) fn push(&self, work: impl FnOnce(Instant) -> Instant + Send + 'static) -> u64 {
        let mut queue = lock(&self.queue);
        queue.waiting.push_back((Instant::now(), Box::new(work)));
        queue.asked += 1;
        let number = queue.asked;
        drop(queue);
        self.changed.notify_all();
        number
    }

    /// Asks for an operation and waits for it.
    pub(crate) fn perform(&self, work: impl FnOnce(Instant) -> Instant + Send + 'static) {
        let number = self.push(work);
        self.wait_for(number);
    }

    /// Whether nothing is waiting or being performed.
    pub(crate) fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        queue.finished == queue.asked
    }

    /// Waits for everything that was asked for until now.
    pub(crate) fn wait(&self) {
        let asked = lock(&self.queue).asked;
        self.wait_for(asked);
    }

    fn wait_for(&self, number: u64) {
        let mut queue = lock(&self.queue);
        while queue.finished < number {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the stream's work and ends its thread.
    pub(crate) fn close(&self) {
        self.wait();
        lock(&self.queue).closing = true;
        self.changed.notify_all();
    }

    fn perform_all(&self, started_at: Instant) {
        timeline::sleep_exactly();
        let mut due = started_at;
        while let Some((asked_at, work)) = self.next() {
            match catch_unwind(AssertUnwindSafe(|| work(due.max(asked_at)))) {
                Ok(end) => due = end,
                Err(_) => self.device.fail(Code::UNKNOWN, "the emulator itself failed"),
            }
            lock(&self.queue).finished += 1;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<(Instant, Work)> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(operation) = queue.waiting.pop_front() {
                return Some(operation);
            }
            if queue.closing {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

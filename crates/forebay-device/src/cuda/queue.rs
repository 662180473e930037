//! The copies of one device: queued by the uploader's thread, waited for by a thread of its own.
//!
//! A wait for an event puts the thread to sleep in the driver. If the uploader slept there, a slot
//! that is filled meanwhile would wait with it and the device would run dry between two copies; so
//! another thread waits, and says what has completed through a channel. Nothing spins, and the
//! stream carries copies and events only: a host function in it would hold up the copies behind.

use super::arena::CudaWriter;
use super::context::Context;
use super::error::DriverRefusal;
use super::stream::{Event, Stream};
use crate::error::DeviceError;
use crate::uploader::Segment;
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay_mem::{Draining, Slot};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// The copies out of a slot to one device have completed, or failed: for
/// [`Uploader::settle`](crate::Uploader::settle).
#[derive(Debug)]
pub struct Completion {
    /// Index of the slot.
    slot: usize,
    /// Index of the queue.
    queue: usize,
    event: Event,
    /// When that was heard of.
    ended: Instant,
    result: Result<(), DriverRefusal>,
}

impl Completion {
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn queue(&self) -> usize {
        self.queue
    }

    pub(crate) fn ended(&self) -> Instant {
        self.ended
    }

    pub(crate) fn result(&self) -> Result<(), DriverRefusal> {
        self.result.clone()
    }
}

struct Awaited {
    slot: usize,
    event: Event,
}

/// Copies on one stream leave a gap between two in which the link idles; with two streams that take
/// turns, the next copy is ready when one ends.
const STREAMS: usize = 2;

/// The streams that copy to one device, and the thread that waits for them.
#[derive(Debug)]
pub(crate) struct CopyQueue {
    index: usize,
    /// They take turns, slot by slot.
    streams: Vec<Stream>,
    turn: usize,
    /// Events that nobody waits for any more.
    spare: Vec<Event>,
    /// `None` once it is being dropped.
    awaited: Option<Sender<Awaited>>,
    waiter: Option<JoinHandle<()>>,
}

impl CopyQueue {
    /// A queue for at most `most` copies out of slots at a time, which tells `finished` what has completed.
    pub(crate) fn new(
        context: &Arc<Context>,
        index: usize,
        most: usize,
        finished: &Sender<Completion>,
    ) -> Result<Self, DeviceError> {
        let refused = |refusal| DeviceError::driver(&context.name(), refusal);
        let streams = (0..STREAMS).map(|_| Stream::new(context)).collect::<Result<_, _>>();
        let streams = streams.map_err(refused)?;
        let (awaited, waiting) = bounded(most);
        let finished = finished.clone();
        let waiter = std::thread::Builder::new()
            .name(format!("forebay-copies-{}", context.ordinal()))
            .spawn(move || wait_for_all(&waiting, index, &finished));
        let waiter = waiter.map_err(|error| DeviceError::Thread { errno: error.raw_os_error() })?;
        let (awaited, waiter) = (Some(awaited), Some(waiter));
        Ok(Self { index, streams, turn: 0, spare: Vec::new(), awaited, waiter })
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        self.streams[0].context()
    }

    /// Queues the copies of a slot's segments into the arena `own`, whose writer this is.
    ///
    /// # Safety
    /// The slot is not released before a [`Completion`] with its index has come, or this queue has
    /// been dropped.
    pub(crate) unsafe fn copy(
        &mut self,
        slot: &Slot<Draining>,
        writer: &CudaWriter,
        own: usize,
        segments: &[Segment],
    ) -> Result<u64, DriverRefusal> {
        self.turn = (self.turn + 1) % STREAMS;
        let stream = &self.streams[self.turn];
        // SAFETY: the caller's promise: `Completion` is sent after the event behind the copies, and
        // the drop waits for everything.
        let copies = unsafe { writer.queue(stream, slot, own, segments) }?;
        let event = match self.spare.pop() {
            Some(event) => event,
            None => Event::new(stream.context())?,
        };
        event.record(stream)?;
        let awaited = Awaited { slot: slot.index(), event };
        let sender = self.awaited.as_ref().expect("the waiter is there until the end");
        // A waiter ends before its queue only by a panic, and nobody would hear of this copy then.
        sender.send(awaited).expect("the thread that waits for the device has panicked");
        Ok(copies)
    }

    /// Waits until the device has done with every slot. Whether that is certain: after a failure
    /// that leaves the device at work, it is not.
    pub(crate) fn drain(&mut self) -> bool {
        drop(self.awaited.take());
        let is_joined = self.waiter.take().is_none_or(|waiter| waiter.join().is_ok());
        // Copies behind which no event could be recorded, too.
        let drained = self.streams.iter().map(Stream::synchronize).collect::<Vec<_>>();
        let lost = drained.iter().any(|it| it.as_ref().is_err_and(DriverRefusal::ends_context));
        lost || is_joined && drained.iter().all(Result::is_ok)
    }

    /// Takes the event back for the next copy.
    pub(crate) fn recycle(&mut self, completion: Completion) {
        debug_assert_eq!(completion.queue, self.index);
        self.spare.push(completion.event);
    }
}

/// Waits for one event after the other, in the order in which they were recorded.
fn wait_for_all(waiting: &Receiver<Awaited>, queue: usize, finished: &Sender<Completion>) {
    for Awaited { slot, event } in waiting {
        let result = event.synchronize();
        let ended = Instant::now();
        // If nobody listens any more, the uploader is being dropped and has the slots.
        let _ = finished.send(Completion { slot, queue, event, ended, result });
    }
}

impl Drop for CopyQueue {
    fn drop(&mut self) {
        // Who owns slots has drained it before, and has heard what came of it.
        self.drain();
    }
}

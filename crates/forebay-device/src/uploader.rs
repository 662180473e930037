//! From slots to where each piece belongs.

use crate::arena::HostWriter;
use crate::cuda::{Completion, CopyQueue, CudaWriter};
use crate::error::DeviceError;
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay_mem::{Draining, Free, Slot};
use std::ops::Range;

/// A piece of a slot and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which arena of the uploader.
    pub arena: usize,
    /// Which tensor of the arena.
    pub tensor: usize,
    /// Where the piece starts in the slot.
    pub slot_offset: u32,
    /// Where it belongs in the tensor, as the file has it.
    pub tensor_offset: u64,
    /// Its length.
    pub bytes: u32,
}

/// A slice of the columns of a matrix: of each row of `row_bytes` bytes, the bytes in `slice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// A whole row, in bytes.
    pub row_bytes: u64,
    /// What of each row is wanted.
    pub slice: Range<u64>,
}

/// The right to fill an arena, wherever that is.
#[derive(Debug)]
pub enum Writer {
    /// In ordinary memory.
    Host(HostWriter),
    /// On a CUDA device.
    Cuda(CudaWriter),
}

/// A slot whose copies have all completed, and the read it held.
#[derive(Debug)]
pub struct Drained {
    /// To be filled again.
    pub slot: Slot<Free>,
    /// As it was given to [`Uploader::upload`].
    pub read: usize,
}

/// A slot that a device may be reading from.
#[derive(Debug)]
struct Pending {
    slot: Slot<Draining>,
    read: usize,
    /// Devices that have not said yet that they are done with it.
    devices: usize,
}

/// Moves slots to where their segments belong, in any number of arenas on any devices. Driven by
/// one thread, which hears of completed copies through a channel and so never waits in a driver.
///
/// Dropping it waits until no device reads from any slot.
#[derive(Debug)]
pub struct Uploader {
    /// One a CUDA device; dropped before the slots that they read from.
    queues: Vec<CopyQueue>,
    /// With the queue that serves it, if one does.
    writers: Vec<(Writer, Option<usize>)>,
    /// By index of the slot.
    pending: Vec<Option<Pending>>,
    in_flight: usize,
    completions: Receiver<Completion>,
    /// Keeps the channel open where no device has an end of it.
    _finished: Sender<Completion>,
    copies: u64,
}

impl Uploader {
    /// An uploader into these arenas, which segments name by their place in the list, out of a slab
    /// of `slots` slots.
    ///
    /// # Errors
    /// Where a device or the system refuses what copying takes.
    pub fn new(writers: Vec<Writer>, slots: usize) -> Result<Self, DeviceError> {
        let devices = writers.iter().filter(|writer| matches!(writer, Writer::Cuda(_))).count();
        // Room for all that can ever be in flight: a waiter never waits for us.
        let (finished, completions) = bounded(slots * devices.max(1));
        let mut queues: Vec<CopyQueue> = Vec::new();
        let mut served = Vec::with_capacity(writers.len());
        for writer in writers {
            let queue = queue_of(&writer, &mut queues, slots, &finished)?;
            served.push((writer, queue));
        }
        let pending = (0..slots).map(|_| None).collect();
        let (writers, in_flight, copies) = (served, 0, 0);
        Ok(Self { queues, writers, pending, in_flight, completions, _finished: finished, copies })
    }

    /// Starts copying `segments` out of `slot`. The uploader owns the slot until it hands it back:
    /// at once, where nothing is left to wait for, or through [`Uploader::settle`].
    ///
    /// # Panics
    /// If a segment reaches past its tensor, or its tensor is whole already: the plan would be
    /// wrong, and going on would corrupt a neighbour.
    ///
    /// # Errors
    /// [`DeviceError::Copy`] with what the device refuses. The slot then stays with the uploader
    /// until that is dropped.
    pub fn upload(
        &mut self,
        slot: Slot<Draining>,
        read: usize,
        segments: &[Segment],
    ) -> Result<Option<Drained>, DeviceError> {
        if slot.is_aimed() {
            return Ok(Some(Drained { slot: slot.release(), read }));
        }
        let mut devices = 0;
        let mut refused = None;
        for (index, (writer, queue)) in self.writers.iter_mut().enumerate() {
            let mut own = segments.iter().filter(|segment| segment.arena == index).peekable();
            if own.peek().is_none() {
                continue;
            }
            match (writer, *queue) {
                (Writer::Cuda(writer), Some(queue)) => {
                    let queue = &mut self.queues[queue];
                    // SAFETY: from here on the slot is either in `pending` until the queue has
                    // said that it is done, or until the queue is dropped.
                    match unsafe { queue.copy(&slot, writer, index, segments) } {
                        Ok(copies) => self.copies += copies,
                        Err(refusal) => {
                            let device = queue.context().name();
                            refused = Some(DeviceError::Copy { device, read, refusal });
                        }
                    }
                    devices += 1;
                }
                (Writer::Cuda(_), None) => unreachable!("`new` gave each device a queue"),
                (Writer::Host(writer), _) => {
                    for segment in own {
                        let start = segment.slot_offset as usize;
                        let piece = &slot.bytes()[start..start + segment.bytes as usize];
                        writer.write(segment.tensor, segment.tensor_offset, piece);
                        self.copies += 1;
                    }
                }
            }
        }
        if devices == 0 {
            return Ok(Some(Drained { slot: slot.release(), read }));
        }
        let index = slot.index();
        self.pending[index] = Some(Pending { slot, read, devices });
        self.in_flight += 1;
        refused.map_or(Ok(None), Err)
    }

    /// Where completions come from, for waiting on it beside other channels. To be handed to
    /// [`Uploader::settle`].
    #[must_use]
    pub fn completions(&self) -> Receiver<Completion> {
        self.completions.clone()
    }

    /// Notes a completion, and hands the slot back if it was the last one out of it.
    ///
    /// # Errors
    /// [`DeviceError::Copy`] with what the device has reported late.
    pub fn settle(&mut self, completion: Completion) -> Result<Option<Drained>, DeviceError> {
        let entry = &mut self.pending[completion.slot()];
        let pending = entry.as_mut().expect("a slot completes while it is pending");
        pending.devices -= 1;
        let (read, left, result) = (pending.read, pending.devices, completion.result());
        let queue = &mut self.queues[completion.queue()];
        let device = queue.context().name();
        queue.recycle(completion);
        if left == 0 {
            self.in_flight -= 1;
        }
        let done = entry.take_if(|pending| pending.devices == 0);
        result.map_err(|refusal| DeviceError::Copy { device, read, refusal })?;
        Ok(done.map(|Pending { slot, read, .. }| Drained { slot: slot.release(), read }))
    }

    /// Slots taken and not yet handed back.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Copies made or queued so far; neighbours that go as one count as one.
    #[must_use]
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// All bytes of a tensor have been copied, and the copies have completed: from now on others
    /// may look at it, and nothing is written to it again.
    pub fn publish(&mut self, arena: usize, tensor: usize) {
        match &mut self.writers[arena].0 {
            Writer::Host(writer) => writer.publish(tensor),
            Writer::Cuda(writer) => writer.publish(tensor),
        }
    }
}

/// The queue of the device that an arena is on: one for all arenas of a device.
fn queue_of(
    writer: &Writer,
    queues: &mut Vec<CopyQueue>,
    slots: usize,
    finished: &Sender<Completion>,
) -> Result<Option<usize>, DeviceError> {
    let Writer::Cuda(writer) = writer else { return Ok(None) };
    let context = writer.arena().context();
    let known = |queue: &CopyQueue| queue.context().ordinal() == context.ordinal();
    if let Some(index) = queues.iter().position(known) {
        return Ok(Some(index));
    }
    queues.push(CopyQueue::new(context, queues.len(), slots, finished)?);
    Ok(Some(queues.len() - 1))
}

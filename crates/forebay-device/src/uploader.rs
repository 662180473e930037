//! From slots to where each piece belongs.

use crate::arena::HostWriter;
use crate::cuda::{Completion, CopyQueue, CudaWriter};
use crate::error::DeviceError;
use crate::trace::{Copying, UploadTrace};
use crossbeam_channel::{Receiver, Sender, bounded};
use forebay_mem::{Draining, Slot};
use std::ops::Range;
use std::time::Instant;

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
    /// To be released, or kept with what it holds.
    pub slot: Slot<Draining>,
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
    /// Whether a copy out of it has failed: the read has not arrived, and never will.
    has_failed: bool,
    /// What is under way, where that is recorded.
    copying: Vec<Copying>,
}

/// Moves slots to where their segments belong, in any number of arenas on any devices. Driven by
/// one thread, which hears of completed copies through a channel and so never waits in a driver.
///
/// Dropping it waits until no device reads from any slot; where that can't be known, slots are given
/// up for the life of the process.
#[derive(Debug)]
pub struct Uploader {
    /// One a CUDA device; dropped before the slots that they read from.
    queues: Vec<CopyQueue>,
    /// With the queue that serves it, if one does; `None` for numbers that are free.
    writers: Vec<Option<(Writer, Option<usize>)>>,
    /// By index of the slot.
    pending: Vec<Option<Pending>>,
    in_flight: usize,
    completions: Receiver<Completion>,
    /// Keeps the channel open where no device has an end of it.
    _finished: Sender<Completion>,
    copies: u64,
    trace: Option<UploadTrace>,
}

impl Uploader {
    /// An uploader into these arenas, which segments name by their place in the list, out of a slab
    /// of `slots` slots.
    ///
    /// # Errors
    /// Where a device or the system refuses what copying takes.
    pub fn new(writers: Vec<Writer>, slots: usize) -> Result<Self, DeviceError> {
        let devices = writers.iter().filter(|writer| matches!(writer, Writer::Cuda(_))).count();
        // Room for all that can ever be in flight: nobody waits for a channel.
        let most = slots * devices.max(1);
        let (finished, completions) = bounded(most);
        let mut queues: Vec<CopyQueue> = Vec::new();
        let mut served = Vec::with_capacity(writers.len());
        for writer in writers {
            let queue = queue_of(&writer, &mut queues, most, &finished)?;
            served.push(Some((writer, queue)));
        }
        let pending = (0..slots).map(|_| None).collect();
        Ok(Self {
            queues,
            writers: served,
            pending,
            in_flight: 0,
            completions,
            _finished: finished,
            copies: 0,
            trace: None,
        })
    }

    /// Records what it does on a timeline from now on.
    pub fn record(&mut self, trace: UploadTrace) {
        self.trace = Some(trace);
    }

    /// Starts copying `segments` out of `slot`. The uploader owns the slot until it hands it back:
    /// at once, where nothing is left to wait for, or through [`Uploader::settle`].
    ///
    /// # Panics
    /// If a segment reaches past its tensor, or its tensor is whole already: the plan would be
    /// wrong, and going on would corrupt a neighbour.
    ///
    /// # Errors
    /// [`DeviceError::Copy`] with what the device refuses. The slot then stays with the uploader,
    /// which can only be dropped.
    pub fn upload(
        &mut self,
        slot: Slot<Draining>,
        read: usize,
        segments: &[Segment],
    ) -> Result<Option<Drained>, DeviceError> {
        if slot.is_aimed() {
            return Ok(Some(Drained { slot, read }));
        }
        // From here on the slot is where the drop finds it, whatever happens.
        let index = slot.index();
        let (has_failed, copying) = (false, Vec::new());
        let pending = Pending { slot, read, devices: 0, has_failed, copying };
        let pending = self.pending[index].insert(pending);
        self.in_flight += 1;
        let mut refused = None;
        for (own, served) in self.writers.iter_mut().enumerate() {
            let Some((writer, queue)) = served else { continue };
            let mut of_arena = segments.iter().filter(|segment| segment.arena == own).peekable();
            if of_arena.peek().is_none() || refused.is_some() {
                continue;
            }
            let started = self.trace.as_mut().map(|trace| (trace, Instant::now()));
            match (writer, *queue) {
                (Writer::Cuda(writer), Some(index)) => {
                    let queue = &mut self.queues[index];
                    // SAFETY: the slot stays in `pending` until the queue has said that it is done
                    // with it; the drop drains the queue first.
                    match unsafe { queue.copy(&pending.slot, writer, own, segments) } {
                        Ok(copies) => {
                            self.copies += copies;
                            let copying = started.map(|(_, started)| {
                                Copying::new(Some(index), started, copies, own, segments)
                            });
                            pending.copying.extend(copying);
                        }
                        Err(refusal) => {
                            let device = queue.context().name();
                            if let Some((trace, started)) = started {
                                let copying = Copying::new(None, started, 0, own, segments);
                                let now = Instant::now();
                                trace.copied(&device, read, &copying, now, Some(&refusal));
                            }
                            refused = Some(DeviceError::Copy { device, read, refusal });
                        }
                    }
                    pending.devices += 1;
                }
                (Writer::Cuda(_), None) => unreachable!("`new` gave each device a queue"),
                (Writer::Host(writer), _) => {
                    let before = self.copies;
                    for segment in of_arena {
                        let start = segment.slot_offset as usize;
                        let piece = &pending.slot.bytes()[start..start + segment.bytes as usize];
                        writer.write(segment.tensor, segment.tensor_offset, piece);
                        self.copies += 1;
                    }
                    if let Some((trace, started)) = started {
                        let copies = self.copies - before;
                        let copying = Copying::new(None, started, copies, own, segments);
                        trace.copied_here(own, read, &copying);
                    }
                }
            }
        }
        refused.map_or(Ok(()), Err)?;
        Ok(self.take_if_drained(index))
    }

    /// Puts what has completed on the timeline.
    fn tell(&mut self, completion: &Completion) {
        let (Some(trace), Some(pending)) = (&mut self.trace, &mut self.pending[completion.slot()])
        else {
            return;
        };
        // Those of one queue complete in order.
        let is_it = |copying: &Copying| copying.queue == Some(completion.queue());
        if let Some(first) = pending.copying.iter().position(is_it) {
            let copying = pending.copying.remove(first);
            let device = self.queues[completion.queue()].context().name();
            let result = completion.result();
            trace.copied(
                &device,
                pending.read,
                &copying,
                completion.ended(),
                result.err().as_ref(),
            );
        }
    }

    /// The slot, once no device reads from it.
    fn take_if_drained(&mut self, index: usize) -> Option<Drained> {
        let is_drained = |it: &mut Pending| it.devices == 0 && !it.has_failed;
        let drained = self.pending[index].take_if(is_drained);
        self.in_flight -= usize::from(drained.is_some());
        if let Some(trace) = &mut self.trace {
            trace.in_flight(self.in_flight);
        }
        let drained = drained?;
        Some(Drained { slot: drained.slot, read: drained.read })
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
        self.tell(&completion);
        let index = completion.slot();
        let pending = self.pending[index].as_mut().expect("a slot completes while it is pending");
        pending.devices -= 1;
        let (read, result) = (pending.read, completion.result());
        pending.has_failed |= result.is_err();
        let queue = &mut self.queues[completion.queue()];
        let device = queue.context().name();
        queue.recycle(completion);
        result.map_err(|refusal| DeviceError::Copy { device, read, refusal })?;
        Ok(self.take_if_drained(index))
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
        match &mut self.writers[arena] {
            Some((Writer::Host(writer), _)) => writer.publish(tensor),
            Some((Writer::Cuda(writer), _)) => writer.publish(tensor),
            None => panic!("there is no arena {arena}"),
        }
    }

    /// Takes one more arena, and says by which number segments name it. Where arenas of devices
    /// come later, `new` is given an empty one of each device.
    ///
    /// # Panics
    /// If it is on a device that none of the arenas given to [`Uploader::new`] is on.
    pub fn attach(&mut self, writer: Writer) -> usize {
        let queue = match &writer {
            Writer::Host(_) => None,
            Writer::Cuda(writer) => Some(writer.arena().context().ordinal()),
        };
        let queue = queue.map(|ordinal| {
            let of_device = |queue: &CopyQueue| queue.context().ordinal() == ordinal;
            self.queues.iter().position(of_device).expect("the device has a queue")
        });
        let index = self.writers.iter().position(Option::is_none).unwrap_or_else(|| {
            self.writers.push(None);
            self.writers.len() - 1
        });
        self.writers[index] = Some((writer, queue));
        index
    }

    /// Lets go of an arena that was attached, of which nothing is under way any more. Its number may
    /// be given to another.
    pub fn detach(&mut self, arena: usize) {
        self.writers[arena] = None;
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        let mut is_certain = true;
        for queue in &mut self.queues {
            is_certain &= queue.drain();
        }
        while let Ok(completion) = self.completions.try_recv() {
            self.tell(&completion);
        }
        if !is_certain {
            // A device may go on reading: nobody else may ever have these slots.
            self.pending.drain(..).flatten().for_each(|pending| pending.slot.leak());
        }
    }
}

/// The queue of the device that an arena is on: one for all arenas of a device.
fn queue_of(
    writer: &Writer,
    queues: &mut Vec<CopyQueue>,
    most: usize,
    finished: &Sender<Completion>,
) -> Result<Option<usize>, DeviceError> {
    let Writer::Cuda(writer) = writer else { return Ok(None) };
    let context = writer.arena().context();
    let known = |queue: &CopyQueue| queue.context().ordinal() == context.ordinal();
    if let Some(index) = queues.iter().position(known) {
        return Ok(Some(index));
    }
    queues.push(CopyQueue::new(context, queues.len(), most, finished)?);
    Ok(Some(queues.len() - 1))
}

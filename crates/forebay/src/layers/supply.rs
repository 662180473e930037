//! The thread that brings tensors into bays: it feeds reads, uploads slots, and says what has
//! landed.
//!
//! ```text
//!   orders ──▶ forebay-supply ──reads──▶ forebay-read
//!   bays ─────▶     │  ▲ ◀──full slots────────┘ ▲
//!   (come back)     │  └ kept slots             │
//!                   └─────free slots────────────┘
//!                   └──landed──▶ the caller's thread
//! ```

use crate::error::Error;
use crate::pipeline::{check_identities, label, to_blame};
use crate::plan::Plan;
use crossbeam_channel::{Receiver, Sender, select};
use forebay_device::{ArenaLayout, Bay, BayArena, DeviceError, Drained, Pool, Segment, Uploader};
use forebay_format::Catalog;
use forebay_io::{Feed, Filled, ReadSpec, SlotReturn};
use forebay_mem::{Full, Slot};
use forebay_trace::{Label, Labels, Text};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer than anybody waits for nothing.
const LONG: Duration = Duration::from_secs(3600);

/// What is read to fill one arena.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) layout: ArenaLayout,
    /// Of each tensor of the arena: its number in the catalog.
    pub(super) tensors: Vec<usize>,
    /// Segments name the arena 0.
    pub(super) reads: Vec<(ReadSpec, Vec<Segment>)>,
}

impl Work {
    /// The tensor that a read failed for at an offset of its file; without one, the first that it
    /// brings bytes of.
    fn tensor_of(&self, catalog: &Catalog, read: usize, offset: Option<u64>) -> Option<usize> {
        let (spec, segments) = self.reads.get(read)?;
        let number = |segment: &Segment| self.tensors[segment.tensor];
        to_blame(catalog.tensors(), spec, segments, number, offset.unwrap_or(spec.offset))
    }
}

/// Something to bring.
#[derive(Debug)]
pub(super) struct Order {
    /// The caller's name for it.
    pub(super) ticket: u64,
    pub(super) work: Arc<Work>,
    /// The bay that it is given: its layout's length at least.
    pub(super) bay_bytes: u64,
    pub(super) priority: i32,
    /// Where its slots are kept for the next time, if they are.
    pub(super) shelf: Option<usize>,
    /// Which of the bays that were reserved it takes, if it is one of those that stay.
    pub(super) reserved: Option<usize>,
}

/// What the caller wants.
#[derive(Debug)]
pub(super) enum Command {
    Bring(Order),
    /// It is not wanted any more. What no engine has begun is not read.
    Cancel(u64),
}

/// Tensors that are whole.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) ticket: u64,
    pub(super) arena: BayArena,
}

/// Hears what happens, on the supply's thread. Dropped when that ends.
pub(super) trait Reports: Send {
    fn landed(&mut self, landed: Landed);

    /// There is no room for the next order: whether some bay may have come back now.
    fn make_room(&mut self) -> bool {
        false
    }

    /// Nothing waits for room.
    fn has_room(&mut self) {}
}

impl Reports for Sender<Landed> {
    fn landed(&mut self, landed: Landed) {
        // If nobody listens any more, the commands end next.
        let _ = self.send(landed);
    }
}

/// What has been done so far, for whoever measures.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) read_bytes: AtomicU64,
    pub(super) uploaded_bytes: AtomicU64,
    /// Time in which copies were under way.
    pub(super) uploading_ns: AtomicU64,
    /// Time in which something was on its way and nothing of it was there to copy.
    pub(super) upload_waited_ns: AtomicU64,
}

impl Counters {
    fn add_time(counter: &AtomicU64, time: Duration) {
        counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Why it ended, and what was under way.
pub(super) struct SupplyOutcome {
    pub(super) failure: Option<Failure>,
    tags: Vec<Option<(usize, usize)>>,
    deliveries: Vec<Option<Delivery>>,
}

/// What went wrong here rather than at the reader's.
pub(super) enum Failure {
    Device(DeviceError),
    Changed(Error),
}

impl SupplyOutcome {
    /// The tensor whose bytes a read was to bring, at an offset of its file if that is known.
    pub(super) fn tensor_of(
        &self,
        catalog: &Catalog,
        tag: usize,
        offset: Option<u64>,
    ) -> Option<usize> {
        let (delivery, read) = (*self.tags.get(tag)?)?;
        self.deliveries[delivery].as_ref()?.work.tensor_of(catalog, read, offset)
    }
}

/// An order that has its bay.
#[derive(Debug)]
struct Delivery {
    ticket: u64,
    work: Arc<Work>,
    arena: BayArena,
    /// The uploader's number for it.
    number: usize,
    /// Reads that have not been copied yet.
    missing: usize,
    shelf: Option<usize>,
    is_wanted: bool,
}

/// Everything that the thread has.
pub(super) struct Supply {
    pub(super) plan: Arc<Plan>,
    pub(super) uploader: Uploader,
    pub(super) pool: Pool,
    /// Of what stays, so that the room of what comes and goes is in one piece.
    pub(super) reserved: Vec<Option<Bay>>,
    pub(super) feed: Feed,
    pub(super) full: Receiver<Filled>,
    pub(super) free: SlotReturn,
    pub(super) commands: Receiver<Command>,
    pub(super) returned: Receiver<()>,
    pub(super) reports: Box<dyn Reports>,
    pub(super) counters: Arc<Counters>,
    /// What reads are called on a timeline, where there is one.
    pub(super) labels: Option<TagLabels>,
    pub(super) state: State,
}

/// What reads under way are called on a timeline, by the number that they are fed with.
#[derive(Clone, Default)]
pub(super) struct TagLabels(Arc<Mutex<Vec<Option<Label>>>>);

impl TagLabels {
    pub(super) fn lookup(&self) -> Labels {
        let labels = Arc::clone(&self.0);
        Arc::new(move |tag: usize| {
            let labels = labels.lock().unwrap_or_else(PoisonError::into_inner);
            let known = labels.get(tag).and_then(Clone::clone);
            known.unwrap_or_else(|| Label { name: Text::from("a read"), args: Vec::new() })
        })
    }

    fn set(&self, tag: usize, label: Label) {
        let mut labels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() <= tag {
            labels.resize_with(tag + 1, || None);
        }
        labels[tag] = Some(label);
    }
}

/// What it keeps in mind.
#[derive(Default)]
pub(super) struct State {
    /// No bay yet; the urgent ones first.
    waiting: VecDeque<Order>,
    deliveries: Vec<Option<Delivery>>,
    /// By the number that a read is fed with: delivery and read.
    tags: Vec<Option<(usize, usize)>>,
    free_tags: Vec<usize>,
    /// Slots that are to be uploaded once more.
    replays: VecDeque<(usize, Slot<Full>)>,
    /// Slots that are kept, with the read whose bytes they hold.
    shelves: Vec<Vec<(usize, Slot<Full>)>>,
    busy_since: Option<Instant>,
}

impl State {
    fn tag(&mut self, delivery: usize, read: usize) -> usize {
        let tag = self.free_tags.pop().unwrap_or_else(|| {
            self.tags.push(None);
            self.tags.len() - 1
        });
        self.tags[tag] = Some((delivery, read));
        tag
    }

    fn free_tag(&mut self, tag: usize) -> (usize, usize) {
        self.free_tags.push(tag);
        self.tags[tag].take().expect("a read comes back once")
    }

    fn delivery(&mut self, delivery: usize) -> &mut Delivery {
        self.deliveries[delivery].as_mut().expect("a delivery stays until its last read is back")
    }

    fn shelf(&mut self, shelf: usize) -> &mut Vec<(usize, Slot<Full>)> {
        if self.shelves.len() <= shelf {
            self.shelves.resize_with(shelf + 1, Vec::new);
        }
        &mut self.shelves[shelf]
    }
}

enum End {
    /// Nobody wants anything any more, or the reader has ended and says why.
    Quiet,
    Failed(Failure),
}

impl From<DeviceError> for End {
    fn from(error: DeviceError) -> Self {
        Self::Failed(Failure::Device(error))
    }
}

impl Supply {
    /// Runs until the caller or the reader is gone, or something fails. When it returns, no device
    /// reads from any slot.
    pub(super) fn run(mut self) -> SupplyOutcome {
        let failure = loop {
            match self.turn() {
                Ok(()) => {}
                Err(End::Quiet) => break None,
                Err(End::Failed(failure)) => break Some(failure),
            }
        };
        self.feed.close();
        let State { tags, deliveries, .. } = self.state;
        SupplyOutcome { failure, tags, deliveries }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.begin_what_has_room()?;
        let completions = self.uploader.completions();
        let is_idle = self.uploader.in_flight() == 0 && self.state.replays.is_empty();
        let waits_since =
            (is_idle && self.state.deliveries.iter().any(Option::is_some)).then(Instant::now);
        let patience = if self.state.replays.is_empty() { LONG } else { Duration::ZERO };
        let mut is_nothing = false;
        let turn = select! {
            recv(self.full) -> filled => match filled {
                Ok(filled) => self.take(filled),
                Err(_) => Err(End::Quiet),
            },
            recv(completions) -> completion => match completion {
                Ok(completion) => match self.uploader.settle(completion) {
                    Ok(drained) => drained.map_or(Ok(()), |drained| self.credit(drained)),
                    Err(error) => Err(error.into()),
                },
                // The uploader itself keeps the channel open.
                Err(_) => Ok(()),
            },
            recv(self.commands) -> command => match command {
                Ok(command) => {
                    self.hear(command);
                    Ok(())
                }
                Err(_) => Err(End::Quiet),
            },
            // What comes back is looked for at the begin of each turn.
            recv(self.returned) -> _ => Ok(()),
            default(patience) => {
                is_nothing = true;
                Ok(())
            }
        };
        if let Some(since) = waits_since {
            Counters::add_time(&self.counters.upload_waited_ns, since.elapsed());
        }
        turn?;
        if is_nothing && let Some((tag, slot)) = self.state.replays.pop_front() {
            self.upload(tag, slot)?;
        }
        if self.uploader.in_flight() == 0
            && let Some(since) = self.state.busy_since.take()
        {
            Counters::add_time(&self.counters.uploading_ns, since.elapsed());
        }
        Ok(())
    }

    fn hear(&mut self, command: Command) {
        match command {
            Command::Bring(order) => {
                let later = |it: &Order| it.priority < order.priority;
                let waiting = &mut self.state.waiting;
                let at = waiting.iter().position(later).unwrap_or(waiting.len());
                waiting.insert(at, order);
            }
            Command::Cancel(ticket) => self.cancel(ticket),
        }
    }

    /// Gives bays to orders, in turn, as long as there are any.
    fn begin_what_has_room(&mut self) -> Result<(), End> {
        while let Some(order) = self.state.waiting.front() {
            let (ticket, stays) = (order.ticket, order.reserved.is_some());
            let reserved = order.reserved.and_then(|at| self.reserved.get_mut(at)?.take());
            let Some(bay) = reserved.or_else(|| self.pool.take(order.bay_bytes)) else {
                if self.reports.make_room() {
                    continue;
                }
                break;
            };
            // What was given up before this room came back is not begun in it.
            while !stays && let Ok(command) = self.commands.try_recv() {
                self.hear(command);
            }
            if self.state.waiting.front().is_none_or(|first| first.ticket != ticket) {
                continue;
            }
            let Some(Order { ticket, work, priority, shelf, .. }) = self.state.waiting.pop_front()
            else {
                break;
            };
            let (arena, writer) = bay.arena(&work.layout);
            let number = self.uploader.attach(writer);
            let missing = work.reads.len();
            let delivery =
                Delivery { ticket, work, arena, number, missing, shelf, is_wanted: true };
            let free = self.state.deliveries.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                self.state.deliveries.push(None);
                self.state.deliveries.len() - 1
            });
            self.state.deliveries[index] = Some(delivery);
            if missing == 0 {
                self.land(index)?;
            } else {
                self.begin(index, priority);
            }
        }
        if self.state.waiting.is_empty() {
            self.reports.has_room();
        }
        Ok(())
    }

    /// Asks for the reads of a delivery, or takes them from the shelf.
    fn begin(&mut self, index: usize, priority: i32) {
        let work = Arc::clone(&self.state.delivery(index).work);
        let shelf = self.state.delivery(index).shelf;
        let kept = shelf.map(|shelf| std::mem::take(self.state.shelf(shelf))).unwrap_or_default();
        if kept.is_empty() {
            let reads = work.reads.iter().enumerate();
            let tagged = reads.map(|(read, (spec, _))| (self.state.tag(index, read), *spec));
            let tagged: Vec<_> = tagged.collect();
            tagged.iter().for_each(|&(tag, _)| self.name(tag, &work));
            self.feed.push(priority, tagged);
            return;
        }
        debug_assert_eq!(kept.len(), work.reads.len());
        for (read, slot) in kept {
            let tag = self.state.tag(index, read);
            self.name(tag, &work);
            self.state.replays.push_back((tag, slot));
        }
    }

    /// Says what a read is called.
    fn name(&self, tag: usize, work: &Work) {
        let (Some(labels), Some((_, read))) = (&self.labels, self.state.tags[tag]) else { return };
        let mut tensors: Vec<usize> =
            work.reads[read].1.iter().map(|segment| work.tensors[segment.tensor]).collect();
        tensors.dedup();
        labels.set(tag, label(self.plan.model.catalog(), &tensors));
    }

    fn take(&mut self, Filled { read: tag, slot }: Filled) -> Result<(), End> {
        let (delivery, read) = self.state.tags[tag].expect("a read that was asked for");
        let bytes = u64::from(self.state.delivery(delivery).work.reads[read].0.need_bytes);
        self.counters.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.upload(tag, slot)
    }

    fn upload(&mut self, tag: usize, slot: Slot<Full>) -> Result<(), End> {
        let (index, read) = self.state.tags[tag].expect("a read that was asked for");
        let delivery = self.state.delivery(index);
        if !delivery.is_wanted {
            return self.credit(Drained { slot: slot.drain(), read: tag });
        }
        let number = delivery.number;
        let work = Arc::clone(&delivery.work);
        let segments: Vec<Segment> =
            work.reads[read].1.iter().map(|it| Segment { arena: number, ..*it }).collect();
        let bytes: u64 = segments.iter().map(|segment| u64::from(segment.bytes)).sum();
        self.counters.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.state.busy_since.get_or_insert_with(Instant::now);
        match self.uploader.upload(slot.drain(), tag, &segments)? {
            Some(drained) => self.credit(drained),
            None => Ok(()),
        }
    }

    /// The bytes of a read are where they belong.
    fn credit(&mut self, Drained { slot, read: tag }: Drained) -> Result<(), End> {
        let (index, read) = self.state.free_tag(tag);
        let delivery = self.state.delivery(index);
        delivery.missing -= 1;
        let is_whole = delivery.missing == 0;
        match delivery.shelf.filter(|_| delivery.is_wanted) {
            Some(shelf) => self.state.shelf(shelf).push((read, slot.keep())),
            // The reader may have ended: the slot is not needed any more then.
            None => drop(self.free.send(slot.release())),
        }
        if is_whole { self.land(index) } else { Ok(()) }
    }

    /// Everything of a delivery is where it belongs.
    fn land(&mut self, index: usize) -> Result<(), End> {
        let delivery = self.state.deliveries[index].take().expect("it lands once");
        let Delivery { ticket, work, arena, number, is_wanted, .. } = delivery;
        if is_wanted {
            for tensor in 0..work.layout.tensors.len() {
                self.uploader.publish(number, tensor);
            }
            // Before anybody sees bytes of two versions.
            check_identities(&self.plan).map_err(|error| End::Failed(Failure::Changed(error)))?;
        }
        self.uploader.detach(number);
        if is_wanted {
            self.reports.landed(Landed { ticket, arena });
        }
        Ok(())
    }

    fn cancel(&mut self, ticket: u64) {
        self.state.waiting.retain(|order| order.ticket != ticket);
        let is_it = |it: &Option<Delivery>| it.as_ref().is_some_and(|it| it.ticket == ticket);
        let Some(index) = self.state.deliveries.iter().position(is_it) else { return };
        let tags = &self.state.tags;
        let taken = self.feed.take_back(|tag| tags[tag].is_some_and(|(of, _)| of == index));
        let begun = self.state.delivery(index).missing - taken.len();
        for tag in taken {
            self.state.free_tag(tag);
        }
        let delivery = self.state.delivery(index);
        delivery.missing = begun;
        delivery.is_wanted = false;
        if begun == 0 {
            let number = delivery.number;
            self.uploader.detach(number);
            self.state.deliveries[index] = None;
        }
    }
}

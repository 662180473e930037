//! A read job over real files, with an uploader that only keeps what it gets.

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use forebay_device::cuda::{Context, CudaArena, Memory};
use forebay_device::{ArenaLayout, Drained, Segment, Uploader, Writer};
use forebay_io::{
    Access, Cancel, Fallback, Fault, Filled, ModelFile, Performer, ReadJob, ReadOutcome, ReadSpec,
    Schedule, Step, StepAt, uring_support,
};
use forebay_mem::{
    Alignment, Draining, FileMapping, Free, Place, PlaceWatch, Region, Slab, Slot, SlotCensus,
    Writes, page_bytes,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Everything about a load that a test may want otherwise.
pub struct Load {
    /// From where.
    pub files: Arc<[ModelFile]>,
    /// What.
    pub reads: Vec<ReadSpec>,
    /// Whether each read lands in memory of its own rather than in a slot.
    pub in_place: bool,
    /// Whether its bytes go on to a CUDA device, and are read back from there. Takes the emulated
    /// driver to be installed.
    pub to_device: bool,
    /// Whether it is a task of a tokio-uring runtime that is not the engine's own.
    pub as_task: bool,
    /// Whether io_uring hands buffered reads to threads of the kernel.
    pub buffered_by_workers: bool,
    /// The size of a slot.
    pub slot_bytes: usize,
    /// How many slots.
    pub slots: usize,
    /// Reads in flight at most.
    pub queue_depth: usize,
    /// Who begins.
    pub performer: Performer,
    /// Whether steps down are allowed; if not, the performer is required too.
    pub fallback: Fallback,
    /// Asks to stop.
    pub cancel: Cancel,
    /// What to change about completions.
    pub fault: Option<Box<dyn Fault>>,
    /// How many slots the uploader keeps to itself before it gives the oldest back.
    pub uploader_keeps: usize,
    /// After how many reads the uploader goes away.
    pub uploader_leaves_after: Option<usize>,
    /// Runs first on the thread that the reads are performed from, which then is a new one.
    pub prelude: Option<Box<dyn FnOnce() + Send>>,
}

/// What came of a load. No slot is in use any more.
pub struct Landed {
    /// The bytes of each read that arrived.
    pub reads: BTreeMap<usize, Vec<u8>>,
    /// What the reader has to say.
    pub outcome: ReadOutcome,
    /// The memory that was read into.
    pub slab: Arc<Slab>,
    /// The slots that came back.
    pub free: Vec<Slot<Free>>,
    /// Where reads that go into place went, and whether each has let go of it.
    pub places: Option<Places>,
}

/// Memory that reads went to, slot after slot, and whether each has let go of it.
pub type Places = (Arc<Region>, Vec<PlaceWatch>);

impl Load {
    /// A load of `reads` by `performer`, with nothing in its way.
    ///
    /// # Panics
    /// If a read is larger than memory.
    #[must_use]
    pub fn new(files: Arc<[ModelFile]>, reads: Vec<ReadSpec>, performer: Performer) -> Self {
        let largest = reads.iter().map(|read| u64::from(read.bytes)).max().unwrap_or(0);
        let slot_bytes = Alignment::page().up(largest.max(1)).expect("a read fits into memory");
        Self {
            files,
            reads,
            in_place: false,
            to_device: false,
            as_task: false,
            buffered_by_workers: false,
            slot_bytes: usize::try_from(slot_bytes).expect("a read fits into memory"),
            slots: 6,
            queue_depth: 4,
            performer,
            fallback: Fallback::Allowed,
            cancel: Cancel::default(),
            fault: None,
            uploader_keeps: 1,
            uploader_leaves_after: None,
            prelude: None,
        }
    }

    /// With `fault` between kernel and schedule.
    #[must_use]
    pub fn with_fault(mut self, fault: impl Fault + 'static) -> Self {
        self.fault = Some(Box::new(fault));
        self
    }

    /// Reads everything, or fails to. Checks that no slot is unaccounted for.
    ///
    /// # Panics
    /// If one is, or if the reader does.
    #[must_use]
    pub fn run(mut self) -> Landed {
        let Some(act) = self.prelude.take() else { return self.run_here() };
        let run = move || {
            act();
            self.run_here()
        };
        std::thread::scope(|scope| scope.spawn(run).join().expect("the reader does not panic"))
    }

    /// Reads on this very thread. The kernel lets no thread end before its reads have: a reader
    /// on a thread of its own would look as if it had waited for them even if it had not.
    fn run_here(self) -> Landed {
        let (slab, tokens) = Slab::new(self.slot_bytes, self.slots).expect("memory for the slots");
        let (free_sender, free) = bounded(self.slots);
        let (full_sender, full) = bounded(self.slots);
        for token in tokens {
            free_sender.send(token).expect("room for every slot");
        }
        let (keeps, leaves_after) = (self.uploader_keeps, self.uploader_leaves_after);
        let slots = self.slots;
        let size = |read: &ReadSpec| u64::from(read.bytes);
        let sizes = self.to_device.then(|| self.reads.iter().map(size).collect());
        let (places, watched) = self.in_place.then(|| self.places()).unzip();
        let as_task = self.as_task;
        let mut job = self.into_job(&slab, free.clone(), full_sender);
        job.places = places.unwrap_or_default();
        let (outcome, reads) = std::thread::scope(|scope| {
            let leaves_after = leaves_after.unwrap_or(usize::MAX);
            let uploader = scope.spawn(move || match sizes {
                Some(sizes) => upload_to_device(full, free_sender, slots, sizes, leaves_after),
                None => upload(full, free_sender, keeps, leaves_after),
            });
            // A runtime that can't be had panics; the engine's own says why.
            let outcome = match as_task && uring_support().is_ok() {
                true => tokio_uring::start(job.run_on_tokio_uring()),
                false => job.run(),
            };
            (outcome, uploader.join().expect("the uploader does not panic"))
        });
        let free: Vec<_> = free.try_iter().collect();
        let landed = Landed { reads, outcome, slab, free, places: watched };
        landed.check_slots();
        landed
    }

    /// A place for each read, one behind the other in one region, in slots of the same size.
    fn places(&self) -> (Vec<Option<Place>>, Places) {
        let bytes = self.slot_bytes * self.reads.len();
        let region = Arc::new(Region::new(bytes).expect("memory for the places"));
        let place = |(index, read): (usize, &ReadSpec)| {
            let start = index * self.slot_bytes;
            let end = start + read.bytes as usize;
            // SAFETY: the places lie one behind the other, and nobody looks at the region before
            // the load has ended.
            let (place, watch) = unsafe { Place::new(&region, start..end) };
            (Some(place), watch)
        };
        let (places, watches) = self.reads.iter().enumerate().map(place).unzip();
        (places, (region, watches))
    }

    fn into_job(
        self,
        slab: &Arc<Slab>,
        free: Receiver<Slot<Free>>,
        full: Sender<Filled>,
    ) -> ReadJob {
        let alignment = |file: &ModelFile| {
            file.direct().map_or(Alignment::FALLBACK, |(_, alignment)| alignment.offset)
        };
        let alignments: Vec<_> = self.files.iter().map(alignment).collect();
        let is_mapped =
            |file| self.reads.iter().any(|read| read.file == file && read.access == Access::Mapped);
        let map = |(index, file): (usize, &ModelFile)| {
            let mapping = is_mapped(index)
                .then(|| FileMapping::new(file.buffered(), file.bytes(), Writes::Refused));
            mapping.map(|mapping| Arc::new(mapping.expect("a regular file can be mapped")))
        };
        let mappings = self.files.iter().enumerate().map(map).collect();
        let whole = |read: &ReadSpec| {
            std::iter::once(read.offset..read.offset + u64::from(read.need_bytes)).collect()
        };
        let reclaim = self.reads.iter().map(whole).collect();
        let reads: Arc<[ReadSpec]> = self.reads.into();
        let mut schedule =
            Schedule::new(reads, &alignments, self.slots, self.performer, self.fallback);
        if self.fallback == Fallback::Forbidden {
            schedule.require_performer();
        }
        ReadJob {
            files: self.files,
            mappings,
            schedule,
            places: Vec::new(),
            slab: Arc::clone(slab),
            free: free.into(),
            full,
            cancel: self.cancel,
            queue_depth: self.queue_depth,
            buffered_by_workers: self.buffered_by_workers,
            reclaim,
            trace: None,
            fault: self.fault,
        }
    }
}

/// The uploader: keeps the bytes, gives the slots back in order.
#[allow(clippy::needless_pass_by_value, reason = "that its ends are dropped is what it is about")]
fn upload(
    full: Receiver<Filled>,
    free: Sender<Slot<Free>>,
    keeps: usize,
    leaves_after: usize,
) -> BTreeMap<usize, Vec<u8>> {
    let mut reads = BTreeMap::new();
    let mut kept: VecDeque<Slot<Draining>> = VecDeque::new();
    let release = |slot: Slot<Draining>| free.send(slot.release()).expect("room for every slot");
    for filled in full.iter().take(leaves_after) {
        let slot = filled.slot.drain();
        let twice = reads.insert(filled.read, slot.bytes().to_vec());
        assert!(twice.is_none(), "read {} was delivered twice", filled.read);
        kept.push_back(slot);
        if kept.len() > keeps {
            kept.drain(..1).for_each(release);
        }
    }
    kept.into_iter().for_each(release);
    reads
}

/// The uploader of a device: copies the bytes there, gives the slots back when that has completed,
/// and in the end reads everything back.
#[allow(clippy::needless_pass_by_value, reason = "that its ends are dropped is what it is about")]
fn upload_to_device(
    full: Receiver<Filled>,
    free: Sender<Slot<Free>>,
    slots: usize,
    sizes: Vec<u64>,
    leaves_after: usize,
) -> BTreeMap<usize, Vec<u8>> {
    let context = Context::of(0).expect("the emulated driver is installed");
    let layout = ArenaLayout::packed(sizes).expect("the reads fit into memory");
    let (arena, writer) = CudaArena::new(&context, Memory::Own(layout)).expect("device memory");
    let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], slots).expect("a stream");
    let completions = uploader.completions();
    let mut lengths = BTreeMap::new();
    let give_back = |drained: Option<Drained>| {
        drained
            .into_iter()
            .for_each(|it| free.send(it.slot.release()).expect("room for every slot"));
    };
    let mut filled = Some(full).filter(|_| leaves_after > 0);
    while filled.is_some() || uploader.in_flight() > 0 {
        let nothing = never();
        select! {
            recv(filled.as_ref().unwrap_or(&nothing)) -> next => match next {
                Err(_) => filled = None,
                Ok(Filled { read, slot }) => {
                    let slot = slot.drain();
                    let length = slot.bytes().len();
                    let bytes = u32::try_from(length).expect("at most a slot");
                    let segment =
                        Segment { arena: 0, tensor: read, slot_offset: 0, tensor_offset: 0, bytes };
                    let twice = lengths.insert(read, length);
                    assert!(twice.is_none(), "read {read} was delivered twice");
                    give_back(uploader.upload(slot, read, &[segment]).expect("a copy"));
                    if lengths.len() == leaves_after {
                        filled = None;
                    }
                }
            },
            recv(completions) -> completion => {
                let completion = completion.expect("the uploader keeps the channel open");
                give_back(uploader.settle(completion).expect("a copy"));
            }
        }
    }
    let read_back = |(read, length): (usize, usize)| {
        uploader.publish(0, read);
        let mut bytes = vec![0; length];
        arena.read(read, 0, &mut bytes).expect("the device gives it back");
        (read, bytes)
    };
    lengths.into_iter().map(read_back).collect()
}

impl Landed {
    /// The steps that were taken because a file was refused something: not what an engine found
    /// out while it set itself up.
    #[must_use]
    pub fn read_steps(&self) -> Vec<&Step> {
        let steps = self.outcome.schedule.steps().iter();
        steps.filter(|step| step.at != StepAt::Setup).collect()
    }

    /// That it is whole: no failure, every read there, every slot back, every byte right.
    ///
    /// # Panics
    /// If not.
    pub fn expect_whole(&self, contents: &[Vec<u8>]) {
        let schedule = &self.outcome.schedule;
        assert_eq!(schedule.failure(), None, "steps: {:?}", schedule.steps());
        assert!(schedule.is_done(), "it says neither that it is done nor why not");
        assert_eq!(self.reads.len(), schedule.reads().len());
        assert_eq!(self.free.len(), self.slab.slots(), "slots were lost: {:?}", self.slab.census());
        self.expect_right(contents);
    }

    /// That what did arrive is right.
    ///
    /// # Panics
    /// If not.
    pub fn expect_right(&self, contents: &[Vec<u8>]) {
        for (&read, bytes) in &self.reads {
            let spec = self.outcome.schedule.reads()[read];
            let need_bytes = spec.need_bytes as usize;
            assert!(bytes.len() >= need_bytes, "read {read}: {} bytes of {spec:?}", bytes.len());
            let offset = usize::try_from(spec.offset).expect("test files are small");
            let wanted = &contents[spec.file][offset..][..bytes.len()];
            if bytes != wanted {
                let wrong = bytes.iter().zip(wanted).position(|(byte, wanted)| byte != wanted);
                panic!("read {read} is wrong from byte {wrong:?} on: {spec:?}");
            }
        }
    }

    /// That every slot is either back or given up for good, which only a failed load may do.
    fn check_slots(&self) {
        let census = self.slab.census();
        let dropped = census.dropped;
        let expected = SlotCensus { free: self.free.len(), dropped, ..SlotCensus::default() };
        assert_eq!(census, expected, "a slot is in use after the end, or its token is lost");
        assert_eq!(self.free.len() + dropped, self.slab.slots());
        let returned =
            |(_, watches): &(_, Vec<PlaceWatch>)| watches.iter().all(PlaceWatch::is_returned);
        assert!(self.places.as_ref().is_none_or(returned), "a place is in use after the end");
    }

    /// Writes `value` over the last page of every slot. Nobody but a kernel that was not waited
    /// for can change it from now on, and would, for it fills slots whole; see
    /// [`Landed::is_painted`]. The last pages only, last slot first, to be there before it.
    pub fn paint(&mut self, value: u8) {
        for page in self.last_pages().rev() {
            // SAFETY: the load has ended, `self` holds the tokens that came back, in state free,
            // and the others are gone: nothing else in this process refers to the slab's bytes.
            unsafe { page.write_bytes(value, page_bytes()) };
        }
    }

    /// Whether the last page of every slot still holds `value`.
    #[must_use]
    pub fn is_painted(&self, value: u8) -> bool {
        self.last_pages().all(|page| {
            // SAFETY: as in `paint`; the bytes are initialised, being the kernel's zeroes at
            // least, and live as long as the slab.
            let page = unsafe { std::slice::from_raw_parts(page, page_bytes()) };
            page.iter().all(|&byte| byte == value)
        })
    }

    fn last_pages(&self) -> impl DoubleEndedIterator<Item = *mut u8> {
        let slot_bytes = self.slab.slot_bytes();
        let (region, slots) = match &self.places {
            Some((region, watches)) => (&**region, watches.len()),
            None => (&**self.slab.region(), self.slab.slots()),
        };
        (1..=slots).map(move |slot| region.at(slot * slot_bytes - page_bytes()))
    }
}

/// Reads of all of `files` by `access`, in pieces of `piece_bytes`, in file order. Direct ones
/// are rounded outward, past the end of the file where that is not aligned.
///
/// # Panics
/// If `piece_bytes` does not fit a file's direct alignment.
#[must_use]
pub fn cut(files: &[ModelFile], piece_bytes: u32, access: Access) -> Vec<ReadSpec> {
    let mut reads = Vec::new();
    for (file, model) in files.iter().enumerate() {
        let alignment = match (access, model.direct()) {
            (Access::Direct, Ok((_, alignment))) => alignment.offset,
            _ => Alignment::BYTE,
        };
        assert!(alignment.divides(piece_bytes.into()));
        let mut offset = 0;
        while offset < model.bytes() {
            let need = (model.bytes() - offset).min(piece_bytes.into());
            let bytes = alignment.up(need).expect("at most a piece");
            let narrow = |bytes: u64| u32::try_from(bytes).expect("at most a piece");
            let (bytes, need_bytes) = (narrow(bytes), narrow(need));
            reads.push(ReadSpec { file, offset, bytes, need_bytes, access });
            offset += need;
        }
    }
    reads
}

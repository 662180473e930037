//! What to read next, and what a completion means. No system call, no thread, no clock.
//!
//! A [`ReadSpec`] is bound to a slot by [`Schedule::start`], which yields the [`Op`] to perform;
//! [`Schedule::complete`] takes its result and says what follows: the read is done, the same slot
//! has another operation to perform, or everything stops. One read may take many operations:
//!
//! ```text
//!   read   offset                                   need              bytes
//!          ├─────── received ───────┼──── missing ───┤- - past EOF - - ┤
//!   op                              └▶ starts here, in the file and in the slot alike
//! ```
//!
//! The next operation always starts at `received`, whatever ended the last one (a short read, a
//! refusal, an interrupt), so no received byte is read again and none is skipped. A direct read
//! must start aligned: if a short one leaves `received` off the alignment, the rest of that one
//! read goes one rung down. What a refusal costs is decided in [`refusals`].

mod refusals;

use crate::failure::{FailureKind, ReadFailure};
use crate::feed::Feed;
use crate::ladder::{Access, Fallback, Performer, Step, StepAt};
use forebay_mem::Alignment;
use nix::errno::Errno;
use std::sync::Arc;

/// How often in a row an operation may be put off (`EAGAIN`, `EINTR`, `ECANCELED`) before it is an
/// error.
const TRIES_MAX: u32 = 10_000;

/// One read of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadSpec {
    /// Index of the file.
    pub file: usize,
    /// Where it starts; aligned for direct I/O if `access` is direct.
    pub offset: u64,
    /// Its length; aligned likewise, and so perhaps past the end of the file.
    pub bytes: u32,
    /// How many of these the file has: with that many received, the read is done. At least one
    /// and at most `bytes`.
    pub need_bytes: u32,
    /// The best way to perform it.
    pub access: Access,
}

/// One operation for an engine: `bytes` bytes from `offset` of the file to `slot_offset` of the
/// slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The slot it belongs to; also its identity, since a slot has one operation at a time.
    pub slot: usize,
    /// Index of the read.
    pub read: usize,
    /// Index of the file.
    pub file: usize,
    /// How to reach the bytes.
    pub access: Access,
    /// Where in the file.
    pub offset: u64,
    /// Where in the slot.
    pub slot_offset: u32,
    /// How many.
    pub bytes: u32,
    /// The kernel said "try again": the next try should be one that waits.
    pub patient: bool,
}

/// What follows a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The read is done: the slot holds its bytes.
    Done {
        /// Index of the read.
        read: usize,
        /// The read as it was asked for.
        spec: ReadSpec,
        /// How many bytes of the slot are valid (at least the read's `need_bytes`).
        bytes: u32,
    },
    /// The same slot has this to perform next.
    Again(Op),
    /// The load has failed or was stopped: perform nothing more.
    Stop,
}

/// A count of bytes for each access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByAccess([u64; 4]);

impl ByAccess {
    /// The bytes received by `access`.
    #[must_use]
    pub fn get(&self, access: Access) -> u64 {
        self.0[access.index()]
    }

    /// The bytes received in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    read: usize,
    spec: ReadSpec,
    received: u32,
    /// The access of the operation in flight.
    access: Access,
    /// Who has it in flight; not always who performs from here on.
    performer: Performer,
    /// This read alone is one rung below its file.
    lowered: bool,
    tries: u32,
    patient: bool,
}

/// What did not come, and would not by another access either, because of what lies there: or of
/// what lies beside it, where the kernel asked for both at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) read: usize,
    pub(crate) file: usize,
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
}

#[derive(Clone, Debug)]
struct FileState {
    direct_offset: Alignment,
    refused: [bool; 4],
    bytes: ByAccess,
}

/// Where the reads come from.
#[derive(Debug)]
enum Order {
    /// All are known from the start.
    Planned { reads: Arc<[ReadSpec]>, next: usize },
    /// They are asked for meanwhile.
    Fed(Feed),
}

/// The state of a load's reads.
#[derive(Debug)]
pub struct Schedule {
    order: Order,
    in_flight: usize,
    flights: Vec<Option<Flight>>,
    files: Vec<FileState>,
    performer: Performer,
    performer_required: bool,
    fallback: Fallback,
    steps: Vec<Step>,
    failure: Option<ReadFailure>,
    suspects: Vec<Suspect>,
    ops: u64,
    resubmitted: u64,
}

impl Schedule {
    /// A schedule of `reads`, in that order, over `slots` slots. `direct_offsets` holds the
    /// offset alignment of direct reads for each file.
    #[must_use]
    pub fn new(
        reads: Arc<[ReadSpec]>,
        direct_offsets: &[Alignment],
        slots: usize,
        performer: Performer,
        fallback: Fallback,
    ) -> Self {
        debug_assert!(reads.iter().all(|read| (1..=read.bytes).contains(&read.need_bytes)));
        let order = Order::Planned { reads, next: 0 };
        Self::of(order, direct_offsets, slots, performer, fallback)
    }

    /// A schedule of whatever `feed` is asked for, until it is closed; else as [`Schedule::new`].
    /// Reads bear the numbers that the feed was given with them.
    #[must_use]
    pub fn fed(
        feed: Feed,
        direct_offsets: &[Alignment],
        slots: usize,
        performer: Performer,
        fallback: Fallback,
    ) -> Self {
        Self::of(Order::Fed(feed), direct_offsets, slots, performer, fallback)
    }

    fn of(
        order: Order,
        direct_offsets: &[Alignment],
        slots: usize,
        performer: Performer,
        fallback: Fallback,
    ) -> Self {
        let state = |&direct_offset| FileState {
            direct_offset,
            refused: [false; 4],
            bytes: ByAccess::default(),
        };
        Self {
            order,
            in_flight: 0,
            flights: vec![None; slots],
            files: direct_offsets.iter().map(state).collect(),
            performer,
            performer_required: false,
            fallback,
            steps: Vec::new(),
            failure: None,
            suspects: Vec::new(),
            ops: 0,
            resubmitted: 0,
        }
    }

    /// The read that is started next, where that is known.
    #[must_use]
    pub fn next_read(&self) -> Option<usize> {
        match &self.order {
            Order::Planned { reads, next } => (*next < reads.len()).then_some(*next),
            Order::Fed(_) => None,
        }
    }

    /// Whether there is a read to start now.
    #[must_use]
    pub fn has_next(&self) -> bool {
        match &self.order {
            Order::Planned { reads, next } => *next < reads.len(),
            Order::Fed(feed) => !feed.is_empty(),
        }
    }

    /// Where its reads come from, if they are asked for meanwhile.
    #[must_use]
    pub fn feed(&self) -> Option<&Feed> {
        match &self.order {
            Order::Planned { .. } => None,
            Order::Fed(feed) => Some(feed),
        }
    }

    /// Binds the next read to `slot`. `None` if there is none now, or the load has stopped.
    ///
    /// # Panics
    /// If the slot has a read in flight: two owners would be a bug of the engine.
    pub fn start(&mut self, slot: usize) -> Option<Op> {
        if self.failure.is_some() {
            return None;
        }
        assert!(self.flights[slot].is_none(), "slot {slot} is in flight already");
        let (read, spec) = match &mut self.order {
            Order::Planned { reads, next } => {
                let read = *next;
                let spec = *reads.get(read)?;
                *next += 1;
                (read, spec)
            }
            Order::Fed(feed) => feed.next()?,
        };
        self.in_flight += 1;
        self.flights[slot] = Some(Flight {
            read,
            spec,
            received: 0,
            access: spec.access,
            performer: self.performer,
            lowered: false,
            tries: 0,
            patient: false,
        });
        let op = self.op(slot);
        if op.is_none() {
            self.land(slot);
        }
        op
    }

    /// The operation that `slot`'s read needs next; what an engine that takes over performs.
    /// `None` if nothing is bound to the slot or the load has stopped.
    pub fn op(&mut self, slot: usize) -> Option<Op> {
        let mut flight = self.flights[slot]?;
        if self.failure.is_some() {
            return None;
        }
        let spec = flight.spec;
        let offset = spec.offset + u64::from(flight.received);
        flight.performer = self.performer;
        flight.access = self.effective(&spec, &flight);
        let alignment = self.files[spec.file].direct_offset;
        if flight.access == Access::Direct && !alignment.divides(flight.received.into()) {
            let reason = format!(
                "a direct read came back short, {} bytes in: off the {}-byte alignment that \
                 another one would need",
                flight.received,
                alignment.bytes()
            );
            self.record(&flight, Errno::EINVAL, reason)?;
            flight.lowered = true;
            flight.access = self.effective(&spec, &flight);
        }
        if self.performer == Performer::UringPolled && flight.access != Access::Direct {
            let reason = "only direct reads can be polled for";
            self.leave_performer(Errno::EOPNOTSUPP, StepAt::Read, Some(offset), reason);
            if self.failure.is_some() {
                return None;
            }
            flight.performer = self.performer;
        }
        self.flights[slot] = Some(flight);
        let until = if flight.access == Access::Direct { spec.bytes } else { spec.need_bytes };
        Some(Op {
            slot,
            read: flight.read,
            file: spec.file,
            access: flight.access,
            offset,
            slot_offset: flight.received,
            bytes: until - flight.received,
            patient: flight.patient,
        })
    }

    /// Takes what became of `slot`'s operation: the bytes it received, or the errno.
    ///
    /// # Panics
    /// If nothing is bound to the slot.
    pub fn complete(&mut self, slot: usize, result: Result<u32, Errno>) -> Completion {
        let mut flight = self.flights[slot].expect("an engine completes only what it was given");
        self.ops += 1;
        if matches!(result, Err(errno) if is_of_a_place(errno)) && flight.access == Access::Direct {
            let Flight { read, spec, received, .. } = flight;
            let offset = spec.offset + u64::from(received);
            let bytes = spec.bytes - received;
            self.suspects.push(Suspect { read, file: spec.file, offset, bytes });
        }
        if self.failure.is_some() {
            self.land(slot);
            return Completion::Stop;
        }
        let spec = flight.spec;
        flight.patient = false;
        match result {
            Ok(0) => self.fail(&flight, FailureKind::EndOfFile),
            Ok(count) => {
                let count = count.min(spec.bytes - flight.received);
                flight.received += count;
                flight.tries = 0;
                self.files[spec.file].bytes.0[flight.access.index()] += u64::from(count);
                if flight.received >= spec.need_bytes {
                    self.land(slot);
                    return Completion::Done { read: flight.read, spec, bytes: flight.received };
                }
            }
            // ECANCELED is how a performer on its way out calls its operations back.
            Err(errno @ (Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED)) => {
                flight.tries += 1;
                flight.patient = errno == Errno::EAGAIN;
                if flight.tries > TRIES_MAX {
                    self.fail(&flight, FailureKind::Stalled(errno));
                }
            }
            Err(errno) => self.refused(&flight, errno),
        }
        self.flights[slot] = Some(flight);
        let Some(again) = self.op(slot) else {
            self.land(slot);
            return Completion::Stop;
        };
        self.resubmitted += 1;
        Completion::Again(again)
    }

    fn land(&mut self, slot: usize) {
        self.flights[slot] = None;
        self.in_flight -= 1;
    }

    /// Stops the load: `start` and `op` yield nothing more. The first cause stays.
    pub fn stop(&mut self, failure: ReadFailure) {
        self.failure.get_or_insert(failure);
    }

    /// Who is to perform the operations from here on.
    #[must_use]
    pub fn performer(&self) -> Performer {
        self.performer
    }

    /// Whether every read is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.in_flight == 0 && self.is_all_started()
    }

    /// Whether every read has been started, and no more will be asked for.
    #[must_use]
    pub fn is_all_started(&self) -> bool {
        match &self.order {
            Order::Planned { reads, next } => *next == reads.len(),
            Order::Fed(feed) => feed.is_over(),
        }
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&ReadFailure> {
        self.failure.as_ref()
    }

    /// The direct reads among which is what it stopped for, if it did for what lies somewhere.
    pub(crate) fn suspects(&self) -> &[Suspect] {
        match &self.failure {
            Some(ReadFailure { kind: FailureKind::Errno(errno), .. }) if is_of_a_place(*errno) => {
                &self.suspects
            }
            _ => &[],
        }
    }

    /// What it truly stopped for.
    pub(crate) fn stopped_for(&mut self, suspect: &Suspect, errno: Errno, offset: u64) {
        let (read, file) = (Some(suspect.read), Some(suspect.file));
        self.failure = Some(ReadFailure { kind: FailureKind::Errno(errno), read, file, offset });
    }

    /// The steps down so far, in the order they were taken.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The bytes received of `file`, by access.
    #[must_use]
    pub fn received(&self, file: usize) -> ByAccess {
        self.files[file].bytes
    }

    /// Operations performed, and how many of them continued a read rather than starting it.
    #[must_use]
    pub fn op_counts(&self) -> (u64, u64) {
        (self.ops, self.resubmitted)
    }

    /// The reads that were known from the start.
    #[must_use]
    pub fn reads(&self) -> &[ReadSpec] {
        match &self.order {
            Order::Planned { reads, .. } => reads,
            Order::Fed(_) => &[],
        }
    }

    fn fail(&mut self, flight: &Flight, kind: FailureKind) {
        let spec = flight.spec;
        let offset = spec.offset + u64::from(flight.received);
        self.stop(ReadFailure { kind, read: Some(flight.read), file: Some(spec.file), offset });
    }
}

/// Whether an errno tells of a place on a medium: it can't be read, or is not what was written.
pub(crate) fn is_of_a_place(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::ENODATA | Errno::EILSEQ | Errno::EREMOTEIO)
}

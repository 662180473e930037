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
//! read goes one rung down.

use crate::failure::{FailureKind, ReadFailure};
use crate::ladder::{Access, Fallback, Performer, Rung, Step, StepAt};
use forebay_mem::Alignment;
use nix::errno::Errno;
use std::sync::Arc;

/// How often in a row an operation may be put off (`EAGAIN`, `EINTR`) before it is an error.
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
    /// How many of these the file has: with that many received, the read is done.
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
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    read: usize,
    received: u32,
    /// The access of the operation in flight.
    access: Access,
    /// This read alone is one rung below its file.
    lowered: bool,
    tries: u32,
    patient: bool,
}

#[derive(Clone, Debug)]
struct FileState {
    direct_offset: Alignment,
    refused: [bool; 4],
    bytes: ByAccess,
}

/// The state of a load's reads.
#[derive(Debug)]
pub struct Schedule {
    reads: Arc<[ReadSpec]>,
    next: usize,
    done: usize,
    flights: Vec<Option<Flight>>,
    files: Vec<FileState>,
    performer: Performer,
    performer_required: bool,
    fallback: Fallback,
    steps: Vec<Step>,
    failure: Option<ReadFailure>,
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
        let state = |&direct_offset| FileState {
            direct_offset,
            refused: [false; 4],
            bytes: ByAccess::default(),
        };
        Self {
            reads,
            next: 0,
            done: 0,
            flights: vec![None; slots],
            files: direct_offsets.iter().map(state).collect(),
            performer,
            performer_required: false,
            fallback,
            steps: Vec::new(),
            failure: None,
            ops: 0,
            resubmitted: 0,
        }
    }

    /// Makes leaving the performer an error when fallbacks are forbidden: the user named it.
    pub fn require_performer(&mut self) {
        self.performer_required = true;
    }

    /// Binds the next read to `slot`. `None` if there is none left, or the load has stopped.
    ///
    /// # Panics
    /// If the slot has a read in flight: two owners would be a bug of the engine.
    pub fn start(&mut self, slot: usize) -> Option<Op> {
        if self.failure.is_some() || self.next == self.reads.len() {
            return None;
        }
        assert!(self.flights[slot].is_none(), "slot {slot} is in flight already");
        let read = self.next;
        self.next += 1;
        let access = self.reads[read].access;
        let flight = Flight { read, received: 0, access, lowered: false, tries: 0, patient: false };
        self.flights[slot] = Some(flight);
        self.op(slot)
    }

    /// The operation that `slot`'s read needs next; what an engine that takes over performs.
    /// `None` if nothing is bound to the slot or the load has stopped.
    pub fn op(&mut self, slot: usize) -> Option<Op> {
        let mut flight = self.flights[slot]?;
        if self.failure.is_some() {
            return None;
        }
        let spec = self.reads[flight.read];
        let offset = spec.offset + u64::from(flight.received);
        flight.access = self.effective(&spec, &flight);
        let alignment = self.files[spec.file].direct_offset;
        if flight.access == Access::Direct && !alignment.divides(flight.received.into()) {
            let reason = format!(
                "a direct read came back short, {} bytes in: off the {}-byte alignment that \
                 another one would need",
                flight.received,
                alignment.bytes()
            );
            self.record(&spec, Access::Direct, Access::DontCache, Errno::EINVAL, offset, reason)?;
            flight.lowered = true;
            flight.access = self.effective(&spec, &flight);
        }
        self.flights[slot] = Some(flight);
        self.ops += 1;
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
        if self.failure.is_some() {
            self.flights[slot] = None;
            return Completion::Stop;
        }
        let spec = self.reads[flight.read];
        flight.patient = false;
        match result {
            Ok(0) => self.fail(&flight, FailureKind::EndOfFile),
            Ok(count) => {
                let count = count.min(spec.bytes - flight.received);
                flight.received += count;
                flight.tries = 0;
                self.files[spec.file].bytes.0[flight.access.index()] += u64::from(count);
                if flight.received >= spec.need_bytes {
                    self.flights[slot] = None;
                    self.done += 1;
                    return Completion::Done { read: flight.read, bytes: flight.received };
                }
            }
            Err(errno @ (Errno::EINTR | Errno::EAGAIN)) => {
                flight.tries += 1;
                flight.patient = errno == Errno::EAGAIN;
                if flight.tries > TRIES_MAX {
                    self.fail(&flight, FailureKind::Stalled(errno));
                }
            }
            // A performer on its way out calls its operations back.
            Err(Errno::ECANCELED) => {}
            Err(errno) => self.refused(&flight, errno),
        }
        self.flights[slot] = Some(flight);
        self.resubmitted += 1;
        let again = self.op(slot);
        if again.is_none() {
            self.flights[slot] = None;
        }
        again.map_or(Completion::Stop, Completion::Again)
    }

    /// Stops the load: `start` and `op` yield nothing more. The first cause stays.
    pub fn stop(&mut self, failure: ReadFailure) {
        self.failure.get_or_insert(failure);
    }

    /// Takes a rung of one file away before the first read, because the open was refused.
    pub fn refuse_at_open(&mut self, file: usize, access: Access, errno: Errno, reason: &str) {
        let Some(to) = access.below() else { return };
        if self.fallback == Fallback::Forbidden {
            let kind = FailureKind::FallbackForbidden { errno, access, performer: self.performer };
            return self.stop(ReadFailure { kind, read: None, file: Some(file), offset: 0 });
        }
        self.files[file].refused[access.index()] = true;
        let (from, to) = (Rung::Access(access), Rung::Access(to));
        let reason = reason.to_owned();
        let at = StepAt::Open;
        self.steps.push(Step { file: Some(file), from, to, errno, at, offset: None, reason });
    }

    /// Records that an engine did without something it wanted for itself.
    pub fn note_setup(&mut self, from: Rung, to: Rung, errno: Errno, reason: &str) {
        let reason = reason.to_owned();
        let at = StepAt::Setup;
        self.steps.push(Step { file: None, from, to, errno, at, offset: None, reason });
    }

    /// Leaves the performer for the next one, because it can't be set up or refused a read.
    pub fn leave_performer(&mut self, errno: Errno, at: StepAt, offset: Option<u64>, reason: &str) {
        if self.performer == Performer::Threads || self.failure.is_some() {
            return;
        }
        if self.performer_required && self.fallback == Fallback::Forbidden {
            let (performer, access) = (self.performer, Access::Direct);
            let kind = FailureKind::FallbackForbidden { errno, access, performer };
            let offset = offset.unwrap_or(0);
            return self.stop(ReadFailure { kind, read: None, file: None, offset });
        }
        let (from, to) = (Rung::Performer(self.performer), Rung::Performer(Performer::Threads));
        let reason = reason.to_owned();
        self.steps.push(Step { file: None, from, to, errno, at, offset, reason });
        self.performer = Performer::Threads;
    }

    /// Who is to perform the operations from here on.
    #[must_use]
    pub fn performer(&self) -> Performer {
        self.performer
    }

    /// Whether every read is done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.reads.len()
    }

    /// Whether every read has been started.
    #[must_use]
    pub fn is_all_started(&self) -> bool {
        self.next == self.reads.len()
    }

    /// Why it stopped, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&ReadFailure> {
        self.failure.as_ref()
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

    /// Operations issued, and how many of them continued a read rather than starting it.
    #[must_use]
    pub fn op_counts(&self) -> (u64, u64) {
        (self.ops, self.resubmitted)
    }

    /// The reads of the plan.
    #[must_use]
    pub fn reads(&self) -> &[ReadSpec] {
        &self.reads
    }

    /// The best access that the file has not refused.
    fn effective(&self, spec: &ReadSpec, flight: &Flight) -> Access {
        let refused = &self.files[spec.file].refused;
        let mut access = spec.access;
        while refused[access.index()] || (flight.lowered && access == Access::Direct) {
            match access.below() {
                Some(below) => access = below,
                None => break,
            }
        }
        access
    }

    /// A refusal that another rung may not share, or an error that none would mend.
    fn refused(&mut self, flight: &Flight, errno: Errno) {
        let spec = self.reads[flight.read];
        let offset = spec.offset + u64::from(flight.received);
        let on_ring = self.performer == Performer::Uring;
        match errno {
            Errno::EPERM | Errno::ENOSYS if on_ring => {
                let reason = "io_uring may not read this file";
                self.leave_performer(errno, StepAt::Read, Some(offset), reason);
            }
            Errno::EINVAL | Errno::EFAULT | Errno::EOPNOTSUPP | Errno::EPERM | Errno::ENOSYS => {
                let state = &self.files[spec.file];
                if state.refused[flight.access.index()] {
                    return; // Another read of this file has taken the step already.
                }
                match flight.access.below() {
                    Some(to) => {
                        let reason = format!("{} read refused", flight.access.name());
                        let from = flight.access;
                        if self.record(&spec, from, to, errno, offset, reason).is_some() {
                            self.files[spec.file].refused[from.index()] = true;
                        }
                    }
                    None if on_ring => {
                        let reason = "even a buffered read was refused";
                        self.leave_performer(errno, StepAt::Read, Some(offset), reason);
                    }
                    None => self.fail(flight, FailureKind::Errno(errno)),
                }
            }
            _ => self.fail(flight, FailureKind::Errno(errno)),
        }
    }

    /// Records a step of access at a read; `None` if steps are forbidden, and the load stops.
    fn record(
        &mut self,
        spec: &ReadSpec,
        from: Access,
        to: Access,
        errno: Errno,
        offset: u64,
        reason: String,
    ) -> Option<()> {
        let file = Some(spec.file);
        if self.fallback == Fallback::Forbidden {
            let performer = self.performer;
            let kind = FailureKind::FallbackForbidden { errno, access: from, performer };
            self.stop(ReadFailure { kind, read: None, file, offset });
            return None;
        }
        let (from, to) = (Rung::Access(from), Rung::Access(to));
        let at = StepAt::Read;
        self.steps.push(Step { file, from, to, errno, at, offset: Some(offset), reason });
        Some(())
    }

    fn fail(&mut self, flight: &Flight, kind: FailureKind) {
        let spec = self.reads[flight.read];
        let offset = spec.offset + u64::from(flight.received);
        self.stop(ReadFailure { kind, read: Some(flight.read), file: Some(spec.file), offset });
    }
}

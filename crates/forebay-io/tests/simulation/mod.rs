//! A schedule driven with no system call: files of known bytes, slots that are plain vectors, and
//! a kernel that does whatever the script says.
//!
//! The simulated kernel is as nasty as the real one may be: whatever an operation was allowed to
//! write and did not report as received is scribbled over, so a schedule that takes a byte for
//! received which was not, or reads one again into a wrong place, leaves wrong bytes behind.

mod oracle;
mod plan;

pub(crate) use oracle::Oracle;
pub(crate) use plan::{Plan, SimulatedFile, plans};

use forebay_io::{
    Access, Completion, Errno, FailureKind, Fallback, Op, Performer, ReadFailure, ReadSpec,
    Schedule, StepAt,
};

/// What bytes nobody received look like.
const SCRIBBLE: u8 = 0xEE;

/// What becomes of one operation, or of the whole load in place of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Everything that the file has of it.
    Full,
    /// A part of it, in 65536ths of a full one, at whatever byte that is; at least one byte.
    Short(u16),
    /// A part of it that ends at a multiple of the file's direct alignment, where there is one.
    ShortAligned(u16),
    /// An errno, refusals and hard errors alike.
    Errno(Errno),
    /// No bytes: the file was cut short.
    EndOfFile,
    /// Somebody stops the load while the operation is in flight; then it completes in full.
    Stop,
    /// The ring stops answering while operations are in flight; this one is called back.
    LeaveRing,
}

/// A read that is bound to a slot.
struct Bound {
    read: usize,
    received: u32,
    /// How often each needed byte was delivered.
    deliveries: Vec<u8>,
    /// The last answer was "try again".
    patient: bool,
    state: State,
}

/// Where a bound read stands.
#[derive(Clone, Copy)]
enum State {
    InFlight(Op, Performer),
    /// Left over by the ring, to be taken up by the next performer.
    Carried,
}

/// What may happen next.
#[derive(Clone, Copy)]
enum Action {
    Start(usize),
    Resume(usize),
    Complete(usize),
}

/// One load.
pub(crate) struct Simulation<'a> {
    plan: &'a Plan,
    pub(crate) schedule: Schedule,
    oracle: Oracle,
    slots: Vec<Vec<u8>>,
    bound: Vec<Option<Bound>>,
    done: Vec<bool>,
}

impl<'a> Simulation<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        performer: Performer,
        fallback: Fallback,
        required: bool,
    ) -> Self {
        let alignments: Vec<_> = plan.files.iter().map(|file| file.alignment).collect();
        let reads = plan.reads.clone();
        let mut schedule = Schedule::new(reads, &alignments, plan.slots, performer, fallback);
        if required {
            schedule.require_performer();
        }
        Self {
            plan,
            schedule,
            oracle: Oracle::new(performer, fallback, required),
            slots: vec![vec![0; plan.slot_bytes()]; plan.slots],
            bound: (0..plan.slots).map(|_| None).collect(),
            done: vec![false; plan.reads.len()],
        }
    }

    /// Plays `script`, then lets everything succeed, and checks what is left at the end.
    pub(crate) fn run(mut self, script: &[(u8, Event)]) {
        for &(pick, event) in script {
            if !self.turn(pick.into(), event) {
                break;
            }
        }
        // With nothing in its way, a slot's read takes at most a second operation.
        let turns_max = 4 * (self.plan.reads.len() + self.plan.slots) + 4;
        let ended = (0..turns_max).any(|turn| !self.turn(turn, Event::Full));
        assert!(ended, "the load does not end");
        self.check_end();
    }

    /// One thing happens; `false` if nothing can.
    pub(crate) fn turn(&mut self, pick: usize, event: Event) -> bool {
        let actions = self.actions();
        if actions.is_empty() {
            return false;
        }
        match actions[pick % actions.len()] {
            Action::Start(slot) => self.start(slot),
            Action::Resume(slot) => self.resume(slot),
            Action::Complete(slot) => self.complete(slot, event),
        }
        true
    }

    fn actions(&self) -> Vec<Action> {
        let ring_busy = self.bound.iter().flatten().any(
            |bound| matches!(bound.state, State::InFlight(_, by) if by != self.schedule.performer()),
        );
        let may_start = !self.schedule.is_all_started() && !ring_busy;
        let failed = self.schedule.failure().is_some();
        let action = |(slot, bound): (usize, &Option<Bound>)| match bound {
            None if may_start && !failed => Some(Action::Start(slot)),
            Some(Bound { state: State::InFlight(..), .. }) => Some(Action::Complete(slot)),
            Some(Bound { state: State::Carried, .. }) if !ring_busy && !failed => {
                Some(Action::Resume(slot))
            }
            _ => None,
        };
        self.bound.iter().enumerate().filter_map(action).collect()
    }

    pub(crate) fn start(&mut self, slot: usize) {
        let by = self.schedule.performer();
        let read = self.schedule.next_read().expect("a read is left");
        self.oracle.goes_on(&self.plan.reads[read], read);
        let started = self.schedule.start(slot);
        self.oracle.check(&self.schedule);
        let Some(op) = started else {
            assert!(self.schedule.failure().is_some(), "nothing was started for no reason");
            return;
        };
        assert!(!self.done[op.read], "read {} is started a second time", op.read);
        let spec = self.plan.reads[op.read];
        self.bound[slot] = Some(Bound {
            read: op.read,
            received: 0,
            deliveries: vec![0; spec.need_bytes as usize],
            patient: false,
            state: self.handed_out(op, by),
        });
        self.check_op(slot, &op);
    }

    /// An operation in the hands of `by`, who performs it if he still is to.
    fn handed_out(&self, op: Op, by: Performer) -> State {
        match self.schedule.performer() == by {
            true => State::InFlight(op, by),
            false => State::Carried,
        }
    }

    fn resume(&mut self, slot: usize) {
        let op = self.schedule.op(slot).expect("a carried slot has something left to read");
        let performer = self.schedule.performer();
        self.bound_mut(slot).state = State::InFlight(op, performer);
        self.check_op(slot, &op);
    }

    pub(crate) fn complete(&mut self, slot: usize, event: Event) {
        let State::InFlight(op, by) = self.bound_mut(slot).state else {
            panic!("slot {slot} has nothing in flight")
        };
        if matches!(event, Event::Stop) {
            self.schedule.stop(ReadFailure::general(FailureKind::Cancelled));
            self.oracle.stop(FailureKind::Cancelled);
        }
        if matches!(event, Event::LeaveRing) {
            self.schedule.leave_performer(Errno::EBADR, StepAt::Read, None, "it is gone");
            self.oracle.leave(Errno::EBADR);
        }
        let failed = self.schedule.failure().is_some();
        let result = self.perform(slot, &op, event);
        let completion = self.schedule.complete(slot, result);
        if failed {
            assert_eq!(completion, Completion::Stop, "nothing is issued after a failure");
            self.bound[slot] = None;
            return self.check_stopped(slot);
        }
        let spec = self.plan.reads[op.read];
        let alignment = self.plan.files[op.file].alignment;
        self.oracle.completed(&spec, alignment, &op, by, result);
        if op.slot_offset + result.unwrap_or(0) < spec.need_bytes {
            self.oracle.goes_on(&spec, op.read);
        }
        self.oracle.check(&self.schedule);
        match completion {
            Completion::Done { read, bytes, .. } => self.finish(slot, read, bytes),
            Completion::Again(next) => {
                self.check_op(slot, &next);
                self.bound_mut(slot).state = self.handed_out(next, by);
            }
            Completion::Stop => {
                assert!(self.schedule.failure().is_some(), "stopped for no reason");
                self.bound[slot] = None;
                self.check_stopped(slot);
            }
        }
    }

    /// What the kernel does: writes what it reports, scribbles over the rest.
    fn perform(&mut self, slot: usize, op: &Op, event: Event) -> Result<u32, Errno> {
        let file = &self.plan.files[op.file];
        let file_bytes = u32::try_from(file.contents.len()).unwrap();
        let first = u32::try_from(op.offset).unwrap();
        let full = file_bytes.saturating_sub(first).min(op.bytes);
        assert!(full > 0, "an operation that the file has nothing for: {op:?}");
        let short = |part: u16| {
            let bytes = (u64::from(full) * u64::from(part)) >> 16;
            u32::try_from(bytes.max(1)).expect("not more than a full one")
        };
        let result = match event {
            Event::Full | Event::Stop => Ok(full),
            Event::Short(part) => Ok(short(part)),
            Event::ShortAligned(part) => {
                let aligned = file.alignment.down(short(part).into());
                Ok(if aligned == 0 { full } else { u32::try_from(aligned).unwrap() })
            }
            Event::Errno(errno) => Err(errno),
            Event::EndOfFile => Ok(0),
            Event::LeaveRing => Err(Errno::ECANCELED),
        };
        let count = result.unwrap_or(0) as usize;
        let (from, until) = (op.slot_offset as usize, (op.slot_offset + op.bytes) as usize);
        self.slots[slot][from..until].fill(SCRIBBLE);
        let source = &file.contents[first as usize..][..count];
        self.slots[slot][from..from + count].copy_from_slice(source);
        let bound = self.bound_mut(slot);
        bound.patient = result == Err(Errno::EAGAIN);
        bound.received += result.unwrap_or(0);
        for deliveries in bound.deliveries.iter_mut().skip(from).take(count) {
            *deliveries += 1;
            assert_eq!(*deliveries, 1, "a byte of read {} came twice: {op:?}", bound.read);
        }
        result
    }

    fn finish(&mut self, slot: usize, read: usize, bytes: u32) {
        let bound = self.bound[slot].take().expect("it was in flight");
        let spec = self.plan.reads[read];
        assert_eq!(read, bound.read);
        assert_eq!(bytes, bound.received);
        assert!(bytes >= spec.need_bytes);
        assert!(bound.deliveries.iter().all(|&times| times == 1), "a byte was skipped");
        let offset = usize::try_from(spec.offset).unwrap();
        let wanted = &self.plan.files[spec.file].contents[offset..][..bytes as usize];
        assert!(self.slots[slot][..bytes as usize] == *wanted, "read {read} holds wrong bytes");
        assert!(!std::mem::replace(&mut self.done[read], true), "read {read} is done twice");
    }

    /// That `op` is what the read in `slot` lacks, in a shape that its access allows.
    fn check_op(&self, slot: usize, op: &Op) {
        let bound = self.bound[slot].as_ref().expect("an operation belongs to a bound slot");
        let spec = self.plan.reads[bound.read];
        assert_eq!((op.slot, op.read, op.file), (slot, bound.read, spec.file));
        assert_eq!(op.slot_offset, bound.received, "it starts where the last one ended");
        assert_eq!(op.offset, spec.offset + u64::from(op.slot_offset));
        assert_eq!(op.patient, bound.patient);
        let end = op.slot_offset + op.bytes;
        assert!(op.bytes > 0 && end <= spec.bytes && end as usize <= self.plan.slot_bytes());
        assert!(self.schedule.failure().is_none(), "nothing is issued after a failure");
        assert!(self.oracle.allows(&spec, op.access), "{op:?} was refused before");
        let polled = self.schedule.performer() == Performer::UringPolled;
        assert!(!polled || op.access == Access::Direct, "{op:?} can't be polled for");
        if op.access == Access::Direct {
            let alignment = self.plan.files[op.file].alignment;
            for value in [op.offset, op.bytes.into(), op.slot_offset.into()] {
                assert!(alignment.divides(value), "a misaligned direct read: {op:?}");
            }
        } else {
            assert!(end <= spec.need_bytes, "a buffered read past what is needed: {op:?}");
        }
    }

    /// That a failed load yields nothing more, whatever is asked.
    fn check_stopped(&mut self, slot: usize) {
        assert_eq!(self.schedule.op(slot), None);
        assert_eq!(self.schedule.start(slot), None);
    }

    fn check_end(&self) {
        self.oracle.check(&self.schedule);
        if self.schedule.failure().is_some() {
            return;
        }
        assert!(self.schedule.is_done() && self.schedule.is_all_started());
        assert!(self.done.iter().all(|&done| done));
        let needed: u64 = self.plan.reads.iter().map(|read| u64::from(read.need_bytes)).sum();
        let received = (0..self.plan.files.len()).map(|file| {
            let bytes = self.schedule.received(file);
            Access::ALL.map(|access| bytes.get(access)).iter().sum::<u64>()
        });
        assert!(received.sum::<u64>() >= needed);
        let (ops, resubmitted) = self.schedule.op_counts();
        assert_eq!(ops, resubmitted + self.plan.reads.len() as u64);
    }

    fn bound_mut(&mut self, slot: usize) -> &mut Bound {
        self.bound[slot].as_mut().expect("the slot is bound")
    }

    /// What the read in `slot` is about to do; for tests that script a load by hand.
    pub(crate) fn in_flight(&self, slot: usize) -> Option<Op> {
        match self.bound[slot].as_ref()?.state {
            State::InFlight(op, _) => Some(op),
            State::Carried => None,
        }
    }

    /// Whether `read` was delivered whole.
    pub(crate) fn is_done(&self, read: usize) -> bool {
        self.done[read]
    }
}

/// A read of `bytes` bytes, all of which the file has.
pub(crate) fn whole(file: usize, offset: u64, bytes: u32, access: Access) -> ReadSpec {
    ReadSpec { file, offset, bytes, need_bytes: bytes, access }
}

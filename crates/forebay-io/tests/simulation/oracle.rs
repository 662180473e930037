//! What a load must say about itself: which steps, which failure.
//!
//! This is design decision 1 once more, told by what has happened rather than by what to do next:
//! it knows nothing of slots, and holds no byte.

use forebay_io::{Access, Errno, FailureKind, Fallback, Op, Performer, ReadSpec, Rung, Schedule};
use forebay_mem::Alignment;
use std::collections::HashSet;

/// A step, without its words.
type BareStep = (Option<usize>, Rung, Rung, Errno);

pub(crate) struct Oracle {
    performer: Performer,
    fallback: Fallback,
    required: bool,
    refused: HashSet<(usize, &'static str)>,
    /// Reads that are one rung below their file, with what they have received.
    lowered: HashSet<usize>,
    steps: Vec<BareStep>,
    failure: Option<FailureKind>,
}

impl Oracle {
    pub(crate) fn new(performer: Performer, fallback: Fallback, required: bool) -> Self {
        Self {
            performer,
            fallback,
            required,
            refused: HashSet::new(),
            lowered: HashSet::new(),
            steps: Vec::new(),
            failure: None,
        }
    }

    pub(crate) fn stop(&mut self, kind: FailureKind) {
        self.failure.get_or_insert(kind);
    }

    /// The ring is left, unless it already was.
    pub(crate) fn leave(&mut self, errno: Errno) {
        if self.performer == Performer::Threads || self.failure.is_some() {
            return;
        }
        let to = match self.performer {
            Performer::UringPolled => Performer::Uring,
            _ => Performer::Threads,
        };
        if self.required && self.fallback == Fallback::Forbidden {
            // Which access a whole engine is refused for means nothing, so it is not compared.
            return self.stop(forbidden(errno, Access::Direct, self.performer));
        }
        let from = self.performer;
        self.steps.push((None, Rung::Performer(from), Rung::Performer(to), errno));
        self.performer = to;
    }

    /// `op`, performed by `by`, came back with `result`.
    pub(crate) fn completed(
        &mut self,
        spec: &ReadSpec,
        alignment: Alignment,
        op: &Op,
        by: Performer,
        result: Result<u32, Errno>,
    ) {
        match result {
            Ok(0) => self.stop(FailureKind::EndOfFile),
            Ok(count) => {
                let received = op.slot_offset + count;
                let is_direct = self.best(spec, op.read) == Access::Direct;
                let is_aligned = alignment.divides(received.into());
                if received < spec.need_bytes && is_direct && !is_aligned {
                    self.step_down(op.file, Access::Direct, Errno::EINVAL);
                    self.lowered.insert(op.read);
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ECANCELED) => {}
            Err(
                errno @ (Errno::EINVAL
                | Errno::EFAULT
                | Errno::EOPNOTSUPP
                | Errno::EPERM
                | Errno::ENOSYS),
            ) => self.refused(op, by, errno),
            Err(errno) => self.stop(FailureKind::Errno(errno)),
        }
    }

    /// A read goes on, or begins: nothing but direct ones can be polled for.
    pub(crate) fn goes_on(&mut self, spec: &ReadSpec, read: usize) {
        if self.performer == Performer::UringPolled && self.best(spec, read) != Access::Direct {
            self.leave(Errno::EOPNOTSUPP);
        }
    }

    fn refused(&mut self, op: &Op, by: Performer, errno: Errno) {
        if by != self.performer {
            return; // What the ring refused on its way out, the threads may well be granted.
        }
        let polls = by == Performer::UringPolled;
        let performer_refused =
            matches!(errno, Errno::EPERM | Errno::ENOSYS) || (polls && errno == Errno::EOPNOTSUPP);
        let is_last = op.access == Access::Buffered;
        if by.is_ring() && (performer_refused || is_last) {
            self.leave(errno);
        } else if is_last {
            self.stop(FailureKind::Errno(errno));
        } else if !self.refused.contains(&(op.file, op.access.name())) {
            self.step_down(op.file, op.access, errno);
            self.refused.insert((op.file, op.access.name()));
        }
    }

    /// The file, or one read of it, leaves `from` for the next rung that is not refused already.
    fn step_down(&mut self, file: usize, from: Access, errno: Errno) {
        if self.fallback == Fallback::Forbidden {
            return self.stop(forbidden(errno, from, self.performer));
        }
        let to = self.next_below(file, from);
        self.steps.push((Some(file), Rung::Access(from), Rung::Access(to), errno));
    }

    fn next_below(&self, file: usize, from: Access) -> Access {
        let below = from.below().expect("the last rung is not left");
        match self.is_refused(file, below) {
            true => self.next_below(file, below),
            false => below,
        }
    }

    /// By the file, or because the runtime of the performer has no flag for it.
    fn is_refused(&self, file: usize, access: Access) -> bool {
        let lacks = (self.performer, access) == (Performer::TokioUring, Access::DontCache);
        lacks || self.refused.contains(&(file, access.name()))
    }

    /// The access that a read has now.
    fn best(&self, spec: &ReadSpec, read: usize) -> Access {
        let is_lowered = self.lowered.contains(&read) && spec.access == Access::Direct;
        match is_lowered || self.is_refused(spec.file, spec.access) {
            true => self.next_below(spec.file, spec.access),
            false => spec.access,
        }
    }

    /// Whether a read may be performed by `access`: on its ladder, and not refused.
    pub(crate) fn allows(&self, spec: &ReadSpec, access: Access) -> bool {
        let ladder = std::iter::successors(Some(spec.access), |access| access.below());
        let on_ladder = ladder.into_iter().any(|rung| rung == access);
        on_ladder && !self.is_refused(spec.file, access)
    }

    /// That the schedule says the same.
    pub(crate) fn check(&self, schedule: &Schedule) {
        let steps: Vec<BareStep> = schedule
            .steps()
            .iter()
            .map(|step| (step.file, step.from, step.to, step.errno))
            .collect();
        assert_eq!(steps, self.steps);
        assert_eq!(schedule.failure().map(|failure| &failure.kind), self.failure.as_ref());
        if self.failure.is_none() {
            assert_eq!(schedule.performer(), self.performer);
        }
        if self.fallback == Fallback::Forbidden {
            let is_access = |step: &BareStep| matches!(step.1, Rung::Access(_));
            assert!(!steps.iter().any(is_access), "a forbidden step was taken");
        }
    }
}

fn forbidden(errno: Errno, access: Access, performer: Performer) -> FailureKind {
    FailureKind::FallbackForbidden { errno, access, performer }
}

//! What a refusal costs: which rung is left, for what, and that it is said.
//!
//! ```text
//!   EINVAL EFAULT EOPNOTSUPP   the file leaves this access for the best one below that it has not
//!                              refused; from the last one, the load leaves the ring
//!   EPERM ENOSYS               on a ring: the load leaves it; on threads: as above
//!   EOPNOTSUPP                 where completions are polled for: the load leaves that alone
//!   a short direct read that   this one read leaves direct access, the file does not
//!   ends off the alignment
//! ```
//!
//! Many operations are in flight when the first refusal comes, and the others will be refused for
//! the same reason. A step is therefore taken, and recorded, only by a refusal of the rung that
//! the file (or the load) still stands on; the later ones only send their operation down after it.

use super::{Flight, Schedule};
use crate::failure::{FailureKind, ReadFailure};
use crate::ladder::{Access, Fallback, Performer, Rung, Step, StepAt};
use crate::schedule::ReadSpec;
use nix::errno::Errno;

impl Schedule {
    /// Makes leaving the performer an error when fallbacks are forbidden: the user named it.
    pub fn require_performer(&mut self) {
        self.performer_required = true;
    }

    /// Takes a rung of one file away before the first read, because the open was refused. Once is
    /// enough, twice is harmless.
    pub fn refuse_at_open(&mut self, file: usize, access: Access, errno: Errno, reason: &str) {
        if self.files[file].refused[access.index()] {
            return;
        }
        let Some(to) = self.rung_below(file, access) else { return };
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
        let Some(below) = self.performer.below().filter(|_| self.failure.is_none()) else { return };
        if self.performer_required && self.fallback == Fallback::Forbidden {
            let (performer, access) = (self.performer, Access::Direct);
            let kind = FailureKind::FallbackForbidden { errno, access, performer };
            let offset = offset.unwrap_or(0);
            return self.stop(ReadFailure { kind, read: None, file: None, offset });
        }
        let (from, to) = (Rung::Performer(self.performer), Rung::Performer(below));
        let reason = reason.to_owned();
        self.steps.push(Step { file: None, from, to, errno, at, offset, reason });
        self.performer = below;
    }

    /// The best access that the file has not refused.
    pub(super) fn effective(&self, spec: &ReadSpec, flight: &Flight) -> Access {
        let is_refused = self.is_refused(spec.file, spec.access);
        if is_refused || (flight.lowered && spec.access == Access::Direct) {
            return self.rung_below(spec.file, spec.access).unwrap_or(spec.access);
        }
        spec.access
    }

    /// The best access below `access` that the file has not refused; the last one never is.
    fn rung_below(&self, file: usize, access: Access) -> Option<Access> {
        std::iter::successors(access.below(), |rung| rung.below())
            .find(|rung| !self.is_refused(file, *rung))
    }

    /// By the file, or because whoever performs can't ask for it.
    fn is_refused(&self, file: usize, access: Access) -> bool {
        self.performer.lacks(access) || self.files[file].refused[access.index()]
    }

    /// A refusal that another rung may not share, or an error that none would mend.
    pub(super) fn refused(&mut self, flight: &Flight, errno: Errno) {
        let spec = flight.spec;
        let offset = spec.offset + u64::from(flight.received);
        let on_ring = self.performer.is_ring();
        match errno {
            // Said by a performer that has been left since: the next one gets its own try.
            Errno::EINVAL | Errno::EFAULT | Errno::EOPNOTSUPP | Errno::EPERM | Errno::ENOSYS
                if flight.performer != self.performer => {}
            Errno::EOPNOTSUPP if self.performer == Performer::UringPolled => {
                let reason = "the device has no queues that can be polled";
                self.leave_performer(errno, StepAt::Read, Some(offset), reason);
            }
            Errno::EPERM | Errno::ENOSYS if on_ring => {
                let reason = "io_uring may not read this file";
                self.leave_performer(errno, StepAt::Read, Some(offset), reason);
            }
            Errno::EINVAL | Errno::EFAULT | Errno::EOPNOTSUPP | Errno::EPERM | Errno::ENOSYS => {
                let from = flight.access;
                if self.files[spec.file].refused[from.index()] {
                    return; // Another read of this file has taken the step already.
                }
                if from.below().is_some() {
                    let reason = format!("{} read refused", from.name());
                    if self.record(flight, errno, reason).is_some() {
                        self.files[spec.file].refused[from.index()] = true;
                    }
                } else if on_ring {
                    let reason = "even a buffered read was refused";
                    self.leave_performer(errno, StepAt::Read, Some(offset), reason);
                } else {
                    self.fail(flight, FailureKind::Errno(errno));
                }
            }
            _ => self.fail(flight, FailureKind::Errno(errno)),
        }
    }

    /// Records a step down from the access of `flight`'s operation; `None` if there is none to
    /// take or steps are forbidden, and the load stops.
    pub(super) fn record(&mut self, flight: &Flight, errno: Errno, reason: String) -> Option<()> {
        let spec = flight.spec;
        let access = flight.access;
        if self.fallback == Fallback::Forbidden {
            let performer = self.performer;
            self.fail(flight, FailureKind::FallbackForbidden { errno, access, performer });
            return None;
        }
        let (from, to) = (Rung::Access(access), Rung::Access(self.rung_below(spec.file, access)?));
        let offset = Some(spec.offset + u64::from(flight.received));
        let at = StepAt::Read;
        self.steps.push(Step { file: Some(spec.file), from, to, errno, at, offset, reason });
        Some(())
    }
}

//! The cases of the conformance suite.

pub(crate) mod ends;
pub(crate) mod faults;
pub(crate) mod lab;
pub(crate) mod sizes;

use forebay_cuda_emulator::Emulator;
use forebay_io::{
    Access, Errno, FailureKind, Fallback, ModelFile, Performer, ReadFailure, Rung, Step,
};
use forebay_tests::{Landed, Load, Scratch, cut};
use std::sync::{Arc, Once};

/// The piece that most cases read at once: more than a block, less than a file.
pub(crate) const PIECE_BYTES: u32 = 64 << 10;

/// An engine, and the rung that it begins on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mount {
    pub(crate) performer: Performer,
    pub(crate) access: Access,
    /// Where its bytes go.
    pub(crate) to: Destination,
}

/// Where the bytes of a read go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Into slots.
    Slots,
    /// The same, by threads of the kernel.
    SlotsByWorkers,
    /// The same, by a task of the caller's runtime.
    SlotsOfTask,
    /// Straight into place.
    Places,
    /// Through slots to a CUDA device, which is emulated.
    Device,
}

impl Mount {
    /// Files of the lengths `bytes`; `None`, with a word about it, where this machine can't read
    /// them this way.
    pub(crate) fn files(self, bytes: &[usize]) -> Option<(Scratch, Arc<[ModelFile]>)> {
        let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), bytes);
        let files = scratch.open();
        let probe = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &[8192]);
        let mut load = self.load(&probe.open(), 8192);
        load.fallback = Fallback::Forbidden;
        let schedule = load.run().outcome.schedule;
        let refusal = match (schedule.failure(), schedule.steps()) {
            (Some(failure), _) => failure.to_string(),
            // Left, but for another one: without a word from the user that is no failure.
            (None, [step, ..]) if matches!(step.from, Rung::Performer(_)) => step.to_string(),
            (None, _) => return Some((scratch, files)),
        };
        eprintln!("SKIPPED on {self:?}, which {:?} refuses: {refusal}", scratch.folder());
        None
    }

    /// A load of all of `files` in pieces of `piece_bytes`.
    pub(crate) fn load(self, files: &Arc<[ModelFile]>, piece_bytes: u32) -> Load {
        let reads = cut(files, piece_bytes, self.access);
        let mut load = Load::new(Arc::clone(files), reads, self.performer);
        load.in_place = self.to == Destination::Places;
        load.as_task = self.to == Destination::SlotsOfTask;
        load.buffered_by_workers = self.to == Destination::SlotsByWorkers;
        load.to_device = self.to == Destination::Device;
        if load.to_device {
            static INSTALLED: Once = Once::new();
            // Slower than the reads, so that slots are waited for.
            INSTALLED.call_once(|| Emulator::new().upload_bytes_per_s(1e9).install());
        }
        load
    }

    /// The rung below `access`.
    pub(crate) fn below(self, access: Access) -> Option<Access> {
        match (self.performer, access) {
            // Its runtime has no flag for what lies between.
            (Performer::TokioUring, Access::Direct) => Some(Access::Buffered),
            _ => access.below(),
        }
    }

    /// The one step that a refusal with `errno` of the first rung costs; `None` if it was the
    /// last one.
    pub(crate) fn first_step(self, errno: Errno) -> Option<(Rung, Rung)> {
        let below = self.performer.below().unwrap_or(self.performer);
        let performer = (Rung::Performer(self.performer), Rung::Performer(below));
        match (self.performer.is_ring(), errno, self.below(self.access)) {
            (true, Errno::EPERM | Errno::ENOSYS, _) => Some(performer),
            (true, Errno::EOPNOTSUPP, _) if self.performer == Performer::UringPolled => {
                Some(performer)
            }
            (_, _, Some(below)) => Some((Rung::Access(self.access), Rung::Access(below))),
            (true, _, None) => Some(performer),
            (false, _, None) => None,
        }
    }
}

/// Where a step led from and to.
pub(crate) fn rungs(step: &Step) -> (Rung, Rung) {
    (step.from, step.to)
}

/// The failure of a load that must have one.
pub(crate) fn failure(landed: &Landed) -> &ReadFailure {
    landed.outcome.schedule.failure().expect("it must fail")
}

/// That the load failed by `kind`, and that nothing that did arrive is wrong.
pub(crate) fn expect_failure<'a>(
    landed: &'a Landed,
    scratch: &Scratch,
    kind: &FailureKind,
) -> &'a ReadFailure {
    landed.expect_right(scratch.contents());
    let failure = failure(landed);
    assert_eq!(failure.kind, *kind, "steps: {:?}", landed.outcome.schedule.steps());
    failure
}

//! Something goes wrong, and the load gets over it, or says which rung it could not leave.

use super::{Mount, PIECE_BYTES, expect_failure, rungs};
use forebay_io::{Access, Errno, FailureKind, Fallback, Performer};
use forebay_tests::{Answer, Landed, Rule, Scratch, Script};
use std::sync::atomic::Ordering;

/// Two files, the first with an odd tail.
const BYTES: [usize; 2] = [700_001, 1 << 19];
/// A part of a piece after which a direct read can go on.
const ALIGNED_PART: u32 = 8192;

/// Loads [`BYTES`] under `script`, which must have struck.
fn under(mount: Mount, script: Script) -> Option<(Scratch, Landed)> {
    let (scratch, files) = mount.files(&BYTES)?;
    let changed = script.changed();
    let landed = mount.load(&files, PIECE_BYTES).with_fault(script).run();
    assert!(changed.load(Ordering::Relaxed) > 0, "the script never struck");
    Some((scratch, landed))
}

pub(crate) fn short_and_aligned(mount: Mount) {
    let rule = Rule::new(Answer::Short(ALIGNED_PART));
    let Some((scratch, landed)) = under(mount, Script::new(rule)) else { return };
    landed.expect_whole(scratch.contents());
    assert!(landed.read_steps().is_empty(), "{:?}", landed.read_steps());
}

pub(crate) fn short_and_odd(mount: Mount) {
    let rule = Rule::new(Answer::Short(5001)).only(|op| op.slot_offset == 0 && op.read % 3 == 1);
    let Some((scratch, landed)) = under(mount, Script::new(rule)) else { return };
    landed.expect_whole(scratch.contents());
    // One read in three could not go on directly; the file can.
    let reads = landed.outcome.schedule.reads().len();
    let lowered = if mount.access == Access::Direct { (reads + 1) / 3 } else { 0 };
    assert_eq!(landed.read_steps().len(), lowered, "{:?}", landed.read_steps());
}

pub(crate) fn short_at_random(mount: Mount) {
    for seed in 0..10 {
        let rng = fastrand::Rng::with_seed(seed);
        let script = Script::new(Rule::new(Answer::AnyShort(rng)).times(300));
        let Some((scratch, landed)) = under(mount, script) else { return };
        landed.expect_whole(scratch.contents());
    }
}

/// One completion in the middle is refused: one step, and every byte.
fn one_refusal(mount: Mount, errno: Errno) {
    let rule = Rule::new(Answer::Errno(errno)).after(5).times(1);
    let Some((scratch, landed)) = under(mount, Script::new(rule)) else { return };
    match mount.first_step(errno) {
        Some(expected) => {
            landed.expect_whole(scratch.contents());
            let steps = landed.read_steps();
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert_eq!((rungs(steps[0]), steps[0].errno), (expected, errno));
            assert!(steps[0].offset.is_some());
        }
        None => {
            let failure = expect_failure(&landed, &scratch, &FailureKind::Errno(errno));
            let spec = landed.outcome.schedule.reads()[failure.read.expect("it was a read")];
            assert_eq!((failure.file, failure.offset), (Some(spec.file), spec.offset));
        }
    }
}

pub(crate) fn einval(mount: Mount) {
    one_refusal(mount, Errno::EINVAL);
}

pub(crate) fn efault(mount: Mount) {
    one_refusal(mount, Errno::EFAULT);
}

pub(crate) fn eopnotsupp(mount: Mount) {
    one_refusal(mount, Errno::EOPNOTSUPP);
}

pub(crate) fn eperm(mount: Mount) {
    one_refusal(mount, Errno::EPERM);
}

pub(crate) fn enosys(mount: Mount) {
    one_refusal(mount, Errno::ENOSYS);
}

/// What a filter that forbids reads on the ring does to all of those in flight. The load leaves
/// the ring once, and the files keep the access that the threads are granted.
pub(crate) fn eperm_from_all_in_flight(mount: Mount) {
    let in_flight = 4;
    let rule = Rule::new(Answer::Errno(Errno::EPERM)).times(in_flight);
    let Some((scratch, landed)) = under(mount, Script::new(rule)) else { return };
    if mount.performer == Performer::Threads {
        // Threads have nobody below them: the accesses are walked down instead.
        return landed.expect_right(scratch.contents());
    }
    landed.expect_whole(scratch.contents());
    let steps: Vec<_> = landed.read_steps().into_iter().map(rungs).collect();
    assert_eq!(steps, [mount.first_step(Errno::EPERM).expect("there are threads")]);
    let schedule = &landed.outcome.schedule;
    let received = schedule.received(0).get(mount.access) + schedule.received(1).get(mount.access);
    assert_eq!(received, (BYTES[0] + BYTES[1]) as u64, "all of it the way it was meant");
}

fn storm(mount: Mount, errno: Errno) {
    // More than any one read may be put off in a row, spread over all of them.
    let rule = Rule::new(Answer::Errno(errno)).times(2000);
    let Some((scratch, landed)) = under(mount, Script::new(rule)) else { return };
    landed.expect_whole(scratch.contents());
    assert!(landed.read_steps().is_empty(), "{:?}", landed.read_steps());
    assert!(landed.outcome.schedule.op_counts().1 >= 2000);
}

pub(crate) fn interrupted_all_the_time(mount: Mount) {
    storm(mount, Errno::EINTR);
}

pub(crate) fn put_off_all_the_time(mount: Mount) {
    storm(mount, Errno::EAGAIN);
}

/// Design decision 1, on every engine: after a short read, a refusal. A known loader refilled the
/// buffer from its start then, and loaded weights that were silently wrong.
pub(crate) fn short_then_efault(mount: Mount) {
    let read = 3;
    let short = Rule::new(Answer::Short(ALIGNED_PART))
        .only(move |op| op.read == read && op.slot_offset == 0);
    let efault = Rule::new(Answer::Errno(Errno::EFAULT))
        .only(move |op| op.read == read && op.slot_offset == ALIGNED_PART)
        .times(1);
    let Some((scratch, landed)) = under(mount, Script::new(short).and(efault)) else { return };
    let reached = u64::from(3 * PIECE_BYTES + ALIGNED_PART);
    match mount.first_step(Errno::EFAULT) {
        Some(expected) => {
            landed.expect_whole(scratch.contents());
            let steps = landed.read_steps();
            assert_eq!(steps.len(), 1, "{steps:?}");
            assert_eq!((rungs(steps[0]), steps[0].offset), (expected, Some(reached)));
        }
        None => {
            let failure = expect_failure(&landed, &scratch, &FailureKind::Errno(Errno::EFAULT));
            assert_eq!(
                (failure.read, failure.file, failure.offset),
                (Some(read), Some(0), reached)
            );
        }
    }
}

/// Every rung above the last is refused, in the middle of reads that have come short before.
pub(crate) fn refusals_at_every_rung(mount: Mount) {
    let is_upper = |access: Access| access != Access::Buffered;
    let short = Rule::new(Answer::Short(ALIGNED_PART)).only(|op| op.slot_offset == 0);
    let refuse = Rule::new(Answer::Errno(Errno::EINVAL)).only(move |op| is_upper(op.access));
    let Some((scratch, landed)) = under(mount, Script::new(short).and(refuse)) else { return };
    landed.expect_whole(scratch.contents());
    let per_file =
        std::iter::successors(mount.below(mount.access), |access| mount.below(*access)).count();
    let steps = landed.read_steps();
    assert_eq!(steps.len(), per_file * BYTES.len(), "once for each file and rung: {steps:?}");
}

pub(crate) fn refusal_where_fallback_is_forbidden(mount: Mount) {
    let Some((scratch, files)) = mount.files(&BYTES) else { return };
    let rule = Rule::new(Answer::Errno(Errno::EINVAL)).after(3).times(1);
    let mut load = mount.load(&files, PIECE_BYTES).with_fault(Script::new(rule));
    load.fallback = Fallback::Forbidden;
    let landed = load.run();
    assert!(landed.read_steps().is_empty(), "{:?}", landed.read_steps());
    let Mount { performer, access, .. } = mount;
    let kind = match mount.first_step(Errno::EINVAL) {
        None => FailureKind::Errno(Errno::EINVAL),
        // A whole engine is refused for no access in particular.
        Some((forebay_io::Rung::Performer(_), _)) => {
            let access = Access::Direct;
            FailureKind::FallbackForbidden { errno: Errno::EINVAL, access, performer }
        }
        Some(_) => FailureKind::FallbackForbidden { errno: Errno::EINVAL, access, performer },
    };
    expect_failure(&landed, &scratch, &kind);
}

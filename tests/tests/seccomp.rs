//! A kernel that forbids io_uring, in part or whole, to the thread that loads.
//!
//! This is what container runtimes do by default. Probing by version or by sysctl does not see
//! it; only trying does. The filters bind one thread and die with it, so these tests need no
//! privilege and disturb nobody.

use forebay_io::{
    Access, Errno, FailureKind, Fallback, ModelFile, Performer, ReadSpec, Rung, StepAt,
};
use forebay_tests::{Answer, Landed, Load, Rule, Scratch, Script, cut, seccomp};
use std::sync::Arc;

const BYTES: [usize; 2] = [900_001, 1 << 18];
const PIECE_BYTES: u32 = 64 << 10;

/// Files, and their reads by the best access that they take.
fn files() -> (Scratch, Arc<[ModelFile]>, Vec<ReadSpec>) {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &BYTES);
    let files = scratch.open();
    let direct = files.iter().all(|file| file.direct().is_ok());
    let access = if direct { Access::Direct } else { Access::Buffered };
    let reads = cut(&files, PIECE_BYTES, access);
    (scratch, files, reads)
}

/// Whether this machine can show anything: it has io_uring, and takes filters.
fn can_run() -> bool {
    let has_ring = forebay_io::uring_support();
    let filters = std::thread::spawn(|| seccomp::forbid(&[], Errno::EPERM)).join().unwrap();
    if let (Ok(_), Ok(())) = (has_ring, filters) {
        return true;
    }
    eprintln!("SKIPPED: io_uring answers {has_ring:?}, seccomp filters {filters:?}");
    false
}

/// A load on a thread that `numbers` are forbidden to.
fn forbidden(
    files: &Arc<[ModelFile]>,
    reads: Vec<ReadSpec>,
    numbers: &'static [libc::c_long],
    errno: Errno,
) -> Load {
    let mut load = Load::new(Arc::clone(files), reads, Performer::Uring);
    load.prelude = Some(Box::new(move || seccomp::forbid(numbers, errno).unwrap()));
    load
}

/// The one step to the threads, and when it was taken.
fn expect_threads(landed: &Landed, errno: Errno, at: StepAt) {
    let steps = landed.outcome.schedule.steps();
    assert_eq!(steps.len(), 1, "{steps:?}");
    let (from, to) = (Rung::Performer(Performer::Uring), Rung::Performer(Performer::Threads));
    let step = &steps[0];
    assert_eq!((step.file, step.from, step.to, step.errno), (None, from, to, errno));
    assert_eq!(step.at, at);
}

#[test]
fn a_ring_that_cannot_be_set_up_is_replaced_by_threads() {
    if !can_run() {
        return;
    }
    for errno in [Errno::EPERM, Errno::ENOSYS, Errno::ENOMEM] {
        let (scratch, files, reads) = files();
        let landed = forbidden(&files, reads, &[libc::SYS_io_uring_setup], errno).run();
        landed.expect_whole(scratch.contents());
        expect_threads(&landed, errno, StepAt::Setup);
    }
}

/// A runtime whose ring is refused leaks what it had before: none is made.
#[test]
fn a_runtime_that_cannot_be_set_up_is_replaced_by_threads_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (scratch, files, reads) = files();
    let before = descriptors();
    for _ in 0..40 {
        let numbers = &[libc::SYS_io_uring_setup];
        let mut load = forbidden(&files, reads.clone(), numbers, Errno::EPERM);
        load.performer = Performer::TokioUring;
        let landed = load.run();
        landed.expect_whole(scratch.contents());
        let steps = landed.outcome.schedule.steps();
        let to = Rung::Performer(Performer::Threads);
        assert_eq!((steps[0].from, steps[0].to), (Rung::Performer(Performer::TokioUring), to));
        assert_eq!((steps.len(), steps[0].at), (1, StepAt::Setup));
    }
    // Other tests of this file run beside this one.
    assert!(descriptors() < before + 40, "{before} descriptors became {}", descriptors());
}

#[test]
fn a_ring_that_was_asked_for_by_name_is_not_replaced() {
    if !can_run() {
        return;
    }
    let (_scratch, files, reads) = files();
    let mut load = forbidden(&files, reads, &[libc::SYS_io_uring_setup], Errno::EPERM);
    load.fallback = Fallback::Forbidden;
    let landed = load.run();
    let failure = landed.outcome.schedule.failure().unwrap();
    let FailureKind::FallbackForbidden { errno, performer, .. } = failure.kind else {
        panic!("{failure:?}")
    };
    assert_eq!((errno, performer), (Errno::EPERM, Performer::Uring));
    assert!(landed.outcome.schedule.steps().is_empty() && landed.reads.is_empty());
}

/// Also the one test of the ring's plain reads, by plain descriptors into plain memory.
#[test]
fn a_ring_that_registers_nothing_reads_all_the_same() {
    if !can_run() {
        return;
    }
    let (scratch, files, reads) = files();
    let landed = forbidden(&files, reads, &[libc::SYS_io_uring_register], Errno::EPERM).run();
    landed.expect_whole(scratch.contents());
    let stats = landed.outcome.stats;
    assert!(!stats.registered_buffers && !stats.registered_files);
    let steps = landed.outcome.schedule.steps();
    let from: Vec<_> = steps.iter().map(|step| (step.from, step.errno, step.at)).collect();
    assert_eq!(
        from,
        [
            (Rung::RegisteredBuffers, Errno::EPERM, StepAt::Setup),
            (Rung::RegisteredFiles, Errno::EPERM, StepAt::Setup),
        ]
    );
    assert_eq!(landed.outcome.schedule.performer(), Performer::Uring);
}

/// The reads in the queue of such a ring were never begun: they lose nothing by being handed on.
#[test]
fn a_ring_that_can_be_set_up_but_not_entered_hands_its_reads_on() {
    if !can_run() {
        return;
    }
    let (scratch, files, reads) = files();
    let landed = forbidden(&files, reads, &[libc::SYS_io_uring_enter], Errno::EPERM).run();
    landed.expect_whole(scratch.contents());
    expect_threads(&landed, Errno::EPERM, StepAt::Read);
}

/// A ring that goes silent while the kernel has reads of it: nobody can tell when they end, so
/// their memory is given up, and their reads can't be had. That must be a failure: without one,
/// the load would look as if nothing had gone wrong, and lack tensors.
#[test]
fn a_ring_that_goes_silent_with_reads_in_flight_is_a_failure() {
    if !can_run() {
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &[16 << 20]);
    // On the disk and not on its way there, or the first direct read would wait for all of it.
    std::fs::File::open(scratch.path(0)).unwrap().sync_all().unwrap();
    let files = scratch.open();
    let access = if files[0].direct().is_ok() { Access::Direct } else { Access::Buffered };
    let reads = cut(&files, 1 << 20, access);
    let forbid = || seccomp::forbid(&[libc::SYS_io_uring_enter], Errno::EPERM).unwrap();
    let rule = Rule::new(Answer::Meanwhile(Box::new(forbid))).times(1);
    let mut load = Load::new(files, reads, Performer::Uring).with_fault(Script::new(rule));
    load.prelude = Some(Box::new(|| {})); // A thread of its own, to forbid something to.
    // Large and many, so that with the first to complete others are still on their way.
    (load.slots, load.queue_depth) = (16, 16);
    let landed = load.run();
    landed.expect_right(scratch.contents());
    match landed.outcome.schedule.failure() {
        Some(failure) => assert_eq!(failure.kind, FailureKind::RingLost(Errno::EPERM)),
        None => {
            eprintln!("SKIPPED: all reads completed at once, and none was left in flight");
            landed.expect_whole(scratch.contents());
        }
    }
}

/// Copies out of a mapping are made by a call that some filters forbid; a plain read does then.
#[test]
fn a_mapping_is_read_without_process_vm_readv() {
    if !can_run() {
        return;
    }
    let (scratch, files, _) = files();
    let reads = cut(&files, PIECE_BYTES, Access::Mapped);
    let mut load = forbidden(&files, reads, &[libc::SYS_process_vm_readv], Errno::EPERM);
    load.performer = Performer::Threads;
    let landed = load.run();
    landed.expect_whole(scratch.contents());
    assert!(landed.outcome.schedule.steps().is_empty(), "{:?}", landed.outcome.schedule.steps());
}

/// Nothing is left below: the failure says what the kernel said.
#[test]
fn threads_that_may_not_read_at_all_say_so() {
    if !can_run() {
        return;
    }
    let (_scratch, files, reads) = files();
    let mut load = forbidden(&files, reads, &[libc::SYS_preadv2], Errno::EPERM);
    load.performer = Performer::Threads;
    let landed = load.run();
    let failure = landed.outcome.schedule.failure().unwrap();
    assert_eq!(failure.kind, FailureKind::Errno(Errno::EPERM));
    assert!(failure.file.is_some() && landed.reads.is_empty());
}

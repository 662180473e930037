//! The schedule against every order of events that a kernel could come up with.
//!
//! The bug that these tests are about is silent: a loader that continues a read at the wrong byte
//! delivers weights that load, run, and are wrong. So nothing here looks at how the schedule does
//! its work; bytes go into slots as a kernel would put them there, and what comes out is compared.

mod simulation;

use forebay_io::{
    Access, Completion, Errno, FailureKind, Fallback, Performer, ReadFailure, Rung, Schedule,
    StepAt,
};
use forebay_mem::Alignment;
use proptest::prelude::*;
use simulation::{Event, Plan, SimulatedFile, Simulation, plans, whole};
use std::sync::Arc;

/// Enough for the weights below to meet in every combination of two.
const CASES: u32 = 1500;

fn events() -> impl Strategy<Value = Event> {
    let errno = |errno| Just(Event::Errno(errno));
    prop_oneof![
        12 => Just(Event::Full),
        10 => any::<u16>().prop_map(Event::Short),
        10 => any::<u16>().prop_map(Event::ShortAligned),
        4 => errno(Errno::EINTR),
        4 => errno(Errno::EAGAIN),
        2 => errno(Errno::ECANCELED),
        1 => errno(Errno::EINVAL),
        1 => errno(Errno::EFAULT),
        1 => errno(Errno::EOPNOTSUPP),
        1 => errno(Errno::EPERM),
        1 => errno(Errno::ENOSYS),
    ]
}

/// What ends a load: at most one of it, and not in every script.
fn endings() -> impl Strategy<Value = Option<Event>> {
    prop_oneof![
        6 => Just(None),
        1 => Just(Some(Event::Errno(Errno::EIO))),
        1 => Just(Some(Event::EndOfFile)),
        1 => Just(Some(Event::Stop)),
        1 => Just(Some(Event::LeaveRing)),
    ]
}

fn scripts() -> impl Strategy<Value = Vec<(u8, Event)>> {
    let turns = prop::collection::vec((any::<u8>(), events()), 0..80);
    (turns, endings(), any::<prop::sample::Index>()).prop_map(|(mut turns, ending, at)| {
        if let Some(event) = ending.filter(|_| !turns.is_empty()) {
            let at = at.index(turns.len());
            turns[at].1 = event;
        }
        turns
    })
}

fn performers() -> impl Strategy<Value = Performer> {
    prop_oneof![
        Just(Performer::UringPolled),
        Just(Performer::Uring),
        Just(Performer::TokioUring),
        Just(Performer::Threads),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_byte_comes_once_and_in_its_place(
        plan in plans(),
        performer in performers(),
        script in scripts(),
    ) {
        Simulation::new(&plan, performer, Fallback::Allowed, false).run(&script);
    }

    #[test]
    fn forbidden_steps_are_failures(
        plan in plans(),
        performer in performers(),
        required in any::<bool>(),
        script in scripts(),
    ) {
        Simulation::new(&plan, performer, Fallback::Forbidden, required).run(&script);
    }
}

/// One file of 64 KiB with 4096-byte alignment, read whole by one direct read.
fn one_direct_read() -> Plan {
    let files = vec![SimulatedFile::new(0, 1 << 16, 4096)];
    Plan { files, reads: Arc::new([whole(0, 0, 1 << 16, Access::Direct)]), slots: 1 }
}

/// Two direct reads of the halves of one file.
fn two_direct_reads() -> Plan {
    let files = vec![SimulatedFile::new(0, 1 << 16, 4096)];
    let read = |offset| whole(0, offset, 1 << 15, Access::Direct);
    Plan { files, reads: Arc::new([read(0), read(1 << 15)]), slots: 2 }
}

/// Design decision 1. A known loader, when a direct read came back short and the next one was
/// refused with EFAULT, fell back to buffered reads *into the start of the buffer* while going on
/// at the later file offset: the head of the tensor was overwritten by its middle, its tail never
/// came, and every length was right. Here the fallback must continue in the file and in the slot
/// at the very byte where the short read ended.
#[test]
fn a_short_direct_read_followed_by_efault_goes_on_at_the_byte_it_reached() {
    let plan = one_direct_read();
    let mut load = Simulation::new(&plan, Performer::Uring, Fallback::Allowed, false);
    load.start(0);
    load.complete(0, Event::ShortAligned(1 << 14)); // A quarter: 16 KiB, aligned.
    let direct = load.in_flight(0).unwrap();
    assert_eq!((direct.access, direct.offset, direct.slot_offset), (Access::Direct, 16384, 16384));
    load.complete(0, Event::Errno(Errno::EFAULT));
    let rest = load.in_flight(0).unwrap();
    assert_eq!(rest.access, Access::DontCache);
    assert_eq!((rest.offset, rest.slot_offset, rest.bytes), (16384, 16384, 49152));
    load.complete(0, Event::Full); // Compares every byte of the slot with the file.
    assert!(load.is_done(0));
    let [step] = load.schedule.steps() else { panic!("{:?}", load.schedule.steps()) };
    assert_eq!((step.file, step.errno, step.offset), (Some(0), Errno::EFAULT, Some(16384)));
    assert_eq!((step.from, step.to), (rung(Access::Direct), rung(Access::DontCache)));
}

/// The same at a byte where no direct read could go on: the rest of this one read goes a rung
/// down, and the file stays direct.
#[test]
fn a_short_direct_read_off_the_alignment_lowers_that_read_alone() {
    let plan = two_direct_reads();
    let mut load = Simulation::new(&plan, Performer::Threads, Fallback::Allowed, false);
    load.start(0);
    load.complete(0, Event::Short(1000));
    let rest = load.in_flight(0).unwrap();
    assert_eq!((rest.access, rest.offset, rest.slot_offset), (Access::DontCache, 500, 500));
    load.complete(0, Event::Errno(Errno::EFAULT));
    let rest = load.in_flight(0).unwrap();
    assert_eq!((rest.access, rest.offset, rest.slot_offset), (Access::Buffered, 500, 500));
    load.start(1);
    assert_eq!(load.in_flight(1).unwrap().access, Access::Direct);
    // The rung between is refused by now: the step says where the reads really go.
    load.complete(1, Event::Errno(Errno::EINVAL));
    let step = load.schedule.steps().last().unwrap();
    assert_eq!((step.from, step.to), (rung(Access::Direct), rung(Access::Buffered)));
    assert_eq!(load.in_flight(1).unwrap().access, Access::Buffered);
}

/// A seccomp filter answers EPERM to every read that the ring has in flight. The first answer
/// leaves the ring; the others say nothing about what the threads may do, and must not cost the
/// file its direct access, let alone the load.
#[test]
fn a_second_refusal_from_a_ring_that_was_left_costs_nothing() {
    for access in [Access::Direct, Access::Buffered] {
        for fallback in [Fallback::Allowed, Fallback::Forbidden] {
            let mut plan = two_direct_reads();
            plan.reads =
                plan.reads.iter().map(|read| whole(0, read.offset, read.bytes, access)).collect();
            let mut load = Simulation::new(&plan, Performer::Uring, fallback, false);
            load.start(0);
            load.start(1);
            load.complete(0, Event::Errno(Errno::EPERM));
            load.complete(1, Event::Errno(Errno::EPERM));
            assert_eq!(load.schedule.failure(), None, "{access:?}");
            assert_eq!(load.schedule.steps().len(), 1, "{:?}", load.schedule.steps());
            assert_eq!(load.schedule.op(1).unwrap().access, access);
            load.run(&[]);
        }
    }
}

/// "Try again" is bounded, whatever word the kernel uses for it.
#[test]
fn being_put_off_without_end_is_a_failure_and_progress_forgives() {
    for errno in [Errno::EINTR, Errno::EAGAIN, Errno::ECANCELED] {
        let plan = one_direct_read();
        let mut load = Simulation::new(&plan, Performer::Threads, Fallback::Allowed, false);
        load.start(0);
        for _ in 0..10_000 {
            load.complete(0, Event::Errno(errno));
        }
        load.complete(0, Event::ShortAligned(1 << 15));
        for _ in 0..10_000 {
            load.complete(0, Event::Errno(errno));
        }
        let stopped = load.schedule.complete(0, Err(errno));
        assert_eq!(stopped, Completion::Stop);
        let failure = load.schedule.failure().unwrap();
        assert_eq!(failure.kind, FailureKind::Stalled(errno));
        assert_eq!((failure.read, failure.offset), (Some(0), 1 << 15));
    }
}

/// A failure names the byte that did not come, not the start of the read.
#[test]
fn a_failure_names_file_read_and_offset() {
    let plan = one_direct_read();
    let mut load = Simulation::new(&plan, Performer::Uring, Fallback::Allowed, false);
    load.start(0);
    load.complete(0, Event::ShortAligned(1 << 15));
    load.complete(0, Event::Errno(Errno::EIO));
    let expected = ReadFailure {
        kind: FailureKind::Errno(Errno::EIO),
        read: Some(0),
        file: Some(0),
        offset: 1 << 15,
    };
    assert_eq!(load.schedule.failure(), Some(&expected));
}

/// A forbidden step is as much the fault of one read as any other failure.
#[test]
fn a_forbidden_step_names_its_read() {
    let plan = two_direct_reads();
    let mut load = Simulation::new(&plan, Performer::Threads, Fallback::Forbidden, false);
    load.start(0);
    load.start(1);
    load.complete(1, Event::Errno(Errno::EINVAL));
    let failure = load.schedule.failure().unwrap();
    assert_eq!((failure.read, failure.file, failure.offset), (Some(1), Some(0), 1 << 15));
}

/// Whoever notices first that a file can't be opened for direct reads may say so: once it counts.
#[test]
fn a_rung_refused_at_open_is_refused_once() {
    let plan = one_direct_read();
    let alignments = [Alignment::FALLBACK];
    let schedule =
        |fallback| Schedule::new(plan.reads.clone(), &alignments, 1, Performer::Threads, fallback);
    let mut lenient = schedule(Fallback::Allowed);
    lenient.refuse_at_open(0, Access::Direct, Errno::EINVAL, "no O_DIRECT");
    lenient.refuse_at_open(0, Access::Direct, Errno::EINVAL, "no O_DIRECT");
    let [step] = lenient.steps() else { panic!("{:?}", lenient.steps()) };
    assert_eq!((step.at, step.offset), (StepAt::Open, None));
    assert_eq!(lenient.start(0).unwrap().access, Access::DontCache);

    let mut strict = schedule(Fallback::Forbidden);
    strict.refuse_at_open(0, Access::Direct, Errno::EINVAL, "no O_DIRECT");
    assert!(strict.steps().is_empty());
    assert_eq!(strict.start(0), None);
    assert!(matches!(
        strict.failure().unwrap().kind,
        FailureKind::FallbackForbidden { errno: Errno::EINVAL, access: Access::Direct, .. }
    ));
}

fn rung(access: Access) -> Rung {
    Rung::Access(access)
}

//! The schedule against whatever a kernel may answer: the simulation and the oracle of forebay-io's
//! own tests, with libFuzzer in the place of proptest.
#![no_main]

#[allow(dead_code, unused_imports, reason = "proptest's share of it")]
#[path = "../../../crates/forebay-io/tests/simulation/mod.rs"]
mod simulation;

use arbitrary::Arbitrary;
use forebay_io::{Access, Errno, Fallback, Performer};
use libfuzzer_sys::fuzz_target;
use simulation::{Event, Plan, Simulation};

/// As in proptest's plans.
const READS_MAX: usize = 11;
const SLOTS_MAX: usize = 5;
const FILES_MAX: usize = 3;
const FILE_BYTES_MAX: usize = 20_000;

#[derive(Arbitrary, Debug)]
struct Load {
    files: Vec<(u16, bool)>,
    reads: Vec<Read>,
    slots: u8,
    performer: u8,
    fallback_forbidden: bool,
    required: bool,
    script: Vec<(u8, Turn)>,
}

#[derive(Arbitrary, Debug)]
struct Read {
    file: u8,
    from: u16,
    length: u16,
    access: u8,
    partly: bool,
}

#[derive(Arbitrary, Debug)]
enum Turn {
    Full,
    Short(u16),
    ShortAligned(u16),
    Errno(u8),
    EndOfFile,
    Stop,
    LeaveRing,
}

fuzz_target!(|load: Load| {
    let files: Vec<_> = (load.files.iter().take(FILES_MAX))
        .map(|&(bytes, coarse)| (1 + usize::from(bytes) % FILE_BYTES_MAX, alignment(coarse)))
        .collect();
    let files = if files.is_empty() { vec![(4097, 512)] } else { files };
    let reads: Vec<_> = load.reads.iter().take(READS_MAX).map(raw).collect();
    let plan = Plan::of(&files, &reads, 1 + usize::from(load.slots) % SLOTS_MAX);
    let performers =
        [Performer::UringPolled, Performer::Uring, Performer::TokioUring, Performer::Threads];
    let performer = performers[usize::from(load.performer) % performers.len()];
    let fallback = if load.fallback_forbidden { Fallback::Forbidden } else { Fallback::Allowed };
    let script: Vec<_> = load.script.iter().map(|(pick, turn)| (*pick, event(turn))).collect();
    Simulation::new(&plan, performer, fallback, load.required).run(&script);
});

fn alignment(coarse: bool) -> u64 {
    if coarse { 4096 } else { 512 }
}

fn raw(read: &Read) -> (usize, u16, u16, Access, bool) {
    let accesses = [Access::Direct, Access::DontCache, Access::Buffered, Access::Mapped];
    let access = accesses[usize::from(read.access) % accesses.len()];
    (read.file.into(), read.from, read.length, access, read.partly)
}

fn event(turn: &Turn) -> Event {
    /// Put off, refused, failed.
    const ERRNOS: [Errno; 9] = [
        Errno::EINTR,
        Errno::EAGAIN,
        Errno::ECANCELED,
        Errno::EINVAL,
        Errno::EFAULT,
        Errno::EOPNOTSUPP,
        Errno::EPERM,
        Errno::ENOSYS,
        Errno::EIO,
    ];
    match *turn {
        Turn::Full => Event::Full,
        Turn::Short(part) => Event::Short(part),
        Turn::ShortAligned(part) => Event::ShortAligned(part),
        Turn::Errno(errno) => Event::Errno(ERRNOS[usize::from(errno) % ERRNOS.len()]),
        Turn::EndOfFile => Event::EndOfFile,
        Turn::Stop => Event::Stop,
        Turn::LeaveRing => Event::LeaveRing,
    }
}

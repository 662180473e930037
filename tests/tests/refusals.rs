//! Refusals that nobody scripts: the kernel of this machine makes them.

use forebay_io::{Access, Errno, Fallback, ModelFile, Performer, ReadSpec, Rung, StepAt};
use forebay_tests::{Landed, Load, Scratch, cut};
use std::path::Path;
use std::sync::Arc;

const PERFORMERS: [Performer; 2] = [Performer::Uring, Performer::Threads];

/// Whether the load's performer is to be had here; says so if not.
fn has(performer: Performer) -> bool {
    let ring = forebay_io::uring_support();
    if performer == Performer::Threads || ring.is_ok() {
        return true;
    }
    eprintln!("SKIPPED: io_uring answers {ring:?}");
    false
}

/// Where the files' steps led, with what the kernel said and when.
fn steps(landed: &Landed) -> Vec<(Rung, Rung, Errno, StepAt)> {
    let steps = landed.read_steps().into_iter();
    steps.map(|step| (step.from, step.to, step.errno, step.at)).collect()
}

/// Files in sysfs are long enough, readable anywhere, and refuse the open with `O_DIRECT`. A plan
/// of direct reads must step down for them on every engine; a ring with registered files answers
/// EBADF for the descriptor that is not there, which is no refusal that a read could get over.
#[test]
fn a_file_that_opens_only_buffered_is_read_buffered() {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    let (Ok(contents), Ok(file)) = (std::fs::read(path), ModelFile::open(path)) else {
        return eprintln!("SKIPPED: this kernel has no {}", path.display());
    };
    let Err(refusal) = file.direct() else {
        return eprintln!("SKIPPED: this kernel takes direct reads of {}", path.display());
    };
    let files: Arc<[ModelFile]> = Arc::new([file]);
    for performer in PERFORMERS.into_iter().filter(|&performer| has(performer)) {
        let reads = cut(&files, 1 << 20, Access::Direct);
        let landed = Load::new(Arc::clone(&files), reads.clone(), performer).run();
        landed.expect_whole(std::slice::from_ref(&contents));
        let (from, to) = (Rung::Access(Access::Direct), Rung::Access(Access::DontCache));
        assert_eq!(steps(&landed)[0], (from, to, refusal, StepAt::Open));
        assert_eq!(landed.outcome.schedule.received(0).get(Access::Direct), 0);

        let mut strict = Load::new(Arc::clone(&files), reads, performer);
        strict.fallback = Fallback::Forbidden;
        let landed = strict.run();
        assert!(landed.reads.is_empty() && steps(&landed).is_empty());
        assert_eq!(landed.outcome.schedule.failure().unwrap().file, Some(0));
    }
}

/// A filesystem that asks for more than it was asked about: every direct read of the plan is
/// misaligned, and the bytes come all the same.
#[test]
fn a_misaligned_direct_read_steps_down() {
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &[300_001]);
    let files = scratch.open();
    for performer in PERFORMERS.into_iter().filter(|&performer| has(performer)) {
        let piece_bytes = 50_000;
        let reads = (0..6).map(|piece| ReadSpec {
            file: 0,
            offset: 1 + u64::from(piece * piece_bytes),
            bytes: piece_bytes,
            need_bytes: piece_bytes,
            access: Access::Direct,
        });
        let landed = Load::new(Arc::clone(&files), reads.collect(), performer).run();
        landed.expect_whole(scratch.contents());
        // Some filesystems read such things through the page cache, and say nothing.
        if let Some(&(from, to, errno, at)) = steps(&landed).first() {
            assert_eq!((from, to), (Rung::Access(Access::Direct), Rung::Access(Access::DontCache)));
            let expected = if at == StepAt::Read { Errno::EINVAL } else { errno };
            assert_eq!(errno, expected);
        }
    }
}

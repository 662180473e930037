//! The load can't go on: it ends, at once, says why and where, and nothing writes any more.

use super::{Mount, PIECE_BYTES, expect_failure};
use forebay_io::{Cancel, Errno, FailureKind};
use forebay_tests::{Answer, Landed, Rule, Script};
use std::time::Duration;

pub(crate) fn eio(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[300_000, 400_000]) else { return };
    let bad = u64::from(2 * PIECE_BYTES);
    let rule =
        Rule::new(Answer::Errno(Errno::EIO)).only(move |op| op.file == 1 && op.offset == bad);
    let landed = mount.load(&files, PIECE_BYTES).with_fault(Script::new(rule)).run();
    let failure = expect_failure(&landed, &scratch, &FailureKind::Errno(Errno::EIO));
    assert_eq!((failure.file, failure.offset), (Some(1), bad));
    assert!(landed.read_steps().is_empty(), "no other way of reading would mend it");
}

/// Somebody cuts the file short between the plan and the reads.
pub(crate) fn file_cut_short(mount: Mount) {
    for left in [0, 4096, u64::from(PIECE_BYTES), 200_001] {
        let Some((scratch, files)) = mount.files(&[5 * PIECE_BYTES as usize + 77]) else { return };
        let path = scratch.path(0);
        let mut load = mount.load(&files, PIECE_BYTES);
        // One after the other, so that the first byte that is missing is the first one missed.
        load.queue_depth = 1;
        load.prelude = Some(Box::new(move || {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(left).unwrap();
        }));
        let landed = load.run();
        let failure = expect_failure(&landed, &scratch, &FailureKind::EndOfFile);
        assert_eq!((failure.file, failure.offset), (Some(0), left));
        assert_ne!(files[0].identity_now().unwrap(), files[0].identity());
    }
}

pub(crate) fn cancelled_before_the_start(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[500_000]) else { return };
    let load = mount.load(&files, PIECE_BYTES);
    load.cancel.cancel();
    let landed = load.run();
    expect_failure(&landed, &scratch, &FailureKind::Cancelled);
    assert!(landed.reads.is_empty());
}

pub(crate) fn cancelled_at_random_moments(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[1 << 20, 77_777]) else { return };
    let mut rng = fastrand::Rng::with_seed(u64::from(PIECE_BYTES));
    let mut cancelled = 0;
    for _ in 0..200 {
        let cancel = Cancel::default();
        let asked = cancel.clone();
        let act = Answer::Meanwhile(Box::new(move || asked.cancel()));
        let rule = Rule::new(act).after(rng.u64(0..19)).times(1);
        let mut load = mount.load(&files, PIECE_BYTES).with_fault(Script::new(rule));
        load.cancel = cancel;
        (load.slots, load.queue_depth) = (4, 4);
        let landed = load.run();
        landed.expect_right(scratch.contents());
        match landed.outcome.schedule.failure() {
            Some(failure) => assert_eq!(failure.kind, FailureKind::Cancelled),
            None => landed.expect_whole(scratch.contents()),
        }
        cancelled += usize::from(landed.outcome.schedule.failure().is_some());
    }
    assert!(cancelled > 100, "hardly a load was cancelled: {cancelled}");
}

/// Drain before drop (design decision 4). A load that was cancelled with reads in flight has
/// waited for them: nobody writes into its memory any more. Closing a ring does not wait by
/// itself, and the kernel was seen to write for half a second after it.
pub(crate) fn nothing_is_written_after_the_end(mount: Mount) {
    const PAINT: u8 = 0xC5;
    // More than most disks read before the load is cancelled.
    let (piece_bytes, pieces) = (2 << 20, 32);
    let Some((scratch, files)) = mount.files(&[pieces * piece_bytes as usize]) else { return };
    // On the disk and not on its way there, or the first direct read would wait for all of it.
    std::fs::File::open(scratch.path(0)).unwrap().sync_all().unwrap();
    let mut painted: Vec<Landed> = Vec::new();
    for round in 0..6 {
        let mut load = mount.load(&files, piece_bytes);
        (load.slots, load.queue_depth) = (pieces, pieces);
        let cancel = load.cancel.clone();
        // Disks that complete in batches have read all of it by the first completion; so some
        // time before it, which is not known, and tried for.
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1 + 3 * round));
            cancel.cancel();
        });
        let mut landed = load.run();
        landed.paint(PAINT);
        painted.push(landed);
        canceller.join().unwrap();
    }
    assert!(painted.iter().all(|landed| landed.is_painted(PAINT)), "written after the end");
}

pub(crate) fn receiver_gone(mount: Mount) {
    for leaves_after in [0, 1, 5] {
        let Some((scratch, files)) = mount.files(&[1 << 20]) else { return };
        let mut load = mount.load(&files, PIECE_BYTES);
        load.uploader_leaves_after = Some(leaves_after);
        let landed = load.run();
        expect_failure(&landed, &scratch, &FailureKind::ReceiverGone);
        assert_eq!(landed.reads.len(), leaves_after);
    }
}

/// A kernel that always says "try again" is given up on.
pub(crate) fn put_off_without_end(mount: Mount) {
    let piece_bytes = 4096;
    let Some((scratch, files)) = mount.files(&[4 * piece_bytes as usize]) else { return };
    let rule = Rule::new(Answer::Errno(Errno::EINTR)).only(|op| op.read == 2);
    let landed = mount.load(&files, piece_bytes).with_fault(Script::new(rule)).run();
    let failure = expect_failure(&landed, &scratch, &FailureKind::Stalled(Errno::EINTR));
    assert_eq!((failure.read, failure.offset), (Some(2), u64::from(2 * piece_bytes)));
    assert!(!landed.reads.contains_key(&2));
}

//! Nothing goes wrong: every length, every number of files and slots.

use super::{Mount, PIECE_BYTES};
use forebay_io::Access;
use forebay_tests::{Landed, Scratch};

/// Reads files of the lengths `bytes` and checks that it took the rung it was told to take.
fn reads_whole(mount: Mount, bytes: &[usize]) {
    let Some((scratch, files)) = mount.files(bytes) else { return };
    let landed = mount.load(&files, PIECE_BYTES).run();
    expect_plain(mount, &landed, &scratch);
}

fn expect_plain(mount: Mount, landed: &Landed, scratch: &Scratch) {
    landed.expect_whole(scratch.contents());
    assert!(landed.read_steps().is_empty(), "{:?}", landed.read_steps());
    for (file, contents) in scratch.contents().iter().enumerate() {
        for access in Access::ALL {
            let expected = if access == mount.access { contents.len() as u64 } else { 0 };
            let received = landed.outcome.schedule.received(file).get(access);
            assert_eq!(received, expected, "of file {file} by {access:?}");
        }
    }
}

pub(crate) fn aligned(mount: Mount) {
    reads_whole(mount, &[1 << 20]);
}

pub(crate) fn odd_tail(mount: Mount) {
    for bytes in [(1 << 20) - 1, (1 << 20) + 1, 513 + (1 << 18), 4095, 65537] {
        reads_whole(mount, &[bytes]);
    }
}

pub(crate) fn many_files(mount: Mount) {
    let bytes: Vec<usize> = (0..40).map(|file| 1 + file * 7919 % 150_000).collect();
    reads_whole(mount, &bytes);
}

pub(crate) fn tiny_file(mount: Mount) {
    reads_whole(mount, &[1]);
}

pub(crate) fn empty_job(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[100]) else { return };
    let mut load = mount.load(&files, PIECE_BYTES);
    load.reads.clear();
    let landed = load.run();
    landed.expect_whole(scratch.contents());
    assert_eq!(landed.outcome.schedule.op_counts(), (0, 0));
}

pub(crate) fn one_slot(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[300_000, 5]) else { return };
    let mut load = mount.load(&files, PIECE_BYTES);
    (load.slots, load.queue_depth, load.uploader_keeps) = (1, 8, 0);
    expect_plain(mount, &load.run(), &scratch);
}

pub(crate) fn more_slots_than_reads(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[200_000]) else { return };
    let mut load = mount.load(&files, PIECE_BYTES);
    (load.slots, load.queue_depth) = (40, 64);
    expect_plain(mount, &load.run(), &scratch);
}

/// Slots are scarcer than threads and than reads in flight: whoever takes one must use it.
pub(crate) fn uploader_that_keeps_almost_all(mount: Mount) {
    let Some((scratch, files)) = mount.files(&[1 << 20]) else { return };
    for _ in 0..20 {
        let mut load = mount.load(&files, PIECE_BYTES);
        (load.slots, load.queue_depth, load.uploader_keeps) = (6, 16, 5);
        expect_plain(mount, &load.run(), &scratch);
    }
}

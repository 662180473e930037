//! The host device: arenas, places that reads fill, arrangements, and when a tensor can be seen.

use forebay_device::{
    ArenaLayout, Arrange, DeviceError, HostArena, HostWriter, Segment, Uploader, Writer,
};
use forebay_mem::{Draining, HostPointer, Region, Slab, Slot};
use std::ops::Range;
use std::sync::Arc;

fn arena<const N: usize>(sizes_bytes: [u64; N]) -> (Arc<HostArena>, HostWriter) {
    HostArena::new("host", &ArenaLayout::packed(sizes_bytes).unwrap()).unwrap()
}

#[test]
fn a_tensor_is_seen_when_it_is_whole_and_not_before() {
    let (arena, writer) = arena([3, 0, 5]);
    let mut uploader = Uploader::new(vec![Writer::Host(writer)], 1).unwrap();
    let (_slab, mut free) = Slab::new(4096, 1).unwrap();
    let mut slot = free.pop().unwrap().fill();
    slot.buffer()[..8].copy_from_slice(b"abcdefgh");
    let segments = [
        Segment { arena: 0, tensor: 2, slot_offset: 2, tensor_offset: 1, bytes: 4 },
        Segment { arena: 0, tensor: 0, slot_offset: 5, tensor_offset: 0, bytes: 3 },
    ];
    let drained = uploader.upload(slot.filled(8).drain(), 7, &segments).unwrap();
    assert_eq!(drained.map(|drained| drained.read), Some(7));
    assert_eq!((uploader.copies(), uploader.in_flight()), (2, 0));
    assert!(arena.tensor(0).is_none());
    (0..3).for_each(|tensor| uploader.publish(0, tensor));
    assert_eq!(arena.tensor(0), Some(&b"fgh"[..]));
    assert_eq!(arena.tensor(1), Some(&b""[..]));
    assert_eq!(arena.tensor(2), Some(&b"\0cdef"[..]));
    assert_eq!(arena.tensor(2).unwrap().as_ptr() as usize % 256, 0);
}

#[test]
#[should_panic(expected = "whole already")]
fn a_published_tensor_is_never_written() {
    let (_arena, mut writer) = arena([4]);
    writer.publish(0);
    writer.write(0, 0, b"x");
}

#[test]
fn more_than_the_machine_has_is_an_error_with_the_need() {
    let layout = ArenaLayout::packed([1 << 60]).unwrap();
    let error = HostArena::new("host", &layout).unwrap_err();
    assert!(
        matches!(error, DeviceError::OutOfMemory { needed_bytes, .. } if needed_bytes == 1 << 60)
    );
    assert_eq!(ArenaLayout::packed([u64::MAX, 1]).unwrap_err(), DeviceError::TooLarge);
}

/// Reads fill the middle of a tensor, the writer its head.
fn placed() -> (Arc<HostArena>, HostWriter, Slot<Draining>) {
    let (arena, mut writer) = arena([8]);
    let reads = std::slice::from_ref(&(2..8));
    let mut places = writer.places(reads);
    let (_slab, mut free) = Slab::new(4096, 1).unwrap();
    let mut slot = free.pop().unwrap().fill().aim(places.pop().unwrap());
    slot.buffer().copy_from_slice(b"cdefgh");
    (arena, writer, slot.filled(6).drain())
}

#[test]
fn what_was_read_into_place_is_not_copied_and_what_was_not_is() {
    let (arena, mut writer, slot) = placed();
    writer.write(0, 0, b"ab");
    let mut uploader = Uploader::new(vec![Writer::Host(writer)], 1).unwrap();
    let segment = Segment { arena: 0, tensor: 0, slot_offset: 0, tensor_offset: 2, bytes: 6 };
    assert!(uploader.upload(slot, 3, &[segment]).unwrap().is_some());
    assert_eq!(uploader.copies(), 0);
    uploader.publish(0, 0);
    assert_eq!(arena.tensor(0), Some(&b"abcdefgh"[..]));
}

#[test]
#[should_panic(expected = "still being read into")]
fn a_tensor_with_a_read_in_flight_is_never_published() {
    let (_arena, mut writer, _slot) = placed();
    writer.publish(0);
}

#[test]
#[should_panic(expected = "reads fill tensor 0")]
fn the_writer_keeps_out_of_places() {
    let (_arena, mut writer, _slot) = placed();
    writer.write(0, 1, b"xy");
}

#[test]
#[should_panic(expected = "share memory")]
fn tensors_of_one_arena_never_overlap() {
    let layout = ArenaLayout { tensors: vec![0..8, 4..12], bytes: 12 };
    let _ = HostArena::new("host", &layout);
}

#[derive(Debug)]
struct Backwards;

impl Arrange for Backwards {
    fn scatter(&self, offset: u64, bytes: &[u8], arranged: &mut [u8]) {
        let last = arranged.len() - 1;
        for (at, &byte) in (offset..).zip(bytes) {
            arranged[last - usize::try_from(at).unwrap()] = byte;
        }
    }

    fn touched(&self, offset: u64, bytes: u64) -> Range<u64> {
        5 - offset - bytes..5 - offset
    }
}

#[test]
fn a_tensor_is_arranged_piece_by_piece() {
    let (arena, mut writer) = arena([3, 5]);
    writer.arrange(1, Arc::new(Backwards));
    writer.write(1, 2, b"cde");
    writer.write(1, 0, b"ab");
    writer.publish(1);
    assert_eq!(arena.tensor(1), Some(&b"edcba"[..]));
}

/// A reservation is worth nothing if a load takes all of it.
#[test]
fn of_lent_memory_just_the_tensor_is_touched() {
    let reserved = Region::new(64 << 20).unwrap();
    let bytes = 10_001;
    // SAFETY: a region that this test owns alone, and that outlives what it lends.
    let memory = unsafe { HostPointer::new(reserved.at(77), 60 << 20) };
    let layout = ArenaLayout::packed([bytes]).unwrap();
    let (arena, mut writer) = HostArena::lent(&[memory], &layout).unwrap();
    assert!(arena.region().is_none());
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before_kib = resident_kib();
    arena.populate(&|| false);
    // At most a huge page, and what other tests take.
    assert!(resident_kib() < before_kib + (16 << 10), "{before_kib} became {}", resident_kib());
    let half = usize::try_from(bytes / 2).unwrap();
    writer.write(0, 0, &vec![7; half]);
    let early = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.publish(0)));
    assert!(early.is_err() && arena.tensor(0).is_none(), "half of it was never written");
    writer.write(0, half as u64, &vec![7; half + 1]);
    writer.publish(0);
    assert!(arena.tensor(0).unwrap().iter().all(|byte| *byte == 7));
    // SAFETY: the arena writes no more, and the byte is anonymous memory, so initialised.
    assert_eq!(unsafe { reserved.at(77 + 10_001).read() }, 0);
}

//! Tensors in an arena: `forebay-device`.

use crate::arena::{ArenaLayout, HostArena, HostWriter};
use crate::channel::bounded;
use crate::region::CELL_BYTES;
use crate::slab::Slab;
use crate::sync::Arc;
use loom::thread::spawn;

const PIECE_BYTES: u64 = CELL_BYTES as u64;

fn arena() -> (Arc<HostArena>, HostWriter) {
    HostArena::new("host", &ArenaLayout::packed([2 * PIECE_BYTES]).unwrap()).unwrap()
}

/// Writes the tensor in two pieces, and lets others see it.
fn write(arena: &HostArena, mut writer: HostWriter) {
    for piece in 0..2 {
        let region = arena.region().unwrap();
        region.note_write(region.at(piece * CELL_BYTES));
        writer.write(0, piece as u64 * PIECE_BYTES, &(piece as u64 + 1).to_ne_bytes());
    }
    writer.publish(0);
}

fn assert_whole(arena: &HostArena, start: *const u8) {
    let region = arena.region().unwrap();
    assert_eq!((region.read(start), region.read(start.wrapping_add(CELL_BYTES))), (1, 2));
}

/// Whoever gets a tensor's bytes may read them, while its writer may be about to write others. The
/// reader is the second thread: loom remembers the last look at an atomic only, and the writer looks
/// itself.
fn a_published_tensor(start: fn(&HostArena) -> Option<*const u8>) {
    let (arena, writer) = arena();
    let of_reader = Arc::clone(&arena);
    let reader = spawn(move || {
        if let Some(start) = start(&of_reader) {
            assert_whole(&of_reader, start);
        }
    });
    write(&arena, writer);
    assert_whole(&arena, start(&arena).unwrap());
    reader.join().unwrap();
}

pub(super) fn a_published_tensor_is_whole() {
    a_published_tensor(|arena| arena.tensor(0).map(<[u8]>::as_ptr));
}

/// For whoever makes the memory its own.
pub(super) fn a_published_tensor_can_be_taken_by_its_address() {
    a_published_tensor(|arena| arena.tensor_start(0).map(|start| start.as_ptr().cast_const()));
}

/// One half of a tensor is read into its place by an engine, the other is written by an uploader, which
/// gets the slot of the first; a third thread reads both.
pub(super) fn a_tensor_read_into_its_place_is_whole() {
    let (arena, mut writer) = arena();
    let mut places = writer.places(&[0..PIECE_BYTES]);
    let (slab, mut tokens) = Slab::new(CELL_BYTES, 1).unwrap();
    let filling = tokens.pop().unwrap().fill().aim(places.pop().unwrap());
    let (filled, full) = bounded(1);
    let of_engine = Arc::clone(&arena);
    let engine = spawn(move || {
        of_engine.region().unwrap().write(filling.address(), 1);
        filled.send(filling.filled(CELL_BYTES)).unwrap();
    });
    let of_uploader = Arc::clone(&arena);
    let uploader = spawn(move || {
        let region = of_uploader.region().unwrap();
        region.note_write(region.at(CELL_BYTES));
        writer.write(0, PIECE_BYTES, &2_u64.to_ne_bytes());
        drop(full.recv().unwrap().drain().release());
        writer.publish(0);
    });
    if let Some(bytes) = arena.tensor(0) {
        assert_whole(&arena, bytes.as_ptr());
    }
    engine.join().unwrap();
    uploader.join().unwrap();
    assert_whole(&arena, arena.tensor(0).unwrap().as_ptr());
    drop(slab);
}

//! CUDA devices by themselves, on the emulated driver: slots to arenas on several devices, which
//! copies are made, when a slot comes back, what becomes of refusals, and staging memory.
#![cfg(feature = "cuda")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

use cudarc::driver::result;
use forebay_cuda_emulator::{Emulator, Held, Report};
use forebay_device::cuda::{
    Context, CudaArena, CudaWriter, DevicePointer, HostRegistration, Memory, ReadBack, SlotGroup,
    Staging, StagingShape, Unavailable, devices, release_staging, upload_ceiling,
};
use forebay_device::{
    ArenaLayout, Columns, DeviceError, Drained, HostArena, Segment, Uploader, Writer,
};
use forebay_mem::numa::NumaPolicy;
use forebay_mem::{Draining, Free, Slab, Slot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The one driver of the process, set up for one test at a time; what the test leaves behind is
/// its failure.
struct Turn {
    _turn: MutexGuard<'static, ()>,
    before: Report,
}

fn turn(emulator: &Emulator) -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    emulator.install();
    Turn { _turn: turn, before: Emulator::report() }
}

impl Turn {
    /// How often the test has called an entry point.
    fn calls(&self, name: &str) -> u64 {
        Emulator::report().calls_of(name) - self.before.calls_of(name)
    }

    /// Copies and bytes that the test has moved to a device.
    fn uploads(&self, device: usize) -> (u64, u64) {
        let traffic = |report: &Report| {
            report.devices.get(device).map_or((0, 0), |it| (it.upload.copies, it.upload.bytes))
        };
        let (now, before) = (traffic(&Emulator::report()), traffic(&self.before));
        (now.0 - before.0, now.1 - before.1)
    }

    fn violations(&self) -> u64 {
        Emulator::report().violation_count() - self.before.violation_count()
    }

    /// That the driver has everything back and nothing was done that must not be.
    fn end(self) {
        assert_eq!(self.violations(), 0, "{:?}", Emulator::report().violation_messages);
        expect_nothing_held();
    }
}

fn expect_nothing_held() {
    let report = Emulator::report();
    assert_eq!(report.registered, Held::default());
    for device in &report.devices {
        assert_eq!(device.memory, Held::default());
        assert_eq!((device.streams, device.events, device.contexts_retained), (0, 0, 0));
    }
}

/// Tensors of these sizes on a device.
fn arena(device: u32, sizes_bytes: &[u64]) -> (Arc<CudaArena>, CudaWriter) {
    let layout = ArenaLayout::packed(sizes_bytes.iter().copied()).unwrap();
    CudaArena::new(&Context::of(device).unwrap(), Memory::Own(layout)).unwrap()
}

/// Pinned slots.
fn slots(bytes: usize, count: usize) -> (HostRegistration, Arc<Slab>, Vec<Slot<Free>>) {
    let (slab, mut tokens) = Slab::new(bytes, count).unwrap();
    let pinned = HostRegistration::new(&Context::of(0).unwrap(), slab.region()).unwrap();
    tokens.reverse();
    (pinned, slab, tokens)
}

fn full(slot: Slot<Free>, bytes: &[u8]) -> Slot<Draining> {
    let mut slot = slot.fill();
    slot.buffer()[..bytes.len()].copy_from_slice(bytes);
    slot.filled(bytes.len()).drain()
}

/// Bytes that are nowhere alike.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..bytes).map(|_| next()).collect()
}

fn segment(arena: usize, tensor: usize, slot_offset: u32, offset: u64, bytes: u32) -> Segment {
    Segment { arena, tensor, slot_offset, tensor_offset: offset, bytes }
}

/// Waits for one completion.
fn settle(uploader: &mut Uploader) -> Result<Option<Drained>, DeviceError> {
    let completion = uploader.completions().recv_timeout(Duration::from_secs(60)).unwrap();
    uploader.settle(completion)
}

/// Waits until every slot has come back.
fn settle_all(uploader: &mut Uploader) -> Vec<Drained> {
    let mut drained = Vec::new();
    while uploader.in_flight() > 0 {
        drained.extend(settle(uploader).unwrap());
    }
    drained
}

fn read(arena: &CudaArena, tensor: usize, bytes: usize) -> Vec<u8> {
    let mut into = vec![0xAA; bytes];
    arena.read(tensor, 0, &mut into).unwrap();
    into
}

#[test]
fn one_slot_serves_two_devices_and_the_host_and_comes_back_after_the_last() {
    let stalled = Emulator::new().devices(2).device(1, |device| device.stall_copy(1, 1000));
    let turn = turn(&stalled);
    {
        let (first, to_first) = arena(0, &[100, 300]);
        let (second, to_second) = arena(1, &[500]);
        let (host, to_host) = HostArena::new("host", &ArenaLayout::packed([50]).unwrap()).unwrap();
        let (_pinned, slab, mut free) = slots(4096, 1);
        let writers = vec![Writer::Cuda(to_first), Writer::Cuda(to_second), Writer::Host(to_host)];
        let mut uploader = Uploader::new(writers, 1).unwrap();
        let bytes = pattern(1, 1000);
        let segments = [
            segment(0, 0, 0, 0, 100),
            segment(0, 1, 400, 0, 300),
            segment(1, 0, 100, 0, 500),
            segment(2, 0, 950, 0, 50),
        ];
        let slot = full(free.pop().unwrap(), &bytes);
        assert!(uploader.upload(slot, 7, &segments).unwrap().is_none());
        assert_eq!(uploader.in_flight(), 1);
        assert!(settle(&mut uploader).unwrap().is_none(), "one device is still reading");
        assert_eq!((uploader.in_flight(), slab.census().draining), (1, 1));
        assert_eq!((turn.uploads(0).0, turn.uploads(1).0), (2, 0));
        let drained = settle(&mut uploader).unwrap().unwrap();
        assert_eq!((drained.read, drained.slot.index(), uploader.in_flight()), (7, 0, 0));
        assert_eq!((turn.uploads(0), turn.uploads(1)), ((2, 400), (1, 500)));
        assert_eq!(uploader.copies(), 4);
        assert_eq!((first.tensor(0), second.tensor(0)), (None, None), "nobody has said so");
        uploader.publish(0, 0);
        uploader.publish(0, 1);
        uploader.publish(1, 0);
        uploader.publish(2, 0);
        assert_eq!(read(&first, 0, 100), bytes[..100]);
        assert_eq!(read(&first, 1, 300), bytes[400..700]);
        assert_eq!(read(&second, 0, 500), bytes[100..600]);
        assert_eq!(host.tensor(0), Some(&bytes[950..]));
        let (address, length) = first.tensor(1).unwrap();
        assert_eq!((address % 256, length), (0, 300));
    }
    turn.end();
}

#[test]
fn neighbours_in_slot_and_memory_go_as_one_copy() {
    let turn = turn(&Emulator::new());
    {
        let sizes = [256, 512, 100, 300, 40];
        let (arena, writer) = arena(0, &sizes);
        let (_pinned, _slab, mut free) = slots(8192, 1);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        let bytes = pattern(2, 4096);
        // 0, 1 and 2 lie side by side; 3 follows 2 after the same padding in slot and memory; 4
        // follows 3 after other padding.
        let segments = [
            segment(0, 0, 0, 0, 256),
            segment(0, 1, 256, 0, 512),
            segment(0, 2, 768, 0, 100),
            segment(0, 3, 1024, 0, 300),
            segment(0, 4, 1024 + 310, 0, 40),
        ];
        let slot = full(free.pop().unwrap(), &bytes);
        assert!(uploader.upload(slot, 0, &segments).unwrap().is_none());
        assert_eq!(settle_all(&mut uploader).len(), 1);
        assert_eq!(uploader.copies(), 2);
        assert_eq!(turn.uploads(0), (2, 1324 + 40));
        (0..5).for_each(|tensor| uploader.publish(0, tensor));
        for (tensor, (segment, size)) in segments.iter().zip(sizes).enumerate() {
            let (start, size) = (segment.slot_offset as usize, usize::try_from(size).unwrap());
            assert_eq!(read(&arena, tensor, size), bytes[start..start + size], "{tensor}");
        }
    }
    turn.end();
}

#[test]
fn the_bytes_between_lent_tensors_are_not_touched() {
    let turn = turn(&Emulator::new());
    {
        let context = Context::of(0).unwrap();
        let (base, held) = lend(0, 4096);
        let pointer = |offset: u64, bytes| unsafe { DevicePointer::new(0, base + offset, bytes) };
        // Two side by side, two with a gap as large as that in the slot.
        let lent = vec![pointer(64, 100), pointer(164, 100), pointer(300, 100)];
        let (arena, writer) = CudaArena::new(&context, Memory::Lent(lent)).unwrap();
        let (_pinned, _slab, mut free) = slots(4096, 1);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        let bytes = pattern(3, 1000);
        let segments =
            [segment(0, 0, 0, 0, 100), segment(0, 1, 100, 0, 100), segment(0, 2, 236, 0, 100)];
        let slot = full(free.pop().unwrap(), &bytes);
        assert!(uploader.upload(slot, 0, &segments).unwrap().is_none());
        settle_all(&mut uploader);
        // Whether the first two, which may be allocations of their own, go as one is not said.
        assert!((2..=3).contains(&uploader.copies()), "{}", uploader.copies());
        assert_eq!(turn.uploads(0), (uploader.copies(), 300));
        (0..3).for_each(|tensor| uploader.publish(0, tensor));
        assert_eq!(arena.tensor(1), Some((base + 164, 100)));
        drop(uploader);
        drop(arena);
        let mut expected = vec![GUARD; 4096];
        expected[64..264].copy_from_slice(&bytes[..200]);
        expected[300..400].copy_from_slice(&bytes[236..336]);
        assert!(held.read() == expected, "bytes around the lent ranges have changed");
    }
    turn.end();
}

const GUARD: u8 = 0x5A;

/// Memory of an embedder, freed when it is dropped.
struct Lent {
    device: i32,
    context: cudarc::driver::sys::CUcontext,
    address: u64,
    bytes: usize,
}

/// Allocates memory full of [`GUARD`] as an embedder would.
fn lend(device: i32, bytes: usize) -> (u64, Lent) {
    result::init().unwrap();
    let handle = result::device::get(device).unwrap();
    let context = unsafe { result::primary_ctx::retain(handle) }.unwrap();
    let mut lent = Lent { device, context, address: 0, bytes };
    lent.address = lent.within(|| {
        let address = unsafe { result::malloc_sync(bytes) }.unwrap();
        unsafe { result::memset_d8_sync(address, GUARD, bytes) }.unwrap();
        address
    });
    (lent.address, lent)
}

impl Lent {
    /// Works with the context current, and with none afterwards.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        unsafe { result::ctx::set_current(self.context) }.unwrap();
        let done = work();
        unsafe { result::ctx::set_current(std::ptr::null_mut()) }.unwrap();
        done
    }

    fn read(&self) -> Vec<u8> {
        let mut back = vec![0; self.bytes];
        self.within(|| unsafe { result::memcpy_dtoh_sync(&mut back, self.address) }.unwrap());
        back
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.within(|| unsafe { result::free_sync(self.address) }.unwrap());
        unsafe { result::primary_ctx::release(self.device) }.unwrap();
    }
}

#[test]
fn lent_memory_that_is_not_the_devices_is_refused() {
    let turn = turn(&Emulator::new().devices(2));
    {
        let context = Context::of(0).unwrap();
        let (base, _held) = lend(0, 4096);
        let (other, _held_too) = lend(1, 4096);
        let host = vec![0_u8; 4096];
        for (ordinal, address, bytes, right) in [
            (0, base, 4096, true),
            (0, base + 4000, 96, true),
            (0, base + 4000, 0, true),
            (0, base, 4097, false),
            (0, base + 4000, 97, false),
            (0, base + 4096, 1, false),
            (0, u64::MAX, 1, false),
            (0, base, u64::MAX, false),
            (0, 0, 16, false),
            (0, 0x1234, 16, false),
            (0, other, 16, false),
            (1, other, 16, false),
            (1, base, 16, false),
            (0, host.as_ptr() as u64, 16, false),
        ] {
            let pointer = unsafe { DevicePointer::new(ordinal, address, bytes) };
            let made = CudaArena::new(&context, Memory::Lent(vec![pointer]));
            let what = format!("{bytes} bytes at {address:#x} of {ordinal}");
            match made {
                Ok(_) => assert!(right, "{what} were taken"),
                Err(DeviceError::NotOfDevice { device, .. }) => {
                    assert!(!right && device == "cuda:0", "{what}");
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    turn.end();
}

/// Host memory that a device could read is not its memory.
#[test]
fn pinned_host_memory_is_not_the_devices_to_lend() {
    let turn = turn(&Emulator::new());
    {
        let context = Context::of(0).unwrap();
        let (_pinned, slab, _free) = slots(4096, 1);
        let address = slab.region().start() as u64;
        let pointer = unsafe { DevicePointer::new(0, address, 16) };
        let made = CudaArena::new(&context, Memory::Lent(vec![pointer]));
        assert!(matches!(made, Err(DeviceError::NotOfDevice { .. })), "it was taken");
    }
    turn.end();
}

#[test]
fn what_would_corrupt_a_neighbour_is_a_panic_and_copies_nothing() {
    let turn = turn(&Emulator::new());
    let wrong = [
        ("96 bytes at 8 of a tensor of 100", segment(0, 0, 0, 8, 96)),
        ("past its slot", segment(0, 1, 60, 0, 10)),
        ("tensor 2 is whole already", segment(0, 2, 0, 0, 10)),
    ];
    for (words, wrong) in wrong {
        let (_arena, writer) = arena(0, &[100, 100, 10]);
        let (_pinned, _slab, mut free) = slots(4096, 1);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        uploader.publish(0, 2);
        let slot = full(free.pop().unwrap(), &[1; 64]);
        let upload = || uploader.upload(slot, 0, &[wrong]).map(drop);
        let panic = catch_unwind(AssertUnwindSafe(upload)).unwrap_err();
        let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(said.contains(words) || words.starts_with("96"), "{said}");
    }
    assert_eq!(turn.uploads(0), (0, 0));
    turn.end();
}

#[test]
fn a_tensor_can_not_be_read_before_it_is_published() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(1e6));
    {
        let (arena, writer) = arena(0, &[100_000]);
        let (_pinned, _slab, mut free) = slots(102_400, 1);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        let bytes = pattern(4, 100_000);
        let slot = full(free.pop().unwrap(), &bytes);
        uploader.upload(slot, 0, &[segment(0, 0, 0, 0, 100_000)]).unwrap();
        // A tenth of a second passes until the copy is done; until then nobody can look.
        assert!(uploader.completions().try_recv().is_err(), "the copy is done already");
        assert_eq!((arena.tensor(0), turn.uploads(0).0), (None, 0));
        let read_early = || arena.read(0, 0, &mut [0; 4]);
        assert!(catch_unwind(AssertUnwindSafe(read_early)).is_err());
        let drained = settle_all(&mut uploader);
        assert_eq!((drained.len(), turn.uploads(0).0), (1, 1));
        uploader.publish(0, 0);
        assert_eq!(read(&arena, 0, 100_000), bytes);
        let past_end = || arena.read(0, 99_999, &mut [0; 2]);
        assert!(catch_unwind(AssertUnwindSafe(past_end)).is_err());
    }
    turn.end();
}

#[test]
fn a_refused_copy_leaves_the_slot_with_the_uploader_until_that_is_dropped() {
    let slow = || Emulator::new().devices(2).upload_bytes_per_s(2e6);
    for (call, nth) in [("cuMemcpyHtoDAsync_v2", 2), ("cuEventCreate", 1), ("cuEventRecord", 1)] {
        let turn = turn(&slow().device(0, |device| device.fail_call(call, nth, 999)));
        {
            let (_first, to_first) = arena(0, &[50_000, 50_000]);
            let (_second, to_second) = arena(1, &[50_000]);
            let (pinned, slab, mut free) = slots(204_800, 2);
            let writers = vec![Writer::Cuda(to_first), Writer::Cuda(to_second)];
            let mut uploader = Uploader::new(writers, 2).unwrap();
            let segments = [
                segment(0, 0, 0, 0, 50_000),
                segment(0, 1, 60_000, 0, 50_000),
                segment(1, 0, 120_000, 0, 50_000),
            ];
            let slot = full(free.pop().unwrap(), &pattern(5, 200_000));
            let error = uploader.upload(slot, 3, &segments).unwrap_err();
            let DeviceError::Copy { device, read, refusal } = error else { panic!("{error}") };
            assert_eq!((&*device, read, refusal.code), ("cuda:0", 3, 999));
            assert!(call.starts_with(refusal.call), "{refusal}");
            // The first copy, and that to the other device, are under way.
            assert_eq!((uploader.in_flight(), slab.census().draining), (1, 1));
            drop(uploader);
            assert_eq!(slab.census().draining, 0);
            assert!(turn.uploads(0).0 >= 1, "the drop has not waited");
            drop(pinned);
            assert_eq!(turn.violations(), 0);
        }
        turn.end();
    }
}

#[test]
fn a_device_that_fails_later_is_told_with_the_read_and_keeps_the_slot() {
    // The other device takes its time, so that its copy out of the slot completes last.
    let emulator = Emulator::new().devices(2).device(0, |device| device.stall_copy(2, 1500));
    // Not before its event is recorded.
    let turn = turn(&emulator.device(1, |device| device.fail_copy(2, 719).stall_copy(2, 700)));
    {
        let (_first, to_first) = arena(0, &[1000, 1000]);
        let (_second, to_second) = arena(1, &[1000, 1000]);
        let (_pinned, slab, mut free) = slots(4096, 3);
        let writers = vec![Writer::Cuda(to_first), Writer::Cuda(to_second)];
        let mut uploader = Uploader::new(writers, 3).unwrap();
        for read in 0..2 {
            let segments = [segment(0, read, 0, 0, 1000), segment(1, read, 1000, 0, 1000)];
            let slot = full(free.pop().unwrap(), &pattern(6, 2000));
            assert!(uploader.upload(slot, read + 40, &segments).unwrap().is_none());
        }
        let mut errors = Vec::new();
        let mut back = Vec::new();
        for _ in 0..4 {
            match settle(&mut uploader) {
                Ok(drained) => back.extend(drained),
                Err(error) => errors.push(error),
            }
        }
        // Once a copy has failed, its context is in error, and what came before may tell it too.
        assert!(!errors.is_empty());
        for error in &errors {
            let DeviceError::Copy { device, refusal, .. } = error else { panic!("{error}") };
            assert_eq!((&**device, refusal.code), ("cuda:1", 719));
        }
        assert!(errors.iter().any(|it| matches!(it, DeviceError::Copy { read: 41, .. })));
        assert!(back.iter().all(|drained| drained.read != 41), "the slot was handed back");
        assert!(uploader.in_flight() >= 1, "the slot stays until the drop");
        drop((uploader, back));
        assert_eq!(slab.census().draining, 0);
    }
    turn.end();
}

#[test]
fn dropping_the_uploader_waits_for_every_copy() {
    let turn = turn(&Emulator::new().devices(2).upload_bytes_per_s(10e6));
    {
        let (_first, to_first) = arena(0, &[100_000; 4]);
        let (_second, to_second) = arena(1, &[100_000; 4]);
        let (pinned, slab, mut free) = slots(204_800, 4);
        let writers = vec![Writer::Cuda(to_first), Writer::Cuda(to_second)];
        let mut uploader = Uploader::new(writers, 4).unwrap();
        for read in 0..4 {
            let segments = [segment(0, read, 0, 0, 100_000), segment(1, read, 100_000, 0, 100_000)];
            let slot = full(free.pop().unwrap(), &pattern(7, 204_800));
            assert!(uploader.upload(slot, read, &segments).unwrap().is_none());
        }
        assert_eq!(slab.census().draining, 4);
        drop(uploader);
        assert_eq!((turn.uploads(0).0, turn.uploads(1).0), (4, 4));
        assert_eq!(slab.census().dropped, 4);
        drop(pinned);
    }
    turn.end();
}

/// What the tests above would say of an uploader that does not wait: it hands slots back while
/// devices still read from them.
#[test]
fn with_events_that_are_always_complete_slots_come_back_too_early() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(10e6).immediate_events());
    {
        let (arena, writer) = arena(0, &[400_000]);
        let (_pinned, _slab, mut free) = slots(102_400, 1);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        let bytes = pattern(8, 400_000);
        let mut slot = free.pop().unwrap();
        for (read, chunk) in bytes.chunks(100_000).enumerate() {
            let segments = [segment(0, 0, 0, read as u64 * 100_000, 100_000)];
            uploader.upload(full(slot, chunk), read, &segments).unwrap();
            slot = settle_all(&mut uploader).pop().unwrap().slot.release();
        }
        uploader.publish(0, 0);
        drop(uploader);
        // From here on events tell the truth: what is wrong was wrong by then.
        Emulator::new().install();
        assert!(read(&arena, 0, 400_000) != bytes, "every byte is right");
        let changed = Emulator::report().violations_of("source-changed");
        assert!(changed > turn.before.violations_of("source-changed"));
    }
    expect_nothing_held();
}

/// Three slots go round; what they bring is scattered over two devices and the host.
#[test]
fn slots_go_round_and_every_byte_arrives() {
    let turn = turn(&Emulator::new().devices(2).upload_bytes_per_s(400e6));
    {
        const CHUNK: usize = 8192;
        const CHUNKS: usize = 90;
        let part = (CHUNK * CHUNKS / 3) as u64;
        let (first, to_first) = arena(0, &[part]);
        let (second, to_second) = arena(1, &[part]);
        let (host, to_host) =
            HostArena::new("host", &ArenaLayout::packed([part]).unwrap()).unwrap();
        let (_pinned, _slab, mut free) = slots(CHUNK, 3);
        let writers = vec![Writer::Cuda(to_first), Writer::Host(to_host), Writer::Cuda(to_second)];
        let mut uploader = Uploader::new(writers, 3).unwrap();
        let bytes = pattern(9, CHUNK * CHUNKS);
        let mut sent = [0_u64; 3];
        let mut expected: [Vec<u8>; 3] = Default::default();
        for (read, chunk) in bytes.chunks(CHUNK).enumerate() {
            let slot = match free.pop() {
                Some(slot) => slot,
                None => loop {
                    if let Some(drained) = settle(&mut uploader).unwrap() {
                        break drained.slot.release();
                    }
                },
            };
            // In pieces of a third, to each arena one, in changing order.
            let cuts = [0, 2731, 2731 * 2, CHUNK];
            let mut segments = Vec::new();
            for piece in 0..3 {
                let (start, end) = (cuts[piece], cuts[piece + 1]);
                let to = (piece + read) % 3;
                let room = usize::try_from(part - sent[to]).unwrap();
                let bytes = (end - start).min(room);
                let (at, length) = (u32::try_from(start).unwrap(), u32::try_from(bytes).unwrap());
                segments.push(segment(to, 0, at, sent[to], length));
                sent[to] += bytes as u64;
                expected[to].extend(&chunk[start..start + bytes]);
            }
            free.extend(
                uploader
                    .upload(full(slot, chunk), read, &segments)
                    .unwrap()
                    .map(|it| it.slot.release()),
            );
        }
        settle_all(&mut uploader);
        (0..3).for_each(|arena| uploader.publish(arena, 0));
        assert!(read(&first, 0, expected[0].len()) == expected[0]);
        assert!(host.tensor(0).unwrap()[..expected[1].len()] == expected[1]);
        assert!(read(&second, 0, expected[2].len()) == expected[2]);
        assert!(turn.calls("cuEventCreate") <= 2 * 3 + 2, "events are used again");
    }
    turn.end();
}

#[test]
fn columns_arrive_without_gaps_however_the_rows_are_cut() {
    const ROWS: usize = 23;
    const ROW: usize = 311;
    let turn = turn(&Emulator::new().devices(2));
    for cut in [1, 100, 310, 311, 312, 933, 7153] {
        let (left, mut to_left) = arena(0, &[(ROWS * 100) as u64]);
        let (right, mut to_right) = arena(1, &[(ROWS * 211) as u64]);
        to_left.take_columns(0, Columns { row_bytes: ROW as u64, slice: 0..100 });
        to_right.take_columns(0, Columns { row_bytes: ROW as u64, slice: 100..311 });
        let (_pinned, _slab, mut free) = slots(8192, 1);
        let writers = vec![Writer::Cuda(to_left), Writer::Cuda(to_right)];
        let mut uploader = Uploader::new(writers, 1).unwrap();
        let bytes = pattern(10, ROWS * ROW);
        let mut slot = free.pop().unwrap();
        for (read, piece) in bytes.chunks(cut).enumerate() {
            let length = u32::try_from(piece.len()).unwrap();
            let at = (read * cut) as u64;
            let segments = [segment(0, 0, 0, at, length), segment(1, 0, 0, at, length)];
            // A piece may hold nothing of one device's, or of the other's.
            slot = match uploader.upload(full(slot, piece), read, &segments).unwrap() {
                Some(drained) => drained.slot.release(),
                None => settle_all(&mut uploader).pop().unwrap().slot.release(),
            };
        }
        uploader.publish(0, 0);
        uploader.publish(1, 0);
        let columns = |range: std::ops::Range<usize>| -> Vec<u8> {
            bytes.chunks(ROW).flat_map(|row| &row[range.clone()]).copied().collect()
        };
        assert!(read(&left, 0, ROWS * 100) == columns(0..100), "cut to {cut}");
        assert!(read(&right, 0, ROWS * 211) == columns(100..311), "cut to {cut}");
    }
    assert!(turn.calls("cuMemcpy2DAsync_v2") > 0);
    turn.end();
}

#[test]
fn tensors_are_read_back_through_a_slot() {
    let turn = turn(&Emulator::new().devices(2));
    {
        let (arena, writer) = arena(0, &[10_000]);
        let (elsewhere, _) = self::arena(1, &[1]);
        let (_pinned, _slab, mut free) = slots(16_384, 2);
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 2).unwrap();
        let bytes = pattern(11, 10_000);
        let slot = full(free.pop().unwrap(), &bytes);
        uploader.upload(slot, 0, &[segment(0, 0, 0, 0, 10_000)]).unwrap();
        settle_all(&mut uploader);
        uploader.publish(0, 0);
        let slot = free.pop().unwrap().fill();
        let mut back = ReadBack::new(&Context::of(0).unwrap(), slot).unwrap();
        assert_eq!(back.capacity(), 16_384);
        for (offset, length) in [(0, 10_000), (1, 1), (9_999, 1), (5_000, 0), (3, 9_997)] {
            let there = back.read(&arena, 0, offset as u64, length).unwrap();
            assert!(there == &bytes[offset..offset + length], "{length} at {offset}");
        }
        for (arena, offset, length) in
            [(&arena, 0, 10_001), (&arena, 10_001, 0), (&arena, u64::MAX, 1), (&elsewhere, 0, 1)]
        {
            let read = || back.read(arena, 0, offset, length).map(drop);
            assert!(catch_unwind(AssertUnwindSafe(read)).is_err(), "{length} at {offset}");
        }
    }
    turn.end();
}

#[test]
fn a_device_that_is_full_says_how_much_is_needed_and_free() {
    let turn = turn(&Emulator::new().memory_bytes(10_000));
    {
        let context = Context::of(0).unwrap();
        let (_arena, _writer) = arena(0, &[4000]);
        let layout = ArenaLayout::packed([5000, 3000]).unwrap();
        let error = CudaArena::new(&context, Memory::Own(layout)).unwrap_err();
        let DeviceError::DeviceFull { device, needed_bytes, free_bytes } = error else {
            panic!("{error}")
        };
        assert_eq!((&*device, needed_bytes, free_bytes), ("cuda:0", 5120 + 3000, Some(6000)));
        assert_eq!(context.memory_bytes().unwrap(), (6000, 10_000));
        // Tensors without bytes take none.
        let (empty, mut writer) = arena(0, &[0, 0]);
        assert_eq!(empty.tensor(0), None);
        writer.take_columns(0, Columns { row_bytes: 4, slice: 1..2 });
        let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
        uploader.publish(0, 1);
        empty.read(1, 0, &mut []).unwrap();
        assert_eq!(turn.calls("cuMemAlloc_v2"), 2);
    }
    turn.end();
}

#[test]
fn devices_are_counted_and_one_too_many_is_refused() {
    let turn = turn(&Emulator::new().devices(3).device(1, |device| device.integrated(true)));
    let found = devices().unwrap();
    let integrated: Vec<bool> = found.iter().map(|device| device.is_integrated).collect();
    assert_eq!(integrated, [false, true, false]);
    assert!(found.iter().all(|device| device.is_emulated && device.link.is_none()));
    let refused = Context::of(3).unwrap_err();
    assert_eq!(refused, Unavailable::NoSuchDevice { asked: 3, present: 3 });
    assert!(Context::of(u32::MAX).is_err());
    let (context, same) = (Context::of(1).unwrap(), Context::of(1).unwrap());
    assert!(Arc::ptr_eq(&context, &same), "a process has one context a device");
    assert_eq!(turn.calls("cuDevicePrimaryCtxRetain"), 1);
    drop((context, same));
    turn.end();
}

/// The thread may be that of a program with contexts of its own.
#[test]
fn the_threads_current_context_is_left_as_it_was() {
    let turn = turn(&Emulator::new().devices(2));
    {
        let (_, of_the_program) = lend(1, 64);
        of_the_program.within(|| {
            let (arena, writer) = arena(0, &[1000]);
            let (pinned, _slab, mut free) = slots(4096, 1);
            let mut uploader = Uploader::new(vec![Writer::Cuda(writer)], 1).unwrap();
            let slot = full(free.pop().unwrap(), &[7; 1000]);
            uploader.upload(slot, 0, &[segment(0, 0, 0, 0, 1000)]).unwrap();
            settle_all(&mut uploader);
            uploader.publish(0, 0);
            assert_eq!(read(&arena, 0, 1000), [7; 1000]);
            let current = || result::ctx::get_current().unwrap().unwrap();
            assert_eq!(current(), of_the_program.context);
            drop(uploader);
            drop(arena);
            drop(pinned);
            assert_eq!(current(), of_the_program.context);
        });
    }
    turn.end();
}

fn shape(slot_bytes: usize, slots: usize) -> StagingShape {
    StagingShape { slot_bytes, groups: vec![SlotGroup { numa: NumaPolicy::Off, slots }] }
}

#[test]
fn staging_memory_is_pinned_once_and_the_last_is_kept() {
    let turn = turn(&Emulator::new());
    release_staging();
    {
        let context = Context::of(0).unwrap();
        let registered = || Emulator::report().registered.count;
        let keep = |shape: &StagingShape| {
            let (staging, tokens) = Staging::take(&context, shape).unwrap();
            assert_eq!((tokens.len(), staging.refusal()), (shape.slots(), None));
            let is_reused = staging.is_reused();
            drop(tokens);
            staging.keep();
            is_reused
        };
        assert!(!keep(&shape(4096, 4)));
        assert!(keep(&shape(4096, 4)));
        assert!(!keep(&shape(4096, 5)), "another shape");
        assert!(keep(&shape(4096, 5)));
        assert!(!keep(&shape(8192, 4)), "another size");
        assert!(keep(&shape(8192, 4)));
        assert!((1..=2).contains(&registered()), "what is kept is bounded");
        // A second one of a shape that is in use is a new one.
        let (first, first_tokens) = Staging::take(&context, &shape(8192, 4)).unwrap();
        let (second, second_tokens) = Staging::take(&context, &shape(8192, 4)).unwrap();
        assert_eq!((first.is_reused(), second.is_reused()), (true, false));
        drop((first_tokens, second_tokens));
        drop((first, second));
        release_staging();
        assert_eq!(registered(), 0);
        assert_eq!(turn.calls("cuMemHostUnregister"), turn.calls("cuMemHostRegister_v2"));
    }
    turn.end();
}

#[test]
fn staging_memory_that_can_not_be_pinned_is_used_and_not_kept() {
    let turn = turn(&Emulator::new().fail_call("cuMemHostRegister_v2", 0, 2));
    {
        let context = Context::of(0).unwrap();
        for _ in 0..2 {
            let (staging, tokens) = Staging::take(&context, &shape(4096, 2)).unwrap();
            assert_eq!(staging.refusal().map(|refusal| refusal.code), Some(2));
            assert!(!staging.is_reused());
            drop(tokens);
            staging.keep();
        }
        assert_eq!(turn.calls("cuMemHostRegister_v2"), 2);
    }
    turn.end();
}

#[test]
fn the_ceiling_is_measured_and_leaves_nothing() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(2e9));
    assert!(upload_ceiling(0, 20 << 20).unwrap() > Duration::ZERO);
    assert_eq!(turn.uploads(0), (2, 20 << 20));
    upload_ceiling(0, 0).unwrap();
    assert!(matches!(upload_ceiling(1, 1), Err(DeviceError::Unavailable(_))));
    turn.end();
    for (call, code) in [
        ("cuMemHostRegister_v2", 2),
        ("cuMemAlloc_v2", 2),
        ("cuStreamCreate", 999),
        ("cuEventCreate", 999),
        ("cuMemcpyHtoDAsync_v2", 719),
        ("cuEventRecord", 719),
        ("cuEventSynchronize", 719),
    ] {
        let turn = self::turn(&Emulator::new().fail_call(call, 1, code));
        assert!(upload_ceiling(0, 40 << 20).is_err(), "{call}");
        turn.end();
    }
    let turn = self::turn(&Emulator::new().fail_copy(2, 719));
    assert!(upload_ceiling(0, 40 << 20).is_err());
    turn.end();
}

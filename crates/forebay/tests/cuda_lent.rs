//! Memory that the embedder has allocated on a device.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

#[path = "support/cuda.rs"]
mod cuda;
mod support;

use cuda::{loader_to, turn};
use cudarc::driver::{result, sys};
use forebay::{Backend, DeviceError, DevicePointer, Error, Loader, SplitMode};
use forebay_cuda_emulator::Emulator;
use support::TestModel;

const GUARD: u8 = 0x5A;

/// An embedder's memory on a device, full of [`GUARD`] at first.
struct Memory {
    device: i32,
    context: sys::CUcontext,
    address: u64,
    bytes: usize,
}

impl Memory {
    fn new(device: i32, bytes: usize) -> Self {
        result::init().unwrap();
        let handle = result::device::get(device).unwrap();
        let context = unsafe { result::primary_ctx::retain(handle) }.unwrap();
        let mut memory = Self { device, context, address: 0, bytes };
        memory.address = memory.within(|| {
            let address = unsafe { result::malloc_sync(bytes) }.unwrap();
            unsafe { result::memset_d8_sync(address, GUARD, bytes) }.unwrap();
            address
        });
        memory
    }

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

    /// A range of it, lent.
    fn pointer(&self, offset: usize, bytes: u64) -> DevicePointer {
        let ordinal = u32::try_from(self.device).unwrap();
        unsafe { DevicePointer::new(ordinal, self.address + offset as u64, bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.within(|| unsafe { result::free_sync(self.address) }.unwrap());
        unsafe { result::primary_ctx::release(self.device) }.unwrap();
    }
}

fn name(number: usize) -> String {
    format!("model.layers.{number}.weight")
}

/// Matrices, and one short vector between two of them.
fn model() -> TestModel {
    let shape = |number: usize| if number == 2 { vec![13] } else { vec![50 + number, 1009] };
    TestModel::shaped((0..6).map(|number| (name(number), shape(number))))
}

fn length(model: &TestModel, number: usize) -> usize {
    model.tensors[&name(number)].len()
}

#[test]
fn tensors_land_in_lent_memory_and_their_neighbours_stay() {
    let turn = turn(&Emulator::new().devices(3));
    let model = model();
    for (devices, split) in
        [("cuda:0", SplitMode::Layers), ("cuda:all", SplitMode::Rows), ("host", SplitMode::Layers)]
    {
        for mode in ["dio", "none", "mmap"] {
            let (first, second) = (Memory::new(1, 400_000), Memory::new(2, 60_000));
            // At odd places, two as far from each other as in the file, one at the very end.
            let at_3 = 101 + length(&model, 1) + length(&model, 2);
            let at_4 = 400_000 - length(&model, 4);
            let lent = [
                (1, first.pointer(101, length(&model, 1) as u64)),
                (3, first.pointer(at_3, length(&model, 3) as u64 + 77)),
                (4, first.pointer(at_4, length(&model, 4) as u64)),
                (5, second.pointer(3, 59_997)),
            ];
            let mut loader = Loader::new(&model.path)
                .load_mode(mode.parse().unwrap())
                .device(devices.parse().unwrap())
                .split(split)
                .chunk_bytes(16 << 10)
                .staging_bytes(64 << 10);
            for (number, pointer) in &lent {
                loader = loader.into_device_memory(&name(*number), pointer.clone());
            }
            let loaded = loader.load().unwrap();
            loaded.tensors().for_each(|tensor| model.assert_right(&tensor));
            for (number, pointer) in &lent {
                let tensor = loaded.tensor(&name(*number)).unwrap();
                assert_eq!(tensor.backend(), Backend::Cuda(pointer.ordinal()));
                assert_eq!(tensor.device_address(), Some(pointer.address()));
                assert_eq!(tensor.parts().len(), 1);
            }
            let digests = loaded.digests().unwrap();
            assert_eq!(digests.len(), 6);
            drop(loaded);
            let mut expected = vec![GUARD; 400_000];
            for (number, at) in [(1, 101), (3, at_3), (4, at_4)] {
                let bytes = &model.tensors[&name(number)];
                expected[at..at + bytes.len()].copy_from_slice(bytes);
            }
            let what = format!("{devices} {split:?} {mode}");
            assert!(first.read() == expected, "{what}: a neighbour has changed");
            let bytes = &model.tensors[&name(5)];
            let mut expected = vec![GUARD; 60_000];
            expected[3..3 + bytes.len()].copy_from_slice(bytes);
            assert!(second.read() == expected, "{what}: a neighbour has changed");
        }
    }
    turn.end();
}

fn refused(loader: Loader) -> Error {
    match loader.load() {
        Ok(_) => panic!("it was taken"),
        Err(error) => error,
    }
}

#[test]
fn what_can_not_be_lent_is_one_clear_error() {
    let turn = turn(&Emulator::new().devices(2));
    let model = model();
    let (memory, other) = (Memory::new(0, 100_000), Memory::new(1, 100_000));
    let bytes = length(&model, 0) as u64;
    let loader = || loader_to(&model, "cuda:0", SplitMode::Layers);
    let lend = |pointer: DevicePointer| refused(loader().into_device_memory(&name(0), pointer));
    let options = [
        (lend(memory.pointer(0, bytes - 1)), format!("{bytes} bytes, and {} are", bytes - 1)),
        (
            refused(loader().into_device_memory("no.such.weight", memory.pointer(0, bytes))),
            "no tensor 'no.such.weight'".to_owned(),
        ),
        (
            refused(
                loader()
                    .into_device_memory(&name(0), memory.pointer(0, bytes))
                    .into_device_memory(&name(0), memory.pointer(0, bytes)),
            ),
            "lent memory twice".to_owned(),
        ),
    ];
    for (error, words) in options {
        assert!(matches!(error, Error::Option { option: "lent memory", .. }), "{error}");
        assert!(error.to_string().contains(&words) && error.remedy().is_some(), "{error}");
    }
    let claim = |ordinal, address, bytes| unsafe { DevicePointer::new(ordinal, address, bytes) };
    let host = vec![0_u8; 100_000];
    for (what, pointer) in [
        ("another device's", claim(0, other.address, bytes)),
        ("past the end", claim(0, memory.address + 100_000 - bytes + 1, bytes)),
        ("nowhere", claim(0, 0x7F00_0000_1234, bytes)),
        ("null", claim(0, 0, bytes)),
        ("the host's", claim(0, host.as_ptr() as u64, bytes)),
        ("past the address space", claim(0, memory.address, u64::MAX)),
    ] {
        let error = lend(pointer);
        let Error::Device(DeviceError::NotOfDevice { device, .. }) = &error else {
            panic!("{what}: {error}")
        };
        assert_eq!(device, "cuda:0", "{what}");
    }
    let error = lend(claim(9, memory.address, bytes));
    assert!(matches!(error, Error::Device(DeviceError::Unavailable(_))), "{error}");
    // Nothing was written anywhere.
    assert!(memory.read().iter().chain(&other.read()).all(|&byte| byte == GUARD));
    drop((memory, other));
    turn.end();
}

/// Two tensors in one place would each overwrite the other.
#[test]
fn ranges_that_overlap_are_refused() {
    let turn = turn(&Emulator::new());
    let model = model();
    let memory = Memory::new(0, 200_000);
    let lend =
        |number: usize, at| (name(number), memory.pointer(at, length(&model, number) as u64));
    let [(first, at_first), (second, at_second)] = [lend(0, 0), lend(1, length(&model, 0) - 1)];
    let loader = loader_to(&model, "cuda:0", SplitMode::Layers)
        .into_device_memory(&first, at_first)
        .into_device_memory(&second, at_second);
    let outcome = loader.load().map(drop);
    drop(memory);
    assert!(outcome.is_err(), "one tensor has overwritten the other");
    turn.end();
}

#[test]
fn a_plan_with_lent_memory_is_not_started_again_and_again() {
    let turn = turn(&Emulator::new());
    let model = model();
    let memory = Memory::new(0, 100_000);
    let lend = || {
        let pointer = memory.pointer(0, length(&model, 0) as u64);
        loader_to(&model, "cuda:0", SplitMode::Layers).into_device_memory(&name(0), pointer)
    };
    let plan = lend().plan().unwrap();
    assert!(matches!(plan.start(), Err(Error::Option { .. })));
    let loaded = lend().load().unwrap();
    model.assert_right(&loaded.tensor(&name(0)).unwrap());
    drop((loaded, plan, memory));
    turn.end();
}

/// The embedder may free it as soon as the drop returns.
#[test]
fn a_dropped_load_writes_to_lent_memory_no_more() {
    let turn = turn(&Emulator::new().upload_bytes_per_s(5e6));
    let model = model();
    for wait_ms in [0, 3, 10] {
        let memory = Memory::new(0, 400_000);
        let (mut at, mut loader) = (0, loader_to(&model, "cuda:0", SplitMode::Layers));
        for number in 0..6 {
            let bytes = length(&model, number);
            let pointer = memory.pointer(at, bytes as u64);
            loader = loader.into_device_memory(&name(number), pointer);
            at += bytes;
        }
        let load = loader.chunk_bytes(8192).staging_bytes(32 << 10).start().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(wait_ms));
        drop(load);
        // In flight, this would be a violation.
        drop(memory);
        turn.expect_nothing_held("dropped");
    }
    turn.end();
}

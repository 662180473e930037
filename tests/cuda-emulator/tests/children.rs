//! Programs that know nothing of the emulator: found by its name, configured by the environment,
//! reported when they end, however they end.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated driver, which checks what it is given"
)]

mod common;

use common::{Context, allocate};
use cudarc::driver::{result, sys};
use forebay_cuda_emulator::{Emulator, Report};
use std::process::{Command, Output};

/// Runs one of the ignored tests below as a program of its own.
fn child(emulator: &Emulator, program: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", program, "--ignored", "--nocapture"]);
    emulator.command(&mut command).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_child_reports_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let emulator = Emulator::new().devices(2).memory_bytes(1 << 20).report_to(&path);
    let output = child(&emulator, "program_that_leaks_and_exits");
    assert_eq!(output.status.code(), Some(7), "{}", told(&output));
    let report = Report::read(&path).unwrap();
    assert_eq!(report.devices.len(), 2);
    assert_eq!((report.devices[1].memory.count, report.devices[1].memory.bytes), (1, 1 << 20));
    assert_eq!(report.calls_of("cuMemAlloc_v2"), 1);
    assert_eq!(report.violations_of("leak"), 1);
    assert!(told(&output).contains("memory of device 1: 1 pieces, 1048576 bytes"));
}

#[test]
fn a_child_that_is_misconfigured_dies() {
    for (words, reason) in [
        ("memroy=1GiB", "`memroy=1GiB` is no word"),
        ("fail=cuMemAllocate:1:2", "no `cuMemAllocate`"),
    ] {
        let output = child(&Emulator::new().word(words), "program_that_leaks_and_exits");
        assert_eq!(output.status.code(), None, "died of a signal");
        assert!(told(&output).contains(reason), "{}", told(&output));
    }
}

#[test]
fn a_child_finds_no_device() {
    let output = child(&Emulator::new().no_device(), "program_that_asks_for_devices");
    assert!(told(&output).contains("init: CUDA_ERROR_NO_DEVICE"), "{}", told(&output));
    let output = child(&Emulator::new().devices(0), "program_that_asks_for_devices");
    assert!(told(&output).contains("devices: 0"), "{}", told(&output));
}

#[test]
#[ignore = "a program for the tests above"]
fn program_that_leaks_and_exits() {
    std::mem::forget(Context::of(1));
    let _ = allocate(1 << 20);
    std::process::exit(7);
}

#[test]
#[ignore = "a program for the tests above"]
fn program_that_asks_for_devices() {
    assert!(unsafe { sys::is_culib_present() });
    let library = unsafe { sys::culib() };
    let marker: Result<_, _> =
        unsafe { library.get::<unsafe extern "C" fn() -> u32>(b"forebay_cuda_emulator\0") };
    assert_eq!(unsafe { marker.unwrap()() }, 1);
    assert_eq!(
        result::device::get_count().unwrap_err().0,
        sys::CUresult::CUDA_ERROR_NOT_INITIALIZED
    );
    match result::init() {
        Err(error) => eprintln!("init: {:?}", error.0),
        Ok(()) => eprintln!("devices: {}", result::device::get_count().unwrap()),
    }
}

//! Everything that a driver can refuse, on an emulated one: one clear error with causes and a
//! remedy, exit status 1, nothing left behind; or, where it does no harm, a load that is right.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/model.rs"]
mod model;
mod support;

use cuda::{Ran, load_on, loaded_on, run_on, upload_copies};
use forebay_cuda_emulator::{Emulator, Report};
use model::Model;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use support::{command, fixtures, scratch, text};

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const ECC_UNCORRECTABLE: u32 = 214;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_FAILED: u32 = 719;
const NOT_PERMITTED: u32 = 800;
const UNKNOWN: u32 = 999;

/// Small reads, so that there are many copies.
const SMALL: [&str; 4] = ["--chunk", "64KiB", "--staging", "512KiB"];

/// A model of a few MiB, made once.
fn model() -> &'static (tempfile::TempDir, Model) {
    static MODEL: OnceLock<(tempfile::TempDir, Model)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let folder = scratch();
        let model = Model::gguf_of(folder.path(), "3MiB");
        (folder, model)
    })
}

fn path() -> &'static Path {
    &model().1.path
}

fn with<'flag>(flags: &[&'flag str]) -> Vec<&'flag str> {
    [&SMALL[..], flags].concat()
}

/// A load with these flags that ends with one error that says all of `words`, cleanly.
fn refused(emulator: &Emulator, flags: &[&str], words: &[&str]) -> Ran {
    let ran = load_on(emulator, path(), &with(flags));
    ran.expect_error(words);
    ran.expect_clean();
    ran
}

/// A load with these flags that lands every byte all the same.
fn lands(emulator: &Emulator, flags: &[&str]) -> (Value, Report) {
    let (report, driver) = loaded_on(emulator, path(), &with(flags));
    model().1.expect_in(&report, &emulator.config());
    (report, driver)
}

/// The load of one device, and of several in parts.
const PLACEMENTS: [&[&str]; 2] =
    [&["--device", "cuda"], &["--device", "cuda:all", "--split", "columns"]];

#[test]
fn a_driver_that_serves_no_device_is_one_error_and_auto_does_without() {
    let cases: [(Emulator, &[&str]); 10] = [
        (Emulator::new().no_device(), &["finds no GPU", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
        (Emulator::new().devices(0), &["finds no GPU", "nvidia-smi"]),
        (Emulator::new().driver_version(11080), &["too old", "CUDA 11.8", "12.0 is needed", "525"]),
        (Emulator::new().fail_call("cuInit", 0, 999), &["cuInit answered 999", "unknown error"]),
        (Emulator::new().fail_call("cuInit", 0, 804), &["cuInit answered 804", "COMPAT"]),
        (Emulator::new().fail_call("cuInit", 0, 803), &["cuInit answered 803", "MISMATCH"]),
        (Emulator::new().fail_call("cuInit", 0, 34), &["cuInit answered 34", "stub"]),
        (Emulator::new().fail_call("cuDriverGetVersion", 0, 1), &["cuDriverGetVersion answered 1"]),
        (Emulator::new().fail_call("cuDeviceGetCount", 0, 3), &["cuDeviceGetCount answered 3"]),
        (
            Emulator::new()
                .fail_call("cuInit", 0, 999)
                .fail_call("cuGetErrorName", 0, 1)
                .fail_call("cuGetErrorString", 0, 1),
            &["cuInit answered 999", "unknown to the driver"],
        ),
    ];
    for (emulator, words) in cases {
        refused(&emulator, &["--device", "cuda"], words);
        refused(&emulator, &["--device", "cuda:all"], words);
        refused(&emulator, &["--device", "host", "--place", "attn=cuda:0"], words);
        let (report, _) = lands(&emulator, &["--device", "auto"]);
        assert_eq!(report["backends"][0]["backend"], "host");
        assert_eq!(report["devices"], serde_json::json!([]));
        let why = report["why"][0].as_str().unwrap();
        assert!(words[..1].iter().all(|word| why.contains(word)), "{why}");
    }
}

#[test]
fn a_device_that_is_not_there_is_named_with_how_many_there_are() {
    let emulator = Emulator::new().devices(2);
    let words = ["no GPU 7", "has 2", "forebay doctor"];
    refused(&emulator, &["--device", "cuda:7"], &words);
    refused(&emulator, &["--device", "cuda:0,cuda:7"], &words);
    refused(&emulator, &["--device", "cuda", "--place", "attn=cuda:7"], &words);
    refused(&emulator, &["--place", "attn=rows:cuda:1,cuda:7"], &words);
    refused(&emulator, &["--device", "cuda:4294967295"], &["no GPU 4294967295"]);
}

#[test]
fn a_context_that_is_refused_is_one_error() {
    for code in [OUT_OF_MEMORY, 46, UNKNOWN] {
        let emulator = Emulator::new().fail_call("cuDevicePrimaryCtxRetain", 0, code);
        let answered = format!("cuDevicePrimaryCtxRetain answered {code}");
        refused(&emulator, &["--device", "cuda"], &[&answered]);
        let several = emulator.devices(4);
        refused(&several, &["--device", "cuda:all", "--split", "rows"], &[&answered]);
    }
}

#[test]
fn too_little_memory_is_told_with_need_room_and_the_tensors_that_do_not_fit() {
    let ran = refused(
        &Emulator::new().memory_bytes(1 << 20),
        &["--device", "cuda"],
        &[
            "no room for ",
            "memory of cuda:0",
            "has 1048576 bytes free",
            "do not fit",
            "--gpu-layers",
        ],
    );
    let said = ran.errors();
    assert!(said.contains("'output.weight'") || said.contains("more tensors"), "{said}");
    assert!(said.contains("'blk.") || said.contains("'token_embd"), "{said}");
    for split in ["rows", "columns"] {
        let emulator = Emulator::new().devices(4).device(2, |device| device.memory_bytes(65_536));
        let flags = ["--device", "cuda:all", "--split", split];
        refused(&emulator, &flags, &["memory of cuda:2", "has 65536 bytes free"]);
    }
    // All but one tensor fits.
    let emulator = Emulator::new().memory_bytes(8);
    let values = fixtures().join("gguf/values.gguf");
    let ran = load_on(&emulator, &values, &["--device", "cuda"]);
    ran.expect_error(&["no room for 32 bytes", "has 8 bytes free", "'weight' does not fit"]);
    ran.expect_clean();
}

/// Memory that is in pieces, or that somebody else has taken meanwhile.
#[test]
fn a_refusal_of_memory_that_seems_free_still_makes_a_sentence() {
    let emulator = Emulator::new().fail_call("cuMemAlloc_v2", 0, OUT_OF_MEMORY);
    let ran = refused(&emulator, &["--device", "cuda"], &["no room for ", "memory of cuda:0"]);
    let said = ran.errors();
    assert!(!said.contains(":  do not fit"), "no tensor is named: {said}");
}

#[test]
fn what_the_driver_refuses_at_the_start_is_one_error() {
    for (call, nth, code) in [
        ("cuMemAlloc_v2", 0, UNKNOWN),
        ("cuStreamCreate", 0, OUT_OF_MEMORY),
        ("cuStreamCreate", 1, UNKNOWN),
        ("cuEventCreate", 0, OUT_OF_MEMORY),
        ("cuEventRecord", 0, 400),
        ("cuEventSynchronize", 0, LAUNCH_FAILED),
    ] {
        let name = call.trim_end_matches("_v2");
        let words = [&*format!("{name} answered {code}"), "because: "];
        for flags in PLACEMENTS {
            refused(&Emulator::new().devices(4).fail_call(call, nth, code), flags, &words);
        }
    }
}

#[test]
fn a_copy_that_the_driver_refuses_ends_the_load_whichever_it_is() {
    let slow = || Emulator::new().devices(2).upload_bytes_per_s(200e6);
    for (flags, call) in [
        (&["--device", "cuda"][..], "cuMemcpyHtoDAsync_v2"),
        (&["--device", "cuda:all", "--split", "rows"], "cuMemcpyHtoDAsync_v2"),
        (&["--device", "cuda:all", "--split", "columns"], "cuMemcpy2DAsync_v2"),
    ] {
        let (_, driver) = lands(&slow(), flags);
        let last = driver.calls_of(call);
        assert!(last > 5, "{call}: {last}");
        for nth in [1, 5, last - 1, last] {
            let emulator = slow().fail_call(call, nth, INVALID_VALUE);
            let words = [&*format!("{} answered 1", call.trim_end_matches("_v2"))];
            refused(&emulator, flags, &words);
            refused(&emulator, flags, &["a copy to cuda:", "tensor '", text(path()), "dmesg"]);
        }
    }
}

#[test]
fn a_device_that_fails_during_a_copy_ends_the_load_whichever_it_is() {
    let slow = || Emulator::new().upload_bytes_per_s(200e6);
    let (_, driver) = lands(&slow(), &["--device", "cuda"]);
    let last = upload_copies(&driver);
    for nth in [1, 5, last / 2, last - 1, last] {
        for code in [LAUNCH_FAILED, ILLEGAL_ADDRESS, ECC_UNCORRECTABLE] {
            let emulator = slow().fail_copy(nth, code);
            let words =
                [&*format!("answered {code}"), "a copy to cuda:0 failed", text(path()), "dmesg"];
            refused(&emulator, &["--device", "cuda"], &words);
        }
    }
    for split in ["layers", "rows", "columns"] {
        for nth in [1, 2, 5] {
            let fail = |words: forebay_cuda_emulator::DeviceWords| {
                words.fail_copy(nth, LAUNCH_FAILED).upload_bytes_per_s(50e6)
            };
            let emulator = slow().devices(4).device(1, fail);
            let flags = ["--device", "cuda:all", "--split", split];
            refused(&emulator, &flags, &["answered 719", "a copy to cuda:1 failed", "tensor '"]);
        }
    }
}

/// Both errors are at hand; one is told.
#[test]
fn several_devices_that_fail_at_once_are_one_error() {
    let emulator =
        Emulator::new().devices(4).each_device(|device| device.fail_copy(0, ECC_UNCORRECTABLE));
    for split in ["layers", "rows", "columns"] {
        refused(&emulator, &["--device", "cuda:all", "--split", split], &["answered 214"]);
    }
}

#[test]
fn a_stalled_copy_is_waited_for_and_changes_no_byte() {
    let stalls = Emulator::new().devices(2).stall_copy(1, 120).stall_copy(5, 60);
    let stalls = stalls.device(1, |device| device.stall_copy(3, 150));
    for flags in PLACEMENTS {
        lands(&stalls, flags);
    }
    // A device that fails while another one stalls.
    let emulator = stalls.device(0, |device| device.fail_copy(4, LAUNCH_FAILED));
    let flags = ["--device", "cuda:all", "--split", "columns"];
    refused(&emulator, &flags, &["a copy to cuda:0 failed", "answered 719"]);
}

#[test]
fn what_can_not_be_read_back_is_one_error() {
    for flags in PLACEMENTS {
        let (_, driver) = lands(&Emulator::new().devices(2), flags);
        let (downloads, uploads) =
            (driver.calls_of("cuMemcpyDtoHAsync_v2"), upload_copies(&driver));
        for nth in [1, downloads / 2, downloads] {
            let emulator =
                Emulator::new().devices(2).fail_call("cuMemcpyDtoHAsync_v2", nth, UNKNOWN);
            let words = ["cuda:", "cuMemcpyDtoHAsync answered 999", "because: ", "dmesg"];
            refused(&emulator, flags, &words);
        }
        for nth in [uploads + 1, uploads + downloads] {
            let emulator = Emulator::new().devices(2).fail_copy(nth, LAUNCH_FAILED);
            refused(&emulator, flags, &["cuda:", "answered 719", "because: "]);
        }
    }
}

/// Pageable memory serves, and the report says so.
#[test]
fn staging_memory_that_can_not_be_pinned_serves_as_it_is() {
    for flags in PLACEMENTS {
        for code in [OUT_OF_MEMORY, NOT_PERMITTED, UNKNOWN] {
            let emulator = Emulator::new().devices(2).fail_call("cuMemHostRegister_v2", 0, code);
            let (report, driver) = lands(&emulator, flags);
            assert_eq!(report["upload"]["pinned"], false);
            assert_eq!(report["upload"]["staging_reused"], false);
            let why = report["upload"]["pin_refused"].as_str().unwrap();
            assert!(why.contains(&format!("cuMemHostRegister answered {code}")), "{why}");
            assert_eq!(driver.calls_of("cuMemHostUnregister"), 0);
        }
        let (report, _) = lands(&Emulator::new().devices(2), flags);
        assert_eq!(report["upload"]["pinned"], true);
        assert_eq!(report["upload"]["pin_refused"], Value::Null);
    }
}

#[test]
fn an_integrated_device_that_may_not_read_the_memory_is_one_error() {
    let emulator = || Emulator::new().device(0, |device| device.integrated(true));
    let flags = ["--device", "cuda"];
    let refusal = emulator().fail_call("cuMemHostRegister_v2", 0, NOT_PERMITTED);
    refused(&refusal, &flags, &["cuda:0", "cuMemHostRegister answered 800", "because: "]);
    let refusal = emulator().fail_call("cuMemHostGetDevicePointer_v2", 0, INVALID_VALUE);
    refused(&refusal, &flags, &["cuda:0", "cuMemHostGetDevicePointer answered 1", "because: "]);
}

/// Each call that a load makes fails in turn, the first times and the last. What comes of it is
/// either one clear error or a load that is right, and nothing is left behind, but for what the
/// driver would not take back.
#[test]
fn whichever_call_fails_the_load_ends_clearly_or_lands_right() {
    const TAKING_BACK: [&str; 6] = [
        "cuMemFree_v2",
        "cuMemHostUnregister",
        "cuStreamDestroy_v2",
        "cuEventDestroy_v2",
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
    ];
    let flags = ["--device", "cuda:all", "--split", "columns", "--gpu-layers", "2"];
    let (_, driver) = lands(&Emulator::new().devices(2), &flags);
    let mut errors = 0;
    for (call, &count) in &driver.calls {
        let mut times = vec![0, 1, 2, 3, count];
        times.retain(|nth| *nth <= count);
        times.dedup();
        for nth in times {
            let emulator = Emulator::new().devices(2).fail_call(call, nth, UNKNOWN);
            let ran = load_on(&emulator, path(), &with(&flags));
            if ran.output.status.success() {
                model().1.expect_in(&ran.json(), &ran.what);
            } else {
                ran.expect_error(&["answered 999"]);
                errors += 1;
            }
            let takes_back =
                TAKING_BACK.contains(&&**call) || call == "cuDevicePrimaryCtxRelease_v2";
            let kinds: &[&str] = if takes_back { &["leak"] } else { &[] };
            if let Some(report) = &ran.driver {
                ran.expect_clean_but_for(report, kinds);
            }
        }
    }
    assert!(errors > 30, "{errors}");
}

#[test]
fn the_other_commands_say_the_same() {
    let too_old = Emulator::new().driver_version(11080);
    let full = Emulator::new().memory_bytes(1 << 20);
    let folder = scratch();
    let manifest = folder.path().join("manifest");
    for (emulator, arguments, words) in [
        (&too_old, &["plan", text(path()), "--device", "cuda"][..], &["too old", "525"][..]),
        (&too_old, &["bench", text(path()), "--device", "cuda"], &["too old", "525"]),
        (
            &full,
            &["verify", text(path()), "--manifest", text(&manifest), "--write", "--device", "cuda"],
            &["no room for", "1048576 bytes free"],
        ),
    ] {
        let ran = run_on(emulator, arguments);
        ran.expect_error(words);
        ran.expect_clean();
    }
}

/// Ctrl-C, and the signal by which services are stopped, while devices copy.
#[test]
fn a_signal_ends_the_load_in_order() {
    let folder = scratch();
    for (number, signal) in [Signal::SIGINT, Signal::SIGTERM].into_iter().enumerate() {
        for flags in PLACEMENTS {
            let report = folder.path().join(format!("report-{number}-{}.json", flags.len()));
            let emulator = Emulator::new().devices(2).upload_bytes_per_s(1e6);
            let emulator = emulator.report_to(&report);
            let mut command = command();
            command.args(["load", text(path()), "--json"]).args(with(flags));
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = emulator.command(&mut command).spawn().unwrap();
            // The load takes seconds; its first copies are under way soon.
            let tasks = format!("/proc/{}/task", child.id());
            let reads = || {
                let tasks = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
                let names =
                    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
                names.into_iter().any(|name| name.trim() == "forebay-read")
            };
            while !reads() {
                std::thread::sleep(Duration::from_millis(1));
            }
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            let driver = Report::read(&report).ok();
            assert!(driver.is_some(), "it has not ended in order");
            let ran = Ran { what: format!("{signal} {flags:?}"), output, driver };
            assert_eq!(ran.output.status.code(), Some(1), "{}", ran.what);
            assert_eq!(ran.errors(), "error: cancelled\n", "{}", ran.what);
            ran.expect_clean();
        }
    }
}

/// A library of that name that is none, or that lacks most of what it should have.
#[test]
fn a_library_that_is_no_driver_is_one_error_and_auto_does_without() {
    let folder = scratch();
    let load = |device: &str, words: &[&str]| {
        let flags = ["load", text(path()), "--json", "--digest", "--device", device];
        let mut command = command();
        let output = command.args(flags).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
        let ran = Ran { what: format!("{device} {words:?}"), output, driver: None };
        match device {
            "auto" => model().1.expect_in(&ran.json(), &ran.what),
            _ => ran.expect_error(words),
        }
    };
    let names = ["libcuda.so", "libcuda.so.1"];
    for name in names {
        std::fs::write(folder.path().join(name), "no library").unwrap();
    }
    load("cuda", &["no NVIDIA driver", "libcuda.so.1", "--device host"]);
    load("auto", &[]);
    let source = folder.path().join("driver.c");
    std::fs::write(&source, "int cuInit(unsigned flags) { return (int)flags; }\n").unwrap();
    let library = folder.path().join(names[0]);
    let arguments = ["-shared", "-fPIC", "-o", text(&library), text(&source)];
    if !Command::new("cc").args(arguments).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no C compiler to make a driver's library with");
        return;
    }
    std::fs::copy(&library, folder.path().join(names[1])).unwrap();
    load("cuda", &["too old, or its library is not whole", "it has no cu", "525"]);
    load("auto", &[]);
}

//! The other commands on emulated CUDA devices: what `doctor`, `plan`, `bench` and `verify` find
//! and do there.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/model.rs"]
mod model;
mod support;

use cuda::{Ran, run_on, upload_copies};
use forebay_cuda_emulator::Emulator;
use model::Model;
use serde_json::Value;
use support::{command, fixtures, manifest, scratch, text};

/// The checks of `doctor --json` with that name.
fn checks(ran: &Ran, name: &str) -> Vec<Value> {
    let report = ran.json();
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        assert_eq!(check["ok"] == false, check["remedy"].is_string(), "{check}");
    }
    checks.iter().filter(|check| check["name"] == name).cloned().collect()
}

fn found(check: &Value) -> &str {
    check["found"].as_str().unwrap()
}

#[test]
fn doctor_tells_the_driver_and_every_device() {
    let emulator = Emulator::new()
        .devices(3)
        .driver_version(12040)
        .each_device(|device| device.memory_bytes(24 << 30))
        .device(1, |device| device.memory_bytes(8 << 30).capability(9, 0).numa_node(1))
        .device(2, |device| device.integrated(true).pageable(true, false).pci(0xff, 0xfe));
    let ran = run_on(&emulator, &["doctor", text(&fixtures()), "--json"]);
    ran.expect_clean();
    let driver = checks(&ran, "CUDA driver");
    assert_eq!((driver.len(), &driver[0]["ok"]), (1, &Value::Bool(true)));
    for word in ["CUDA 12.4", "emulated"] {
        assert!(found(&driver[0]).contains(word), "{}", driver[0]);
    }
    let gpus = checks(&ran, "GPU");
    let words: [&[&str]; 3] = [
        &["cuda:0", "24", "compute capability 8.0"],
        &["cuda:1", "8", "compute capability 9.0", "NUMA node 1"],
        &["cuda:2", "24", "integrated", "not pinned", "at 00ff:fe:00.0"],
    ];
    assert_eq!(gpus.len(), words.len());
    for (gpu, words) in gpus.iter().zip(words) {
        for word in words {
            assert!(found(gpu).contains(word), "no '{word}' in {gpu}");
        }
    }
    assert!(!found(&gpus[0]).contains("integrated") && !found(&gpus[0]).contains("NUMA"));
    let driver = ran.driver.unwrap();
    for call in ["cuDevicePrimaryCtxRetain", "cuMemAlloc_v2", "cuStreamCreate"] {
        assert_eq!(driver.calls_of(call), 0, "{call}");
    }
    let people = run_on(&emulator, &["doctor"]);
    let text = String::from_utf8(people.output.stdout).unwrap();
    assert!(people.output.status.success());
    for word in ["CUDA driver", "emulated", "cuda:0", "cuda:2"] {
        assert!(text.contains(word), "no '{word}' in {text}");
    }
}

#[test]
fn doctor_tells_what_stands_in_the_way_of_a_driver() {
    for (emulator, words) in [
        (Emulator::new().driver_version(11080), "serves CUDA 11.8, and 12.0 is needed"),
        (Emulator::new().no_device(), "finds no GPU"),
        (Emulator::new().devices(0), "finds no GPU"),
        (Emulator::new().fail_call("cuInit", 0, 804), "cuInit answered 804"),
    ] {
        let ran = run_on(&emulator, &["doctor", "--json"]);
        let driver = checks(&ran, "CUDA driver");
        assert!(found(&driver[0]).contains(words), "{}", driver[0]);
        assert_ne!(driver[0]["ok"], true, "{}", driver[0]);
        assert!(checks(&ran, "GPU").is_empty());
    }
}

/// A driver is there, so somebody wants to use it, whether or not a GPU is seen on the bus.
#[test]
fn doctor_has_a_remedy_for_a_driver_that_does_not_serve() {
    for (emulator, remedy) in [
        (Emulator::new().driver_version(11080), "525"),
        (Emulator::new().fail_call("cuInit", 0, 804), "restart"),
    ] {
        let ran = run_on(&emulator, &["doctor", "--json"]);
        let driver = &checks(&ran, "CUDA driver")[0];
        assert!(driver["remedy"].as_str().is_some_and(|it| it.contains(remedy)), "{driver}");
    }
}

#[test]
fn without_a_driver_auto_takes_the_host_and_doctor_says_so() {
    let folder = scratch();
    // Files that are no libraries, should this machine have a driver.
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let run = |arguments: &[&str]| {
        let mut command = command();
        let output = command.args(arguments).env("LD_LIBRARY_PATH", folder.path()).output();
        Ran { what: arguments.join(" "), output: output.unwrap(), driver: None }
    };
    let doctor = run(&["doctor", "--json"]);
    let driver = &checks(&doctor, "CUDA driver")[0];
    assert!(found(driver).contains("no NVIDIA driver"), "{driver}");
    assert!(checks(&doctor, "GPU").is_empty());
    let values = fixtures().join("gguf/values.gguf");
    let loaded = run(&["load", text(&values), "--json"]).json();
    assert_eq!(loaded["backends"][0]["backend"], "host");
    assert_eq!(loaded["upload"]["pinned"], Value::Null);
    let why = loaded["why"][0].as_str().unwrap();
    assert!(why.contains("no NVIDIA driver"), "{why}");
    run(&["load", text(&values), "--device", "cuda"]).expect_error(&["no NVIDIA driver"]);
}

#[test]
fn auto_takes_the_first_device() {
    let values = fixtures().join("gguf/values.gguf");
    let ran = run_on(&Emulator::new().devices(2), &["load", text(&values), "--json"]);
    let loaded = ran.json();
    ran.expect_clean();
    assert_eq!(loaded["backends"][0]["backend"], "cuda:0");
    let device = &loaded["devices"][0];
    assert_eq!((&device["backend"], &device["emulated"]), (&"cuda:0".into(), &true.into()));
    let driver = ran.driver.unwrap();
    assert_eq!((driver.devices[0].upload.copies, driver.devices[1].upload.copies), (1, 0));
}

#[test]
fn a_plan_touches_no_device() {
    for (model, _) in manifest() {
        for flags in [
            &["--device", "cuda"][..],
            &["--device", "cuda:all", "--split", "rows"],
            &["--device", "cuda:all", "--split", "columns"],
            &["--device", "auto", "--gpu-layers", "1"],
        ] {
            let arguments = [&["plan", text(&model), "--json"], flags].concat();
            let ran = run_on(&Emulator::new().devices(2), &arguments);
            ran.json();
            ran.expect_clean();
            let driver = ran.driver.unwrap_or_default();
            let made = [
                "cuDevicePrimaryCtxRetain",
                "cuMemAlloc_v2",
                "cuMemHostRegister_v2",
                "cuStreamCreate",
            ];
            for call in made {
                assert_eq!(driver.calls_of(call), 0, "{}: {call}", ran.what);
            }
        }
    }
}

/// What the plan says is what the load does.
#[test]
fn a_plan_and_its_load_agree() {
    let emulator = Emulator::new().devices(3);
    for (model, _) in manifest() {
        for split in ["layers", "rows", "columns"] {
            let flags = ["--json", "--device", "cuda:all", "--split", split];
            let plan = run_on(&emulator, &[&["plan", text(&model)], &flags[..]].concat()).json();
            let load = run_on(&emulator, &[&["load", text(&model)], &flags[..]].concat()).json();
            assert_eq!(plan["backends"], load["backends"], "{} {split}", model.display());
            assert_eq!(plan["staging_bytes"], load["memory"]["staging_bytes"], "{split}");
        }
    }
}

#[test]
fn bench_measures_the_link_in_the_same_run() {
    let folder = scratch();
    let emulator = Emulator::new().upload_bytes_per_s(2e9);
    let arguments = [
        "bench",
        "--dir",
        text(folder.path()),
        "--device",
        "cuda",
        "--size",
        "8MiB",
        "--repeat",
        "1",
        "--modes",
        "dio,none",
        "--json",
    ];
    let ran = run_on(&emulator, &arguments);
    let report = ran.json();
    ran.expect_clean();
    assert_eq!(report["emulated"], true);
    assert!(report["upload_ceiling"]["gib_per_s"].as_f64().is_some_and(|rate| rate > 0.0));
    assert!(report["upload_ceiling"]["shape"].as_str().unwrap().contains("cuda:0"));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4, "two modes, cold and warm");
    for row in rows {
        assert_eq!(row["device"], "cuda:0");
        for number in ["gib_per_s", "of_ceiling"] {
            assert!(row[number].as_f64().is_some_and(|number| number > 0.0), "{row}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let told = run_on(&emulator, &arguments[..arguments.len() - 1]);
    let told = String::from_utf8(told.output.stdout).unwrap();
    for word in ["upload ceiling", "EMULATED", "cuda:0"] {
        assert!(told.contains(word), "no '{word}' in {told}");
    }
    // On the host, there is no link to measure.
    let host = arguments.map(|word| if word == "cuda" { "host" } else { word });
    let ran = run_on(&emulator, &host);
    let report = ran.json();
    assert_eq!((&report["upload_ceiling"], &report["emulated"]), (&Value::Null, &false.into()));
}

#[test]
fn verify_reads_back_from_the_devices() {
    let folder = scratch();
    let Model { path, digests } = Model::gguf_of(folder.path(), "2MiB");
    let manifest = folder.path().join("manifest");
    let lines: String =
        digests.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
    std::fs::write(&manifest, &lines).unwrap();
    let emulator = Emulator::new().devices(2);
    for split in ["layers", "rows", "columns"] {
        let flags = ["--device", "cuda:all", "--split", split, "--json"];
        let arguments = ["verify", text(&path), "--manifest", text(&manifest)];
        let ran = run_on(&emulator, &[&arguments, &flags[..]].concat());
        let report = ran.json();
        ran.expect_clean();
        assert_eq!(report["equal"], digests.len(), "{split}");
        assert!(upload_copies(ran.driver.as_ref().unwrap()) > 0);
    }
}

#[test]
fn bench_kernels_checks_and_times_products_on_the_device() {
    let emulator = Emulator::new().devices(1).memory_bytes(256 << 20);
    let arguments = ["bench", "kernels", "--device", "cuda", "--types", "Q4_0,F16", "--shapes"];
    let ran = run_on(
        &emulator,
        &[&arguments[..], &["40x96", "--batch", "1,16", "--repeat", "1", "--json"]].concat(),
    );
    let report = ran.json();
    assert_eq!(report["emulated"], true);
    assert!(report["ceiling"]["bytes_per_s"].as_f64().unwrap() > 0.0);
    for operand in ["f32", "f16", "bf16"] {
        assert!(report["ceiling"]["flops"][operand].as_f64().unwrap() > 0.0, "{report}");
    }
    let by = report["ceiling"]["flops_by"].as_array().unwrap();
    assert_eq!(by[0], "ceiling_f32, on registers");
    let rows = report["rows"].as_array().unwrap();
    let kernels: Vec<&str> = rows.iter().map(|row| row["kernel"].as_str().unwrap()).collect();
    assert_eq!(kernels, ["gemv_f16_b1", "gemm_f16", "gemv_q4_0_b1", "gemm_q4_0"]);
    for row in rows {
        assert!(row["rel_error"].as_f64().unwrap() < 1e-2, "{row}");
        assert!(row["seconds"].as_f64().unwrap() > 0.0 && row["m"] == 40 && row["k"] == 96);
        assert!(row["of_ceiling"].as_f64().unwrap() > 0.0, "{row}");
        assert!(["memory", "matrix"].contains(&row["bound"].as_str().unwrap()), "{row}");
        assert!(row["why"].as_str().unwrap().starts_with(row["kernel"].as_str().unwrap()), "{row}");
    }
    assert!(rows[1]["why"].as_str().is_some_and(|why| !why.contains("cuBLASLt")), "{}", rows[1]);
    // On the host, nothing but memory is measured.
    let host = ["bench", "kernels", "--device", "host", "--types", "F16", "--shapes", "40x96"];
    let ran = run_on(&emulator, &[&host[..], &["--batch", "1,16", "--json"]].concat());
    let report = ran.json();
    assert_eq!(report["ceiling"]["flops"], serde_json::json!({}));
    assert_eq!(report["rows"][0]["bound"], "memory");
    assert_eq!(report["rows"][1]["of_ceiling"], Value::Null);
}

#[test]
fn bench_kernels_has_cublaslt_beside_the_kernels() {
    let emulator = Emulator::new().memory_bytes(256 << 20).cublaslt(13, 1);
    let arguments = ["bench", "kernels", "--device", "cuda", "--types", "BF16,F16,F32,Q8_0"];
    let flags = ["--shapes", "40x320", "--batch", "1,16", "--repeat", "1"];
    let ran = run_on(&emulator, &[&arguments[..], &flags, &["--json"]].concat());
    let report = ran.json();
    ran.expect_clean();
    assert_eq!(ran.driver.as_ref().unwrap().cublaslt_objects, 0);
    let by = "cuBLASLt 13.1, 128 x 128 x 128";
    assert_eq!(report["ceiling"]["flops_by"], serde_json::json!([by]));
    let kernels: Vec<&str> = report["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["kernel"].as_str().unwrap())
        .collect();
    let dense = |name: &str| {
        [format!("gemv_{name}_b1"), "cublaslt".into(), format!("gemm_{name}"), "cublaslt".into()]
    };
    let expected = [dense("f32"), dense("f16"), dense("bf16")].concat();
    assert_eq!(kernels[..12], expected);
    assert_eq!(kernels[12..], ["gemv_q8_0_b1", "gemm_q8_0"]);
    for row in report["rows"].as_array().unwrap() {
        assert!(row["of_ceiling"].as_f64().unwrap() > 0.0 && row["bound"].is_string(), "{row}");
    }
    let why = report["rows"][3]["why"].as_str().unwrap();
    assert_eq!(why, "cuBLASLt 13.1 for dense F32 at batch 16 (inputs as f32)");
    let told = run_on(&emulator, &[&arguments[..], &flags].concat());
    let told = String::from_utf8(told.output.stdout).unwrap();
    for word in ["arithmetic: bf16", by, "cublaslt", "of ceiling"] {
        assert!(told.contains(word), "no '{word}' in {told}");
    }
}

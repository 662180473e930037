//! The digest matrix on emulated CUDA devices: every tensor of every fixture, in every mode, on one
//! device, spread over four, and in parts, against what the official readers' bytes have.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/model.rs"]
mod model;
mod support;

use cuda::{load_on, loaded_on, upload_copies, uploaded_bytes};
use forebay_cuda_emulator::{Emulator, Report};
use model::{Digests, Model};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{manifest, scratch};

const MODES: [&str; 8] =
    ["auto", "none", "mmap", "mlock", "mlock-strict", "dio", "device=dio,cpu=mmap", "cpu=dio"];

/// A load of the matrix, and what must come of it.
struct Case<'model> {
    model: &'model Path,
    digests: &'model Digests,
    flags: Vec<&'static str>,
}

impl Case<'_> {
    /// Loads it, compares every digest, and sees that the driver has everything back.
    fn check(&self, emulator: &Emulator) -> (Value, Report) {
        let (report, driver) = loaded_on(emulator, self.model, &self.flags);
        let what = format!("{} {}", self.model.display(), self.flags.join(" "));
        let landed = report["digests"].as_object().unwrap();
        assert_eq!(landed.len(), self.digests.len(), "{what}");
        for (name, digest) in self.digests {
            assert_eq!(landed[name], digest.as_str(), "{what}: {name:?}");
        }
        let devices = report["devices"].as_array().unwrap();
        assert!(devices.iter().all(|device| device["emulated"] == true), "{what}");
        let named = |backend: &Value| backend["backend"].as_str().unwrap().starts_with("cuda:");
        let on_cuda: Vec<&Value> =
            report["backends"].as_array().unwrap().iter().filter(|it| named(it)).collect();
        assert_eq!(devices.len(), on_cuda.len(), "{what}");
        let bytes: u64 = on_cuda.iter().map(|backend| backend["bytes"].as_u64().unwrap()).sum();
        let moved = uploaded_bytes(&driver) + report["memory"]["in_place_bytes"].as_u64().unwrap();
        // What joins two tensors into one copy is copied too.
        assert!(moved >= bytes, "{what}: {moved} of {bytes} bytes were moved");
        (report, driver)
    }
}

/// Checks all of them, on both cores.
fn check_all(emulator: &Emulator, cases: &[Case<'_>]) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    case.check(emulator);
                }
            });
        }
    });
}

/// The fixtures with the official readers' digests.
fn models() -> Vec<(PathBuf, Digests)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let digests = |tensors: &[Value]| -> Digests {
        tensors.iter().map(|tensor| (word(&tensor["name"]), word(&tensor["sha256"]))).collect()
    };
    manifest().into_iter().map(|(path, tensors)| (path, digests(&tensors))).collect()
}

/// Matrices whose rows end nowhere near the ends of pages and reads, as safetensors.
fn odd_matrices(folder: &Path) -> (PathBuf, Digests) {
    let shapes: [&[u64]; 7] =
        [&[37, 5003], &[3, 70_001], &[4001, 7], &[1, 9001], &[9001, 1], &[2, 3, 4099], &[8195]];
    let (mut entries, mut data) = (serde_json::Map::new(), Vec::new());
    let mut digests = Digests::new();
    for (number, shape) in shapes.into_iter().enumerate() {
        let length = usize::try_from(shape.iter().product::<u64>()).unwrap();
        let mut bytes = vec![0; length];
        fastrand::Rng::with_seed(number as u64).fill(&mut bytes);
        let mut hex = String::new();
        for byte in Sha256::digest(&bytes) {
            write!(hex, "{byte:02x}").unwrap();
        }
        let name = format!("blk.{number}.odd.weight");
        let offsets = [data.len(), data.len() + length];
        let entry = serde_json::json!({ "dtype": "U8", "shape": shape, "data_offsets": offsets });
        entries.insert(name.clone(), entry);
        digests.insert(name, hex);
        data.extend(bytes);
    }
    let header = Value::Object(entries).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.extend(data);
    let path = folder.join("odd.safetensors");
    std::fs::write(&path, file).unwrap();
    (path, digests)
}

/// Every model with every one of these lists of flags.
fn every<'model>(
    models: &'model [(PathBuf, Digests)],
    flags: &[Vec<&'static str>],
) -> Vec<Case<'model>> {
    let of_model = |(model, digests): &'model (PathBuf, Digests)| {
        flags.iter().map(move |flags| Case { model, digests, flags: flags.clone() })
    };
    models.iter().flat_map(of_model).collect()
}

#[test]
fn every_mode_and_placement_lands_the_official_bytes_on_one_device() {
    let models = models();
    let mut flags = Vec::new();
    for mode in MODES {
        for layers in ["0", "1", "all"] {
            for engine in ["auto", "threads"] {
                flags.push(vec![
                    "--device",
                    "cuda",
                    "--load-mode",
                    mode,
                    "--gpu-layers",
                    layers,
                    "--engine",
                    engine,
                ]);
            }
        }
    }
    check_all(&Emulator::new(), &every(&models, &flags));
}

#[test]
fn every_mode_and_split_lands_the_official_bytes_on_four_devices() {
    let models = models();
    let mut flags = Vec::new();
    for split in ["layers", "rows", "columns"] {
        for mode in MODES {
            flags.push(vec!["--device", "cuda:all", "--split", split, "--load-mode", mode]);
        }
        let some = ["--device", "cuda:3,cuda:1", "--split", split, "--gpu-layers", "1"];
        flags.push(some.to_vec());
    }
    check_all(&Emulator::new().devices(4), &every(&models, &flags));
}

#[test]
fn rules_place_whole_tensors_and_parts_where_they_say() {
    let models = models();
    let rules = [
        ["--place", "[aeiou]=cuda:2", "--place", ".=cuda:1"],
        ["--place", "[0-4]=rows:cuda:0,cuda:3", "--place", ".=columns:cuda:1,cuda:2,cuda:3"],
        ["--place", "weight|first=columns:cuda:3,cuda:0", "--place", ".*=host"],
        ["--place", "^.?[b-m]=rows:cuda:1,cuda:2,cuda:0,cuda:3", "--place", "^=cpu"],
    ];
    let mut flags = Vec::new();
    for rules in rules {
        for mode in ["auto", "dio", "none", "mmap"] {
            flags.push([&rules[..], &["--device", "cuda:0", "--load-mode", mode]].concat());
        }
    }
    check_all(&Emulator::new().devices(4), &every(&models, &flags));
}

#[test]
fn odd_reads_and_tiny_staging_change_no_byte() {
    let folder = scratch();
    let mut models = models();
    models.retain(|(model, _)| !model.ends_with("gguf/version-2.gguf"));
    models.push(odd_matrices(folder.path()));
    let shapes = [["4096", "1", "4096"], ["4096", "3", "12288"], ["8KiB", "64", "64KiB"]];
    let mut flags = Vec::new();
    for [chunk, depth, staging] in shapes {
        for mode in ["dio", "none", "mmap"] {
            for split in ["rows", "columns"] {
                flags.push(vec![
                    "--device",
                    "cuda:2,cuda:0,cuda:1",
                    "--split",
                    split,
                    "--load-mode",
                    mode,
                    "--chunk",
                    chunk,
                    "--queue-depth",
                    depth,
                    "--staging",
                    staging,
                ]);
            }
        }
    }
    check_all(&Emulator::new().devices(3), &every(&models, &flags));
}

#[test]
fn the_other_flags_of_a_load_change_no_byte_on_devices() {
    let models = models();
    let several = ["--device", "cuda:all", "--split", "columns"];
    let flags: Vec<Vec<&'static str>> = [
        &["--repack", "on", "--gpu-layers", "1"][..],
        &["--repack", "on", "--place", ".=cpu", "--load-mode", "dio"],
        &["--no-fallback", "--load-mode", "none"],
        &["--engine", "uring", "--load-mode", "dio"],
        &["--reclaim", "on", "--load-mode", "mmap"],
        &["--prefetch", "on", "--gpu-layers", "1"],
        &["--numa", "node"],
        &["--numa", "interleave", "--load-mode", "none"],
        &["--staging", "4096", "--chunk", "4096", "--numa", "node:0"],
    ]
    .into_iter()
    .map(|flags| [&several[..], flags].concat())
    .collect();
    let emulator = Emulator::new().devices(3).device(2, |device| device.numa_node(0));
    check_all(&emulator, &every(&models, &flags));
}

/// The slots lie near the devices, as far as this machine has the nodes that they claim.
#[test]
fn devices_on_several_nodes_share_the_slots_and_lose_no_byte() {
    let folder = scratch();
    let models = [odd_matrices(folder.path())];
    let emulator = Emulator::new()
        .devices(3)
        .device(0, |device| device.numa_node(0))
        .device(1, |device| device.numa_node(1))
        .device(2, |device| device.numa_node(900));
    let mut flags = Vec::new();
    for split in ["layers", "rows", "columns"] {
        for staging in ["4096", "8192", "12288", "64KiB"] {
            for engine in ["auto", "threads"] {
                let all = ["--device", "cuda:all", "--split", split, "--engine", engine];
                flags.push([&all[..], &["--chunk", "4096", "--staging", staging]].concat());
            }
        }
    }
    check_all(&emulator, &every(&models, &flags));
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn each_byte_is_read_once_and_copied_once_however_tensors_are_split() {
    let folder = scratch();
    let Model { path, digests } = Model::gguf_of(folder.path(), "8MiB");
    let file_bytes = std::fs::metadata(&path).unwrap().len();
    let bytes: u64 = {
        let listed = support::json(&["inspect", support::text(&path), "--json"]);
        listed["tensors"].as_array().unwrap().iter().map(|it| number(&it["bytes"])).sum()
    };
    for split in ["layers", "rows", "columns"] {
        for mode in ["dio", "none", "mmap"] {
            let flags = vec!["--device", "cuda:all", "--split", split, "--load-mode", mode];
            let case = Case { model: &path, digests: &digests, flags };
            let (report, driver) = case.check(&Emulator::new().devices(4));
            let what = format!("{split} {mode}");
            assert_eq!(number(&report["upload"]["bytes"]), bytes, "{what}");
            let read = number(&report["read"]["bytes"]);
            let rounded = file_bytes.next_multiple_of(4096);
            assert!((bytes..=rounded).contains(&read), "{what}: {read} of {bytes} were read");
            let uploaded = uploaded_bytes(&driver);
            // Tensors are 32 bytes apart at most.
            assert!((bytes..=file_bytes).contains(&uploaded), "{what}: {uploaded} of {bytes}");
            assert_eq!(number(&report["upload"]["copies"]), upload_copies(&driver), "{what}");
            let held: Vec<u64> =
                driver.devices.iter().map(|device| device.memory_bytes_max).collect();
            // Whole tensors, and rows of few blocks, are spread less evenly.
            let share = if split == "rows" { bytes / 8..bytes / 2 } else { bytes / 32..bytes };
            assert!(held.iter().all(|held| share.contains(held)), "{what}: {held:?}");
        }
    }
}

#[test]
fn an_integrated_device_is_read_for_in_place_and_nothing_is_copied_to_it() {
    let folder = scratch();
    let synthetic = Model::gguf_of(folder.path(), "6MiB");
    let emulator = Emulator::new().device(0, |device| device.integrated(true));
    for mode in ["auto", "dio", "none"] {
        let flags = vec!["--device", "cuda", "--load-mode", mode];
        let case = Case { model: &synthetic.path, digests: &synthetic.digests, flags };
        let (report, driver) = case.check(&emulator);
        let bytes = number(&report["model"]["bytes"]);
        assert_eq!(number(&report["memory"]["in_place_bytes"]), bytes, "{mode}");
        assert_eq!(number(&report["upload"]["bytes"]), 0, "{mode}");
        assert_eq!(uploaded_bytes(&driver), 0, "{mode}");
        assert_eq!(upload_copies(&driver), 0, "{mode}");
        assert_eq!(driver.calls_of("cuMemAlloc_v2"), 0, "{mode}");
    }
    let models = models();
    let mut flags = Vec::new();
    for mode in MODES {
        for layers in ["1", "all"] {
            flags.push(vec!["--device", "cuda", "--load-mode", mode, "--gpu-layers", layers]);
        }
    }
    for case in every(&models, &flags) {
        let ran = load_on(&emulator, case.model, &case.flags);
        let report = ran.json();
        ran.expect_clean();
        for (name, digest) in case.digests {
            let what = format!("{}: {name:?}", ran.what);
            assert_eq!(report["digests"][name], digest.as_str(), "{what}");
        }
        assert_eq!(ran.driver.as_ref().map_or(0, upload_copies), 0, "{}", ran.what);
    }
}

/// Every model on an integrated device and an ordinary one, split so.
fn share_with_an_integrated_device(splits: &[&'static str]) {
    let folder = scratch();
    let mut models = models();
    models.push(odd_matrices(folder.path()));
    let emulator = Emulator::new().devices(2).device(0, |device| device.integrated(true));
    let mut flags = Vec::new();
    for &split in splits {
        for mode in ["auto", "none", "mmap"] {
            for devices in ["cuda:all", "cuda:1,cuda:0"] {
                flags.push(vec!["--device", devices, "--split", split, "--load-mode", mode]);
            }
        }
    }
    for case in every(&models, &flags) {
        let ran = load_on(&emulator, case.model, &case.flags);
        let report = ran.json();
        ran.expect_clean();
        for (name, digest) in case.digests {
            let what = format!("{}: {name:?}", ran.what);
            assert_eq!(report["digests"][name], digest.as_str(), "{what}");
        }
        let driver = ran.driver.unwrap_or_default();
        // Columns may be taken out of the slots by copies.
        let is_copied_to = driver.devices.first().is_some_and(|it| it.upload.copies > 0);
        assert!(case.flags.contains(&"columns") || !is_copied_to, "{}", ran.what);
    }
}

#[test]
fn an_integrated_device_and_an_ordinary_one_share_a_model() {
    share_with_an_integrated_device(&["layers", "rows"]);
}

#[test]
fn an_integrated_device_takes_columns_too() {
    share_with_an_integrated_device(&["columns"]);
}

/// The suite notices a missing wait: with events that are always complete, slots are filled again
/// while devices still copy from them.
#[test]
fn a_load_that_does_not_wait_for_its_copies_arrives_corrupt() {
    let folder = scratch();
    let Model { path, digests } = Model::gguf_of(folder.path(), "8MiB");
    let flags = ["--device", "cuda", "--staging", "256KiB", "--chunk", "64KiB"];
    let slow = Emulator::new().upload_bytes_per_s(40e6);
    let case = Case { model: &path, digests: &digests, flags: flags.to_vec() };
    case.check(&slow);
    let ran = load_on(&slow.immediate_events(), &path, &flags);
    let report = ran.json();
    let wrong = digests.iter().filter(|(name, digest)| report["digests"][name] != digest.as_str());
    assert!(wrong.count() > 0, "every digest is right");
    assert!(ran.driver.unwrap().violations_of("source-changed") > 0);
}

//! What holds for every path on this machine.

use super::Check;
use crate::size;
use forebay::Unavailable;
use forebay_io::{Errno, uring_support};
use std::path::Path;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![kernel(), io_uring(), memlock(), open_files(), huge_pages(), numa()];
    checks.push(memory());
    checks.extend(cuda());
    checks
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let since = [
        ((5, 14), "populating memory ahead"),
        ((6, 1), "direct I/O alignment by statx, deferred task work of io_uring"),
        ((6, 5), "asking the page cache (cachestat)"),
        ((6, 9), "populating mapped files safely"),
        ((6, 14), "reads that leave no page cache behind (RWF_DONTCACHE)"),
    ];
    let lacking: Vec<&str> =
        since.iter().filter(|(needed, _)| version < *needed).map(|(_, what)| *what).collect();
    if lacking.is_empty() {
        return Check::good("kernel", format!("Linux {release}"));
    }
    let found = format!("Linux {release}, without: {}", lacking.join("; "));
    Check::bad("kernel", found, "a newer kernel loads faster; this one loads right as well")
}

fn io_uring() -> Check {
    match uring_support() {
        Ok(support) if support.deferred_taskrun => {
            Check::good("io_uring", "available, with deferred task work")
        }
        Ok(_) => Check::good("io_uring", "available, without deferred task work (Linux 6.1)"),
        Err(errno) => {
            let sysctl = read("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            let remedy = match (errno, sysctl.as_str()) {
                (Errno::EPERM, "1" | "2") => {
                    format!(
                        "kernel.io_uring_disabled is {sysctl}: sysctl kernel.io_uring_disabled=0"
                    )
                }
                (Errno::EPERM | Errno::ENOSYS, _) => {
                    "a container's seccomp filter forbids it: allow io_uring_setup, io_uring_enter \
                     and io_uring_register"
                        .to_owned()
                }
                _ => "reads are made by threads instead, at more CPU time".to_owned(),
            };
            Check::bad("io_uring", format!("refused: {errno}"), remedy)
        }
    }
}

fn memlock() -> Check {
    /// The default staging memory with some room.
    const WANTED_BYTES: u64 = 64 << 20;
    match forebay_mem::memlock_limit_bytes() {
        None => Check::good("memlock limit", "unlimited"),
        Some(bytes) if bytes >= WANTED_BYTES => Check::good("memlock limit", size::show(bytes)),
        Some(bytes) if nix::unistd::geteuid().is_root() => {
            Check::good("memlock limit", format!("{}, which does not bind root", size::show(bytes)))
        }
        Some(bytes) => Check::bad(
            "memlock limit",
            format!("{}: staging memory can't be registered, nor models locked", size::show(bytes)),
            "ulimit -l unlimited (as root), or LimitMEMLOCK=infinity of the service",
        ),
    }
}

fn open_files() -> Check {
    use nix::sys::resource::{Resource, getrlimit};
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) if soft < 1024 => {
            Check::bad("open files", soft.to_string(), "two a shard are needed: ulimit -n 4096")
        }
        Ok((soft, _)) => Check::good("open files", soft.to_string()),
        Err(errno) => Check::fact("open files", format!("unknown: {errno}")),
    }
}

fn huge_pages() -> Check {
    let name = "huge pages";
    match read("/sys/kernel/mm/transparent_hugepage/enabled") {
        Some(modes) if modes.contains("[never]") => Check::bad(
            name,
            "transparent huge pages are off: every 4 KiB of memory costs a fault",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        ),
        Some(modes) => Check::good(name, format!("transparent: {modes}")),
        None => Check::fact(name, "the kernel has no transparent huge pages"),
    }
}

fn numa() -> Check {
    let nodes = forebay_mem::numa::nodes();
    if let [only] = nodes.as_slice() {
        let found = format!("one node with memory ({}): --numa has nothing to choose", only.id);
        return Check::fact("NUMA", found);
    }
    let told: Vec<String> = (nodes.iter())
        .map(|node| {
            let (free, all) = (size::show(node.free_bytes), size::show(node.memory_bytes));
            format!("node {}: {} processors, {free} of {all} free", node.id, node.cpus.len())
        })
        .collect();
    Check::fact("NUMA", told.join("; "))
}

fn memory() -> Check {
    let text = read("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).and_then(|line| {
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(size::show(kib << 10))
    });
    let total = total.unwrap_or_else(|| "unknown".to_owned());
    let Some(at_hand) = forebay_mem::memory_at_hand() else {
        return Check::fact("memory", total);
    };
    let bound = if at_hand.by_cgroup { ", bounded by the cgroup's memory.max" } else { "" };
    let found = format!("{total}, {} at hand{bound}", size::show(at_hand.bytes));
    Check::fact("memory", found)
}

/// The driver, and each GPU that it finds; without one, those that the kernel sees on the bus.
fn cuda() -> Vec<Check> {
    let name = "CUDA driver";
    let devices = match forebay::devices() {
        Ok(devices) => devices,
        Err(why) => {
            let on_bus = gpus_on_bus();
            let found = format!("{why}; offloaded tensors go to host memory");
            let is_missed = !matches!(why, Unavailable::NoDriver | Unavailable::NotBuilt);
            let mut checks = vec![if is_missed || !on_bus.is_empty() {
                Check::bad(name, found, why.remedy())
            } else {
                Check::fact(name, found)
            }];
            checks.extend(on_bus);
            return checks;
        }
    };
    let (major, minor) = forebay::driver_version().unwrap_or_default();
    let emulated = if devices.iter().any(|device| device.is_emulated) { " (emulated)" } else { "" };
    let mut checks = vec![Check::good(name, format!("serves CUDA {major}.{minor}{emulated}"))];
    checks.extend(devices.iter().map(|device| {
        let called = format!("cuda:{} is {}", device.ordinal, device.name);
        let mut found = vec![called, size::show(device.memory_bytes)];
        let (major, minor) = device.compute_capability;
        found.push(format!("compute capability {major}.{minor}"));
        found.extend(device.pci_bus_id.iter().map(|id| format!("at {id}")));
        found.extend(device.link.iter().map(ToString::to_string));
        found.extend(device.numa_node.iter().map(|node| format!("NUMA node {node}")));
        if device.is_integrated {
            found.push("integrated: computes in the machine's memory".to_owned());
        }
        if device.reads_pageable_memory {
            found.push("reads memory that is not pinned".to_owned());
        }
        Check::good("GPU", found.join(", "))
    }));
    checks
}

/// What the kernel sees of NVIDIA's GPUs, driver or not.
fn gpus_on_bus() -> Vec<Check> {
    const VENDOR_NVIDIA: &str = "0x10de";
    let mut checks = Vec::new();
    let devices = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    for device in devices.map(|device| device.path()) {
        let is_display = read(device.join("class")).is_some_and(|class| class.starts_with("0x03"));
        if !is_display || read(device.join("vendor")).as_deref() != Some(VENDOR_NVIDIA) {
            continue;
        }
        let field = |name: &str| read(device.join(name)).unwrap_or_else(|| "unknown".to_owned());
        let id = device.file_name().map(|id| id.to_string_lossy().into_owned());
        let found = format!(
            "{} at {}, {} lanes of at most {} and {}",
            id.unwrap_or_default(),
            field("current_link_speed"),
            field("current_link_width"),
            field("max_link_width"),
            field("max_link_speed")
        );
        checks.push(Check::fact("PCIe link", found));
    }
    checks
}

//! How much memory there is for the taking: of the machine, and of the cgroup this process is in.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Memory that can be had now without swapping, and what sets the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAtHand {
    /// In bytes. Page cache that can be dropped counts as at hand.
    pub bytes: u64,
    /// Whether a cgroup's limit is what bounds it, rather than the machine.
    pub by_cgroup: bool,
}

/// Asks `/proc/meminfo` and the cgroups (v2 and v1) above this process. `None` where `/proc` does
/// not tell.
#[must_use]
pub fn memory_at_hand() -> Option<MemoryAtHand> {
    at_hand(Path::new("/"))
}

fn at_hand(root: &Path) -> Option<MemoryAtHand> {
    let machine = field(&root.join("proc/meminfo"), "MemAvailable:")? << 10;
    let cgroup = cgroup_folders(root).iter().filter_map(|folder| cgroup_room(folder)).min();
    Some(match cgroup {
        Some(bytes) if bytes < machine => MemoryAtHand { bytes, by_cgroup: true },
        _ => MemoryAtHand { bytes: machine, by_cgroup: false },
    })
}

/// The number that follows `name` in a file of `name number` lines.
fn field(path: &Path, name: &str) -> Option<u64> {
    let text = read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The folders of the cgroups that this process is in, each with all those above it.
fn cgroup_folders(root: &Path) -> Vec<PathBuf> {
    let text = read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut folders = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let mount = match controllers {
            "" => root.join("sys/fs/cgroup"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                root.join("sys/fs/cgroup/memory")
            }
            _ => continue,
        };
        let within = Path::new(path.trim_start_matches('/'));
        folders.extend(within.ancestors().map(|above| mount.join(above)));
    }
    folders
}

/// What a cgroup with a limit has left: page cache within it can be dropped, so it counts.
fn cgroup_room(folder: &Path) -> Option<u64> {
    let number = |name: &str| read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = folder.join("memory.stat");
    let cache =
        field(&stat, "inactive_file ").unwrap_or(0) + field(&stat, "active_file ").unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    8192 kB\n");

    #[test]
    fn the_tightest_cgroup_above_the_process_counts() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/one\n"),
            ("sys/fs/cgroup/pod/memory.max", "5000000\n"),
            ("sys/fs/cgroup/pod/memory.current", "3000000\n"),
            ("sys/fs/cgroup/pod/memory.stat", "anon 9\ninactive_file 400000\nactive_file 100000\n"),
            ("sys/fs/cgroup/pod/one/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/one/memory.current", "1\n"),
        ]);
        let expected = MemoryAtHand { bytes: 2_500_000, by_cgroup: true };
        assert_eq!(at_hand(root.path()), Some(expected));
    }

    #[test]
    fn the_first_version_of_cgroups_and_none_at_all() {
        let root = machine(&[
            MEMINFO,
            ("proc/self/cgroup", "4:cpu,memory:/a\n2:pids:/b\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "4000\n"),
        ]);
        assert_eq!(at_hand(root.path()).unwrap(), MemoryAtHand { bytes: 96, by_cgroup: true });
        let root = machine(&[MEMINFO]);
        let expected = MemoryAtHand { bytes: 8192 << 10, by_cgroup: false };
        assert_eq!(at_hand(root.path()), Some(expected));
        assert!(memory_at_hand().is_some_and(|memory| memory.bytes > 0));
    }
}

//! The nodes of this machine, as `/sys/devices/system/node` tells them.

use std::fs;
use std::path::Path;

const SYSTEM: &str = "/sys/devices/system/node";
const PROCESS: &str = "/proc";

/// A node that has memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// Its number. Numbers may have gaps.
    pub id: u32,
    /// All its memory in bytes; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// The part that nobody uses at the moment.
    pub free_bytes: u64,
    /// Its processors, ascending; none for memory that stands alone.
    pub cpus: Vec<u32>,
}

/// The online nodes with memory that this process may use (its cpuset), ascending, read anew at
/// every call. Never empty: a machine that tells nothing is one node.
#[must_use]
pub fn nodes() -> Vec<Node> {
    read_nodes(Path::new(SYSTEM), Path::new(PROCESS))
}

/// The numbers of [`nodes`].
pub(super) fn usable_nodes() -> Vec<u32> {
    usable(Path::new(SYSTEM), Path::new(PROCESS))
}

fn read_nodes(system: &Path, process: &Path) -> Vec<Node> {
    let node = |id| {
        let folder = system.join(format!("node{id}"));
        let own = fs::read_to_string(folder.join("meminfo"));
        // A kernel without NUMA has no such folder, and all its memory is the node's.
        let memory = own.or_else(|_| fs::read_to_string(process.join("meminfo")));
        let memory = memory.unwrap_or_default();
        let bytes = |key| bytes_of(&memory, key).unwrap_or(0);
        Node {
            id,
            memory_bytes: bytes("MemTotal:"),
            free_bytes: bytes("MemFree:"),
            cpus: list_in(&folder.join("cpulist")).unwrap_or_default(),
        }
    };
    usable(system, process).into_iter().map(node).collect()
}

fn usable(system: &Path, process: &Path) -> Vec<u32> {
    let with_memory = list_in(&system.join("has_memory"));
    let mut ids = with_memory.or_else(|| list_in(&system.join("online"))).unwrap_or_default();
    if let Some(allowed) = allowed(process) {
        ids.retain(|id| allowed.contains(id));
    }
    if ids.is_empty() { vec![0] } else { ids }
}

/// The nodes of the process's cpuset.
fn allowed(process: &Path) -> Option<Vec<u32>> {
    let status = fs::read_to_string(process.join("self/status")).ok()?;
    parse_list(status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?)
}

fn list_in(path: &Path) -> Option<Vec<u32>> {
    parse_list(&fs::read_to_string(path).ok()?)
}

/// The kernel's lists of numbers: `0-2,5`; an empty line is an empty list.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

/// The number of bytes after `key`, which both kinds of `meminfo` give in KiB.
fn bytes_of(meminfo: &str, key: &str) -> Option<u64> {
    let (_, rest) = meminfo.lines().find_map(|line| line.split_once(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn files(entries: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, contents) in entries {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        folder
    }

    #[test]
    fn lists_have_ranges_gaps_and_nothing() {
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(parse_list("0-2,5,70-71\n"), Some(vec![0, 1, 2, 5, 70, 71]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        assert_eq!(parse_list("0-x"), None);
    }

    #[test]
    fn reads_memory_and_processors_of_nodes_that_have_memory() {
        let system = files(&[
            ("online", "0-2\n"),
            ("has_memory", "0,2\n"),
            ("node0/cpulist", "0-1,4\n"),
            ("node0/meminfo", "\nNode 0 MemTotal:     1000 kB\nNode 0 MemFree:       7 kB\n"),
            ("node2/cpulist", "\n"),
            ("node2/meminfo", "Node 2 MemTotal:     2000 kB\nNode 2 MemFree:     2000 kB\n"),
        ]);
        let process = files(&[("self/status", "Name:\tx\nMems_allowed_list:\t0-3\n")]);
        let nodes = read_nodes(system.path(), process.path());
        let near =
            Node { id: 0, memory_bytes: 1000 << 10, free_bytes: 7 << 10, cpus: vec![0, 1, 4] };
        let alone = Node { id: 2, memory_bytes: 2000 << 10, free_bytes: 2000 << 10, cpus: vec![] };
        assert_eq!(nodes, [near, alone]);
    }

    #[test]
    fn a_cpuset_leaves_its_own_nodes() {
        let system = files(&[("has_memory", "0-3\n")]);
        let process = files(&[("self/status", "Mems_allowed_list:\t1,3\n")]);
        assert_eq!(usable(system.path(), process.path()), [1, 3]);
    }

    #[test]
    fn a_system_that_tells_nothing_is_one_node() {
        let (system, process) = (files(&[]), files(&[("meminfo", "MemTotal: 4 kB\n")]));
        let only = Node { id: 0, memory_bytes: 4096, free_bytes: 0, cpus: vec![] };
        assert_eq!(read_nodes(system.path(), process.path()), [only]);
        assert_eq!(read_nodes(system.path(), system.path()), [Node::default()]);
    }

    #[test]
    fn this_machine_has_a_node_with_memory() {
        let nodes = nodes();
        assert!(nodes[0].memory_bytes > 0 && nodes[0].memory_bytes >= nodes[0].free_bytes);
        assert!(nodes.is_sorted_by_key(|node| node.id));
    }
}

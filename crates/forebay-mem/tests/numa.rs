//! Where pages come to lie, on a machine with several NUMA nodes.
//!
//! Most machines that build this have one node, where these tests say so and pass. `tests/vm/numa`
//! runs them in a virtual machine that has several, and there sets
//! - `FOREBAY_NUMA_NODES`: how many nodes must be found; no test may skip then;
//! - `TMPDIR`: a folder on a disk, since a file in memory has no pages to bring in anew.

use forebay_mem::numa::{
    Node, NumaError, NumaPolicy, Placed, ThreadPolicy, current_node, nodes, pages_by_node,
};
use forebay_mem::{FileMapping, Region, Writes};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIB: usize = 1 << 20;
/// 60 huge pages, which two to six nodes share without a rest.
const SPREAD_BYTES: usize = 120 * MIB;
const FILE_BYTES: usize = 24 * MIB;
/// Linux's `RAMFS_MAGIC`, which `nix` does not name.
const RAMFS: FsType = FsType(0x8584_58f6);

#[test]
fn pages_lie_on_the_node_asked_for_whoever_touches_them() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    for toucher in nodes.iter().filter(|node| !node.cpus.is_empty()) {
        for node in &nodes {
            let region = Region::new(16 * MIB).unwrap();
            let placed = region.place_on(NumaPolicy::Node(Some(node.id)));
            assert_eq!(placed, Ok(Placed::Preferred(node.id)));
            on(toucher, || region.populate(0..region.bytes()).unwrap());
            assert_eq!(found_in(&region), all_on(node, 16 * MIB), "touched on {}", toucher.id);
        }
    }
}

#[test]
fn the_node_of_the_thread_is_where_it_runs_when_it_asks() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    for near in nodes.iter().filter(|node| !node.cpus.is_empty()) {
        let region = Region::new(4 * MIB).unwrap();
        on(near, || {
            assert_eq!(current_node(), Ok(near.id));
            assert_eq!(region.place_on(NumaPolicy::Node(None)), Ok(Placed::Preferred(near.id)));
        });
        for far in nodes.iter().filter(|node| node.id != near.id && !node.cpus.is_empty()) {
            on(far, || region.populate(0..region.bytes()).unwrap());
        }
        assert_eq!(found_in(&region), all_on(near, 4 * MIB));
    }
}

#[test]
fn interleaved_pages_lie_evenly() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    let region = Region::new(SPREAD_BYTES).unwrap();
    let ids: Vec<u32> = nodes.iter().map(|node| node.id).collect();
    assert_eq!(region.place_on(NumaPolicy::Interleave), Ok(Placed::Interleaved(ids)));
    region.populate(0..region.bytes()).unwrap();
    assert_even(&found_in(&region), &nodes, SPREAD_BYTES);
}

#[test]
fn a_full_node_gives_way_to_the_others() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    if expected_nodes().is_none() {
        return skip("a whole node is filled in a virtual machine only");
    }
    let node = nodes.last().unwrap();
    let bytes = usize::try_from(node.free_bytes).unwrap() + 64 * MIB;
    let region = Region::new(bytes).unwrap();
    assert_eq!(region.place_on(NumaPolicy::Node(Some(node.id))), Ok(Placed::Preferred(node.id)));
    region.populate(0..region.bytes()).unwrap();
    let found = found_in(&region);
    assert_eq!(found.values().sum::<u64>(), region.bytes() as u64);
    assert!(found[&node.id] > node.free_bytes / 2 && found.len() > 1, "{found:?}");
}

#[test]
fn a_thread_has_its_policy_back_after_each_guard() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    let fresh = || {
        let region = Region::new(16 * MIB).unwrap();
        region.populate(0..region.bytes()).unwrap();
        found_in(&region)
    };
    let near = nodes.iter().find(|node| !node.cpus.is_empty()).unwrap();
    let far = nodes.iter().find(|node| node.id != near.id).unwrap();
    on(near, || {
        assert_eq!(fresh(), all_on(near, 16 * MIB), "before");
        let outer = ThreadPolicy::set(NumaPolicy::Node(Some(far.id))).unwrap();
        assert_eq!(outer.placed(), &Placed::Preferred(far.id));
        assert_eq!(fresh(), all_on(far, 16 * MIB), "under the outer guard");
        {
            let _inner = ThreadPolicy::set(NumaPolicy::Interleave).unwrap();
            assert_eq!(fresh().len(), nodes.len().min(8), "under the inner guard");
        }
        assert_eq!(fresh(), all_on(far, 16 * MIB), "after the inner guard");
        drop(outer);
        assert_eq!(fresh(), all_on(near, 16 * MIB), "after both");
    });
}

#[test]
fn pages_of_a_file_lie_where_the_reading_thread_wants_them() {
    let Some((_turn, nodes)) = several_nodes() else { return };
    let Some(file) = file_on_disk() else { return };
    for node in &nodes {
        let found = found_after_reading(&file, NumaPolicy::Node(Some(node.id)));
        assert_eq!(found, all_on(node, FILE_BYTES));
    }
    let found = found_after_reading(&file, NumaPolicy::Interleave);
    assert_even(&found, &nodes, FILE_BYTES);
}

#[test]
fn a_node_that_is_not_there_is_an_error_that_says_what_is() {
    let region = Region::new(MIB).unwrap();
    let usable: Vec<u32> = nodes().iter().map(|node| node.id).collect();
    let node = usable.iter().max().unwrap() + 1;
    let error = NumaError::NoSuchNode { node, usable };
    let policy = NumaPolicy::Node(Some(node));
    assert_eq!(region.place_on(policy), Err(error.clone()));
    assert_eq!(ThreadPolicy::set(policy).unwrap_err(), error);
}

/// The nodes, and the turn of the test: one at a time, since one of them fills a node, which would
/// push the others' pages off it. `None` on one node.
fn several_nodes() -> Option<(MutexGuard<'static, ()>, Vec<Node>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let nodes = nodes();
    if let Some(expected) = expected_nodes() {
        assert_eq!(nodes.len(), expected, "{nodes:?}");
    }
    if nodes.len() > 1 {
        return Some((turn, nodes));
    }
    skip("one NUMA node");
    None
}

fn expected_nodes() -> Option<usize> {
    Some(env::var("FOREBAY_NUMA_NODES").ok()?.parse().expect("FOREBAY_NUMA_NODES is a number"))
}

/// Said past the test runner, which shows what a passing test prints to nobody.
fn skip(why: &str) {
    assert!(expected_nodes().is_none_or(|expected| expected == 1), "may not be skipped: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Runs `work` on a thread that stays on the processors of `node`.
fn on<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> T {
    let mut cpus = CpuSet::new();
    for &cpu in &node.cpus {
        cpus.set(cpu as usize).unwrap();
    }
    let pinned = || {
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
        work()
    };
    let joined = std::thread::scope(|scope| scope.spawn(pinned).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn found_in(region: &Region) -> BTreeMap<u32, u64> {
    pages_by_node(region.start(), region.bytes()).unwrap()
}

fn all_on(node: &Node, bytes: usize) -> BTreeMap<u32, u64> {
    BTreeMap::from([(node.id, bytes as u64)])
}

/// Every node has its share, give or take a tenth of it.
fn assert_even(found: &BTreeMap<u32, u64>, nodes: &[Node], bytes: usize) {
    assert_eq!(found.values().sum::<u64>(), bytes as u64, "{found:?}");
    let share = bytes as u64 / nodes.len() as u64;
    let even = |node: &Node| found.get(&node.id).unwrap_or(&0).abs_diff(share) <= share / 10;
    assert!(nodes.iter().all(even), "{found:?}, where each should have {share}");
}

/// `None` where the temporary folder is memory.
fn file_on_disk() -> Option<File> {
    let mut file = tempfile::tempfile().unwrap();
    let kind = statfs(&env::temp_dir()).unwrap().filesystem_type();
    if [TMPFS_MAGIC, RAMFS].contains(&kind) {
        skip("the temporary folder is memory; set TMPDIR to one on a disk");
        return None;
    }
    file.write_all(&vec![7; FILE_BYTES]).unwrap();
    file.sync_all().unwrap();
    Some(file)
}

/// Where the file's pages lie, once a thread with `policy` has read them anew.
fn found_after_reading(mut file: &File, policy: NumaPolicy) -> BTreeMap<u32, u64> {
    use std::io::Seek;
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    file.rewind().unwrap();
    let mut contents = vec![0; FILE_BYTES];
    {
        let _guard = ThreadPolicy::set(policy).unwrap();
        file.read_exact(&mut contents).unwrap();
    }
    // The pages are in the cache; reading through the mapping puts them into the page table.
    let mapping = FileMapping::new(file, FILE_BYTES as u64, Writes::Refused).unwrap();
    mapping.read_into(0, &mut contents).unwrap();
    pages_by_node(mapping.address(0), FILE_BYTES).unwrap()
}

//! Staging memory on several NUMA nodes. Most machines have one, where this says so and passes;
//! `tests/vm/numa` runs it in a virtual machine that has several, and there sets
//! `FOREBAY_NUMA_NODES`, with which it may not skip.

use forebay_cuda_emulator::Emulator;
use forebay_device::cuda::{Context, SlotGroup, Staging, StagingShape};
use forebay_mem::numa::{NumaPolicy, nodes, pages_by_node};

#[test]
fn each_group_of_slots_lies_on_its_node() {
    let nodes = nodes();
    if nodes.len() < 2 {
        assert!(std::env::var_os("FOREBAY_NUMA_NODES").is_none(), "several nodes were promised");
        return eprintln!("SKIPPED: this machine has one NUMA node");
    }
    Emulator::new().install();
    let context = Context::of(0).unwrap();
    let slot_bytes = 1 << 20;
    let group = |(index, node): (usize, &forebay_mem::numa::Node)| SlotGroup {
        numa: NumaPolicy::Node(Some(node.id)),
        slots: 3 + index,
    };
    let groups = nodes.iter().enumerate().map(group).collect();
    let shape = StagingShape { slot_bytes, groups };
    let (staging, tokens) = Staging::take(&context, &shape).unwrap();
    assert_eq!((tokens.len(), staging.refusal()), (shape.slots(), None));
    let region = staging.slab().region();
    region.populate(0..region.bytes()).unwrap();
    let group_of_slot = shape.group_of_slot();
    for slot in &tokens {
        let start = region.at(slot.index() * slot_bytes);
        let found = pages_by_node(start, slot_bytes).unwrap();
        let node = nodes[group_of_slot[slot.index()]].id;
        assert_eq!(found, [(node, slot_bytes as u64)].into(), "slot {}", slot.index());
    }
}

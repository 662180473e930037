//! What a kernel can do wrong is told with its line, thread and address.
#![allow(clippy::cast_possible_truncation, reason = "values are cut out of words")]

mod common;

use common::{HEAD, kernel, run_module, try_run};
use forebay_ptx::{BlockThread, Fault, FaultKind, Limits, Module};

/// The fault of a body whose line 7 in the module is its first.
fn fault(body: &str, threads: u32) -> Fault {
    let fault = try_run(&format!("\n{body}\nret;"), threads, &[0; 64]).unwrap_err();
    let text = kernel(&format!("\n{body}\nret;"));
    assert_eq!(text.lines().nth(fault.line as usize - 1).unwrap().trim(), &*fault.instruction);
    fault
}

#[test]
fn out_of_bounds() {
    let fault =
        fault(".reg .b32 %v;\nmad.wide.u32 %at, %i, 4, %in;\nld.global.u32 %v, [%at+4];", 16);
    assert_eq!(&*fault.instruction, "ld.global.u32 %v, [%at+4];");
    assert_eq!(fault.at, Some(BlockThread { block: [0; 3], thread: [15, 0, 0] }));
    let FaultKind::OutOfBounds { what: "load", address, bytes: 4, detail } = &fault.kind else {
        panic!("{fault}")
    };
    assert!(detail.contains("byte 64 of the allocation of 64 bytes"), "{address:#x} {detail}");
    let text = fault.to_string();
    assert!(text.contains("thread [15, 0, 0]") && text.contains("load of 4 bytes at 0x"), "{text}");
}

#[test]
fn a_vector_must_be_inside_as_a_whole() {
    let vector = |offset: u32| {
        format!(".reg .b32 %v<4>;\nld.global.v4.u32 {{%v0,%v1,%v2,%v3}}, [%in+{offset}];")
    };
    assert!(try_run(&format!("{} ret;", vector(48)), 1, &[0; 64]).is_ok());
    assert!(matches!(fault(&vector(64), 1).kind, FaultKind::OutOfBounds { bytes: 16, .. }));
    assert!(matches!(fault(&vector(40), 1).kind, FaultKind::Misaligned { bytes: 16, .. }));
}

#[test]
fn stores_where_nothing_is_to_be_stored() {
    let store = fault("st.global.u64 [%out+8], %in;", 1);
    assert!(matches!(store.kind, FaultKind::OutOfBounds { what: "store", .. }), "{store}");
    let null = fault(".reg .b64 %z;\nmov.u64 %z, 0;\nst.u32 [%z], %i;", 1);
    assert!(matches!(null.kind, FaultKind::OutOfBounds { address: 0, .. }), "{null}");
    let parameter = fault("cvta.param.u64 %at, in;\nst.u32 [%at], %i;", 1);
    assert!(matches!(parameter.kind, FaultKind::ReadOnly(_)), "{parameter}");
}

#[test]
fn shared_and_local_memory_end() {
    let shared = fault(".shared .b32 cells[8];\nst.shared.u32 [cells+32], %i;", 1);
    assert!(matches!(shared.kind, FaultKind::OutOfBounds { address: 32, .. }), "{shared}");
    let local = fault(".local .b32 depot[2];\nst.local.u32 [depot+8], %i;", 1);
    assert!(matches!(local.kind, FaultKind::OutOfBounds { address: 8, .. }), "{local}");
    let copy = fault(".shared .align 16 .b8 c[16];\ncp.async.ca.shared.global [c], [%in+2], 4;", 1);
    assert!(matches!(copy.kind, FaultKind::Misaligned { bytes: 4, .. }), "{copy}");
}

#[test]
fn deadlocks_endless_loops_traps_zero_divisors() {
    let barrier = ".reg .pred %p;\nsetp.eq.u32 %p, %i, 0;\n@%p bar.sync 0, 64;";
    let stuck = fault(barrier, 64);
    assert!(stuck.to_string().contains("warp 0, lanes 0x1, line"), "{stuck}");
    let parted = fault(
        ".reg .pred %p; .reg .b32 %v;\nsetp.eq.u32 %p, %i, 0;\n@%p bra OTHER;
        shfl.sync.idx.b32 %v, %i, 0, 31, -1;\nbra END;
        OTHER: bar.sync 0;\nEND:",
        32,
    );
    assert!(matches!(parted.kind, FaultKind::Deadlock(_)), "{parted}");
    assert!(matches!(fault("L: bra L;", 1).kind, FaultKind::InstructionLimit(_)));
    assert_eq!(fault("trap;", 1).kind, FaultKind::Trap);
    let division = ".reg .b32 %v;\nsub.u32 %v, %i, 3;\ndiv.u32 %v, %i, %v;";
    let division = fault(division, 8);
    assert_eq!((division.kind, division.at.unwrap().thread[0]), (FaultKind::DivisionByZero, 3));
    let stranger = fault(".reg .b32 %v;\nshfl.sync.idx.b32 %v, %i, 0, 31, 0xff;", 32);
    assert!(stranger.to_string().contains("lane 8 is not in its own member mask"), "{stranger}");
}

#[test]
fn launches_that_cannot_be() {
    let text = format!(
        "{HEAD}.extern .shared .align 16 .b8 dyn[];
        .visible .entry k(.param .u64 out, .param .align 8 .b8 s[12], .param .u16 last)
        .maxntid 64, 2, 1 .minnctapersm 2 {{ ret; }}
        .visible .entry fixed() .reqntid 32 {{ ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let entry = module.entry("k").unwrap();
    let offsets: Vec<usize> = entry.parameters.iter().map(|one| one.offset).collect();
    assert_eq!((offsets, entry.parameter_bytes), (vec![0, 8, 20], 22));
    assert_eq!(entry.parameters[1].bytes, 12);
    assert_eq!((entry.block_max, entry.blocks_per_multiprocessor_min), (Some([64, 2, 1]), Some(2)));
    assert_eq!((module.version(), module.target()), ((8, 0), "sm_90"));
    let memory = forebay_ptx::Allocations::new();
    let launch = |entry: &str, grid: [u32; 3], block: [u32; 3], shared: u32, parameters: usize| {
        let parameters = vec![0; parameters];
        module.launch(entry, grid, block, shared, &parameters, &memory, &Limits::default())
    };
    assert!(launch("k", [1; 3], [128, 1, 1], 0, 22).is_ok());
    assert!(launch("fixed", [3, 2, 1], [32, 1, 1], 0, 0).is_ok());
    for (refused, why) in [
        (launch("j", [1; 3], [1; 3], 0, 22), "no such entry"),
        (launch("k", [1; 3], [129, 1, 1], 0, 22), ".maxntid says 128"),
        (launch("fixed", [1; 3], [31, 1, 1], 0, 0), ".reqntid says"),
        (launch("k", [1, 0, 1], [1; 3], 0, 22), "empty"),
        (launch("k", [1; 3], [1; 3], 0, 21), "the kernel takes 22"),
        (launch("k", [1; 3], [1; 3], 228 << 10, 22), "are allowed"),
        (launch("k", [1, 70000, 1], [1; 3], 0, 22), "65535"),
    ] {
        let fault = refused.unwrap_err();
        assert!(fault.to_string().contains(why), "{fault}");
    }
}

#[test]
fn the_first_block_in_order_tells() {
    let body = ".reg .pred %p; .reg .b32 %c; mov.u32 %c, %ctaid.x; setp.gt.u32 %p, %c, 4; @%p trap;
        ret;";
    let limits = Limits { threads: 1, ..Limits::default() };
    let fault = run_module(&kernel(body), 50, 1, 0, 400, &[&[]], &limits).unwrap_err();
    assert_eq!(fault.at.unwrap().block, [5, 0, 0]);
}

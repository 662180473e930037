//! What threads do together: divergence, shuffles, votes, barriers, atomics, copies.
#![allow(clippy::cast_possible_truncation, reason = "values are cut out of words")]

mod common;

use common::{kernel, run, run_module, try_run, words};
use forebay_ptx::{FaultKind, Limits};

#[test]
fn lanes_part_and_meet_again() {
    // Each lane loops as often as its number says, by a branch out of the middle; then all lanes
    // must be there for the shuffle.
    let out = run(
        ".reg .b32 %k, %sum, %t; .reg .b64 %r; .reg .pred %p;
        mov.u32 %k, 0; mov.u32 %sum, 0;
        LOOP: setp.eq.u32 %p, %k, %i; @%p bra DONE;
        add.u32 %sum, %sum, %k; add.u32 %k, %k, 1; bra LOOP;
        DONE: shfl.sync.bfly.b32 %t, %sum, 1, 31, -1;
        add.u32 %sum, %sum, %t; cvt.u64.u32 %r, %sum; st.global.u64 [%out], %r; ret;",
        32,
    );
    let sum = |lane: u64| lane * lane.saturating_sub(1) / 2;
    for (lane, out) in out.iter().enumerate() {
        let lane = lane as u64;
        assert_eq!(*out, sum(lane) + sum(lane ^ 1));
    }
}

#[test]
fn both_sides_of_a_branch_and_calls_of_early_ends() {
    let out = run(
        ".reg .b32 %r, %t, %m; .reg .b64 %w; .reg .pred %p, %odd;
        and.b32 %t, %i, 1; setp.eq.u32 %odd, %t, 1; setp.ge.u32 %p, %i, 40;
        mov.u32 %r, 5; @%p exit; @%odd bra ODD;
        activemask.b32 %m; mul.lo.u32 %r, %i, 2; bra.uni END;
        ODD: activemask.b32 %m; mul.lo.u32 %r, %i, 3;
        END: mov.b64 %w, {%r, %m}; st.global.u64 [%out], %w; ret;",
        64,
    );
    for (thread, out) in out.iter().enumerate() {
        let thread = thread as u64;
        let active = if thread % 2 == 1 { 0xAAAA_AAAA } else { 0x5555_5555_u64 };
        let active = if thread < 32 { active } else { active & 0xFF };
        let result = if thread % 2 == 1 { thread * 3 } else { thread * 2 };
        assert_eq!(*out, if thread < 40 { result | active << 32 } else { 0 }, "thread {thread}");
    }
}

#[test]
fn shuffles() {
    let body = |mode: &str, b: &str, c: &str| {
        format!(
            ".reg .b32 %v, %d; .reg .b64 %w; .reg .pred %p; .reg .b32 %q;
            add.u32 %v, %i, 100; shfl.sync.{mode}.b32 %d|%p, %v, {b}, {c}, 0xffffffff;
            selp.u32 %q, 1, 0, %p; mov.b64 %w, {{%d, %q}}; st.global.u64 [%out], %w; ret;"
        )
    };
    let expect = |body: &str, from: &dyn Fn(i64) -> Option<i64>| {
        for (lane, out) in run(body, 32).iter().enumerate() {
            let lane = lane as i64;
            let (source, inside) = from(lane).map_or((lane, 0), |source| (source, 1));
            assert_eq!(*out, (source + 100) as u64 | inside << 32, "{body}, lane {lane}");
        }
    };
    expect(&body("up", "3", "0"), &|lane| (lane >= 3).then(|| lane - 3));
    expect(&body("down", "5", "31"), &|lane| (lane + 5 < 32).then(|| lane + 5));
    expect(&body("bfly", "16", "0x1f"), &|lane| Some(lane ^ 16));
    expect(&body("idx", "9", "31"), &|_| Some(9));
    // Segments of eight lanes: 0x18 in the upper part of c.
    expect(&body("idx", "2", "0x181f"), &|lane| Some(lane / 8 * 8 + 2));
    expect(&body("down", "2", "0x181f"), &|lane| (lane % 8 < 6).then(|| lane + 2));
    expect(&body("up", "2", "0x1800"), &|lane| (lane % 8 >= 2).then(|| lane - 2));
}

#[test]
fn votes_matches_reductions() {
    let out = run(
        ".reg .b32 %b, %m, %r, %k; .reg .b64 %w; .reg .pred %p, %all;
        setp.lt.u32 %p, %i, 7; vote.sync.ballot.b32 %b, %p, -1; vote.sync.all.pred %all, !%p, -1;
        @%all trap;
        rem.u32 %k, %i, 3; match.any.sync.b32 %m, %k, -1;
        redux.sync.add.s32 %r, %i, -1; add.u32 %r, %r, %b;
        mov.b64 %w, {%r, %m}; st.global.u64 [%out], %w; ret;",
        32,
    );
    for (lane, out) in out.iter().enumerate() {
        let same = (0..32).filter(|other| other % 3 == lane % 3).fold(0, |m, l| m | 1_u64 << l);
        assert_eq!(*out, (496 + 127) | same << 32);
    }
}

#[test]
fn a_shuffle_of_part_of_a_warp_waits_for_its_members() {
    // Lanes 0 to 15 come to the shuffle by two ways; the others never do.
    let out = run(
        ".reg .b32 %v; .reg .b64 %w; .reg .pred %p, %q; mov.u32 %v, %i;
        setp.ge.u32 %p, %i, 16; @%p bra OUT; setp.lt.u32 %q, %i, 4; @%q bra FEW;
        add.u32 %v, %v, 1000; bra MEET; FEW: add.u32 %v, %v, 2000;
        MEET: shfl.sync.bfly.b32 %v, %v, 8, 31, 0xffff;
        OUT: cvt.u64.u32 %w, %v; st.global.u64 [%out], %w; ret;",
        32,
    );
    for (lane, out) in out.iter().enumerate() {
        let from = lane as u64 ^ 8;
        let value = if from < 4 { from + 2000 } else { from + 1000 };
        assert_eq!(*out, if lane < 16 { value } else { lane as u64 });
    }
}

#[test]
fn barriers_between_warps_and_reductions_at_them() {
    let out = run(
        ".shared .align 4 .b32 cells[128]; .reg .b32 %at32, %v, %n2, %c; .reg .b64 %w; .reg .pred %p;
        mov.u32 %at32, cells; mad.lo.u32 %at32, %i, 4, %at32; st.shared.u32 [%at32], %i;
        bar.sync 0;
        sub.u32 %n2, 127, %i; mov.u32 %at32, cells; mad.lo.u32 %at32, %n2, 4, %at32;
        ld.shared.u32 %v, [%at32];
        setp.lt.u32 %p, %i, 70; bar.red.popc.u32 %c, 1, %p;
        bar.red.or.pred %p, 0, %p; @!%p trap;
        mov.b64 %w, {%v, %c}; st.global.u64 [%out], %w; ret;",
        128,
    );
    for (thread, out) in out.iter().enumerate() {
        assert_eq!(*out, (127 - thread as u64) | 70 << 32);
    }
}

#[test]
fn barriers_in_both_sides_of_a_branch() {
    // Half of the warps go one way, half the other; and one barrier is for 64 threads only.
    let out = run(
        ".shared .align 4 .b32 cell; .reg .b32 %v; .reg .b64 %w; .reg .pred %p, %q;
        setp.lt.u32 %p, %i, 64; @%p bra LOW;
        bar.sync 0; ld.shared.u32 %v, [cell]; bra END;
        LOW: setp.eq.u32 %q, %i, 33; bar.sync 1, 64; @%q st.shared.u32 [cell], 77; bar.sync 0;
        ld.shared.u32 %v, [cell];
        END: cvt.u64.u32 %w, %v; st.global.u64 [%out], %w; ret;",
        128,
    );
    assert!(out.iter().all(|value| *value == 77));
}

#[test]
fn a_warps_barrier_in_two_places() {
    let out = run(
        ".shared .align 4 .b32 cells[32]; .reg .b32 %a, %v; .reg .b64 %w; .reg .pred %p;
        shl.b32 %a, %i, 2; setp.lt.u32 %p, %i, 16; @%p bra LOW;
        st.shared.u32 [%a], %i; bar.warp.sync -1; bra END;
        LOW: st.shared.u32 [%a], 5; bar.warp.sync -1;
        END: xor.b32 %a, %a, 64; ld.shared.u32 %v, [%a]; cvt.u64.u32 %w, %v;
        st.global.u64 [%out], %w; ret;",
        32,
    );
    for (lane, out) in out.iter().enumerate() {
        assert_eq!(*out, if lane < 16 { lane as u64 + 16 } else { 5 });
    }
}

#[test]
fn atomics_over_blocks() {
    let body = ".reg .b32 %v; .reg .b64 %w, %sum; .reg .f32 %f; .reg .b16 %h, %h2; .reg .b32 %h4;
        .reg .pred %p;
        sub.u64 %sum, %out, 0; mov.u64 %w, 1;
        ld.param.u64 %sum, [out];
        red.global.add.u64 [%sum], %w; add.u64 %sum, %sum, 8;
        red.global.max.s32 [%sum], %i; atom.global.or.b32 %v, [%sum+4], 6;
        mov.f32 %f, 0f3F800000; atom.global.add.f32 %f, [%sum+8], %f;
        mov.b32 %h4, 0x3C003C00; red.global.add.noftz.f16x2 [%sum+12], %h4;
        atom.global.inc.u32 %v, [%sum+16], 4; 
        LOOP: atom.global.cas.b32 %v, [%sum+20], 0, 1; setp.ne.u32 %p, %v, 0; @%p bra END;
        atom.global.exch.b32 %v, [%sum+24], 99; END: ret;";
    let limits = Limits { threads: 4, ..Limits::default() };
    let (out, stats) = run_module(&kernel(body), 20, 50, 0, 20 * 50 * 8, &[&[]], &limits).unwrap();
    assert_eq!(stats.blocks, 20);
    let out = words(&out);
    assert_eq!(out[0], 1000);
    assert_eq!(out[1], 49 | 6 << 32);
    assert_eq!(out[2] as u32, 1000.0_f32.to_bits());
    assert_eq!(out[2] >> 32, 0x63D0_63D0); // 1000 as halves
    assert_eq!(out[3], 1 << 32); // 1000 % 5, and the lock that one thread took
    assert_eq!(out[4], 99);
}

/// Copies 16 bytes a thread into shared memory; what is there without a wait is poison.
fn copy(wait: &str) -> Vec<u64> {
    let body = format!(
        ".shared .align 16 .b8 cells[1024]; .reg .b32 %s; .reg .b64 %g, %w;
        mov.u32 %s, cells; mad.lo.u32 %s, %i, 16, %s; mad.wide.u32 %g, %i, 16, %in;
        cp.async.cg.shared.global [%s], [%g], 16; cp.async.commit_group;
        cp.async.ca.shared.global [%s], [%g], 8, 4; cp.async.commit_group;
        {wait}
        ld.shared.u64 %w, [%s]; st.global.u64 [%out], %w; ret;"
    );
    let input: Vec<u8> = (0..1024).map(|index| (index % 251) as u8).collect();
    try_run(&body, 64, &input).unwrap()
}

#[test]
fn copies_land_when_they_are_waited_for() {
    let poison = 0xA5A5_A5A5_A5A5_A5A5;
    assert!(copy("").iter().all(|value| *value == poison));
    assert!(copy("cp.async.wait_group 2;").iter().all(|value| *value == poison));
    let word = |thread: usize, bytes: usize| {
        (0..bytes).fold(0, |word, at| word | (((thread * 16 + at) % 251) as u64) << (8 * at))
    };
    for (thread, out) in copy("cp.async.wait_group 1;").iter().enumerate() {
        assert_eq!(*out, word(thread, 8));
    }
    for wait in ["cp.async.wait_group 0;", "cp.async.wait_all;"] {
        for (thread, out) in copy(wait).iter().enumerate() {
            assert_eq!(*out, word(thread, 4), "the second copy fills with zeros");
        }
    }
}

#[test]
fn races_between_warps_are_found_when_asked_for() {
    let race = |barrier: &str| {
        let body = format!(
            ".shared .align 4 .b32 cells[64]; .reg .b32 %s, %v; .reg .b64 %w;
            shl.b32 %s, %i, 2; st.shared.u32 [%s], %i;
            {barrier}
            xor.b32 %s, %s, 128; ld.shared.u32 %v, [%s]; cvt.u64.u32 %w, %v;
            st.global.u64 [%out], %w; ret;"
        );
        let limits = Limits { detect_races: true, ..Limits::default() };
        run_module(&kernel(&body), 1, 64, 0, 512, &[&[]], &limits)
    };
    assert!(race("bar.sync 0;").is_ok());
    let fault = race("").unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Race { .. }), "{fault}");
    assert!(fault.to_string().contains("and warp 0 read it in line"), "{fault}");
}

#[test]
fn dynamic_shared_memory_lies_behind_the_static() {
    let text = kernel(
        ".shared .align 4 .b8 own[5]; .reg .b32 %s, %z; .reg .b64 %w;
        mov.u32 %s, dyn; mov.u32 %z, %dynamic_smem_size; st.shared.u32 [dyn+96], %s;
        ld.shared.u32 %s, [dyn+96]; st.shared.u8 [own+4], %s;
        mov.b64 %w, {%s, %z}; st.global.u64 [%out], %w; ret;",
    )
    .replace(".visible", ".extern .shared .align 16 .b8 dyn[];\n.visible");
    let limits = Limits::default();
    let (out, _) = run_module(&text, 1, 1, 100, 8, &[&[]], &limits).unwrap();
    assert_eq!(words(&out), [16 | 100 << 32]);
    let fault = run_module(&text, 1, 1, 96, 8, &[&[]], &limits).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfBounds { address: 112, .. }), "{fault}");
}

#[test]
fn tables_calls_locals_and_switches() {
    let text = kernel(
        ".local .align 8 .b8 depot[16]; .reg .b64 %t, %l, %w; .reg .b32 %v, %x, %y;
        mov.u64 %t, table; mad.wide.u32 %t, %i, 4, %t; ld.global.nc.u32 %v, [%t];
        ld.const.s8 %x, [signs+1];
        mov.u64 %l, depot; cvta.local.u64 %l, %l; st.u32 [%l+8], %v; ld.local.u32 %v, [depot+8];
        { .param .b32 p0; st.param.b32 [p0], %v; .param .b32 r0; call.uni (r0), twice, (p0);
        ld.param.b32 %v, [r0]; }
        cvta.to.local.u64 %l, %l;
        brx.idx %i, ways; ways: .branchtargets A, B, A, C;
        A: add.u32 %v, %v, 1000; bra.uni C; B: add.u32 %v, %v, 2000; C:
        mov.b64 %w, {%v, %x}; st.global.u64 [%out], %w; ret;",
    )
    .replace(
        ".visible",
        ".global .align 4 .u32 table[4] = {10, 20, 0x1E, 40};
        .const .align 1 .b8 signs[2] = {1, 254};
        .func (.param .b32 back) twice(.param .b32 value)
        { .reg .b32 %v; .reg .pred %p; ld.param.u32 %v, [value]; setp.eq.u32 %p, %v, 20;
        @%p bra ODD; add.u32 %v, %v, %v; st.param.b32 [back], %v; ret;
        ODD: st.param.b32 [back], 7; ret; }
        .visible",
    );
    let (out, _) = run_module(&text, 1, 4, 0, 32, &[&[]], &Limits::default()).unwrap();
    let minus_two = 0xFFFF_FFFE << 32;
    assert_eq!(words(&out), [1020, 2007, 1060, 80].map(|value| value | minus_two));
}

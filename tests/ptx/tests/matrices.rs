//! `mma` against plain products, with fragments gathered as the manual's tables say; `ldmatrix`
//! and `stmatrix` against the rows they move.
#![allow(clippy::cast_possible_truncation, reason = "matrix elements are small")]

mod common;

use common::{HEAD, kernel, run_module, words};
use forebay_ptx::{FaultKind, Limits};

/// The manual's fragment of A: rows and columns of the elements of one lane, in order.
fn a_elements(depth: usize, per_register: usize, lane: usize) -> Vec<(usize, usize)> {
    let (g, t) = (lane / 4, lane % 4);
    let registers = 16 * depth / 32 / per_register;
    (0..registers * per_register)
        .map(|index| {
            let (register, part) = (index / per_register, index % per_register);
            let row = if register % 2 == 0 { g } else { g + 8 };
            (row, register / 2 * 4 * per_register + t * per_register + part)
        })
        .collect()
}

fn b_elements(depth: usize, per_register: usize, lane: usize) -> Vec<(usize, usize)> {
    let (g, t) = (lane / 4, lane % 4);
    let registers = 8 * depth / 32 / per_register;
    (0..registers * per_register)
        .map(|index| {
            let (register, part) = (index / per_register, index % per_register);
            (register * 4 * per_register + t * per_register + part, g)
        })
        .collect()
}

/// Encodes a small whole number.
fn encode(kind: &str, value: i32) -> u32 {
    let bits = (value as f32).to_bits();
    match kind {
        "s8" | "u8" => u32::from(value as u8),
        "tf32" => bits,
        "bf16" => bits >> 16,
        _ if value == 0 => 0,
        "f16" => bits >> 16 & 0x8000 | (bits >> 13 & 0x3_FFFF).wrapping_sub(112 << 10) & 0x7FFF,
        "e5m2" => encode("f16", value) >> 8,
        "e4m3" => bits >> 24 & 0x80 | (bits >> 20 & 0x7FF).wrapping_sub(120 << 3) & 0x7F,
        _ => panic!("{kind}"),
    }
}

fn registers(values: &[u32], bits: u32) -> Vec<u32> {
    let pack =
        |chunk: &[u32]| chunk.iter().rev().fold(0_u64, |word, one| word << bits | u64::from(*one));
    values.chunks(32 / bits as usize).map(|chunk| pack(chunk) as u32).collect()
}

fn check_mma(shape: &str, depth: usize, [d, a, b, c]: [&str; 4], bits: u32) {
    let mut random = fastrand::Rng::with_seed(depth as u64 + u64::from(bits));
    let least = |kind: &str| if kind == "u8" { 0 } else { -3 };
    let a_matrix: Vec<Vec<i32>> =
        (0..16).map(|_| (0..depth).map(|_| random.i32(least(a)..4)).collect()).collect();
    let b_matrix: Vec<Vec<i32>> =
        (0..depth).map(|_| (0..8).map(|_| random.i32(least(b)..4)).collect()).collect();
    let c_matrix: Vec<Vec<i32>> =
        (0..16).map(|_| (0..8).map(|_| random.i32(-20..20)).collect()).collect();
    let (mut input, per_register) = (Vec::new(), 32 / bits as usize);
    let mut counts = [0; 3];
    for lane in 0..32 {
        let values = |elements: Vec<(usize, usize)>, matrix: &[Vec<i32>], kind: &str| {
            elements.iter().map(|(row, column)| encode(kind, matrix[*row][*column])).collect()
        };
        let a_values: Vec<u32> = values(a_elements(depth, per_register, lane), &a_matrix, a);
        let b_values: Vec<u32> = values(b_elements(depth, per_register, lane), &b_matrix, b);
        let (row, column) = (lane / 4, lane % 4 * 2);
        let at = [(row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)];
        let c_values = at.map(|(row, column)| match c {
            "s32" => c_matrix[row][column] as u32,
            "f16" => encode("f16", c_matrix[row][column]),
            _ => (c_matrix[row][column] as f32).to_bits(),
        });
        let all = [
            registers(&a_values, bits),
            registers(&b_values, bits),
            registers(&c_values, if c == "f16" { 16 } else { 32 }),
        ];
        counts = [all[0].len(), all[1].len(), all[2].len()];
        let mut flat: Vec<u32> = all.concat();
        flat.resize(16, 0);
        input.extend(flat.iter().flat_map(|word| word.to_le_bytes()));
    }
    let [a_count, b_count, c_count] = counts;
    let d_count = if d == "f16" { 2 } else { 4 };
    let list = |start: usize, count: usize| {
        (start..start + count).map(|one| format!("%r{one}")).collect::<Vec<_>>().join(",")
    };
    let loads: String = (0..a_count + b_count + c_count)
        .map(|one| format!("ld.global.b32 %r{one}, [%at+{}];\n", one * 4))
        .collect();
    let stores: String = (0..d_count)
        .map(|one| format!("st.global.b32 [%o+{}], %r{};\n", one * 4, 20 + one))
        .collect();
    let body = format!(
        ".reg .b32 %r<32>; .reg .b64 %o; mad.wide.u32 %at, %i, 64, %in; {loads}
        mma.sync.aligned.{shape}.row.col.{d}.{a}.{b}.{c} {{{}}}, {{{}}}, {{{}}}, {{{}}};
        mad.wide.u32 %o, %i, 8, %out; {stores} ret;",
        list(20, d_count),
        list(0, a_count),
        list(a_count, b_count),
        list(a_count + b_count, c_count),
    );
    let (out, _) =
        run_module(&kernel(&body), 1, 32, 0, 32 * 16, &[&input], &Limits::default()).unwrap();
    for lane in 0..32 {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let at = [(row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1)];
        let expected = at.map(|(row, column)| {
            let products = (0..depth).map(|k| a_matrix[row][k] * b_matrix[k][column]);
            let sum = c_matrix[row][column] + products.sum::<i32>();
            match d {
                "s32" => sum as u32,
                "f16" => encode("f16", sum),
                _ => (sum as f32).to_bits(),
            }
        });
        let expected = registers(&expected, if d == "f16" { 16 } else { 32 });
        let got: Vec<u32> = out[lane * 16..][..4 * d_count]
            .chunks_exact(4)
            .map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap()))
            .collect();
        assert_eq!(got, expected, "{shape} {d} {a} {b} {c}, lane {lane}");
    }
}

#[test]
fn products_of_every_type() {
    check_mma("m16n8k16", 16, ["f32", "f16", "f16", "f32"], 16);
    check_mma("m16n8k8", 8, ["f32", "f16", "f16", "f32"], 16);
    check_mma("m16n8k16", 16, ["f16", "f16", "f16", "f16"], 16);
    check_mma("m16n8k8", 8, ["f16", "f16", "f16", "f16"], 16);
    check_mma("m16n8k16", 16, ["f32", "bf16", "bf16", "f32"], 16);
    check_mma("m16n8k8", 8, ["f32", "bf16", "bf16", "f32"], 16);
    check_mma("m16n8k8", 8, ["f32", "tf32", "tf32", "f32"], 32);
    check_mma("m16n8k4", 4, ["f32", "tf32", "tf32", "f32"], 32);
    check_mma("m16n8k32", 32, ["s32", "s8", "s8", "s32"], 8);
    check_mma("m16n8k32", 32, ["s32", "u8", "s8", "s32"], 8);
    check_mma("m16n8k16", 16, ["s32", "s8", "s8", "s32"], 8);
    check_mma("m16n8k32", 32, ["f32", "e4m3", "e4m3", "f32"], 8);
    check_mma("m16n8k32", 32, ["f32", "e5m2", "e4m3", "f32"], 8);
}

/// Shared memory holds 64 rows of 8 halves, element `e` of row `r` being `64 * e + r`.
fn matrices(instructions: &str) -> String {
    kernel(&format!(
        ".shared .align 16 .b8 rows[1024]; .reg .b32 %s, %e, %v, %r<4>; .reg .b16 %h;
        .reg .b64 %w; .reg .pred %p;
        mov.u32 %e, 0;
        FILL: mad.lo.u32 %v, %e, 64, %i; cvt.u16.u32 %h, %v; mul.lo.u32 %s, %i, 16;
        mad.lo.u32 %s, %e, 2, %s; st.shared.b16 [%s], %h;
        add.u32 %v, %v, 32; cvt.u16.u32 %h, %v; st.shared.b16 [%s+512], %h;
        add.u32 %e, %e, 1; setp.lt.u32 %p, %e, 8; @%p bra FILL;
        bar.warp.sync -1; mul.lo.u32 %s, %i, 16; {instructions}
        mov.b64 %w, {{%r0, %r3}}; st.global.u64 [%out], %w; ret;"
    ))
}

#[test]
fn matrices_are_loaded_straight_and_turned() {
    let limits = Limits::default();
    let four = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0,%r1,%r2,%r3}, [%s];";
    let element = |row: u64, column: u64| column * 64 + row;
    for (text, turned) in [(four.to_owned(), false), (four.replace(".x4", ".x4.trans"), true)] {
        let (out, _) = run_module(&matrices(&text), 1, 32, 0, 256, &[&[]], &limits).unwrap();
        for (lane, out) in words(&out).iter().enumerate() {
            let (row, column) = (lane as u64 / 4, lane as u64 % 4 * 2);
            let pair = |first_row: u64| {
                let of = |column: u64| {
                    if turned {
                        element(first_row + column, row)
                    } else {
                        element(first_row + row, column)
                    }
                };
                of(column) | of(column + 1) << 16
            };
            assert_eq!(*out, pair(0) | pair(24) << 32, "lane {lane}, turned {turned}");
        }
    }
    // Stored again, elsewhere and loaded from there, they are the same.
    let text = format!(
        "{four} add.u32 %s, %s, 512; bar.warp.sync -1;
        stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%s], {{%r0,%r1,%r2,%r3}};
        bar.warp.sync -1; {}",
        four.replace(".x4", ".x4.trans")
    );
    let (out, _) = run_module(&matrices(&text), 1, 32, 0, 256, &[&[]], &limits).unwrap();
    let (straight, _) = run_module(&matrices(four), 1, 32, 0, 256, &[&[]], &limits).unwrap();
    assert_eq!(out, straight);
}

#[test]
fn a_row_off_its_alignment_is_a_fault() {
    let text = matrices("add.u32 %s, %s, 8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%s];");
    let fault = run_module(&text, 1, 32, 0, 256, &[&[]], &Limits::default()).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Misaligned { bytes: 16, .. }), "{fault}");
}

#[test]
fn a_product_needs_the_whole_warp() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 out) {{ .reg .b32 %r<4>;
        mma.sync.aligned.m16n8k8.row.col.f16.f16.f16.f16 {{%r0,%r1}}, {{%r0,%r1}}, {{%r2}}, {{%r0,%r1}};
        ret; }}"
    );
    assert!(run_module(&text, 1, 32, 0, 8, &[], &Limits::default()).is_ok());
    let fault = run_module(&text, 1, 20, 0, 8, &[], &Limits::default()).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::Collective(_)), "{fault}");
}

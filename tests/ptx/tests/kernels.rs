//! Kernels compiled by NVRTC (`data/make.py`), against plain loops in f64.
#![allow(clippy::cast_possible_truncation, reason = "values are cut out of words")]

mod common;

use common::bytes_of;
use forebay_ptx::{Allocations, Limits, Module, Stats};

const MATMUL_F32: &str = include_str!("data/matmul_f32.ptx");
const MATMUL_HALF: &str = include_str!("data/matmul_half.ptx");
const GEMV: &str = include_str!("data/gemv_q.ptx");

fn launch(
    text: &str,
    entry: &str,
    grid: [u32; 3],
    block: [u32; 3],
    memory: &Allocations,
    parameters: (&[u64], &[u32]),
) -> Stats {
    let module = Module::parse(text).unwrap();
    let mut bytes = bytes_of(parameters.0, u64::to_le_bytes);
    bytes.extend(bytes_of(parameters.1, u32::to_le_bytes));
    let limits = Limits { detect_races: true, ..Limits::default() };
    module
        .launch(entry, grid, block, 0, &bytes, memory, &limits)
        .unwrap_or_else(|fault| panic!("{fault}"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}

fn assert_close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(1e-30, |most, value| value.abs().max(most));
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / scale;
        assert!(error < tolerance, "element {index}: {got}, expected {expected}, error {error}");
    }
}

/// `C[m, n] = A[m, k] · B[k, n]`, with B found by `at(k, n)`.
fn product(
    [m, n, k]: [usize; 3],
    a: &[f32],
    b: &[f32],
    at: impl Fn(usize, usize) -> usize,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for row in 0..m {
        for column in 0..n {
            c[row * n + column] = (0..k)
                .map(|depth| f64::from(a[row * k + depth]) * f64::from(b[at(depth, column)]))
                .sum();
        }
    }
    c
}

#[test]
fn a_tiled_product_of_floats() {
    let mut random = fastrand::Rng::with_seed(11);
    let [m, n, k] = [37, 29, 41];
    let a: Vec<f32> = (0..m * k).map(|_| random.f32() - 0.5).collect();
    let b: Vec<f32> = (0..k * n).map(|_| random.f32() - 0.5).collect();
    let mut memory = Allocations::new();
    let pointers = [
        memory.allocate(&bytes_of(&a, f32::to_le_bytes)),
        memory.allocate(&bytes_of(&b, f32::to_le_bytes)),
        memory.allocate(&vec![0; m * n * 4]),
    ];
    let grid = [n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1];
    let shape = [m as u32, n as u32, k as u32];
    launch(MATMUL_F32, "matmul_f32", grid, [16, 16, 1], &memory, (&pointers, &shape));
    let expected = product([m, n, k], &a, &b, |depth, column| depth * n + column);
    assert_close(&floats(&memory.read(pointers[2])), &expected, 1e-6);
}

/// A bf16 and its value; a half is made of small whole numbers over 64, which both have exactly.
fn exact(value: i32, is_brain: bool) -> (u16, f32) {
    let float = value as f32 / 64.0;
    let bits = float.to_bits();
    if is_brain {
        return ((bits >> 16) as u16, float);
    }
    if float == 0.0 {
        return (0, 0.0);
    }
    let exponent = (bits >> 23 & 0xFF) + 15 - 127;
    ((bits >> 16 & 0x8000 | exponent << 10 | bits >> 13 & 0x3FF) as u16, float)
}

#[test]
fn products_of_halves_by_mma() {
    let mut random = fastrand::Rng::with_seed(12);
    let [m, n, k] = [32, 24, 64];
    for (entry, is_brain) in [("matmul_f16", false), ("matmul_bf16", true)] {
        let mut matrix = |count: usize| -> (Vec<u16>, Vec<f32>) {
            (0..count).map(|_| exact(random.i32(-60..60), is_brain)).unzip()
        };
        let ((a, a_values), (b, b_values)) = (matrix(m * k), matrix(n * k));
        let mut memory = Allocations::new();
        let pointers = [
            memory.allocate(&bytes_of(&a, u16::to_le_bytes)),
            memory.allocate(&bytes_of(&b, u16::to_le_bytes)),
            memory.allocate(&vec![0; m * n * 4]),
        ];
        let grid = [n as u32 / 8, m as u32 / 16, 1];
        let shape = [m as u32, n as u32, k as u32];
        launch(MATMUL_HALF, entry, grid, [32, 1, 1], &memory, (&pointers, &shape));
        let expected = product([m, n, k], &a_values, &b_values, |depth, column| column * k + depth);
        // Sums of so few small numbers are exact in f32.
        assert_close(&floats(&memory.read(pointers[2])), &expected, 1e-9);
    }
}

fn half(bytes: &[u8]) -> f32 {
    let bits = u32::from(bytes[0]) | u32::from(bytes[1]) << 8;
    f32::from_bits((bits << 16 & 0x8000_0000) + ((bits & 0x7FFF) << 13) + (112 << 23))
}

fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half(block);
    let quants = &block[2..];
    out.extend(quants.iter().map(|byte| scale * (f32::from(byte & 15) - 8.0)));
    out.extend(quants.iter().map(|byte| scale * (f32::from(byte >> 4) - 8.0)));
}

fn q8_0(block: &[u8], out: &mut Vec<f32>) {
    let scale = half(block);
    out.extend(block[2..].iter().map(|byte| scale * f32::from(byte.cast_signed())));
}

fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (scale, minimum) = (half(block), half(&block[2..]));
    let packed = &block[4..16];
    for group in 0..8 {
        let (s, m) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            )
        };
        for byte in &block[16 + group / 2 * 32..][..32] {
            let quant = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            out.push(scale * f32::from(s) * f32::from(quant) - minimum * f32::from(m));
        }
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half(&block[208..]);
    for index in 0..256 {
        let (part, within) = (index / 128, index % 128);
        let (quarter, lane) = (within / 32, within % 32);
        let nibbles = low[part * 64 + lane + quarter % 2 * 32];
        let nibble = if quarter < 2 { nibbles & 15 } else { nibbles >> 4 };
        let top = high[part * 32 + lane] >> (2 * quarter) & 3;
        let quant = f32::from(nibble | top << 4) - 32.0;
        out.push(scale * f32::from(scales[index / 16].cast_signed()) * quant);
    }
}

#[test]
fn quantised_matrices_times_vectors() {
    type Decode = fn(&[u8], &mut Vec<f32>);
    let formats: [(&str, usize, usize, &[usize], Decode); 4] = [
        ("gemv_q4_0", 32, 18, &[0], q4_0),
        ("gemv_q8_0", 32, 34, &[0], q8_0),
        ("gemv_q4_K", 256, 144, &[0, 2], q4_k),
        ("gemv_q6_K", 256, 210, &[208], q6_k),
    ];
    let mut random = fastrand::Rng::with_seed(13);
    let (rows, columns) = (10, 1024);
    for (entry, block_values, block_bytes, scales, decode) in formats {
        let mut weights = Vec::new();
        for _ in 0..rows * columns / block_values {
            let mut block: Vec<u8> = (0..block_bytes).map(|_| random.u8(..)).collect();
            for at in scales {
                block[at + 1] = 0x20 | random.u8(0..16);
            }
            weights.extend(block);
        }
        let mut values = Vec::new();
        weights.chunks_exact(block_bytes).for_each(|block| decode(block, &mut values));
        let x: Vec<f32> = (0..columns).map(|_| random.f32() - 0.5).collect();
        let mut memory = Allocations::new();
        let pointers = [
            memory.allocate(&weights),
            memory.allocate(&bytes_of(&x, f32::to_le_bytes)),
            memory.allocate(&vec![0; rows * 4]),
        ];
        let shape = [rows as u32, columns as u32];
        launch(GEMV, entry, [3, 1, 1], [32, 4, 1], &memory, (&pointers, &shape));
        let expected = product([rows, 1, columns], &values, &x, |depth, _| depth);
        assert_close(&floats(&memory.read(pointers[2])), &expected, 1e-5);
    }
}

const SWEEPS: [&str; 2] =
    [include_str!("data/sweep.compute_75.ptx"), include_str!("data/sweep.compute_90.ptx")];

#[test]
fn math_functions() {
    let n = 200;
    let x: Vec<f32> = (0..n).map(|i| (i as f32 - 90.3) * 0.11).collect();
    for text in SWEEPS {
        let mut memory = Allocations::new();
        let pointers =
            [memory.allocate(&bytes_of(&x, f32::to_le_bytes)), memory.allocate(&vec![0; n * 64])];
        launch(text, "math", [4, 1, 1], [64, 1, 1], &memory, (&pointers, &[n as u32]));
        let out = floats(&memory.read(pointers[1]));
        for (i, out) in out.chunks_exact(16).enumerate() {
            let (v, w) = (f64::from(x[i]), f64::from(x[(i + 1) % n]));
            let expected = [
                v.exp(),
                w.sin(),
                v.tanh(),
                (v.abs() + 1.0).ln(),
                w.abs().powf(1.5),
                (v.abs() + 1.0).sqrt().recip(),
                v / w,
                f64::NAN,
                [1.0, 2.5, -3.0, 1e-20][i & 3]
                    + [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0]
                        .into_iter()
                        .chain([1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0])
                        .nth(i & 15)
                        .unwrap(),
                v.round() + w.floor(),
                v % w,
                w.abs().sqrt(),
                v / (1.0 + (-v).exp()),
                v * w + (i * 37 / (n + 1)) as f64,
            ];
            for (at, (out, expected)) in out.iter().zip(expected).enumerate() {
                let error = (f64::from(*out) - expected).abs() / expected.abs().max(1e-3);
                assert!(
                    error.is_nan() || error < 2e-6,
                    "{at} of {v}, {w}: {out}, expected {expected}"
                );
            }
            assert!(out[14..].iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn counters_of_all_sorts() {
    let (blocks, threads) = (3_u32, 64_u32);
    let n = blocks * threads;
    for (text, has_redux) in SWEEPS.into_iter().zip([false, true]) {
        let mut memory = Allocations::new();
        let counters = memory.allocate(&vec![0; 32 + n as usize * 4]);
        let grid = [blocks, 1, 1];
        let one = 1.0_f32.to_bits();
        launch(text, "counters", grid, [threads, 1, 1], &memory, (&[counters], &[one]));
        let words: Vec<u32> = memory
            .read(counters)
            .chunks_exact(4)
            .map(|chunk| u32::from_le_bytes(chunk.try_into().unwrap()))
            .collect();
        assert_eq!(words[..3], [n, n - 1, (n as f32).to_bits()]);
        assert!((1..n).contains(&words[3]));
        assert_eq!(words[4], 0x5A00_5A00, "192 as halves");
        assert_eq!(words[6..8], [5 * n, 0]);
        for (i, word) in (0..n).zip(&words[8..]) {
            let lane = i % 32;
            let shuffled = if lane < 28 { i + 4 } else { i };
            let first = i - lane;
            let redux = if has_redux { 32 * first + 496 } else { 0 };
            let dot = (i & 0x7F) * 4 + if i & 0x80 != 0 { 0_u32.wrapping_sub(512) } else { 0 } + 7;
            let any = 1;
            let expected = shuffled + any + 16 + 8 + redux + threads / 2;
            assert_eq!(*word, expected.wrapping_add(dot), "thread {i}");
        }
    }
}

#[test]
fn local_arrays_switches_and_calls() {
    let n = 96_usize;
    let x: Vec<i32> = (0..n as i32).map(|i| i * 7 % 61 - 9).collect();
    for choice in [0, 1, 2, 3, 4, 20] {
        let mut memory = Allocations::new();
        let pointers = [
            memory.allocate(&bytes_of(&x, i32::to_le_bytes)),
            memory.allocate(&vec![0; n * 4]),
            memory.allocate(&vec![0; n * 4]),
        ];
        let arguments = [n as u32, choice];
        launch(SWEEPS[1], "locals", [3, 1, 1], [32, 1, 1], &memory, (&pointers, &arguments));
        let y = memory.read(pointers[1]);
        let f = floats(&memory.read(pointers[2]));
        for i in 0..n {
            let mut a: Vec<i32> = (0..32).map(|k| x[(i + k) % n]).collect();
            for k in 0..choice as usize {
                let at = (a[k & 31] & 31) as usize;
                a[at] += k as i32;
            }
            let r = match choice {
                0 => 1,
                1 => a[3] * 7,
                2 => a[5] / 3,
                3 => a[1] % 5,
                4 => a[9] ^ 3,
                other => a[other as usize & 31],
            };
            let mut added = 0.0;
            let mut helper = |a: i32, b: i32| {
                added += if a > b { 0.0 } else { 2.0 };
                if a > b { a * b } else { a - b }
            };
            let expected = helper(r, 5) + helper(i as i32, r);
            let got = i32::from_le_bytes(y[i * 4..][..4].try_into().unwrap());
            assert_eq!((got, f[i]), (expected, added), "thread {i}, choice {choice}");
        }
    }
}

#[test]
fn a_tile_by_copies_matrices_and_mma() {
    let mut random = fastrand::Rng::with_seed(14);
    let mut matrix = |count: usize| -> (Vec<u16>, Vec<f32>) {
        (0..count).map(|_| exact(random.i32(-60..60), false)).unzip()
    };
    let ((a, a_values), (b, b_values)) = (matrix(256), matrix(128));
    let mut memory = Allocations::new();
    let pointers = [
        memory.allocate(&bytes_of(&a, u16::to_le_bytes)),
        memory.allocate(&bytes_of(&b, u16::to_le_bytes)),
        memory.allocate(&[0; 512]),
    ];
    launch(SWEEPS[1], "tile", [1; 3], [32, 1, 1], &memory, (&pointers, &[]));
    let expected = product([16, 8, 16], &a_values, &b_values, |depth, column| column * 16 + depth);
    assert_close(&floats(&memory.read(pointers[2])), &expected, 1e-9);
}

#[test]
fn small_floats() {
    let n = 100;
    let x: Vec<f32> = (0..n).map(|i| (i as f32 - 50.0) * 0.0625).collect();
    for text in SWEEPS {
        let module = Module::parse(text).unwrap();
        let mut memory = Allocations::new();
        let pointers = [
            memory.allocate(&bytes_of(&x, f32::to_le_bytes)),
            memory.allocate(&vec![0; n * 2]),
            memory.allocate(&vec![0; n * 2]),
            memory.allocate(&vec![0; n]),
            memory.allocate(&vec![0; n * 4]),
        ];
        let mut bytes = bytes_of(&pointers, u64::to_le_bytes);
        bytes.extend((n as u32).to_le_bytes());
        let (grid, block) = ([2, 1, 1], [64, 1, 1]);
        module.launch("small", grid, block, 256, &bytes, &memory, &Limits::default()).unwrap();
        let halves = memory.read(pointers[1]);
        let brains = memory.read(pointers[2]);
        for i in 0..n {
            let product = x[i] * x[i ^ 1] + 1.0;
            let half = half(&halves[i * 2..]);
            assert!((half - product).abs() <= product.abs().max(1.0) * 2.0_f32.powi(-10));
            let brain = u16::from_le_bytes([brains[i * 2], brains[i * 2 + 1]]);
            let brain = f32::from_bits(u32::from(brain) << 16);
            assert!((brain - product).abs() <= product.abs() * 2.0_f32.powi(-8));
        }
        assert!(!floats(&memory.read(pointers[4])).iter().any(|value| value.is_nan()));
    }
}

//! The kernels that measure arithmetic do as much of it as is said: their sums are those of so many
//! products.

use forebay_ptx::{Allocations, Limits, Module};

const THREADS: u32 = 256;
/// As `crates/forebay-device/src/cuda/matrix_ceiling.rs` counts: multiply-adds of a block in a step.
const BLOCK_STEP: (f64, f64) = (256.0 * 128.0, 8.0 * 8.0 * 16.0 * 8.0 * 16.0);

/// What the threads of one block have summed.
fn run(file: &str, entry: &str, steps: i32) -> Vec<f64> {
    let path = format!("{}/../../kernels/ptx/{file}", env!("CARGO_MANIFEST_DIR"));
    let module = Module::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut memory = Allocations::new();
    // The second block's.
    let sums = memory.allocate(&[0xff; 2 * 4 * THREADS as usize]);
    let parameters = [&sums.to_le_bytes()[..], &steps.to_le_bytes()].concat();
    let limits = Limits::default();
    let block = [THREADS, 1, 1];
    module.launch(entry, [2, 1, 1], block, 0, &parameters, &memory, &limits).unwrap();
    let sums = memory.read(sums);
    let sums: Vec<f64> =
        sums.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes).into()).collect();
    let (first, second) = sums.split_at(THREADS as usize);
    assert_eq!(first, second, "{entry}: every block does the same");
    first.to_vec()
}

/// As the kernels do.
fn scatter(bits: u32) -> u32 {
    let bits = (bits ^ bits >> 16).wrapping_mul(0x7feb_352d);
    let bits = (bits ^ bits >> 15).wrapping_mul(0x846c_a68b);
    bits ^ bits >> 16
}

#[test]
fn multiply_adds_are_as_many_as_are_counted() {
    for file in ["ceiling.compute_75.ptx", "ceiling.compute_80.ptx"] {
        let (before, after) = (run(file, "ceiling_f32", 0), run(file, "ceiling_f32", 3));
        let each = 3.0 * BLOCK_STEP.0 / f64::from(THREADS);
        for (thread, (before, after)) in (0..THREADS).zip(before.iter().zip(after)) {
            let a = f64::from(f32::from_bits(0x3f00_0000 | scatter(2 * thread) >> 9));
            let bits = scatter(2 * thread + 1);
            let b = f64::from(f32::from_bits(0x3f00_0000 | bits >> 9 | bits << 31));
            let expected = each * a * b;
            let error = (after - before - expected).abs() / expected.abs();
            assert!(error < 1e-4, "{file}, thread {thread}: {before} {after}, not {expected}");
        }
    }
}

/// Elements of a fragment's register, of which each holds two.
fn pair(bits: u32, is_half: bool) -> [f64; 2] {
    let decode = |bits: u32| -> f64 {
        if is_half {
            let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
            // Half to one: the exponent is always the same.
            return sign * (f64::from(bits & 0x3ff) / 2048.0 + 0.5);
        }
        f32::from_bits(bits << 16).into()
    };
    [decode(bits & 0xffff), decode(bits >> 16)]
}

#[test]
fn products_of_tensor_cores_are_as_many_as_are_counted() {
    let file = "ceiling.compute_80.ptx";
    for (entry, is_half) in [("ceiling_bf16", false), ("ceiling_f16", true)] {
        let (any, half) =
            if is_half { (0x83ff_83ff, 0x3800_3800) } else { (0x807f_807f, 0x3f00_3f00) };
        let (before, after) = (run(file, entry, 0), run(file, entry, 2));
        for warp in 0..8 {
            // What all outputs of one product come to: for each of sixteen terms, the sum of A's
            // column times the sum of B's row.
            let (mut of_a, mut of_b) = ([0.0; 16], [0.0; 16]);
            for lane in 0..32 {
                let thread = 32 * warp + lane;
                let register = |index| pair(scatter(8 * thread + index) & any | half, is_half);
                let term = |upper: u32| (lane % 4 * 2 + 8 * upper) as usize;
                for index in 0..4 {
                    let [first, second] = register(index);
                    of_a[term(index / 2)] += first;
                    of_a[term(index / 2) + 1] += second;
                }
                for index in 0..2 {
                    let [first, second] = register(4 + index);
                    of_b[term(index)] += first;
                    of_b[term(index) + 1] += second;
                }
            }
            let product: f64 = of_a.iter().zip(of_b).map(|(a, b)| a * b).sum();
            let products = 2.0 * BLOCK_STEP.1 / 8.0 / (16.0 * 8.0 * 16.0);
            let threads = 32 * warp as usize..32 * (warp as usize + 1);
            let sum = |sums: &[f64]| sums[threads.clone()].iter().sum::<f64>();
            let (grown, expected) = (sum(&after) - sum(&before), products * product);
            let error = (grown - expected).abs() / expected.abs().max(100.0);
            assert!(error < 1e-3, "{entry}, warp {warp}: {grown}, not {expected}");
        }
    }
}

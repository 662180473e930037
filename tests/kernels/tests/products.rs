//! Every kernel and type, over odd shapes, batches and alignments, against float64.

use fastrand::Rng;
use forebay_compute::Shape;
use forebay_format::Dtype;
use forebay_kernel_tests::{Kernel, Layout, Problem, TABLE, Target};
use forebay_ptx::Limits;

/// Sums of f32 over operands as they are, or as tensor cores take them.
const SUMS: f64 = 1e-5;
/// As above, where an element's last bit may decide how it is rounded to bf16.
const SUMS_OF_ROUNDED: f64 = 1e-4;
/// Operands rounded to f16, each by up to 2⁻¹².
const HALVES: f64 = 5e-4;
/// Operands rounded to bf16, each by up to 2⁻⁸. A few may come to twice that together; many come to
/// 2.1e-3, or 1.5e-3 where weights are exact, give or take what inputs have in common.
const FEW_ROUNDED: f64 = 7.9e-3;
const MANY_ROUNDED: f64 = 3.5e-3;

fn check(kernel: &Kernel, problem: &Problem, layout: Layout, limits: &Limits) {
    let Problem { dtype, shape, batch, .. } = problem;
    let what =
        format!("{} ({}), {dtype} {shape:?}, batch {batch}, {layout:?}", kernel.entry, kernel.ptx);
    let outputs = problem.run(kernel, layout, limits);
    let outputs = outputs.unwrap_or_else(|fault| panic!("{what}: {fault}"));
    let error = problem.expected().relative_error(&outputs);
    let tolerance = match kernel.inputs {
        "f32" => SUMS,
        "f16" => HALVES,
        _ if shape.rows * shape.columns < 4000 => FEW_ROUNDED,
        _ => MANY_ROUNDED,
    };
    assert!(error < tolerance, "{what}: error {error:e}");
    let error = problem.expected_of_rounded(kernel.inputs).relative_error(&outputs);
    let tolerance = if kernel.inputs == "f32" { SUMS } else { SUMS_OF_ROUNDED };
    assert!(error < tolerance, "{what}: error {error:e} of the sums");
}

/// Columns that are one block, several, and no multiple of a tile.
fn columns(dtype: Dtype) -> &'static [usize] {
    match dtype.block_elements() {
        1 => &[1, 7, 33, 96, 200, 324, 520],
        32 => &[32, 96, 288, 1056],
        _ => &[256, 768, 1280],
    }
}

/// Whether a kernel is meant for that batch, and how much it has to do is still a test.
fn takes(kernel: &Kernel, batch: u32) -> bool {
    (kernel.batch_min..=kernel.batch_max).contains(&batch)
}

fn all_shapes(dtype: Dtype) {
    const WORK_MAX: usize = 80_000;
    let mut random = Rng::with_seed(dtype as u64);
    for target in [Target::Turing, Target::Ampere] {
        for &columns in columns(dtype) {
            for rows in [1, 3, 17, 65] {
                for batch in [1, 2, 3, 7, 8, 9, 16, 17, 33] {
                    if rows * columns * batch > WORK_MAX {
                        continue;
                    }
                    let shape = Shape { rows, columns };
                    let problem = Problem::random(dtype, shape, batch, &mut random);
                    let batch = u32::try_from(batch).expect("small");
                    for kernel in Kernel::of(dtype, target).filter(|kernel| takes(kernel, batch)) {
                        check(kernel, &problem, Layout::default(), &Limits::default());
                    }
                }
            }
        }
    }
}

/// Weights may begin at any multiple of their type's natural alignment, inputs at any float.
fn all_alignments(dtype: Dtype) {
    let natural = match dtype {
        Dtype::F32 => 4,
        Dtype::MXFP4 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => 1,
        _ => 2,
    };
    let columns = columns(dtype)[1];
    let mut random = Rng::with_seed(dtype as u64);
    for target in [Target::Turing, Target::Ampere] {
        for kernel in Kernel::of(dtype, target) {
            let shape = Shape { rows: 19, columns };
            let batch = kernel.batch_min as usize;
            let problem = Problem::random(dtype, shape, batch, &mut random);
            for step in [1, 2, 3, 5, 7] {
                let layout = Layout { weights_offset: natural * step, inputs_offset: step };
                check(kernel, &problem, layout, &Limits::default());
            }
        }
    }
}

/// Every row of a tile and many steps, so that every byte of every stage is used.
fn full_tiles(dtype: Dtype) {
    let mut random = Rng::with_seed(dtype as u64);
    let columns = if dtype.block_elements() == 256 { 1280 } else { 640 };
    for kernel in Kernel::of(dtype, Target::Turing).chain(Kernel::of(dtype, Target::Ampere)) {
        let shape = Shape { rows: kernel.rows as usize, columns };
        let problem = Problem::random(dtype, shape, kernel.batch_min as usize, &mut random);
        check(kernel, &problem, Layout::default(), &Limits::default());
    }
}

/// Several steps, so that stages are used again.
fn no_races(dtype: Dtype) {
    let limits = Limits { detect_races: true, ..Limits::default() };
    let mut random = Rng::with_seed(dtype as u64);
    let columns = if dtype.block_elements() == 1 { 1100 } else { 2560 };
    for kernel in Kernel::of(dtype, Target::Turing).chain(Kernel::of(dtype, Target::Ampere)) {
        let batch = kernel.batch_min as usize;
        let problem = Problem::random(dtype, Shape { rows: 9, columns }, batch, &mut random);
        check(kernel, &problem, Layout::default(), &limits);
    }
}

macro_rules! types {
    ($($name:ident: $dtype:ident),+ $(,)?) => {$(
        mod $name {
            use super::Dtype;

            #[test]
            fn all_shapes() {
                super::all_shapes(Dtype::$dtype);
            }

            #[test]
            fn all_alignments() {
                super::all_alignments(Dtype::$dtype);
            }

            #[test]
            fn full_tiles() {
                super::full_tiles(Dtype::$dtype);
            }

            #[test]
            fn no_races() {
                super::no_races(Dtype::$dtype);
            }
        }
    )+

        const TYPES: &[Dtype] = &[$(Dtype::$dtype),+];
    };
}
types! {
    f32: F32, f16: F16, bf16: BF16, f8_e4m3: F8_E4M3, f8_e5m2: F8_E5M2,
    q4_0: Q4_0, q4_1: Q4_1, q5_0: Q5_0, q5_1: Q5_1, q8_0: Q8_0,
    q2_k: Q2_K, q3_k: Q3_K, q4_k: Q4_K, q5_k: Q5_K, q6_k: Q6_K,
    iq4_nl: IQ4_NL, iq4_xs: IQ4_XS, mxfp4: MXFP4,
}

/// Every type has a kernel for every batch on every target, and the table is what the modules say.
#[test]
fn the_table_is_complete_and_true() {
    for &dtype in TYPES {
        for target in [Target::Turing, Target::Ampere] {
            for batch in 1..=512 {
                let count = Kernel::of(dtype, target).filter(|kernel| takes(kernel, batch)).count();
                let choices =
                    1 + usize::from(dtype == Dtype::F16 && target == Target::Ampere && batch > 8);
                assert_eq!(count, choices, "{dtype}, {target:?}, batch {batch}");
            }
        }
    }
    for kernel in TABLE {
        assert!(TYPES.iter().any(|dtype| dtype.to_string() == kernel.dtype));
        let module = kernel.module();
        let entry = module.entry(kernel.entry).expect("the entry is in its module");
        assert_eq!(entry.shared_bytes, kernel.shared_bytes, "{}", kernel.entry);
        assert_eq!(entry.block_max, Some([kernel.threads, 1, 1]), "{}", kernel.entry);
        assert_eq!(module.target(), format!("sm_{}", kernel.capability_min), "{}", kernel.entry);
        // What a block may have on the smallest device of Ampere and later.
        assert!(kernel.shared_bytes <= 48 << 10 && kernel.dynamic_shared_bytes <= 99 << 10);
    }
}

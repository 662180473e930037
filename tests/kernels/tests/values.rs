//! Values at the edges: scales that f16 can't hold the elements of, inputs that it can't hold, every
//! code of the 8-bit floats, and the fixtures of the official decoder.

use forebay_compute::{Shape, dequantize};
use forebay_format::{Catalog, Dtype, Parse, safetensors};
use forebay_kernel_tests::{Kernel, Layout, Problem, Target};
use forebay_ptx::Limits;

const TARGETS: [Target; 2] = [Target::Turing, Target::Ampere];

fn outputs(kernel: &Kernel, problem: &Problem) -> Vec<f32> {
    let outputs = problem.run(kernel, Layout::default(), &Limits::default());
    outputs.unwrap_or_else(|fault| panic!("{fault}"))
}

/// Elements up to 65504 · 127: tensor cores get them as bf16.
#[test]
fn large_scales_do_not_overflow() {
    for (dtype, scales) in
        [(Dtype::Q8_0, vec![0]), (Dtype::Q4_K, vec![0, 2]), (Dtype::Q6_K, vec![208])]
    {
        let shape = Shape { rows: 17, columns: 512 };
        for target in TARGETS {
            for kernel in Kernel::of(dtype, target) {
                let mut random = fastrand::Rng::with_seed(5);
                let batch = kernel.batch_min as usize;
                let mut problem = Problem::random(dtype, shape, batch, &mut random);
                let block_bytes = usize::try_from(dtype.block_bytes()).expect("small");
                for block in problem.weights.chunks_exact_mut(block_bytes) {
                    for &at in &scales {
                        block[at..at + 2].copy_from_slice(&0x7bff_u16.to_le_bytes());
                    }
                }
                let error = problem.expected().relative_error(&outputs(kernel, &problem));
                assert!(error < 7.9e-3, "{}: {error:e}", kernel.entry);
            }
        }
    }
}

/// Inputs beyond f16's range: bf16 holds them; f16 makes them infinite, never something else.
#[test]
fn large_inputs_are_right_or_infinite() {
    for &dtype in &[Dtype::F16, Dtype::BF16, Dtype::Q4_0, Dtype::F8_E5M2] {
        for kernel in TARGETS.into_iter().flat_map(|target| Kernel::of(dtype, target)) {
            let mut random = fastrand::Rng::with_seed(6);
            let shape = Shape { rows: 5, columns: 128 };
            let batch = kernel.batch_min as usize;
            let mut problem = Problem::random(dtype, shape, batch, &mut random);
            if dtype == Dtype::F8_E5M2 {
                // Of either sign and between a half and two, so that nothing is infinite already.
                problem.weights.iter_mut().for_each(|byte| *byte = *byte & 0x83 | 0x38);
            }
            problem.inputs.iter_mut().for_each(|x| *x *= 1e6);
            let outputs = outputs(kernel, &problem);
            if kernel.inputs == "f16" {
                assert!(outputs.iter().all(|y| !y.is_finite()), "{}", kernel.entry);
            } else {
                let error = problem.expected().relative_error(&outputs);
                assert!(error < 7.9e-3, "{}: {error:e}", kernel.entry);
            }
        }
    }
}

/// One column: outputs are the elements themselves, whatever type they go through.
#[test]
fn every_code_of_the_small_floats() {
    for dtype in [Dtype::F8_E4M3, Dtype::F8_E5M2] {
        let weights: Vec<u8> = (0..=u8::MAX).collect();
        let mut expected = vec![0.0; 256];
        dequantize(dtype, &weights, &mut expected).expect("one code is one element");
        let shape = Shape { rows: 256, columns: 1 };
        for kernel in TARGETS.into_iter().flat_map(|target| Kernel::of(dtype, target)) {
            let batch = kernel.batch_min as usize;
            let inputs = vec![1.0; batch];
            let problem = Problem { dtype, shape, batch, weights: weights.clone(), inputs };
            for (code, y) in outputs(kernel, &problem).into_iter().enumerate() {
                let expected = expected[code % 256];
                let same = y == expected || y.is_nan() && expected.is_nan();
                assert!(same, "{}: {code:#x} is {y}, not {expected}", kernel.entry);
            }
        }
    }
}

/// Products that were computed in float64 from the official decoder's elements.
#[test]
fn the_official_products() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/dequantized.safetensors");
    let file = std::fs::read(path).expect("the fixture is committed");
    let bytes = file.len() as u64;
    let Ok(Parse::Complete(header)) = safetensors::parse(&file, bytes) else {
        panic!("the fixture is a good file");
    };
    let parts = vec![(path.to_owned(), bytes, header)];
    let catalog: Catalog = safetensors::catalog(parts, None).expect("the fixture is a good model");
    let tensor = |name: &str| {
        let tensor = catalog.tensors().iter().find(|tensor| tensor.name == name)?;
        let cast = |offset: u64| usize::try_from(offset).expect("small");
        Some(&file[cast(tensor.offset)..cast(tensor.end())])
    };
    let x = tensor("x").expect("the fixture has inputs").as_chunks().0;
    let x: Vec<f32> = x.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let mut products_checked = 0;
    for &dtype in Dtype::ALL {
        let Some(expected) = tensor(&format!("{dtype}.products")) else { continue };
        let expected: Vec<f64> =
            expected.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        let columns = if dtype.block_elements() == 256 { 512 } else { 5 * 32 };
        let shape = Shape { rows: expected.len(), columns };
        for kernel in TARGETS.into_iter().flat_map(|target| Kernel::of(dtype, target)) {
            let bytes = tensor(&format!("{dtype}.bytes")).expect("products come with bytes");
            let weights = bytes[bytes.len() - shape.bytes(dtype).expect("whole blocks")..].to_vec();
            let batch = kernel.batch_min as usize;
            let inputs = x[..columns].repeat(batch);
            let problem = Problem { dtype, shape, batch, weights, inputs };
            let squares = problem.expected().squares;
            let values = expected.repeat(batch);
            let expected = forebay_kernel_tests::Expected { values, squares };
            let error = expected.relative_error(&outputs(kernel, &problem));
            let tolerance = if kernel.inputs == "f32" { 1e-5 } else { 7.9e-3 };
            assert!(error < tolerance, "{}: {error:e}", kernel.entry);
            products_checked += 1;
        }
    }
    assert_eq!(products_checked, 13 * 5, "block types, each with five kernels");
}

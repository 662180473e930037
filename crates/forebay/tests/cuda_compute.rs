//! Products on emulated devices, by the kernels that ship: right for every type, whole and in parts,
//! and the CPU's where there is no kernel.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/matrices.rs"]
mod matrices;
mod support;

use cuda::turn;
use forebay::{DeviceChoice, Error, Loaded, Loader, SplitMode, Tensor};
use forebay_cuda_emulator::Emulator;
use matrices::{TYPES, Type};
use std::path::{Path, PathBuf};

/// A matrix of every type that has kernels, but for those of safetensors.
fn model() -> (tempfile::TempDir, PathBuf) {
    matrices::model(&TYPES.iter().collect::<Vec<&Type>>(), 21, 512)
}

fn load(path: &Path, device: &str, split: SplitMode) -> Loaded {
    let device: DeviceChoice = device.parse().unwrap();
    Loader::new(path).device(device).split(split).load().unwrap()
}

/// ‖y − ŷ‖ / ‖ŷ‖ of products with `batch` random vectors, beside sums in `f64` over the elements
/// that the CPU decodes.
fn error(tensor: &Tensor, elements: &[f32], batch: usize) -> f64 {
    let shape = tensor.matrix_shape().unwrap();
    let mut random = fastrand::Rng::with_seed(batch as u64);
    let x: Vec<f32> = (0..batch * shape.columns).map(|_| random.f32() - 0.5).collect();
    let mut y = vec![f32::NAN; batch * shape.rows];
    tensor.matmul(&x, batch, &mut y).unwrap();
    let (mut wrong, mut all) = (0.0, 0.0);
    for (x, y) in x.chunks_exact(shape.columns).zip(y.chunks_exact(shape.rows)) {
        for (row, y) in elements.chunks_exact(shape.columns).zip(y) {
            let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let expected: f64 = terms.sum();
            wrong += (f64::from(*y) - expected).powi(2);
            all += expected.powi(2);
        }
    }
    (wrong / all).sqrt()
}

#[test]
fn products_on_devices_are_right_for_every_type_whole_and_in_parts() {
    let (_folder, path) = model();
    let host = load(&path, "host", SplitMode::Layers);
    let turn = turn(&Emulator::new().devices(2));
    let mut by_kernels = 0;
    for (device, split) in [
        ("cuda:0", SplitMode::Layers),
        ("cuda:all", SplitMode::Rows),
        ("cuda:all", SplitMode::Columns),
    ] {
        let loaded = load(&path, device, split);
        for tensor in loaded.tensors() {
            if tensor.matrix_shape().is_err() {
                continue;
            }
            let elements = host.tensor(tensor.name()).unwrap().to_f32().unwrap();
            for batch in [1, 5, 17] {
                let kernel = tensor.kernel(batch).unwrap();
                by_kernels += usize::from(kernel.is_some());
                let exact = kernel.as_ref().is_none_or(|choice| choice.inputs() == "f32");
                let bound = if exact { 1e-5 } else { 5e-3 };
                let error = error(&tensor, &elements, batch);
                let what = format!("{tensor:?} {split:?} {batch}: {error}");
                assert!(
                    error < bound,
                    "{what} by {}",
                    kernel.map_or("the cpu".into(), |it| it.to_string())
                );
            }
        }
    }
    assert!(by_kernels > 100, "{by_kernels} products by kernels");
    let launches: u64 = Emulator::report().devices.iter().map(|device| device.launches).sum();
    assert!(launches > by_kernels as u64);
    turn.expect_ended("products");
}

#[test]
fn a_product_of_other_lengths_is_refused_before_anything_runs() {
    let (_folder, path) = model();
    let turn = turn(&Emulator::new());
    let loaded = load(&path, "cuda:0", SplitMode::Layers);
    let matrix = loaded.tensors().find(|it| it.kernel(1).is_ok_and(|kernel| kernel.is_some()));
    let matrix = matrix.unwrap();
    let shape = matrix.matrix_shape().unwrap();
    let (x, mut y) = (vec![0.0; shape.columns], vec![0.0; shape.rows]);
    assert!(matches!(matrix.matmul(&x[1..], 1, &mut y), Err(Error::Compute { .. })));
    assert!(matches!(matrix.matmul(&x, 1, &mut y[1..]), Err(Error::Compute { .. })));
    assert_eq!(turn.calls("cuLaunchKernel"), 0);
}

#[test]
fn a_driver_that_refuses_a_kernel_says_why() {
    let (_folder, path) = model();
    let turn = turn(&Emulator::new().fail_call("cuModuleLoadDataEx", 0, 218));
    let loaded = load(&path, "cuda:0", SplitMode::Layers);
    let matrix = loaded.tensors().find(|it| it.kernel(1).is_ok_and(|kernel| kernel.is_some()));
    let matrix = matrix.unwrap();
    let shape = matrix.matrix_shape().unwrap();
    let error =
        matrix.matmul(&vec![0.0; shape.columns], 1, &mut vec![0.0; shape.rows]).unwrap_err();
    assert!(error.to_string().contains("can't run the kernel gemv_"), "{error}");
    drop((matrix, loaded));
    turn.expect_ended("a refused kernel");
}

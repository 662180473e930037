//! Dense products by cuBLASLt on emulated devices: right for every type and odd shapes, chosen by
//! policy, stepped down from where it does not serve, in the order of their stream.
//!
//! It is looked for by its name, so tests that find it run in processes of their own.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/matrices.rs"]
mod matrices;
mod support;

use cuda::{Turn, turn};
use forebay::{
    ComputeStream, DenseProducts, DeviceChoice, DeviceContext, DeviceFloats, Error, Loaded, Loader,
    Tensor, Weights,
};
use forebay_cuda_emulator::Emulator;
use matrices::TYPES;
use std::path::Path;
use std::sync::Arc;

fn load(path: &Path, device: &str) -> Loaded {
    let device: DeviceChoice = device.parse().unwrap();
    Loader::new(path).device(device).load().unwrap()
}

fn matrices_of(loaded: &Loaded) -> Vec<Tensor> {
    loaded.tensors().filter(|tensor| tensor.matrix_shape().is_ok()).collect()
}

/// A model of F32, F16 and BF16 with matrices of that shape, on the first device.
fn dense(rows: usize, columns: usize) -> (tempfile::TempDir, Vec<Tensor>) {
    let (folder, path) = matrices::model(&[&TYPES[0], &TYPES[1], &TYPES[2]], rows, columns);
    let tensors = matrices_of(&load(&path, "cuda:0"));
    (folder, tensors)
}

fn inputs(count: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(count as u64);
    (0..count).map(|_| random.f32() - 0.5).collect()
}

/// ‖y − ŷ‖ / ‖ŷ‖, beside sums in `f64` over what the CPU decodes, and at least as large as chance
/// makes them.
fn error(tensor: &Tensor, x: &[f32], y: &[f32]) -> f64 {
    let shape = tensor.matrix_shape().unwrap();
    let elements = tensor.to_f32().unwrap();
    let (mut wrong, mut all, mut squares) = (0.0, 0.0, 0.0);
    for (x, y) in x.chunks_exact(shape.columns).zip(y.chunks_exact(shape.rows)) {
        for (row, y) in elements.chunks_exact(shape.columns).zip(y) {
            let terms = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let expected: f64 = terms.clone().sum();
            squares += terms.map(|term| term * term).sum::<f64>();
            wrong += (f64::from(*y) - expected).powi(2);
            all += expected.powi(2);
        }
    }
    (wrong / f64::max(all, squares)).sqrt()
}

/// The error that rounding inputs to the weights' type comes to.
fn bound(tensor: &Tensor) -> f64 {
    match tensor.dtype().name() {
        "F32" => 1e-6,
        "F16" => 5e-4,
        _ => 4e-3,
    }
}

/// A product on a stream, and what was chosen for it.
struct Ran {
    y: Vec<f32>,
    choice: forebay::KernelChoice,
}

fn multiply(
    weights: &Weights,
    dense: DenseProducts,
    x: &[f32],
    batch: usize,
) -> Result<Ran, Error> {
    let context = weights.context();
    let mut stream = ComputeStream::with_dense(context, dense)?;
    let mut on_device = DeviceFloats::new(context, x.len())?;
    let mut outputs = DeviceFloats::new(context, weights.shape().0 as usize * batch)?;
    stream.upload(x, &mut on_device)?;
    let choice = stream.matmul(weights, &on_device, batch, &mut outputs)?.unwrap();
    let mut y = vec![f32::NAN; outputs.len()];
    stream.download(&outputs, &mut y)?;
    assert_eq!(stream.choose(weights, batch).unwrap(), choice);
    Ok(Ran { y, choice })
}

/// Nothing is left of a test, of cuBLASLt's own objects neither.
fn end(turn: Turn) {
    turn.end();
    assert_eq!(Emulator::report().cublaslt_objects, 0);
}

#[test]
fn products_are_right_for_odd_shapes_and_every_batch() {
    let emulator = Emulator::new().cublaslt(13, 1);
    if !emulator.in_own_process("products_are_right_for_odd_shapes_and_every_batch") {
        return;
    }
    let turn = turn(&emulator);
    for (rows, columns) in [(1, 1), (3, 7), (21, 512), (65, 33), (17, 300), (1, 1030)] {
        let (_folder, tensors) = dense(rows, columns);
        for tensor in tensors {
            let weights = tensor.weights().unwrap().unwrap();
            for batch in [1, 3, 8, 9, 17, 33] {
                let x = inputs(batch * columns);
                let ran = multiply(&weights, DenseProducts::CublasLt, &x, batch).unwrap();
                let what = format!("{tensor:?} {rows} x {columns}, {batch}: {}", ran.choice);
                assert!(ran.choice.is_cublaslt(), "{what}");
                let error = error(&tensor, &x, &ran.y);
                assert!(error < bound(&tensor), "{what}: {error}");
            }
        }
    }
    assert_eq!(turn.calls("cublasLtMatmul"), 6 * 3 * 6);
    end(turn);
}

#[test]
fn a_tensor_multiplies_by_it_where_there_are_many_inputs() {
    let emulator = Emulator::new().cublaslt(12, 9);
    if !emulator.in_own_process("a_tensor_multiplies_by_it_where_there_are_many_inputs") {
        return;
    }
    let turn = turn(&emulator);
    let (_folder, path) = matrices::model(&[&TYPES[0], &TYPES[2], &TYPES[4]], 21, 512);
    let loaded = load(&path, "cuda:0");
    for tensor in matrices_of(&loaded) {
        for batch in [8, 9, 128] {
            let x = inputs(batch * 512);
            let mut y = vec![f32::NAN; batch * 21];
            let before = turn.calls("cublasLtMatmul");
            tensor.matmul(&x, batch, &mut y).unwrap();
            let choice = tensor.kernel(batch).unwrap().unwrap();
            let what = format!("{tensor:?} {batch}: {choice}");
            let is_asked = batch > 8 && tensor.dtype().name() != "Q8_0";
            assert_eq!(choice.is_cublaslt(), is_asked, "{what}");
            assert_eq!(turn.calls("cublasLtMatmul") - before, u64::from(is_asked), "{what}");
            let error = error(&tensor, &x, &y);
            assert!(error < bound(&tensor), "{what}: {error}");
            if is_asked {
                let dtype = tensor.dtype().name();
                let said = format!("cuBLASLt 12.9 for dense {dtype} at batch {batch}");
                assert!(choice.to_string().starts_with(&said), "{choice}");
            }
        }
    }
    // Of two shapes and types, each was looked up once.
    assert_eq!(turn.calls("cublasLtMatmulAlgoGetHeuristic"), 4);
    assert_eq!(turn.calls("cublasLtCreate"), 1);
    drop(loaded);
    end(turn);
}

/// Weights are in registered memory then, at any multiple of 32 bytes.
#[test]
fn an_integrated_device_multiplies_by_it_in_the_machines_memory() {
    let emulator = Emulator::new().cublaslt(13, 1).each_device(|device| device.integrated(true));
    if !emulator.in_own_process("an_integrated_device_multiplies_by_it_in_the_machines_memory") {
        return;
    }
    let turn = turn(&emulator);
    let (_folder, tensors) = dense(21, 512);
    for tensor in &tensors {
        let x = inputs(16 * 512);
        let mut y = vec![f32::NAN; 16 * 21];
        tensor.matmul(&x, 16, &mut y).unwrap();
        let error = error(tensor, &x, &y);
        assert!(error < bound(tensor), "{tensor:?}: {error}");
    }
    assert_eq!(turn.calls("cublasLtMatmul"), 3);
    drop(tensors);
    end(turn);
}

/// On a machine that has NVIDIA's library.
const OF_ANOTHER_DRIVER: &str = "is of another driver than the one that is used";

/// What is said of a product by the kernels that are built in, which must be right.
fn stepped_down(turn: &Turn, dtype: &str) -> String {
    let (_folder, tensors) = dense(21, 512);
    let tensor = tensors.into_iter().find(|tensor| tensor.dtype().name() == dtype).unwrap();
    let weights = tensor.weights().unwrap().unwrap();
    let x = inputs(16 * 512);
    let ran = multiply(&weights, DenseProducts::CublasLt, &x, 16).unwrap();
    let kernel = ran.choice.kernel().unwrap_or_else(|| panic!("{}", ran.choice));
    assert!(kernel.entry.starts_with("gemm_"), "{}", ran.choice);
    let error = error(&tensor, &x, &ran.y);
    assert!(error < 4e-3, "{}: {error}", ran.choice);
    assert_eq!(turn.calls("cublasLtMatmul"), 0);
    ran.choice.to_string()
}

#[test]
fn without_it_kernels_serve_and_say_so() {
    let turn = turn(&Emulator::new());
    let said = stepped_down(&turn, "BF16");
    let why = "tensor cores; not cuBLASLt: it is not installed (a driver for CUDA 13.0 takes \
               libcublasLt.so.13, libcublasLt.so.12, libcublasLt.so.11)";
    assert!(said.ends_with(why) || said.ends_with(OF_ANOTHER_DRIVER), "{said}");
    turn.end();
}

#[test]
fn whatever_stands_in_its_way_kernels_serve_and_say_so() {
    let emulator = Emulator::new().cublaslt(13, 0);
    if !emulator.in_own_process("whatever_stands_in_its_way_kernels_serve_and_say_so") {
        return;
    }
    for (emulator, dtype, why) in [
        (emulator.clone().fail_call("cublasLtCreate", 1, 3), "F32", "cublasLtCreate answered 3"),
        (emulator.clone().no_algorithms(), "F16", "version 13.0 has no algorithm"),
        (
            emulator.clone().fail_call("cublasLtMatmulAlgoGetHeuristic", 0, 15),
            "BF16",
            "version 13.0 has no algorithm",
        ),
        (
            emulator.clone().fail_call("cublasLtMatmulAlgoGetHeuristic", 1, 14),
            "F16",
            "CUBLAS_STATUS_INTERNAL_ERROR: an internal operation failed",
        ),
        (
            emulator.clone().fail_call("cublasLtMatrixLayoutCreate", 2, 3),
            "F32",
            "cublasLtMatrixLayoutCreate answered 3",
        ),
        (emulator.clone().memory_bytes(30 << 20), "F32", "no 33554432 bytes free"),
        (
            emulator.clone().each_device(|device| device.capability(7, 5)),
            "BF16",
            "inputs are rounded to bf16 from 8.0 on",
        ),
    ] {
        let turn = turn(&emulator);
        let said = stepped_down(&turn, dtype);
        assert!(said.contains("; not cuBLASLt: ") && said.contains(why), "{why}: {said}");
        end(turn);
    }
    // In single precision nothing is rounded.
    let turn = turn(&emulator.each_device(|device| device.capability(7, 5)));
    let (_folder, tensors) = dense(21, 512);
    assert!(tensors[0].kernel(16).unwrap().unwrap().is_cublaslt());
    drop(tensors);
    end(turn);
}

/// A library for a newer CUDA than the driver serves is not even opened.
#[test]
fn a_library_that_is_too_new_for_the_driver_is_left_alone() {
    let emulator = Emulator::new().cublaslt(13, 1).driver_version(12_040);
    if !emulator.in_own_process("a_library_that_is_too_new_for_the_driver_is_left_alone") {
        return;
    }
    let turn = turn(&emulator);
    let said = stepped_down(&turn, "F16");
    let why = "(a driver for CUDA 12.4 takes libcublasLt.so.12, libcublasLt.so.11)";
    assert!(said.ends_with(why) || said.ends_with(OF_ANOTHER_DRIVER), "{said}");
    end(turn);
}

#[test]
fn what_it_answers_to_a_product_is_an_error() {
    let emulator = Emulator::new().cublaslt(13, 1).fail_call("cublasLtMatmul", 1, 14);
    if !emulator.in_own_process("what_it_answers_to_a_product_is_an_error") {
        return;
    }
    let turn = turn(&emulator);
    let (_folder, tensors) = dense(21, 512);
    let x = inputs(16 * 512);
    let error = tensors[1].matmul(&x, 16, &mut vec![0.0; 16 * 21]).unwrap_err();
    assert_eq!(error.to_string(), "cuBLASLt can't multiply on cuda:0");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("cublasLtMatmul answered 14, CUBLAS_STATUS_INTERNAL_ERROR"), "{cause}");
    assert!(error.remedy().is_some());
    // The next one is made.
    tensors[1].matmul(&x, 16, &mut vec![0.0; 16 * 21]).unwrap();
    drop(tensors);
    end(turn);
}

#[test]
fn a_device_that_fails_meanwhile_is_an_error() {
    let emulator = Emulator::new().cublaslt(13, 1).fail_kernel(2, 700);
    if !emulator.in_own_process("a_device_that_fails_meanwhile_is_an_error") {
        return;
    }
    let _turn = turn(&emulator);
    let (_folder, tensors) = dense(21, 512);
    // The first launch rounds the inputs, the second is the product.
    let error = tensors[1].matmul(&inputs(16 * 512), 16, &mut vec![0.0; 16 * 21]).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("answered 700"), "{error}: {cause}");
}

/// Copies that take long are waited for by the products behind them, and those by copies back.
#[test]
fn products_are_made_in_the_order_of_their_stream() {
    let emulator = Emulator::new().cublaslt(13, 1).stall_copy(0, 20);
    if !emulator.in_own_process("products_are_made_in_the_order_of_their_stream") {
        return;
    }
    let turn = turn(&emulator);
    let (_folder, tensors) = dense(21, 512);
    for tensor in &tensors {
        let weights = tensor.weights().unwrap().unwrap();
        let context: &Arc<DeviceContext> = weights.context();
        let mut stream = ComputeStream::new(context).unwrap();
        let floats = |count| DeviceFloats::new(context, count).unwrap();
        let (mut from, mut x, mut y) = (floats(16 * 512), floats(16 * 512), floats(16 * 21));
        let (first, second) = (inputs(16 * 512), vec![0.25; 16 * 512]);
        let mut of_first = floats(16 * 21);
        stream.upload(&first, &mut from).unwrap();
        stream.copy(&from, &mut x).unwrap();
        stream.matmul(&weights, &x, 16, &mut of_first).unwrap();
        let mut others = floats(16 * 512);
        stream.upload(&second, &mut others).unwrap();
        stream.copy(&others, &mut x).unwrap();
        let choice = stream.matmul(&weights, &x, 16, &mut y).unwrap().unwrap();
        assert!(choice.is_cublaslt(), "{choice}");
        for (x, y) in [(&first, &of_first), (&second, &y)] {
            let mut back = vec![f32::NAN; 16 * 21];
            stream.download(y, &mut back).unwrap();
            let error = error(tensor, x, &back);
            assert!(error < bound(tensor), "{tensor:?}: {error}");
        }
    }
    drop(tensors);
    end(turn);
}

/// The first product of a stream makes room for rounded inputs, and waits for what was queued
/// before; what it uses itself is kept all the same.
#[test]
fn what_a_product_uses_is_kept_until_it_has_been_made() {
    let emulator = Emulator::new().cublaslt(13, 1);
    if !emulator.in_own_process("what_a_product_uses_is_kept_until_it_has_been_made") {
        return;
    }
    let turn = turn(&emulator);
    for dense_by in [DenseProducts::Kernels, DenseProducts::CublasLt] {
        let (_folder, tensors) = dense(21, 512);
        let weights = tensors[2].weights().unwrap().unwrap();
        let context = Arc::clone(weights.context());
        let held = || Emulator::report().devices[0].memory.count;
        let mut stream = ComputeStream::with_dense(&context, dense_by).unwrap();
        let x = DeviceFloats::new(&context, 16 * 512).unwrap();
        let mut y = DeviceFloats::new(&context, 16 * 21).unwrap();
        stream.matmul(&weights, &x, 16, &mut y).unwrap();
        let before = held();
        drop((x, y, weights, tensors));
        assert_eq!(held(), before, "{dense_by:?}: weights, inputs and outputs");
        stream.synchronize().unwrap();
        assert_eq!(held(), before - 3, "{dense_by:?}");
    }
    end(turn);
}

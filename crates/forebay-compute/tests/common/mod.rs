//! What the tests of this crate share: weights of every type, and products in `f64`.

#![allow(dead_code)] // Each test binary uses a part of it.

use fastrand::Rng;
use forebay_compute::{Shape, can_decode, dequantize};
use forebay_format::Dtype;

/// The types that products take.
pub(crate) fn decodable() -> impl Iterator<Item = Dtype> {
    Dtype::ALL.iter().copied().filter(|&dtype| can_decode(dtype))
}

/// Random weights, block by block: none so large that sums could overflow.
pub(crate) fn random_weights(dtype: Dtype, shape: Shape, random: &mut Rng) -> Vec<u8> {
    let mut weights = vec![0; shape.bytes(dtype).expect("a small matrix of whole blocks")];
    let size = |size: u64| usize::try_from(size).expect("blocks are small");
    let mut elements = vec![0.0; size(dtype.block_elements())];
    for block in weights.chunks_exact_mut(size(dtype.block_bytes())) {
        loop {
            random.fill(block);
            dequantize(dtype, block, &mut elements).expect("one block");
            if elements.iter().all(|element| element.abs() < 1e20) {
                break;
            }
        }
    }
    weights
}

/// Inputs between −1 and 1.
pub(crate) fn random_inputs(count: usize, random: &mut Rng) -> Vec<f32> {
    (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
}

/// A dot product in `f64`, and how far from it one in `f32` may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) value: f64,
    pub(crate) tolerance: f64,
}

impl Expected {
    pub(crate) fn is_met_by(self, computed: f32) -> bool {
        (f64::from(computed) - self.value).abs() <= self.tolerance
    }
}

/// The tolerance is the bound of the crate's documentation, `(40 + min(k, 1024)/8 + k/32) · 2⁻²⁴ ·
/// Σ|w·x|`, and half the smallest `f32` for each term, for what underflows.
pub(crate) fn dot_product(weights: &[f32], x: &[f32]) -> Expected {
    let columns = weights.len();
    let (mut value, mut magnitude) = (0.0, 0.0);
    for (&weight, &x) in weights.iter().zip(x) {
        let term = f64::from(weight) * f64::from(x);
        value += term;
        magnitude += term.abs();
    }
    let roundings = (40 + columns.min(1024) / 8 + columns / 32) as f64;
    let underflow = columns as f64 * 2.0_f64.powi(-150);
    Expected { value, tolerance: roundings * 2.0_f64.powi(-24) * magnitude + underflow }
}

/// Checks `y` against products of `weights`, which are decoded here, with the inputs `x`.
pub(crate) fn assert_products(
    dtype: Dtype,
    shape: Shape,
    weights: &[u8],
    x: &[f32],
    y: &[f32],
    context: &str,
) {
    let Shape { rows, columns } = shape;
    let mut elements = vec![0.0; rows * columns];
    dequantize(dtype, weights, &mut elements).expect("whole blocks");
    for (input, (x, y)) in x.chunks_exact(columns).zip(y.chunks_exact(rows)).enumerate() {
        for (row, (weights, &y)) in elements.chunks_exact(columns).zip(y).enumerate() {
            let expected = dot_product(weights, x);
            assert!(
                expected.is_met_by(y),
                "{dtype} {rows}×{columns} {context}, row {row}, input {input}: {y}, {expected:?}"
            );
        }
    }
}

/// The bits of floats: equal means equal, signs of zero included.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

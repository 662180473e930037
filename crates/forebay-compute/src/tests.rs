//! The portable machine against this processor's: every type, every way a product takes.

use crate::decode::decoder;
use crate::machine::tests::on_portable;
use crate::{Interleaved, Shape, dequantize, matmul, matmul_interleaved};
use fastrand::Rng;
use forebay_format::Dtype;

/// Random weights whose elements are moderate numbers, and the elements.
fn weights(dtype: Dtype, shape: Shape, random: &mut Rng) -> (Vec<u8>, Vec<f32>) {
    let size = |count: u64| usize::try_from(count).expect("blocks are small");
    let mut bytes = vec![0; shape.bytes(dtype).expect("whole blocks")];
    let mut elements = vec![0.0; shape.rows * shape.columns];
    let blocks = bytes.chunks_exact_mut(size(dtype.block_bytes()));
    for (block, out) in blocks.zip(elements.chunks_exact_mut(size(dtype.block_elements()))) {
        while {
            random.fill(block);
            dequantize(dtype, block, out).expect("one block");
            !out.iter().all(|element| element.abs() < 1e6)
        } {}
    }
    (bytes, elements)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Without fused instructions every term rounds once more; 150 roundings are enough for 1056
/// columns either way.
fn assert_close(dtype: Dtype, columns: usize, elements: &[f32], x: &[f32], y: [&[f32]; 2]) {
    let rows = elements.len() / columns;
    for (index, (first, second)) in y[0].iter().zip(y[1]).enumerate() {
        let weights = &elements[index % rows * columns..][..columns];
        let x = &x[index / rows * columns..][..columns];
        let terms = weights.iter().zip(x).map(|(weight, x)| (weight * x).abs());
        let tolerance = 2.0 * 150.0 * 2.0_f32.powi(-24) * terms.sum::<f32>();
        assert!((first - second).abs() <= tolerance, "{dtype}, {index}: {first} and {second}");
    }
}

#[test]
fn machines_decode_alike() {
    let mut random = Rng::with_seed(31);
    for &dtype in Dtype::ALL.iter().filter(|&&dtype| decoder(dtype).is_ok()) {
        // Not weights(): infinities and NaN too.
        let mut out = vec![0.0; 7 * 256];
        let bytes = dtype.bytes_for(out.len() as u64).expect("whole blocks");
        let mut bytes = vec![0; usize::try_from(bytes).expect("small")];
        random.fill(&mut bytes);
        dequantize(dtype, &bytes, &mut out).expect("whole blocks");
        let mut portable = vec![0.0; out.len()];
        on_portable(|| dequantize(dtype, &bytes, &mut portable)).expect("whole blocks");
        for (out, portable) in out.iter_mut().zip(&mut portable) {
            // What a NaN looks like is the processor's business.
            if out.is_nan() && portable.is_nan() {
                (*out, *portable) = (0.0, 0.0);
            }
        }
        assert_eq!(bits(&out), bits(&portable), "{dtype}");
    }
}

#[test]
fn machines_multiply_alike() {
    let mut random = Rng::with_seed(32);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4_1] {
        let shape = Shape { rows: 21, columns: 1_056 };
        let (bytes, elements) = weights(dtype, shape, &mut random);
        for batch in [1, 2, 3, 7] {
            let x: Vec<f32> = (0..batch * shape.columns).map(|_| random.f32() - 0.5).collect();
            let file = || {
                let mut y = vec![0.0; batch * shape.rows];
                matmul(dtype, shape, &bytes[..], &x, batch, &mut y).expect("operands that fit");
                y
            };
            let y = [&file()[..], &on_portable(file)];
            assert_close(dtype, shape.columns, &elements, &x, y);
            let Ok(layout) = Interleaved::new(dtype, shape) else { continue };
            let interleaved = || {
                let (mut packed, mut y) = (vec![0; bytes.len()], vec![0.0; batch * shape.rows]);
                layout.scatter(0, &bytes, &mut packed).expect("the whole tensor");
                matmul_interleaved(&layout, &packed, &x, batch, &mut y).expect("fits");
                y
            };
            let y = [&interleaved()[..], &on_portable(interleaved)];
            assert_close(dtype, shape.columns, &elements, &x, y);
        }
    }
}

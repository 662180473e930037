//! Products of every type against `f64`, and what must not show in them.

mod common;

use common::{assert_products, bits, decodable, random_inputs, random_weights};
use fastrand::Rng;
use forebay_compute::{
    ComputeError, Interleaved, MatmulError, Operand, Shape, WeightBytes, matmul, matmul_interleaved,
};
use forebay_format::Dtype;
use std::ops::Range;
use std::sync::Mutex;

const ROWS: [usize; 5] = [1, 7, 8, 9, 33];
const BATCHES: [usize; 4] = [1, 2, 5, 17];

/// One block, three, and more than a panel has. Types that are no blocks get rows that are no
/// whole vectors.
fn column_counts(dtype: Dtype) -> [usize; 3] {
    let block = usize::try_from(dtype.block_elements()).expect("small");
    if block < 32 { [block, 5 * block, 1028 + block] } else { [block, 3 * block, 1024 + block] }
}

fn product(dtype: Dtype, shape: Shape, weights: &[u8], x: &[f32], batch: usize) -> Vec<f32> {
    let mut y = vec![f32::NAN; shape.rows * batch];
    matmul(dtype, shape, weights, x, batch, &mut y).expect("operands that fit");
    y
}

#[test]
fn products_of_every_type_are_within_the_tolerance() {
    let mut random = Rng::with_seed(1);
    for dtype in decodable() {
        for columns in column_counts(dtype) {
            let all = random_weights(dtype, Shape { rows: 33, columns }, &mut random);
            let inputs = random_inputs(17 * columns, &mut random);
            for rows in ROWS {
                let shape = Shape { rows, columns };
                let weights = &all[..shape.bytes(dtype).expect("whole blocks")];
                for batch in BATCHES {
                    let x = &inputs[..batch * columns];
                    let y = product(dtype, shape, weights, x, batch);
                    assert_products(dtype, shape, weights, x, &y, "in the file's layout");
                }
            }
        }
    }
}

/// Types that take different ways, and enough rows for many tiles.
fn large() -> impl Iterator<Item = (Dtype, Shape, Vec<u8>)> {
    let mut random = Rng::with_seed(2);
    [Dtype::F32, Dtype::BF16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q6_K].into_iter().map(move |dtype| {
        let shape = Shape { rows: 1_027, columns: 1_280 };
        (dtype, shape, random_weights(dtype, shape, &mut random))
    })
}

#[test]
fn the_number_of_threads_does_not_show() {
    let mut random = Rng::with_seed(3);
    for (dtype, shape, weights) in large() {
        let layout = Interleaved::new(dtype, shape).ok();
        for batch in [1, 7] {
            let x = random_inputs(batch * shape.columns, &mut random);
            let results = [1, 2, 3, 8].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                pool.build().expect("a few threads").install(|| {
                    let mut y = product(dtype, shape, &weights, &x, batch);
                    if let Some(layout) = layout {
                        let mut interleaved = vec![f32::NAN; y.len()];
                        // Any bytes will do: the file's, unpacked.
                        matmul_interleaved(&layout, &weights, &x, batch, &mut interleaved)
                            .expect("operands that fit");
                        y.append(&mut interleaved);
                    }
                    bits(&y)
                })
            });
            assert!(results.iter().all(|result| *result == results[0]), "{dtype}, batch {batch}");
        }
    }
}

#[test]
fn neither_other_inputs_nor_other_rows_show() {
    let mut random = Rng::with_seed(4);
    for (dtype, shape, weights) in large() {
        let x = random_inputs(8 * shape.columns, &mut random);
        let all = product(dtype, shape, &weights, &x, 8);
        // A single input of these has a loop of its own.
        let fewer = if matches!(dtype, Dtype::Q4_0 | Dtype::Q8_0) { 2 } else { 1 };
        for input in 0..8 - fewer {
            let x = &x[input * shape.columns..][..fewer * shape.columns];
            let expected = &all[input * shape.rows..][..fewer * shape.rows];
            let alone = product(dtype, shape, &weights, x, fewer);
            assert!(bits(&alone) == bits(expected), "{dtype}, input {input}");
        }
        let row_bytes = shape.row_bytes(dtype).expect("whole blocks");
        let one = Shape { rows: 1, ..shape };
        for row in [0, 5, 100, 1_026] {
            let weights = &weights[row * row_bytes..][..row_bytes];
            let alone = product(dtype, one, weights, &x, 8);
            let expected: Vec<f32> = all.chunks_exact(shape.rows).map(|y| y[row]).collect();
            assert!(bits(&alone) == bits(&expected), "{dtype}, row {row}");
        }
    }
}

/// Hands weights out as a mapping does, by copies; notes what it was asked for.
struct Copying<'a> {
    weights: &'a [u8],
    asked: Mutex<Vec<Range<usize>>>,
    refused_from: usize,
    withheld_bytes: usize,
}

impl<'a> Copying<'a> {
    fn new(weights: &'a [u8]) -> Self {
        let asked = Mutex::new(Vec::new());
        Self { weights, asked, refused_from: usize::MAX, withheld_bytes: 0 }
    }
}

impl WeightBytes for Copying<'_> {
    type Error = &'static str;

    fn size_bytes(&self) -> usize {
        self.weights.len()
    }

    fn read<'a>(
        &'a self,
        range: Range<usize>,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Self::Error> {
        if range.end > self.refused_from {
            return Err("the file was cut short");
        }
        self.asked.lock().expect("nobody panics").push(range.clone());
        scratch.clear();
        scratch.extend_from_slice(&self.weights[range.start..range.end - self.withheld_bytes]);
        Ok(scratch)
    }
}

#[test]
fn copied_weights_give_the_same_and_are_asked_for_in_large_pieces() {
    let mut random = Rng::with_seed(5);
    for (dtype, shape, weights) in large() {
        let x = random_inputs(2 * shape.columns, &mut random);
        let source = Copying::new(&weights);
        let mut y = vec![f32::NAN; 2 * shape.rows];
        matmul(dtype, shape, &source, &x, 2, &mut y).expect("operands that fit");
        assert!(bits(&y) == bits(&product(dtype, shape, &weights, &x, 2)), "{dtype}");

        let mut asked = source.asked.into_inner().expect("nobody panics");
        asked.sort_by_key(|range| range.start);
        let row_bytes = shape.row_bytes(dtype).expect("whole blocks");
        let mut end = 0;
        for range in &asked {
            assert_eq!(range.start, end, "each byte once");
            assert_eq!(range.len() % row_bytes, 0, "whole rows");
            assert!(range.len() >= 100 << 10 || range.end == weights.len(), "{dtype}: {range:?}");
            assert!(range.len() <= 300 << 10, "{dtype}: {range:?}");
            end = range.end;
        }
        assert_eq!(end, weights.len());
    }
}

#[test]
fn a_source_that_refuses_or_withholds_is_an_error() {
    let shape = Shape { rows: 3_000, columns: 320 };
    let weights = vec![0; shape.bytes(Dtype::Q8_0).expect("whole blocks")];
    let (x, mut y) = (vec![1.0; shape.columns], vec![0.0; shape.rows]);
    let source = Copying { refused_from: 500_000, ..Copying::new(&weights) };
    let refused = matmul(Dtype::Q8_0, shape, &source, &x, 1, &mut y);
    let Err(MatmulError::Weights { bytes, source }) = refused else { panic!("{refused:?}") };
    assert!(bytes.end > 500_000);
    assert_eq!(source, "the file was cut short");

    let source = Copying { withheld_bytes: 1, ..Copying::new(&weights) };
    let refused = matmul(Dtype::Q8_0, shape, &source, &x, 1, &mut y);
    let Err(MatmulError::Refused(error)) = refused else { panic!("{refused:?}") };
    assert!(matches!(error, ComputeError::Length { operand: Operand::Weights, .. }), "{error}");
}

/// What `matmul` says to operands of these lengths.
fn refusal(dtype: Dtype, shape: Shape, weights: usize, x: usize, batch: usize, y: usize) -> String {
    let (weights, x, mut y) = (vec![0; weights], vec![0.0; x], vec![0.5; y]);
    let refused = matmul(dtype, shape, &weights[..], &x, batch, &mut y).expect_err("bad operands");
    assert!(y.iter().all(|&y| y == 0.5), "{refused}, but something was written");
    refused.to_string()
}

#[test]
fn operands_that_do_not_fit_are_refused_in_words() {
    let shape = Shape { rows: 2, columns: 64 };
    let q8 = Dtype::Q8_0;
    assert_eq!(refusal(q8, shape, 135, 64, 1, 2), "expected 136 bytes of weights, got 135");
    assert_eq!(
        refusal(q8, shape, 136, 65, 1, 2),
        "expected 64 floats of input (batch × columns), got 65"
    );
    assert_eq!(
        refusal(q8, shape, 136, 192, 3, 5),
        "expected 6 floats of output (batch × rows), got 5"
    );
    assert_eq!(
        refusal(q8, Shape { rows: 2, columns: 65 }, 136, 65, 1, 2),
        "rows of 65 elements are not whole blocks of Q8_0 (32 elements)"
    );
    assert_eq!(refusal(Dtype::C64, shape, 0, 0, 0, 0), "C64 can't be decoded to f32");
    let huge = usize::MAX - 31;
    for shape in [Shape { rows: 1, columns: huge }, Shape { rows: huge, columns: 32 }] {
        let refused = refusal(q8, shape, 1, 1, 1, 1);
        assert!(refused.ends_with("more than the address space"), "{refused}");
    }
    let refused = refusal(q8, Shape { rows: 0, columns: 64 }, 0, 1, huge, 0);
    assert!(refused.ends_with("more than the address space"), "{refused}");
}

#[test]
fn nothing_times_something_is_nothing() {
    for dtype in [Dtype::F32, Dtype::Q4_0, Dtype::Q6_K] {
        let no_rows = Shape { rows: 0, columns: 256 };
        assert!(product(dtype, no_rows, &[], &[1.0; 512], 2).is_empty());
        let no_columns = Shape { rows: 17, columns: 0 };
        assert_eq!(product(dtype, no_columns, &[], &[], 1), [0.0; 17]);
        assert_eq!(product(dtype, no_columns, &[], &[], 2), [0.0; 34]);
        let shape = Shape { rows: 1, columns: 256 };
        let weights = vec![0; shape.bytes(dtype).expect("whole blocks")];
        assert!(product(dtype, shape, &weights, &[], 0).is_empty());
    }
    let no_columns = Shape { rows: 17, columns: 0 };
    let layout = Interleaved::new(Dtype::Q4_0, no_columns).expect("a matrix");
    let mut y = [f32::NAN; 34];
    matmul_interleaved(&layout, &[], &[], 2, &mut y).expect("operands that fit");
    assert_eq!(y, [0.0; 34]);
}

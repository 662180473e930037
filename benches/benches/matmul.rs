//! Products of a matrix with 1, 16 and 64 inputs, beside the rate at which memory is read.
//!
//! Rates of weights are in bytes, rates of arithmetic in elements: two for each multiplication
//! with its addition. Weights lie in memory several times, 256 MiB in all, and are taken in turn,
//! as a model's layers are: what was read a moment ago is no longer in a cache.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay_compute::{Interleaved, Shape, matmul, matmul_interleaved};
use forebay_format::Dtype;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;

const SHAPES: [Shape; 2] =
    [Shape { rows: 4_096, columns: 4_096 }, Shape { rows: 11_008, columns: 4_096 }];
const BATCHES: [usize; 3] = [1, 16, 64];
const MEMORY_BYTES: usize = 256 << 20;

/// The types, and where the half-precision scales of a block are.
const TYPES: [(Dtype, &[usize]); 7] = [
    (Dtype::F32, &[2]),
    (Dtype::F16, &[0]),
    (Dtype::BF16, &[0]),
    (Dtype::Q4_0, &[0]),
    (Dtype::Q8_0, &[0]),
    (Dtype::Q4_K, &[0, 2]),
    (Dtype::Q6_K, &[208]),
];

/// Random blocks with scales, or exponents, such as models have.
fn weights(dtype: Dtype, scales: &[usize], shape: Shape) -> Vec<u8> {
    let mut bytes = vec![0; shape.bytes(dtype).expect("whole blocks")];
    fastrand::Rng::with_seed(7).fill(&mut bytes);
    let block_bytes = usize::try_from(dtype.block_bytes()).expect("small");
    for block in bytes.chunks_exact_mut(block_bytes) {
        for &offset in scales {
            block[offset + 1] = block[offset + 1] & 0x8f | 0x20;
        }
    }
    bytes
}

/// Exclusive or of all words, of four places at once, which is faster than of one.
fn read(bytes: &[u8]) -> u64 {
    let quarter = bytes.len() / 4;
    let places = [0, 1, 2, 3].map(|place| bytes[place * quarter..][..quarter].as_chunks::<64>().0);
    let mut sums = [[0; 8]; 4];
    for line in 0..quarter / 64 {
        for (sums, place) in sums.iter_mut().zip(places) {
            for (sum, word) in sums.iter_mut().zip(place[line].as_chunks().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all ^ sum)
}

fn ceiling(criterion: &mut Criterion) {
    let bytes = vec![1_u8; MEMORY_BYTES];
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::BytesDecimal(bytes.len() as u64)).sample_size(20);
    group.bench_function("read", |bencher| {
        bencher.iter(|| black_box(&bytes).par_chunks(256 << 10).map(read).sum::<u64>());
    });
    group.finish();
}

/// Measures `multiply`, which gets the weights, inputs, their number, and outputs.
fn measure(
    criterion: &mut Criterion,
    name: &str,
    shape: Shape,
    weights: &[u8],
    multiply: impl Fn(&[u8], &[f32], usize, &mut [f32]),
) {
    let Shape { rows, columns } = shape;
    let copies: Vec<Vec<u8>> = vec![weights.to_vec(); (MEMORY_BYTES / weights.len()).clamp(1, 64)];
    let mut group = criterion.benchmark_group(format!("matmul-{rows}x{columns}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.measurement_time(Duration::from_secs(1));
    for batch in BATCHES {
        let x: Vec<f32> = (0..batch * columns).map(|_| fastrand::f32() - 0.5).collect();
        let mut y = vec![0.0; batch * rows];
        group.throughput(Throughput::ElementsAndBytes {
            elements: 2 * (rows * columns * batch) as u64,
            bytes: weights.len() as u64,
        });
        let mut turn = copies.iter().cycle();
        group.bench_function(BenchmarkId::new(name, batch), |bencher| {
            bencher.iter(|| {
                let weights = turn.next().expect("an endless cycle");
                multiply(black_box(weights), black_box(&x), batch, &mut y);
            });
        });
    }
    group.finish();
}

fn products(criterion: &mut Criterion) {
    for shape in SHAPES {
        for (dtype, scales) in TYPES {
            let file = weights(dtype, scales, shape);
            measure(criterion, dtype.name(), shape, &file, |weights, x, batch, y| {
                matmul(dtype, shape, weights, x, batch, y).expect("operands that fit");
            });
            let Ok(layout) = Interleaved::new(dtype, shape) else { continue };
            let mut packed = vec![0; file.len()];
            layout.scatter(0, &file, &mut packed).expect("the whole tensor");
            let name = format!("{dtype}-interleaved");
            measure(criterion, &name, shape, &packed, |weights, x, batch, y| {
                matmul_interleaved(&layout, weights, x, batch, y).expect("operands that fit");
            });
        }
    }
}

/// A tensor in pieces of 1 MiB, as a loader gets it.
fn scatter(criterion: &mut Criterion) {
    let shape = SHAPES[1];
    let mut group = criterion.benchmark_group("interleave");
    for (dtype, scales) in [TYPES[3], TYPES[4]] {
        let layout = Interleaved::new(dtype, shape).expect("whole blocks");
        let file = weights(dtype, scales, shape);
        let mut packed = vec![0; file.len()];
        group.throughput(Throughput::BytesDecimal(file.len() as u64)).sample_size(20);
        group.bench_function(BenchmarkId::new("scatter", dtype), |bencher| {
            bencher.iter(|| {
                for (offset, piece) in (0..).step_by(1 << 20).zip(file.chunks(1 << 20)) {
                    layout.scatter(offset, piece, &mut packed).expect("a piece of the tensor");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ceiling, products, scatter);
criterion_main!(benches);

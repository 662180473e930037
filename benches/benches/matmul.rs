//! Products on the CPU beside reading the same number of bytes, and what interleaving brings.
//!
//!     cargo bench -p forebay-benches --bench matmul

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use forebay_compute::{Interleaved, Shape, matmul, matmul_interleaved};
use forebay_format::Dtype;
use std::hint::black_box;

const SHAPE: Shape = Shape { rows: 11_008, columns: 4096 };
const TYPES: [Dtype; 7] =
    [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4_K, Dtype::Q6_K];

/// Weights of small finite numbers: every 16-bit pattern is one, as a half and in a float.
fn weights(dtype: Dtype) -> Vec<u8> {
    let bytes = SHAPE.bytes(dtype).expect("whole blocks");
    (0_u8..251).flat_map(|value| [value, 0x2C]).cycle().take(bytes).collect()
}

fn products(criterion: &mut Criterion) {
    for batch in [1, 16] {
        let mut group = criterion.benchmark_group(format!("batch {batch}"));
        group.sample_size(10);
        let x = vec![0.5_f32; batch * SHAPE.columns];
        let mut y = vec![0.0_f32; batch * SHAPE.rows];
        for dtype in TYPES {
            let file = weights(dtype);
            group.throughput(Throughput::Bytes(file.len() as u64));
            group.bench_function(BenchmarkId::new("file", dtype), |bench| {
                bench.iter(|| {
                    let product =
                        matmul(dtype, SHAPE, file.as_slice(), black_box(&x), batch, &mut y);
                    product.expect("operands fit");
                });
            });
            let Ok(layout) = Interleaved::new(dtype, SHAPE) else { continue };
            let mut packed = vec![0; file.len()];
            layout.scatter(0, &file, &mut packed).expect("the whole tensor");
            group.bench_function(BenchmarkId::new("interleaved", dtype), |bench| {
                bench.iter(|| {
                    let product =
                        matmul_interleaved(&layout, &packed, black_box(&x), batch, &mut y);
                    product.expect("operands fit");
                });
            });
            group.bench_function(BenchmarkId::new("scatter", dtype), |bench| {
                bench.iter(|| layout.scatter(0, black_box(&file), &mut packed));
            });
        }
        group.finish();
    }
}

/// The ceiling: one pass over memory, on as many threads as there are cores.
fn reading(criterion: &mut Criterion) {
    let words = vec![1_u64; 256 << 17];
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Bytes(words.len() as u64 * 8));
    group.sample_size(10);
    group.bench_function("read 256 MiB", |bench| {
        bench.iter(|| {
            std::thread::scope(|scope| {
                for part in words.chunks(words.len().div_ceil(threads)) {
                    scope.spawn(|| black_box(part.iter().fold(0_u64, |sum, word| sum ^ word)));
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, reading, products);
criterion_main!(benches);

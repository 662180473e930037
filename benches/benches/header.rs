//! From header bytes to a catalog, for models of very many tensors (mixtures of experts with each
//! expert on its own have tens of thousands).

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_format::{Catalog, Parse, gguf, safetensors};
use std::hint::black_box;

const TENSORS: u64 = 100_000;
const TENSOR_BYTES: u64 = 4096;

fn name(tensor: u64) -> String {
    format!("model.layers.{}.mlp.experts.{}.down_proj.weight", tensor / 1000, tensor % 1000)
}

/// A GGUF header and the length of the file it would begin.
fn gguf_header(count: u64) -> (Vec<u8>, u64) {
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend(count.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    for tensor in 0..count {
        let name = name(tensor);
        header.extend((name.len() as u64).to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(2_u32.to_le_bytes());
        header.extend(64_u64.to_le_bytes());
        header.extend(16_u64.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header.extend((tensor * TENSOR_BYTES).to_le_bytes());
    }
    let data_offset = (header.len() as u64).next_multiple_of(32);
    (header, data_offset + count * TENSOR_BYTES)
}

/// A safetensors header and the length of the file it would begin.
fn safetensors_header(count: u64) -> (Vec<u8>, u64) {
    let entries: Vec<String> = (0..count)
        .map(|tensor| {
            let begin = tensor * TENSOR_BYTES;
            format!(
                r#""{}":{{"dtype":"F32","shape":[16,64],"data_offsets":[{begin},{}]}}"#,
                name(tensor),
                begin + TENSOR_BYTES
            )
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let header = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let file_bytes = header.len() as u64 + count * TENSOR_BYTES;
    (header, file_bytes)
}

/// Reads `header`, of which `wanted` bytes are there at first and then as many as are asked for:
/// a caller knows a GGUF header's length only when all of it was there.
fn gguf_catalog(header: &[u8], mut wanted: usize, file_bytes: u64) -> Catalog {
    loop {
        match gguf::parse(&header[..wanted], file_bytes).expect("a good header") {
            Parse::NeedBytes(bytes) => {
                wanted = usize::try_from(bytes).map_or(header.len(), |b| b.min(header.len()));
            }
            Parse::Complete(file) => {
                let parts = vec![("model.gguf".to_owned(), file_bytes, file)];
                return gguf::catalog(parts).expect("a good model");
            }
        }
    }
}

fn safetensors_catalog(header: &[u8], file_bytes: u64) -> Catalog {
    let Ok(Parse::Complete(file)) = safetensors::parse(header, file_bytes) else {
        panic!("the header is good and there in full");
    };
    let parts = vec![("model.safetensors".to_owned(), file_bytes, file)];
    safetensors::catalog(parts, None).expect("a good model")
}

fn header(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header-100k-tensors");
    group.throughput(Throughput::Elements(TENSORS)).sample_size(30);
    let (bytes, file_bytes) = gguf_header(TENSORS);
    group.bench_function("gguf", |bencher| {
        bencher.iter_with_large_drop(|| gguf_catalog(black_box(&bytes), bytes.len(), file_bytes));
    });
    group.bench_function("gguf-in-steps", |bencher| {
        bencher.iter_with_large_drop(|| gguf_catalog(black_box(&bytes), 0, file_bytes));
    });
    let (bytes, file_bytes) = safetensors_header(TENSORS);
    group.bench_function("safetensors", |bencher| {
        bencher.iter_with_large_drop(|| safetensors_catalog(black_box(&bytes), file_bytes));
    });
    group.finish();
}

criterion_group!(benches, header);
criterion_main!(benches);

//! A file with one matrix, of any type that has kernels.

use crate::failure::Failure;
use forebay::Dtype;
use std::path::{Path, PathBuf};

/// Every type that has kernels, with the halves of a block that scale it.
pub(super) const TYPES: [(Dtype, &[usize]); 18] = [
    (Dtype::F32, &[2]),
    (Dtype::F16, &[0]),
    (Dtype::BF16, &[0]),
    (Dtype::F8_E4M3, &[]),
    (Dtype::F8_E5M2, &[]),
    (Dtype::Q4_0, &[0]),
    (Dtype::Q4_1, &[0, 2]),
    (Dtype::Q5_0, &[0]),
    (Dtype::Q5_1, &[0, 2]),
    (Dtype::Q8_0, &[0]),
    (Dtype::Q2_K, &[80, 82]),
    (Dtype::Q3_K, &[108]),
    (Dtype::Q4_K, &[0, 2]),
    (Dtype::Q5_K, &[0, 2]),
    (Dtype::Q6_K, &[208]),
    (Dtype::IQ4_NL, &[0]),
    (Dtype::IQ4_XS, &[0]),
    (Dtype::MXFP4, &[]),
];

/// Writes a file with one matrix of random blocks whose elements are of a sane size.
pub(super) fn write(
    folder: &Path,
    dtype: Dtype,
    scales: &[usize],
    (m, k): (usize, usize),
) -> Result<PathBuf, Failure> {
    let block = usize::try_from(dtype.block_bytes()).unwrap_or(1);
    let elements = usize::try_from(dtype.block_elements()).unwrap_or(1);
    let mut data = vec![0; m * k / elements * block];
    fastrand::Rng::with_seed(7).fill(&mut data);
    for block in data.chunks_exact_mut(block) {
        for &scale in scales {
            // A small finite number, as a half and as the upper half of a float alike.
            block[scale + 1] = block[scale + 1] & 0b1000_0011 | 0b0011_1000;
        }
        match dtype {
            // An exponent of two.
            Dtype::MXFP4 => block[0] = 118 + block[0] % 8,
            // No NaN, nor anything large.
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => block[0] &= 0b1011_1111,
            _ => {}
        }
    }
    let (name, header) = match dtype.gguf_id() {
        Some(id) => ("matrix.gguf", gguf_header(id, m, k)),
        None => ("matrix.safetensors", safetensors_header(dtype, m, k, data.len())),
    };
    let path = folder.join(name);
    let written = std::fs::write(&path, [header, data].concat());
    let failed = |error| Failure::caused(format!("{}: can't be written", path.display()), &error);
    written.map_err(failed)?;
    Ok(path)
}

fn gguf_header(id: u32, m: usize, k: usize) -> Vec<u8> {
    const NAME: &[u8] = b"matrix.weight";
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend(1_u64.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend((NAME.len() as u64).to_le_bytes());
    header.extend(NAME);
    header.extend(2_u32.to_le_bytes());
    header.extend((k as u64).to_le_bytes());
    header.extend((m as u64).to_le_bytes());
    header.extend(id.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.resize(header.len().next_multiple_of(32), 0);
    header
}

fn safetensors_header(dtype: Dtype, m: usize, k: usize, bytes: usize) -> Vec<u8> {
    let dtype = dtype.name();
    let json = format!(
        r#"{{"matrix.weight":{{"dtype":"{dtype}","shape":[{m},{k}],"data_offsets":[0,{bytes}]}}}}"#
    );
    let padded = json.len().next_multiple_of(8);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(json.bytes());
    header.resize(8 + padded, b' ');
    header
}

//! A model with a matrix of each of some types, of random blocks whose scales are small.

use std::path::PathBuf;

/// A type of weights, as GGUF has it.
#[derive(Debug)]
pub(crate) struct Type {
    /// As formats spell it.
    pub(crate) name: &'static str,
    id: u32,
    block_elements: usize,
    block_bytes: usize,
    /// Where in a block halves lie that scale it.
    scales: &'static [usize],
}

const fn of(
    name: &'static str,
    id: u32,
    block_elements: usize,
    block_bytes: usize,
    scales: &'static [usize],
) -> Type {
    Type { name, id, block_elements, block_bytes, scales }
}

/// Plain types count as blocks of one element, which is its own scale.
pub(crate) const TYPES: [Type; 16] = [
    of("F32", 0, 1, 4, &[2]),
    of("F16", 1, 1, 2, &[0]),
    of("BF16", 30, 1, 2, &[0]),
    of("Q4_0", 2, 32, 18, &[0]),
    of("Q8_0", 8, 32, 34, &[0]),
    of("Q4_K", 12, 256, 144, &[0, 2]),
    of("Q6_K", 14, 256, 210, &[208]),
    of("Q4_1", 3, 32, 20, &[0, 2]),
    of("Q5_0", 6, 32, 22, &[0]),
    of("Q5_1", 7, 32, 24, &[0, 2]),
    of("Q2_K", 10, 256, 84, &[80, 82]),
    of("Q3_K", 11, 256, 110, &[108]),
    of("Q5_K", 13, 256, 176, &[0, 2]),
    of("IQ4_NL", 20, 32, 18, &[0]),
    of("IQ4_XS", 23, 256, 136, &[0]),
    of("MXFP4", 39, 32, 17, &[]),
];

/// A GGUF with a matrix `blk.N.NAME` of each type, N counting from 0, and a vector.
pub(crate) fn model(types: &[&Type], rows: usize, columns: usize) -> (tempfile::TempDir, PathBuf) {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((types.len() as u64 + 1).to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    let mut data: Vec<u8> = Vec::new();
    let mut tensor = |name: &str, shape: &[usize], id: u32, bytes: Vec<u8>| {
        header.extend(string(name));
        header.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
        shape.iter().rev().for_each(|&length| header.extend((length as u64).to_le_bytes()));
        header.extend(id.to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    };
    tensor("norm.weight", &[columns], 0, vec![0; columns * 4]);
    let mut random = fastrand::Rng::with_seed(3);
    for (layer, of) in types.iter().enumerate() {
        let mut bytes = vec![0; rows * columns / of.block_elements * of.block_bytes];
        random.fill(&mut bytes);
        for block in bytes.chunks_exact_mut(of.block_bytes) {
            for &scale in of.scales {
                // A small finite number, as a half and as the upper half of a float alike.
                block[scale + 1] = block[scale + 1] & 0b1000_0011 | 0b0011_1000;
            }
            if of.name == "MXFP4" {
                // An exponent of two.
                block[0] = 118 + block[0] % 8;
            }
        }
        tensor(&format!("blk.{layer}.{}", of.name), &[rows, columns], of.id, bytes);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, [header, data].concat()).unwrap();
    (folder, path)
}

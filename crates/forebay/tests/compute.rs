//! Products on loaded tensors, wherever and however they lie: in a mapping, read into place,
//! copied to `host`, interleaved; before and after their pages were given back.

use forebay::{Error, GpuLayers, Loader, Reclaim, Repack, Tensor};
use std::path::PathBuf;

const ROWS: usize = 37;
const COLUMNS: usize = 512;
/// Spelling, GGUF's number, bytes of a row, where in a block of how many bytes the scales are.
const TYPES: [(&str, u32, usize, usize, &[usize]); 7] = [
    ("F32", 0, COLUMNS * 4, 4, &[2]),
    ("F16", 1, COLUMNS * 2, 2, &[0]),
    ("BF16", 30, COLUMNS * 2, 2, &[0]),
    ("Q4_0", 2, COLUMNS / 32 * 18, 18, &[0]),
    ("Q8_0", 8, COLUMNS / 32 * 34, 34, &[0]),
    ("Q4_K", 12, COLUMNS / 256 * 144, 144, &[0, 2]),
    ("Q6_K", 14, COLUMNS / 256 * 210, 210, &[208]),
];

/// A GGUF with a matrix of each type, in layers 0 to 6, and a vector.
fn model() -> (tempfile::TempDir, PathBuf) {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((TYPES.len() as u64 + 1).to_le_bytes());
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
    tensor("norm.weight", &[COLUMNS], 0, vec![0; COLUMNS * 4]);
    let mut random = fastrand::Rng::with_seed(3);
    for (layer, (name, id, row_bytes, block_bytes, scales)) in TYPES.into_iter().enumerate() {
        let mut bytes = vec![0; ROWS * row_bytes];
        random.fill(&mut bytes);
        for block in bytes.chunks_exact_mut(block_bytes) {
            for &scale in scales {
                // A small finite number, as a half and as the upper half of a float alike.
                block[scale + 1] = block[scale + 1] & 0b1000_0011 | 0b0011_1000;
            }
        }
        tensor(&format!("blk.{layer}.{name}"), &[ROWS, COLUMNS], id, bytes);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, [header, data].concat()).unwrap();
    (folder, path)
}

/// That products are as near to the exact ones as sums of this many rounded terms can be.
fn check(tensor: &Tensor, weights: &[f32], what: &str) {
    let mut random = fastrand::Rng::with_seed(9);
    for batch in [1, 3] {
        let x: Vec<f32> = (0..batch * COLUMNS).map(|_| random.f32() - 0.5).collect();
        let mut y = vec![f32::NAN; batch * ROWS];
        tensor.matmul(&x, batch, &mut y).unwrap();
        for (input, outputs) in y.chunks_exact(ROWS).enumerate() {
            for (row, &output) in outputs.iter().enumerate() {
                let terms = (0..COLUMNS).map(|column| {
                    f64::from(weights[row * COLUMNS + column])
                        * f64::from(x[input * COLUMNS + column])
                });
                let (sum, size) =
                    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                let error = (f64::from(output) - sum).abs();
                // Each output is a sum of at most this many roundings, each half a unit.
                let bound = size * f64::from(f32::EPSILON) * 64.0;
                assert!(error <= bound, "{tensor:?} {what}, row {row}: {output} is not {sum}");
            }
        }
    }
}

#[test]
fn products_are_right_wherever_the_weights_lie_before_and_after_reclaim() {
    let (_folder, path) = model();
    let exact = Loader::new(&path).load().unwrap();
    for (layers, mode, repack) in [
        (GpuLayers::Count(0), "mmap", Repack::Off),
        (GpuLayers::Count(0), "mmap", Repack::On),
        (GpuLayers::Count(0), "auto", Repack::On),
        (GpuLayers::Count(0), "dio", Repack::Off),
        (GpuLayers::Count(0), "none", Repack::On),
        (GpuLayers::Count(0), "mlock", Repack::On),
        (GpuLayers::All, "auto", Repack::Off),
        (GpuLayers::All, "mmap", Repack::On),
    ] {
        let what = format!("{layers:?} {mode} {repack:?}");
        let loader = Loader::new(&path).gpu_layers(layers).repack(repack);
        let loaded = loader.load_mode(mode.parse().unwrap()).load().unwrap();
        let mut repacked = 0;
        for (layer, (name, ..)) in TYPES.into_iter().enumerate() {
            let tensor = loaded.tensor(&format!("blk.{layer}.{name}")).unwrap();
            repacked += u32::from(tensor.is_repacked());
            let weights = exact.tensor(tensor.name()).unwrap().to_f32().unwrap();
            check(&tensor, &weights, &what);
            // Converting gives mapped pages back; everything is right again afterwards.
            assert_eq!(tensor.to_f32().unwrap(), weights, "{what}");
            check(&tensor, &weights, &format!("{what}, after reclaim"));
        }
        let expected = if repack == Repack::On && mode != "mlock" { 2 } else { 0 };
        assert_eq!(repacked, expected, "{what}: Q4_0 and Q8_0, unless they are to be locked");
        assert_eq!(loaded.digests().unwrap(), exact.digests().unwrap(), "{what}");
    }
}

#[test]
fn converting_gives_the_mapped_pages_back_unless_they_are_kept() {
    let (_folder, path) = model();
    for (reclaim, keeps) in [(Reclaim::Auto, false), (Reclaim::Off, true)] {
        let loader = Loader::new(&path).gpu_layers(GpuLayers::Count(0)).reclaim(reclaim);
        let loaded = loader.load().unwrap();
        let tensor = loaded.tensor("blk.0.F32").unwrap();
        let before = mapped_kib(&path);
        tensor.to_f32().unwrap();
        let after = mapped_kib(&path);
        assert_eq!(after == before, keeps, "{reclaim:?}: {before} KiB became {after}");
    }
}

/// KiB of the file that are resident in this process, over all its mappings.
fn mapped_kib(path: &std::path::Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut ours = false;
    let mut resident_kib = 0;
    for line in maps.lines() {
        if line.contains('-') && line.contains(' ') && !line.contains("kB") {
            ours = line.ends_with(path.to_str().unwrap());
        } else if let Some(kib) = line.strip_prefix("Rss:").filter(|_| ours) {
            resident_kib += kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    resident_kib
}

#[test]
fn what_is_no_matrix_or_does_not_fit_is_one_clear_error() {
    let (_folder, path) = model();
    let loaded = Loader::new(&path).load().unwrap();
    let vector = loaded.tensor("norm.weight").unwrap();
    let error = vector.matmul(&[], 1, &mut []).unwrap_err();
    assert!(matches!(error, Error::NoMatrix { .. }), "{error}");
    let matrix = loaded.tensor("blk.3.Q4_0").unwrap();
    let error = matrix.matmul(&[0.0; COLUMNS], 1, &mut [0.0; ROWS + 1]).unwrap_err();
    assert!(matches!(error, Error::Compute { .. }), "{error}");
    assert!(error.to_string().contains("blk.3.Q4_0"), "{error}");
}

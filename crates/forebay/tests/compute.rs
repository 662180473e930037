//! Products on loaded tensors, wherever and however they lie: in a mapping, read into place,
//! copied to `host`, interleaved; before and after their pages were given back.

#[path = "support/matrices.rs"]
mod matrices;

use forebay::{Error, GpuLayers, Loader, Reclaim, Repack, Tensor};
use matrices::{TYPES, Type};
use std::path::PathBuf;

const ROWS: usize = 37;
const COLUMNS: usize = 512;

/// The first of the types are enough here.
const LAYERS: usize = 7;

fn model() -> (tempfile::TempDir, PathBuf) {
    matrices::model(&TYPES[..LAYERS].iter().collect::<Vec<&Type>>(), ROWS, COLUMNS)
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
        for (layer, of) in TYPES[..LAYERS].iter().enumerate() {
            let tensor = loaded.tensor(&format!("blk.{layer}.{}", of.name)).unwrap();
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

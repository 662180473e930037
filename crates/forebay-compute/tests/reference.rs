//! Decoders against the reference decoders' results, bit for bit.
//!
//! The results were made by `tests/fixtures/make_dequantized.py` with the `gguf` package, numpy
//! and ml_dtypes.

mod common;

use common::dot_product;
use forebay_compute::{ComputeError, Shape, can_decode, dequantize, matmul};
use forebay_format::{Catalog, Dtype, Parse, safetensors};

struct Fixture {
    file: Vec<u8>,
    catalog: Catalog,
}

impl Fixture {
    fn load() -> Self {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/dequantized.safetensors");
        let file = std::fs::read(path).expect("the fixture is committed");
        let bytes = file.len() as u64;
        let Ok(Parse::Complete(header)) = safetensors::parse(&file, bytes) else {
            panic!("the fixture is a good file");
        };
        let parts = vec![(path.to_owned(), bytes, header)];
        let catalog = safetensors::catalog(parts, None).expect("the fixture is a good model");
        Self { file, catalog }
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let tensor = self.catalog.tensors().iter().find(|tensor| tensor.name == name)?;
        let cast = |offset: u64| usize::try_from(offset).expect("small");
        Some(&self.file[cast(tensor.offset)..cast(tensor.end())])
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let (floats, _) = self.bytes(name)?.as_chunks();
        Some(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    fn doubles(&self, name: &str) -> Option<Vec<f64>> {
        let (doubles, _) = self.bytes(name)?.as_chunks();
        Some(doubles.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
    }
}

/// Which types no reference can decode: refused, but for one.
const WITHOUT_REFERENCE: &[Dtype] =
    &[Dtype::C64, Dtype::F6_E2M3, Dtype::F6_E3M2, Dtype::Q8_1, Dtype::Q8_K, Dtype::Q1_0];

#[test]
fn every_type_decodes_as_its_reference() {
    let fixture = Fixture::load();
    for &dtype in Dtype::ALL {
        let Some(expected) = fixture.floats(&format!("{dtype}.values")) else {
            assert!(WITHOUT_REFERENCE.contains(&dtype), "{dtype} has no fixture");
            continue;
        };
        let bytes = fixture.bytes(&format!("{dtype}.bytes")).expect("values come with bytes");
        let mut decoded = vec![1e-45; expected.len()];
        dequantize(dtype, bytes, &mut decoded).expect("whole blocks of a type with a decoder");
        for (element, (decoded, expected)) in decoded.iter().zip(&expected).enumerate() {
            let same =
                decoded.to_bits() == expected.to_bits() || decoded.is_nan() && expected.is_nan();
            assert!(same, "{dtype}, element {element}: {decoded:e}, not {expected:e}");
        }
    }
}

#[test]
fn types_without_a_meaning_are_refused() {
    for &dtype in WITHOUT_REFERENCE.iter().filter(|&&dtype| dtype != Dtype::Q1_0) {
        assert!(!can_decode(dtype));
        let refused = dequantize(dtype, &[], &mut []);
        assert_eq!(refused, Err(ComputeError::Unsupported { dtype }));
    }
}

#[test]
fn products_are_those_of_the_reference() {
    let fixture = Fixture::load();
    let inputs = fixture.floats("x").expect("the fixture has inputs");
    let mut types = 0;
    for &dtype in Dtype::ALL {
        let Some(expected) = fixture.doubles(&format!("{dtype}.products")) else { continue };
        let bytes = fixture.bytes(&format!("{dtype}.bytes")).expect("products come with bytes");
        let values = fixture.floats(&format!("{dtype}.values")).expect("and with values");
        let rows = expected.len();
        // Rows of the matrix, behind four blocks of edge cases.
        let block_elements = usize::try_from(dtype.block_elements()).expect("small");
        let shape = Shape { rows, columns: (values.len() - 4 * block_elements) / rows };
        let weights = &bytes[bytes.len() - shape.bytes(dtype).expect("whole blocks")..];
        let values = &values[4 * block_elements..];
        let x = &inputs[..shape.columns];
        let mut y = vec![0.0; rows];
        matmul(dtype, shape, weights, x, 1, &mut y).expect("operands that fit");
        for (row, (y, expected)) in y.iter().zip(expected).enumerate() {
            let tolerance =
                dot_product(&values[row * shape.columns..][..shape.columns], x).tolerance;
            let error = (f64::from(*y) - expected).abs();
            assert!(error <= tolerance, "{dtype}, row {row}: {y}, not {expected}");
        }
        types += 1;
    }
    assert_eq!(types, 23, "block types of the gguf package that have a decoder");
}

/// Every half-precision float, by its definition.
#[test]
fn halves_are_exact() {
    for code in 0..=u16::MAX {
        let (sign, exponent) = (code >> 15, i32::from(code >> 10 & 31));
        let mantissa = f64::from(code & 1023) / 1024.0;
        let magnitude = match exponent {
            0 => mantissa * 2.0_f64.powi(-14),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + mantissa) * 2.0_f64.powi(exponent - 15),
        };
        let expected = if sign == 0 { magnitude } else { -magnitude };
        let mut decoded = [0.0];
        dequantize(Dtype::F16, &code.to_le_bytes(), &mut decoded).expect("one half");
        let decoded = f64::from(decoded[0]);
        let same = decoded.to_bits() == expected.to_bits() || decoded.is_nan() && expected.is_nan();
        assert!(same, "{code:#06x}: {decoded:e}, not {expected:e}");
    }
}

/// No package decodes this one. A scale of −2, bits 0, 9 and 127.
#[test]
fn q1_0_is_a_scale_with_signs() {
    let mut block = [0; 18];
    block[..2].copy_from_slice(&0xc000_u16.to_le_bytes());
    (block[2], block[3], block[17]) = (1, 2, 128);
    let mut decoded = [0.0; 128];
    dequantize(Dtype::Q1_0, &block, &mut decoded).expect("one block");
    for (element, value) in decoded.into_iter().enumerate() {
        let expected = if [0, 9, 127].contains(&element) { -2.0 } else { 2.0 };
        assert!(value == expected, "element {element}: {value}");
    }
}

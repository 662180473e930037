//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses some of it")]

use candle_core::{CpuStorage, Storage, Tensor};
use std::path::PathBuf;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// The bytes of a tensor, whatever it is made of.
pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    macro_rules! little_endian {
        ($elements:expr) => {
            $elements.iter().flat_map(|element| element.to_le_bytes()).collect()
        };
    }
    let (storage, layout) = tensor.storage_and_layout();
    assert!(layout.is_contiguous() && layout.start_offset() == 0);
    let Storage::Cpu(storage) = &*storage else { panic!("a tensor on the CPU") };
    match storage {
        CpuStorage::U8(elements)
        | CpuStorage::F6E2M3(elements)
        | CpuStorage::F6E3M2(elements)
        | CpuStorage::F4(elements)
        | CpuStorage::F8E8M0(elements) => elements.clone(),
        CpuStorage::F8E4M3(elements) => elements.iter().map(|it| it.to_bits()).collect(),
        CpuStorage::U32(elements) => bytemuck::cast_slice(elements).to_vec(),
        CpuStorage::I16(elements) => bytemuck::cast_slice(elements).to_vec(),
        CpuStorage::I32(elements) => bytemuck::cast_slice(elements).to_vec(),
        CpuStorage::I64(elements) => bytemuck::cast_slice(elements).to_vec(),
        CpuStorage::BF16(elements) => little_endian!(elements),
        CpuStorage::F16(elements) => little_endian!(elements),
        CpuStorage::F32(elements) => bytemuck::cast_slice(elements).to_vec(),
        CpuStorage::F64(elements) => bytemuck::cast_slice(elements).to_vec(),
    }
}

/// That two tensors are the same to the bit.
pub(crate) fn assert_same(name: &str, ours: &Tensor, candles: &Tensor) {
    assert_eq!((ours.dtype(), ours.shape()), (candles.dtype(), candles.shape()), "{name}");
    assert_eq!(bytes(ours), bytes(candles), "{name}");
}

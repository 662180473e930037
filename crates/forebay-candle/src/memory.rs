//! Memory that candle will own and that a load fills first: the one place with `unsafe`.
//!
//! A [`Lent`] is a `Vec` of candle's own elements that has room and no elements yet. Its room is
//! lent to a load, which writes the tensor's bytes into it; once the load has ended well, and
//! nothing of it is left, the same `Vec` becomes candle's storage. So the bytes are copied once,
//! out of staging memory, as they are for any other destination.

use candle_core::CpuStorage;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, BlockQ8K,
};
use candle_core::quantized::{GgmlType, QStorage};
use float8::F8E4M3;
use forebay::{Dtype, HostPointer};
use half::{bf16, f16};
use std::collections::TryReserveError;

// The files' bytes become elements as they are.
const _: () = assert!(cfg!(target_endian = "little"), "models are stored little endian");

/// Elements that any bytes are valid for.
///
/// # Safety
/// Every bit pattern of its size is a value of the type, which has no padding and no drop glue.
unsafe trait Element: Send + 'static {}

macro_rules! elements {
    ($($element:ty),+) => {
        // SAFETY: integers, floats of IEEE 754's kind, and candle's blocks, which are `repr(C)`
        // structs of such with sizes that candle asserts to be the sums of their fields.
        $(unsafe impl Element for $element {})+
    };
}

elements! { u8, u16, u32, i16, i32, i64, f16, bf16, f32, f64, F8E4M3 }
elements! { BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0 }
elements! { BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, BlockQ8K }

/// Room for one tensor, which becomes a storage `S` of candle's.
pub(crate) trait Lent<S> {
    /// Where the load is to write.
    ///
    /// # Safety
    /// This outlives every use of the pointer, unmoved or moved, and is not touched before those
    /// have ended.
    unsafe fn pointer(&mut self) -> HostPointer;

    /// The storage.
    ///
    /// # Safety
    /// All bytes that [`Lent::pointer`] spans have been written, and nobody uses it any more.
    unsafe fn into_storage(self: Box<Self>) -> S;
}

/// Room in a `Vec`, and what candle makes of one.
struct Room<T, S> {
    elements: Vec<T>,
    count: usize,
    into_storage: fn(Vec<T>) -> S,
}

impl<T: Element, S> Lent<S> for Room<T, S> {
    unsafe fn pointer(&mut self) -> HostPointer {
        let bytes = (self.count * size_of::<T>()) as u64;
        let address = self.elements.as_mut_ptr().cast();
        // SAFETY: the `Vec` has allocated room for `count` elements and owns it until this is
        // dropped, which the caller puts off until the load has ended.
        unsafe { HostPointer::new(address, bytes) }
    }

    unsafe fn into_storage(self: Box<Self>) -> S {
        let Self { mut elements, count, into_storage } = *self;
        // SAFETY: the capacity is at least `count`, the load that the room was lent to has written
        // every byte of it and has ended, as the caller promises, and any bytes are a `T`.
        unsafe { elements.set_len(count) };
        into_storage(elements)
    }
}

/// What lending memory to a tensor comes to.
pub(crate) type Lending<S> = Result<Box<dyn Lent<S>>, TryReserveError>;

fn room<T: Element, S: 'static>(bytes: usize, into_storage: fn(Vec<T>) -> S) -> Lending<S> {
    let count = bytes / size_of::<T>();
    let mut elements = Vec::new();
    elements.try_reserve_exact(count)?;
    Ok(Box::new(Room { elements, count, into_storage }))
}

/// Room for a tensor of candle's; `None` for types that it does not have.
pub(crate) fn dense(dtype: Dtype, bytes: usize) -> Option<Lending<CpuStorage>> {
    Some(match dtype {
        Dtype::U8 => room(bytes, CpuStorage::U8),
        // As candle's own reader does.
        Dtype::U16 => room(bytes, widened),
        Dtype::U32 => room(bytes, CpuStorage::U32),
        Dtype::I16 => room(bytes, CpuStorage::I16),
        Dtype::I32 => room(bytes, CpuStorage::I32),
        Dtype::I64 => room(bytes, CpuStorage::I64),
        Dtype::BF16 => room(bytes, CpuStorage::BF16),
        Dtype::F16 => room(bytes, CpuStorage::F16),
        Dtype::F32 => room(bytes, CpuStorage::F32),
        Dtype::F64 => room(bytes, CpuStorage::F64),
        Dtype::F8_E4M3 => room(bytes, CpuStorage::F8E4M3),
        Dtype::F6_E2M3 => room(bytes, CpuStorage::F6E2M3),
        Dtype::F6_E3M2 => room(bytes, CpuStorage::F6E3M2),
        Dtype::F4 => room(bytes, CpuStorage::F4),
        Dtype::F8_E8M0 => room(bytes, CpuStorage::F8E8M0),
        _ => return None,
    })
}

/// Room for a `QTensor` of candle's; `None` for types that it does not have.
///
/// Candle's `Q8_1` has 36 bytes a block, and the files' 40, so it is none of them.
pub(crate) fn quantized(dtype: Dtype, bytes: usize) -> Option<Lending<QStorage>> {
    Some(match dtype {
        Dtype::F32 => room(bytes, blocks::<f32>),
        Dtype::F16 => room(bytes, blocks::<f16>),
        Dtype::BF16 => room(bytes, blocks::<bf16>),
        Dtype::Q4_0 => room(bytes, blocks::<BlockQ4_0>),
        Dtype::Q4_1 => room(bytes, blocks::<BlockQ4_1>),
        Dtype::Q5_0 => room(bytes, blocks::<BlockQ5_0>),
        Dtype::Q5_1 => room(bytes, blocks::<BlockQ5_1>),
        Dtype::Q8_0 => room(bytes, blocks::<BlockQ8_0>),
        Dtype::Q2_K => room(bytes, blocks::<BlockQ2K>),
        Dtype::Q3_K => room(bytes, blocks::<BlockQ3K>),
        Dtype::Q4_K => room(bytes, blocks::<BlockQ4K>),
        Dtype::Q5_K => room(bytes, blocks::<BlockQ5K>),
        Dtype::Q6_K => room(bytes, blocks::<BlockQ6K>),
        Dtype::Q8_K => room(bytes, blocks::<BlockQ8K>),
        _ => return None,
    })
}

fn blocks<T: GgmlType + Send + Sync + 'static>(blocks: Vec<T>) -> QStorage {
    QStorage::Cpu(Box::new(blocks))
}

fn widened(elements: Vec<u16>) -> CpuStorage {
    CpuStorage::U32(elements.into_iter().map(u32::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent_bytes<S>(lending: Lending<S>) -> u64 {
        let mut lent = lending.unwrap();
        // SAFETY: the pointer is asked for its length, and is gone before its memory.
        unsafe { lent.pointer() }.bytes()
    }

    /// Room of fewer bytes than the tensor has would lose its end.
    #[test]
    fn a_block_of_every_type_is_as_large_here_as_in_the_files() {
        let (mut dense_types, mut block_types) = (0, 0);
        for &dtype in Dtype::ALL {
            let bytes = usize::try_from(3 * dtype.block_bytes()).unwrap();
            if let Some(lending) = dense(dtype, bytes) {
                assert_eq!(lent_bytes(lending), 3 * dtype.block_bytes(), "{dtype}");
                dense_types += 1;
            }
            if let Some(lending) = quantized(dtype, bytes) {
                assert_eq!(lent_bytes(lending), 3 * dtype.block_bytes(), "{dtype}");
                block_types += 1;
            }
        }
        assert_eq!((dense_types, block_types), (15, 14));
    }
}

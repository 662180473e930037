//! Elements and blocks back to `f32` ("dequantisation").
//!
//! The arithmetic is that of the `gguf` package (0.19, `gguf/quants.py`), step by step and in its
//! order, since floating-point steps don't commute: results are the same to the bit. What the
//! package has no decoder for is told apart in [`dequantize`].
//!
//! Each type is one function from a block's bytes to its elements. Names follow the formats: `d`
//! is a block's scale, `q` an element's small integer.

mod codebook;
mod four_bit;
mod grids;
mod k_quant;
mod legacy;
mod plain;
mod ternary;

pub(crate) use plain::half;

use crate::error::{ComputeError, Operand};
use crate::machine::{Kernel, LANES, Machine, dispatch};
use crate::shape::check_length;
use forebay_format::Dtype;
use std::marker::PhantomData;

/// Decodes whole blocks into as many elements.
pub(crate) type Decoder = fn(&[u8], &mut [f32]);

/// Decodes every element of `bytes`, which are whole blocks of `dtype`, to `out`.
///
/// All block types that the `gguf` package 0.19 can decode give the same bits as it does (a NaN is
/// a NaN, its sign and payload aside). Beyond them:
/// - `Q1_0`: the package knows its size only; it is read as ggml reads it (`dequantize_row_q1_0`
///   in `ggml-quants.c`): a set bit is the scale, a bit that isn't set the scale negated.
/// - `F8_*` and `F4` are the OCP, FNUZ and E8M0 formats; of two `F4` in a byte the lower bits are
///   the first, as in PyTorch's `float4_e2m1fn_x2`. All of their values are exact in `f32`.
/// - `F64`, `I32`, `I64`, `U32` and `U64` round to the nearest, ties to even. `BOOL` is 1 where
///   its byte isn't 0.
///
/// # Errors
/// - [`ComputeError::Unsupported`] for `C64`; for `Q8_1` and `Q8_K`, which are intermediate types
///   of dot products that no file holds; for `F6_E2M3` and `F6_E3M2`, since no format says in
///   which order four of them share three bytes.
/// - [`ComputeError::PartialBlock`] if `out` isn't whole blocks, [`ComputeError::Length`] if
///   `bytes` isn't as long as `out` needs.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), ComputeError> {
    let decode = decoder(dtype)?;
    let shape = crate::Shape { rows: 1, columns: out.len() };
    check_length(Operand::Weights, shape.row_bytes(dtype)?, bytes.len())?;
    decode(bytes, out);
    Ok(())
}

/// Whether [`dequantize`] and the products take `dtype`.
#[must_use]
pub fn can_decode(dtype: Dtype) -> bool {
    decoder(dtype).is_ok()
}

/// A decoder by a function from a block's bytes to its elements.
macro_rules! blocks {
    ($decode:path, $bytes:literal, $elements:literal) => {{
        struct Type;
        impl Block<$bytes, $elements> for Type {
            #[inline(always)]
            fn decode<M: Machine>(machine: M, bytes: &[u8; $bytes], out: &mut [f32; $elements]) {
                $decode(machine, bytes, out);
            }
        }
        decode_blocks::<Type, $bytes, $elements>
    }};
}

/// A decoder by a function from an element's bytes to its value.
macro_rules! elements {
    ($decode:path, $bytes:literal) => {{
        struct Type;
        impl Block<$bytes, 1> for Type {
            #[inline(always)]
            fn decode<M: Machine>(_machine: M, bytes: &[u8; $bytes], out: &mut [f32; 1]) {
                *out = [$decode(*bytes)];
            }
        }
        decode_blocks::<Type, $bytes, 1>
    }};
}

/// The decoder of `dtype`.
pub(crate) fn decoder(dtype: Dtype) -> Result<Decoder, ComputeError> {
    let decoder: Decoder = match dtype {
        Dtype::F32 => elements!(f32::from_le_bytes, 4),
        Dtype::F16 => |bytes, out| dispatch(plain::Halves { bytes, out }),
        Dtype::BF16 => elements!(plain::bf16, 2),
        Dtype::F64 => elements!(plain::f64, 8),
        Dtype::I8 => elements!(plain::i8, 1),
        Dtype::I16 => elements!(plain::i16, 2),
        Dtype::I32 => elements!(plain::i32, 4),
        Dtype::I64 => elements!(plain::i64, 8),
        Dtype::U8 => elements!(plain::u8, 1),
        Dtype::U16 => elements!(plain::u16, 2),
        Dtype::U32 => elements!(plain::u32, 4),
        Dtype::U64 => elements!(plain::u64, 8),
        Dtype::BOOL => elements!(plain::bool, 1),
        Dtype::F8_E5M2 => elements!(plain::f8_e5m2, 1),
        Dtype::F8_E4M3 => elements!(plain::f8_e4m3, 1),
        Dtype::F8_E8M0 => elements!(plain::f8_e8m0, 1),
        Dtype::F8_E4M3FNUZ => elements!(plain::f8_e4m3fnuz, 1),
        Dtype::F8_E5M2FNUZ => elements!(plain::f8_e5m2fnuz, 1),
        Dtype::F4 => blocks!(four_bit::f4, 1, 2),
        Dtype::MXFP4 => blocks!(four_bit::mxfp4, 17, 32),
        Dtype::NVFP4 => blocks!(four_bit::nvfp4, 36, 64),
        Dtype::IQ4_NL => blocks!(four_bit::iq4_nl, 18, 32),
        Dtype::IQ4_XS => blocks!(four_bit::iq4_xs, 136, 256),
        Dtype::Q4_0 => blocks!(legacy::q4_0, 18, 32),
        Dtype::Q4_1 => blocks!(legacy::q4_1, 20, 32),
        Dtype::Q5_0 => blocks!(legacy::q5_0, 22, 32),
        Dtype::Q5_1 => blocks!(legacy::q5_1, 24, 32),
        Dtype::Q8_0 => blocks!(legacy::q8_0, 34, 32),
        Dtype::Q2_K => blocks!(k_quant::q2_k, 84, 256),
        Dtype::Q3_K => blocks!(k_quant::q3_k, 110, 256),
        Dtype::Q4_K => blocks!(k_quant::q4_k, 144, 256),
        Dtype::Q5_K => blocks!(k_quant::q5_k, 176, 256),
        Dtype::Q6_K => blocks!(k_quant::q6_k, 210, 256),
        Dtype::IQ2_XXS => blocks!(codebook::iq2_xxs, 66, 256),
        Dtype::IQ2_XS => blocks!(codebook::iq2_xs, 74, 256),
        Dtype::IQ2_S => blocks!(codebook::iq2_s, 82, 256),
        Dtype::IQ3_XXS => blocks!(codebook::iq3_xxs, 98, 256),
        Dtype::IQ3_S => blocks!(codebook::iq3_s, 110, 256),
        Dtype::IQ1_S => blocks!(codebook::iq1_s, 50, 256),
        Dtype::IQ1_M => blocks!(codebook::iq1_m, 56, 256),
        Dtype::TQ1_0 => blocks!(ternary::tq1_0, 54, 256),
        Dtype::TQ2_0 => blocks!(ternary::tq2_0, 66, 256),
        Dtype::Q1_0 => blocks!(ternary::q1_0, 18, 128),
        _ => return Err(ComputeError::Unsupported { dtype }),
    };
    Ok(decoder)
}

/// A type's blocks, of `BYTES` bytes and `ELEMENTS` elements.
///
/// (Not a function that is handed around: calls through `Fn` are left behind in code for the oldest
/// processor.)
trait Block<const BYTES: usize, const ELEMENTS: usize> {
    /// Must be `#[inline(always)]`, like all that it calls.
    fn decode<M: Machine>(machine: M, bytes: &[u8; BYTES], out: &mut [f32; ELEMENTS]);
}

/// Decodes blocks, on the best machine there is.
fn decode_blocks<T: Block<BYTES, ELEMENTS>, const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
) {
    let (bytes, out) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    dispatch(Blocks::<T, BYTES, ELEMENTS> { bytes, out, block: PhantomData });
}

struct Blocks<'a, T, const BYTES: usize, const ELEMENTS: usize> {
    bytes: &'a [[u8; BYTES]],
    out: &'a mut [[f32; ELEMENTS]],
    block: PhantomData<T>,
}

impl<T, const BYTES: usize, const ELEMENTS: usize> Kernel for Blocks<'_, T, BYTES, ELEMENTS>
where
    T: Block<BYTES, ELEMENTS>,
{
    type Output = ();

    #[inline(always)]
    fn run<M: Machine>(self, machine: M) {
        for (bytes, out) in self.bytes.iter().zip(self.out) {
            T::decode(machine, bytes, out);
        }
    }
}

/// The half-precision float at `offset` of a block.
#[inline(always)]
fn half_at(block: &[u8], offset: usize) -> f32 {
    half(u16_at(block, offset))
}

/// The little-endian integer at `offset` of a block.
#[inline(always)]
fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

/// The little-endian integer at `offset` of a block.
#[inline(always)]
fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(block, offset)) | u32::from(u16_at(block, offset + 2)) << 16
}

/// The `index`-th half byte of `bytes`, lower halves first.
#[inline(always)]
fn nibble(bytes: &[u8], index: usize) -> u8 {
    (bytes[index / 2] >> (4 * (index % 2))) & 15
}

/// Eight bytes of a block.
#[inline(always)]
fn eight(block: &[u8], offset: usize) -> &[u8; LANES] {
    block[offset..].first_chunk().expect("decoders stay within their blocks")
}

/// The lower halves of eight bytes, or the upper ones if `half` is 1.
#[inline(always)]
fn nibbles<M: Machine>(machine: M, bytes: &[u8; LANES], half: usize) -> M::Integers {
    let moved = machine.shift_right(machine.widen(bytes), 4 * half);
    machine.and(moved, machine.splat_integer(15))
}

/// Floats, given by their bits, made negative where bit *i* of lane *i* of `signs` is set. (Those
/// that are negative already become positive.)
#[inline(always)]
fn with_signs<M: Machine>(machine: M, floats: M::Integers, signs: M::Integers) -> M::Floats {
    let up = machine.widen(&[31, 30, 29, 28, 27, 26, 25, 24]);
    let sign_bit = machine.splat_integer(1 << 31);
    let signs = machine.and(machine.shift_left_each(signs, up), sign_bit);
    machine.from_bits(machine.xor(floats, signs))
}

/// Writes eight elements.
#[inline(always)]
fn write<M: Machine>(machine: M, values: M::Floats, out: &mut [f32], at: usize) {
    out[at..at + LANES].copy_from_slice(&machine.store(values));
}

#[cfg(test)]
mod tests {
    use super::decoder;
    use forebay_format::Dtype;

    /// A decoder whose block were larger than the type's would leave elements as they were.
    #[test]
    fn decoders_have_the_block_sizes_of_their_types() {
        for &dtype in Dtype::ALL {
            let Ok(decode) = decoder(dtype) else { continue };
            let size = |count: u64| usize::try_from(5 * count).expect("small");
            let mut out = vec![f32::MAX; size(dtype.block_elements())];
            decode(&vec![0x11; size(dtype.block_bytes())], &mut out);
            assert!(out.iter().all(|&value| value != f32::MAX), "{dtype}");
        }
    }
}

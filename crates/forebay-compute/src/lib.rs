//! Products of model weights on the CPU.
//!
//! [`matmul`] multiplies a matrix in its file's layout, dense or of GGUF blocks, with some inputs;
//! [`dequantize`] decodes blocks alone; [`Interleaved`] is a layout of `Q4_0` and `Q8_0` that
//! [`matmul_interleaved`] goes through faster, and that a loader can fill piece by piece.
//!
//! ```text
//!   y[b][m] = Σ w[m][k] · x[b][k]       w: rows of whole blocks, any type    x, y: f32
//!              k
//! ```
//!
//! It is also what kernels on other devices are checked against, so inputs are never rounded or
//! quantised, whatever the weights are, and results are reproducible: on one machine, the same to
//! the bit for any number of threads. Between machines they may differ by roundings, since not all
//! can multiply and add in one. Weights come from a [`WeightBytes`]: a slice, or something that
//! has to fetch them. Nothing here opens a file or knows a device.
//!
//! # Accuracy
//!
//! Decoded weights are exact, or rounded as the `gguf` package rounds them ([`dequantize`] tells
//! for each type). Every sum is one of `f32`s in a fixed order, and an output is no further from
//! the exact one than
//!
//! ```text
//!   (40 + min(k, 1024)/8 + k/32) · 2⁻²⁴ · Σ |w·x|
//! ```
//!
//! and usually by a tenth of that. The roundings that a term goes through, at the most:
//!
//! | types | products in a row | then |
//! |---|---|---|
//! | all, but for those below | min(k, 1024)/8, each lane every eighth of 1024 columns | 3 to add the lanes up, 1 for each 1024 columns; 14 where k is no multiple of eight |
//! | `Q4_0`, `Q8_0`, a single input | 2 of a block, 1 for each block | 1 for a block's halves, 3 for the lanes |
//! | `Q4_0`, `Q8_0`, interleaved | up to 32 of a block, 1 for each block | 2 for a block's parts |
//!
//! Without fused multiply-adds, each product rounds once more. The two loops of `Q4_0` and
//! `Q8_0` read integers 2²⁴ or 2²⁸ times too large and scale their sums down, which costs no
//! precision, but inputs beyond 2⁹⁰ overflow.
//!
//! # Speed
//!
//! Kernels are compiled for AVX2 with FMA, and for whatever the compiler takes for granted
//! elsewhere; the processor is asked at run time. Work is spread over the caller's rayon pool.
//! `cargo bench -p forebay-benches --bench matmul` measures rates beside the memory's.

#![forbid(unsafe_code)]

mod aligned;
mod decode;
mod dense;
mod direct;
mod error;
mod interleave;
mod machine;
mod product;
mod shape;
mod stored;
mod weights;

pub use decode::{can_decode, dequantize};
pub use error::{ComputeError, MatmulError, Operand};
pub use interleave::{Interleaved, matmul_interleaved};
pub use product::matmul;
pub use shape::Shape;
pub use weights::WeightBytes;

#[cfg(test)]
mod tests;

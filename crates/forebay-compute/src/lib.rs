//! Matrix products on the CPU, over weights as model files store them.
//!
//! - [`dequantize`] decodes dense types and every GGUF block type that the `gguf` package has a
//!   reference for, to the same bits as that reference.
//! - [`matmul`] multiplies weights as they lie in the file with `f32` vectors, tile by tile,
//!   threaded. The weights may be anywhere that [`WeightBytes`] can read.
//! - [`Interleaved`] is a layout of `Q4_0` and `Q8_0` for the inner loop of
//!   [`matmul_interleaved`]: a permutation of the file's bytes, so that a loader can scatter pieces
//!   as they come, and gather them back bit for bit.
//!
//! Inputs stay `f32`: nothing is quantised on the way, since other kernels are checked against
//! these products. No system call, no unsafe code, no state.
//!
//! # Accuracy
//!
//! Products are sums in `f32`, in an order that depends on the shape and the type and never on the
//! number of threads. An output differs from the exact sum of the decoded weights by at most a
//! small multiple of `f32::EPSILON · Σ |w·x|`: the tests hold it against `f64` sums, type by type.

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

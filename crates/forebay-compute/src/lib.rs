//! Matrix products.
#![forbid(unsafe_code)]

mod decode;
mod dense;
mod direct;
mod error;
mod interleave;
mod machine;
mod product;
mod shape;
mod weights;

pub use decode::{can_decode, dequantize};
pub use error::{ComputeError, MatmulError, Operand};
pub use interleave::{Interleaved, matmul_interleaved};
pub use product::matmul;
pub use shape::Shape;
pub use weights::WeightBytes;

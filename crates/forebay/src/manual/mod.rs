//! Prose that belongs to the library: what is done with each kind of tensor, and why.

#[doc = include_str!("cpu.md")]
pub mod cpu {}

#[doc = include_str!("cuda.md")]
pub mod cuda {}

#[doc = include_str!("streaming.md")]
pub mod streaming {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("embedding.md")]
pub mod embedding {}

#[doc = include_str!("c.md")]
pub mod c {}

#[doc = include_str!("candle.md")]
pub mod candle {}

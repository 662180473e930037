//! Runs NVIDIA PTX on the processor, for tests: the very text that ships for GPUs, warp by warp,
//! in CI, without a GPU.
//!
//! ```text
//!   text ──lexer, parser──▶ syntax ──lower──▶ program (slots, row functions) ──run──▶ memory
//! ```
//!
//! - [`Module::parse`] reads a whole module and resolves every register, label and constant once;
//!   what it can't run is refused there, with line, column and cause.
//! - [`Module::launch`] runs a grid: blocks on several threads, the warps of a block in turn, 32
//!   lanes at a time. What a kernel does wrong is a [`Fault`] that names the PTX line, the
//!   instruction, block, thread and address.
//! - Global memory belongs to the caller, behind [`Memory`]; it is only ever touched through
//!   relaxed atomics, so kernels that race give odd numbers and never undefined behaviour.
//!
//! # Where it differs from a GPU
//!
//! - `mma` multiplies exactly and sums in f32 (integers: i32), `k` ascending, starting from `c`.
//!   Hardware sums in groups, with an order and a rounding of its own.
//! - Approximate functions (`ex2.approx`, `rsqrt.approx`, `div.full`, …) are computed in f64 and
//!   rounded once, so they are better than the hardware's.
//! - `cp.async` reads its source at once and writes shared memory only at the wait: a kernel that
//!   forgets the wait computes with what was there before.
//! - Registers, shared and local memory start out poisoned ([`POISON_BYTE`], a NaN in registers).
//! - A warp runs until it must wait. Only [`Limits::detect_races`] finds what that order hides.
//! - 64-bit atomics are atomic among each other, not towards plain stores of other blocks.

#![forbid(unsafe_code)]

mod error;
mod lower;
mod memory;
mod module;
mod numeric;
mod program;
mod run;
mod text;
mod types;

pub use error::{BlockThread, Fault, FaultKind, ParseError};
pub use memory::{Allocations, Memory, Region};
pub use module::{Entry, Module, Parameter, Variable};
pub use run::{Limits, Stats};

/// What shared and local memory hold before a kernel writes them.
pub const POISON_BYTE: u8 = 0xA5;

/// Global addresses must lie below: what is above are the interpreter's own windows of the
/// generic address space (shared, local, parameters, constants and variables of modules).
pub const GLOBAL_ADDRESS_END: u64 = 0xF000_0000_0000_0000;

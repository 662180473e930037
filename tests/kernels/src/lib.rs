//! The kernels of `kernels/`, launched from the PTX that is committed, on the interpreter of
//! `forebay-ptx`, and what their results should have been.

mod problem;
mod table;

pub use problem::{Expected, Layout, Problem};
pub use table::{Kernel, ROUNDED_COLUMNS, TABLE, Target, round_inputs};

//! Arithmetic on lanes, bit for bit: what one thread's value becomes.

pub(crate) mod formats;
pub(crate) mod integer;
pub(crate) mod lane;
pub(crate) mod rounding;

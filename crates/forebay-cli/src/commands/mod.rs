//! One module a command.

pub(crate) mod bench;
pub(crate) mod bench_kernels;
pub(crate) mod doctor;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod plan;
pub(crate) mod stream;
pub(crate) mod synth;
pub(crate) mod verify;

//! The parts of NVIDIA's cuBLASLt that products of dense matrices take, on top of the emulated
//! driver: objects here, their entry points in [`crate::api`].
//!
//! Products are exact: summed in `f64`, rounded once. They are performed in the order of their
//! stream, as launches are, and count and fail as launches do. What the library on a device would
//! take silently and answer with a fault, or with wrong numbers, is told as a violation here.

#![allow(clippy::cast_possible_truncation, reason = "sizes are of memory that there is")]

mod algorithm;
mod matrix;
mod product;
mod status;

pub(crate) use algorithm::{Algorithm, Found};
pub(crate) use matrix::{Element, Layout};
pub(crate) use product::{Operands, Product, Told, check};
pub(crate) use status::{Status, is_status, words};

use std::sync::Mutex;

/// Opens it on a device.
#[derive(Debug)]
pub(crate) struct Library {
    pub(crate) ordinal: usize,
}

/// What a caller makes, tells of, and gives to calls.
#[derive(Debug)]
pub(crate) enum Descriptor {
    Product(Mutex<Operation>),
    Layout(Layout),
    Preference(Mutex<Preference>),
}

/// Which of the operands are transposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) transposes_a: bool,
    pub(crate) transposes_b: bool,
}

/// What an algorithm may count on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    pub(crate) workspace_bytes: u64,
    /// Of what the addresses of A, B, C and D are multiples.
    pub(crate) alignments: [u32; 4],
}

impl Default for Preference {
    fn default() -> Self {
        Self { workspace_bytes: 0, alignments: [256; 4] }
    }
}

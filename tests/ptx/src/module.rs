//! A module: entries with their parameters, and the memory of its variables.
#![allow(clippy::cast_possible_truncation, reason = "variables are at most 64 MiB")]

use crate::error::{Fault, ParseError};
use crate::lower;
use crate::memory::{Memory, Region};
use crate::program::Program;
use crate::run::{self, Limits, Stats};
use crate::text;
use crate::types::{Space, VARIABLES_START};
use std::sync::atomic::AtomicU32;

/// A parsed module. It owns the memory of its `.global` and `.const` variables, which live as
/// long as it does: what a launch writes into them, the next one sees.
#[derive(Debug)]
pub struct Module {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) entries: Vec<Entry>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) global_words: Vec<AtomicU32>,
    pub(crate) constant_words: Vec<AtomicU32>,
    /// For the messages of faults.
    pub(crate) lines: Vec<String>,
}

/// A kernel.
#[derive(Debug)]
#[non_exhaustive]
pub struct Entry {
    /// As the text calls it.
    pub name: String,
    /// In the order of the text.
    pub parameters: Vec<Parameter>,
    /// How many bytes of parameters a launch hands over.
    pub parameter_bytes: usize,
    /// `.maxntid`: a launch with more threads is refused.
    pub block_max: Option<[u32; 3]>,
    /// `.reqntid`: a launch with another shape is refused.
    pub block_required: Option<[u32; 3]>,
    /// `.minnctapersm`, which nothing here depends on.
    pub blocks_per_multiprocessor_min: Option<u32>,
    /// Shared memory that is declared with a size, in bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread, in bytes.
    pub local_bytes: u32,
    pub(crate) program: Program,
}

impl Entry {
    /// How many virtual registers the text uses, predicates not counted.
    #[must_use]
    pub fn registers(&self) -> u32 {
        self.program.rows
    }
}

/// A kernel's parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parameter {
    /// As the text calls it.
    pub name: String,
    /// Where it begins in the bytes handed over at launch.
    pub offset: usize,
    /// Its size in bytes.
    pub bytes: usize,
    /// A power of two, in bytes.
    pub align: usize,
}

/// A `.global` or `.const` variable of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variable {
    /// As the text calls it.
    pub name: String,
    /// Its generic address: in the module's own windows, not in the caller's memory.
    pub address: u64,
    /// Its size in bytes.
    pub bytes: usize,
}

impl Module {
    /// Parses and resolves a whole module.
    ///
    /// # Errors
    /// What is no PTX, and what is PTX but can't be run here, with its place.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let source = text::parse(text)?;
        let lines = text.lines().map(|line| line.trim().to_owned()).collect();
        lower::module(&source, lines)
    }

    /// `.version`: major and minor.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`, such as `sm_80`.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The kernels, in the order of the text.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The kernel of that name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The variables, for `cuModuleGetGlobal`; their bytes are in [`region`](Self::region).
    #[must_use]
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The memory of the module's variables around a generic address, for copies to and from them.
    #[must_use]
    pub fn region(&self, address: u64) -> Option<Region<'_>> {
        let constants = Space::Constant.window();
        [(VARIABLES_START, &self.global_words), (constants, &self.constant_words)]
            .into_iter()
            .map(|(start, words)| Region { start, bytes: 4 * words.len() as u64, words })
            .find(|region| region.holds(address, 1))
    }

    /// Runs a kernel over a grid and returns when every thread has ended.
    ///
    /// `parameters` are the bytes of all parameters, each at its [`Parameter::offset`].
    ///
    /// # Errors
    /// A launch that can't be (no such entry, a wrong shape, too much shared memory, wrong
    /// parameters), or the first fault of the kernel; memory then holds what was written so far.
    #[allow(clippy::too_many_arguments, reason = "a launch is that many things")]
    pub fn launch(
        &self,
        entry: &str,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared_bytes: u32,
        parameters: &[u8],
        memory: &dyn Memory,
        limits: &Limits,
    ) -> Result<Stats, Fault> {
        let launch = run::Launch { grid, block, dynamic_shared_bytes, parameters, memory, limits };
        run::launch(self, entry, launch)
    }
}

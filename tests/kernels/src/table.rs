//! The table of kernels, and their modules.

use forebay_format::Dtype;
use forebay_ptx::{Fault, Limits, Memory, Module};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A row of `kernels/table.rs`.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in the module.
    pub entry: &'static str,
    /// The type of its weights, as `Dtype` is displayed.
    pub dtype: &'static str,
    /// The module's file in `kernels/ptx`.
    pub ptx: &'static str,
    /// The oldest architecture that can run the module, ten times its number.
    pub capability_min: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Rows of the weights that a block takes.
    pub rows: u32,
    /// Inputs that a block takes.
    pub columns: u32,
    /// The fewest inputs it is meant for.
    pub batch_min: u32,
    /// The most inputs it is meant for.
    pub batch_max: u32,
    /// Shared memory that the module declares.
    pub shared_bytes: u32,
    /// Shared memory that the launch has to ask for.
    pub dynamic_shared_bytes: u32,
    /// What its inputs are: `f32` as they come, or `bf16` or `f16`, made by [`round_inputs`].
    pub inputs: &'static str,
}

/// Columns of inputs that are not `f32` are padded with zeros to a multiple of this.
pub const ROUNDED_COLUMNS: usize = 128;

/// All kernels.
pub const TABLE: &[Kernel] = include!("../../../kernels/table.rs");

/// What PTX is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Target {
    /// `compute_75`
    Turing = 75,
    /// `compute_80`
    Ampere = 80,
}

impl Kernel {
    /// The kernels of a type for a target.
    pub fn of(dtype: Dtype, target: Target) -> impl Iterator<Item = &'static Self> {
        let dtype = dtype.to_string();
        let kernels = TABLE.iter().filter(move |kernel| kernel.dtype == dtype);
        kernels.filter(move |kernel| kernel.capability_min == target as u32)
    }

    /// Launches it over `rows` × `batch` outputs.
    ///
    /// # Errors
    /// What the kernel did wrong.
    ///
    /// # Panics
    /// If its module can't be read or parsed.
    pub fn launch(
        &self,
        [w, x, y]: [u64; 3],
        (rows, columns, row_bytes): (u32, u32, u64),
        batch: u32,
        memory: &dyn Memory,
        limits: &Limits,
    ) -> Result<(), Fault> {
        let mut parameters = Vec::new();
        for address in [w, x, y] {
            parameters.extend(address.to_le_bytes());
        }
        parameters.extend(rows.to_le_bytes());
        parameters.extend(columns.to_le_bytes());
        parameters.extend(row_bytes.to_le_bytes());
        parameters.extend(batch.to_le_bytes());
        let grid = [rows.div_ceil(self.rows), batch.div_ceil(self.columns), 1];
        let block = [self.threads, 1, 1];
        let module = self.module();
        let shared = self.dynamic_shared_bytes;
        module.launch(self.entry, grid, block, shared, &parameters, memory, limits).map(drop)
    }

    /// The parsed module.
    ///
    /// # Panics
    /// If it can't be read or parsed.
    #[must_use]
    pub fn module(&self) -> Arc<Module> {
        module(self.ptx)
    }
}

/// Launches the kernel that rounds `batch` inputs of `columns` floats at `x` to the type that a
/// kernel's [`inputs`](Kernel::inputs) name, at `rounded`.
///
/// # Errors
/// What the kernel did wrong.
///
/// # Panics
/// If its module can't be read or parsed.
pub fn round_inputs(
    inputs: &str,
    [x, rounded]: [u64; 2],
    columns: u32,
    batch: u32,
    memory: &dyn Memory,
    limits: &Limits,
) -> Result<(), Fault> {
    const THREADS: u32 = 256;
    let mut parameters = Vec::new();
    for address in [x, rounded] {
        parameters.extend(address.to_le_bytes());
    }
    parameters.extend(columns.to_le_bytes());
    // A thread takes two elements.
    let grid = [columns.next_multiple_of(128).div_ceil(2 * THREADS), batch, 1];
    let entry = format!("activations_{inputs}");
    let module = module("activations.compute_80.ptx");
    module.launch(&entry, grid, [THREADS, 1, 1], 0, &parameters, memory, limits).map(drop)
}

/// A parsed module of `kernels/ptx`, parsed once for all tests.
fn module(name: &'static str) -> Arc<Module> {
    static MODULES: OnceLock<Mutex<BTreeMap<&'static str, Arc<Module>>>> = OnceLock::new();
    let modules = MODULES.get_or_init(Mutex::default);
    let mut modules = modules.lock().unwrap_or_else(PoisonError::into_inner);
    let load = || {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx/");
        let text = std::fs::read_to_string(format!("{folder}{name}"));
        let text = text.unwrap_or_else(|error| panic!("{name}: {error}"));
        Arc::new(Module::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    Arc::clone(modules.entry(name).or_insert_with(load))
}

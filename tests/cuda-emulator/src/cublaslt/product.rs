//! A product: checked when it is asked for, performed in the stream's order.

use super::matrix::region;
use super::{Algorithm, Element, Layout, Operation, Status};
use crate::device::Device;
use crate::driver::driver;
use crate::error::{Answer, Code};
use crate::kernel_memory::KernelMemory;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What the workspace holds afterwards: nobody may count on it.
const POISON: u32 = 0xa5a5_a5a5;
/// The library wants its workspace at a multiple of this.
const WORKSPACE_ALIGNMENT: u64 = 256;

/// Where A, B, C and D begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) d: u64,
}

/// All that a caller tells of a product.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) operation: Operation,
    /// Of A, B, C and D.
    pub(crate) layouts: [Layout; 4],
    pub(crate) operands: Operands,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) workspace: Range<u64>,
}

/// A product that waits for its turn.
#[derive(Debug)]
pub(crate) struct Product {
    device: Arc<Device>,
    told: Told,
    /// The code with which it was told to fail.
    fault: Option<Code>,
}

impl Product {
    /// Takes a product that can be performed; tells what a caller must not ask for.
    pub(crate) fn ask(device: &Arc<Device>, told: Told) -> Answer<Self> {
        if let Err(reason) = told.check(device.ordinal) {
            driver().violation("cublaslt", format!("cublasLtMatmul: {reason}"));
            return Err(Status::INVALID_VALUE);
        }
        let fault = driver().behaviour().faults.kernel(device.ordinal);
        Ok(Self { device: Arc::clone(device), told, fault })
    }

    /// Performs it, if nothing has failed before it.
    pub(crate) fn perform(self) {
        let device = &self.device;
        if device.check().is_err() {
            return;
        }
        if let Some(code) = self.fault {
            return device.fail(code, "a product that was told to fail");
        }
        device.launches.fetch_add(1, Relaxed);
        if let Err(fault) = self.told.perform(&KernelMemory::of(device)) {
            let ordinal = device.ordinal;
            driver()
                .violation("kernel-fault", format!("device {ordinal}: cublasLtMatmul: {fault}"));
            device.fail(Code::ILLEGAL_ADDRESS, "a product reached outside its memory");
        }
    }
}

/// Whether a matrix is taken transposed, and its rows and columns then.
fn shape(layout: &Layout, is_transposed: bool) -> (u64, u64) {
    match is_transposed {
        true => (layout.columns, layout.rows),
        false => (layout.rows, layout.columns),
    }
}

/// What is wrong with a problem, whatever memory it is on.
pub(crate) fn check(operation: Operation, [a, b, c, d]: &[Layout; 4]) -> Result<(), String> {
    for (name, layout) in [("A", a), ("B", b), ("C", c), ("D", d)] {
        if layout.rows == 0 || layout.columns == 0 {
            return Err(format!("{name} is empty: {layout:?}"));
        }
        if layout.stride < layout.rows.cast_signed() {
            return Err(format!("columns of {name} overlap: {layout:?}"));
        }
    }
    let (rows, terms) = shape(a, operation.transposes_a);
    let (terms_of_b, columns) = shape(b, operation.transposes_b);
    if terms != terms_of_b || (rows, columns) != (d.rows, d.columns) || c != d {
        return Err(format!("shapes don't fit: A {a:?}, B {b:?}, C {c:?}, D {d:?}"));
    }
    if a.element != b.element || d.element != Element::F32 {
        return Err(format!(
            "no product of {:?} and {:?} to {:?}",
            a.element, b.element, d.element
        ));
    }
    Ok(())
}

impl Told {
    fn check(&self, ordinal: usize) -> Result<(), String> {
        check(self.operation, &self.layouts)?;
        let Operands { a, b, c, d } = self.operands;
        let algorithm = self.algorithm.ok_or("its algorithm is none that the heuristic found")?;
        if let Some(why) = algorithm.disagrees(ordinal, self.operation, self.layouts, [a, b, d]) {
            return Err(why);
        }
        if self.beta != 0.0 && !c.is_multiple_of(4) {
            return Err(format!("C is at {c:#x}"));
        }
        let Range { start, end } = self.workspace;
        if end - start < algorithm.workspace_bytes() {
            let wanted = algorithm.workspace_bytes();
            return Err(format!(
                "its algorithm wants {wanted} bytes to work in, not {}",
                end - start
            ));
        }
        if algorithm.workspace_bytes() > 0 && !start.is_multiple_of(WORKSPACE_ALIGNMENT) {
            return Err(format!("its workspace is at {start:#x}"));
        }
        Ok(())
    }

    fn perform(&self, memory: &KernelMemory) -> Result<(), String> {
        let [of_a, of_b, of_c, of_d] = self.layouts;
        let Operands { a, b, c, d } = self.operands;
        let (rows, terms) = shape(&of_a, self.operation.transposes_a);
        let (_, columns) = shape(&of_b, self.operation.transposes_b);
        let (a, b) = (of_a.read(a, memory)?, of_b.read(b, memory)?);
        // What is multiplied by zero is not read.
        let c = if self.beta == 0.0 { Vec::new() } else { of_c.read(c, memory)? };
        let place = |layout: &Layout, is_transposed: bool, row: u64, column: u64| {
            let (row, column) = if is_transposed { (column, row) } else { (row, column) };
            (column * layout.rows + row) as usize
        };
        let mut results = Vec::new();
        for column in 0..columns {
            for row in 0..rows {
                let mut sum = 0.0;
                for term in 0..terms {
                    let a = a[place(&of_a, self.operation.transposes_a, row, term)];
                    sum += a * b[place(&of_b, self.operation.transposes_b, term, column)];
                }
                let added = c.get(results.len()).map_or(0.0, |c| c * f64::from(self.beta));
                #[allow(clippy::cast_possible_truncation, reason = "results are rounded")]
                results.push((sum * f64::from(self.alpha) + added) as f32);
            }
        }
        let needed = self.algorithm.map_or(0, |algorithm| algorithm.workspace_bytes());
        if needed > 0 {
            let start = self.workspace.start;
            let workspace = region(memory, start, self.workspace.end - start)?;
            let first = ((start - workspace.start) / 4) as usize;
            let words = &workspace.words[first..first + (needed / 4) as usize];
            words.iter().for_each(|word| word.store(POISON, Relaxed));
        }
        of_d.write(d, &results, memory)
    }
}

//! A product as the library makes it: its shape, and the algorithm that the library chose for it.

use super::super::choice::Operand;
use super::super::error::LibraryRefusal;
use super::super::stream::Stream;
use super::WORKSPACE_BYTES;
use super::descriptors::{Layout, Preference, Product};
use super::library::Library;
use cudarc::cublaslt::sys::{
    cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t, cublasStatus_t,
};
use std::ffi::{c_int, c_void};
use std::mem::offset_of;

/// Memory of a device is allocated at multiples of this.
const ALIGNMENT_MAX: u32 = 256;

/// All that an algorithm is chosen by, beside the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Shape {
    operand: Operand,
    /// Elements of an output, and of an input.
    rows: u32,
    columns: u32,
    batch: u32,
    /// Elements from one input to the next.
    inputs_stride: u32,
    /// Of what the weights' address is a multiple.
    weights_alignment: u32,
}

impl Shape {
    /// Of a product of weights at that address with `batch` inputs.
    pub(in super::super) fn new(
        operand: Operand,
        (rows, columns): (u32, u32),
        batch: u32,
        inputs_stride: u32,
        weights: u64,
    ) -> Self {
        let power = weights.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros());
        Self { operand, rows, columns, batch, inputs_stride, weights_alignment: 1 << power }
    }
}

/// What the library answers about an algorithm. In the bindings, the state is a Rust enum, for which
/// a code that a newer library has added would be undefined behaviour.
#[derive(Debug)]
#[repr(C)]
struct Found {
    algorithm: cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
    state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

impl Found {
    const NOTHING: Self = Self {
        algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
        workspace_bytes: 0,
        state: 0,
        waves: 0.0,
        reserved: [0; 4],
    };
}

const _: () = {
    use cublasLtMatmulHeuristicResult_t as Bound;
    assert!(size_of::<Found>() == size_of::<Bound>());
    assert!(offset_of!(Found, workspace_bytes) == offset_of!(Bound, workspaceSize));
    assert!(offset_of!(Found, state) == offset_of!(Bound, state));
};

/// What the library is told to do.
#[derive(Debug)]
pub(in super::super) struct Plan {
    library: &'static Library,
    product: Product,
    weights: Layout,
    inputs: Layout,
    outputs: Layout,
    algorithm: cublasLtMatmulAlgo_t,
    /// What it asks for beside the operands; at most [`WORKSPACE_BYTES`].
    pub(in super::super) workspace_bytes: usize,
}

impl Plan {
    /// The library's first choice; the device's context is current. `None` where it has none.
    pub(super) fn new(
        library: &'static Library,
        handle: cublasLtHandle_t,
        shape: Shape,
    ) -> Result<Option<Self>, LibraryRefusal> {
        let Shape { operand, rows, columns, batch, inputs_stride, weights_alignment } = shape;
        let product = Product::new(library)?;
        let weights = Layout::new(library, operand, columns, rows, columns)?;
        let inputs = Layout::new(library, operand, columns, batch, inputs_stride)?;
        let outputs = Layout::new(library, Operand::F32, rows, batch, rows)?;
        let mut preference = Preference::new(library)?;
        preference.workspace_bytes(WORKSPACE_BYTES as u64)?;
        preference.weights_alignment(weights_alignment)?;
        let mut found = Found::NOTHING;
        let mut count = 0;
        // SAFETY: the handle lives as long as the context that the caller holds, the descriptors as
        // long as this frame; writes at most one result and a number to variables of it.
        let code = unsafe {
            (library.calls.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                product.handle(),
                weights.handle(),
                inputs.handle(),
                outputs.handle(),
                outputs.handle(),
                preference.handle(),
                1,
                (&raw mut found).cast(),
                &raw mut count,
            )
        };
        if code == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as u32 || code == 0 && count < 1 {
            return Ok(None);
        }
        library.check("cublasLtMatmulAlgoGetHeuristic", code)?;
        let Found { algorithm, workspace_bytes, state, .. } = found;
        if state != 0 || workspace_bytes > WORKSPACE_BYTES {
            return Ok(None);
        }
        Ok(Some(Self { library, product, weights, inputs, outputs, algorithm, workspace_bytes }))
    }

    /// The library's version, major and minor.
    pub(in super::super) fn version(&self) -> (u32, u32) {
        self.library.version
    }

    /// Queues the product of weights and inputs at these addresses.
    ///
    /// # Safety
    /// - The handle is of the library and of the stream's device, whose context is current.
    /// - The addresses are of weights, inputs and outputs of the plan's shape; with the workspace,
    ///   which has as many bytes as the plan asks for, they are on the device, nobody else writes
    ///   them, and their owners keep them until the stream has come past the product.
    pub(super) unsafe fn queue(
        &self,
        handle: cublasLtHandle_t,
        [weights, inputs, outputs]: [u64; 3],
        workspace: u64,
        stream: &Stream,
    ) -> Result<(), LibraryRefusal> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: the caller's promise for what is on the device; factors, descriptors and
        // algorithm live in this frame or in `self` while the call lasts, which is as long as the
        // library reads them. What is multiplied by zero is not read.
        let code = unsafe {
            (self.library.calls.cublasLtMatmul)(
                handle,
                self.product.handle(),
                (&raw const one).cast(),
                at(weights),
                self.weights.handle(),
                at(inputs),
                self.inputs.handle(),
                (&raw const zero).cast(),
                at(outputs),
                self.outputs.handle(),
                at(outputs),
                self.outputs.handle(),
                &raw const self.algorithm,
                at(workspace),
                self.workspace_bytes,
                stream.handle().cast(),
            )
        };
        self.library.check("cublasLtMatmul", code)
    }
}

/// An address of a device in the place of a pointer: nobody follows it here.
fn at(address: u64) -> *mut c_void {
    let address = usize::try_from(address).expect("machines with CUDA have 64 bits");
    std::ptr::without_provenance_mut(address)
}

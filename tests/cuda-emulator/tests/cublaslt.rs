//! cuBLASLt: products in the order of their stream, and what must not be asked of it.
//!
//! It is looked for by its name, so every test has a process of its own.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every call is of the emulated library, which checks what it is given"
)]

mod common;

use common::{Context, OK, allocate, download, free, stream, upload};
use cudarc::cublaslt::sys::{self, cublasStatus_t as Status};
use cudarc::driver::result;
use cudarc::driver::sys::CUstream;
use forebay_cuda_emulator::Emulator;
use std::ffi::c_void;
use std::ptr::null_mut;

const DONE: Status = Status::CUBLAS_STATUS_SUCCESS;
const INVALID: Status = Status::CUBLAS_STATUS_INVALID_VALUE;
const ROWS: u64 = 5;
const TERMS: u64 = 300;
const COLUMNS: u64 = 3;

fn emulator() -> Emulator {
    Emulator::new().cublaslt(13, 1)
}

fn create() -> Result<sys::cublasLtHandle_t, Status> {
    let mut handle = null_mut();
    match unsafe { sys::cublasLtCreate(&raw mut handle) } {
        DONE => Ok(handle),
        status => Err(status),
    }
}

fn layout(rows: u64, columns: u64, stride: i64) -> sys::cublasLtMatrixLayout_t {
    let mut layout = null_mut();
    let element = sys::cudaDataType_t::CUDA_R_32F;
    let made =
        unsafe { sys::cublasLtMatrixLayoutCreate(&raw mut layout, element, rows, columns, stride) };
    assert_eq!(made, DONE);
    layout
}

/// D = Aᵀ·B in `f32`, ROWS × COLUMNS of TERMS terms.
struct Product {
    handle: sys::cublasLtHandle_t,
    operation: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    found: sys::cublasLtMatmulHeuristicResult_t,
    /// A, B, D and room to work in, of as many bytes as it asks for.
    memory: [u64; 4],
    stream: CUstream,
}

impl Product {
    fn new() -> Self {
        let handle = create().unwrap();
        let mut operation = null_mut();
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = sys::cudaDataType_t::CUDA_R_32F;
        let made = unsafe { sys::cublasLtMatmulDescCreate(&raw mut operation, compute, scale) };
        assert_eq!(made, DONE);
        let transposed = 1_i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        let value = (&raw const transposed).cast();
        let set = |bytes| unsafe {
            sys::cublasLtMatmulDescSetAttribute(operation, attribute, value, bytes)
        };
        assert_eq!((set(8), set(4)), (INVALID, DONE));
        let layouts = [
            layout(TERMS, ROWS, TERMS.cast_signed()),
            layout(TERMS, COLUMNS, TERMS.cast_signed()),
            layout(ROWS, COLUMNS, ROWS.cast_signed()),
        ];
        let found = find(handle, operation, layouts, 32 << 20).unwrap();
        assert!(found.workspaceSize > 0, "long sums are split");
        let bytes = |rows: u64, columns: u64| usize::try_from(rows * columns * 4).unwrap();
        let memory = [
            allocate(bytes(TERMS, ROWS)),
            allocate(bytes(TERMS, COLUMNS)),
            allocate(bytes(ROWS, COLUMNS)),
            allocate(found.workspaceSize),
        ];
        Self { handle, operation, layouts, found, memory, stream: stream() }
    }

    fn queue(&self) -> Status {
        self.queue_with(self.memory, self.found.workspaceSize)
    }

    fn queue_with(&self, [a, b, d, workspace]: [u64; 4], workspace_bytes: usize) -> Status {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let at = |address: u64| address as *mut c_void;
        let [of_a, of_b, of_d] = self.layouts;
        unsafe {
            sys::cublasLtMatmul(
                self.handle,
                self.operation,
                (&raw const one).cast(),
                at(a),
                of_a,
                at(b),
                of_b,
                (&raw const zero).cast(),
                at(d),
                of_d,
                at(d),
                of_d,
                &raw const self.found.algo,
                at(workspace),
                workspace_bytes,
                self.stream.cast(),
            )
        }
    }

    /// Gives all of it back.
    fn end(self) {
        unsafe { result::stream::destroy(self.stream) }.unwrap();
        self.memory.into_iter().for_each(free);
        for layout in self.layouts {
            assert_eq!(unsafe { sys::cublasLtMatrixLayoutDestroy(layout) }, DONE);
            assert_eq!(unsafe { sys::cublasLtMatrixLayoutDestroy(layout) }, INVALID);
        }
        assert_eq!(unsafe { sys::cublasLtMatmulDescDestroy(self.operation) }, DONE);
        assert_eq!(unsafe { sys::cublasLtDestroy(self.handle) }, DONE);
        assert_eq!(Emulator::report().cublaslt_objects, 0);
    }
}

fn find(
    handle: sys::cublasLtHandle_t,
    operation: sys::cublasLtMatmulDesc_t,
    [a, b, d]: [sys::cublasLtMatrixLayout_t; 3],
    workspace_bytes: u64,
) -> Result<sys::cublasLtMatmulHeuristicResult_t, Status> {
    use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let mut preference = null_mut();
    assert_eq!(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) }, DONE);
    let attribute = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    let value = (&raw const workspace_bytes).cast();
    let set = unsafe { sys::cublasLtMatmulPreferenceSetAttribute(preference, attribute, value, 8) };
    assert_eq!(set, DONE);
    let mut found = sys::cublasLtMatmulHeuristicResult_t {
        algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspaceSize: 0,
        state: DONE,
        wavesCount: 0.0,
        reserved: [0; 4],
    };
    let mut count = 0;
    let (room, count_at) = (&raw mut found, &raw mut count);
    let status = unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle, operation, a, b, d, d, preference, 1, room, count_at,
        )
    };
    assert_eq!(unsafe { sys::cublasLtMatmulPreferenceDestroy(preference) }, DONE);
    if status == DONE {
        assert_eq!(count, 1);
        return Ok(found);
    }
    Err(status)
}

fn numbers(count: u64) -> Vec<f32> {
    #[allow(clippy::cast_precision_loss, reason = "small")]
    let number = |at: u64| ((at * 7 + 3) % 11) as f32 - 5.0;
    (0..count).map(number).collect()
}

#[test]
fn a_product_is_made_between_two_copies() {
    let emulator = emulator().stall_copy(0, 20);
    if !emulator.in_own_process("a_product_is_made_between_two_copies") {
        return;
    }
    let _context = Context::of(0);
    assert_eq!(unsafe { sys::cublasLtGetVersion() }, 130_100);
    let product = Product::new();
    let (a, b) = (numbers(TERMS * ROWS), numbers(TERMS * COLUMNS));
    for (to, from) in product.memory.into_iter().zip([&a, &b]) {
        assert_eq!(upload(to, from.as_ptr().cast(), size_of_val(&from[..]), product.stream), OK);
    }
    let launches = Emulator::report().devices[0].launches;
    assert_eq!(product.queue(), DONE);
    unsafe { result::stream::synchronize(product.stream) }.unwrap();
    assert_eq!(Emulator::report().devices[0].launches, launches + 1);
    let d = download(product.memory[2], usize::try_from(ROWS * COLUMNS * 4).unwrap());
    let d = d.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    let terms = usize::try_from(TERMS).unwrap();
    let expected = b.chunks(terms).flat_map(|b| {
        a.chunks(terms).map(move |a| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>())
    });
    assert!(d.eq(expected), "whole numbers are exact");
    // Nobody may count on what is in the workspace.
    assert!(download(product.memory[3], 64).iter().all(|byte| *byte == 0xa5));
    product.end();
    assert_eq!(Emulator::report().violation_count(), 0);
}

#[test]
fn what_must_not_be_asked_is_refused_and_told() {
    if !emulator().in_own_process("what_must_not_be_asked_is_refused_and_told") {
        return;
    }
    let _context = Context::of(0);
    let mut product = Product::new();
    let ([a, b, d, workspace], bytes) = (product.memory, product.found.workspaceSize);
    let told = || Emulator::report().violation_messages.last().cloned().unwrap_or_default();
    for (memory, bytes, words) in [
        ([a, b, d, workspace], bytes - 1, "bytes to work in"),
        ([a, b, d, workspace + 16], bytes, "its workspace is at"),
        ([a + 4, b, d, workspace], bytes, "wants A at a multiple of 256"),
        ([a, b + 128, d, workspace], bytes, "wants B at a multiple of 256"),
    ] {
        assert_eq!(product.queue_with(memory, bytes), INVALID, "{words}");
        assert!(told().contains(words), "{}, not {words}", told());
    }
    let fitting = product.layouts;
    let others = [
        (0, layout(TERMS, ROWS, 299), "columns of A overlap"),
        (1, layout(TERMS - 1, COLUMNS, 300), "shapes don't fit"),
        (2, layout(ROWS, COLUMNS, 8), "its algorithm is for another problem"),
    ];
    for (place, other, words) in others {
        product.layouts[place] = other;
        assert_eq!(product.queue(), INVALID, "{words}");
        assert!(told().contains(words), "{}, not {words}", told());
        product.layouts = fitting;
        assert_eq!(unsafe { sys::cublasLtMatrixLayoutDestroy(other) }, DONE);
    }
    let algorithm = std::mem::take(&mut product.found.algo.data);
    assert_eq!(product.queue(), INVALID);
    assert!(told().contains("none that the heuristic found"), "{}", told());
    product.found.algo.data = algorithm;
    assert_eq!(Emulator::report().violations_of("cublaslt"), 8);
    assert_eq!(product.queue(), DONE);
    product.end();
}

#[test]
fn a_product_that_reaches_outside_its_memory_ends_the_context() {
    let emulator = emulator();
    if !emulator.in_own_process("a_product_that_reaches_outside_its_memory_ends_the_context") {
        return;
    }
    let _context = Context::of(0);
    let product = Product::new();
    let small = allocate(256);
    let [_, b, d, workspace] = product.memory;
    // Refused only when it is made, as a kernel would be.
    let memory = [small, b, d, workspace];
    assert_eq!(product.queue_with(memory, product.found.workspaceSize), DONE);
    assert!(unsafe { result::stream::synchronize(product.stream) }.is_err());
    let report = Emulator::report();
    assert_eq!(report.violations_of("kernel-fault"), 1);
    assert_eq!(report.devices[0].asynchronous_error, Some(700));
    assert_eq!(product.queue(), Status::CUBLAS_STATUS_EXECUTION_FAILED);
    emulator.install();
    free(small);
    product.end();
}

#[test]
fn it_fails_as_it_is_told_to() {
    if !emulator().in_own_process("it_fails_as_it_is_told_to") {
        return;
    }
    assert_eq!(create(), Err(Status::CUBLAS_STATUS_NOT_INITIALIZED), "no context is current");
    let _context = Context::of(0);
    emulator().fail_call("cublasLtCreate", 1, 3).install();
    assert_eq!(create(), Err(Status::CUBLAS_STATUS_ALLOC_FAILED));
    Emulator::new().install();
    assert_eq!(create(), Err(Status::CUBLAS_STATUS_NOT_INITIALIZED), "it is not installed");
    emulator().install();
    let product = Product::new();
    emulator().fail_call("cublasLtMatmul", 2, 14).install();
    assert_eq!(product.queue(), DONE);
    assert_eq!(product.queue(), Status::CUBLAS_STATUS_INTERNAL_ERROR);
    emulator().fail_call("cublasLtMatmulAlgoGetHeuristic", 1, 15).install();
    let found = find(product.handle, product.operation, product.layouts, 0);
    assert_eq!(found, Err(Status::CUBLAS_STATUS_NOT_SUPPORTED));
    let found = find(product.handle, product.operation, product.layouts, 0);
    assert_eq!(found.unwrap().workspaceSize, 0, "it does with what it may have");
    product.end();
}

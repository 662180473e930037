//! What the library is told of a product: objects of its own in the machine's memory, which it
//! reads while a call lasts.

use super::super::choice::Operand;
use super::super::error::LibraryRefusal;
use super::library::Library;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t,
    cudaDataType_t,
};

/// `CUBLAS_OP_T`, of an enum that the bindings leave to another library.
const TRANSPOSED: i32 = 1;

macro_rules! descriptor {
    ($(#[$note:meta])* $name:ident($handle:ty) $destroy:ident) => {
        $(#[$note])*
        #[derive(Debug)]
        pub(super) struct $name {
            library: &'static Library,
            handle: $handle,
        }

        impl $name {
            pub(super) fn handle(&self) -> $handle {
                self.handle
            }
        }

        // SAFETY: an object of the library belongs to the process, not to a thread, and is valid
        // until `drop`.
        unsafe impl Send for $name {}
        // SAFETY: as above; once it is made, calls only read it.
        unsafe impl Sync for $name {}

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: created by `new`, destroyed once; no call that reads it is under way,
                // since those borrow `self`.
                unsafe { (self.library.calls.$destroy)(self.handle) };
            }
        }
    };
}

descriptor! {
    /// Which operation: the first operand transposed, sums in `f32`.
    Product(cublasLtMatmulDesc_t) cublasLtMatmulDescDestroy
}
descriptor! {
    /// Where a matrix' elements lie.
    Layout(cublasLtMatrixLayout_t) cublasLtMatrixLayoutDestroy
}
descriptor! {
    /// What an algorithm may count on.
    Preference(cublasLtMatmulPreference_t) cublasLtMatmulPreferenceDestroy
}

impl Product {
    pub(super) fn new(library: &'static Library) -> Result<Self, LibraryRefusal> {
        let mut handle = std::ptr::null_mut();
        // Not the compute types that round `f32` to less.
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = cudaDataType_t::CUDA_R_32F;
        // SAFETY: writes one handle to a variable of this frame.
        let code =
            unsafe { (library.calls.cublasLtMatmulDescCreate)(&raw mut handle, compute, scale) };
        library.check("cublasLtMatmulDescCreate", code)?;
        let product = Self { library, handle };
        let transposed = TRANSPOSED;
        // SAFETY: the attribute is a number of 32 bits, read from a variable of this frame.
        let code = unsafe {
            (library.calls.cublasLtMatmulDescSetAttribute)(
                handle,
                cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        };
        library.check("cublasLtMatmulDescSetAttribute", code)?;
        Ok(product)
    }
}

impl Layout {
    /// `count` vectors of `length` elements, each vector contiguous, `stride` elements from one to
    /// the next. The library calls vectors columns.
    pub(super) fn new(
        library: &'static Library,
        operand: Operand,
        length: u32,
        count: u32,
        stride: u32,
    ) -> Result<Self, LibraryRefusal> {
        let element = match operand {
            Operand::F32 => cudaDataType_t::CUDA_R_32F,
            Operand::F16 => cudaDataType_t::CUDA_R_16F,
            Operand::Bf16 => cudaDataType_t::CUDA_R_16BF,
        };
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle to a variable of this frame.
        let code = unsafe {
            (library.calls.cublasLtMatrixLayoutCreate)(
                &raw mut handle,
                element,
                length.into(),
                count.into(),
                stride.into(),
            )
        };
        library.check("cublasLtMatrixLayoutCreate", code)?;
        Ok(Self { library, handle })
    }
}

impl Preference {
    pub(super) fn new(library: &'static Library) -> Result<Self, LibraryRefusal> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle to a variable of this frame.
        let code = unsafe { (library.calls.cublasLtMatmulPreferenceCreate)(&raw mut handle) };
        library.check("cublasLtMatmulPreferenceCreate", code)?;
        Ok(Self { library, handle })
    }

    /// How many bytes an algorithm may ask for beside the operands.
    pub(super) fn workspace_bytes(&mut self, bytes: u64) -> Result<(), LibraryRefusal> {
        use cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is a number of 64 bits.
        unsafe { self.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes) }
    }

    /// Of what the weights' address is a multiple; all else begins at multiples of 256 bytes, as
    /// the library takes it to if nothing is said.
    pub(super) fn weights_alignment(&mut self, bytes: u32) -> Result<(), LibraryRefusal> {
        use cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
        // SAFETY: the attribute is a number of 32 bits.
        unsafe { self.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &bytes) }
    }

    /// # Safety
    /// The attribute is a `T`.
    unsafe fn set<T>(
        &mut self,
        attribute: cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), LibraryRefusal> {
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the caller's promise; it is read while the call lasts.
        let code = unsafe {
            (self.library.calls.cublasLtMatmulPreferenceSetAttribute)(
                self.handle,
                attribute,
                value,
                size_of::<T>(),
            )
        };
        self.library.check("cublasLtMatmulPreferenceSetAttribute", code)
    }
}

//! What the library answers: a `cublasStatus_t`.

use crate::error::Code;
use std::ffi::CStr;

/// The library's own codes, in the place of the driver's.
pub(crate) struct Status;

macro_rules! statuses {
    ($($number:literal $name:ident $cublas:literal $words:literal;)*) => {
        #[allow(dead_code, reason = "the table is the library's, whichever of it is used")]
        impl Status {
            $(pub(crate) const $name: Code = Code($number);)*
        }

        /// Name and description of a code.
        pub(crate) fn words(code: u32) -> (&'static CStr, &'static CStr) {
            match code {
                0 => (c"CUBLAS_STATUS_SUCCESS", c"success"),
                $($number => ($cublas, $words),)*
                _ => (c"unrecognized status", c"unrecognized status"),
            }
        }

        /// Whether a code is one of the library's failures.
        pub(crate) fn is_status(code: u32) -> bool {
            matches!(code, $($number)|*)
        }
    };
}

statuses! {
    1 NOT_INITIALIZED c"CUBLAS_STATUS_NOT_INITIALIZED" c"the library was not initialized";
    3 ALLOC_FAILED c"CUBLAS_STATUS_ALLOC_FAILED" c"the resource allocation failed";
    7 INVALID_VALUE c"CUBLAS_STATUS_INVALID_VALUE"
        c"an unsupported value or parameter was passed to the function";
    8 ARCH_MISMATCH c"CUBLAS_STATUS_ARCH_MISMATCH"
        c"the function requires an architectural feature absent from the device";
    11 MAPPING_ERROR c"CUBLAS_STATUS_MAPPING_ERROR" c"an access to GPU memory space failed";
    13 EXECUTION_FAILED c"CUBLAS_STATUS_EXECUTION_FAILED"
        c"the function failed to launch on the GPU";
    14 INTERNAL_ERROR c"CUBLAS_STATUS_INTERNAL_ERROR" c"an internal operation failed";
    15 NOT_SUPPORTED c"CUBLAS_STATUS_NOT_SUPPORTED"
        c"the requested functionality is not supported";
    16 LICENSE_ERROR c"CUBLAS_STATUS_LICENSE_ERROR" c"the license check failed";
}

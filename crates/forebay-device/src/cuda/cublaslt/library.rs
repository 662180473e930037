//! NVIDIA's library: found at run time, its functions looked up once, as the driver's are.
//!
//! Its own major version is in its file's name. One that is newer than the driver's CUDA does not
//! run on it, so it is not looked for.

use super::super::driver::{Driver, has_mark};
use super::super::error::LibraryRefusal;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t, cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasStatus_t, cudaDataType_t,
    cudaStream_t,
};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

/// The versions whose functions are known to be these.
const MAJORS: [u32; 3] = [13, 12, 11];

macro_rules! library_calls {
    ($($name:ident($($argument:ty),*) -> $bound:ty as $answer:ty;)*) => {
        /// The functions of the library that are used.
        #[derive(Debug)]
        #[allow(non_snake_case, reason = "the library's names")]
        pub(super) struct Calls {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $answer,)*
        }

        // The arguments are those of the bindings, or this does not compile.
        $(const _: unsafe fn($($argument),*) -> $bound = sys::$name;)*

        impl Calls {
            /// Looks all of them up, or names the one that is missing.
            fn look_up(file: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    $($name: {
                        // SAFETY: the type is that of the bindings but for the result, a C enum,
                        // which is an unsigned number of 32 bits.
                        let found = unsafe {
                            file.get::<unsafe extern "C" fn($($argument),*) -> $answer>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                        };
                        *found.map_err(|_| stringify!($name))?
                    },)*
                })
            }
        }
    };
}

library_calls! {
    cublasLtGetVersion() -> usize as usize;
    cublasLtGetStatusName(cublasStatus_t) -> *const c_char as *const c_char;
    cublasLtGetStatusString(cublasStatus_t) -> *const c_char as *const c_char;
    cublasLtCreate(*mut cublasLtHandle_t) -> cublasStatus_t as u32;
    cublasLtDestroy(cublasLtHandle_t) -> cublasStatus_t as u32;
    cublasLtMatmulDescCreate(*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType_t)
        -> cublasStatus_t as u32;
    cublasLtMatmulDescSetAttribute(
        cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, *const c_void, usize
    ) -> cublasStatus_t as u32;
    cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t) -> cublasStatus_t as u32;
    cublasLtMatrixLayoutCreate(*mut cublasLtMatrixLayout_t, cudaDataType_t, u64, u64, i64)
        -> cublasStatus_t as u32;
    cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t) -> cublasStatus_t as u32;
    cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t) -> cublasStatus_t as u32;
    cublasLtMatmulPreferenceSetAttribute(
        cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, *const c_void, usize
    ) -> cublasStatus_t as u32;
    cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) -> cublasStatus_t as u32;
    cublasLtMatmulAlgoGetHeuristic(
        cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, c_int,
        *mut cublasLtMatmulHeuristicResult_t, *mut c_int
    ) -> cublasStatus_t as u32;
    cublasLtMatmul(
        cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void,
        cublasLtMatrixLayout_t, *const c_void, cublasLtMatrixLayout_t, *const c_void,
        *const c_void, cublasLtMatrixLayout_t, *mut c_void, cublasLtMatrixLayout_t,
        *const cublasLtMatmulAlgo_t, *mut c_void, usize, cudaStream_t
    ) -> cublasStatus_t as u32;
}

/// The library, opened for good.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) calls: Calls,
    /// Major and minor.
    pub(super) version: (u32, u32),
    /// Never closed: the functions above are in it.
    _file: libloading::Library,
}

impl Library {
    /// The library of this machine, looked for until it is found; else why there is none that
    /// serves.
    pub(super) fn get(driver: &Driver) -> Result<&'static Self, Arc<str>> {
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        if let Some(library) = LIBRARY.get() {
            return Ok(library);
        }
        // Two threads that come here at once both open it: then it is open twice, to no harm.
        let library = Self::open(driver)?;
        Ok(LIBRARY.get_or_init(|| library))
    }

    fn open(driver: &Driver) -> Result<Self, Arc<str>> {
        let newest = driver.version();
        let names = MAJORS.iter().filter(|major| **major <= newest.0);
        let names: Vec<String> = names.map(|major| format!("libcublasLt.so.{major}")).collect();
        let mut why = None;
        for name in &names {
            match Self::open_one(name, driver) {
                Ok(library) => return Ok(library),
                // What is there and does not serve says more than what is not there.
                Err(reason) if why.is_none() && !reason.contains("No such file") => {
                    why = Some(reason.into());
                }
                Err(_) => {}
            }
        }
        Err(why.unwrap_or_else(|| {
            let (major, minor) = newest;
            let names = names.join(", ");
            format!("it is not installed (a driver for CUDA {major}.{minor} takes {names})").into()
        }))
    }

    fn open_one(name: &str, driver: &Driver) -> Result<Self, String> {
        // SAFETY: its initialisers are the library's own.
        let file = unsafe { libloading::Library::new(name) }.map_err(|error| {
            // The loader's own words are the cause; they begin with the name.
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        })?;
        // Addresses of the tests' emulated driver mean nothing to NVIDIA's library, nor the other
        // way round.
        if has_mark(&file) != driver.is_emulated() {
            return Err(format!("{name} is of another driver than the one that is used"));
        }
        let calls = Calls::look_up(&file).map_err(|missing| format!("{name} has no {missing}"))?;
        // SAFETY: takes nothing, and answers a number.
        let version = unsafe { (calls.cublasLtGetVersion)() };
        // 10000 × major + 100 × minor + patch.
        let number = |value: usize| u32::try_from(value).unwrap_or(0);
        let version = (number(version / 10_000), number(version / 100 % 100));
        Ok(Self { calls, version, _file: file })
    }

    /// What the answer of `call` means.
    pub(super) fn check(&self, call: &'static str, code: u32) -> Result<(), LibraryRefusal> {
        if code == cublasStatus_t::CUBLAS_STATUS_SUCCESS as u32 {
            return Ok(());
        }
        let name = self.describe(self.calls.cublasLtGetStatusName, code);
        let text = self.describe(self.calls.cublasLtGetStatusString, code);
        Err(LibraryRefusal { call, code, message: format!("{name}: {text}").into() })
    }

    fn describe(
        &self,
        ask: unsafe extern "C" fn(cublasStatus_t) -> *const c_char,
        code: u32,
    ) -> String {
        // SAFETY: the same function, taking the plain number that its C enum is: there may be no
        // such variant in the bindings.
        let ask = unsafe {
            std::mem::transmute::<
                unsafe extern "C" fn(cublasStatus_t) -> *const c_char,
                unsafe extern "C" fn(u32) -> *const c_char,
            >(ask)
        };
        // SAFETY: takes a number.
        let text = unsafe { ask(code) };
        if text.is_null() {
            return "unknown to the library".to_owned();
        }
        // SAFETY: a string of the library's, which lives as long as it does, and so as the process.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

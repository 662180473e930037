//! The driver's library: found at run time, its functions looked up once.
//!
//! cudarc opens the library and brings the types. Its own functions look each symbol up at the
//! first call and panic where it is missing, and their results are a Rust enum, for which a code
//! that a newer driver has added would be undefined behaviour. So the functions are looked up here,
//! all before the first is called, and answer plain numbers; their arguments are checked against
//! cudarc's bindings when this is compiled.

use super::error::{DriverRefusal, Unavailable};
use cudarc::driver::sys::{
    self, CUDA_MEMCPY2D, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUjit_option, CUmodule, CUpointer_attribute, CUresult, CUstream,
    CUstreamCaptureMode,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// The oldest driver that takes what this project brings (PTX 8.0): CUDA 12.0, driver 525.
const VERSION_MIN: u32 = 12_000;
/// A symbol that only the emulated driver of the tests has.
const EMULATOR_MARK: &[u8] = b"forebay_cuda_emulator\0";

/// The binding of a function: that of the same name, or of a newer version of it with the same
/// arguments.
macro_rules! binding {
    ($name:ident) => {
        sys::$name
    };
    ($name:ident $binding:ident) => {
        sys::$binding
    };
}

macro_rules! driver_calls {
    ($($name:ident $(like $binding:ident)? ($($argument:ty),*);)*) => {
        /// The functions of the driver that are used.
        #[derive(Debug)]
        #[allow(non_snake_case, reason = "the driver's names")]
        pub(super) struct Calls {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> u32,)*
        }

        // The arguments are those of the bindings, or this does not compile.
        $(const _: unsafe fn($($argument),*) -> CUresult = binding!($name $($binding)?);)*

        impl Calls {
            /// Looks all of them up.
            fn look_up() -> Result<Self, Unavailable> {
                // SAFETY: the library is there (`load` has asked), so this opens it for good; its
                // initialisers are the driver's own.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($name: {
                        let symbol = stringify!($name);
                        // SAFETY: the type is that of the bindings but for the result, a C enum,
                        // which is an unsigned number of 32 bits.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> u32>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                        };
                        *found.map_err(|_| Unavailable::MissingSymbol { symbol })?
                    },)*
                })
            }
        }
    };
}

driver_calls! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(CUresult, *mut *const c_char);
    cuGetErrorString(CUresult, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuCtxSynchronize();
    cuThreadExchangeStreamCaptureMode(*mut CUstreamCaptureMode);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
    cuPointerGetAttribute(*mut c_void, CUpointer_attribute, CUdeviceptr);
    cuMemGetAddressRange_v2(*mut CUdeviceptr, *mut usize, CUdeviceptr);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuMemcpy2DAsync_v2(*const CUDA_MEMCPY2D, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamSynchronize(CUstream);
    cuStreamDestroy_v2(CUstream);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventRecord(CUevent, CUstream);
    cuEventSynchronize(CUevent);
    cuEventDestroy_v2(CUevent);
    cuEventElapsedTime like cuEventElapsedTime_v2(*mut f32, CUevent, CUevent);
    cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
        *mut *mut c_void, *mut *mut c_void
    );
    cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, usize, CUstream);
}

/// Whether a library is the tests' emulation.
pub(super) fn has_mark(library: &libloading::Library) -> bool {
    // SAFETY: the symbol is only looked for, never called.
    unsafe { library.get::<unsafe extern "C" fn() -> u32>(EMULATOR_MARK) }.is_ok()
}

/// The driver, initialised.
#[derive(Debug)]
pub struct Driver {
    pub(super) calls: Calls,
    /// As the driver counts: 1000 × major + 10 × minor.
    version: u32,
    is_emulated: bool,
}

impl Driver {
    /// The driver of this machine; looked for until it is found.
    ///
    /// # Errors
    /// Why there is none that serves.
    pub fn get() -> Result<&'static Self, Unavailable> {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        if let Some(driver) = DRIVER.get() {
            return Ok(driver);
        }
        // Two threads that come here at once both load it: initialising it twice does nothing.
        let driver = Self::load()?;
        Ok(DRIVER.get_or_init(|| driver))
    }

    fn load() -> Result<Self, Unavailable> {
        // SAFETY: opens the library and closes it again; its initialisers are the driver's own.
        if !unsafe { sys::is_culib_present() } {
            return Err(Unavailable::NoDriver);
        }
        let calls = Calls::look_up()?;
        // SAFETY: as in `look_up`, which has opened it.
        let library = unsafe { sys::culib() };
        let mut driver = Self { calls, version: 0, is_emulated: has_mark(library) };
        let mut version = 0;
        // SAFETY: writes one number to a variable of this frame.
        let code = unsafe { (driver.calls.cuDriverGetVersion)(&raw mut version) };
        let refused = |refusal| Unavailable::Refused { refusal };
        driver.check("cuDriverGetVersion", code).map_err(refused)?;
        driver.version = u32::try_from(version).unwrap_or(0);
        if driver.version < VERSION_MIN {
            return Err(Unavailable::TooOld { version: driver.version, needed: VERSION_MIN });
        }
        // SAFETY: takes no pointer; the one flag there is must be 0.
        let code = unsafe { (driver.calls.cuInit)(0) };
        match driver.check("cuInit", code) {
            Ok(()) => Ok(driver),
            Err(refusal) if refusal.code == CUresult::CUDA_ERROR_NO_DEVICE as u32 => {
                Err(Unavailable::NoDevice)
            }
            Err(refusal) => Err(Unavailable::Refused { refusal }),
        }
    }

    /// The newest CUDA that it serves, as major and minor.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        (self.version / 1000, self.version % 1000 / 10)
    }

    /// Whether this is the emulated driver of the tests rather than NVIDIA's.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.is_emulated
    }

    /// What the answer of `call` means.
    pub(super) fn check(&self, call: &'static str, code: u32) -> Result<(), DriverRefusal> {
        if code == CUresult::CUDA_SUCCESS as u32 {
            return Ok(());
        }
        let name = self.describe(self.calls.cuGetErrorName, code);
        let text = self.describe(self.calls.cuGetErrorString, code);
        Err(DriverRefusal { call, code, message: format!("{name}: {text}").into() })
    }

    fn describe(
        &self,
        ask: unsafe extern "C" fn(CUresult, *mut *const c_char) -> u32,
        code: u32,
    ) -> String {
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: the same function, taking the plain number that its C enum is: there may be no
        // such variant in the bindings.
        let ask = unsafe {
            std::mem::transmute::<
                unsafe extern "C" fn(CUresult, *mut *const c_char) -> u32,
                unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
            >(ask)
        };
        // SAFETY: writes one pointer to a variable of this frame.
        let answer = unsafe { ask(code, &raw mut text) };
        if answer != 0 || text.is_null() {
            return "unknown to the driver".to_owned();
        }
        // SAFETY: on success it points to a string of the driver's, which lives as long as the
        // library, and so as the process.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

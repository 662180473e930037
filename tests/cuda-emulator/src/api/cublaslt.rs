//! cuBLASLt's entry points, under the name of whose library this one is found too: objects here,
//! products in [`crate::cublaslt`].

use super::gate::Gate;
use super::{Current, InContext, Out, entry_points};
use crate::cublaslt::{
    Algorithm, Descriptor, Element, Found, Layout, Library, Operands, Operation, Preference,
    Product, Status, Told, words,
};
use crate::driver::{Driver, driver};
use crate::error::{Answer, Code};
use crate::handles::lock;
use std::ffi::{c_char, c_void};
use std::panic::catch_unwind;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: i32 = 68;
/// `CUDA_R_32F`.
const SCALE_F32: i32 = 0;
/// Attributes by their numbers.
const TRANSA: i32 = 3;
const TRANSB: i32 = 4;
const MAX_WORKSPACE_BYTES: i32 = 1;
const MIN_ALIGNMENT_A: i32 = 5;
const MIN_ALIGNMENT_D: i32 = 8;

/// Needs the library to be installed.
struct Installed {
    driver: &'static Driver,
}

/// Needs a device too, whose context is current.
struct OnDevice(InContext);

impl Gate for Installed {
    fn enter(_: Current) -> Answer<Self> {
        let driver = driver();
        let is = driver.behaviour().config.cublaslt.is_some();
        if is { Ok(Self { driver }) } else { Err(Status::NOT_INITIALIZED) }
    }
}

impl Gate for OnDevice {
    fn enter(current: Current) -> Answer<Self> {
        Installed::enter(current.clone())?;
        if current.device().is_err() {
            return Err(Status::NOT_INITIALIZED);
        }
        // The device may have failed before.
        InContext::enter(current).map(Self).map_err(|_| Status::EXECUTION_FAILED)
    }
}

impl std::ops::Deref for OnDevice {
    type Target = InContext;

    fn deref(&self) -> &InContext {
        &self.0
    }
}

/// 10000 × major + 100 × minor; 0 if it is not installed.
#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    let version = || driver().behaviour().config.cublaslt;
    catch_unwind(version).ok().flatten().map_or(0, |(major, minor)| major * 10_000 + minor * 100)
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusName(status: u32) -> *const c_char {
    words(status).0.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetStatusString(status: u32) -> *const c_char {
    words(status).1.as_ptr()
}

entry_points! {
    fn cublasLtCreate(handle: Out<usize>) with OnDevice, |call| {
        let library = Library { ordinal: call.device.ordinal };
        handle.give(call.driver.libraries.add(Arc::new(library))).map_err(invalid)
    }

    fn cublasLtDestroy(handle: usize) with Installed, |call| {
        call.driver.libraries.remove(handle).map(drop).map_err(invalid)
    }

    fn cublasLtMatmulDescCreate(
        descriptor: Out<usize>,
        compute: i32,
        scale: i32,
    ) with Installed, |call| {
        if (compute, scale) != (COMPUTE_F32, SCALE_F32) {
            eprintln!("[cuda emulator] cuBLASLt sums in f32 here, scaled by f32");
            return Err(Status::NOT_SUPPORTED);
        }
        make(call, descriptor, Descriptor::Product(Mutex::default()))
    }

    fn cublasLtMatmulDescDestroy(descriptor: usize) with Installed, |call| {
        destroy(call, descriptor)
    }

    fn cublasLtMatmulDescSetAttribute(
        descriptor: usize,
        attribute: i32,
        value: *const c_void,
        bytes: usize,
    ) with Installed, |call| {
        let found = get(call.driver, descriptor)?;
        let Descriptor::Product(operation) = &*found else { return Err(Status::INVALID_VALUE) };
        // SAFETY: the caller owes a value of so many bytes.
        let value = unsafe { number::<i32>(value, bytes) }?;
        // Not transposed, or transposed: real numbers have no conjugates.
        let transposes = match value { 0 => false, 1 => true, _ => return Err(Status::INVALID_VALUE) };
        let mut operation = lock(operation);
        match attribute {
            TRANSA => operation.transposes_a = transposes,
            TRANSB => operation.transposes_b = transposes,
            _ => return Err(Status::NOT_SUPPORTED),
        }
        Ok(())
    }

    fn cublasLtMatrixLayoutCreate(
        descriptor: Out<usize>,
        element: i32,
        rows: u64,
        columns: u64,
        stride: i64,
    ) with Installed, |call| {
        let element = Element::of(element).ok_or(Status::NOT_SUPPORTED)?;
        let layout = Layout { element, rows, columns, stride };
        make(call, descriptor, Descriptor::Layout(layout))
    }

    fn cublasLtMatrixLayoutDestroy(descriptor: usize) with Installed, |call| {
        destroy(call, descriptor)
    }

    fn cublasLtMatmulPreferenceCreate(descriptor: Out<usize>) with Installed, |call| {
        make(call, descriptor, Descriptor::Preference(Mutex::default()))
    }

    fn cublasLtMatmulPreferenceDestroy(descriptor: usize) with Installed, |call| {
        destroy(call, descriptor)
    }

    fn cublasLtMatmulPreferenceSetAttribute(
        descriptor: usize,
        attribute: i32,
        value: *const c_void,
        bytes: usize,
    ) with Installed, |call| {
        let found = get(call.driver, descriptor)?;
        let Descriptor::Preference(preference) = &*found else { return Err(Status::INVALID_VALUE) };
        let mut preference = lock(preference);
        match attribute {
            MAX_WORKSPACE_BYTES => {
                // SAFETY: the caller owes a value of so many bytes.
                preference.workspace_bytes = unsafe { number::<u64>(value, bytes) }?;
            }
            MIN_ALIGNMENT_A..=MIN_ALIGNMENT_D => {
                // SAFETY: as above.
                let alignment = unsafe { number::<u32>(value, bytes) }?;
                if !alignment.is_power_of_two() {
                    return Err(Status::INVALID_VALUE);
                }
                preference.alignments[(attribute - MIN_ALIGNMENT_A) as usize] = alignment;
            }
            _ => return Err(Status::NOT_SUPPORTED),
        }
        Ok(())
    }

    fn cublasLtMatmulAlgoGetHeuristic(
        handle: usize,
        product: usize,
        a: usize,
        b: usize,
        c: usize,
        d: usize,
        preference: usize,
        room: i32,
        results: *mut Found,
        count: Out<i32>,
    ) with OnDevice, |call| {
        open(call, handle)?;
        let (operation, layouts) = problem(call.driver, product, [a, b, c, d])?;
        let found = get(call.driver, preference)?;
        let Descriptor::Preference(preference) = &*found else { return Err(Status::INVALID_VALUE) };
        if room < 1 || results.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        if call.driver.behaviour().config.algorithms == 0 {
            return count.give(0).map_err(invalid);
        }
        let preference: Preference = *lock(preference);
        let found = Algorithm::find(call.device.ordinal, operation, layouts, preference);
        let found = found.ok_or(Status::NOT_SUPPORTED)?.found();
        // SAFETY: the caller owes room for a result.
        unsafe { results.write(found) };
        count.give(1).map_err(invalid)
    }

    fn cublasLtMatmul(
        handle: usize,
        product: usize,
        alpha: *const c_void,
        a: u64,
        of_a: usize,
        b: u64,
        of_b: usize,
        beta: *const c_void,
        c: u64,
        of_c: usize,
        d: u64,
        of_d: usize,
        algorithm: *const [u64; 8],
        workspace: u64,
        workspace_bytes: usize,
        stream: usize,
    ) with OnDevice, |call| {
        open(call, handle)?;
        let (operation, layouts) = problem(call.driver, product, [of_a, of_b, of_c, of_d])?;
        let stream = call.stream(stream).map_err(invalid)?;
        // SAFETY: the caller owes a factor, in the machine's memory unless told otherwise.
        let alpha = unsafe { number::<f32>(alpha, size_of::<f32>()) }?;
        // SAFETY: as above.
        let beta = unsafe { number::<f32>(beta, size_of::<f32>()) }?;
        // Without one, the library would look for one itself, at every call.
        // SAFETY: the caller owes an algorithm, or null.
        let algorithm = unsafe { algorithm.as_ref() }.and_then(|note| Algorithm::from_note(*note));
        let workspace = workspace..workspace.saturating_add(workspace_bytes as u64);
        let operands = Operands { a, b, c, d };
        let told = Told { operation, layouts, operands, alpha, beta, algorithm, workspace };
        let product = Product::ask(&call.device, told)?;
        stream.push(move |ready| {
            product.perform();
            ready.max(Instant::now())
        });
        Ok(())
    }
}

fn invalid(_: Code) -> Code {
    Status::INVALID_VALUE
}

fn make(call: &Installed, room: Out<usize>, descriptor: Descriptor) -> Answer {
    room.give(call.driver.descriptors.add(Arc::new(descriptor))).map_err(invalid)
}

fn destroy(call: &Installed, descriptor: usize) -> Answer {
    call.driver.descriptors.remove(descriptor).map(drop).map_err(invalid)
}

fn get(driver: &Driver, descriptor: usize) -> Answer<Arc<Descriptor>> {
    driver.descriptors.get(descriptor).map_err(invalid)
}

/// The handle must be of the device whose context is current.
fn open(call: &OnDevice, handle: usize) -> Answer {
    let library = call.driver.libraries.get(handle).map_err(|_| Status::NOT_INITIALIZED)?;
    let (of, current) = (library.ordinal, call.device.ordinal);
    if of == current {
        return Ok(());
    }
    let reason = format!("a handle of device {of} in the context of device {current}");
    call.driver.violation("cublaslt", reason);
    Err(Status::INVALID_VALUE)
}

fn problem(
    driver: &Driver,
    product: usize,
    layouts: [usize; 4],
) -> Answer<(Operation, [Layout; 4])> {
    let product = get(driver, product)?;
    let Descriptor::Product(operation) = &*product else { return Err(Status::INVALID_VALUE) };
    let layout = |handle| match &*get(driver, handle)? {
        Descriptor::Layout(layout) => Ok(*layout),
        _ => Err(Status::INVALID_VALUE),
    };
    let [a, b, c, d] = layouts.map(layout);
    let (operation, layouts) = (*lock(operation), [a?, b?, c?, d?]);
    crate::cublaslt::check(operation, &layouts).map_err(|reason| {
        driver.violation("cublaslt", reason);
        Status::INVALID_VALUE
    })?;
    Ok((operation, layouts))
}

/// # Safety
/// `value` is null or `bytes` bytes that can be read.
unsafe fn number<T: Copy>(value: *const c_void, bytes: usize) -> Answer<T> {
    if value.is_null() || bytes != size_of::<T>() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: the caller's duty; only numbers are read so, of which every pattern of bits is one.
    Ok(unsafe { value.cast::<T>().read_unaligned() })
}

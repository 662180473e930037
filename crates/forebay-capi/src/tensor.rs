//! Tensors that have landed, as C sees them.

use crate::edge::{Text, given, place};
use crate::info::TensorInfo;
use crate::status::{Failure, Status, guard};
use forebay::{Backend, sha256_hex};
use std::ffi::{c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

/// A tensor, whole and where it belongs.
#[repr(C)]
pub struct Tensor {
    /// What the model's headers say of it.
    pub info: *const TensorInfo,
    /// Where it is: "cpu", "host" or "cuda:N"; of a tensor in parts, where the first of them is.
    pub backend: *const c_char,
    /// Its bytes, as the file has them, if they can be read where they are: NULL for what is on a
    /// device, in parts, or repacked; forebay_tensor_read copies those. The place of a tensor of no
    /// bytes is not to be looked at.
    pub data: *const c_void,
    /// The number of its CUDA device; -1 if it is on none.
    pub device: i32,
    /// Whether `data` is in a mapping of the file: pages may still come from storage as they are
    /// touched, and touching them after the file was cut short is a SIGBUS.
    pub is_mapped: bool,
    /// Where it begins in the address space of its device; 0 if it is on none, or in parts.
    pub device_address: u64,
    /// How many parts forebay_tensor_part knows: 1, but for tensors that are split over devices.
    pub part_count: usize,
    /// For the functions that take a tensor.
    pub handle: *const TensorHandle,
}

/// A tensor, or the part of one that a device has, as a matrix: all outer dimensions are rows, the
/// innermost is columns.
#[repr(C)]
pub struct Part {
    /// Where it is: "cpu", "host" or "cuda:N".
    pub backend: *const c_char,
    /// The number of its CUDA device; -1 if it is on none.
    pub device: i32,
    /// Where it begins in the address space of its device; 0 if it is on none.
    pub device_address: u64,
    /// Its bytes, row after row without gaps.
    pub bytes: u64,
    /// The first of the tensor's rows that it has.
    pub rows_begin: u64,
    /// One past the last of them.
    pub rows_end: u64,
    /// The first of the tensor's columns that it has.
    pub columns_begin: u64,
    /// One past the last of them.
    pub columns_end: u64,
}

/// What a forebay_tensor is inside.
pub struct TensorHandle {
    tensor: forebay::Tensor,
    parts: Box<[Part]>,
    _backends: Vec<Text>,
}

// SAFETY: the parts point at texts that the value owns and that nobody writes to.
unsafe impl Send for TensorHandle {}
// SAFETY: as above.
unsafe impl Sync for TensorHandle {}

/// A tensor and what its pointers lead to.
pub(crate) struct View {
    tensor: Tensor,
    _handle: Arc<TensorHandle>,
}

// SAFETY: the pointers lead to memory that the view owns, that its tensor keeps alive, or that the
// caller has lent; nobody writes to it.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// `info` lives at least as long as the view.
    pub(crate) fn new(tensor: forebay::Tensor, info: &TensorInfo) -> Self {
        let backend = Text::new(tensor.backend().to_string());
        let parts = tensor.parts();
        let names = parts.iter().map(|part| Text::new(part.backend.to_string()));
        let mut backends: Vec<Text> = names.collect();
        let part = |(part, name): (&forebay::TensorPart, &Text)| Part {
            backend: name.as_ptr(),
            device: ordinal(part.backend),
            device_address: part.device_address.unwrap_or(0),
            bytes: part.bytes,
            rows_begin: part.rows.start,
            rows_end: part.rows.end,
            columns_begin: part.columns.start,
            columns_end: part.columns.end,
        };
        let parts: Box<[Part]> = parts.iter().zip(&backends).map(part).collect();
        let slice = tensor.as_slice().map(<[u8]>::as_ptr);
        let mapped = tensor.mapped().map(forebay::MappedView::address);
        let public = Tensor {
            info,
            backend: backend.as_ptr(),
            data: slice.or(mapped).unwrap_or(ptr::null()).cast(),
            device: ordinal(tensor.backend()),
            is_mapped: mapped.is_some(),
            device_address: tensor.device_address().unwrap_or(0),
            part_count: parts.len(),
            handle: ptr::null(),
        };
        backends.push(backend);
        let handle = Arc::new(TensorHandle { tensor, parts, _backends: backends });
        Self { tensor: Tensor { handle: Arc::as_ptr(&handle), ..public }, _handle: handle }
    }

    pub(crate) fn as_ptr(&self) -> *const Tensor {
        &raw const self.tensor
    }
}

fn ordinal(backend: Backend) -> i32 {
    match backend {
        Backend::Cuda(ordinal) => i32::try_from(ordinal).unwrap_or(-1),
        _ => -1,
    }
}

fn held(tensor: Option<&Tensor>) -> Result<&TensorHandle, Failure> {
    let handle = given(tensor, "tensor")?.handle;
    // SAFETY: C passes the struct that it was handed, and it is alive; so is what it points at.
    unsafe { handle.as_ref() }.ok_or_else(|| Failure::null("the tensor's handle"))
}

/// A part of a tensor that is split over devices, in the order of rows or columns; every other
/// tensor has one, which is all of it. It lives as long as the tensor.
///
/// FOREBAY_INVALID_ARGUMENT past the end.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_tensor_part(
    tensor: Option<&Tensor>,
    index: usize,
    part: Option<&mut MaybeUninit<*const Part>>,
) -> Status {
    guard(|| {
        let part = place(part, ptr::null())?;
        let parts = &held(tensor)?.parts;
        let found = parts.get(index);
        *part = found.ok_or_else(|| Failure::past_end("part", index, parts.len()))?;
        Ok(())
    })
}

/// Copies `bytes` of the tensor's bytes from `offset` on to `buffer`, as the file has them,
/// wherever they are: from devices, put together from parts, put back into order after repacking.
/// Never a SIGBUS.
///
/// FOREBAY_INVALID_ARGUMENT past the tensor's end, FOREBAY_MEMORY where a mapped file no longer
/// reaches, FOREBAY_DEVICE where a device does not give it back.
///
/// Threads: several at once.
///
/// # Safety
/// `buffer` has room for `bytes`, none of which is the tensor's own; it may be NULL if they are 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn forebay_tensor_read(
    tensor: Option<&Tensor>,
    offset: u64,
    buffer: *mut c_void,
    bytes: usize,
) -> Status {
    guard(|| {
        let tensor = &held(tensor)?.tensor;
        if offset.checked_add(bytes as u64).is_none_or(|end| end > tensor.bytes()) {
            let (name, has) = (tensor.name(), tensor.bytes());
            let message = format!("{bytes} bytes from {offset} on of tensor '{name}' of {has}");
            return Err(Failure::invalid(message));
        }
        if bytes == 0 {
            return Ok(());
        }
        if buffer.is_null() {
            return Err(Failure::null("buffer"));
        }
        // SAFETY: C lends the buffer for the call, and it is as long as that.
        let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast(), bytes) };
        Ok(tensor.read_into(offset, buffer)?)
    })
}

/// Writes the sha256 of the tensor's bytes, read back from where they are, to `hex`: 64 digits and
/// a NUL.
///
/// Fails as forebay_tensor_read does; `hex` is "" then.
///
/// Threads: several at once.
#[unsafe(no_mangle)]
pub extern "C" fn forebay_tensor_sha256(
    tensor: Option<&Tensor>,
    hex: Option<&mut MaybeUninit<[c_char; 65]>>,
) -> Status {
    guard(|| {
        let place = place(hex, [0; 65])?;
        let digest = sha256_hex(&held(tensor)?.tensor)?;
        for (place, digit) in place.iter_mut().zip(digest.bytes()) {
            *place = c_char::from_ne_bytes([digit]);
        }
        Ok(())
    })
}

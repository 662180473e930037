//! Memory of a device, and memory of the machine that a device reads.

use super::arena::CudaArena;
use super::context::Context;
use super::error::DriverRefusal;
use super::pointer::DevicePointer;
use crate::arena::ArenaLayout;
use crate::error::DeviceError;
use crate::pool::{Bay, BayArena};
use crate::uploader::Writer;
use cudarc::driver::sys::{
    CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CUdeviceptr, CUmemorytype,
    CUpointer_attribute, CUresult,
};
use forebay_mem::Region;
use std::sync::Arc;

/// Asks the driver whether it knows all of the range as memory of that device.
pub(super) fn is_known(pointer: &DevicePointer, context: &Context) -> bool {
    let Ok(_entered) = context.enter() else { return false };
    let calls = &context.driver().calls;
    let mut ordinal: i32 = -1;
    let attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL;
    let data = (&raw mut ordinal).cast();
    // SAFETY: this attribute is one `int`, written to a variable of this frame; the driver
    // looks the address up and does not follow it.
    let code = unsafe { (calls.cuPointerGetAttribute)(data, attribute, pointer.address()) };
    if code != 0 || u32::try_from(ordinal) != Ok(pointer.ordinal()) {
        return false;
    }
    let mut kind: u32 = 0;
    let attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    let data = (&raw mut kind).cast();
    // SAFETY: this attribute is one `unsigned int`, as above.
    let code = unsafe { (calls.cuPointerGetAttribute)(data, attribute, pointer.address()) };
    if code != 0 || kind != CUmemorytype::CU_MEMORYTYPE_DEVICE as u32 {
        return false;
    }
    let Some(end) = pointer.address().checked_add(pointer.bytes()) else { return false };
    // A range may be mapped from several pieces of physical memory, each of which is known apart.
    let mut known = pointer.address();
    while known < end {
        let (mut base, mut bytes) = (0, 0);
        let (base_at, bytes_at) = (&raw mut base, &raw mut bytes);
        // SAFETY: as above, with two variables of this frame.
        let code = unsafe { (calls.cuMemGetAddressRange_v2)(base_at, bytes_at, known) };
        let next = base.saturating_add(bytes as u64);
        if code != 0 || next <= known {
            return false;
        }
        known = next;
    }
    true
}

/// Memory that the driver has allocated on a device.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<Context>,
    address: CUdeviceptr,
}

impl DeviceMemory {
    /// `bytes` bytes, more than none, at a multiple of 256. `None` where the device has no room.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Option<Self>, DriverRefusal> {
        let _entered = context.enter()?;
        let mut address = 0;
        // SAFETY: writes one address to a variable of this frame; a context is current.
        let code = unsafe { (context.driver().calls.cuMemAlloc_v2)(&raw mut address, bytes) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 {
            return Ok(None);
        }
        context.driver().check("cuMemAlloc", code)?;
        Ok(Some(Self { context: Arc::clone(context), address }))
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(_entered) = self.context.enter() {
            // SAFETY: allocated by `new`, freed once. Its owner is an arena, which the uploader and
            // every read-back hold until the device has done with it.
            unsafe { (self.context.driver().calls.cuMemFree_v2)(self.address) };
        }
    }
}

/// An allocation that bays are taken of.
#[derive(Debug)]
pub struct PoolMemory {
    context: Arc<Context>,
    memory: Option<DeviceMemory>,
}

impl PoolMemory {
    pub(crate) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self, DeviceError> {
        let bytes = usize::try_from(bytes).map_err(|_| DeviceError::TooLarge)?;
        let memory = super::operands::allocate(context, bytes)?;
        Ok(Self { context: Arc::clone(context), memory })
    }

    /// Tensors in a bay of it that is long enough.
    pub(crate) fn arena(&self, bay: Bay, layout: &ArenaLayout) -> (BayArena, Writer) {
        let base = self.memory.as_ref().map_or(0, DeviceMemory::address);
        let (arena, writer) = CudaArena::in_bay(&self.context, base, bay, layout);
        (BayArena::Cuda(arena), Writer::Cuda(writer))
    }
}

/// Memory of the machine that the driver has pinned, so that devices copy from and to it by
/// themselves.
#[derive(Debug)]
pub struct HostRegistration {
    context: Arc<Context>,
    region: Arc<Region>,
}

impl HostRegistration {
    /// Pins `region` for every device, and brings in its pages.
    ///
    /// # Errors
    /// What the driver answers: it may have no more to pin, or the kernel refuses it.
    pub fn new(context: &Arc<Context>, region: &Arc<Region>) -> Result<Self, DriverRefusal> {
        let _entered = context.enter()?;
        let flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the region stays mapped until `self` is dropped, which unpins it first.
        let code = unsafe {
            (context.driver().calls.cuMemHostRegister_v2)(
                region.start().cast(),
                region.bytes(),
                flags,
            )
        };
        context.driver().check("cuMemHostRegister", code)?;
        // A process that is forked off would share the pages until one of the two writes, and
        // this one must keep those that devices know.
        region.keep_out_of_forks();
        Ok(Self { context: Arc::clone(context), region: Arc::clone(region) })
    }

    /// Where the device sees the region's first byte.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn device_address(&self) -> Result<u64, DriverRefusal> {
        let _entered = self.context.enter()?;
        let mut address = 0;
        let start = self.region.start().cast();
        // SAFETY: the region is registered; writes one address to a variable of this frame.
        let code = unsafe {
            (self.context.driver().calls.cuMemHostGetDevicePointer_v2)(&raw mut address, start, 0)
        };
        self.context.driver().check("cuMemHostGetDevicePointer", code)?;
        Ok(address)
    }
}

impl HostRegistration {
    fn unregister(&self) -> Result<(), DriverRefusal> {
        let _entered = self.context.enter()?;
        let start = self.region.start().cast();
        // SAFETY: registered by `new`, unregistered once, while it is still mapped. Whoever
        // copies from or to it waits for its copies before letting go of the slots in it.
        let code = unsafe { (self.context.driver().calls.cuMemHostUnregister)(start) };
        self.context.driver().check("cuMemHostUnregister", code)
    }
}

impl Drop for HostRegistration {
    fn drop(&mut self) {
        if self.unregister().is_err() {
            // The driver may still take these addresses for pinned memory with the pages it knows:
            // nothing else must ever be mapped there.
            std::mem::forget(Arc::clone(&self.region));
        }
    }
}

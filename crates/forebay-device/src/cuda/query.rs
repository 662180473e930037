//! The devices there are, and how they hang on the machine.

use super::driver::Driver;
use super::error::{DriverRefusal, Unavailable};
use super::info::{DeviceInfo, PcieLink};
use cudarc::driver::sys::{CUdevice, CUdevice_attribute};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

/// Every device of this machine.
///
/// # Errors
/// Why there is none, or none can be used.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    let driver = Driver::get()?;
    (0..count(driver)?).map(device).collect()
}

/// The newest CUDA that the driver serves, as major and minor.
///
/// # Errors
/// Why there is no driver that serves.
pub fn driver_version() -> Result<(u32, u32), Unavailable> {
    Driver::get().map(Driver::version)
}

/// One device, by its number.
///
/// # Errors
/// As [`devices`]; [`Unavailable::NoSuchDevice`].
pub fn device(ordinal: u32) -> Result<DeviceInfo, Unavailable> {
    let driver = Driver::get()?;
    let device = handle(driver, ordinal)?;
    let pci_bus_id = pci_bus_id(driver, device);
    let sysfs = pci_bus_id.as_ref().map(|id| Path::new("/sys/bus/pci/devices").join(id));
    use CUdevice_attribute as Attribute;
    let number = |attribute| attribute_of(driver, device, attribute);
    let is_set = |attribute| number(attribute).is_ok_and(|value| value != 0);
    let version = |attribute| number(attribute).ok().and_then(|value| u32::try_from(value).ok());
    let told = number(Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
    let numa_node = sysfs.as_deref().and_then(numa_node);
    Ok(DeviceInfo {
        ordinal,
        name: name(driver, device).map_err(refused)?,
        memory_bytes: memory_bytes(driver, device).map_err(refused)?,
        link: sysfs.as_deref().and_then(pcie_link),
        numa_node: numa_node.or_else(|| told.ok().and_then(|node| u32::try_from(node).ok())),
        pci_bus_id,
        is_integrated: is_set(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED),
        reads_pageable_memory: is_set(Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS),
        compute_capability: (
            version(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).unwrap_or(0),
            version(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR).unwrap_or(0),
        ),
        is_emulated: driver.is_emulated(),
    })
}

fn refused(refusal: DriverRefusal) -> Unavailable {
    Unavailable::Refused { refusal }
}

fn count(driver: &Driver) -> Result<u32, Unavailable> {
    let mut count = 0;
    // SAFETY: writes one number to a variable of this frame.
    let code = unsafe { (driver.calls.cuDeviceGetCount)(&raw mut count) };
    driver.check("cuDeviceGetCount", code).map_err(refused)?;
    match u32::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(Unavailable::NoDevice),
    }
}

/// The driver's handle of a device.
pub(super) fn handle(driver: &Driver, ordinal: u32) -> Result<CUdevice, Unavailable> {
    let present = count(driver)?;
    let known = i32::try_from(ordinal).ok().filter(|_| ordinal < present);
    let ordinal = known.ok_or(Unavailable::NoSuchDevice { asked: ordinal, present })?;
    let mut device = 0;
    // SAFETY: writes one handle to a variable of this frame.
    let code = unsafe { (driver.calls.cuDeviceGet)(&raw mut device, ordinal) };
    driver.check("cuDeviceGet", code).map_err(refused)?;
    Ok(device)
}

fn attribute_of(
    driver: &Driver,
    device: CUdevice,
    attribute: CUdevice_attribute,
) -> Result<i32, DriverRefusal> {
    let mut value = 0;
    // SAFETY: writes one number to a variable of this frame.
    let code = unsafe { (driver.calls.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
    driver.check("cuDeviceGetAttribute", code)?;
    Ok(value)
}

fn memory_bytes(driver: &Driver, device: CUdevice) -> Result<u64, DriverRefusal> {
    let mut bytes = 0;
    // SAFETY: writes one number to a variable of this frame.
    let code = unsafe { (driver.calls.cuDeviceTotalMem_v2)(&raw mut bytes, device) };
    driver.check("cuDeviceTotalMem", code)?;
    Ok(bytes as u64)
}

fn name(driver: &Driver, device: CUdevice) -> Result<String, DriverRefusal> {
    text(driver, "cuDeviceGetName", driver.calls.cuDeviceGetName, device)
}

/// Where it hangs on the PCI bus; `None` for what hangs on none.
fn pci_bus_id(driver: &Driver, device: CUdevice) -> Option<String> {
    let id = text(driver, "cuDeviceGetPCIBusId", driver.calls.cuDeviceGetPCIBusId, device);
    id.ok().filter(|id| !id.is_empty()).map(|id| id.to_lowercase())
}

fn text(
    driver: &Driver,
    call: &'static str,
    ask: unsafe extern "C" fn(*mut c_char, i32, CUdevice) -> u32,
    device: CUdevice,
) -> Result<String, DriverRefusal> {
    const BYTES: u8 = 255;
    // One byte more than the driver is told of, which stays zero.
    let mut buffer = [0_u8; BYTES as usize + 1];
    // SAFETY: writes at most `BYTES` bytes to an array of this frame that has more.
    let code = unsafe { ask(buffer.as_mut_ptr().cast(), BYTES.into(), device) };
    driver.check(call, code)?;
    let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

fn read(folder: &Path, file: &str) -> Option<String> {
    let path: PathBuf = folder.join(file);
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// `None` on machines of one node, where sysfs says -1.
fn numa_node(sysfs: &Path) -> Option<u32> {
    read(sysfs, "numa_node")?.parse().ok()
}

fn pcie_link(sysfs: &Path) -> Option<PcieLink> {
    Some(PcieLink {
        speed: read(sysfs, "current_link_speed")?,
        width: read(sysfs, "current_link_width")?,
        max_speed: read(sysfs, "max_link_speed")?,
        max_width: read(sysfs, "max_link_width")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_tells_node_and_link() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text);
        write("numa_node", "-1\n").unwrap();
        assert_eq!(numa_node(folder.path()), None);
        write("numa_node", "1\n").unwrap();
        assert_eq!(numa_node(folder.path()), Some(1));
        assert_eq!(pcie_link(folder.path()), None);
        write("current_link_speed", "2.5 GT/s PCIe\n").unwrap();
        write("current_link_width", "16\n").unwrap();
        write("max_link_speed", "32.0 GT/s PCIe\n").unwrap();
        write("max_link_width", "16\n").unwrap();
        let link = pcie_link(folder.path()).unwrap().to_string();
        assert_eq!(link, "2.5 GT/s PCIe x16 (at most 32.0 GT/s PCIe x16)");
    }
}

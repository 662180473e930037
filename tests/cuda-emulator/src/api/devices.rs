//! What devices there are, and what they are like.

use super::{Anytime, Current, Out, entry_points};
use crate::config::DeviceConfig;
use crate::error::{Answer, Code};
use crate::multiprocessor::{Multiprocessor, SHARED_BYTES, SHARED_BYTES_RESERVED};
use std::ffi::{CStr, c_char};

entry_points! {
    fn cuInit(flags: u32) with Anytime, |call| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if call.driver.behaviour().config.no_device {
            return Err(Code::NO_DEVICE);
        }
        call.driver.initialise();
        Ok(())
    }

    fn cuDeviceGetCount(count: Out<i32>) with Current, |call| {
        count.give(i32::try_from(call.driver.device_count()).unwrap_or(i32::MAX))
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) with Current, |call| {
        device.give(call.driver.device(ordinal)?.number())
    }

    fn cuDeviceGetName(name: Out<c_char>, bytes: i32, device: i32) with Current, |call| {
        let ordinal = call.driver.device(device)?.ordinal;
        // SAFETY: the caller owes room for so many characters.
        unsafe { give_text(&format!("forebay emulated GPU {ordinal}"), name, bytes) }
    }

    fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: i32) with Current, |call| {
        uuid.give(uuid_of(call.driver.device(device)?.ordinal))
    }

    fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: i32) with Current, |call| {
        uuid.give(uuid_of(call.driver.device(device)?.ordinal))
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) with Current, |call| {
        let all = call.driver.device(device)?.settings().memory_bytes;
        bytes.give(usize::try_from(all).unwrap_or(usize::MAX))
    }

    fn cuDeviceGetPCIBusId(text: Out<c_char>, bytes: i32, device: i32) with Current, |call| {
        let settings = call.driver.device(device)?.settings();
        let bus_id = format!("{:04X}:{:02X}:00.0", settings.pci_domain, settings.pci_bus);
        // SAFETY: the caller owes room for so many characters.
        unsafe { give_text(&bus_id, text, bytes) }
    }

    fn cuDeviceGetByPCIBusId(device: Out<i32>, text: *const c_char) with Current, |call| {
        if text.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller owes a C string.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().to_ascii_uppercase();
        for number in 0..i32::try_from(call.driver.device_count()).unwrap_or(i32::MAX) {
            let settings = call.driver.device(number)?.settings();
            let short = format!("{:02X}:00.0", settings.pci_bus);
            if text == short || text == format!("{:04X}:{short}", settings.pci_domain) {
                return device.give(number);
            }
        }
        Err(Code::INVALID_DEVICE)
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) with Current, |call| {
        value.give(attribute_of(&call.driver.device(device)?.settings(), attribute))
    }

    fn cuDeviceComputeCapability(
        major: Out<i32>,
        minor: Out<i32>,
        device: i32,
    ) with Current, |call| {
        let capability = call.driver.device(device)?.settings().capability;
        major.give(capability.0)?;
        minor.give(capability.1)
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) with Current, |call| {
        call.driver.device(device)?;
        call.driver.device(peer)?;
        can.give(0)
    }
}

fn uuid_of(ordinal: usize) -> [u8; 16] {
    let mut uuid = *b"forebay-gpu-0000";
    let digits = format!("{:04}", ordinal % 10_000);
    uuid[12..].copy_from_slice(digits.as_bytes());
    uuid
}

/// Writes a C string, cut where the room ends.
///
/// # Safety
/// There is room for `bytes` characters.
unsafe fn give_text(text: &str, room: Out<c_char>, bytes: i32) -> Answer {
    let bytes = usize::try_from(bytes).map_err(|_| Code::INVALID_VALUE)?;
    let room = room.address().cast::<u8>();
    if room.is_null() || bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: the caller owes this room.
    let room = unsafe { std::slice::from_raw_parts_mut(room, bytes) };
    let cut = text.len().min(bytes - 1);
    room[..cut].copy_from_slice(&text.as_bytes()[..cut]);
    room[cut] = 0;
    Ok(())
}

/// A `CUdevice_attribute`, by the numbers of cuda.h. What is not set is that of an A100.
fn attribute_of(device: &DeviceConfig, attribute: i32) -> i32 {
    let multiprocessor = Multiprocessor::of(device.capability);
    let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    match attribute {
        1..=3 => 1024,                      // threads of a block, x, y
        4 => 64,                            // threads of a block, z
        5 | 11 => i32::MAX,                 // blocks of a grid, x; pitch
        6 | 7 => 65535,                     // blocks of a grid, y, z
        8 => number(SHARED_BYTES),          // shared memory of a block
        9 => 64 << 10,                      // constant memory
        10 => 32,                           // threads of a warp
        12 | 82 => 65536,                   // registers of a block, of a multiprocessor
        13 => 1_410_000,                    // clock in kHz
        14 => 512,                          // alignment of textures
        15 | 19 => 1,                       // overlaps copies; maps host memory
        16 => 108,                          // multiprocessors
        18 => i32::from(device.integrated), // shares the host's memory
        31 | 32 => 1,                       // concurrent kernels; ECC
        33 => device.pci_bus,               //
        36 => 1_215_000,                    // memory clock in kHz
        37 => 5120,                         // width of the memory's bus in bits
        38 => 40 << 20,                     // L2 cache
        39 => number(multiprocessor.threads),
        40 => 2,                   // copy engines: one each way
        41 => 1,                   // one address space with the host
        50 => device.pci_domain,   //
        75 => device.capability.0, //
        76 => device.capability.1, //
        78 => 1,                   // priorities of streams
        81 => number(multiprocessor.shared_bytes),
        88 => i32::from(device.pageable), // reads pageable memory
        91 => 1,                          // host pointers of registered memory
        97 => number(multiprocessor.shared_bytes_of_block), // if asked for
        99 => 1,                          // registers host memory
        100 => i32::from(device.host_page_tables),
        106 => number(multiprocessor.blocks),
        111 => number(SHARED_BYTES_RESERVED),
        113 => 1,                       // registers read-only host memory
        115 => i32::from(device.pools), // cuMemAllocAsync
        134 => device.numa_node,        // the host's node it is next to
        _ => 0,
    }
}

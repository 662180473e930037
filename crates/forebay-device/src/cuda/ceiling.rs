//! The most that a device takes from the machine: pinned memory, large copies, nothing else.

use super::context::Context;
use super::memory::{DeviceMemory, HostRegistration};
use super::stream::{Event, Stream};
use crate::error::DeviceError;
use forebay_mem::Region;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One copy: larger ones are no faster on any link.
const COPY_BYTES: usize = 16 << 20;
/// Pinned memory: more than processors keep in their caches.
const SOURCE_BYTES: usize = 128 << 20;
/// Device memory that is copied into, again and again.
const TARGET_BYTES: usize = 256 << 20;

/// Copies `bytes` bytes from pinned memory to a device, and says how long the copies took; pinning
/// and allocating are not counted.
///
/// # Errors
/// What the device refuses: unlike a load, this does not do without pinning.
pub fn upload_ceiling(ordinal: u32, bytes: u64) -> Result<Duration, DeviceError> {
    let context = Context::of(ordinal)?;
    let driver = |refusal| DeviceError::driver(&context.name(), refusal);
    let all = usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
    let (source_bytes, target_bytes) = (SOURCE_BYTES.min(all), TARGET_BYTES.min(all));
    let no_room = |source| {
        let (device, needed_bytes) = ("host".to_owned(), source_bytes as u64);
        DeviceError::OutOfMemory { device, needed_bytes, source }
    };
    let source = Arc::new(Region::new(source_bytes).map_err(no_room)?);
    source.populate(0..source.bytes()).map_err(no_room)?;
    let _pinned = HostRegistration::new(&context, &source).map_err(driver)?;
    let Some(target) = DeviceMemory::new(&context, target_bytes).map_err(driver)? else {
        let free_bytes = context.memory_bytes().ok().map(|(free, _)| free);
        let (device, needed_bytes) = (context.name(), target_bytes as u64);
        return Err(DeviceError::DeviceFull { device, needed_bytes, free_bytes });
    };
    let stream = Stream::new(&context).map_err(driver)?;
    let done = Event::new(&context).map_err(driver)?;
    let _entered = context.enter().map_err(driver)?;
    let started = Instant::now();
    let (mut copied, mut from, mut to) = (0, 0, 0);
    let mut queued = Ok(());
    while copied < all && queued.is_ok() {
        let piece = COPY_BYTES.min(all - copied).min(source_bytes - from).min(target_bytes - to);
        // SAFETY: source and target have these bytes, and outlive the stream's work: whatever
        // happens, this function synchronises before it returns. Nobody writes the source.
        let code = unsafe {
            (context.driver().calls.cuMemcpyHtoDAsync_v2)(
                target.address() + to as u64,
                source.at(from).cast(),
                piece,
                stream.handle(),
            )
        };
        queued = context.driver().check("cuMemcpyHtoDAsync", code);
        copied += piece;
        from = (from + piece) % source_bytes;
        to = (to + piece) % target_bytes;
    }
    let waited = queued.and_then(|()| done.record(&stream)).and_then(|()| done.synchronize());
    let took = started.elapsed();
    // After an error too: nothing is under way any more when the memory goes.
    let _ = stream.synchronize();
    waited.map(|()| took).map_err(driver)
}

//! A device and its primary context: what is counted, what has gone wrong, which engines it has.

use crate::config::DeviceConfig;
use crate::error::{Answer, Code};
use crate::handles::lock;
use crate::report::Traffic;
use crate::stream::Stream;
use crate::timeline::Engine;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Upload,
    Download,
    OnDevice,
}

/// A device and its one context.
pub(crate) struct Device {
    pub(crate) ordinal: usize,
    settings: Mutex<Arc<DeviceConfig>>,
    /// How often the primary context is retained.
    retained: Mutex<u32>,
    pub(crate) context_flags: AtomicU32,
    /// The code of the asynchronous error that the context is in; 0 is none.
    asynchronous_error: AtomicU32,
    used: Mutex<Used>,
    upload: Engine,
    download: Engine,
    traffic: [Mutex<Traffic>; 3],
    in_flight: AtomicU64,
    pub(crate) in_flight_max: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) launches: AtomicU64,
    pub(crate) lane_instructions: AtomicU64,
    default_stream: OnceLock<Arc<Stream>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Used {
    bytes: u64,
    bytes_max: u64,
}

/// Context handles: the device's ordinal above this.
const CONTEXT_FIRST: usize = 0xC0DE_0000;
const CONTEXT_STEP: usize = 0x1000;

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.ordinal)
    }
}

impl Device {
    pub(crate) fn new(ordinal: usize, settings: DeviceConfig) -> Self {
        Self {
            ordinal,
            settings: Mutex::new(Arc::new(settings)),
            retained: Mutex::new(0),
            context_flags: AtomicU32::new(0),
            asynchronous_error: AtomicU32::new(0),
            used: Mutex::new(Used::default()),
            upload: Engine::default(),
            download: Engine::default(),
            traffic: Default::default(),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            launches: AtomicU64::new(0),
            lane_instructions: AtomicU64::new(0),
            default_stream: OnceLock::new(),
        }
    }

    /// A new configuration: other settings, no error, the same memory.
    pub(crate) fn reconfigure(&self, settings: DeviceConfig) {
        *lock(&self.settings) = Arc::new(settings);
        self.forgive();
    }

    pub(crate) fn settings(&self) -> Arc<DeviceConfig> {
        Arc::clone(&lock(&self.settings))
    }

    /// The device's number as entry points speak of it.
    pub(crate) fn number(&self) -> i32 {
        i32::try_from(self.ordinal).unwrap_or(i32::MAX)
    }

    pub(crate) fn context_handle(&self) -> usize {
        CONTEXT_FIRST + self.ordinal * CONTEXT_STEP
    }

    /// The ordinal of the device whose context has this handle.
    pub(crate) fn ordinal_of_context(handle: usize) -> Option<usize> {
        let above = handle.checked_sub(CONTEXT_FIRST)?;
        above.is_multiple_of(CONTEXT_STEP).then_some(above / CONTEXT_STEP)
    }

    pub(crate) fn retain(&self) {
        *lock(&self.retained) += 1;
    }

    /// After the last one `end` is done, before anybody retains it again.
    pub(crate) fn release(&self, end: impl FnOnce()) -> Answer {
        let mut retained = lock(&self.retained);
        *retained = retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        if *retained == 0 {
            end();
        }
        Ok(())
    }

    pub(crate) fn retained(&self) -> u32 {
        *lock(&self.retained)
    }

    /// An asynchronous error: the first one stays, and every later call in the context answers it.
    pub(crate) fn fail(&self, code: Code, reason: &str) {
        eprintln!(
            "[cuda emulator] device {}: asynchronous error {}: {reason}",
            self.ordinal, code.0
        );
        let (relaxed, error) = (Ordering::Relaxed, &self.asynchronous_error);
        let _ = error.compare_exchange(0, code.0, Ordering::SeqCst, relaxed);
    }

    /// The asynchronous error that the context is in, if it is.
    pub(crate) fn check(&self) -> Answer {
        match self.asynchronous_error.load(Ordering::SeqCst) {
            0 => Ok(()),
            code => Err(Code(code)),
        }
    }

    /// The context is new again.
    pub(crate) fn forgive(&self) {
        self.asynchronous_error.store(0, Ordering::SeqCst);
    }

    /// Takes `bytes` of the device's memory, exactly as many as were asked for.
    pub(crate) fn take(&self, bytes: u64) -> Answer {
        let all = self.settings().memory_bytes;
        let mut used = lock(&self.used);
        let after = used.bytes.checked_add(bytes).filter(|after| *after <= all);
        used.bytes = after.ok_or(Code::OUT_OF_MEMORY)?;
        used.bytes_max = used.bytes_max.max(used.bytes);
        Ok(())
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        let mut used = lock(&self.used);
        used.bytes = used.bytes.saturating_sub(bytes);
    }

    /// Bytes allocated now, and at most.
    pub(crate) fn used_bytes(&self) -> (u64, u64) {
        let used = *lock(&self.used);
        (used.bytes, used.bytes_max)
    }

    /// Engine and rate of a direction; copies on the device are as fast as memory.
    pub(crate) fn engine(&self, direction: Direction) -> Option<(&Engine, f64)> {
        let settings = self.settings();
        match direction {
            Direction::Upload => Some((&self.upload, settings.upload_bytes_per_s)),
            Direction::Download => Some((&self.download, settings.download_bytes_per_s)),
            Direction::OnDevice => None,
        }
    }

    /// A copy was asked for.
    pub(crate) fn copy_begins(&self) {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_max.fetch_max(now, Ordering::Relaxed);
    }

    /// A copy is done with, performed or not.
    pub(crate) fn copy_ends(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn count(&self, direction: Direction, bytes: usize) {
        let mut traffic = lock(&self.traffic[direction as usize]);
        traffic.copies += 1;
        traffic.bytes += bytes as u64;
    }

    pub(crate) fn traffic(&self, direction: Direction) -> Traffic {
        *lock(&self.traffic[direction as usize])
    }

    /// The stream that the null handle means in this context.
    pub(crate) fn default_stream(self: &Arc<Self>) -> Answer<Arc<Stream>> {
        if let Some(stream) = self.default_stream.get() {
            return Ok(Arc::clone(stream));
        }
        let stream = Stream::start(Arc::clone(self), 0, 0)?;
        let kept = Arc::clone(self.default_stream.get_or_init(|| Arc::clone(&stream)));
        if !Arc::ptr_eq(&kept, &stream) {
            stream.close();
        }
        Ok(kept)
    }

    pub(crate) fn default_stream_if_used(&self) -> Option<Arc<Stream>> {
        self.default_stream.get().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn devices_and_directions_have_engines_of_their_own() {
        let devices = [0, 1].map(|ordinal| Device::new(ordinal, DeviceConfig::default()));
        let ready = Instant::now();
        let begin = |device: &Device, direction| {
            let (engine, _) = device.engine(direction).expect("an engine for the bus");
            engine.reserve(ready, Duration::from_secs(1)).begin
        };
        assert_eq!(begin(&devices[0], Direction::Upload), ready);
        assert_eq!(begin(&devices[0], Direction::Download), ready);
        assert_eq!(begin(&devices[1], Direction::Upload), ready);
        assert_eq!(begin(&devices[0], Direction::Upload), ready + Duration::from_secs(1));
    }
}

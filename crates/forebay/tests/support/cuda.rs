//! The emulated driver in this process, one test at a time.
#![allow(dead_code, reason = "every test file uses its own part")]

use crate::support::{TestModel, alone, is_without_load_threads};
use forebay::{Backend, DeviceChoice, Loader, SplitMode, release_staging};
use forebay_cuda_emulator::{Emulator, Held, Report};
use std::sync::MutexGuard;

/// The driver as one test wants it, and what it had seen before.
pub(crate) struct Turn {
    before: Report,
    _alone: MutexGuard<'static, ()>,
}

/// Waits for the test's turn and sets the driver up.
pub(crate) fn turn(emulator: &Emulator) -> Turn {
    let alone = alone();
    emulator.install();
    release_staging();
    Turn { before: Emulator::report(), _alone: alone }
}

impl Turn {
    /// How often the test has called an entry point.
    pub(crate) fn calls(&self, name: &str) -> u64 {
        Emulator::report().calls_of(name) - self.before.calls_of(name)
    }

    /// Bytes that the test has copied to a device.
    pub(crate) fn uploaded(&self, device: usize) -> u64 {
        let bytes = |report: &Report| report.devices.get(device).map_or(0, |it| it.upload.bytes);
        bytes(&Emulator::report()) - bytes(&self.before)
    }

    pub(crate) fn violations_of(&self, kind: &str) -> u64 {
        Emulator::report().violations_of(kind) - self.before.violations_of(kind)
    }

    /// That the load has ended: no thread of it runs, nothing is in flight or held, and nothing
    /// was done that must not be. Staging memory may be kept.
    pub(crate) fn expect_ended(&self, what: &str) {
        assert!(is_without_load_threads(), "{what}: a thread is left");
        let report = Emulator::report();
        assert_eq!(report.violations, self.before.violations, "{:?}", report.violation_messages);
        for device in &report.devices {
            assert_eq!(device.memory, Held::default(), "{what}");
            assert_eq!((device.streams, device.events), (0, 0), "{what}: streams, events");
        }
    }

    /// The same, and that nothing is kept for later loads either.
    pub(crate) fn expect_nothing_held(&self, what: &str) {
        self.expect_ended(what);
        let report = Emulator::report();
        assert_eq!(report.registered, Held::default(), "{what}");
        for device in &report.devices {
            assert_eq!(device.contexts_retained, 0, "{what}");
        }
    }

    pub(crate) fn end(self) {
        release_staging();
        self.expect_nothing_held("at the end");
    }
}

/// A load of the model to these devices.
pub(crate) fn loader_to(model: &TestModel, devices: &str, split: SplitMode) -> Loader {
    model.loader("dio").device(devices.parse::<DeviceChoice>().unwrap()).split(split)
}

/// To one device, through a few small slots.
pub(crate) fn small_loader(model: &TestModel) -> Loader {
    let device = DeviceChoice::Device(Backend::Cuda(0));
    model.loader("dio").device(device).chunk_bytes(64 << 10).staging_bytes(256 << 10)
}

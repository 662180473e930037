//! The driver's state: made at the first call from the environment, reported when the process
//! ends.

use crate::config::Config;
use crate::cublaslt::{Descriptor, Library};
use crate::device::{Device, Direction};
use crate::error::{Answer, Code};
use crate::event::Event;
use crate::fault::Faults;
use crate::flight::Flights;
use crate::handles::{Handles, lock};
use crate::host_memory::HostMemory;
use crate::memory::Memory;
use crate::modules::{Function, Module};
use crate::report::{DeviceReport, Report};
use crate::stream::Stream;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// How the driver is to behave.
pub(crate) const CONFIG_VARIABLE: &str = "FOREBAY_CUDA_EMULATOR";
/// The file that the report is written to when the process ends.
pub(crate) const REPORT_VARIABLE: &str = "FOREBAY_CUDA_EMULATOR_REPORT";

const STREAMS_FIRST: usize = 0x57AE_0000_0000;
const EVENTS_FIRST: usize = 0xE7E7_0000_0000;
const MODULES_FIRST: usize = 0x30D0_0000_0000;
const FUNCTIONS_FIRST: usize = 0xF0CC_0000_0000;
const LIBRARIES_FIRST: usize = 0xB1A5_0000_0000;
const DESCRIPTORS_FIRST: usize = 0xDE5C_0000_0000;
const MESSAGES_MAX: usize = 32;

/// Everything there is one of.
pub(crate) struct Driver {
    behaviour: Mutex<Arc<Behaviour>>,
    initialised: AtomicBool,
    /// Never shrinks: `behaviour` says how many there are.
    devices: Mutex<Vec<Arc<Device>>>,
    pub(crate) memory: Memory,
    pub(crate) host: HostMemory,
    pub(crate) flights: Flights,
    pub(crate) streams: Handles<Stream>,
    pub(crate) events: Handles<Event>,
    pub(crate) modules: Handles<Module>,
    pub(crate) functions: Handles<Function>,
    pub(crate) libraries: Handles<Library>,
    pub(crate) descriptors: Handles<Descriptor>,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<(BTreeMap<&'static str, u64>, Vec<String>)>,
}

/// A configuration and how far its faults have been counted.
pub(crate) struct Behaviour {
    pub(crate) config: Config,
    pub(crate) faults: Faults,
}

/// The process's one driver.
pub(crate) fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let words = std::env::var(CONFIG_VARIABLE).unwrap_or_default();
        let config = Driver::parse(&words).unwrap_or_else(|reason| {
            eprintln!("[cuda emulator] {CONFIG_VARIABLE}: {reason}");
            std::process::abort()
        });
        // SAFETY: the function takes nothing, never unwinds, and stays mapped (`-z nodelete`).
        unsafe { libc::atexit(report_at_exit) };
        Driver::new(config)
    })
}

impl Driver {
    fn new(config: Config) -> Self {
        let driver = Self {
            behaviour: Mutex::new(Arc::new(Behaviour::new(config.clone()))),
            initialised: AtomicBool::new(false),
            devices: Mutex::default(),
            memory: Memory::default(),
            host: HostMemory::default(),
            flights: Flights::default(),
            streams: Handles::starting_at(STREAMS_FIRST),
            events: Handles::starting_at(EVENTS_FIRST),
            modules: Handles::starting_at(MODULES_FIRST),
            functions: Handles::starting_at(FUNCTIONS_FIRST),
            libraries: Handles::starting_at(LIBRARIES_FIRST),
            descriptors: Handles::starting_at(DESCRIPTORS_FIRST),
            calls: Mutex::default(),
            violations: Mutex::default(),
        };
        driver.configure(config);
        driver
    }

    /// Reads the words of a configuration.
    pub(crate) fn parse(words: &str) -> Result<Config, String> {
        Config::parse(words, |name| crate::api::address_of(name).is_some())
    }

    /// Takes a new configuration: faults count anew and errors are forgotten, memory stays.
    pub(crate) fn configure(&self, config: Config) {
        let mut devices = lock(&self.devices);
        for (ordinal, settings) in config.devices.iter().enumerate() {
            match devices.get(ordinal) {
                Some(device) => device.reconfigure(settings.clone()),
                None => devices.push(Arc::new(Device::new(ordinal, settings.clone()))),
            }
        }
        *lock(&self.behaviour) = Arc::new(Behaviour::new(config));
    }

    pub(crate) fn behaviour(&self) -> Arc<Behaviour> {
        Arc::clone(&lock(&self.behaviour))
    }

    pub(crate) fn initialise(&self) {
        self.initialised.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_initialised(&self) -> bool {
        self.initialised.load(Ordering::SeqCst)
    }

    pub(crate) fn device_count(&self) -> usize {
        self.behaviour().config.devices.len()
    }

    /// The device with the number that entry points speak of.
    pub(crate) fn device(&self, number: i32) -> Answer<Arc<Device>> {
        let ordinal = usize::try_from(number).map_err(|_| Code::INVALID_DEVICE)?;
        if ordinal >= self.device_count() {
            return Err(Code::INVALID_DEVICE);
        }
        lock(&self.devices).get(ordinal).cloned().ok_or(Code::INVALID_DEVICE)
    }

    /// The device of a context handle, whether or not the context is alive.
    pub(crate) fn context(&self, handle: usize) -> Answer<Arc<Device>> {
        let ordinal = Device::ordinal_of_context(handle).ok_or(Code::INVALID_CONTEXT)?;
        lock(&self.devices).get(ordinal).cloned().ok_or(Code::INVALID_CONTEXT)
    }

    /// All streams of a device, the default one included.
    fn streams_of(&self, device: &Device) -> Vec<Arc<Stream>> {
        let mut streams = self.streams.all();
        streams.retain(|stream| stream.device.ordinal == device.ordinal);
        streams.extend(device.default_stream_if_used());
        streams
    }

    /// Waits for everything that was asked of a device.
    pub(crate) fn wait_for_device(&self, device: &Device) {
        self.streams_of(device).iter().for_each(|stream| stream.wait());
    }

    /// Ends a device's primary context and everything in it.
    pub(crate) fn reset(&self, device: &Device) {
        self.wait_for_device(device);
        let is_of_device = |ordinal: usize| ordinal == device.ordinal;
        for stream in self.streams.remove_where(|stream| is_of_device(stream.device.ordinal)) {
            stream.close();
        }
        self.events.remove_where(|event| is_of_device(event.device.ordinal));
        self.functions.remove_where(|function| is_of_device(function.module.device.ordinal));
        self.modules.remove_where(|module| is_of_device(module.device.ordinal));
        self.libraries.remove_where(|library| is_of_device(library.ordinal));
        let lost = self.memory.free_all_of(device);
        if !lost.is_empty() {
            let bytes: usize = lost.iter().map(|allocation| allocation.bytes).sum();
            let (count, ordinal) = (lost.len(), device.ordinal);
            self.violation(
                "leak",
                format!(
                    "the context of device {ordinal} ended with {count} allocations, {bytes} B"
                ),
            );
        }
        device.forgive();
    }

    pub(crate) fn count_call(&self, name: &'static str) {
        *lock(&self.calls).entry(name).or_default() += 1;
    }

    /// Counts and tells what a caller must not do.
    pub(crate) fn violation(&self, kind: &'static str, message: String) {
        eprintln!("[cuda emulator] VIOLATION {kind}: {message}");
        let mut violations = lock(&self.violations);
        *violations.0.entry(kind).or_default() += 1;
        if violations.1.len() < MESSAGES_MAX {
            violations.1.push(message);
        }
    }

    /// Waits until no copy or kernel uses the range; that one did is a violation.
    pub(crate) fn land(&self, range: &Range<u64>, kind: &'static str, call: &str) {
        if self.flights.uses(range) {
            let start = range.start;
            self.violation(kind, format!("{call}({start:#x}) while work in flight uses it"));
            self.flights.wait(range);
        }
    }

    pub(crate) fn report(&self) -> Report {
        let (registered, host_allocations) = self.host.held();
        let (violations, violation_messages) = lock(&self.violations).clone();
        let named = |(name, count): (&'static str, u64)| (name.to_string(), count);
        let devices = lock(&self.devices).clone();
        Report {
            calls: lock(&self.calls).clone().into_iter().map(named).collect(),
            devices: devices.iter().map(|device| self.report_of(device)).collect(),
            registered,
            host_allocations,
            cublaslt_objects: (self.libraries.all().len() + self.descriptors.all().len()) as u64,
            violations: violations.into_iter().map(named).collect(),
            violation_messages,
        }
    }

    fn report_of(&self, device: &Device) -> DeviceReport {
        let is_of_device = |ordinal: usize| ordinal == device.ordinal;
        let streams = self.streams.all();
        let events = self.events.all();
        DeviceReport {
            upload: device.traffic(Direction::Upload),
            download: device.traffic(Direction::Download),
            on_device: device.traffic(Direction::OnDevice),
            copies_in_flight_max: device.in_flight_max.load(Ordering::Relaxed),
            copies_dropped: device.dropped.load(Ordering::Relaxed),
            launches: device.launches.load(Ordering::Relaxed),
            lane_instructions: device.lane_instructions.load(Ordering::Relaxed),
            memory: self.memory.held_by(device),
            memory_bytes_max: device.used_bytes().1,
            streams: streams.iter().filter(|s| is_of_device(s.device.ordinal)).count() as u64,
            events: events.iter().filter(|e| is_of_device(e.device.ordinal)).count() as u64,
            contexts_retained: u64::from(device.retained()),
            asynchronous_error: device.check().err().map(|code| code.0),
        }
    }

    /// What is still held when the process ends.
    fn tell_leaks(&self) {
        let report = self.report();
        let mut leaks = Vec::new();
        for (ordinal, device) in report.devices.iter().enumerate() {
            leaks.push((format!("memory of device {ordinal}"), device.memory));
        }
        leaks.push(("registered host memory".into(), report.registered));
        leaks.push(("host memory of the driver".into(), report.host_allocations));
        for (what, held) in leaks {
            if held.count > 0 {
                let message = format!("{what}: {} pieces, {} bytes", held.count, held.bytes);
                self.violation("leak", message);
            }
        }
    }
}

impl Behaviour {
    fn new(config: Config) -> Self {
        let faults = Faults::new(&config.faults);
        Self { config, faults }
    }
}

extern "C" fn report_at_exit() {
    let told = std::panic::catch_unwind(|| {
        driver().tell_leaks();
        if let Some(path) = std::env::var_os(REPORT_VARIABLE) {
            let report = driver().report();
            let written = serde_json::to_vec(&report)
                .map_err(std::io::Error::from)
                .and_then(|text| std::fs::write(&path, text));
            if let Err(error) = written {
                eprintln!("[cuda emulator] {}: {error}", path.display());
            }
        }
    });
    if told.is_err() {
        eprintln!("[cuda emulator] the report could not be made");
    }
}

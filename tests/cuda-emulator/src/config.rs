//! How the driver is to behave: the words of `FOREBAY_CUDA_EMULATOR`.
//!
//! Words are separated by spaces or `;`. Sizes are in bytes and take `KiB`, `MiB`, `GiB`; rates are
//! in bytes a second, 0 is as fast as memory. `device.N.WORD` says a device's word for device N
//! alone, wherever it stands.
//!
//! | word | means | default |
//! |---|---|---|
//! | `devices=4` | how many there are | 1 |
//! | `no-device` | `cuInit` answers `CUDA_ERROR_NO_DEVICE` | |
//! | `driver=12080` | the driver's version | 13000 |
//! | `events=immediate` | every question about completion is answered yes at once | `recorded` |
//! | `strict=0` | does not compare pinned sources with what was copied | 1 |
//! | `register=5e9` | rate of registering host memory | 0 |
//! | `poison=64MiB` | fills allocations up to here, and the ends of each MiB beyond | 64MiB |
//! | `log=1` | tells every call on standard error | 0 |
//! | `fail=cuMemAlloc_v2:2:2` | the 2nd call of this entry point answers 2; 0th: every one | |
//! | `workers=4` | threads that run one kernel; 0: as many as there are processors | 0 |
//! | `races=1` | looks for races in kernels' shared memory | 0 |
//! | `cublaslt=13.1` | cuBLASLt of this version is installed | it is not |
//! | `algorithms=0` | cuBLASLt's heuristic finds so many: none, or one | 1 |
//! | `instructions=1000000` | of one warp, before a kernel is taken for endless | 2^28 |
//! | `fail=kernel:3:700` | the 3rd launch fails with 700 when it is performed | |
//! | `fail=copy:5:719` | the 5th asynchronous copy fails with 719 when it is performed | |
//! | `stall=3:50` | the 3rd asynchronous copy takes 50 ms longer | |
//!
//! Of a device: `memory=1GiB` (1 GiB), `upload=2e9`, `download=4e9` (0), `latency_us=10` (10),
//! `capability=8.0` (8.0), `integrated=1`, `pageable=1`, `host_page_tables=1` (0), `numa=1` (-1),
//! `domain=0` (0), `bus=7` (the ordinal + 1), `pools=0` (1), and `fail`, `stall` as above, counting
//! the calls, copies and launches of this device alone.

use crate::cublaslt::is_status;
use crate::error::Code;
use crate::fault::{Effect, Fault, Point};
use std::time::Duration;

/// The whole driver's behaviour.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    pub(crate) devices: Vec<DeviceConfig>,
    pub(crate) no_device: bool,
    pub(crate) driver_version: i32,
    pub(crate) events_immediate: bool,
    pub(crate) strict: bool,
    pub(crate) register_bytes_per_s: f64,
    pub(crate) poison_bytes: u64,
    pub(crate) log: bool,
    /// Threads that run a kernel; 0 is as many as there are processors.
    pub(crate) workers: usize,
    pub(crate) races: bool,
    pub(crate) warp_instructions_max: u64,
    /// Version of cuBLASLt, if it is installed.
    pub(crate) cublaslt: Option<(usize, usize)>,
    pub(crate) algorithms: u32,
    pub(crate) faults: Vec<Fault>,
}

/// One device's behaviour. A rate of 0 is no limit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeviceConfig {
    pub(crate) memory_bytes: u64,
    pub(crate) upload_bytes_per_s: f64,
    pub(crate) download_bytes_per_s: f64,
    pub(crate) latency: Duration,
    pub(crate) capability: (i32, i32),
    pub(crate) integrated: bool,
    pub(crate) pageable: bool,
    pub(crate) host_page_tables: bool,
    pub(crate) pools: bool,
    pub(crate) numa_node: i32,
    pub(crate) pci_domain: i32,
    pub(crate) pci_bus: i32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            no_device: false,
            driver_version: 13000,
            events_immediate: false,
            strict: true,
            register_bytes_per_s: 0.0,
            poison_bytes: 64 << 20,
            log: false,
            workers: 0,
            races: false,
            warp_instructions_max: 1 << 28,
            cublaslt: None,
            algorithms: 1,
            faults: Vec::new(),
        }
    }
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            upload_bytes_per_s: 0.0,
            download_bytes_per_s: 0.0,
            latency: Duration::from_micros(10),
            capability: (8, 0),
            integrated: false,
            pageable: false,
            host_page_tables: false,
            pools: true,
            numa_node: -1,
            pci_domain: 0,
            pci_bus: -1,
        }
    }
}

impl Config {
    /// Reads the words; `is_call` says which entry points there are to fail.
    pub(crate) fn parse(text: &str, is_call: impl Fn(&str) -> bool) -> Result<Self, String> {
        let mut config = Self::default();
        let mut all = DeviceConfig::default();
        let mut count = 1;
        let mut of_one = Vec::new();
        for word in text.split(|c: char| c.is_whitespace() || c == ';').filter(|w| !w.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let told = |reason: String| format!("`{word}`: {reason}");
            if let Some(rest) = key.strip_prefix("device.") {
                let (ordinal, key) = rest.split_once('.').ok_or_else(|| told("no word".into()))?;
                of_one.push((word, number::<usize>(ordinal).map_err(told)?, key, value));
            } else if key == "devices" {
                count = number(value).map_err(told)?;
            } else if !all.set(key, value).map_err(told)?
                && !config.set(key, value, &is_call).map_err(told)?
            {
                return Err(format!("`{word}` is no word of the emulated driver"));
            }
        }
        config.devices = vec![all; count];
        for (ordinal, device) in config.devices.iter_mut().enumerate() {
            if device.pci_bus < 0 {
                device.pci_bus = i32::try_from(ordinal + 1).unwrap_or(i32::MAX);
            }
        }
        for (word, ordinal, key, value) in of_one {
            let told = |reason: String| format!("`{word}`: {reason}");
            let device = config
                .devices
                .get_mut(ordinal)
                .ok_or_else(|| told(format!("there are {count} devices")))?;
            if let Some(fault) = fault(key, value, Some(ordinal), &is_call).map_err(told)? {
                config.faults.push(fault);
            } else if !device.set(key, value).map_err(told)? {
                return Err(format!("`{word}` is no word of an emulated device"));
            }
        }
        Ok(config)
    }

    /// Whether `key` was one of the driver's own words.
    fn set(
        &mut self,
        key: &str,
        value: &str,
        is_call: &impl Fn(&str) -> bool,
    ) -> Result<bool, String> {
        if let Some(fault) = fault(key, value, None, is_call)? {
            self.faults.push(fault);
            return Ok(true);
        }
        match key {
            "no-device" => self.no_device = true,
            "driver" => self.driver_version = number(value)?,
            "events" => {
                self.events_immediate = match value {
                    "immediate" => true,
                    "recorded" => false,
                    _ => return Err("events are `recorded` or `immediate`".into()),
                }
            }
            "strict" => self.strict = flag(value)?,
            "register" => self.register_bytes_per_s = rate(value)?,
            "poison" => self.poison_bytes = bytes(value)?,
            "log" => self.log = flag(value)?,
            "workers" => self.workers = number(value)?,
            "races" => self.races = flag(value)?,
            "cublaslt" => {
                let (major, minor) = value.split_once('.').ok_or("not of the form 13.1")?;
                self.cublaslt = Some((number(major)?, number(minor)?));
            }
            "algorithms" => self.algorithms = number(value)?,
            "instructions" => self.warp_instructions_max = number(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl DeviceConfig {
    /// Whether `key` was one of a device's words.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "memory" => self.memory_bytes = bytes(value)?,
            "upload" => self.upload_bytes_per_s = rate(value)?,
            "download" => self.download_bytes_per_s = rate(value)?,
            "latency_us" => self.latency = Duration::from_micros(number(value)?),
            "capability" => {
                let (major, minor) = value.split_once('.').ok_or("not of the form 8.0")?;
                self.capability = (number(major)?, number(minor)?);
            }
            "integrated" => self.integrated = flag(value)?,
            "pageable" => self.pageable = flag(value)?,
            "host_page_tables" => self.host_page_tables = flag(value)?,
            "pools" => self.pools = flag(value)?,
            "numa" => self.numa_node = number(value)?,
            "domain" => self.pci_domain = number(value)?,
            "bus" => self.pci_bus = number(value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn fault(
    key: &str,
    value: &str,
    device: Option<usize>,
    is_call: &impl Fn(&str) -> bool,
) -> Result<Option<Fault>, String> {
    let parts: Vec<&str> = value.split(':').collect();
    match (key, parts.as_slice()) {
        ("fail", [what @ ("copy" | "kernel"), nth, code]) => Ok(Some(Fault {
            device,
            point: if *what == "copy" { Point::Copy } else { Point::Kernel },
            nth: number(nth)?,
            effect: Effect::Fail(failure(code)?),
        })),
        ("fail", [call, nth, code]) => {
            if !is_call(call) {
                return Err(format!("the emulated driver has no `{call}`"));
            }
            let point = Point::Call((*call).to_string());
            let code = if call.starts_with("cublasLt") { status(code) } else { failure(code) };
            Ok(Some(Fault { device, point, nth: number(nth)?, effect: Effect::Fail(code?) }))
        }
        ("stall", [nth, ms]) => Ok(Some(Fault {
            device,
            point: Point::Copy,
            nth: number(nth)?,
            effect: Effect::Stall(Duration::from_millis(number(ms)?)),
        })),
        ("fail", _) => Err("not of the form fail=WHAT:NTH:CODE (a call, `copy`, `kernel`)".into()),
        ("stall", _) => Err("not of the form stall=NTH:MILLISECONDS".into()),
        _ => Ok(None),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number that fits"))
}

/// A code that callers know: an unknown number is undefined behaviour in bindings with an `enum`.
fn failure(text: &str) -> Result<u32, String> {
    let code = number(text)?;
    let is_failure = code != 0 && Code(code).words().is_some();
    is_failure.then_some(code).ok_or_else(|| format!("{code} is no error of the driver"))
}

/// The same, of cuBLASLt.
fn status(text: &str) -> Result<u32, String> {
    let code = number(text)?;
    is_status(code).then_some(code).ok_or_else(|| format!("{code} is no error of cuBLASLt"))
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err("neither 0 nor 1".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = match text.parse() {
        Ok(rate) => rate,
        #[allow(clippy::cast_precision_loss, reason = "a rate is no count")]
        Err(_) => bytes(text)? as f64,
    };
    if rate.is_finite() && rate >= 0.0 { Ok(rate) } else { Err("no rate".into()) }
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("sizes are in B, KiB, MiB or GiB".into()),
    };
    number::<u64>(digits)?.checked_mul(unit).ok_or_else(|| "more than 64 bits".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, |name| ["cuMemAlloc_v2", "cublasLtMatmul"].contains(&name))
    }

    #[test]
    fn words_of_one_device_win_wherever_they_stand() {
        let config = parse("device.1.memory=64MiB;devices=2  memory=2GiB upload=2e9").unwrap();
        assert_eq!(config.devices[0].memory_bytes, 2 << 30);
        assert_eq!(config.devices[1].memory_bytes, 64 << 20);
        assert_eq!(config.devices[1].upload_bytes_per_s, 2e9);
        assert_eq!((config.devices[0].pci_bus, config.devices[1].pci_bus), (1, 2));
    }

    #[test]
    fn faults_are_of_all_devices_or_of_one() {
        let config = parse("fail=cuMemAlloc_v2:0:2 device.0.fail=copy:5:719 stall=1:20").unwrap();
        assert_eq!(config.faults.len(), 3);
        assert_eq!(config.faults[0].point, Point::Call("cuMemAlloc_v2".into()));
        // A device's words are read last.
        assert_eq!(config.faults[2].device, Some(0));
        assert_eq!(config.faults[1].effect, Effect::Stall(Duration::from_millis(20)));
    }

    #[test]
    fn cublaslt_has_a_version_and_errors_of_its_own() {
        let config = parse("cublaslt=13.1 fail=cublasLtMatmul:1:14").unwrap();
        assert_eq!(config.cublaslt, Some((13, 1)));
        assert_eq!(config.faults[0].effect, Effect::Fail(14));
        assert_eq!(parse("").unwrap().cublaslt, None);
    }

    #[test]
    fn a_wrong_word_is_named() {
        for wrong in [
            "memroy=1GiB",
            "memory=1GB",
            "strict=yes",
            "device.1.memory=1GiB",
            "device.0.strict=0",
            "fail=cuMemAllc:1:2",
            "fail=copy:1",
            "fail=kernel:1:0",
            "workers=many",
            "fail=copy:1:0",
            "fail=copy:1:12345",
            "events=never",
            "capability=8",
            "cublaslt=13",
            "fail=cublasLtMatmul:1:2",
            "upload=-1",
        ] {
            assert!(parse(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}

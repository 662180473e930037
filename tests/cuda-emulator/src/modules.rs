//! Modules and kernels: PTX that [`forebay_ptx`] parses and runs.

use crate::device::Device;
use crate::driver::driver;
use crate::error::{Answer, Code};
use crate::handles::lock;
use crate::header::{newest_version, runs_on, target_number, two_numbers, word_after};
use crate::multiprocessor::{BLOCK_THREADS, Multiprocessor, SHARED_BYTES};
use forebay_ptx::Entry;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Kernels and variables that were loaded together, for one device.
pub(crate) struct Module {
    pub(crate) device: Arc<Device>,
    pub(crate) ptx: Arc<forebay_ptx::Module>,
    /// Addresses of the variables that were asked for.
    variables: Mutex<BTreeMap<String, u64>>,
}

/// A kernel.
pub(crate) struct Function {
    pub(crate) module: Arc<Module>,
    index: usize,
    /// What a launch may ask for beside what the kernel declares, in bytes.
    dynamic_shared_max: AtomicU32,
}

/// Why an image is not loaded: the answer, and what a compiler would log.
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) log: String,
}

/// How images begin that are no text: cubin, fat binary, and a fat binary's wrapper.
const BINARIES: [(&[u8], &str); 3] = [
    (b"\x7FELF", "a cubin"),
    (b"\x50\xED\x55\xBA", "a fat binary"),
    (b"\xB1\x43\x62\x46", "a fat binary's wrapper"),
];

impl Module {
    /// Loads a text for a device, if driver and device are new enough for it.
    pub(crate) fn load(device: &Arc<Device>, image: &[u8]) -> Result<Self, Refusal> {
        let refuse = |code, log| Err(Refusal { code, log });
        if let Some((_, kind)) = BINARIES.iter().find(|(start, _)| image.starts_with(start)) {
            let log = format!("{kind} can't be run here: PTX is needed");
            return refuse(Code::NO_BINARY_FOR_GPU, log);
        }
        let text = String::from_utf8_lossy(image);
        let newest = newest_version(driver().behaviour().config.driver_version);
        // Before the text is parsed: what is too new need not be understood.
        if let Some((line, version)) = word_after(&text, ".version")
            && let Some(needed) = two_numbers(version)
            && needed > newest
        {
            let (major, minor) = newest;
            let log = format!(
                "ptxas application ptx input, line {line}; fatal   : Unsupported .version \
                 {version}; current version is '{major}.{minor}'"
            );
            return refuse(Code::UNSUPPORTED_PTX_VERSION, log);
        }
        let capability = device.settings().capability;
        if let Some((_, target)) = word_after(&text, ".target")
            && !runs_on(target, capability)
        {
            let (major, minor) = capability;
            let log = format!("ptxas fatal   : .target {target} does not run on sm_{major}{minor}");
            return refuse(Code::NO_BINARY_FOR_GPU, log);
        }
        match forebay_ptx::Module::parse(&text) {
            Ok(ptx) => Ok(Self {
                device: Arc::clone(device),
                ptx: Arc::new(ptx),
                variables: Mutex::default(),
            }),
            Err(error) => {
                let (line, cause) = (error.line, error.cause);
                let log = format!(
                    "ptxas application ptx input, line {line}; error   : {cause}\n\
                     ptxas fatal   : Ptx assembly aborted due to errors"
                );
                refuse(Code::INVALID_PTX, log)
            }
        }
    }

    pub(crate) fn function(self: &Arc<Self>, name: &str) -> Answer<Function> {
        let index = self.ptx.entries().iter().position(|entry| entry.name == name);
        let index = index.ok_or(Code::NOT_FOUND)?;
        let of_its_own = self.ptx.entries()[index].shared_bytes;
        let dynamic_shared_max = AtomicU32::new(SHARED_BYTES.saturating_sub(of_its_own));
        Ok(Function { module: Arc::clone(self), index, dynamic_shared_max })
    }

    /// Address and size of a variable, the same ones each time.
    pub(crate) fn variable(&self, name: &str) -> Answer<(u64, usize)> {
        let mut found = self.ptx.variables().iter().filter(|variable| variable.name == name);
        let variable = found.next().ok_or(Code::NOT_FOUND)?;
        let mut known = lock(&self.variables);
        if let Some(address) = known.get(name) {
            return Ok((*address, variable.bytes));
        }
        let address = driver().memory.show(&self.device, &self.ptx, variable)?;
        known.insert(name.to_owned(), address);
        Ok((address, variable.bytes))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        for address in lock(&self.variables).values() {
            driver().memory.hide(*address);
        }
    }
}

impl Function {
    pub(crate) fn entry(&self) -> &Entry {
        &self.module.ptx.entries()[self.index]
    }

    pub(crate) fn multiprocessor(&self) -> Multiprocessor {
        Multiprocessor::of(self.module.device.settings().capability)
    }

    /// How many threads a block may have.
    pub(crate) fn threads_max(&self) -> u32 {
        let entry = self.entry();
        let said = entry.block_required.or(entry.block_max);
        said.map_or(BLOCK_THREADS, |[x, y, z]| {
            x.saturating_mul(y).saturating_mul(z).min(BLOCK_THREADS)
        })
    }

    pub(crate) fn dynamic_shared_max(&self) -> u32 {
        self.dynamic_shared_max.load(Ordering::Relaxed)
    }

    /// A `CUfunction_attribute`, by number. Registers are the virtual ones, as many as there can
    /// be.
    pub(crate) fn attribute(&self, attribute: i32) -> Answer<i32> {
        let entry = self.entry();
        let (major, minor) = self.module.device.settings().capability;
        let number = match attribute {
            0 => self.threads_max(),
            1 => entry.shared_bytes,
            3 => entry.local_bytes,
            4 => entry.registers().min(255),
            5 => target_number(self.module.ptx.target()).unwrap_or(0),
            6 => u32::try_from(major * 10 + minor).unwrap_or(0),
            8 => self.dynamic_shared_max(),
            // Constants; whether they are cached; how shared memory is split off.
            2 | 7 | 9 => 0,
            _ => return Err(Code::INVALID_VALUE),
        };
        Ok(i32::try_from(number).unwrap_or(i32::MAX))
    }

    pub(crate) fn set_attribute(&self, attribute: i32, value: i32) -> Answer {
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) => {
                let room = self.multiprocessor().shared_bytes_of_block;
                if self.entry().shared_bytes.saturating_add(bytes) > room {
                    return Err(Code::INVALID_VALUE);
                }
                self.dynamic_shared_max.store(bytes, Ordering::Relaxed);
                Ok(())
            }
            // How shared memory is split off the cache, in percent: a hint.
            (9, _) if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}

//! Everything that ends a load, with its remedy.

use forebay_compute::ComputeError;
use forebay_device::DeviceError;
use forebay_device::cuda::DriverRefusal;
use forebay_format::FormatError;
use forebay_io::{Errno, FailureKind, OpenError, OpenErrorKind, Performer, ReadFailure};
use forebay_mem::{MemoryError, Operation};
use std::path::{Path, PathBuf};

/// Where a read failed, in the user's terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadContext {
    /// The file, where one is to blame.
    pub path: Option<PathBuf>,
    /// The tensor whose bytes did not come; of several that were asked for at once, the first.
    pub tensor: Option<String>,
}

impl ReadContext {
    fn describe(&self) -> String {
        let path = self.path.as_ref().map(|path| path.display().to_string());
        match (path, &self.tensor) {
            (Some(path), Some(tensor)) => format!("{path}: tensor '{tensor}': "),
            (Some(path), None) => format!("{path}: "),
            (None, _) => String::new(),
        }
    }
}

/// What stands in the way of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockBound {
    /// The kernel refused: RLIMIT_MEMLOCK, where there is one.
    Memlock,
    /// What the rest of the load leaves of the memory at hand.
    Memory {
        /// Bytes.
        left_bytes: u64,
        /// Whether a cgroup's limit bounds it, rather than the machine.
        by_cgroup: bool,
    },
    /// The tensors lie in more separate pieces than a process may have areas of memory.
    Pieces {
        /// How many may be locked.
        most: usize,
    },
}

/// What ends a load. [`Error::remedy`] says what to do about it, where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A folder or file that is no model, or no single one.
    #[error("{}: {cause}", path.display())]
    NoModel {
        /// What was named.
        path: PathBuf,
        /// Why it is none.
        cause: String,
        /// What to name instead.
        remedy: String,
    },
    /// The header is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The header can't be read.
    #[error("{}: the header can't be read", path.display())]
    Header {
        /// Of which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An option that can't be met.
    #[error("{option}: {cause}")]
    Option {
        /// Which, spelt as on the command line.
        option: &'static str,
        /// Why.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// Not even one layer after the other fits into the device memory that a stream may take.
    #[error("{budget_bytes} bytes of device memory are too few for '{layer}', the largest layer")]
    Budget {
        /// What it may take.
        budget_bytes: u64,
        /// The least that works.
        least_bytes: u64,
        /// The largest layer.
        layer: String,
    },
    /// A read failed.
    #[error("{}{failure}", context.describe())]
    Read {
        /// Where.
        context: ReadContext,
        /// How.
        failure: ReadFailure,
    },
    /// A file was written to while it was being loaded: what has landed may be a mixture.
    #[error("{}: the file changed during the load: {change}", path.display())]
    Changed {
        /// Which file.
        path: PathBuf,
        /// What is different now.
        change: String,
    },
    /// Memory was refused.
    #[error("{what}")]
    Memory {
        /// What it was for.
        what: String,
        /// What the system answered.
        source: MemoryError,
    },
    /// `mlock-strict` can't be met.
    #[error("mlock-strict: {refused_bytes} of {requested_bytes} bytes can't be locked ({errno})")]
    LockRefused {
        /// Bytes to lock.
        requested_bytes: u64,
        /// Bytes refused.
        refused_bytes: u64,
        /// RLIMIT_MEMLOCK, where there is one.
        limit_bytes: Option<u64>,
        /// What they don't fit in.
        bound: LockBound,
        /// What the system answered.
        errno: Errno,
    },
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The tensors do not fit into a device's memory. Nothing has been read.
    #[error(
        "no room for {needed_bytes} bytes of tensors in the memory of {device}{}: {}",
        .free_bytes.map(|free| format!(", which has {free} bytes free")).unwrap_or_default(),
        do_not_fit(.left_out)
    )]
    DeviceFull {
        /// Which device.
        device: String,
        /// What all of them take.
        needed_bytes: u64,
        /// What is free, if the driver tells.
        free_bytes: Option<u64>,
        /// The tensors that lie past what is free, by name.
        left_out: Vec<String>,
    },
    /// A copy to a device failed, or the device did while it was under way.
    #[error("{}a copy to {device} failed", context.describe())]
    Copy {
        /// The file and the first tensor whose bytes were being copied.
        context: ReadContext,
        /// Which device.
        device: String,
        /// What the driver answered.
        #[source]
        refusal: DriverRefusal,
    },
    /// The load has failed, and its iterator has given out why.
    #[error("the load has failed; its iterator has said why")]
    AlreadyReported,
    /// Somebody asked the load to stop.
    #[error("cancelled")]
    Cancelled,
    /// The process was forked off while the load was under way, whose threads it does not have.
    #[error("the load is one of process {origin}, and its threads are there")]
    Forked {
        /// The process that began it.
        origin: u32,
    },
    /// The system gives no more threads.
    #[error("a thread of the load can't be started")]
    Thread {
        /// What the system answered.
        source: std::io::Error,
    },
    /// A tensor that was to be multiplied is no matrix.
    #[error("tensor '{tensor}' is no matrix: {cause}")]
    NoMatrix {
        /// Which.
        tensor: String,
        /// Why not.
        cause: String,
    },
    /// What was asked of a tensor can't be computed.
    #[error("tensor '{tensor}' can't be computed on")]
    Compute {
        /// Which.
        tensor: String,
        /// Why not.
        source: ComputeError,
    },
    /// A thread of the load panicked: a bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn option(option: &'static str, cause: &str, remedy: &str) -> Self {
        Self::Option { option, cause: cause.to_owned(), remedy: remedy.to_owned() }
    }

    pub(crate) fn no_model(path: &Path, cause: &str, remedy: &str) -> Self {
        let (cause, remedy) = (cause.to_owned(), remedy.to_owned());
        Self::NoModel { path: path.to_owned(), cause, remedy }
    }

    pub(crate) fn memory(what: impl Into<String>) -> impl FnOnce(MemoryError) -> Self {
        let what = what.into();
        |source| Self::Memory { what, source }
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Open(error) => return open_remedy(&error.kind),
            Self::NoModel { remedy, .. } | Self::Option { remedy, .. } => remedy.clone(),
            Self::Budget { least_bytes, .. } => {
                format!("give at least {least_bytes} bytes (--vram-budget {least_bytes})")
            }
            Self::Format(error) => error.remedy().map_or_else(
                || "the file is damaged, or not what its name says: get it again".to_owned(),
                ToOwned::to_owned,
            ),
            Self::Read { failure, .. } => return read_remedy(failure),
            Self::Changed { .. } => {
                "load it again once nobody writes to it (a download still running?)".to_owned()
            }
            Self::LockRefused { requested_bytes, limit_bytes, bound, .. } => {
                lock_remedy(*requested_bytes, *limit_bytes, *bound)
            }
            Self::Memory { source, .. } => return memory_remedy(source.operation),
            Self::Device(DeviceError::Unavailable(why)) => why.remedy().to_owned(),
            Self::Device(DeviceError::Driver { refusal, .. }) | Self::Copy { refusal, .. } => {
                refusal.remedy().to_owned()
            }
            Self::Device(DeviceError::Library { refusal, .. }) => refusal.remedy().to_owned(),
            Self::Device(DeviceError::NotOfDevice { .. }) => {
                "lend memory of that device's primary context (the one of CUDA's runtime), all of it \
                 allocated"
                    .to_owned()
            }
            Self::Device(DeviceError::OutOfMemory { .. }) | Self::DeviceFull { .. } => {
                "offload fewer layers (--gpu-layers N) or free memory".to_owned()
            }
            Self::Forked { .. } => {
                "begin loads after the fork, or start processes anew (spawn) instead of forking them"
                    .to_owned()
            }
            Self::Thread { .. } => {
                "raise the limits of threads (ulimit -u) and address space (ulimit -v)".to_owned()
            }
            Self::Internal(_) => "please report it, with the model's header and the command".into(),
            Self::Header { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(errno) => return open_remedy(&OpenErrorKind::Errno(errno)),
                None => "the file ends before its header does: get it again".to_owned(),
            },
            Self::Device(_)
            | Self::NoMatrix { .. }
            | Self::Compute { .. }
            | Self::Cancelled
            | Self::AlreadyReported => return None,
        })
    }
}

/// Names a few of the tensors, and counts them all.
fn do_not_fit(names: &[String]) -> String {
    const NAMED_MAX: usize = 3;
    let named: Vec<String> = names.iter().take(NAMED_MAX).map(|name| format!("'{name}'")).collect();
    match (names.len(), names.len().saturating_sub(NAMED_MAX)) {
        (0, _) => "the driver refuses it all the same".to_owned(),
        (1, _) => format!("{} does not fit", named.join(", ")),
        (_, 0) => format!("{} do not fit", named.join(", ")),
        (_, others) => format!("{} and {others} more tensors do not fit", named.join(", ")),
    }
}

fn open_remedy(kind: &OpenErrorKind) -> Option<String> {
    let text = match kind {
        OpenErrorKind::Errno(Errno::ENOENT) => "check the path",
        OpenErrorKind::Errno(Errno::EACCES | Errno::EPERM) => {
            "make it readable for this user (chmod, chown), or run as one who may read it"
        }
        OpenErrorKind::Errno(Errno::EMFILE | Errno::ENFILE) => {
            "raise the limit of open files: ulimit -n 4096"
        }
        OpenErrorKind::Directory => "name a file in it, or a folder that holds one model",
        OpenErrorKind::NotSeekable(_) => "write it to a file first, and name that",
        OpenErrorKind::Replaced => "try again once nobody writes to it",
        _ => return None,
    };
    Some(text.to_owned())
}

fn read_remedy(failure: &ReadFailure) -> Option<String> {
    let text = match &failure.kind {
        FailureKind::EndOfFile => {
            "the file was cut short after it was opened: get it again, and load it when whole"
        }
        FailureKind::FallbackForbidden { performer: Performer::UringPolled, .. }
            if failure.file.is_none() =>
        {
            "give the drive queues to poll (boot with nvme.poll_queues=1), or use --engine uring"
        }
        FailureKind::FallbackForbidden { .. } if failure.file.is_none() => {
            "leave --no-fallback out, use --engine auto, or allow io_uring (forebay doctor says how)"
        }
        FailureKind::FallbackForbidden { .. } => {
            "leave --no-fallback out, or choose a mode this file's storage takes (forebay doctor)"
        }
        // The kernel's words for a medium, a cable, a controller or a drive that is gone.
        FailureKind::Errno(
            Errno::EIO
            | Errno::ENODATA
            | Errno::EILSEQ
            | Errno::EREMOTEIO
            | Errno::ENOLINK
            | Errno::ETIMEDOUT
            | Errno::ENODEV
            | Errno::ENXIO,
        ) => "the storage failed: look at dmesg and the drive's health, get the file again",
        FailureKind::Errno(Errno::ESTALE) => "the network filesystem lost the file: mount it anew",
        FailureKind::RingLost(_) => "use --engine threads, which does without io_uring",
        FailureKind::Stalled(_) => "the storage does not answer: look at dmesg",
        _ => return None,
    };
    Some(text.to_owned())
}

fn memory_remedy(operation: Operation) -> Option<String> {
    let text = match operation {
        Operation::Reserve => "give a smaller --staging or --chunk, or free memory",
        Operation::MapFile => "use --load-mode dio or none, which map nothing",
        Operation::ReadMapping => "the file was cut short or its storage failed: get it again",
        _ => return None,
    };
    Some(text.to_owned())
}

fn lock_remedy(requested_bytes: u64, limit_bytes: Option<u64>, bound: LockBound) -> String {
    let need_kib = requested_bytes.div_ceil(1024);
    match (bound, limit_bytes) {
        (LockBound::Memory { left_bytes, by_cgroup: true }, _) => format!(
            "the cgroup has {left_bytes} bytes left and {requested_bytes} are needed: raise its \
             memory.max (docker run --memory, MemoryMax= of the service), or use --load-mode mlock"
        ),
        (LockBound::Memory { left_bytes, .. }, _) => format!(
            "the machine has {left_bytes} bytes left and {requested_bytes} are needed: free \
             memory, or use --load-mode mlock"
        ),
        (LockBound::Pieces { most }, _) => format!(
            "the tensors lie in more than {most} separate pieces: raise the limit of memory areas \
             (sysctl vm.max_map_count), or use --load-mode mlock"
        ),
        (LockBound::Memlock, Some(limit)) => format!(
            "the limit is {limit} bytes and {requested_bytes} are needed: ulimit -l {need_kib} \
             (as root, or LimitMEMLOCK= of the service), or use --load-mode mlock"
        ),
        (LockBound::Memlock, None) => "free memory, or use --load-mode mlock".to_owned(),
    }
}

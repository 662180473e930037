//! An ordinary user's limit of locked memory, also for those who are root.

use std::io::Error;

const CAP_IPC_LOCK: u32 = 14;
/// Of `capget` and `capset`, with two words for each set.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The soft RLIMIT_MEMLOCK of this process at another value, until it is dropped; it binds
/// ordinary users, and threads that have [given up](give_up_locking_past_limits) more.
#[derive(Debug)]
pub struct MemlockLimit {
    before: libc::rlimit,
}

impl MemlockLimit {
    /// At `bytes`; `None` where the hard limit is lower.
    ///
    /// # Panics
    /// If the system has no such limit.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one `rlimit`, which outlives the call.
        let answer = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut before) };
        assert_eq!(answer, 0, "getrlimit: {}", Error::last_os_error());
        (before.rlim_max >= bytes).then(|| {
            set(libc::rlimit { rlim_cur: bytes, ..before });
            Self { before }
        })
    }
}

impl Drop for MemlockLimit {
    fn drop(&mut self) {
        set(self.before);
    }
}

fn set(limit: libc::rlimit) {
    // SAFETY: the kernel reads one `rlimit`, which outlives the call.
    let answer = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    assert_eq!(answer, 0, "setrlimit: {}", Error::last_os_error());
}

/// From now on, the calling thread and those it starts may lock no more than the limit, as an
/// ordinary user's may not. There is no way back: call it on a thread that ends soon.
///
/// # Panics
/// If the system does not take capabilities away.
pub fn give_up_locking_past_limits() {
    let mut header = Header { version: VERSION_3, process: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: a header and two sets, as this version has them, which outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    assert_eq!(answer, 0, "capget: {}", Error::last_os_error());
    sets[0].effective &= !(1 << CAP_IPC_LOCK);
    sets[0].permitted &= !(1 << CAP_IPC_LOCK);
    // SAFETY: as above.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    assert_eq!(answer, 0, "capset: {}", Error::last_os_error());
}

//! The sysctl that forbids io_uring to the whole system.
//!
//! Being system-wide it would break whatever else is running, other tests included; so this file
//! does nothing unless `FOREBAY_ROOT_TESTS=1` is set, and is meant to be run alone:
//!
//! ```sh
//! FOREBAY_ROOT_TESTS=1 cargo test -p forebay-tests --test io_uring_disabled
//! ```
//!
//! `tests/seccomp.rs` shows the same ladder to a filter, on one thread, everywhere.

use forebay_io::{Access, Errno, Performer, Rung, StepAt, uring_support};
use forebay_tests::{Load, Scratch, cut};
use std::os::unix::fs::MetadataExt;

const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// The sysctl at another value, until it is dropped.
struct Disabled {
    before: String,
}

impl Disabled {
    fn new() -> std::io::Result<Self> {
        let before = std::fs::read_to_string(SYSCTL)?;
        std::fs::write(SYSCTL, "2")?;
        Ok(Self { before })
    }
}

impl Drop for Disabled {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(SYSCTL, self.before.trim()) {
            eprintln!("{SYSCTL} is left at 2 instead of {:?}: {error}", self.before);
        }
    }
}

/// Why it can't be done here.
fn obstacle() -> Option<&'static str> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if std::env::var_os("FOREBAY_ROOT_TESTS").is_none_or(|value| value != "1") {
        return Some("FOREBAY_ROOT_TESTS=1 is not set");
    } else if !is_root {
        return Some("this is not root");
    } else if !std::path::Path::new(SYSCTL).exists() {
        return Some("the kernel has no io_uring_disabled");
    }
    None
}

/// One test, so that nothing in this process runs beside it.
#[test]
fn the_load_goes_on_by_threads_and_says_why() {
    if let Some(obstacle) = obstacle() {
        eprintln!("SKIPPED: {obstacle}");
        return;
    }
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"), &[700_001]);
    let files = scratch.open();
    let reads = cut(&files, 64 << 10, Access::Buffered);
    let disabled = Disabled::new().expect("root may write its own sysctl");
    assert_eq!(uring_support(), Err(Errno::EPERM));
    let landed = Load::new(files, reads, Performer::Uring).run();
    drop(disabled);
    landed.expect_whole(scratch.contents());
    let [step] = landed.outcome.schedule.steps() else {
        panic!("{:?}", landed.outcome.schedule.steps())
    };
    let (from, to) = (Rung::Performer(Performer::Uring), Rung::Performer(Performer::Threads));
    assert_eq!((step.from, step.to, step.errno, step.at), (from, to, Errno::EPERM, StepAt::Setup));
}

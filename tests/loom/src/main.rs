//! Models of what forebay's threads share, which loom runs in every order of threads that it finds to
//! matter, with every value that an atomic may be read as.
//!
//! The files are the library's own, taken as they are; loom's types stand in for those of `std::sync`,
//! a channel made of a lock for crossbeam's, and memory that loom watches for mapped memory. They are
//! a program of its own rather than a `cfg(loom)` of the library, so that nothing of it is in the
//! library's dependencies, and since tokio, which loom's flag means as well, builds other things by it.
//!
//! ```sh
//! cargo run --release --locked --manifest-path tests/loom/Cargo.toml                  # all
//! cargo run --release --locked --manifest-path tests/loom/Cargo.toml slots_go_round   # one
//! ```
//!
//! All: every model, and then again with one `Acquire` or `Release` after the other made `Relaxed`,
//! each of which must make a model fail. So the models see what they are meant to see, and no ordering
//! stands in the library without a reason. `--models` leaves that out; `tests/loom/mutants` makes other
//! mistakes.
//!
//! Atomics of which there is no model order nothing: counters of bytes and of time (all `Relaxed`),
//! the flags of `forebay-io/src/prefetch.rs` (advice, all `Relaxed`; what is brought in is under a
//! lock), and the published flags of `forebay-device/src/cuda/arena.rs`, which are those of `arena.rs`
//! with memory that no thread of the host touches. `Pool` and `Staging` share by a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

macro_rules! library {
    ($($file:literal $name:ident;)+) => {$(
        #[path = $file]
        #[allow(dead_code, unreachable_pub, missing_docs, reason = "whole files, of which models use a part")]
        mod $name;
    )+};
}

library! {
    "../../../crates/forebay-mem/src/align.rs" align;
    "../../../crates/forebay-mem/src/error.rs" memory_error;
    "../../../crates/forebay-mem/src/place.rs" place;
    "../../../crates/forebay-mem/src/pointer.rs" pointer;
    "../../../crates/forebay-mem/src/populate.rs" populate;
    "../../../crates/forebay-mem/src/slab.rs" slab;
    "../../../crates/forebay-io/src/bell.rs" bell;
    "../../../crates/forebay-io/src/cancel.rs" cancel;
    "../../../crates/forebay-io/src/feed.rs" feed;
    "../../../crates/forebay-io/src/engine/free.rs" free;
    "../../../crates/forebay-device/src/arena.rs" arena;
    "../../../crates/forebay/src/pipeline/landing.rs" landing;
    "../../../crates/forebay/src/resident.rs" resident;
    "../../../crates/forebay/src/waking.rs" waking;
}

mod channel;
mod models;
mod region;
mod sync;

// By these names the files above know each other, and the crates that they are not in here.
extern crate self as crossbeam_channel;
extern crate self as forebay_mem;
use align::Alignment;
use channel::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, bounded};
use place::{Place, PlaceWatch};
use pointer::HostPointer;
use region::Region;
use slab::{Free, Slot};

mod error {
    pub(crate) use crate::memory_error::*;

    /// In the place of the device's own, which speaks of drivers.
    #[derive(Debug)]
    #[allow(dead_code, reason = "made where memory is refused, which here is not")]
    pub enum DeviceError {
        OutOfMemory { device: String, needed_bytes: u64, source: MemoryError },
        TooLarge,
    }
}

mod pool {
    /// Arenas of models have a region of their own.
    #[derive(Debug)]
    pub(crate) enum Bay {}

    impl Bay {
        pub(crate) fn start(&self) -> u64 {
            match *self {}
        }
    }
}

mod schedule {
    #[derive(Debug)]
    pub(crate) struct ReadSpec {
        pub(crate) bytes: u32,
        pub(crate) need_bytes: u32,
    }
}

/// Runs one model in this process, and says what it asked for.
fn run(name: &str) -> ExitCode {
    let Some((_, bound, model)) = models::ALL.iter().find(|(known, ..)| *known == name) else {
        eprintln!("there is no model {name}");
        return ExitCode::from(2);
    };
    let started = Instant::now();
    let orders = models::check(*bound, *model);
    println!("{orders} orders in {:.1} s", started.elapsed().as_secs_f64());
    sync::atomic::asked().iter().for_each(|place| println!("{place}"));
    ExitCode::SUCCESS
}

/// One model in a process of its own: what it printed, if it passed.
fn run_apart(name: &str, weakened: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(name).stdin(Stdio::null()).env_remove(sync::atomic::RELAXED);
    if let Some(place) = weakened {
        command.env(sync::atomic::RELAXED, place);
    }
    let output = command.output().expect("this program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let models_only = argument.as_deref() == Some("--models");
    if let Some(name) = argument.filter(|_| !models_only) {
        return run(&name);
    }
    let mut by_place: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut has_failed = false;
    for (name, ..) in models::ALL {
        match run_apart(name, None) {
            Ok(said) => {
                let mut lines = said.lines();
                println!("{name}: {}", lines.next().unwrap_or_default());
                for place in lines {
                    by_place.entry(place.to_owned()).or_default().insert(name);
                }
            }
            Err(said) => {
                println!("{name}: FAILED\n{said}");
                has_failed = true;
            }
        }
    }
    if has_failed || models_only {
        return if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    for (place, models) in &by_place {
        let caught = models.iter().find(|name| run_apart(name, Some(place)).is_err());
        match caught {
            Some(name) => println!("{place} made Relaxed: {name} fails"),
            None => println!("{place} made Relaxed: FAILED, no model notices"),
        }
        has_failed |= caught.is_none();
    }
    if by_place.is_empty() {
        println!("FAILED: no model has used an ordering");
        return ExitCode::FAILURE;
    }
    if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

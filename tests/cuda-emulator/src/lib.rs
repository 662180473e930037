//! An NVIDIA driver for tests: what a program finds as `libcuda.so`, over ordinary memory.
//!
//! Two things in one crate, which share nothing but names:
//!
//! - the **driver**, a shared library: the entry points in `api`, and below them devices,
//!   device memory, registered host memory, streams, events and copies. Streams are threads,
//!   copies take the time that a set bandwidth gives them and read their source when it is due,
//!   so a host buffer that is written too early really arrives corrupt;
//! - the **harness**, for tests in Rust: [`Emulator`] says how the driver is to behave and puts it
//!   where a child or this very process finds it; [`Report`] is what the driver saw.
//!
//! The harness speaks to the driver through symbols and the environment only: the statics of the
//! Rust library that a test links are not those of the shared library that it opens.
//!
//! What a driver is told are words, in `FOREBAY_CUDA_EMULATOR` or from an [`Emulator`]; they are
//! listed at the top of `src/config.rs`. Programs know the emulated driver by its symbol
//! `forebay_cuda_emulator`.
//!
//! Found as `libcublasLt.so.13` (or of another version), the same library is cuBLASLt as far as
//! products of dense matrices need it, if it was told to be: `cublaslt=13.1`.
//!
//! Kept simple, on the safe side: memory is accounted to the byte, without a driver's rounding and
//! without its own share; memory that is freed is unmapped, so late accesses fault; destroying a
//! stream and freeing memory wait for the work. Memory beyond `poison` is poisoned at the ends of
//! each MiB alone. Sources above 64 MiB are staged but not compared. A rate can't be held once the
//! machine is slower than it: comparing sources costs a copy more, so benchmarks go without.
//!
//! Not modelled: implicit synchronisation of the legacy default stream (the null stream is one like
//! any other), graphs, managed memory, memory pools other than the default one, contexts other than
//! the primary ones, peer access, arrays and textures. Kernels are PTX, interpreted by `forebay-ptx`,
//! as long as they take: their speed means nothing. Each has the whole device to itself, so limits
//! on registers and on resident blocks are not modelled, and a variable has one address in its
//! module and another from `cuModuleGetGlobal`. A kernel reaches its own device's memory and pinned
//! host memory, no pageable memory; a store to host memory that the host itself can't write kills
//! the process.

mod api;
mod config;
mod copy;
mod cublaslt;
mod device;
mod driver;
mod error;
mod event;
mod fault;
mod flight;
mod handles;
mod harness;
mod header;
mod host_memory;
mod kernel_memory;
mod launch;
mod memory;
mod modules;
mod multiprocessor;
mod on_device;
mod report;
mod shape;
mod stream;
mod timeline;

pub use harness::{DeviceWords, Emulator};
pub use report::{DeviceReport, Held, Report, Traffic};

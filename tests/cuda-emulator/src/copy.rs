//! Copies: checked when they are asked for, performed when they are due.
//!
//! ```text
//!   asked for ─────────────── waits its turn ─────────────── slice ■ slice ■ slice ■ ── done
//!   pageable source: staged   pinned source: read only here, each slice when it is due
//! ```
//!
//! A pinned source belongs to the copy until the copy is done. The emulator keeps what it held when
//! the copy was asked for and compares that with what arrived; a difference is a violation, told
//! with its first byte.

use crate::device::{Device, Direction};
use crate::driver::{Driver, driver};
use crate::error::{Answer, Code};
use crate::fault::CopyFault;
use crate::handles::lock;
use crate::host_memory::Kind;
use crate::memory::{Piece, is_device_address};
use crate::shape::Shape;
use crate::stream::Stream;
use crate::timeline::{self, Span};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Sources above this are not compared.
const COMPARED_BYTES_MAX: usize = 64 << 20;
/// A copy is cut into about this many slices, within bounds that keep both sleeping and lateness
/// small.
const SLICES: usize = 8;
const SLICE_BYTES_MIN: usize = 64 << 10;
const SLICE_BYTES_MAX: usize = 1 << 20;

/// A copy between host and device, as asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) direction: Direction,
    pub(crate) host: u64,
    pub(crate) device: u64,
    pub(crate) shape: Shape,
    /// Whether the call may return before the copy is done.
    pub(crate) asynchronous: bool,
}

/// Where a copy finds or leaves its bytes on the host.
enum HostSide {
    Memory(usize),
    Staged(Vec<u8>),
}

/// A copy that waits for its turn.
struct Transfer {
    driver: &'static Driver,
    device: Arc<Device>,
    direction: Direction,
    device_address: u64,
    device_bytes: usize,
    host: HostSide,
    shape: Shape,
    asked_at: Instant,
    fault: CopyFault,
    /// What a pinned source held when the copy was asked for.
    kept: Option<Vec<u8>>,
    tickets: Vec<u64>,
}

/// Asks a stream for a copy between host and device.
///
/// # Safety
/// As for the driver's entry points: the host's memory is there for reading or writing, pinned
/// memory until the copy is done, other memory until this returns.
pub(crate) unsafe fn ask(stream: &Stream, request: Request) -> Answer {
    let Request { direction, shape, asynchronous, .. } = request;
    if shape.width == 0 || shape.rows == 0 {
        return Ok(());
    }
    let (driver, device) = (driver(), &stream.device);
    let device_bytes = shape.extent(shape.device_pitch)?;
    driver.memory.find_on(device, request.device, device_bytes)?;
    let host_bytes = shape.extent(shape.host_pitch)? as u64;
    let host_end = request.host.checked_add(host_bytes).ok_or(Code::INVALID_VALUE)?;
    let host_range = request.host..host_end;
    let is_pinned = is_pinned(driver, &host_range)?;
    let behaviour = driver.behaviour();
    let mut transfer = Transfer {
        driver,
        device: Arc::clone(device),
        direction,
        device_address: request.device,
        device_bytes,
        host: HostSide::Memory(usize::try_from(request.host).map_err(|_| Code::INVALID_VALUE)?),
        shape,
        asked_at: Instant::now(),
        fault: CopyFault::default(),
        kept: None,
        tickets: vec![
            driver.flights.take_off(request.device..request.device + device_bytes as u64),
        ],
    };
    if asynchronous {
        transfer.fault = behaviour.faults.copy(device.ordinal);
    }
    if is_pinned {
        transfer.tickets.push(driver.flights.take_off(host_range));
    }
    if direction == Direction::Upload {
        // SAFETY: the caller lends the source.
        unsafe { transfer.look_at_source(is_pinned, behaviour.config.strict) };
    }
    device.copy_begins();
    if asynchronous && (is_pinned || direction == Direction::Upload) {
        stream.push(move |ready| transfer.perform(ready));
        return Ok(());
    }
    // Into pageable memory, even an asynchronous copy is done when the call returns.
    stream.perform(move |ready| transfer.perform(ready));
    device.check()
}

fn is_pinned(driver: &Driver, range: &Range<u64>) -> Answer<bool> {
    let reason = match driver.host.kind(range) {
        _ if range.start == 0 => "is null",
        _ if is_device_address(range.start) => "is no host address",
        Kind::Pinned => return Ok(true),
        Kind::Pageable => return Ok(false),
        Kind::Mixed => "is registered only in part, or in several parts",
    };
    eprintln!("[cuda emulator] host memory {:#x}..{:#x} {reason}", range.start, range.end);
    Err(Code::INVALID_VALUE)
}

/// Buffers of copies that are done, for the next ones: fresh memory costs more than the copy.
static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
const SPARE_MAX: usize = 16;
const SPARE_BYTES_MAX: usize = 16 << 20;

fn spare(buffer: Vec<u8>) {
    let mut spare = lock(&SPARE);
    if spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES_MAX {
        spare.push(buffer);
    }
}

/// The bytes of a shape, one after the other.
///
/// # Safety
/// The host's side of the shape is readable.
unsafe fn gather(host: usize, shape: Shape) -> Vec<u8> {
    let mut bytes = lock(&SPARE).pop().unwrap_or_default();
    bytes.clear();
    bytes.reserve(shape.bytes());
    for piece in shape.pieces(0..shape.bytes()) {
        let start = (host + piece.host) as *const u8;
        // SAFETY: the piece lies within the shape.
        let row = unsafe { std::slice::from_raw_parts(start, piece.bytes) };
        bytes.extend_from_slice(row);
    }
    bytes
}

impl Transfer {
    /// Takes the source over if it is pageable, and keeps what it holds if it is pinned.
    ///
    /// # Safety
    /// The source is readable.
    unsafe fn look_at_source(&mut self, is_pinned: bool, strict: bool) {
        let HostSide::Memory(start) = self.host else { return };
        if !is_pinned {
            // SAFETY: the caller's duty.
            self.host = HostSide::Staged(unsafe { gather(start, self.shape) });
            self.shape.host_pitch = self.shape.width;
        } else if strict && self.shape.bytes() <= COMPARED_BYTES_MAX {
            // SAFETY: the caller's duty.
            self.kept = Some(unsafe { gather(start, self.shape) });
        }
    }

    /// Performs the copy, if nothing has failed before it; answers when it was due to end.
    fn perform(self, ready: Instant) -> Instant {
        let end = self.attempt(ready);
        for ticket in &self.tickets {
            self.driver.flights.land(*ticket);
        }
        self.device.copy_ends();
        if let HostSide::Staged(bytes) = self.host {
            spare(bytes);
        }
        if let Some(bytes) = self.kept {
            spare(bytes);
        }
        end
    }

    fn attempt(&self, ready: Instant) -> Instant {
        if let Some(code) = self.fault.code {
            timeline::sleep_until(ready + self.fault.stall);
            self.device.fail(code, "a copy that was told to fail");
        }
        if self.device.check().is_err() {
            self.device.dropped.fetch_add(1, Ordering::Relaxed);
            return ready;
        }
        let found =
            self.driver.memory.find_on(&self.device, self.device_address, self.device_bytes);
        match found {
            Ok(piece) => self.run(&piece, ready),
            Err(_) => {
                self.device.fail(Code::ILLEGAL_ADDRESS, "a copy found its memory freed");
                ready
            }
        }
    }

    fn run(&self, piece: &Piece, ready: Instant) -> Instant {
        let bytes = self.shape.bytes();
        let begin = ready.max(self.asked_at + self.device.settings().latency);
        let Some((engine, rate)) = self.device.engine(self.direction) else { return ready };
        let span = engine.reserve(begin, timeline::time_of(bytes, rate) + self.fault.stall);
        let slice_bytes = (bytes / SLICES).clamp(SLICE_BYTES_MIN, SLICE_BYTES_MAX);
        let mut difference = None;
        for start in (0..bytes).step_by(slice_bytes) {
            let range = start..(start + slice_bytes).min(bytes);
            self.slice(piece, range, span, &mut difference);
        }
        if let Some(at) = difference {
            let (host, ordinal) = (self.host_start(), self.device.ordinal);
            self.driver.violation(
                "source-changed",
                format!(
                    "the pinned source {host:#x} of an upload of {bytes} bytes to device {ordinal} \
                     was changed before the copy was done, at byte {at}"
                ),
            );
        }
        self.device.count(self.direction, bytes);
        if rate > 0.0 { span.end } else { Instant::now().max(span.end) }
    }

    fn host_start(&self) -> usize {
        match &self.host {
            HostSide::Memory(start) => *start,
            HostSide::Staged(bytes) => bytes.as_ptr() as usize,
        }
    }

    /// Copies one slice when it is due, and notes the first byte that is not what it was.
    fn slice(
        &self,
        piece: &Piece,
        range: Range<usize>,
        span: Span,
        difference: &mut Option<usize>,
    ) {
        timeline::sleep_until(span.due(range.end, self.shape.bytes()));
        for row in self.shape.pieces(range) {
            let host = (self.host_start() + row.host) as *mut u8;
            let device = (piece.start() + row.device) as *mut u8;
            if self.direction == Direction::Download {
                // SAFETY: the piece keeps the device's side mapped and was checked to hold the
                // shape; the caller lends the host's side until the copy is done.
                unsafe { host.copy_from(device, row.bytes) };
                continue;
            }
            // SAFETY: as above, the other way round.
            unsafe { device.copy_from(host, row.bytes) };
            let Some(kept) = &self.kept else { continue };
            // SAFETY: as above; device memory is written by copies and kernels alone, and two of
            // them at one place at one time are the caller's own fault.
            let arrived = unsafe { std::slice::from_raw_parts(device, row.bytes) };
            let expected = &kept[row.at..row.at + row.bytes];
            if difference.is_none() && arrived != expected {
                let first = arrived.iter().zip(expected).position(|(is, was)| is != was);
                *difference = first.map(|first| row.at + first);
            }
        }
    }
}

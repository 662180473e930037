//! Global memory as the interpreter sees it: regions of 32-bit words that outlive the launch.
//!
//! Words are atomics because blocks run on several threads and share them. A relaxed load is an
//! ordinary load on every machine this runs on, so it costs nothing.

#![allow(clippy::cast_possible_truncation, reason = "words are cut out of wider values")]

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// One allocation of device memory.
#[derive(Clone, Copy, Debug)]
pub struct Region<'memory> {
    /// Device address of its first byte, a multiple of 16 (256 in CUDA).
    pub start: u64,
    /// How many bytes may be accessed; at most `4 * words.len()`.
    pub bytes: u64,
    /// The memory, little-endian.
    pub words: &'memory [AtomicU32],
}

/// The device memory that a launch works on. It owns the bytes; the interpreter only borrows
/// regions for the time of the launch and checks every access against them.
///
/// Implement it on a snapshot of the allocations that is taken at the launch, and that keeps them
/// alive: regions live as long as the borrow of `self`.
pub trait Memory: Sync {
    /// The region that `address` lies in. Asked for about once a region, block and instruction.
    fn region(&self, address: u64) -> Option<Region<'_>>;

    /// In words, what lies around an address that is in no region, for the message of a fault:
    /// "52 bytes behind the allocation of …", "in an allocation that was freed".
    fn describe(&self, address: u64) -> String {
        let _ = address;
        "no allocation is there".into()
    }
}

impl Region<'_> {
    /// Whether `bytes` bytes at `address` are wholly inside.
    #[inline]
    pub(crate) fn holds(&self, address: u64, bytes: u64) -> bool {
        let offset = address.wrapping_sub(self.start);
        offset < self.bytes && self.bytes - offset >= bytes
    }

    /// The word and the shift of the bits at `offset`, of which the caller knows that they exist.
    #[inline]
    fn word(&self, offset: u64) -> (&AtomicU32, u32) {
        (&self.words[(offset / 4) as usize], (offset % 4) as u32 * 8)
    }

    /// Reads 1, 2, 4 or 8 bytes at a multiple of that.
    #[inline]
    pub(crate) fn read(&self, offset: u64, bytes: u32) -> u64 {
        let (word, shift) = self.word(offset);
        let low = u64::from(word.load(Relaxed));
        match bytes {
            4 => low,
            8 => u64::from(self.words[(offset / 4) as usize + 1].load(Relaxed)) << 32 | low,
            1 => low >> shift & 0xFF,
            _ => low >> shift & 0xFFFF,
        }
    }

    /// Writes 1, 2, 4 or 8 bytes at a multiple of that.
    #[inline]
    pub(crate) fn write(&self, offset: u64, bytes: u32, value: u64) {
        let (word, _) = self.word(offset);
        match bytes {
            4 => word.store(value as u32, Relaxed),
            8 => {
                word.store(value as u32, Relaxed);
                self.words[(offset / 4) as usize + 1].store((value >> 32) as u32, Relaxed);
            }
            _ => drop(self.update(offset, bytes, |_| value)),
        }
    }

    /// Replaces what is at `offset` in one step, and returns what was there.
    pub(crate) fn update(
        &self,
        offset: u64,
        bytes: u32,
        mut replace: impl FnMut(u64) -> u64,
    ) -> u64 {
        if bytes == 8 {
            // Words are half as wide; all 64-bit atomics of all launches take turns.
            static TURN: Mutex<()> = Mutex::new(());
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let before = self.read(offset, 8);
            self.write(offset, 8, replace(before));
            return before;
        }
        let (word, shift) = self.word(offset);
        let mask = if bytes == 4 { u32::MAX } else { ((1 << (bytes * 8)) - 1) << shift };
        let mut before = word.load(Relaxed);
        loop {
            let value = replace(u64::from((before & mask) >> shift)) as u32;
            let after = before & !mask | value << shift & mask;
            match word.compare_exchange_weak(before, after, Relaxed, Relaxed) {
                Ok(_) => return u64::from((before & mask) >> shift),
                Err(now) => before = now,
            }
        }
    }
}

/// A memory for tests: allocations in ordinary vectors, addresses given out upwards.
#[derive(Debug, Default)]
pub struct Allocations {
    blocks: Vec<(u64, u64, Vec<AtomicU32>)>,
}

impl Allocations {
    /// A memory without allocations.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates a copy of `bytes` and returns its address, a multiple of 256. At least 256 bytes
    /// between two allocations belong to nobody.
    pub fn allocate(&mut self, bytes: &[u8]) -> u64 {
        let end = self.blocks.last().map_or(0x7000_0000_0000, |(start, bytes, _)| start + bytes);
        let start = (end + 512) & !255;
        let words = bytes.chunks(4).map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            AtomicU32::new(u32::from_le_bytes(word))
        });
        self.blocks.push((start, bytes.len() as u64, words.collect()));
        start
    }

    /// Copies the allocation at `start` out, or nothing if there is none.
    #[must_use]
    pub fn read(&self, start: u64) -> Vec<u8> {
        let Some((_, bytes, words)) = self.blocks.iter().find(|block| block.0 == start) else {
            return Vec::new();
        };
        let mut copy: Vec<u8> =
            words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        copy.truncate(usize::try_from(*bytes).unwrap_or(usize::MAX));
        copy
    }
}

impl Memory for Allocations {
    fn region(&self, address: u64) -> Option<Region<'_>> {
        let next = self.blocks.partition_point(|block| block.0 <= address);
        let (start, bytes, words) = self.blocks.get(next.checked_sub(1)?)?;
        (address - start < *bytes).then_some(Region { start: *start, bytes: *bytes, words })
    }

    fn describe(&self, address: u64) -> String {
        let next = self.blocks.partition_point(|block| block.0 <= address);
        match next.checked_sub(1).and_then(|index| self.blocks.get(index)) {
            Some((start, bytes, _)) => {
                let offset = address - start;
                format!("byte {offset} of the allocation of {bytes} bytes at {start:#x}")
            }
            None => "below every allocation".into(),
        }
    }
}

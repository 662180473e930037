//! Alignment arithmetic, in one place so that every rounding in the project is the same one.

use std::ops::Range;
use std::sync::OnceLock;

/// The size of a transparent huge page on the machines that matter (x86-64, and arm64 with
/// 4 KiB pages).
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The size of a base page, asked of the system once.
#[must_use]
pub fn page_bytes() -> usize {
    static PAGE_BYTES: OnceLock<usize> = OnceLock::new();
    *PAGE_BYTES.get_or_init(|| {
        // SAFETY: sysconf reads a constant of the process and touches no memory of ours.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(bytes).unwrap_or(4096)
    })
}

/// A power of two that offsets, lengths or addresses are multiples of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alignment(u64);

impl Alignment {
    /// One byte: everything is aligned.
    pub const BYTE: Self = Self(1);
    /// 4096 bytes, what is assumed where a filesystem says nothing.
    pub const FALLBACK: Self = Self(4096);

    /// `bytes` as an alignment, or `None` if it is not a power of two.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() { Some(Self(bytes)) } else { None }
    }

    /// The system's page size.
    #[must_use]
    pub fn page() -> Self {
        Self::new(page_bytes() as u64).unwrap_or(Self::FALLBACK)
    }

    /// The alignment in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Whether `value` is a multiple of it.
    #[must_use]
    pub const fn divides(self, value: u64) -> bool {
        value & (self.0 - 1) == 0
    }

    /// `value` rounded down to a multiple.
    #[must_use]
    pub const fn down(self, value: u64) -> u64 {
        value & !(self.0 - 1)
    }

    /// `value` rounded up to a multiple, or `None` past the end of `u64`.
    #[must_use]
    pub const fn up(self, value: u64) -> Option<u64> {
        match value.checked_add(self.0 - 1) {
            Some(sum) => Some(self.down(sum)),
            None => None,
        }
    }

    /// The smallest aligned range that holds `range`, or `None` past the end of `u64`.
    #[must_use]
    pub fn outward(self, range: Range<u64>) -> Option<Range<u64>> {
        Some(self.down(range.start)..self.up(range.end)?)
    }

    /// The largest aligned range inside `range`; empty if no whole unit lies inside.
    #[must_use]
    pub fn inward(self, range: Range<u64>) -> Range<u64> {
        let start = self.up(range.start).unwrap_or(range.end);
        let end = self.down(range.end);
        if start < end { start..end } else { start..start }
    }
}

#[cfg(test)]
mod tests {
    use super::Alignment;

    #[test]
    fn rounds_both_ways_and_refuses_what_is_no_power_of_two() {
        let sector = Alignment::new(512).unwrap();
        assert_eq!(sector.down(1023), 512);
        assert_eq!(sector.up(513), Some(1024));
        assert_eq!(sector.up(u64::MAX), None);
        assert_eq!(sector.outward(100..600), Some(0..1024));
        assert_eq!(sector.inward(100..1600), 512..1536);
        assert!(sector.inward(100..600).is_empty());
        assert!(Alignment::new(0).is_none());
        assert!(Alignment::new(768).is_none());
    }
}

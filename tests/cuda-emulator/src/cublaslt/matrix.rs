//! Matrices in a device's memory, column after column.

use crate::kernel_memory::KernelMemory;
use forebay_ptx::{Memory, Region};
use std::sync::atomic::Ordering::Relaxed;

/// What a matrix holds: the types that are emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    /// By the numbers of `cudaDataType_t`.
    pub(crate) fn of(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            2 => Some(Self::F16),
            14 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> u64 {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn decode(self, bits: u32) -> f64 {
        match self {
            Self::F32 => f32::from_bits(bits).into(),
            Self::Bf16 => f32::from_bits(bits << 16).into(),
            Self::F16 => half(bits),
        }
    }
}

/// The value of an IEEE half.
fn half(bits: u32) -> f64 {
    let (exponent, mantissa) = (bits >> 10 & 31, f64::from(bits & 0x3ff));
    let magnitude = match exponent {
        0 => mantissa * 2.0_f64.powi(-24),
        31 if mantissa == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + mantissa / 1024.0) * 2.0_f64.powi(exponent.cast_signed() - 15),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Where elements lie: columns of `rows` elements, `stride` from one to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) element: Element,
    pub(crate) rows: u64,
    pub(crate) columns: u64,
    pub(crate) stride: i64,
}

impl Layout {
    fn column(&self, address: u64, column: u64) -> (u64, u64) {
        let bytes = self.element.bytes();
        let start = column.wrapping_mul(self.stride.cast_unsigned()).wrapping_mul(bytes);
        (address.wrapping_add(start), self.rows * bytes)
    }

    /// All elements of the matrix at `address`, column after column.
    pub(crate) fn read(&self, address: u64, memory: &KernelMemory) -> Result<Vec<f64>, String> {
        let mut elements = Vec::new();
        for column in 0..self.columns {
            let (start, bytes) = self.column(address, column);
            let region = region(memory, start, bytes)?;
            let places = (start..start + bytes).step_by(self.element.bytes() as usize);
            elements.extend(places.map(|place| {
                let (index, shift) = place_of(&region, place);
                let word = region.words[index].load(Relaxed) >> shift;
                let bits = if self.element == Element::F32 { word } else { word & 0xffff };
                self.element.decode(bits)
            }));
        }
        Ok(elements)
    }

    /// Writes all elements, which are `f32`.
    pub(crate) fn write(
        &self,
        address: u64,
        elements: &[f32],
        memory: &KernelMemory,
    ) -> Result<(), String> {
        for (column, elements) in (0..self.columns).zip(elements.chunks(self.rows as usize)) {
            let (start, bytes) = self.column(address, column);
            let region = region(memory, start, bytes)?;
            for (place, element) in (start..).step_by(4).zip(elements) {
                let (index, _) = place_of(&region, place);
                region.words[index].store(element.to_bits(), Relaxed);
            }
        }
        Ok(())
    }
}

/// The word that has the byte at `place`, and the byte's first bit in it.
fn place_of(region: &Region<'_>, place: u64) -> (usize, u64) {
    let offset = place - region.start;
    ((offset / 4) as usize, offset % 4 * 8)
}

/// The region that has all of these bytes.
pub(crate) fn region(memory: &KernelMemory, start: u64, bytes: u64) -> Result<Region<'_>, String> {
    let found = memory.region(start);
    let found = found.ok_or_else(|| format!("{start:#x}: {}", memory.describe(start)))?;
    let end = start.checked_add(bytes).filter(|end| *end <= found.start + found.bytes);
    let past = || format!("{bytes} bytes from {start:#x} on: {}", memory.describe(start));
    end.map(|_| found).ok_or_else(past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_decoded() {
        for (bits, value) in
            [(0x3c00, 1.0), (0xc000, -2.0), (0x7bff, 65504.0), (0x0001, 2.0_f64.powi(-24))]
        {
            assert_eq!(Element::F16.decode(bits), value);
        }
        assert_eq!(Element::F16.decode(0xfc00), f64::NEG_INFINITY);
        assert!(Element::F16.decode(0x7e00).is_nan());
        assert_eq!(Element::Bf16.decode(0xbfc0), -1.5);
        assert_eq!(Element::F32.decode(0x3fc0_0000), 1.5);
    }
}

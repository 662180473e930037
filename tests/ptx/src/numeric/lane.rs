//! A register of a warp is a row: 64 bits for each lane. A type reads the low bits that it needs
//! and ignores the rest, so narrow values may carry anything above them.
#![allow(clippy::cast_possible_truncation, reason = "reading the low bits is the convention")]

/// Threads of a warp.
pub(crate) const LANES: usize = 32;

/// One register of a warp.
pub(crate) type Row = [u64; LANES];

/// A type that is kept in the low bits of a row's lanes.
pub(crate) trait Lane: Copy {
    fn get(bits: u64) -> Self;
    fn put(self) -> u64;
}

macro_rules! lanes {
    ($($kind:ty: $unsigned:ty),*) => {$(
        impl Lane for $kind {
            #[inline]
            fn get(bits: u64) -> Self {
                bits as $kind
            }
            #[inline]
            fn put(self) -> u64 {
                u64::from(self as $unsigned)
            }
        }
    )*};
}
lanes!(u8: u8, i8: u8, u16: u16, i16: u16, u32: u32, i32: u32, u64: u64, i64: u64);

impl Lane for f32 {
    #[inline]
    fn get(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }
    #[inline]
    fn put(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Lane for f64 {
    #[inline]
    fn get(bits: u64) -> Self {
        Self::from_bits(bits)
    }
    #[inline]
    fn put(self) -> u64 {
        self.to_bits()
    }
}

//! Where a product gets its weights from.

use std::convert::Infallible;
use std::ops::Range;

/// The bytes of one tensor, in the layout of its file, handed out some whole rows at a time.
///
/// A product asks for tens to hundreds of KiB at once, from several threads, each range once for
/// each call. Bytes in memory are simply borrowed ([`[u8]`](slice)); a source that has to copy
/// them (out of a mapping that may lose its file, for one) does so into `scratch`.
pub trait WeightBytes: Sync {
    /// Why bytes couldn't be had.
    type Error: Send;

    /// How many bytes there are.
    fn size_bytes(&self) -> usize;

    /// The bytes of `range`, which lies within [`size_bytes`](Self::size_bytes): borrowed from
    /// `self`, or put into `scratch`, whose old contents don't matter.
    ///
    /// # Errors
    /// What the source says. The product ends with it.
    fn read<'a>(
        &'a self,
        range: Range<usize>,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Self::Error>;
}

impl WeightBytes for [u8] {
    type Error = Infallible;

    fn size_bytes(&self) -> usize {
        self.len()
    }

    fn read<'a>(
        &'a self,
        range: Range<usize>,
        _scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Infallible> {
        Ok(&self[range])
    }
}

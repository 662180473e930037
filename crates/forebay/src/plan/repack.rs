//! Which tensors are repacked for the CPU's matrix products, and how.

use crate::backend::Backend;
use crate::mode::LoadMode;
use crate::options::{Options, Repack};
use forebay_compute::{Interleaved, Shape};
use forebay_device::Arrange;
use forebay_format::Tensor;
use std::ops::Range;

/// The layout that a tensor is repacked to; `None` for one that stays as it is: types without a
/// layout of their own, tensors that are no matrix, and those that are to be locked where the file
/// is mapped.
pub(super) fn layout(
    options: &Options,
    backend: Backend,
    mode: LoadMode,
    tensor: &Tensor,
) -> Option<Interleaved> {
    let computes = matches!(backend, Backend::Cpu | Backend::Host);
    let locks = matches!(mode, LoadMode::Mlock | LoadMode::MlockStrict);
    if options.repack == Repack::Off || !computes || locks || tensor.shape.len() < 2 {
        return None;
    }
    let (columns, outer) = tensor.shape.split_last()?;
    let rows = outer.iter().try_fold(1_u64, |product, rows| product.checked_mul(*rows))?;
    let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(*columns).ok()?);
    Interleaved::new(tensor.dtype, Shape { rows, columns }).ok().filter(|_| tensor.bytes > 0)
}

/// Tells a device how a tensor is repacked while it is copied.
#[derive(Debug)]
pub(crate) struct Rearranged(pub(crate) Interleaved);

impl Arrange for Rearranged {
    fn scatter(&self, offset: u64, bytes: &[u8], arranged: &mut [u8]) {
        let scattered = self.0.scatter(offset, bytes, arranged);
        scattered.expect("the plan's segments lie inside their tensors");
    }

    fn touched(&self, offset: u64, bytes: u64) -> Range<u64> {
        self.0.touched(offset, usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

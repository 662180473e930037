//! What the caller of a stream has in hand.

use super::tiers::Tier;
use super::units::Unit;
use crate::error::Error;
use crate::loaded::{Tensor, Tensors};
use forebay_device::cuda::ComputeStream;
use std::sync::Arc;

/// One layer's tensors, on the device and whole. Valid until it is dropped; a clone of a tensor
/// keeps the layer's memory for itself, and so from the layers that follow.
pub struct Layer {
    pub(super) unit: Arc<Unit>,
    pub(super) tensors: Arc<Tensors>,
    pub(super) tier: Tier,
}

impl Layer {
    /// `layer 7`; or `input` and `output` for what lies before and behind the layers.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.unit.name
    }

    /// The layer's number (or its group's), if it is one.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        self.unit.layer
    }

    /// Where it is between passes.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The bytes of its tensors.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.unit.bytes
    }

    /// Its tensors, those of the device first.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor> + '_ {
        let tensors = self.unit.tensors.iter().enumerate();
        tensors.map(|(place, &index)| self.tensors.at(place, index))
    }

    /// Lets go of it as soon as the device has come past what was queued on `products` so far, without
    /// waiting for that.
    ///
    /// # Errors
    /// As [`ComputeStream::retire`]; the layer's memory then comes back when `products` is waited for.
    pub fn release_after(self, products: &mut ComputeStream) -> Result<(), Error> {
        Ok(products.retire()?)
    }

    /// The tensor of that full name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let index = self.tensors.catalog.position(name)?;
        let place = self.unit.tensors.iter().position(|&tensor| tensor == index)?;
        Some(self.tensors.at(place, index))
    }
}

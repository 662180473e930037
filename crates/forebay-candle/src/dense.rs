//! Tensors, and the `VarBuilder` over them.

use crate::error::Error;
use crate::landing::{Kind, Landed, Left, Outcome, Unknown, land};
use crate::memory;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use forebay::{Dtype, LoadReport, Loader, Metadata};
use std::collections::HashMap;
use std::path::Path;

const TENSOR: Kind<CpuStorage> = Kind { name: "Tensor", takes: |_, _| true, room: memory::dense };

/// Every tensor of a model by its name, as [`candle_core::safetensors::load`] gives them.
///
/// # Errors
/// [`Error::Unsupported`], before anything is read, if candle has no type for a tensor; all others
/// of [`Error`].
pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<HashMap<String, Tensor>, Error> {
    load_with(Loader::new(path), device)
}

/// [`load`] by a loader of your own: with options, progress, a way to cancel it.
///
/// # Errors
/// As [`load`].
pub fn load_with(loader: Loader, device: &Device) -> Result<HashMap<String, Tensor>, Error> {
    on_device(land(loader, &TENSOR, Unknown::Refused)?.landed, device)
}

/// A `VarBuilder` over a model that has been loaded whole, for models that candle knows how to
/// build.
///
/// # Errors
/// As [`Tensors::load`].
pub fn var_builder(
    path: impl AsRef<Path>,
    dtype: DType,
    device: &Device,
) -> Result<VarBuilder<'static>, Error> {
    Ok(Tensors::load(Loader::new(path), device)?.into_var_builder(dtype))
}

/// The tensors of a model that candle has types for: a backend of `VarBuilder`.
///
/// It holds each tensor until it is dropped; those that were handed out share its memory.
pub struct Tensors {
    by_name: HashMap<String, Tensor>,
    left: Left,
    device: Device,
    metadata: Metadata,
    report: LoadReport,
}

impl Tensors {
    /// Loads them. Those of types that candle does not have are not read; asking for one is an
    /// error.
    ///
    /// # Errors
    /// All of [`Error`] but [`Error::Unsupported`] and [`Error::NoTensor`].
    pub fn load(loader: Loader, device: &Device) -> Result<Self, Error> {
        let Outcome { landed, left, metadata, report } = land(loader, &TENSOR, Unknown::Left)?;
        let by_name = on_device(landed, device)?;
        Ok(Self { by_name, left, device: device.clone(), metadata, report })
    }

    /// The tensor of that name, as the file has it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if candle has no type for it, [`Error::NoTensor`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, Error> {
        self.by_name.get(name).ok_or_else(|| self.left.why_not(name))
    }

    /// All of them, by name.
    #[must_use]
    pub fn tensors(&self) -> &HashMap<String, Tensor> {
        &self.by_name
    }

    /// All of them, to keep.
    #[must_use]
    pub fn into_tensors(self) -> HashMap<String, Tensor> {
        self.by_name
    }

    /// Names and types of the model's tensors that candle can't have, which were left alone.
    pub fn left(&self) -> impl ExactSizeIterator<Item = (&str, Dtype)> {
        self.left.iter()
    }

    /// What the model's headers say besides.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What happened while they were loaded.
    #[must_use]
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// A `VarBuilder` that hands them out as `dtype`, on the device that they were loaded for.
    #[must_use]
    pub fn into_var_builder(self, dtype: DType) -> VarBuilder<'static> {
        let device = self.device.clone();
        VarBuilder::from_backend(Box::new(self), dtype, device)
    }
}

impl SimpleBackend for Tensors {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != &shape {
            let msg = format!("shape mismatch for {name}");
            let (expected, got) = (shape, tensor.shape().clone());
            return Err(candle_core::Error::UnexpectedShape { msg, expected, got }.bt());
        }
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn get_unchecked(
        &self,
        name: &str,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.tensor(name)?.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }
}

/// Makes tensors of what has landed. For another device, each is copied there and let go of here
/// before the next.
fn on_device(
    landed: Vec<Landed<CpuStorage>>,
    device: &Device,
) -> Result<HashMap<String, Tensor>, Error> {
    let tensor = |Landed { name, shape, storage }| {
        let storage = Storage::Cpu(storage);
        let tensor = Tensor::from_storage(storage, shape, BackpropOp::none(), false);
        Ok((name, tensor.to_device(device)?))
    };
    landed.into_iter().map(tensor).collect()
}

//! GGUF's blocks as candle's `QTensor`s, and what else its quantised models are built from.
//!
//! Candle has two ways to build a quantised model, and neither takes tensors that are in memory
//! already: `quantized_var_builder::VarBuilder` of candle-transformers reads the file, or a buffer
//! that holds all of it, by itself (its fields are private), and the models' `from_gguf` read each
//! tensor through a reader, by `gguf_file::Content::tensor`, which has it twice while it does. So
//! models that are written for them can't be given what is here. Models of your own can:
//! [`VarBuilder`] has the methods of the one of candle-transformers, so that moving a model over is
//! a change of its `use`; and code in the manner of `from_gguf` finds in [`QTensors`] what it takes
//! from a `Content`, the tensor by its name ([`QTensors::tensor`]) and the metadata as candle's
//! values ([`QTensors::metadata`]).
//!
//! ```no_run
//! use candle_core::{Device, Module, Tensor, quantized::QMatMul};
//! use forebay_candle::quantized::{self, VarBuilder};
//!
//! fn attention(weights: &VarBuilder, x: &Tensor) -> candle_core::Result<Tensor> {
//!     let query = QMatMul::from_arc(weights.get((576, 576), "attn_q.weight")?)?;
//!     query.forward(x)
//! }
//!
//! let weights = quantized::var_builder("model.gguf", &Device::Cpu)?;
//! let x = Tensor::zeros((1, 576), candle_core::DType::F32, weights.device())?;
//! println!("{}", attention(&weights.pp("blk.0"), &x)?);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::error::Error;
use crate::landing::{Kind, Landed, Left, Outcome, Unknown, land};
use crate::{memory, metadata};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{QStorage, QTensor};
use candle_core::{Device, Shape};
use forebay::{Dtype, LoadReport, Loader};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Candle makes no `QTensor` of a scalar, nor of rows that are not whole blocks.
const QTENSOR: Kind<QStorage> = Kind {
    name: "QTensor",
    takes: |dtype, shape| shape.last().is_some_and(|n| n.is_multiple_of(dtype.block_elements())),
    room: memory::quantized,
};

/// Every tensor of a model by its name.
///
/// # Errors
/// [`Error::Unsupported`], before anything is read, if candle can't have a tensor: it has no
/// `QTensor` of its type, or it is a scalar; all others of [`Error`].
pub fn load(
    path: impl AsRef<Path>,
    device: &Device,
) -> Result<HashMap<String, Arc<QTensor>>, Error> {
    load_with(Loader::new(path), device)
}

/// [`load`] by a loader of your own: with options, progress, a way to cancel it.
///
/// # Errors
/// As [`load`].
pub fn load_with(loader: Loader, device: &Device) -> Result<HashMap<String, Arc<QTensor>>, Error> {
    on_device(land(loader, &QTENSOR, Unknown::Refused)?.landed, device)
}

/// A [`VarBuilder`] over a model that has been loaded whole.
///
/// # Errors
/// As [`QTensors::load`].
pub fn var_builder(path: impl AsRef<Path>, device: &Device) -> Result<VarBuilder, Error> {
    Ok(QTensors::load(Loader::new(path), device)?.into_var_builder())
}

/// The tensors of a model that can be `QTensor`s, and its metadata.
pub struct QTensors {
    by_name: HashMap<String, Arc<QTensor>>,
    left: Left,
    metadata: HashMap<String, Value>,
    device: Device,
    report: LoadReport,
}

impl QTensors {
    /// Loads them. Those that candle can't have are not read; asking for one is an
    /// error.
    ///
    /// # Errors
    /// All of [`Error`] but [`Error::Unsupported`] and [`Error::NoTensor`].
    pub fn load(loader: Loader, device: &Device) -> Result<Self, Error> {
        let Outcome { landed, left, metadata, report } = land(loader, &QTENSOR, Unknown::Left)?;
        let by_name = on_device(landed, device)?;
        let metadata = metadata::values(&metadata);
        Ok(Self { by_name, left, metadata, device: device.clone(), report })
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if candle can't have it, [`Error::NoTensor`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<Arc<QTensor>, Error> {
        self.by_name.get(name).cloned().ok_or_else(|| self.left.why_not(name))
    }

    /// All of them, by name.
    #[must_use]
    pub fn tensors(&self) -> &HashMap<String, Arc<QTensor>> {
        &self.by_name
    }

    /// Names and types of the model's tensors that candle can't have, which were left alone.
    pub fn left(&self) -> impl ExactSizeIterator<Item = (&str, Dtype)> {
        self.left.iter()
    }

    /// The model's key/values, as the field of `gguf_file::Content` has them.
    #[must_use]
    pub fn metadata(&self) -> &HashMap<String, Value> {
        &self.metadata
    }

    /// The device that they were loaded for.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What happened while they were loaded.
    #[must_use]
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// A [`VarBuilder`] that hands them out.
    #[must_use]
    pub fn into_var_builder(self) -> VarBuilder {
        VarBuilder { tensors: Arc::new(self), path: Vec::new() }
    }
}

/// Hands out `QTensor`s by names below a prefix, with the methods of candle-transformers'
/// `quantized_var_builder::VarBuilder`.
#[derive(Clone)]
pub struct VarBuilder {
    tensors: Arc<QTensors>,
    path: Vec<String>,
}

impl VarBuilder {
    /// One for the names below `name`.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "as candle-transformers has it")]
    pub fn pp(&self, name: impl ToString) -> Self {
        let mut below = self.clone();
        below.path.push(name.to_string());
        below
    }

    /// The tensor of that name, which must have that shape.
    ///
    /// # Errors
    /// `CannotFindTensor`, and a message where candle has no type for the tensor or its shape is
    /// another.
    pub fn get(&self, shape: impl Into<Shape>, name: &str) -> candle_core::Result<Arc<QTensor>> {
        let (tensor, expected) = (self.get_no_shape(name)?, shape.into());
        if tensor.shape() != &expected {
            let msg = format!("shape mismatch for {}", self.full_name(name));
            let got = tensor.shape().clone();
            return Err(candle_core::Error::UnexpectedShape { msg, expected, got }.bt());
        }
        Ok(tensor)
    }

    /// The tensor of that name, whatever its shape.
    ///
    /// # Errors
    /// `CannotFindTensor`, and a message where candle has no type for the tensor.
    pub fn get_no_shape(&self, name: &str) -> candle_core::Result<Arc<QTensor>> {
        Ok(self.tensors.tensor(&self.full_name(name))?)
    }

    /// The device of the tensors.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.tensors.device()
    }

    /// Whether there is a tensor of this whole name: the prefix does not count, as it does not in
    /// candle-transformers.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.tensors.by_name.contains_key(name)
    }

    /// All that was loaded: metadata, report.
    #[must_use]
    pub fn tensors(&self) -> &QTensors {
        &self.tensors
    }

    fn full_name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path.join("."))
        }
    }
}

/// Makes tensors of what has landed. For another device, each is copied there and let go of here
/// before the next.
fn on_device(
    landed: Vec<Landed<QStorage>>,
    device: &Device,
) -> Result<HashMap<String, Arc<QTensor>>, Error> {
    let tensor = |Landed { name, shape, storage }| {
        let mut tensor = QTensor::new(storage, shape)?;
        if !device.is_cpu() {
            let storage = QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
            tensor = QTensor::new(storage, tensor.shape())?;
        }
        Ok((name, Arc::new(tensor)))
    };
    landed.into_iter().map(tensor).collect()
}

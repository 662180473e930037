//! What can go wrong, with names.

use forebay::Dtype;
use std::error::Error as _;

/// Why there are no tensors. [`candle_core::Error`] is made of it by `?`, with all causes in its
/// message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The load failed.
    #[error(transparent)]
    Load(#[from] forebay::Error),
    /// Candle refused.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Candle has nothing that the tensor could be: most often, not its type.
    #[error(
        "tensor '{tensor}' of type {dtype} and shape {shape:?} can't be a {wanted} of candle's"
    )]
    Unsupported {
        /// Which tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape, outermost dimension first.
        shape: Vec<u64>,
        /// What was asked for: `Tensor` or `QTensor`.
        wanted: &'static str,
    },
    /// The file has its elements in another order of dimensions than its shape (`.ptd`,
    /// `channels_last`, say), which candle has no tensor for.
    #[error(
        "tensor '{tensor}' lies in another order of dimensions ({order}) than its shape, \
         which candle has no tensor for"
    )]
    Reordered {
        /// Which tensor.
        tensor: String,
        /// The dimensions as they lie, outermost first.
        order: String,
    },
    /// There is no tensor of that name.
    #[error("the model has no tensor '{tensor}'")]
    NoTensor {
        /// The name.
        tensor: String,
    },
    /// The memory for a tensor was refused.
    #[error("no memory for the {bytes} bytes of tensor '{tensor}'")]
    Memory {
        /// Which tensor.
        tensor: String,
        /// How many were asked for.
        bytes: u64,
    },
    /// The model was replaced between planning the load and starting it.
    #[error("tensor '{tensor}' was replaced while the load began: load the model again")]
    Replaced {
        /// The first tensor that is another now.
        tensor: String,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            Error::NoTensor { tensor } => Self::CannotFindTensor { path: tensor }.bt(),
            error => Self::Msg(with_causes(&error)).bt(),
        }
    }
}

/// Candle keeps of another's error what it prints, so the causes and the remedy go with it.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Error::Load(error) = error
        && let Some(remedy) = error.remedy()
    {
        text.push_str(&format!(" ({remedy})"));
    }
    text
}

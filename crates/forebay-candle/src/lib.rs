//! Loads model weights into [candle](https://docs.rs/candle-core)'s tensors by [`forebay`]:
//! direct reads, many in flight, every file of a model in one plan.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use candle_nn::{Module, VarBuilder, linear};
//!
//! let device = Device::Cpu;
//! let weights: VarBuilder =
//!     forebay_candle::var_builder("model.safetensors", DType::F32, &device)?;
//! let query = linear(384, 384, weights.pp("encoder.layer.0.attention.self.query"))?;
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! | instead of | and |
//! |---|---|
//! | `VarBuilder::from_mmaped_safetensors(&[path], …)` | [`var_builder`]`(path, …)` |
//! | `candle_core::safetensors::load(path, &device)` | [`load`]`(path, &device)` |
//! | `content.tensor(…)` of a `gguf_file::Content` for each | [`quantized::load`], [`quantized::QTensors`] |
//!
//! A path is whatever [`forebay::Model::open`] takes: a `.safetensors` file, a
//! `*.safetensors.index.json` or the folder of a sharded model, a `.gguf` file or a part of a split
//! one, a `.ptd` file. What a load is to do besides (progress, cancelling, read sizes, a timeline)
//! is said by a [`forebay::Loader`]:
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use forebay::{Cancel, Loader};
//! use forebay_candle::Tensors;
//!
//! let cancel = Cancel::default();
//! let loader = Loader::new("model.safetensors.index.json").cancel_with(&cancel).on_progress(
//!     |progress| eprintln!("{} of {}", progress.done_bytes, progress.total_bytes),
//! );
//! let tensors = Tensors::load(loader, &Device::Cpu)?;
//! println!("{:.2} GiB/s", tensors.report().read.gib_per_s);
//! let weights = tensors.into_var_builder(DType::BF16);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # Memory
//!
//! A tensor's bytes land in the `Vec` that candle then owns, so nothing is there twice: beside the
//! tensors there is the load's staging memory (24 MiB by default). Two things do copy, and both are
//! candle's: a `VarBuilder` of another dtype than the file's converts each tensor when it is asked
//! for, as every backend of candle does (drop the `VarBuilder` once the model is built, it holds
//! the unconverted ones); and U16 becomes U32, as candle has no U16.
//!
//! What a `VarBuilder` of candle's over a mapping does not do is load the whole model: models that
//! use few of the tensors in a file are better served by that.
//!
//! # Types
//!
//! What candle reads, by the same rules. Tensors of other types (I8, U64, BOOL, F8_E5M2, codebook
//! quants …) are not read by [`Tensors`], [`quantized::QTensors`] and the `VarBuilder`s over them:
//! asking for one is [`Error::Unsupported`], which names tensor and type, and `contains_tensor`
//! answers `false`. [`load`] and [`quantized::load`], which hand out everything, answer that error
//! before they read anything. GGUF's block types are [`quantized`] only; F32, F16 and BF16 are
//! both, but for scalars, of which candle makes no `QTensor`.
//!
//! Of a `.ptd` file, tensors that lie in another order of dimensions than their shape's are left the
//! same way ([`Error::Reordered`]). Quantised ones come as the plain integers that the file has, and
//! blobs as bytes: [`Tensors::metadata`] has `ptd.scalar_type.NAME` and `ptd.layout.NAME` of those.
//!
//! # What the loader's options mean here
//!
//! All tensors go to memory of candle's, so those about devices, layers, repacking and prefetching
//! have no effect; place rules and load modes for `cpu` are about tensors that candle has no type
//! for, which are left in a mapping, unread, if nothing else is said. The load mode of `host` is
//! how the others are read.
//!
//! # GPUs
//!
//! For another device than the CPU the model is loaded into ordinary memory first, whole; then each
//! tensor is copied there by candle (`to_device`), one after the other, and let go of here. That is
//! not forebay's own way to a GPU (pinned memory, uploads beside the reads): candle's CUDA storage
//! is its own to allocate, and building candle for CUDA takes `nvcc`, so this crate has been built
//! and tested for the CPU only.
//!
//! # Safety
//!
//! `unsafe` sits in two private files of this crate: the memory that is lent to a load belongs to a
//! `Vec` which nobody touches until the load has ended, and which becomes candle's only if it ended
//! well.

mod dense;
mod error;
mod landing;
mod memory;
mod metadata;
pub mod quantized;

pub use dense::{Tensors, load, load_with, var_builder};
pub use error::Error;

//! The formats models are stored in: GGUF, safetensors and `.ptd` headers, read into one
//! [`Catalog`].
//!
//! This crate parses header bytes that its caller has read. It opens no file, makes no system
//! call and holds no unsafe code. The parsers take the start of a file and its full length, and
//! answer either with what they found or with how much more of the start they want:
//!
//! ```
//! use forebay_format::{Catalog, FormatError, Parse, safetensors};
//!
//! fn open(name: &str, file: &[u8]) -> Result<Catalog, FormatError> {
//!     let file_bytes = file.len() as u64;
//!     let mut wanted = 8;
//!     loop {
//!         match safetensors::parse(&file[..wanted], file_bytes).map_err(|e| e.in_file(name))? {
//!             Parse::NeedBytes(bytes) => wanted = bytes as usize,
//!             Parse::Complete(header) => {
//!                 return safetensors::catalog(vec![(name.to_owned(), file_bytes, header)], None);
//!             }
//!         }
//!     }
//! }
//!
//! let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! let mut file = (header.len() as u64).to_le_bytes().to_vec();
//! file.extend_from_slice(header);
//! file.extend_from_slice(&[0; 8]);
//! let catalog = open("tiny.safetensors", &file)?;
//! assert_eq!(catalog.tensor("w").unwrap().shape, [2]);
//! # Ok::<(), FormatError>(())
//! ```
//!
//! Files come from strangers. Every count is held against the bytes that are left in the file, and
//! against those already read, before anything is allocated for it, every sum and product is
//! checked, and what is refused is named: file, offset, tensor, cause and remedy.

#![forbid(unsafe_code)]

mod catalog;
mod dtype;
mod error;
pub mod gguf;
mod json;
mod metadata;
pub mod ptd;
pub mod safetensors;

pub use catalog::{Catalog, SourceFile, Tensor};
pub use dtype::Dtype;
pub use error::{FormatError, FormatErrorKind, steers_text};
pub use metadata::{Array, Metadata, Text, Value};

use serde::Serialize;
use std::fmt;

/// A format that model files come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// llama.cpp's GGUF, one file or several parts.
    Gguf,
    /// Hugging Face's safetensors, one file or several shards.
    Safetensors,
    /// ExecuTorch's FlatTensor: a `.ptd` file.
    Ptd,
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Ptd => "ptd",
        })
    }
}

/// What a parser makes of the start of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Parse<T> {
    /// The header was there in full.
    Complete(T),
    /// Call again with at least this many bytes of the file's start. Always more than were given,
    /// never more than the file has.
    NeedBytes(u64),
}

impl<T> Parse<T> {
    /// What was parsed, or `None` if more bytes are needed.
    #[must_use]
    pub fn complete(self) -> Option<T> {
        match self {
            Self::Complete(parsed) => Some(parsed),
            Self::NeedBytes(_) => None,
        }
    }
}

/// Guesses a file's format from its first bytes, twelve of which are enough.
///
/// A file that is recognised here may still be refused by its parser.
#[must_use]
pub fn sniff(prefix: &[u8]) -> Option<Format> {
    if prefix.starts_with(gguf::MAGIC) {
        return Some(Format::Gguf);
    }
    let magics = prefix.get(4..).and_then(|rest| rest.strip_prefix(ptd::MAGIC));
    if magics.is_some_and(|rest| rest.starts_with(ptd::HEADER_MAGIC)) {
        return Some(Format::Ptd);
    }
    let (length, rest) = prefix.split_first_chunk::<8>()?;
    let plausible = u64::from_le_bytes(*length) <= safetensors::HEADER_BYTES_MAX;
    (plausible && rest.first() == Some(&b'{')).then_some(Format::Safetensors)
}

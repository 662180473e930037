//! GGUF, versions 2 and 3, little-endian.
//!
//! ```text
//! "GGUF" | version u32 | tensor count u64 | key/value count u64
//! key/values: key, type u32, value        (a string is a length u64 and its bytes)
//! tensors:    name, dimension count u32, dimensions u64 each (innermost first), type u32, offset u64
//! padding to general.alignment (32 unless set) | data; offsets count from here
//! ```
//!
//! The format is described in ggml's `docs/gguf.md`; where that leaves room, ggml's `gguf.cpp` and
//! the `gguf` Python package were followed, and where those differ, what can be read without doubt
//! is read.

mod cursor;
mod split;
mod tensors;
mod values;

pub use split::{Split, SplitName, catalog, split_name};

use crate::error::FormatError;
use crate::{Metadata, Parse, Tensor, Value};
use cursor::{Cursor, Step, Stop};

/// The first four bytes of every GGUF file.
pub const MAGIC: &[u8] = b"GGUF";

/// Where the data begins is rounded up to this, unless `general.alignment` says otherwise.
pub const ALIGNMENT_DEFAULT: u32 = 32;

/// Longest key or tensor name.
///
/// ggml allows tensor names of 63 bytes, because it keeps them in a fixed array. Other writers and
/// the Python package know no such limit, and nothing here needs it; the format's own limit for
/// keys, 64 KiB, is as good for names and still bounds what a damaged file can ask for.
const NAME_BYTES_MAX: usize = 1 << 16;

/// The least that is asked for when a header goes on past the prefix. Vocabularies make headers of
/// 2 to 10 MiB, so small steps would only be repeated.
const STEP_BYTES_MIN: u64 = 1 << 20;

/// The header of one GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufFile {
    version: u32,
    alignment: u32,
    header_bytes: u64,
    data_offset: u64,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    split: Option<Split>,
}

impl GgufFile {
    /// The version of the format: 2 or 3.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// `general.alignment`, or [`ALIGNMENT_DEFAULT`].
    #[must_use]
    pub const fn alignment(&self) -> u32 {
        self.alignment
    }

    /// How many bytes the header takes, without the padding behind it.
    #[must_use]
    pub const fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Where the data section begins.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The key/values.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the header's order, offsets absolute, `file` 0.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Which part of a split model this is, if it is one of several.
    #[must_use]
    pub const fn split(&self) -> Option<Split> {
        self.split
    }
}

/// Reads the header of a GGUF file of `file_bytes` bytes from its first bytes.
///
/// When the prefix is too short, at least twice its length is asked for: parsing starts over each
/// time, and so costs no more than a constant times the header.
///
/// # Errors
///
/// When the file is no GGUF file, of a version or byte order that is not read, damaged, or shorter
/// than its header says. The error names no file yet: see [`FormatError::in_file`].
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Parse<GgufFile>, FormatError> {
    match read(&mut Cursor::new(prefix, file_bytes), file_bytes) {
        Ok(file) => Ok(Parse::Complete(file)),
        Err(Stop::Refused(error)) => Err(error),
        Err(Stop::Need(needed)) => {
            let generous = needed.max(2 * prefix.len() as u64).max(STEP_BYTES_MIN);
            Ok(Parse::NeedBytes(generous.min(file_bytes)))
        }
    }
}

fn read(cursor: &mut Cursor<'_>, file_bytes: u64) -> Step<GgufFile> {
    check_magic(cursor.magic()?)?;
    let version = cursor.scalar::<u32>()?;
    check_version(version)?;
    let tensor_count_at = cursor.position();
    let tensor_count = cursor.scalar::<u64>()?;
    let key_value_count_at = cursor.position();
    let key_value_count = cursor.scalar::<u64>()?;

    let metadata = values::read_all(cursor, key_value_count, key_value_count_at)?;
    let alignment = alignment(&metadata)?;
    let split = Split::from_metadata(&metadata)?;
    let mut tensors = tensors::read_all(cursor, tensor_count, tensor_count_at)?;

    // Below the file's length, which no file has within 4 GiB of u64::MAX.
    let header_bytes = cursor.position();
    let data_offset = header_bytes.next_multiple_of(alignment.into());
    tensors::locate(&mut tensors, data_offset, file_bytes)?;
    Ok(GgufFile { version, alignment, header_bytes, data_offset, metadata, tensors, split })
}

fn check_magic(magic: [u8; 4]) -> Result<(), FormatError> {
    let error = match &magic {
        b"GGUF" => return Ok(()),
        b"FUGG" => big_endian(),
        // GGML, GGMF, GGJT and GGLA, stored as little-endian numbers.
        b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
            FormatError::unsupported("a GGML file from before GGUF")
                .with_remedy("convert the model anew with a current llama.cpp")
        }
        other => FormatError::malformed(format!(
            "not a GGUF file: it begins with '{}', not 'GGUF'",
            other.escape_ascii()
        )),
    };
    Err(error.at(0))
}

fn check_version(version: u32) -> Result<(), FormatError> {
    let error = match version {
        2 | 3 => return Ok(()),
        1 => FormatError::unsupported("GGUF version 1, which is not read any more")
            .with_remedy("convert the model anew with a current llama.cpp"),
        // As the reference reader does: no version is so high, so the bytes are swapped.
        swapped if swapped & 0xffff == 0 && swapped != 0 => big_endian(),
        other => FormatError::unsupported(format!("GGUF version {other}; 2 and 3 are read"))
            .with_remedy("the file is damaged, or newer than this version of forebay"),
    };
    Err(error.at(4))
}

fn big_endian() -> FormatError {
    FormatError::unsupported("a big-endian GGUF file; only little-endian ones are read")
        .with_remedy("convert it with gguf_convert_endian.py of the gguf Python package")
}

fn alignment(metadata: &Metadata) -> Result<u32, FormatError> {
    match metadata.get("general.alignment") {
        None => Ok(ALIGNMENT_DEFAULT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok(*alignment),
        Some(Value::U32(alignment)) => Err(FormatError::malformed(format!(
            "general.alignment is {alignment}, which is not a power of two"
        ))),
        Some(other) => Err(FormatError::malformed(format!(
            "general.alignment is of type {}, not uint32",
            other.type_name()
        ))),
    }
}

//! safetensors: one file, or shards with an index.
//!
//! ```text
//! header length u64, little-endian | header: JSON | data, without a hole, to the end of the file
//! {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
//! ```
//!
//! A file is accepted or refused as the `safetensors` crate 0.8 does, and a test holds the two
//! together, with three exceptions. Refused here: a key that is there twice, in tensors or metadata
//! (it keeps the last), and white space before the first `{` (which the format's description
//! forbids). Accepted here: unknown fields of an entry whose values it cannot hold, such as numbers
//! out of range; they are skipped unread.

mod header;
mod index;
mod shards;

pub use index::{Index, parse_index};
pub use shards::catalog;

use crate::catalog::elements;
use crate::error::{Dimensions, FormatError, Quoted};
use crate::{Dtype, Metadata, Parse, Tensor, Value};
use header::Entry;

/// Longest header that is read; the reference implementation's limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// The header's length comes first.
const LENGTH_BYTES: u64 = 8;

/// The header of one safetensors file.
#[derive(Clone, Debug, PartialEq)]
pub struct SafetensorsFile {
    data_offset: u64,
    metadata: Metadata,
    tensors: Vec<Tensor>,
}

impl SafetensorsFile {
    /// Where the data section begins, which is where the header ends.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// The `__metadata__` strings.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in file order, offsets absolute, `file` 0.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}

/// Reads the header of a safetensors file of `file_bytes` bytes from its first bytes.
///
/// The first 8 bytes tell exactly how many more are needed, so this asks twice at most.
///
/// # Errors
///
/// When the file is no safetensors file, is damaged, or is longer or shorter than its header says.
/// The error names no file yet: see [`FormatError::in_file`].
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Parse<SafetensorsFile>, FormatError> {
    if file_bytes < LENGTH_BYTES {
        return Err(FormatError::truncated(format!(
            "a safetensors file begins with {LENGTH_BYTES} bytes of length but this one has only \
             {file_bytes}: the file is truncated"
        ))
        .at(0));
    }
    let Some((length, rest)) = prefix.split_first_chunk::<8>() else {
        return Ok(Parse::NeedBytes(LENGTH_BYTES));
    };
    let header_bytes = u64::from_le_bytes(*length);
    if header_bytes > HEADER_BYTES_MAX {
        return Err(FormatError::malformed(format!(
            "a header of {header_bytes} bytes is longer than the {HEADER_BYTES_MAX} that are \
             allowed: the file is damaged or not a safetensors file"
        ))
        .at(0));
    }
    let data_offset = LENGTH_BYTES + header_bytes;
    if data_offset > file_bytes {
        return Err(FormatError::truncated(format!(
            "the header ends at byte {data_offset} but the file has {file_bytes} bytes: \
             the file is truncated or not a safetensors file"
        ))
        .at(0));
    }
    if rest.first().is_some_and(|first| *first != b'{') || header_bytes == 0 {
        return Err(FormatError::malformed("the header does not begin with '{'").at(LENGTH_BYTES));
    }
    let json = usize::try_from(header_bytes).ok().and_then(|length| rest.get(..length));
    let Some(json) = json else {
        return Ok(Parse::NeedBytes(data_offset));
    };
    read(json, data_offset, file_bytes).map(Parse::Complete)
}

fn read(json: &[u8], data_offset: u64, file_bytes: u64) -> Result<SafetensorsFile, FormatError> {
    let mut header = header::parse(json, LENGTH_BYTES)?;
    header.tensors.sort_by_key(|(_, entry)| entry.data_offsets);
    let data_bytes = file_bytes - data_offset;
    let last_end = header.tensors.iter().map(|(_, entry)| entry.data_offsets.1).max().unwrap_or(0);
    let mut tensors: Vec<Tensor> = Vec::with_capacity(header.tensors.len());
    let mut position = 0;
    for (name, entry) in header.tensors {
        let before = tensors.last().map(|tensor| tensor.name.as_str());
        let (begin, end) = entry.data_offsets;
        let checked = contiguous(position, entry.data_offsets, before)
            .and_then(|()| within(end, data_offset, file_bytes, last_end))
            .and_then(|()| typed(&entry));
        let dtype = checked
            .map_err(|error| error.in_tensor(&*name.0).at(data_offset.saturating_add(begin)))?;
        position = end;
        tensors.push(Tensor {
            name: name.0.into_owned(),
            dtype,
            shape: entry.shape,
            file: 0,
            offset: data_offset + begin,
            bytes: end - begin,
        });
    }
    if position != data_bytes {
        return Err(FormatError::malformed(format!(
            "the tensors end at byte {} but the file has {file_bytes} bytes: \
             what follows belongs to no tensor",
            data_offset + position
        ))
        .with_remedy("the file is damaged: download or copy it again")
        .at(data_offset + position));
    }
    let mut metadata = Metadata::default();
    for (key, text) in header.metadata {
        metadata.insert(&key.0, Value::String(text.into_bytes().into()));
    }
    Ok(SafetensorsFile { data_offset, metadata, tensors })
}

/// Refuses data that does not begin where the tensor before it ended.
fn contiguous(
    position: u64,
    (begin, end): (u64, u64),
    before: Option<&str>,
) -> Result<(), FormatError> {
    if begin == position && end >= begin {
        return Ok(());
    }
    let before = before.map_or_else(|| "the header".to_owned(), |name| Quoted(name).to_string());
    let cause = if end < begin {
        format!("its data ends at {end}, before it begins at {begin}")
    } else if begin > position {
        format!("{} bytes between {before} and its data belong to no tensor", begin - position)
    } else {
        format!("its data begins {} bytes before {before} ends", position - begin)
    };
    Err(FormatError::malformed(cause))
}

/// Refuses data that goes on past the end of the file, which should end at `last_end`.
fn within(end: u64, data_offset: u64, file_bytes: u64, last_end: u64) -> Result<(), FormatError> {
    let in_file = data_offset.checked_add(end);
    if in_file.is_some_and(|end| end <= file_bytes) {
        return Ok(());
    }
    Err(FormatError::truncated(format!(
        "data ends at byte {} but the file has {file_bytes} bytes: the file is truncated, \
         it should have {}",
        data_offset.saturating_add(end),
        data_offset.saturating_add(last_end)
    )))
}

/// Checks the entry's type and shape against the bytes it claims.
fn typed(entry: &Entry<'_>) -> Result<Dtype, FormatError> {
    let name = &*entry.dtype.0;
    let dtype = Dtype::from_name(name).filter(|dtype| dtype.in_safetensors()).ok_or_else(|| {
        FormatError::unsupported(format!("dtype {} is not one of safetensors'", Quoted(name)))
            .with_remedy("the file is damaged, or newer than this version of forebay")
    })?;
    let shape = Dimensions(&entry.shape);
    let elements = elements(&entry.shape).ok_or_else(|| {
        FormatError::malformed(format!("the size of its shape {shape} overflows"))
    })?;
    let claimed = entry.data_offsets.1 - entry.data_offsets.0;
    match dtype.bytes_for(elements) {
        Some(bytes) if bytes == claimed => Ok(dtype),
        Some(bytes) => Err(FormatError::malformed(format!(
            "shape {shape} of {dtype} takes {bytes} bytes but its data_offsets are {claimed} apart"
        ))),
        None => Err(FormatError::malformed(format!(
            "shape {shape} of {dtype} does not fill whole bytes, or overflows"
        ))),
    }
}

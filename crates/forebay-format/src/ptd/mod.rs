//! `.ptd`: ExecuTorch's FlatTensor, named data kept apart from its program.
//!
//! ```text
//!  0 u32 where the flatbuffer's root table is, from here
//!  4 "FT01"
//!  8 "FH01" | u32 bytes of this header, from 8 | u64 flatbuffer offset | u64 flatbuffer bytes
//! 32 u64 segment base | u64 segment bytes | padding
//!    the rest of the flatbuffer | padding
//! segment base: segments, aligned as the writer was told, to base + segment bytes
//! ```
//!
//! The header is put into a finished flatbuffer behind its first 8 bytes, and the root offset made
//! larger by as much; everything else in a flatbuffer counts from where it stands. So the
//! flatbuffer is read as if it began with the file, and ends at its offset + its bytes. Its schema,
//! in ExecuTorch's `extension/flat_tensor/serialize/flat_tensor.fbs`, with fields by their number:
//!
//! ```text
//! FlatTensor   0 version u32 | 1 segments [DataSegment] | 2 named data [NamedData]
//! DataSegment  0 offset u64, from segment base | 1 bytes u64
//! NamedData    0 key string | 1 segment index u32 | 2 layout TensorLayout, or none: a blob
//! TensorLayout 0 scalar type i8 | 1 sizes [i32] | 2 dimension order [u8]
//! ```
//!
//! What this reader makes of it, where a [`Tensor`] says less than a layout:
//!
//! - A blob, which only some backend understands, is a tensor of `U8` with one dimension. Its
//!   metadata has `ptd.layout.KEY` = `none`.
//! - Keys that share a segment are tensors over the same bytes; each is loaded for itself.
//! - The shape is `sizes`, whatever the dimension order. An order that is not `0, 1, 2, …` (that
//!   of `channels_last`, say) is in `ptd.dim_order.KEY`, outermost first; the bytes are not moved.
//! - A tensor takes the first bytes of its segment, as many as its layout needs, as ExecuTorch's
//!   own `load_data_into` does. Segments may be longer: of a view, writers store the whole storage.
//! - Quantised and raw types are given as the integers they consist of, and named in
//!   `ptd.scalar_type.KEY`: their scales are not in the file.
//!
//! Whatever of these is in a file is also told in the catalog's notices. Refused here, though
//! ExecuTorch 1.5 lets them pass: empty keys, keys that are there twice (it takes the first), and
//! data that lies on the header.

mod entries;
mod flatbuffer;
mod scalar_type;

use crate::error::{FormatError, Quoted};
use crate::{Catalog, Format, Metadata, Parse, SourceFile, Tensor};
use entries::Entries;
use flatbuffer::Buffer;

/// The flatbuffer's identifier, at byte 4.
pub const MAGIC: &[u8] = b"FT01";

/// The identifier of the header within the flatbuffer, at byte 8.
pub const HEADER_MAGIC: &[u8] = b"FH01";

/// Longest flatbuffer: its offsets to vtables are signed and of 32 bits.
pub const FLATBUFFER_BYTES_MAX: u64 = i32::MAX as u64;

/// The flatbuffer's first 8 bytes and the least header.
const START_BYTES: usize = 48;

/// The header's own length, without those first 8 bytes, which newer versions may make more.
const HEADER_BYTES_MIN: u32 = 40;

/// The header of one `.ptd` file.
#[derive(Clone, Debug, PartialEq)]
pub struct PtdFile {
    header_bytes: u64,
    data_offset: u64,
    metadata: Metadata,
    tensors: Vec<Tensor>,
    notices: Vec<String>,
}

impl PtdFile {
    /// How many bytes header and flatbuffer take, without the padding behind them.
    #[must_use]
    pub const fn header_bytes(&self) -> u64 {
        self.header_bytes
    }

    /// Where the segments begin.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        self.data_offset
    }

    /// What the tensors themselves do not say: see the module's description.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors in the file's own order, offsets absolute, `file` 0. They may overlap.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }
}

/// Reads the header of a `.ptd` file of `file_bytes` bytes from its first bytes.
///
/// The first 48 bytes tell exactly how many more are needed, so this asks twice at most.
///
/// # Errors
///
/// When the file is no FlatTensor file, of a version or of types that are not read, damaged, or
/// shorter than its header says. The error names no file yet: see [`FormatError::in_file`].
pub fn parse(prefix: &[u8], file_bytes: u64) -> Result<Parse<PtdFile>, FormatError> {
    if file_bytes < START_BYTES as u64 {
        return Err(FormatError::truncated(format!(
            "a .ptd file begins with {START_BYTES} bytes of header but this one has only \
             {file_bytes}: the file is truncated"
        ))
        .at(0));
    }
    let Some(start) = prefix.first_chunk() else {
        return Ok(Parse::NeedBytes(START_BYTES as u64));
    };
    let start = Start::read(start, file_bytes)?;
    let flatbuffer = usize::try_from(start.flatbuffer_end).ok().and_then(|end| prefix.get(..end));
    let Some(flatbuffer) = flatbuffer else {
        return Ok(Parse::NeedBytes(start.flatbuffer_end));
    };
    let entries = Entries::read(Buffer::new(flatbuffer), &start)?;
    start.check_data(&entries.tensors, file_bytes)?;
    let notices = entries.notices();
    Ok(Parse::Complete(PtdFile {
        header_bytes: start.flatbuffer_end,
        data_offset: start.segment_base,
        metadata: entries.metadata,
        tensors: entries.tensors,
        notices,
    }))
}

/// Makes the catalog of a `.ptd` file: its name, its length and its header.
///
/// # Errors
///
/// None that a parsed header leaves room for.
pub fn catalog(name: String, bytes: u64, file: PtdFile) -> Result<Catalog, FormatError> {
    let named = |notice: String| format!("{}: {notice}", Quoted(&name));
    let notices = file.notices.into_iter().map(named).collect();
    let files = vec![SourceFile { name, bytes }];
    Catalog::new(Format::Ptd, files, file.tensors, file.metadata, notices)
}

/// What the file's first 48 bytes say.
struct Start {
    flatbuffer_end: u64,
    segment_base: u64,
    segment_bytes: u64,
}

impl Start {
    fn read(start: &[u8; START_BYTES], file_bytes: u64) -> Result<Self, FormatError> {
        let (head, numbers) = start.split_at(16);
        let (numbers, _) = numbers.as_chunks::<8>();
        let number = |index: usize| u64::from_le_bytes(numbers[index]);
        check_magic(&head[4..8], &head[8..12])?;
        let header_bytes = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        if header_bytes < HEADER_BYTES_MIN {
            return Err(FormatError::malformed(format!(
                "a header of {header_bytes} bytes is shorter than the {HEADER_BYTES_MIN} of the \
                 first version"
            ))
            .at(12));
        }
        let (offset, bytes) = (number(0), number(1));
        let end = offset.checked_add(bytes).filter(|end| *end <= FLATBUFFER_BYTES_MAX);
        let flatbuffer_end = end.ok_or_else(|| {
            FormatError::malformed(format!(
                "a flatbuffer of {bytes} bytes from byte {offset} on is longer than the \
                 {FLATBUFFER_BYTES_MAX} that are allowed: the file is damaged"
            ))
            .at(16)
        })?;
        if flatbuffer_end < 8 + u64::from(header_bytes) {
            return Err(FormatError::malformed(format!(
                "the flatbuffer ends at byte {flatbuffer_end}, before its header of \
                 {header_bytes} bytes does"
            ))
            .at(12));
        }
        if flatbuffer_end > file_bytes {
            return Err(FormatError::truncated(format!(
                "the flatbuffer ends at byte {flatbuffer_end} but the file has {file_bytes} bytes: \
                 the file is truncated"
            ))
            .at(16));
        }
        Self { flatbuffer_end, segment_base: number(2), segment_bytes: number(3) }.checked()
    }

    /// Refuses segments that no file could hold, or that lie on the header.
    fn checked(self) -> Result<Self, FormatError> {
        let Self { flatbuffer_end, segment_base: base, segment_bytes: bytes } = self;
        let cause = if base.checked_add(bytes).is_none() {
            format!("{bytes} bytes of segments from byte {base} on overflow")
        } else if bytes > 0 && base < flatbuffer_end {
            format!(
                "the segments begin at byte {base}, before the flatbuffer ends at {flatbuffer_end}"
            )
        } else {
            return Ok(self);
        };
        Err(FormatError::malformed(format!("{cause}: the file is damaged")).at(32))
    }

    /// Refuses a file that ends before its data does, naming the first tensor that is cut.
    fn check_data(&self, tensors: &[Tensor], file_bytes: u64) -> Result<(), FormatError> {
        let end = self.segment_base + self.segment_bytes;
        if self.segment_bytes == 0 || end <= file_bytes {
            return Ok(());
        }
        let beyond = tensors.iter().filter(|tensor| tensor.bytes > 0 && tensor.end() > file_bytes);
        Err(match beyond.min_by_key(|tensor| (tensor.offset, tensor.bytes)) {
            Some(cut) => FormatError::truncated(format!(
                "data ends at byte {} but the file has {file_bytes} bytes: the file is truncated, \
                 it should have {end}",
                cut.end()
            ))
            .in_tensor(&cut.name)
            .at(cut.offset),
            None => FormatError::truncated(format!(
                "the segments end at byte {end} but the file has {file_bytes} bytes: \
                 the file is truncated"
            ))
            .at(40),
        })
    }
}

fn check_magic(flatbuffer: &[u8], header: &[u8]) -> Result<(), FormatError> {
    let error = match (flatbuffer, header) {
        (MAGIC, HEADER_MAGIC) => return Ok(()),
        (MAGIC, other) if other.starts_with(b"FH") => {
            let version = other.escape_ascii();
            FormatError::unsupported(format!("a header of version '{version}'; 'FH01' is read"))
                .with_remedy("the file is damaged, or newer than this version of forebay")
                .at(8)
        }
        (MAGIC, other) => FormatError::malformed(format!(
            "'{}' stands where the header begins with 'FH01'",
            other.escape_ascii()
        ))
        .at(8),
        (other, _) if other.starts_with(b"FT") => {
            let version = other.escape_ascii();
            FormatError::unsupported(format!("FlatTensor of version '{version}'; 'FT01' is read"))
                .with_remedy("the file is damaged, or newer than this version of forebay")
                .at(4)
        }
        (other, _) if other.starts_with(b"ET") => {
            FormatError::unsupported("an ExecuTorch program (.pte), not its data")
                .with_remedy("name the .ptd file that was exported with it")
                .at(4)
        }
        (other, _) => FormatError::malformed(format!(
            "not a FlatTensor file: '{}' stands where it has 'FT01'",
            other.escape_ascii()
        ))
        .at(4),
    };
    Err(error)
}

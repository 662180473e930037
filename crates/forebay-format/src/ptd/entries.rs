//! The flatbuffer's named data, as tensors.

use super::flatbuffer::{Buffer, Table, Tables, Vector};
use super::{Start, scalar_type};
use crate::catalog::elements;
use crate::error::{FormatError, some_of};
use crate::{Dtype, Metadata, Tensor, Value};
use std::collections::HashSet;

/// Newest version of the schema that is read. Older ones are by rule a part of it; there are none.
const VERSION_MAX: u32 = 0;

/// `kTensorDimensionLimit` of ExecuTorch.
const DIMENSIONS_MAX: usize = 16;

/// Longest key: as for GGUF, the format knows no limit, and nothing needs longer ones.
const KEY_BYTES_MAX: usize = 1 << 16;

/// Least that an entry can take: its offset in the vector, a table with its vtable's offset and its
/// key's, and a key of one byte, its length and NUL before it and behind it. No two entries can
/// share a table or a key, since no key may be there twice; vtables they do share.
const ENTRY_BYTES_MIN: usize = 4 + 8 + 6;

/// Everything the flatbuffer names, and what of it a tensor does not say.
#[derive(Default)]
pub(super) struct Entries {
    pub(super) tensors: Vec<Tensor>,
    pub(super) metadata: Metadata,
    blobs: Vec<String>,
    reordered: Vec<String>,
    retyped: Vec<String>,
    shortened: Vec<String>,
    sharing: Vec<String>,
}

impl Entries {
    /// Reads and checks them all.
    pub(super) fn read(buffer: Buffer<'_>, start: &Start) -> Result<Self, FormatError> {
        let root = buffer.root()?;
        let version = u32::from_le_bytes(root.scalar(0)?);
        if version > VERSION_MAX {
            return Err(FormatError::unsupported(format!(
                "FlatTensor schema version {version}; {VERSION_MAX} is read"
            ))
            .with_remedy("the file is damaged, or newer than this version of forebay")
            .at(root.position()));
        }
        let lacks = |what: &str| {
            FormatError::malformed(format!("the flatbuffer has no list of {what}"))
                .at(root.position())
        };
        let segments = root.tables(1, "the list of segments")?;
        let segments = Segments::new(start, segments.ok_or_else(|| lacks("segments"))?);
        let named = root.tables(2, "the list of named data")?;
        let named = named.ok_or_else(|| lacks("named data"))?;
        Self::read_all(named, segments, start.flatbuffer_end)
    }

    fn read_all(
        named: Tables<'_>,
        mut segments: Segments<'_>,
        flatbuffer_bytes: u64,
    ) -> Result<Self, FormatError> {
        let mut keys = Keys::expecting(named, flatbuffer_bytes)?;
        let mut entries = Self { tensors: Vec::with_capacity(named.len()), ..Self::default() };
        let mut total_bytes = 0_u64;
        for index in 0..named.len() {
            let entry = named.get(index, "an entry of the named data")?;
            let key = keys.read(&entry)?;
            let tensor = entries.tensor(&entry, key, &mut segments);
            let tensor = tensor.map_err(|error| error.in_tensor(key))?;
            // Shared bytes count as often as they are shared: no file's length bounds their sum.
            total_bytes = total_bytes.checked_add(tensor.bytes).ok_or_else(|| {
                FormatError::malformed("the sizes of all tensors up to it overflow")
                    .in_tensor(key)
                    .at(entry.position())
            })?;
            if total_bytes / SHARED_TIMES_MAX > segments.bytes {
                let cause = format!(
                    "the tensors up to it take more than {SHARED_TIMES_MAX} times the bytes of \
                     all segments"
                );
                let error = FormatError::unsupported(cause).in_tensor(key).at(entry.position());
                return Err(error);
            }
            entries.tensors.push(tensor);
        }
        Ok(entries)
    }

    fn tensor(
        &mut self,
        entry: &Table<'_>,
        key: &str,
        segments: &mut Segments<'_>,
    ) -> Result<Tensor, FormatError> {
        let segment = segments.get(entry)?;
        if segment.is_shared {
            self.sharing.push(key.to_owned());
        }
        let Some(layout) = entry.table(2, "a layout")? else {
            self.note("layout", key, "none");
            self.blobs.push(key.to_owned());
            return Ok(Tensor {
                name: key.to_owned(),
                dtype: Dtype::U8,
                shape: vec![segment.bytes],
                file: 0,
                offset: segment.offset,
                bytes: segment.bytes,
            });
        };
        let (dtype, shape) = self.layout(&layout, key)?;
        let bytes = elements(&shape).and_then(|elements| dtype.bytes_for(elements));
        let refused = |cause| FormatError::malformed(cause).at(layout.position());
        let bytes =
            bytes.ok_or_else(|| refused(format!("the size of its shape {shape:?} overflows")))?;
        if bytes > segment.bytes {
            return Err(refused(format!(
                "shape {shape:?} of {dtype} takes {bytes} bytes but its segment has {}",
                segment.bytes
            )));
        }
        if bytes < segment.bytes {
            self.shortened.push(key.to_owned());
        }
        let offset = segment.offset;
        Ok(Tensor { name: key.to_owned(), dtype, shape, file: 0, offset, bytes })
    }

    fn layout(&mut self, layout: &Table<'_>, key: &str) -> Result<(Dtype, Vec<u64>), FormatError> {
        let (dtype, told) = scalar_type::dtype(i8::from_le_bytes(layout.scalar(0)?))
            .map_err(|error| error.at(layout.position()))?;
        if let Some(name) = told {
            self.note("scalar_type", key, name);
            self.retyped.push(key.to_owned());
        }
        let sizes = layout.vector(1, "its sizes")?;
        let shape = shape(sizes)?;
        let order = layout.vector(2, "its dimension order")?;
        let order: &[[u8; 1]] = order.map_or(&[], |order| order.elements);
        let order = order.as_flattened();
        if !is_permutation(order, shape.len()) {
            return Err(FormatError::malformed(format!(
                "its dimension order {:?} does not name each of {} dimensions once",
                &order[..order.len().min(DIMENSIONS_MAX + 1)],
                shape.len()
            ))
            .at(layout.position()));
        }
        if !order.is_sorted() {
            self.note("dim_order", key, &format!("{order:?}"));
            self.reordered.push(key.to_owned());
        }
        Ok((dtype, shape))
    }

    fn note(&mut self, what: &str, key: &str, value: &str) {
        self.metadata.insert(&format!("ptd.{what}.{key}"), Value::String(value.into()));
    }

    /// A sentence on each thing that a caller could take for something else.
    pub(super) fn notices(&self) -> Vec<String> {
        let told = [
            (&self.blobs, "blobs have no layout and are given as U8 (ptd.layout.*)"),
            (&self.reordered, "tensors lie in another order of dimensions (ptd.dim_order.*)"),
            (&self.retyped, "tensors are given as plain integers (ptd.scalar_type.*)"),
            (&self.shortened, "tensors leave the end of their segment unused"),
            (&self.sharing, "tensors have the bytes of one before them, and a copy of their own"),
        ];
        let told = told.into_iter().filter(|(keys, _)| !keys.is_empty());
        told.map(|(keys, what)| format!("{} {what}: {}", keys.len(), some_of(keys))).collect()
    }
}

/// Sizes as they are, which is outermost first.
fn shape(sizes: Option<Vector<'_, 4>>) -> Result<Vec<u64>, FormatError> {
    let Some(sizes) = sizes else {
        return Ok(Vec::new());
    };
    let count = sizes.elements.len();
    if count > DIMENSIONS_MAX {
        let cause = format!("{count} dimensions are more than the {DIMENSIONS_MAX} of ExecuTorch");
        return Err(FormatError::malformed(cause).at(sizes.position()));
    }
    let read = |(index, size): (usize, &[u8; 4])| {
        let size = i32::from_le_bytes(*size);
        u64::try_from(size).map_err(|_| {
            let cause = format!("its dimension {index} is {size}, which is negative");
            FormatError::malformed(cause).at(sizes.position())
        })
    };
    sizes.elements.iter().enumerate().map(read).collect()
}

/// Whether `order` has each of the numbers below `count`, which is small, once.
fn is_permutation(order: &[u8], count: usize) -> bool {
    order.len() == count
        && (0..count).all(|index| order.iter().any(|place| usize::from(*place) == index))
}

/// The keys that were read so far.
struct Keys<'a> {
    seen: HashSet<&'a str>,
    /// What the keys to come may take. Strings of a flatbuffer can be made to lie in each other:
    /// all together they must not be more than the flatbuffer, or a small one asks for a lot.
    bytes_left: u64,
}

impl<'a> Keys<'a> {
    fn expecting(named: Tables<'_>, flatbuffer_bytes: u64) -> Result<Self, FormatError> {
        let count = named.len();
        if (count as u64).saturating_mul(ENTRY_BYTES_MIN as u64) > flatbuffer_bytes {
            return Err(FormatError::malformed(format!(
                "{count} entries need at least {ENTRY_BYTES_MIN} bytes each but the flatbuffer \
                 ends at byte {flatbuffer_bytes}: the file is damaged"
            ))
            .at(named.position()));
        }
        Ok(Self { seen: HashSet::with_capacity(count), bytes_left: flatbuffer_bytes })
    }

    fn read(&mut self, entry: &Table<'a>) -> Result<&'a str, FormatError> {
        let key = entry.vector(0, "a key")?;
        let (at, bytes): (u64, &[[u8; 1]]) =
            key.map_or((entry.position(), &[]), |key| (key.position(), key.elements));
        let bytes = bytes.as_flattened();
        let refused = |cause: String| FormatError::malformed(cause).at(at);
        if bytes.is_empty() {
            return Err(refused("a key is empty".to_owned()));
        }
        if bytes.len() > KEY_BYTES_MAX {
            let length = bytes.len();
            return Err(refused(format!(
                "a key is {length} bytes long, more than the {KEY_BYTES_MAX} that are allowed"
            )));
        }
        let left = self.bytes_left.checked_sub(bytes.len() as u64);
        self.bytes_left = left.ok_or_else(|| {
            refused("the keys up to this one have more bytes than the flatbuffer".to_owned())
        })?;
        let key = std::str::from_utf8(bytes).map_err(|error| {
            refused(format!(
                "a key is not valid UTF-8 ({error}): '{}'",
                bytes[..bytes.len().min(64)].escape_ascii()
            ))
        })?;
        if !self.seen.insert(key) {
            return Err(refused("a tensor of this name is there already".to_owned()).in_tensor(key));
        }
        Ok(key)
    }
}

/// Where an entry's bytes are, absolute.
struct Segment {
    offset: u64,
    bytes: u64,
    /// Whether an entry before has the same bytes, of which there are some.
    is_shared: bool,
}

/// How often the bytes of a file may be shared on the whole: a small hostile file could ask for
/// any amount of memory otherwise.
const SHARED_TIMES_MAX: u64 = 64;

struct Segments<'a> {
    base: u64,
    /// Of all segments.
    bytes: u64,
    tables: Tables<'a>,
    used: Vec<bool>,
}

impl<'a> Segments<'a> {
    fn new(start: &Start, tables: Tables<'a>) -> Self {
        let used = vec![false; tables.len()];
        Self { base: start.segment_base, bytes: start.segment_bytes, tables, used }
    }

    /// The segment that an entry names, which lies among the file's segments.
    fn get(&mut self, entry: &Table<'_>) -> Result<Segment, FormatError> {
        let index = u32::from_le_bytes(entry.scalar(1)?) as usize;
        let count = self.tables.len();
        let Some(used) = self.used.get_mut(index) else {
            let cause = format!("its data is in segment {index}, but there are {count} segments");
            return Err(FormatError::malformed(cause).at(entry.position()));
        };
        let was_used = std::mem::replace(used, true);
        let table = self.tables.get(index, "a segment")?;
        let offset = u64::from_le_bytes(table.scalar(0)?);
        let bytes = u64::from_le_bytes(table.scalar(1)?);
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(FormatError::malformed(format!(
                "segment {index} has {bytes} bytes from {offset} on, but all segments have {}",
                self.bytes
            ))
            .at(table.position()));
        }
        // The base and all segments' bytes together do not overflow: `Start` has seen to it.
        Ok(Segment { offset: self.base + offset, bytes, is_shared: was_used && bytes > 0 })
    }
}

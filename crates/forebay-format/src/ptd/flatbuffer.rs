//! A reader of flatbuffers that trusts none of their offsets.
//!
//! ```text
//! table:  i32, how far before it its vtable begins | fields, in any order
//! vtable: u16 bytes of the vtable | u16 bytes of the table | u16 a field: from the table's start,
//!         0 or left out where the field is absent
//! a field that is no scalar is a u32, counted from itself, to
//! vector: u32 count | elements (tables: a u32 each, counted from itself)
//! string: vector of bytes | NUL, which the count leaves out
//! ```
//!
//! The generated code of a flatbuffers compiler follows these offsets unchecked, so the official
//! way is to verify a whole buffer first. Here every step checks the bytes it is about to look at,
//! and nothing is looked at that nobody asks for. Nothing recurses: the caller walks as many levels
//! as its schema has. Alignment is not demanded, since bytes are copied out.
//!
//! Offsets may be made to share targets, so that small buffers describe a lot: whoever allocates
//! for what is read here holds it against the buffer's length.

use crate::error::FormatError;

/// What comes before the fields, in a table and, as it happens, in a vtable.
const HEAD_BYTES: usize = 4;

/// A file's start, up to the end of its flatbuffer. Positions in it are offsets in the file.
#[derive(Clone, Copy)]
pub(super) struct Buffer<'a>(&'a [u8]);

impl<'a> Buffer<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The table that the offset at the buffer's start leads to.
    pub(super) fn root(self) -> Result<Table<'a>, FormatError> {
        Table::at(self, self.follow(0, "the root")?, "the root")
    }

    fn bytes(self, at: usize, count: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let bytes = at.checked_add(count).and_then(|end| self.0.get(at..end));
        bytes.ok_or_else(|| {
            FormatError::malformed(format!(
                "{what} would take {count} bytes, past the flatbuffer's end at byte {}",
                self.0.len()
            ))
            .at(at as u64)
        })
    }

    fn array<const N: usize>(self, at: usize, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.bytes(at, N, what)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    /// Where the offset at `at` leads.
    fn follow(self, at: usize, what: &str) -> Result<usize, FormatError> {
        let offset = u32::from_le_bytes(self.array(at, what)?);
        let target = at.checked_add(offset as usize).filter(|target| *target < self.0.len());
        target.ok_or_else(|| {
            FormatError::malformed(format!(
                "{what} would lie {offset} bytes further on, past the flatbuffer's end at byte {}",
                self.0.len()
            ))
            .at(at as u64)
        })
    }
}

/// A table, its vtable found and both known to lie in the buffer.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    buffer: Buffer<'a>,
    at: usize,
    bytes: usize,
    /// Where its fields are, from its start.
    fields: &'a [[u8; 2]],
}

impl<'a> Table<'a> {
    fn at(buffer: Buffer<'a>, at: usize, what: &str) -> Result<Self, FormatError> {
        let here = |error: FormatError| error.at(at as u64);
        let refused = |cause: &str| here(FormatError::malformed(format!("{what} {cause}")));
        let back = i32::from_le_bytes(buffer.array(at, what)?);
        let distance = back.unsigned_abs() as usize;
        let vtable = if back < 0 { at.checked_add(distance) } else { at.checked_sub(distance) };
        let vtable = vtable.ok_or_else(|| refused("has its vtable before the file's start"))?;
        let [head @ .., low, high] =
            buffer.array::<HEAD_BYTES>(vtable, "a vtable").map_err(here)?;
        let vtable_bytes = usize::from(u16::from_le_bytes(head));
        let bytes = usize::from(u16::from_le_bytes([low, high]));
        if vtable_bytes < HEAD_BYTES || !vtable_bytes.is_multiple_of(2) || bytes < HEAD_BYTES {
            return Err(refused("or its vtable has an impossible length"));
        }
        buffer.bytes(at, bytes, what)?;
        let (words, _) = buffer.bytes(vtable, vtable_bytes, "a vtable").map_err(here)?.as_chunks();
        // The first two are the lengths.
        Ok(Self { buffer, at, bytes, fields: &words[2..] })
    }

    /// Where it begins.
    pub(super) const fn position(&self) -> u64 {
        self.at as u64
    }

    /// Where a field of so many bytes begins, if it is there.
    fn field(&self, index: usize, bytes: usize) -> Result<Option<usize>, FormatError> {
        let offset = self.fields.get(index).map_or(0, |offset| u16::from_le_bytes(*offset));
        let offset = usize::from(offset);
        if offset == 0 {
            return Ok(None);
        }
        if offset < HEAD_BYTES || offset + bytes > self.bytes {
            return Err(FormatError::malformed(format!(
                "field {index} of a table of {} bytes would lie {offset} bytes from its start",
                self.bytes
            ))
            .at(self.position()));
        }
        Ok(Some(self.at + offset))
    }

    /// The bytes of a scalar, which are 0 where it is absent.
    pub(super) fn scalar<const N: usize>(&self, index: usize) -> Result<[u8; N], FormatError> {
        match self.field(index, N)? {
            Some(at) => self.buffer.array(at, "a scalar"),
            None => Ok([0; N]),
        }
    }

    fn target(&self, index: usize, what: &str) -> Result<Option<usize>, FormatError> {
        self.field(index, size_of::<u32>())?.map(|at| self.buffer.follow(at, what)).transpose()
    }

    pub(super) fn table(&self, index: usize, what: &str) -> Result<Option<Self>, FormatError> {
        let target = self.target(index, what)?;
        target.map(|at| Self::at(self.buffer, at, what)).transpose()
    }

    /// A vector of scalars of `N` bytes, or the bytes of a string.
    pub(super) fn vector<const N: usize>(
        &self,
        index: usize,
        what: &str,
    ) -> Result<Option<Vector<'a, N>>, FormatError> {
        let Some(at) = self.target(index, what)? else {
            return Ok(None);
        };
        let count = u32::from_le_bytes(self.buffer.array(at, what)?) as usize;
        let first = at + size_of::<u32>();
        let bytes = self.buffer.bytes(first, count.saturating_mul(N), what)?;
        Ok(Some(Vector { at: first, elements: bytes.as_chunks().0 }))
    }

    /// A vector of tables.
    pub(super) fn tables(
        &self,
        index: usize,
        what: &str,
    ) -> Result<Option<Tables<'a>>, FormatError> {
        let vector = self.vector(index, what)?;
        Ok(vector.map(|offsets| Tables { buffer: self.buffer, offsets }))
    }
}

/// A vector whose elements take `N` bytes each.
#[derive(Clone, Copy)]
pub(super) struct Vector<'a, const N: usize> {
    at: usize,
    pub(super) elements: &'a [[u8; N]],
}

impl<const N: usize> Vector<'_, N> {
    /// Where its first element begins.
    pub(super) const fn position(&self) -> u64 {
        self.at as u64
    }
}

/// A vector of tables, each of which is checked when it is taken.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    buffer: Buffer<'a>,
    offsets: Vector<'a, 4>,
}

impl<'a> Tables<'a> {
    pub(super) const fn len(&self) -> usize {
        self.offsets.elements.len()
    }

    /// Where the vector's first offset is.
    pub(super) const fn position(&self) -> u64 {
        self.offsets.position()
    }

    /// The table at `index`, which is less than [`len`](Self::len).
    pub(super) fn get(&self, index: usize, what: &str) -> Result<Table<'a>, FormatError> {
        let at = self.buffer.follow(self.offsets.at + size_of::<u32>() * index, what)?;
        Table::at(self.buffer, at, what)
    }
}

//! A `.ptd` file made field by field, each of which may be wrong.

/// A field of a flatbuffer's table.
#[derive(Clone)]
pub(crate) enum Field {
    Absent,
    Scalar(Vec<u8>),
    Table(Vec<Field>),
    /// A count, which may be wrong, and the elements' bytes. Strings are this too.
    Vector(u32, Vec<u8>),
    /// The count, and as many tables as there really are.
    Tables(u32, Vec<Vec<Field>>),
    /// Leads into the bytes that are put behind everything.
    Tail(usize),
}

/// Tables and vectors one after the other, from a file's first byte on.
struct Writer {
    bytes: Vec<u8>,
    /// Offsets to be filled in once it is known where the tail begins.
    into_tail: Vec<(usize, usize)>,
}

impl Writer {
    fn point(&mut self, at: usize, target: usize) {
        let offset = u32::try_from(target - at).expect("small");
        self.bytes[at..at + 4].copy_from_slice(&offset.to_le_bytes());
    }

    fn table(&mut self, fields: &[Field]) -> usize {
        let bytes = |field: &Field| match field {
            Field::Absent => 0,
            Field::Scalar(bytes) => bytes.len(),
            _ => 4,
        };
        let vtable = self.bytes.len();
        let table_bytes = 4 + fields.iter().map(bytes).sum::<usize>();
        let mut words = vec![4 + 2 * fields.len(), table_bytes];
        let mut offset = 4;
        for field in fields {
            words.push(if matches!(field, Field::Absent) { 0 } else { offset });
            offset += bytes(field);
        }
        for word in words {
            self.bytes.extend(u16::try_from(word).expect("small").to_le_bytes());
        }
        let at = self.bytes.len();
        self.bytes.extend(u32::try_from(at - vtable).expect("small").to_le_bytes());
        self.bytes.resize(at + table_bytes, 0);
        let mut place = at + 4;
        for field in fields {
            self.field(place, field);
            place += bytes(field);
        }
        at
    }

    fn field(&mut self, at: usize, field: &Field) {
        let target = match field {
            Field::Absent => return,
            Field::Scalar(bytes) => {
                self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
                return;
            }
            Field::Tail(place) => return self.into_tail.push((at, *place)),
            Field::Table(fields) => self.table(fields),
            Field::Vector(count, bytes) => {
                let target = self.bytes.len();
                self.bytes.extend(count.to_le_bytes());
                self.bytes.extend(bytes);
                target
            }
            Field::Tables(count, tables) => {
                let target = self.bytes.len();
                self.bytes.extend(count.to_le_bytes());
                let first = self.bytes.len();
                self.bytes.resize(first + 4 * tables.len(), 0);
                for (index, fields) in tables.iter().enumerate() {
                    let table = self.table(fields);
                    self.point(first + 4 * index, table);
                }
                target
            }
        };
        self.point(at, target);
    }
}

pub(crate) fn text(text: impl AsRef<[u8]>) -> Field {
    let text = text.as_ref();
    Field::Vector(u32::try_from(text.len()).expect("short"), [text, &[0]].concat())
}

pub(crate) fn layout(scalar_type: i8, sizes: &[i32], order: &[u8]) -> Field {
    let count = |length: usize| u32::try_from(length).expect("few");
    Field::Table(vec![
        Field::Scalar(scalar_type.to_le_bytes().to_vec()),
        Field::Vector(
            count(sizes.len()),
            sizes.iter().flat_map(|size| size.to_le_bytes()).collect(),
        ),
        Field::Vector(count(order.len()), order.to_vec()),
    ])
}

/// An entry of the named data.
pub(crate) fn entry(key: &str, segment: u32, layout: Field) -> Vec<Field> {
    vec![text(key), Field::Scalar(segment.to_le_bytes().to_vec()), layout]
}

/// Offset and bytes of a segment.
pub(crate) fn segment(offset: u64, bytes: u64) -> Vec<Field> {
    [offset, bytes].map(|number| Field::Scalar(number.to_le_bytes().to_vec())).to_vec()
}

#[derive(Clone)]
pub(crate) struct Ptd {
    pub(crate) magic: [u8; 4],
    pub(crate) header_magic: [u8; 4],
    pub(crate) header_bytes: u32,
    pub(crate) flatbuffer_bytes: Option<u64>,
    pub(crate) segment_base: Option<u64>,
    pub(crate) segment_bytes: u64,
    pub(crate) version: u32,
    pub(crate) segments: Field,
    pub(crate) named: Field,
    pub(crate) tail: Vec<u8>,
    pub(crate) data_bytes: usize,
}

impl Default for Ptd {
    /// A good file: a matrix of six F32 named `a`, and a blob of 8 bytes named `b`.
    fn default() -> Self {
        Self {
            magic: *b"FT01",
            header_magic: *b"FH01",
            header_bytes: 40,
            flatbuffer_bytes: None,
            segment_base: None,
            segment_bytes: 32,
            version: 0,
            segments: Field::Tables(2, vec![segment(0, 24), segment(24, 8)]),
            named: Field::Tables(2, vec![a(), entry("b", 1, Field::Absent)]),
            tail: Vec::new(),
            data_bytes: 32,
        }
    }
}

/// The matrix of [`Ptd::default`].
pub(crate) fn a() -> Vec<Field> {
    entry("a", 0, layout(6, &[2, 3], &[0, 1]))
}

impl Ptd {
    pub(crate) fn with(change: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut file = Self::default();
        change(&mut file);
        file.build()
    }

    /// A file in which only the first entry is another.
    pub(crate) fn with_entry(entry: Vec<Field>) -> Vec<u8> {
        Self::with(|file| file.named = Field::Tables(1, vec![entry]))
    }

    /// A file in which only the layout of `a` is another.
    pub(crate) fn with_layout(scalar_type: i8, sizes: &[i32], order: &[u8]) -> Vec<u8> {
        Self::with_entry(entry("a", 0, layout(scalar_type, sizes, order)))
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut writer = Writer { bytes: vec![0; 56], into_tail: Vec::new() };
        let version = Field::Scalar(self.version.to_le_bytes().to_vec());
        let root = writer.table(&[version, self.segments.clone(), self.named.clone()]);
        let tail = writer.bytes.len();
        for (at, place) in std::mem::take(&mut writer.into_tail) {
            writer.point(at, tail + place);
        }
        let mut file = writer.bytes;
        file.extend(&self.tail);
        let end = file.len() as u64;
        let flatbuffer_bytes = self.flatbuffer_bytes.unwrap_or(end - 48);
        let base = self.segment_base.unwrap_or(end);
        let mut header = u32::try_from(root).expect("small").to_le_bytes().to_vec();
        header.extend(self.magic);
        header.extend(self.header_magic);
        header.extend(self.header_bytes.to_le_bytes());
        for number in [48, flatbuffer_bytes, base, self.segment_bytes] {
            header.extend(number.to_le_bytes());
        }
        file[..48].copy_from_slice(&header);
        file.resize(file.len() + self.data_bytes, 0);
        file
    }
}

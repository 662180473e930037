//! `.ptd` files that are refused, and in which words.

mod common;

use common::ptd_writer::{Field, Ptd, a, entry, layout, segment, text};
use common::{assert_readable, catalog_of};
use forebay_format::FormatErrorKind::{self, Malformed, Truncated, Unsupported};
use forebay_format::{FormatError, ptd};

/// A file, and what its error must say. Damage inside the flatbuffer unless told otherwise.
struct Row {
    file: Vec<u8>,
    cause: &'static str,
    kind: FormatErrorKind,
    at: Option<u64>,
    tensor: Option<&'static str>,
}

fn row(file: Vec<u8>, cause: &'static str) -> Row {
    Row { file, cause, kind: Malformed, at: None, tensor: None }
}

impl Row {
    fn is(self, kind: FormatErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// In the header, whose fields have their fixed places.
    fn at(self, byte: u64) -> Self {
        Self { at: Some(byte), ..self }
    }

    fn of(self, tensor: &'static str) -> Self {
        Self { tensor: Some(tensor), ..self }
    }
}

fn check(rows: impl IntoIterator<Item = Row>) {
    for Row { file, cause, kind, at, tensor } in rows {
        let error = catalog_of("x.ptd", &file).expect_err(cause);
        assert_readable(&error);
        assert!(error.to_string().starts_with("x.ptd: "), "{error}");
        assert!(error.cause_text().contains(cause), "not '{cause}': {error}");
        assert_eq!((error.kind(), error.tensor()), (kind, tensor), "{error}");
        let offset = error.offset().expect(cause);
        match at {
            Some(byte) => assert_eq!(offset, byte, "{error}"),
            None => assert!((56..file.len() as u64).contains(&offset), "{error}"),
        }
        assert!(error.remedy().is_some() || kind == Malformed, "no remedy: {error}");
    }
}

#[test]
fn headers() {
    let with = |change: fn(&mut Ptd)| Ptd::with(change);
    check([
        row(vec![0; 47], "48 bytes of header but this one has only 47").is(Truncated).at(0),
        row(
            with(|file| file.magic = *b"\0\x01\x02\x03"),
            r"not a FlatTensor file: '\x00\x01\x02\x03' stands where it has 'FT01'",
        )
        .at(4),
        row(with(|file| file.magic = *b"FT02"), "FlatTensor of version 'FT02'; 'FT01' is read")
            .is(Unsupported)
            .at(4),
        row(with(|file| file.magic = *b"ET12"), "an ExecuTorch program (.pte), not its data")
            .is(Unsupported)
            .at(4),
        row(
            with(|file| file.header_magic = *b"FH02"),
            "a header of version 'FH02'; 'FH01' is read",
        )
        .is(Unsupported)
        .at(8),
        row(with(|file| file.header_magic = [0; 4]), "stands where the header begins with 'FH01'")
            .at(8),
        row(with(|file| file.header_bytes = 39), "a header of 39 bytes is shorter than the 40")
            .at(12),
        row(with(|file| file.header_bytes = 1 << 20), "before its header of 1048576 bytes does")
            .at(12),
    ]);
}

#[test]
fn sizes_in_the_header() {
    let with = |change: fn(&mut Ptd)| Ptd::with(change);
    check([
        row(
            with(|file| file.flatbuffer_bytes = Some(1 << 31)),
            "a flatbuffer of 2147483648 bytes from byte 48 on is longer than the 2147483647",
        )
        .at(16),
        row(with(|file| file.flatbuffer_bytes = Some(u64::MAX)), "is longer than").at(16),
        row(
            with(|file| file.flatbuffer_bytes = Some(100_000)),
            "the flatbuffer ends at byte 100048 but the file has",
        )
        .is(Truncated)
        .at(16),
        row(
            with(|file| file.segment_base = Some(u64::MAX)),
            "32 bytes of segments from byte 18446744073709551615 on overflow",
        )
        .at(32),
        row(
            with(|file| file.segment_base = Some(48)),
            "the segments begin at byte 48, before the flatbuffer ends at",
        )
        .at(32),
        row(
            with(|file| {
                file.segment_bytes = 33;
                file.named = Field::Tables(0, vec![]);
            }),
            "the segments end at byte",
        )
        .is(Truncated)
        .at(40),
    ]);
}

#[test]
fn a_cut_file_names_the_first_tensor_that_is_cut() {
    let good = Ptd::default().build();
    let base = good.len() as u64 - 32;
    for (length, tensor, offset) in [(31, "b", base + 24), (24, "b", base + 24), (23, "a", base)] {
        let cut = &good[..good.len() - 32 + length];
        let error = catalog_of("x.ptd", cut).expect_err("a cut file");
        assert_eq!(error.kind(), Truncated);
        assert_eq!((error.tensor(), error.offset()), (Some(tensor), Some(offset)));
        let should = format!("the file is truncated, it should have {}", good.len());
        assert!(error.cause_text().ends_with(&should), "{error}");
    }
}

#[test]
fn roots() {
    let with = |change: fn(&mut Ptd)| Ptd::with(change);
    let mut lost = Ptd::default().build();
    lost[..4].copy_from_slice(&0xffff_u32.to_le_bytes());
    check([
        row(lost, "the root would lie 65535 bytes further on, past the flatbuffer's end at byte")
            .at(0),
        row(with(|file| file.version = 1), "FlatTensor schema version 1; 0 is read")
            .is(Unsupported),
        row(with(|file| file.segments = Field::Absent), "the flatbuffer has no list of segments"),
        row(with(|file| file.named = Field::Absent), "the flatbuffer has no list of named data"),
        row(
            with(|file| file.named = Field::Tables(u32::MAX, vec![])),
            "the list of named data would take 17179869180 bytes, past the flatbuffer's end",
        ),
        row(
            with(|file| file.named = Field::Vector(5000, vec![0; 20_000])),
            "5000 entries need at least 18 bytes each but the flatbuffer ends at byte",
        ),
    ]);
}

/// A good file, changed where its only entry's table or vtable is.
fn damaged(change: impl FnOnce(&mut [u8], usize, usize)) -> Vec<u8> {
    let mut file = Ptd::with_entry(a());
    let key = file.windows(6).position(|bytes| bytes == b"\x01\0\0\0a\0").expect("the key");
    // The table of three fields of 4 bytes lies right before the key, its vtable before it.
    let (vtable, table) = (key - 16 - 10, key - 16);
    change(&mut file, vtable, table);
    file
}

#[test]
fn tables() {
    let put = |file: &mut [u8], at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    check([
        row(
            damaged(|file, _, table| put(file, table, &i32::MAX.to_le_bytes())),
            "an entry of the named data has its vtable before the file's start",
        ),
        row(
            damaged(|file, _, table| put(file, table, &i32::MIN.to_le_bytes())),
            "a vtable would take 4 bytes, past the flatbuffer's end",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable, &[0, 0])),
            "an entry of the named data or its vtable has an impossible length",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable, &[9, 0])),
            "an entry of the named data or its vtable has an impossible length",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable, &[0xfe, 0xff])),
            "a vtable would take 65534 bytes, past the flatbuffer's end",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable + 2, &[3, 0])),
            "an entry of the named data or its vtable has an impossible length",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable + 2, &[0xff, 0xff])),
            "an entry of the named data would take 65535 bytes, past the flatbuffer's end",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable + 4, &[2, 0])),
            "field 0 of a table of 16 bytes would lie 2 bytes from its start",
        ),
        row(
            damaged(|file, vtable, _| put(file, vtable + 4, &[13, 0])),
            "field 0 of a table of 16 bytes would lie 13 bytes from its start",
        ),
    ]);
}

#[test]
fn keys() {
    let keyed = |key: Field| {
        Ptd::with_entry(vec![key, Field::Scalar(vec![0; 4]), layout(6, &[2, 3], &[0, 1])])
    };
    check([
        row(keyed(Field::Absent), "a key is empty"),
        row(keyed(text("")), "a key is empty"),
        row(keyed(text(b"gr\xf6\xdfe")), r"a key is not valid UTF-8"),
        row(
            keyed(text("k".repeat(65_537))),
            "a key is 65537 bytes long, more than the 65536 that are allowed",
        ),
        row(
            keyed(Field::Vector(1 << 20, b"a".to_vec())),
            "a key would take 1048576 bytes, past the flatbuffer's end",
        ),
        row(keys_in_each_other(), "the keys up to this one have more bytes than the flatbuffer"),
        row(
            Ptd::with(|file| file.named = Field::Tables(2, vec![a(), a()])),
            "a tensor of this name is there already",
        )
        .of("a"),
    ]);
}

/// 250 keys of 24 KiB each, all different and all valid, in 27 KiB.
fn keys_in_each_other() -> Vec<u8> {
    let mut tail = Vec::new();
    let mut entries = Vec::new();
    for number in 0..250 {
        entries.push(vec![Field::Tail(tail.len()), Field::Scalar(vec![0; 4]), Field::Absent]);
        tail.extend(0x6060_u32.to_le_bytes());
        tail.extend(format!("{number:04}").bytes());
    }
    tail.resize(tail.len() + 0x6060, b'x');
    Ptd::with(|file| {
        file.named = Field::Tables(250, entries);
        file.tail = tail;
    })
}

#[test]
fn segments() {
    let with_segments = |segments: Vec<Vec<Field>>| {
        let count = u32::try_from(segments.len()).expect("few");
        Ptd::with(|file| file.segments = Field::Tables(count, segments))
    };
    check([
        row(
            with_segments(vec![segment(0, 24)]),
            "its data is in segment 1, but there are 1 segments",
        )
        .of("b"),
        row(
            with_segments(vec![segment(0, 24), segment(25, 8)]),
            "segment 1 has 8 bytes from 25 on, but all segments have 32",
        )
        .of("b"),
        row(
            with_segments(vec![segment(u64::MAX, 24), segment(24, 8)]),
            "segment 0 has 24 bytes from 18446744073709551615 on, but all segments have 32",
        )
        .of("a"),
        row(
            with_segments(vec![segment(0, 23), segment(24, 8)]),
            "shape [2, 3] of F32 takes 24 bytes but its segment has 23",
        )
        .of("a"),
    ]);
}

#[test]
fn layouts() {
    let with = Ptd::with_layout;
    let rows = [
        row(with(8, &[1], &[0]), "scalar type 8 (ComplexHalf) is not read").is(Unsupported),
        row(with(16, &[1], &[0]), "scalar type 16 (QUInt4x2) is not read").is(Unsupported),
        row(with(30, &[1], &[0]), "scalar type 30 is not one of ExecuTorch").is(Unsupported),
        row(with(-1, &[1], &[0]), "scalar type -1 is not one of ExecuTorch").is(Unsupported),
        row(with(6, &[2, -3], &[0, 1]), "dimension 1 is -3, which"),
        row(
            with(6, &[i32::MAX; 3], &[0, 1, 2]),
            "the size of its shape [2147483647, 2147483647, 2147483647] overflows",
        ),
        row(with(6, &[1; 17], &[0; 17]), "17 dimensions are more than"),
        row(
            with(6, &[2, 3], &[]),
            "its dimension order [] does not name each of 2 dimensions once",
        ),
        row(
            with(6, &[2, 3], &[1, 1]),
            "its dimension order [1, 1] does not name each of 2 dimensions once",
        ),
        row(with(6, &[2, 3], &[0, 2]), "its dimension order [0, 2] does not"),
        row(with(6, &[], &[0; 200]), "does not name each of 0 dimensions once"),
        row(
            Ptd::with_entry(entry(
                "a",
                0,
                Field::Table(vec![Field::Scalar(vec![6]), Field::Vector(u32::MAX, vec![])]),
            )),
            "its sizes would take 17179869180 bytes, past the flatbuffer's end",
        ),
    ];
    check(rows.map(|row| row.of("a")));
}

/// Tensors that share a segment can be more together than any file is long.
#[test]
fn sizes_that_overflow_together() {
    let half = 1_u64 << 63;
    let blob = |key: &str| entry(key, 0, Field::Absent);
    let file = Ptd::with(|file| {
        file.segment_base = Some(4096);
        file.segment_bytes = half;
        file.segments = Field::Tables(1, vec![segment(0, half)]);
        file.named = Field::Tables(2, vec![blob("a"), blob("b")]);
    });
    let error: FormatError = ptd::parse(&file, u64::MAX).expect_err("too much");
    assert_eq!((error.kind(), error.tensor()), (Malformed, Some("b")));
    assert_eq!(error.cause_text(), "the sizes of all tensors up to it overflow");
}

/// A small file can't ask for any amount of memory by sharing a segment.
#[test]
fn bytes_that_are_shared_too_often() {
    let keys: Vec<String> = (0..200).map(|number| format!("blob {number}")).collect();
    let file = Ptd::with(|file| {
        file.segments = Field::Tables(1, vec![segment(0, 16)]);
        let blobs = keys.iter().map(|key| entry(key, 0, Field::Absent)).collect();
        file.named = Field::Tables(200, blobs);
        file.segment_bytes = 16;
    });
    let error: FormatError = ptd::parse(&file, u64::MAX).expect_err("too often");
    assert_eq!(error.kind(), FormatErrorKind::Unsupported);
    assert!(error.cause_text().contains("more than 64 times"), "{error}");
}

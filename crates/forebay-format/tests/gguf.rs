//! What GGUF files are refused for, in which words, and what passes though other readers are
//! stricter.

mod common;

use common::{Gguf, assert_readable, catalog_of, parse_in_steps, string, tensor};
use forebay_format::FormatErrorKind::{self, Malformed, Parts, Truncated, Unsupported};
use forebay_format::{Catalog, FormatError, Parse, Value, gguf};

const U32: u32 = 4;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A changed good file, the kind of error, and how the error's line reads after the file's name.
type Refusal = (fn(&mut Gguf), FormatErrorKind, &'static str);

fn refuse_all(refusals: &[Refusal]) {
    for (change, kind, expected) in refusals {
        let file = Gguf::with(change);
        let error = catalog_of("model.gguf", &file).expect_err(expected);
        assert_eq!(error.kind(), *kind, "{error}");
        let line = error.to_string();
        assert!(
            line.strip_prefix("model.gguf: ").is_some_and(|rest| rest.contains(expected)),
            "expected: {expected}\n     got: {line}"
        );
        assert_readable(&error);
    }
}

fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

fn nested(depth: usize) -> Vec<u8> {
    (1..depth).fold(array(U32, 0, &[]), |inner, _| array(ARRAY, 1, &inner))
}

fn alignment(value: u32) -> (Vec<u8>, u32, Vec<u8>) {
    (b"general.alignment".to_vec(), U32, value.to_le_bytes().to_vec())
}

#[test]
fn the_unchanged_file_is_good() {
    let catalog = catalog_of("model.gguf", &Gguf::default().build()).expect("a good file");
    assert_eq!(catalog.tensors().len(), 2);
    assert_eq!(catalog.bytes(), 64);
    assert_eq!(catalog.metadata().get("general.architecture").unwrap().as_str(), Some("test"));
}

#[test]
fn versions_and_byte_orders() {
    refuse_all(&[
        (|f| f.magic = *b"ABCD", Malformed, "at offset 0: not a GGUF file: it begins with 'ABCD'"),
        (|f| f.magic = *b"tjgg", Unsupported, "at offset 0: a GGML file from before GGUF"),
        (|f| f.magic = *b"FUGG", Unsupported, "at offset 0: a big-endian GGUF file"),
        (|f| f.version = 3 << 24, Unsupported, "at offset 4: a big-endian GGUF file"),
        (|f| f.version = 1, Unsupported, "at offset 4: GGUF version 1"),
        (|f| f.version = 0, Unsupported, "at offset 4: GGUF version 0; 2 and 3 are read"),
        (|f| f.version = 4, Unsupported, "at offset 4: GGUF version 4; 2 and 3 are read"),
    ]);
    let old = catalog_of("old.gguf", &Gguf::with(|f| f.version = 1)).expect_err("version 1");
    assert!(old.remedy().unwrap().contains("convert the model anew"));
}

#[test]
fn counts_the_file_could_not_hold() {
    refuse_all(&[
        (
            |f| f.tensor_count = Some(u64::MAX),
            Truncated,
            "at offset 8: 18446744073709551615 tensors need at least 461168601842738790375 bytes",
        ),
        (|f| f.tensor_count = Some(1 << 40), Truncated, "at offset 8: 1099511627776 tensors"),
        (|f| f.key_value_count = Some(u64::MAX), Truncated, "at offset 16: 184467440737"),
        (
            |f| f.key_values.push((b"k".to_vec(), ARRAY, array(U32, 1 << 20, &[]))),
            Truncated,
            "1048576 array elements need at least 4194304 bytes but the file has only",
        ),
        (
            |f| f.key_values.push((b"k".to_vec(), ARRAY, array(STRING, 1 << 31, &[]))),
            Malformed,
            "2147483648 strings are more than the 1073741824 that are allowed",
        ),
        (
            |f| f.key_values.push((b"k".to_vec(), STRING, u64::MAX.to_le_bytes().to_vec())),
            Malformed,
            "18446744073709551615 bytes of a string are more than",
        ),
        (
            |f| f.key_values.push((b"k".to_vec(), ARRAY, nested(5))),
            Malformed,
            "arrays lie more than 4 deep in one another",
        ),
    ]);
    good(|f| f.key_values.push((b"k".to_vec(), ARRAY, nested(4))));
}

#[test]
fn keys_and_values() {
    refuse_all(&[
        (|f| f.key_values.push(f.key_values[0].clone()), Malformed, "is there twice"),
        (|f| f.key_values[0].0.clear(), Malformed, "at offset 24: a key is empty"),
        (|f| f.key_values[0].0 = vec![0xff, b'k'], Malformed, "a key is not valid UTF-8"),
        (|f| f.key_values[0].1 = 13, Malformed, "value type 13 is not one of GGUF's"),
        (|f| f.key_values[0].0 = vec![b'k'; 65_537], Malformed, "a key is 65537 bytes long"),
        (|f| f.key_values.push(alignment(0)), Malformed, "general.alignment is 0, which is not"),
        (|f| f.key_values.push(alignment(48)), Malformed, "general.alignment is 48, which is not"),
        (
            |f| f.key_values.push((b"general.alignment".to_vec(), STRING, string("32"))),
            Malformed,
            "general.alignment is of type string, not uint32",
        ),
    ]);
}

#[test]
fn descriptions_of_tensors() {
    refuse_all(&[
        (|f| f.tensors[1].name.clear(), Malformed, "a tensor name is empty"),
        (|f| f.tensors[1].name = vec![0xc0], Malformed, "a tensor name is not valid UTF-8"),
        (
            |f| f.tensors[1].name = b"a".to_vec(),
            Malformed,
            "tensor 'a' at offset 101: a tensor of this name is there already",
        ),
        (
            |f| f.tensors[1].dimensions = vec![1; 5],
            Malformed,
            "tensor 'b' at offset 110: 5 dimensions are more than the 4 of GGUF",
        ),
        (
            |f| f.tensors[1].dimensions = vec![1 << 40, 1 << 40],
            Malformed,
            "the size of its shape [1099511627776, 1099511627776] overflows",
        ),
        (
            |f| f.tensors[1].dimensions = vec![1 << 62],
            Malformed,
            "tensor 'b' at offset 101: the size of its shape [4611686018427387904] overflows",
        ),
        (
            |f| f.tensors[1] = tensor("b", &[48, 2], 2, 32),
            Malformed,
            "its innermost dimension 48 is not a multiple of 32, the block of Q4_0",
        ),
        (
            |f| f.tensors[1] = tensor("b", &[], 12, 32),
            Malformed,
            "its innermost dimension 1 is not a multiple of 256, the block of Q4_K",
        ),
        (|f| f.tensors[1].dtype = 42, Unsupported, "type 42 is not known to this version"),
    ]);
    let removed = [(4, "Q4_2"), (5, "Q4_3"), (31, "Q4_0_4_4"), (32, "Q4_0_4_8")];
    for (id, name) in removed.into_iter().chain([
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (37, "IQ4_NL_4_8"),
        (38, "IQ4_NL_8_8"),
    ]) {
        let file = Gguf::with(|f| f.tensors[0].dtype = id);
        let error = catalog_of("model.gguf", &file).expect_err("a removed type");
        let expected = format!("type {id} ({name}) was removed from GGUF");
        assert_eq!(error.cause_text(), expected);
        assert_eq!(error.tensor(), Some("a"));
    }
}

#[test]
fn places_of_data() {
    refuse_all(&[
        (
            |f| f.data_bytes = 60,
            Truncated,
            "tensor 'b' at offset 192: data ends at byte 224 but the file has 220 bytes: \
             the file is truncated, it should have 224",
        ),
        (
            |f| f.data_bytes = 10,
            Truncated,
            "tensor 'a' at offset 160: data ends at byte 192 but the file has 170 bytes: \
             the file is truncated, it should have 224",
        ),
        (
            |f| f.tensors[1].offset = 16,
            Malformed,
            "tensor 'b' at offset 176: its data overlaps that of 'a', which ends at byte 192",
        ),
        (|f| f.tensors[1].offset = u64::MAX - 8, Malformed, "tensor 'b': its offset"),
    ]);
}

/// Accepts the changed file.
fn good(change: impl FnOnce(&mut Gguf)) -> Catalog {
    catalog_of("model.gguf", &Gguf::with(change)).expect("a good file")
}

#[test]
fn what_stricter_readers_refuse_passes() {
    let hole = good(|f| (f.tensors[1].offset, f.data_bytes) = (1024, 1056));
    assert_eq!(hole.tensor("b").unwrap().offset - hole.tensor("a").unwrap().end(), 992);

    let misaligned = good(|f| (f.tensors[1].offset, f.data_bytes) = (33, 65));
    assert_eq!(misaligned.tensor("b").unwrap().offset % 32, 1);

    let disorder = good(|f| (f.tensors[0].offset, f.tensors[1].offset) = (32, 0));
    let names: Vec<_> = disorder.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);

    let long = "n".repeat(65_536);
    assert!(good(|f| f.tensors[0].name = long.clone().into()).tensor(&long).is_some());

    let scalar = good(|f| f.tensors[1].dimensions.clear());
    assert_eq!(scalar.tensor("b").unwrap().shape, [0; 0]);
    assert_eq!(scalar.tensor("b").unwrap().bytes, 4);

    let empty_beyond = good(|f| f.tensors.push(tensor("z", &[0, 7], 0, 4096)));
    assert_eq!(empty_beyond.tensor("z").unwrap().bytes, 0);
    let empty_inside = good(|f| f.tensors.push(tensor("z", &[0], 0, 8)));
    assert_eq!(empty_inside.tensors().len(), 3);

    let aligned_to_one = good(|f| {
        f.key_values.push(alignment(1));
        f.alignment = 1;
    });
    assert_eq!(aligned_to_one.tensors()[0].offset % 2, 1);

    let nothing = good(|f| {
        f.tensors.clear();
        (f.alignment, f.data_bytes) = (1, 0);
    });
    assert!(nothing.tensors().is_empty());
}

#[test]
fn shapes_are_outermost_first() {
    let catalog = good(|f| {
        f.tensors[1].dimensions = vec![4, 3, 2];
        f.data_bytes = 32 + 96;
    });
    assert_eq!(catalog.tensor("b").unwrap().shape, [2, 3, 4]);
}

#[test]
fn strings_need_not_be_utf8() {
    let catalog = good(|f| f.key_values.push((b"k".to_vec(), STRING, string([0xff, b'x']))));
    let Some(Value::String(text)) = catalog.metadata().get("k") else { panic!("no string") };
    assert_eq!((text.to_str(), text.as_bytes()), (None, &[0xff, b'x'][..]));
    assert_eq!(text.to_string(), "\u{fffd}x");
}

#[test]
fn a_long_header_is_asked_for_in_doubling_steps() {
    let words: Vec<u8> = (0..400_000).flat_map(|word| string(word.to_string())).collect();
    let file = Gguf::with(|f| {
        f.key_values.push((b"words".to_vec(), ARRAY, array(STRING, 400_000, &words)));
        f.data_bytes = 8 << 20;
    });
    let (mut wanted, mut steps) = (0, 0);
    while let Parse::NeedBytes(bytes) =
        gguf::parse(&file[..wanted], file.len() as u64).expect("a good file")
    {
        assert!(bytes >= 2 * wanted as u64);
        wanted = usize::try_from(bytes).unwrap();
        steps += 1;
    }
    assert!((3..8).contains(&steps), "{steps} steps");
}

/// Part `index` of `count`, with one tensor named after it.
fn part(index: u16, count: u16, change: impl FnOnce(&mut Gguf)) -> (String, u64, gguf::GgufFile) {
    let file = Gguf::with(|f| {
        let number = |key: &str, value: u16| (key.into(), 2, value.to_le_bytes().to_vec());
        f.key_values.push(number("split.no", index));
        f.key_values.push(number("split.count", count));
        f.key_values.push(number("split.tensors.count", count));
        f.tensors = vec![tensor(&format!("t{index}"), &[8], 0, 0)];
        change(f);
    });
    let name = format!("m-{:05}-of-{count:05}.gguf", index + 1);
    let header = parse_in_steps(&file, gguf::parse).expect("a good part");
    (name, file.len() as u64, header)
}

fn parts(indices: &[u16]) -> Vec<(String, u64, gguf::GgufFile)> {
    indices.iter().map(|index| part(*index, 3, |_| ())).collect()
}

#[test]
fn all_parts_make_one_catalog() {
    let catalog = gguf::catalog(parts(&[0, 1, 2])).expect("all parts");
    let places: Vec<_> =
        catalog.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.file)).collect();
    assert_eq!(places, [("t0", 0), ("t1", 1), ("t2", 2)]);
    assert_eq!(catalog.metadata().get("split.no").and_then(Value::as_u64), Some(0));
}

#[test]
fn parts_that_do_not_fit() {
    let refused = |parts, expected: &str| {
        let error: FormatError = gguf::catalog(parts).expect_err(expected);
        assert!(error.to_string().contains(expected), "expected: {expected}\n     got: {error}");
        assert_readable(&error);
        error.kind()
    };
    let missing = "m-00001-of-00003.gguf: the model has 3 parts and 2 are missing: \
                   'm-00002-of-00003.gguf', 'm-00003-of-00003.gguf'";
    assert_eq!(refused(parts(&[0]), missing), Parts);
    refused(parts(&[1]), "'m-00001-of-00003.gguf', 'm-00003-of-00003.gguf'");
    refused(parts(&[0, 2]), "1 are missing: 'm-00002-of-00003.gguf'");
    refused(parts(&[0, 1, 1]), "part 2 of 3 was given twice");
    refused(parts(&[0, 2, 1]), "m-00003-of-00003.gguf: split.no is 2 but");
    refused(vec![], "no file was given");

    let with_last = |last| [parts(&[0, 1]), vec![last]].concat();
    refused(with_last(part(2, 4, |_| ())), "it is one of 4 parts but m-00001-of-00003.gguf");
    refused(
        with_last(part(2, 3, |f| f.tensors.clear())),
        "promises 3 tensors but the parts have 2",
    );
    let twin = part(2, 3, |f| f.tensors[0].name = b"t0".to_vec());
    refused(with_last(twin), "tensor 't0' at offset");
    let single = part(2, 3, |f| f.key_values.truncate(1));
    refused(with_last(single.clone()), "it is not a part of a split model");
    refused(vec![single.clone(), single], "but it is not split");

    let mut renamed = parts(&[0]);
    renamed[0].0 = "renamed.gguf".to_owned();
    refused(renamed, "renamed.gguf: the model has 3 parts and 2 are missing: 'part 2', 'part 3'");
}

#[test]
fn split_numbers_may_be_of_any_integer_type() {
    let number = |key: &str, kind: u32, value: &[u8]| (key.into(), kind, value.to_vec());
    let split = |no: &[u8], no_kind, count: &[u8], count_kind| {
        let keys = [number("split.no", no_kind, no), number("split.count", count_kind, count)];
        let file = Gguf::with(|f| f.key_values.extend(keys));
        parse_in_steps(&file, gguf::parse).map(|header| header.split())
    };
    let (no, count) = (1_u64.to_le_bytes(), 2_i32.to_le_bytes());
    let found = split(&no, 10, &count, 5).expect("a good part").expect("a part");
    assert_eq!((found.index, found.count, found.tensors), (1, 2, None));
    assert_eq!(split(&[0], 0, &[1], 0).expect("one part is a whole model"), None);
    for (no, no_kind, count, count_kind, expected) in [
        (&[2][..], 0, &[2][..], 0, "split.no is 2 but split.count only 2"),
        (&[0], 0, &[0xff], 1, "split.count is not a count but a int8"),
        (&[1], 7, &[2], 0, "split.no is not a count but a bool"),
    ] {
        let error = split(no, no_kind, count, count_kind).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn names_of_parts() {
    let name = gguf::split_name("llama-of-x-00002-of-00003.gguf").expect("a part's name");
    assert_eq!((name.prefix.as_str(), name.number, name.count), ("llama-of-x", 2, 3));
    assert_eq!(name.file_name(1), "llama-of-x-00001-of-00003.gguf");
    for not in [
        "model.gguf",
        "m-00001-of-00003.safetensors",
        "m-1-of-3.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-+0001-of-00003.gguf",
        "m-000001-of-00003.gguf",
        "00001-of-00003.gguf",
    ] {
        assert_eq!(gguf::split_name(not), None, "{not}");
    }
}

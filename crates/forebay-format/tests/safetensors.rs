//! What safetensors files and indexes are refused for, and in which words.

mod common;

use common::{assert_readable, catalog_of, parse_in_steps, safetensors_file, string};
use forebay_format::FormatErrorKind::{Malformed, Parts, Truncated, Unsupported};
use forebay_format::{Catalog, FormatError, Parse, safetensors};

/// JSON of a header's entry.
fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn refused(file: &[u8], expected: &str) -> FormatError {
    let error = catalog_of("m.safetensors", file).expect_err(expected);
    assert!(error.to_string().contains(expected), "expected: {expected}\n     got: {error}");
    assert_eq!(error.file(), Some("m.safetensors"));
    assert_readable(&error);
    error
}

#[test]
fn lengths_that_cannot_be() {
    let of_length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    assert_eq!(refused(&[1, 2, 3], "has only 3: the file is truncated").kind(), Truncated);
    assert_eq!(refused(&of_length(100_000_001), "longer than the 100000000").kind(), Malformed);
    assert_eq!(refused(&of_length(u64::MAX), "longer than the 100000000").kind(), Malformed);
    assert_eq!(refused(&of_length(3), "ends at byte 11 but the file has 10").kind(), Truncated);
    refused(&of_length(0), "at offset 8: the header does not begin with '{'");
}

#[test]
fn exactly_the_header_is_asked_for() {
    let file = safetensors_file(format!("{{{}}}", entry("a", "F32", "[2]", 0, 8)), 8);
    let header_end = file.len() as u64 - 8;
    let need = |length: usize| safetensors::parse(&file[..length], file.len() as u64);
    assert_eq!(need(0), Ok(Parse::NeedBytes(8)));
    assert_eq!(need(7), Ok(Parse::NeedBytes(8)));
    assert_eq!(need(8), Ok(Parse::NeedBytes(header_end)));
    assert_eq!(need(file.len() - 9), Ok(Parse::NeedBytes(header_end)));
    assert!(matches!(need(file.len() - 8), Ok(Parse::Complete(_))));
}

#[test]
fn headers_that_are_not_json_of_tensors() {
    let good = entry("a", "U8", "[1]", 0, 1);
    for (json, expected) in [
        (" {}".to_owned(), "at offset 8: the header does not begin with '{'"),
        ("[]".to_owned(), "does not begin with '{'"),
        ("{".to_owned(), "at offset 8: EOF while parsing an object"),
        (format!("{{{good}}}x"), "trailing characters"),
        (format!("{{{good},{good}}}"), "tensor 'a' at offset 63: key 'a' is there twice"),
        (r#"{"a":{}}"#.to_owned(), "tensor 'a' at offset 14: missing field `dtype`"),
        (r#"{"a":7}"#.to_owned(), "tensor 'a' at offset 13: invalid type: integer `7`"),
        (good.replace("[1]", "[-1]"), "tensor 'a' at offset 37: invalid value: integer `-1`"),
        (good.replace("[1]", "[1.0]"), "tensor 'a' at offset 38: invalid type: floating point"),
        (good.replace("U8", "Q4_K"), "dtype 'Q4_K' is not one of safetensors'"),
        (r#"{"__metadata__":{"k":1}}"#.to_owned(), "invalid type: integer `1`"),
        (r#"{"__metadata__":{"k":"1","k":"1"}}"#.to_owned(), "key 'k' is there twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), "'__metadata__' is there twice"),
    ] {
        let json = if json.starts_with('"') { format!("{{{json}}}") } else { json };
        refused(&safetensors_file(json, 1), expected);
    }
    let mut not_text = safetensors_file(format!("{{{good}}}"), 1);
    not_text[10] = 0xff;
    refused(&not_text, "at offset 10: the header is not valid UTF-8");
}

#[test]
fn offsets_are_those_of_the_file_even_in_many_lines() {
    let json = "{\n\"a\":\n{\"dtype\": 7}}";
    let error = refused(&safetensors_file(json, 0), "tensor 'a' at offset ");
    let at = usize::try_from(error.offset().unwrap()).unwrap() - 8;
    assert_eq!(&json[at..=at], "7");
}

#[test]
fn data_that_does_not_fit() {
    let f32s = |name, begin, end| entry(name, "F32", "[2]", begin, end);
    let two = |second: String| format!("{{{},{second}}}", f32s("a", 0, 8));
    for (json, data_bytes, kind, expected) in [
        (two(f32s("b", 9, 17)), 17, Malformed, "1 bytes between 'a' and its data belong to no"),
        (two(f32s("b", 4, 12)), 12, Malformed, "its data begins 4 bytes before 'a' ends"),
        (two(f32s("b", 8, 4)), 16, Malformed, "its data ends at 4, before it begins at 8"),
        (two(f32s("b", 8, 15)), 15, Malformed, "takes 8 bytes but its data_offsets are 7 apart"),
        (two(f32s("b", 8, 16)), 15, Truncated, "the file is truncated, it should have 132"),
        (two(f32s("b", 8, 16)), 17, Malformed, "what follows belongs to no tensor"),
        (format!("{{{}}}", f32s("a", 1, 9)), 9, Malformed, "1 bytes between the header and its"),
        (
            format!("{{{}}}", f32s("a", 0, u64::MAX)),
            9,
            Truncated,
            "data ends at byte 18446744073709551615 but the file has 90 bytes",
        ),
        (two(entry("b", "F4", "[3]", 8, 9)), 9, Malformed, "does not fill whole bytes"),
        (two(entry("b", "F6_E2M3", "[2]", 8, 10)), 10, Malformed, "does not fill whole bytes"),
        (two(entry("b", "X", "[2]", 8, 10)), 10, Unsupported, "dtype 'X' is not one of"),
        (
            two(entry("b", "U8", "[4294967296,4294967296,0]", 8, 8)),
            8,
            Malformed,
            "the size of its shape [4294967296, 4294967296, 0] overflows",
        ),
    ] {
        let error = refused(&safetensors_file(json, data_bytes), expected);
        assert_eq!(error.kind(), kind, "{error}");
    }
}

/// Whatever an error quotes, it stays one line that people can read.
#[test]
fn what_a_stranger_wrote_at_length_is_shortened() {
    let long = "\u{1b}long ".repeat(10_000);
    let long = long.escape_debug().to_string().replace("\\u{1b}", "\\u001b");
    let ones = vec!["1"; 10_000].join(",");
    for (entry, expected) in [
        (format!(r#""a":"{long}""#), "long \", expected struct Entry"),
        (format!(r#""a":{{"shape":"{long}"}}"#), "long \", expected a sequence"),
        (entry("a", &long, "[]", 0, 8), "…' is not one of safetensors'"),
        (entry("a", "F32", &format!("[{ones}]"), 0, 8), "1] and 9984 more dimensions of F32"),
        (entry("a", "F4", &format!("[{ones}]"), 0, 8), "1] and 9984 more dimensions of F4"),
        (
            entry("a", "U8", &format!("[4294967296,4294967296,{ones}]"), 0, 8),
            "1] and 9986 more dimensions overflows",
        ),
    ] {
        let error = refused(&safetensors_file(format!("{{{entry}}}"), 8), expected);
        assert_eq!(error.tensor(), Some("a"));
    }
    let index = format!(r#"{{"weight_map":"{long}"}}"#);
    let error = safetensors::parse_index(index.as_bytes()).expect_err("no map");
    assert!(error.to_string().contains("long \", expected an object"), "{error}");
    assert_readable(&error);
    assert!(index_of(&[("a", &"x".repeat(255))]).is_ok());
    let error = index_of(&[("a", &"x".repeat(256))]).expect_err("no file has such a name");
    assert!(error.to_string().contains("takes 256 bytes, more than the 255"), "{error}");
}

/// A shard with one F32 per name.
fn shard(file: &str, names: &[&str]) -> (String, u64, safetensors::SafetensorsFile) {
    let entries: Vec<String> = (0_u64..)
        .zip(names)
        .map(|(place, name)| entry(name, "F32", "[]", 4 * place, 4 * place + 4))
        .collect();
    let json = format!(r#"{{"__metadata__":{{"from":"{file}"}},{}}}"#, entries.join(","));
    let bytes = safetensors_file(json, 4 * names.len());
    let header = parse_in_steps(&bytes, safetensors::parse).expect("a good shard");
    (file.to_owned(), bytes.len() as u64, header)
}

fn index_of(pairs: &[(&str, &str)]) -> Result<safetensors::Index, FormatError> {
    let pairs: Vec<String> =
        pairs.iter().map(|(tensor, file)| format!(r#""{tensor}":"{file}""#)).collect();
    let json = format!(r#"{{"metadata":{{"total_size":7}},"weight_map":{{{}}}}}"#, pairs.join(","));
    safetensors::parse_index(json.as_bytes())
}

/// The catalog of two shards under an index.
fn sharded(
    first: &[&str],
    second: &[&str],
    pairs: &[(&str, &str)],
) -> Result<Catalog, FormatError> {
    let index = index_of(pairs).expect("a good index");
    safetensors::catalog(vec![shard("s1", first), shard("s2", second)], Some(&index))
}

#[test]
fn an_index_joins_shards() {
    let catalog = sharded(&["a"], &["b"], &[("b", "s2"), ("a", "s1")]).expect("a good model");
    let places: Vec<_> =
        catalog.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.file)).collect();
    assert_eq!(places, [("a", 0), ("b", 1)]);
    assert_eq!(catalog.notices(), [""; 0]);
    assert_eq!(catalog.metadata().get("from").unwrap().as_str(), Some("s1"));
}

#[test]
fn an_index_decides_between_shards() {
    let pairs = [("a", "s2"), ("b", "s2")];
    let catalog = sharded(&["a", "c"], &["a", "b"], &pairs).expect("a good model");
    assert_eq!(catalog.tensor("a").unwrap().file, 1);
    assert_eq!(catalog.tensor("c").unwrap().file, 0);
    assert_eq!(
        catalog.notices(),
        [
            "'s1': 1 tensors are taken from another shard, as the index says: 'a'",
            "'s1': 1 tensors are not in the index and were kept: 'c'",
        ]
    );
}

#[test]
fn shards_that_do_not_fit_their_index() {
    let missing = sharded(&["a"], &["b"], &[("a", "s1"), ("c", "s2")]).expect_err("no c");
    let expected = "s2: tensor 'c': the index says it is here, but the shard has no such tensor";
    assert_eq!((missing.to_string().as_str(), missing.kind()), (expected, Parts));

    let absent = sharded(&["a"], &["b"], &[("a", "s1"), ("c", "s3")]).expect_err("no s3");
    let expected = "s3: tensor 'c': the index says it is here, but the shard is missing";
    assert_eq!(absent.to_string(), expected);

    let twice = sharded(&["a", "c"], &["b", "c"], &[("a", "s1"), ("b", "s2")]).expect_err("two c");
    assert!(twice.to_string().contains("s2: tensor 'c' at offset"), "{twice}");

    let both = vec![shard("s1", &["a"]), shard("s2", &["a"])];
    let no_index = safetensors::catalog(both, None).expect_err("two a");
    assert!(no_index.to_string().contains("already at offset"), "{no_index}");
}

#[test]
fn indexes_that_are_refused() {
    let refused = |json: &str, expected: &str| {
        let error = safetensors::parse_index(json.as_bytes()).expect_err(expected);
        assert!(error.to_string().contains(expected), "expected: {expected}\n     got: {error}");
        assert_readable(&error);
    };
    refused("", "EOF while parsing");
    refused("{}", "missing field `weight_map`");
    refused(r#"{"weight_map":{"a":1}}"#, "at offset 19: invalid type: integer `1`");
    refused(r#"{"weight_map":{"a":"x","a":"y"}}"#, "key 'a' is there twice");
    refused(r#"{"weight_map":{},"weight_map":{}}"#, "duplicate field `weight_map`");
    for file in ["/etc/passwd", "../x", "a/../../x", "a//x", "./x", "", "C:x", "..\\\\x", "\\u0000"]
    {
        let json = format!(r#"{{"weight_map":{{"good":"x","bad":"{file}"}}}}"#);
        refused(&json, "tensor 'bad': the index puts it in");
    }
    assert_eq!(index_of(&[("a", "sub/x"), ("b", "a..b")]).unwrap().files(), ["a..b", "sub/x"]);
}

#[test]
fn index_files_are_distinct_and_sorted() {
    let index = index_of(&[("c", "s2"), ("a", "s1"), ("b", "s2")]).expect("a good index");
    assert_eq!(index.files(), ["s1", "s2"]);
    assert_eq!((index.file_of("b"), index.file_of("d"), index.len()), (Some("s2"), None, 3));
    assert_eq!(index.iter().next(), Some(("c", "s2")));
}

#[test]
fn formats_are_told_apart() {
    use forebay_format::{Format, sniff};
    assert_eq!(sniff(b"GGUF"), Some(Format::Gguf));
    assert_eq!(sniff(&string("{}")), Some(Format::Safetensors));
    assert_eq!(sniff(b"GGU"), None);
    assert_eq!(sniff(b"\xff\xff\xff\xff\xff\xff\xff\xff{}"), None);
    assert_eq!(sniff(b"{\"weight_map\":{}}"), None);
}

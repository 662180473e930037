//! `.ptd`: what is read of ExecuTorch's own files and of odd ones. What is refused is in
//! `ptd_refused.rs`.

mod common;

use common::ptd_writer::{Field, Ptd, a, entry, layout, segment, text};
use common::{assert_readable, catalog_of, fixture, parse_in_steps};
use forebay_format::{Dtype, Format, FormatErrorKind, Metadata, Parse, Value, ptd, sniff};
use serde_json::Value as Json;

const OFFICIAL: [&str; 2] = ["tiny_ext.ptd", "tiny_ext_4k.ptd"];

fn number(value: &Json) -> u64 {
    value.as_u64().expect("a number")
}

#[test]
fn official_files_are_where_their_own_reader_says() {
    let manifest: Json =
        serde_json::from_slice(&fixture("ptd/ptd_manifest.json")).expect("valid JSON");
    for name in OFFICIAL {
        let (file, expected) = (fixture(&format!("ptd/{name}")), &manifest[name]);
        assert_eq!(sniff(&file[..12]), Some(Format::Ptd));
        assert_eq!(sniff(&file[..11]), None);
        let header = parse_in_steps(&file, ptd::parse).expect("a good file");
        assert_eq!(header.header_bytes(), number(&expected["header"]["meta_end"]), "{name}");
        assert_eq!(header.data_offset(), number(&expected["header"]["base"]), "{name}");
        assert_eq!(header.metadata().len(), 0, "{name}");
        let expected = expected["tensors"].as_array().expect("a list");
        assert_eq!(header.tensors().len(), expected.len(), "{name}");
        for (tensor, expected) in header.tensors().iter().zip(expected) {
            assert_eq!(tensor.name, expected["key"], "{name}");
            assert_eq!(tensor.offset, number(&expected["file_offset"]), "{name}: {}", tensor.name);
            assert_eq!(tensor.bytes, number(&expected["size"]), "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn a_file_is_asked_for_twice_at_most() {
    let file = fixture("ptd/tiny_ext.ptd");
    let bytes = file.len() as u64;
    assert_eq!(ptd::parse(&[], bytes), Ok(Parse::NeedBytes(48)));
    assert_eq!(ptd::parse(&file[..47], bytes), Ok(Parse::NeedBytes(48)));
    assert_eq!(ptd::parse(&file[..48], bytes), Ok(Parse::NeedBytes(1136)));
    assert_eq!(ptd::parse(&file[..1135], bytes), Ok(Parse::NeedBytes(1136)));
    assert!(ptd::parse(&file[..1136], bytes).is_ok_and(|parsed| parsed.complete().is_some()));
}

fn texts(metadata: &Metadata) -> Vec<(&str, &str)> {
    metadata.iter().map(|(key, value)| (key, value.as_str().expect("a string"))).collect()
}

#[test]
fn what_a_tensor_does_not_say_is_told() {
    let catalog = catalog_of("odd.ptd", &fixture("ptd/odd-layouts.ptd")).expect("a good file");
    assert_eq!(
        catalog.notices(),
        [
            "'odd.ptd': 3 blobs have no layout and are given as U8 (ptd.layout.*): \
             'blob', 'blob.empty', 'embedding.packed'",
            "'odd.ptd': 1 tensors lie in another order of dimensions (ptd.dim_order.*): \
             'channels.last'",
            "'odd.ptd': 1 tensors leave the end of their segment unused: 'view'",
            "'odd.ptd': 2 tensors have the bytes of one before them, and a copy of their own: \
             'embedding', 'embedding.packed'",
        ]
    );
    assert_eq!(
        texts(catalog.metadata()),
        [
            ("ptd.layout.blob", "none"),
            ("ptd.layout.blob.empty", "none"),
            ("ptd.dim_order.channels.last", "[0, 2, 3, 1]"),
            ("ptd.layout.embedding.packed", "none"),
        ]
    );
    let tensor = |name: &str| catalog.tensor(name).expect("a tensor of this name");
    assert_eq!(tensor("channels.last").shape, [1, 3, 2, 2]);
    assert_eq!((tensor("blob").dtype, &tensor("blob").shape[..]), (Dtype::U8, &[3][..]));
    assert_eq!(tensor("blob.empty").shape, [0]);
    assert_eq!(tensor("scalar").shape, [0; 0]);
    let (tied, embedding) = (tensor("tied"), tensor("embedding"));
    assert_eq!((tied.offset, tied.bytes), (embedding.offset, embedding.bytes));
    assert_eq!(tensor("embedding.packed").offset, embedding.offset);
    assert_eq!(tensor("embedding.inside").offset, embedding.offset + 4);
    assert_eq!(tensor("view").bytes, 16);
    assert!(catalog.tensors().iter().any(|tensor| !tensor.offset.is_multiple_of(2)));
    assert_eq!(tensor(&"n".repeat(300)).bytes, 2);
}

#[test]
fn types_that_mean_more_than_their_numbers_are_told() {
    let catalog = catalog_of("t.ptd", &fixture("ptd/every-type.ptd")).expect("a good file");
    let told = ["QInt8", "QUInt8", "QInt32", "Bits8", "Bits16"];
    let keys = told.map(|name| format!("ptd.scalar_type.{}", name.to_lowercase()));
    let expected: Vec<_> = keys.iter().map(String::as_str).zip(told).collect();
    assert_eq!(texts(catalog.metadata()), expected);
    assert_eq!(
        catalog.notices(),
        ["'t.ptd': 5 tensors are given as plain integers (ptd.scalar_type.*): \
          'qint8', 'quint8', 'qint32', 'bits8' and 1 more"]
    );
}

#[test]
fn the_flatbuffer_may_be_anywhere_and_the_header_longer() {
    let file = fixture("ptd/long-header.ptd");
    let header = parse_in_steps(&file, ptd::parse).expect("a good file");
    assert!(header.header_bytes() > 2000);
    assert_eq!(header.data_offset(), 4096);
    assert!(header.tensors().iter().all(|tensor| tensor.end() < file.len() as u64));
}

#[test]
fn what_is_absent_is_zero_or_empty() {
    // Neither segment index nor anything of the layout: a scalar of Byte in segment 0.
    let entry = vec![text("a"), Field::Absent, Field::Table(vec![])];
    let catalog = catalog_of("a.ptd", &Ptd::with_entry(entry)).expect("a good file");
    let tensor = catalog.tensor("a").expect("the only one");
    assert_eq!((tensor.dtype, tensor.shape.len(), tensor.bytes), (Dtype::U8, 0, 1));
}

#[test]
fn newer_files_may_have_more_fields() {
    let mut newer = a();
    newer.push(Field::Scalar(vec![7; 8]));
    let catalog = catalog_of("a.ptd", &Ptd::with_entry(newer)).expect("a good file");
    assert_eq!((catalog.tensors().len(), &catalog.tensors()[0].shape[..]), (1, &[2, 3][..]));
}

#[test]
fn an_empty_tensor_may_lie_at_the_very_end() {
    let empty = entry("e", 0, layout(6, &[0], &[0]));
    let file = Ptd::with(|file| {
        file.segments = Field::Tables(1, vec![segment(32, 0)]);
        file.named = Field::Tables(1, vec![empty]);
    });
    let catalog = catalog_of("a.ptd", &file).expect("a good file");
    assert_eq!(catalog.tensors()[0].offset, file.len() as u64);
}

/// Every bit of a real header flipped, and its bytes replaced: whatever is still accepted lies in
/// the file, and takes no more memory than the header is long.
#[test]
fn every_byte_of_a_header_may_be_wrong() {
    let good = fixture("ptd/tiny_ext.ptd");
    let mut random = fastrand::Rng::with_seed(0x0070_7464);
    let (mut accepted, mut refused) = (0, 0);
    for place in 0..1200 {
        let flips = (0..8).map(|bit| good[place] ^ (1 << bit));
        let others = [0, 1, 0x7f, 0x80, 0xff, random.u8(..), random.u8(..)];
        for byte in flips.chain(others) {
            let mut file = good.clone();
            file[place] = byte;
            match catalog_of("mutated.ptd", &file) {
                Ok(catalog) => {
                    accepted += 1;
                    let keys: usize =
                        catalog.tensors().iter().map(|tensor| tensor.name.len()).sum();
                    assert!(keys < 1136 && catalog.tensors().len() < 1136 / 18);
                    for tensor in catalog.tensors() {
                        assert!(tensor.offset >= 1136 && tensor.end() <= good.len() as u64);
                        assert!(tensor.shape.len() <= 16);
                    }
                    let told = catalog.metadata().iter();
                    assert!(told.map(|(_, value)| value).all(|it| matches!(it, Value::String(_))));
                }
                Err(error) => {
                    refused += 1;
                    assert_readable(&error);
                    assert_eq!(error.file(), Some("mutated.ptd"));
                    // What is truncated is missing at its place, which is behind the file's end.
                    let offset = error.offset().expect("every refusal has its place");
                    let is_cut = error.kind() == FormatErrorKind::Truncated;
                    assert!(offset < good.len() as u64 || is_cut, "{error}");
                }
            }
        }
    }
    assert!(accepted > 3000 && refused > 3000, "{accepted} accepted, {refused} refused");
}

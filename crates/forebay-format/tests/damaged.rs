//! Files cut short and files with flipped bytes: refused in words, never a panic.

mod common;

use common::{assert_readable, catalog_of, fixture, fixture_files, format_of, parse_as};
use forebay_format::{Catalog, Format, FormatErrorKind, Parse, Tensor};

/// How much more a good file's parser wants: `None` once it is content.
fn wanted_bytes(format: Format, prefix: &[u8], file: &[u8]) -> Option<u64> {
    let parsed = parse_as(format, prefix, file.len() as u64);
    match parsed.expect("the start of a good file is never refused") {
        Parse::NeedBytes(bytes) => Some(bytes),
        Parse::Complete(_) => None,
    }
}

/// Every length within the header and a little beyond; of the data, which is long and all alike,
/// every 61st; and the last before `end`.
fn lengths(format: Format, file: &[u8], end: usize) -> impl Iterator<Item = usize> + use<> {
    let header = parse_as(format, file, file.len() as u64).expect("a good file").complete();
    let header = usize::try_from(header.expect("all of the file").bytes).expect("small");
    let dense = end.min(header + 64);
    (0..dense).chain((dense..end).step_by(61)).chain(end.checked_sub(1))
}

#[test]
fn the_start_of_a_good_file_asks_for_more() {
    for name in fixture_files() {
        let file = fixture(&name);
        let format = format_of(&name, &file);
        let mut complete_at = None;
        for length in lengths(format, &file, file.len() + 1) {
            match wanted_bytes(format, &file[..length], &file) {
                Some(bytes) => {
                    assert!(bytes > length as u64 && bytes <= file.len() as u64, "{name}");
                    assert_eq!(complete_at, None, "{name}: complete, then not");
                }
                None => complete_at = complete_at.or(Some(length)),
            }
        }
        assert!(complete_at.is_some(), "{name}");
    }
}

#[test]
fn a_file_cut_anywhere_is_truncated() {
    for name in fixture_files() {
        let file = fixture(&name);
        let format = format_of(&name, &file);
        for length in lengths(format, &file, end_that_counts(format, &file)) {
            let refused = parse_as(format, &file[..length], length as u64).map(drop);
            let error = refused.expect_err("a file cut short");
            assert_eq!(error.kind(), FormatErrorKind::Truncated, "{name} at {length}: {error}");
            assert!(error.remedy().is_some(), "{name} at {length}: {error}");
            assert_readable(&error);
        }
    }
}

/// Where a good file's header or its last data ends. Only padding may follow.
fn end_that_counts(format: Format, file: &[u8]) -> usize {
    let parsed = parse_as(format, file, file.len() as u64).expect("a good file");
    let header = parsed.complete().expect("all of the file");
    let filled = header.tensors.iter().filter(|tensor| tensor.bytes > 0);
    let end = filled.map(Tensor::end).max().unwrap_or(header.bytes);
    usize::try_from(end).expect("small")
}

/// What every catalog promises, whatever it was made from.
fn assert_sound(catalog: &Catalog) {
    let mut ends = vec![0; catalog.files().len()];
    for tensor in catalog.tensors().iter().filter(|tensor| tensor.bytes > 0) {
        let may_overlap = catalog.format() == Format::Ptd;
        assert!(tensor.offset >= ends[tensor.file] || may_overlap, "{tensor:?} overlaps");
        assert!(tensor.end() <= catalog.files()[tensor.file].bytes, "{tensor:?} is outside");
        let bytes = tensor.elements().and_then(|elements| tensor.dtype.bytes_for(elements));
        assert_eq!(bytes, Some(tensor.bytes), "{tensor:?}");
        ends[tensor.file] = tensor.end();
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let mut random = fastrand::Rng::with_seed(0x666F_7265);
    let (mut accepted, mut refused) = (0, 0);
    for name in fixture_files() {
        let good = fixture(&name);
        let header = good.len().min(2048);
        for _ in 0..4000 {
            let mut file = good.clone();
            for _ in 0..random.usize(1..4) {
                let place = random.usize(..header);
                file[place] = match random.u8(..4) {
                    0 => 0,
                    1 => 0xff,
                    2 => file[place] ^ (1 << random.u8(..8)),
                    _ => random.u8(..),
                };
            }
            match catalog_of(&name, &file) {
                Ok(catalog) => {
                    accepted += 1;
                    assert_sound(&catalog);
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.file(), Some(name.as_str()));
                    assert_readable(&error);
                }
            }
        }
    }
    // Both must be common, or the test tests nothing.
    assert!(accepted > 1000 && refused > 1000, "{accepted} accepted, {refused} refused");
}

#[test]
fn noise_never_panics() {
    let mut random = fastrand::Rng::with_seed(0x6261_7921);
    for _ in 0..20_000 {
        let length = random.usize(..200);
        let mut noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        if random.bool() {
            let starts: [&[u8]; 2] = [
                b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0",
                b"\x38\0\0\0FT01FH01\x28\0\0\0\x30\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0",
            ];
            for (place, byte) in noise.iter_mut().zip(starts[random.usize(..2)]) {
                *place = *byte;
            }
        }
        if let Err(error) = catalog_of("noise", &noise) {
            assert_readable(&error);
        }
    }
}

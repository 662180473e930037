//! Files cut short and files with flipped bytes: refused in words, never a panic.

mod common;

use common::{assert_readable, catalog_of, fixture, fixture_files, parse_in_steps};
use forebay_format::{
    Catalog, Format, FormatError, FormatErrorKind, Parse, Tensor, gguf, safetensors, sniff,
};

/// How much more a good file's parser wants: `None` once it is content.
fn wanted_bytes(prefix: &[u8], file: &[u8]) -> Option<u64> {
    fn wanted<T>(parsed: Result<Parse<T>, FormatError>) -> Option<u64> {
        match parsed.expect("the start of a good file is never refused") {
            Parse::NeedBytes(bytes) => Some(bytes),
            Parse::Complete(_) => None,
        }
    }
    match sniff(file) {
        Some(Format::Gguf) => wanted(gguf::parse(prefix, file.len() as u64)),
        _ => wanted(safetensors::parse(prefix, file.len() as u64)),
    }
}

#[test]
fn the_start_of_a_good_file_asks_for_more() {
    for name in fixture_files() {
        let file = fixture(&name);
        let mut complete_at = None;
        for length in 0..=file.len() {
            match wanted_bytes(&file[..length], &file) {
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
        for length in 0..end_that_counts(&file) {
            let cut = &file[..length];
            let refused = match sniff(&file) {
                Some(Format::Gguf) => gguf::parse(cut, length as u64).map(drop),
                _ => safetensors::parse(cut, length as u64).map(drop),
            };
            let error = refused.expect_err("a file cut short");
            assert_eq!(error.kind(), FormatErrorKind::Truncated, "{name} at {length}: {error}");
            assert!(error.remedy().is_some(), "{name} at {length}: {error}");
            assert_readable(&error);
        }
    }
}

/// Where a good file's header or its last data ends. Only padding may follow.
fn end_that_counts(file: &[u8]) -> usize {
    let (header_bytes, tensors) = if sniff(file) == Some(Format::Gguf) {
        let header = parse_in_steps(file, gguf::parse).expect("a good file");
        (header.header_bytes(), header.tensors().to_vec())
    } else {
        let header = parse_in_steps(file, safetensors::parse).expect("a good file");
        (header.data_offset(), header.tensors().to_vec())
    };
    let filled = tensors.iter().filter(|tensor| tensor.bytes > 0);
    let end = filled.map(Tensor::end).max().unwrap_or(header_bytes);
    usize::try_from(end).expect("small")
}

/// What every catalog promises, whatever it was made from.
fn assert_sound(catalog: &Catalog) {
    let mut ends = vec![0; catalog.files().len()];
    for tensor in catalog.tensors().iter().filter(|tensor| tensor.bytes > 0) {
        assert!(tensor.offset >= ends[tensor.file], "{tensor:?} overlaps");
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
            for (place, byte) in noise.iter_mut().zip(b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0") {
                *place = *byte;
            }
        }
        if let Err(error) = catalog_of("noise", &noise) {
            assert_readable(&error);
        }
    }
}

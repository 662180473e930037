//! What every parser of a header promises, whatever it is given.
//!
//! An input is tried as a whole file, and as the start of one that is a great deal longer, of which
//! no more is there to be had.

use crate::memory::peak_of;
use forebay_format::gguf::GgufFile;
use forebay_format::ptd::PtdFile;
use forebay_format::safetensors::SafetensorsFile;
use forebay_format::{
    Catalog, Format, FormatError, Metadata, Parse, Tensor, gguf, ptd, safetensors, sniff,
};
use std::collections::HashSet;
use std::fmt;

/// How much longer than the input the file is of which it is the start.
const REST_BYTES: u64 = 1 << 40;

/// What a parse may hold whatever it is given: the words of an error, tables at their least size.
const PEAK_BYTES_MIN: usize = 16 << 10;

/// A header, and how it is read.
pub trait Header: Sized {
    /// The format whose header it is.
    const FORMAT: Format;

    /// How many bytes a parse, and making the catalog of what it found, may hold for each byte of
    /// the prefix.
    ///
    /// That there is such a number is the promise; a count or a length that something is allocated
    /// for before it was held against the bytes that are there breaks any. The number itself is
    /// one and a half times to twice the most that was measured, which is for thousands of the
    /// smallest entries that the format allows, in tables that have just grown.
    const PEAK_FACTOR: usize;

    /// The parser.
    ///
    /// # Errors
    /// Its own.
    fn parse(prefix: &[u8], file_bytes: u64) -> Result<Parse<Self>, FormatError>;

    /// What it says.
    fn said(&self) -> Said<'_>;

    /// The catalog of this file alone.
    ///
    /// # Errors
    /// Those of the format.
    fn catalog(self, name: String, file_bytes: u64) -> Result<Catalog, FormatError>;
}

/// What a header says.
pub struct Said<'a> {
    /// How many bytes it takes, and where the data begins.
    places: [u64; 2],
    tensors: &'a [Tensor],
    metadata: &'a Metadata,
}

macro_rules! header {
    ($file:ty, $format:ident, $factor:literal, $parser:ident, $end:ident, $catalog:expr) => {
        impl Header for $file {
            const FORMAT: Format = Format::$format;
            const PEAK_FACTOR: usize = $factor;

            fn parse(prefix: &[u8], file_bytes: u64) -> Result<Parse<Self>, FormatError> {
                $parser::parse(prefix, file_bytes)
            }

            fn said(&self) -> Said<'_> {
                let places = [self.$end(), self.data_offset()];
                Said { places, tensors: self.tensors(), metadata: self.metadata() }
            }

            fn catalog(self, name: String, file_bytes: u64) -> Result<Catalog, FormatError> {
                $catalog(name, file_bytes, self)
            }
        }
    };
}

// The worst of them: key/values of a key of three letters and a byte: 10 (tensors: 4).
header!(GgufFile, Gguf, 16, gguf, header_bytes, |name, bytes, it| {
    let shards = vec![(name, bytes, it)];
    gguf::catalog(shards)
});
// Metadata of `"abc":"",`: 26 (tensors: 4).
header!(SafetensorsFile, Safetensors, 40, safetensors, data_offset, |name, bytes, it| {
    safetensors::catalog(vec![(name, bytes, it)], None)
});
// Entries that share all but a key of three letters, of 16 dimensions in an odd order, each with
// two notes in the metadata: 33.
header!(PtdFile, Ptd, 64, ptd, header_bytes, ptd::catalog);

/// Holds the parser of a format to its promises; the catalog, if `input` is a file.
pub fn check<H: Header + PartialEq>(input: &[u8]) -> Option<Catalog> {
    let input_bytes = input.len() as u64;
    if let Some(Err(error)) = parse_in_steps::<H>(input, input_bytes + REST_BYTES) {
        assert_readable(&error);
    }
    let parsed = parse_in_steps::<H>(input, input_bytes);
    let parsed = parsed.expect("no more is asked for than the file has");
    assert_same(&parsed, &parse_once::<H>(input, input_bytes));
    let header = match parsed {
        Ok(header) => header,
        Err(error) => {
            assert_readable(&error);
            return None;
        }
    };
    assert_eq!(sniff(input), Some(H::FORMAT), "what is parsed is recognised");
    assert_sound(&header, input_bytes);
    let catalog = within_peak::<H, _>(input.len(), || header.catalog("it".to_owned(), input_bytes));
    match catalog {
        Ok(catalog) => {
            assert_catalog(&catalog);
            Some(catalog)
        }
        Err(error) => {
            assert_readable(&error);
            None
        }
    }
}

/// What becomes of a file of which `input` is all that can be had, asked for in steps as loaders do.
/// `None` where the parser wants more than that.
fn parse_in_steps<H: Header>(input: &[u8], file_bytes: u64) -> Option<Result<H, FormatError>> {
    let mut wanted = 0;
    loop {
        match within_peak::<H, _>(wanted, || H::parse(&input[..wanted], file_bytes)) {
            Ok(Parse::Complete(header)) => return Some(Ok(header)),
            Ok(Parse::NeedBytes(bytes)) => {
                assert!(bytes > wanted as u64, "asked for {bytes} with {wanted} there");
                assert!(bytes <= file_bytes, "asked for {bytes} of {file_bytes}");
                let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= input.len());
                match bytes {
                    Some(bytes) => wanted = bytes,
                    None if wanted == input.len() => return None,
                    // Not all that it asks for, but all there is.
                    None => wanted = input.len(),
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

/// The same with all of the file there from the start.
fn parse_once<H: Header>(input: &[u8], file_bytes: u64) -> Result<H, FormatError> {
    let parsed = within_peak::<H, _>(input.len(), || H::parse(input, file_bytes));
    parsed.map(|parsed| parsed.complete().expect("all of the file is there"))
}

fn within_peak<H: Header, T>(prefix_bytes: usize, work: impl FnOnce() -> T) -> T {
    let (done, peak) = peak_of(work);
    let peak_max = PEAK_BYTES_MIN + H::PEAK_FACTOR * prefix_bytes;
    assert!(peak <= peak_max, "{peak} bytes held for a prefix of {prefix_bytes}");
    done
}

/// That two parses of the same file came to the same.
fn assert_same<H: Header>(one: &Result<H, FormatError>, other: &Result<H, FormatError>) {
    match (one, other) {
        (Ok(one), Ok(other)) => {
            let (one, other) = (one.said(), other.said());
            assert_eq!(one.tensors, other.tensors);
            assert_eq!(one.places, other.places);
            // By their words: a NaN is like no other.
            let words = |said: &Said<'_>| format!("{:?}", Pairs(said.metadata));
            assert_eq!(words(&one), words(&other));
        }
        (Err(one), Err(other)) => assert_eq!(one, other),
        _ => panic!("accepted the one time, refused the other"),
    }
}

struct Pairs<'a>(&'a Metadata);

impl fmt::Debug for Pairs<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.0.iter()).finish()
    }
}

/// What is true of every header that was accepted, for a file of so many bytes.
fn assert_sound<H: Header>(header: &H, file_bytes: u64) {
    let Said { places: [header_end, data_offset], tensors, metadata } = header.said();
    assert!(header_end <= file_bytes, "the header ends outside of the file");
    let mut names = HashSet::new();
    let mut filled = Vec::new();
    for tensor in tensors {
        assert!(names.insert(&tensor.name), "{} is there twice", tensor.name);
        assert_eq!(tensor.file, 0);
        let bytes = tensor.elements().and_then(|elements| tensor.dtype.bytes_for(elements));
        assert_eq!(bytes, Some(tensor.bytes), "{tensor:?}");
        if tensor.bytes > 0 {
            assert!(tensor.offset >= data_offset, "{tensor:?} lies on the header");
            let end = tensor.offset.checked_add(tensor.bytes);
            assert!(end.is_some_and(|end| end <= file_bytes), "{tensor:?} is outside of the file");
            filled.push(tensor);
        }
    }
    assert!(filled.is_empty() || data_offset >= header_end);
    if H::FORMAT != Format::Ptd {
        filled.sort_by_key(|tensor| tensor.offset);
        assert!(filled.is_sorted_by(|one, next| one.end() <= next.offset), "they overlap");
    }
    if H::FORMAT == Format::Safetensors {
        let sum: u64 = filled.iter().map(|tensor| tensor.bytes).sum();
        assert_eq!(data_offset + sum, file_bytes, "bytes that belong to no tensor");
    }
    let mut keys = HashSet::new();
    for (key, value) in metadata.iter() {
        assert!(keys.insert(key), "key {key} is there twice");
        let found = metadata.get(key).expect("it is there");
        assert_eq!(found.type_name(), value.type_name());
    }
}

/// What is true of every catalog.
pub fn assert_catalog(catalog: &Catalog) {
    let in_order = |tensor: &Tensor| (tensor.file, tensor.offset, tensor.bytes);
    assert!(catalog.tensors().is_sorted_by_key(in_order));
    for (index, tensor) in catalog.tensors().iter().enumerate() {
        assert_eq!(catalog.position(&tensor.name), Some(index));
        assert!(tensor.file < catalog.files().len());
    }
    for notice in catalog.notices() {
        assert_line(notice);
    }
}

/// What every error owes its reader: one line that is no novel.
pub fn assert_readable(error: &FormatError) {
    assert!(!error.cause_text().is_empty());
    assert_line(&error.to_string());
    error.remedy().into_iter().for_each(assert_line);
}

/// That a text from a file's words is safe to print.
pub fn assert_line(text: &str) {
    assert!(!text.contains(char::is_control), "more than one line: {text:?}");
    assert!(text.chars().count() < 2000, "a very long line: {text}");
}

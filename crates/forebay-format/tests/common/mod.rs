//! What the tests of this crate share: fixtures, a caller that reads headers in steps, and writers
//! of files that no official writer would make.

#![allow(dead_code)] // Each test binary uses a part of it.

pub(crate) mod ptd_writer;

use forebay_format::{Catalog, Format, FormatError, Parse, Tensor, gguf, ptd, safetensors, sniff};
use std::path::PathBuf;

pub(crate) fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures")).join(name)
}

pub(crate) fn fixture(name: &str) -> Vec<u8> {
    let path = fixture_path(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every fixture that is a model file, parts and shards one by one.
pub(crate) fn fixture_files() -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["gguf", "ptd", "safetensors"] {
        for entry in std::fs::read_dir(fixture_path(folder)).expect("the fixtures are committed") {
            let name = entry.expect("a readable folder").file_name();
            let name = name.to_str().expect("fixture names are ASCII");
            if !name.ends_with(".json") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    assert!(names.len() > 10, "too few fixtures: {names:?}");
    names
}

/// Calls a parser as a caller does: from nothing, then with what it asks for.
pub(crate) fn parse_in_steps<T>(
    file: &[u8],
    parse: fn(&[u8], u64) -> Result<Parse<T>, FormatError>,
) -> Result<T, FormatError> {
    let mut wanted = 0;
    loop {
        match parse(&file[..wanted], file.len() as u64)? {
            Parse::Complete(parsed) => return Ok(parsed),
            Parse::NeedBytes(bytes) => {
                let bytes = usize::try_from(bytes).expect("no more than the file has");
                assert!(bytes > wanted, "asked for {bytes} with {wanted} there");
                assert!(bytes <= file.len(), "asked for {bytes} of {}", file.len());
                wanted = bytes;
            }
        }
    }
}

/// The format of a file: by its name too, since damage may have made it unrecognisable.
pub(crate) fn format_of(name: &str, file: &[u8]) -> Format {
    match name.rsplit_once('.') {
        Some((_, "gguf")) => Format::Gguf,
        Some((_, "ptd")) => Format::Ptd,
        _ => sniff(file).unwrap_or(Format::Safetensors),
    }
}

/// What every format's header has.
pub(crate) struct Header {
    /// Where it ends.
    pub(crate) bytes: u64,
    pub(crate) tensors: Vec<Tensor>,
}

/// Calls the parser of a format.
pub(crate) fn parse_as(
    format: Format,
    prefix: &[u8],
    file_bytes: u64,
) -> Result<Parse<Header>, FormatError> {
    fn map<T>(parsed: Parse<T>, header: impl FnOnce(T) -> Header) -> Parse<Header> {
        match parsed {
            Parse::Complete(parsed) => Parse::Complete(header(parsed)),
            Parse::NeedBytes(bytes) => Parse::NeedBytes(bytes),
        }
    }
    Ok(match format {
        Format::Gguf => map(gguf::parse(prefix, file_bytes)?, |header| Header {
            bytes: header.header_bytes(),
            tensors: header.tensors().to_vec(),
        }),
        Format::Ptd => map(ptd::parse(prefix, file_bytes)?, |header| Header {
            bytes: header.header_bytes(),
            tensors: header.tensors().to_vec(),
        }),
        _ => map(safetensors::parse(prefix, file_bytes)?, |header| Header {
            bytes: header.data_offset(),
            tensors: header.tensors().to_vec(),
        }),
    })
}

/// The catalog of one file on its own.
pub(crate) fn catalog_of(name: &str, file: &[u8]) -> Result<Catalog, FormatError> {
    let bytes = file.len() as u64;
    let named = |error: FormatError| error.in_file(name);
    match format_of(name, file) {
        Format::Gguf => {
            let header = parse_in_steps(file, gguf::parse).map_err(named)?;
            gguf::catalog(vec![(name.to_owned(), bytes, header)])
        }
        Format::Ptd => {
            let header = parse_in_steps(file, ptd::parse).map_err(named)?;
            ptd::catalog(name.to_owned(), bytes, header)
        }
        _ => {
            let header = parse_in_steps(file, safetensors::parse).map_err(named)?;
            safetensors::catalog(vec![(name.to_owned(), bytes, header)], None)
        }
    }
}

/// What every error owes its reader.
pub(crate) fn assert_readable(error: &FormatError) {
    let line = error.to_string();
    assert!(!line.contains(char::is_control), "more than one line: {line:?}");
    assert!(!error.cause_text().is_empty());
    assert!(line.len() < 2000, "a very long line: {line}");
}

/// A GGUF file made field by field, each of which may be wrong.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_value_count: Option<u64>,
    pub(crate) key_values: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<GgufTensor>,
    pub(crate) alignment: usize,
    pub(crate) data_bytes: usize,
}

/// A tensor's description as it is stored: dimensions innermost first.
#[derive(Clone)]
pub(crate) struct GgufTensor {
    pub(crate) name: Vec<u8>,
    pub(crate) dimensions: Vec<u64>,
    pub(crate) dtype: u32,
    pub(crate) offset: u64,
}

pub(crate) fn tensor(name: &str, dimensions: &[u64], dtype: u32, offset: u64) -> GgufTensor {
    GgufTensor { name: name.into(), dimensions: dimensions.to_vec(), dtype, offset }
}

pub(crate) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl Default for Gguf {
    /// A good file: two vectors of eight F32.
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_value_count: None,
            key_values: vec![(b"general.architecture".to_vec(), 8, string("test"))],
            tensors: vec![tensor("a", &[8], 0, 0), tensor("b", &[8], 0, 32)],
            alignment: 32,
            data_bytes: 64,
        }
    }
}

impl Gguf {
    pub(crate) fn with(change: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut file = Self::default();
        change(&mut file);
        file.build()
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.key_value_count.unwrap_or(self.key_values.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.key_values {
            file.extend(string(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            let count = u32::try_from(tensor.dimensions.len()).expect("few dimensions");
            file.extend(count.to_le_bytes());
            file.extend(tensor.dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            file.extend(tensor.dtype.to_le_bytes());
            file.extend(tensor.offset.to_le_bytes());
        }
        file.resize(file.len().next_multiple_of(self.alignment) + self.data_bytes, 0);
        file
    }
}

/// A safetensors file of this JSON and so many bytes of data.
pub(crate) fn safetensors_file(json: impl AsRef<[u8]>, data_bytes: usize) -> Vec<u8> {
    let mut file = string(json);
    file.resize(file.len() + data_bytes, 0);
    file
}

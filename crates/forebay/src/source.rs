//! From a path to the files of one model.

use crate::error::Error;
use forebay_format::{Catalog, Format, FormatError, Parse, gguf, ptd, safetensors, sniff};
use forebay_io::ModelFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How much of a file is read at first: enough for the header of most models.
const PREFIX_BYTES: u64 = 1 << 20;

/// No header is larger: what a damaged or hostile file could make us hold in memory.
const HEADER_BYTES_MAX: u64 = 256 << 20;

const ONE_MODEL: &str = "name one of them instead of the folder";

/// Opens what `path` names and parses every header.
pub(crate) fn open(path: &Path) -> Result<(Catalog, Vec<ModelFile>), Error> {
    if path.is_dir() {
        return open(&only_model_in(path)?);
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        return open_index(path);
    }
    let file = ModelFile::open(path)?;
    let prefix = read_prefix(&file, PREFIX_BYTES.min(file.bytes()))?;
    // A damaged start is best explained by the parser of what the file claims to be.
    let claimed = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => Some(Format::Gguf),
        Some("safetensors") => Some(Format::Safetensors),
        Some("ptd") => Some(Format::Ptd),
        _ => None,
    };
    match sniff(&prefix).or(claimed) {
        Some(Format::Gguf) => open_gguf(path, file, prefix),
        Some(Format::Safetensors) => {
            let parsed = parse(&file, prefix, safetensors::parse)?;
            let catalog = safetensors::catalog(vec![(name(path), file.bytes(), parsed)], None);
            Ok((catalog.map_err(|error| error.in_file(path.display().to_string()))?, vec![file]))
        }
        Some(Format::Ptd) => {
            let parsed = parse(&file, prefix, ptd::parse)?;
            Ok((ptd::catalog(name(path), file.bytes(), parsed)?, vec![file]))
        }
        _ => Err(Error::no_model(
            path,
            "is neither GGUF nor safetensors nor .ptd",
            "name a .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder \
             with one of them",
        )),
    }
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn read_prefix(file: &ModelFile, bytes: u64) -> Result<Vec<u8>, Error> {
    let unreadable = |source| Error::Header { path: file.path().to_owned(), source };
    file.read_prefix(bytes).map_err(unreadable)
}

/// The whole text of an index.
fn read_index(file: &ModelFile) -> Result<Vec<u8>, Error> {
    if file.bytes() > HEADER_BYTES_MAX {
        let cause = format!("is larger than an index of {HEADER_BYTES_MAX} bytes could need to be");
        return Err(Error::no_model(file.path(), &cause, "get it again: it is damaged"));
    }
    read_prefix(file, file.bytes())
}

/// Parses a header, reading more of the file as often as the parser asks for more.
fn parse<T>(
    file: &ModelFile,
    mut prefix: Vec<u8>,
    parser: fn(&[u8], u64) -> Result<Parse<T>, FormatError>,
) -> Result<T, Error> {
    loop {
        let parsed = parser(&prefix, file.bytes());
        match parsed.map_err(|error| error.in_file(file.path().display().to_string()))? {
            Parse::Complete(header) => return Ok(header),
            Parse::NeedBytes(bytes) if bytes > HEADER_BYTES_MAX && prefix_is_full(&prefix) => {
                let cause = format!("has a header of more than {HEADER_BYTES_MAX} bytes");
                return Err(Error::no_model(file.path(), &cause, "get it again: it is damaged"));
            }
            Parse::NeedBytes(bytes) => {
                let bytes = bytes.min(HEADER_BYTES_MAX);
                let had = prefix.len();
                prefix = read_prefix(file, bytes.min(file.bytes()))?;
                if prefix.len() <= had {
                    // The parser checks sizes against the file's length: it became shorter.
                    let source = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::Header { path: file.path().to_owned(), source });
                }
            }
        }
    }
}

fn prefix_is_full(prefix: &[u8]) -> bool {
    prefix.len() as u64 >= HEADER_BYTES_MAX
}

/// A GGUF file and, if its name says so, the other parts of the same model.
fn open_gguf(
    path: &Path,
    file: ModelFile,
    prefix: Vec<u8>,
) -> Result<(Catalog, Vec<ModelFile>), Error> {
    let mut parts = Vec::new();
    let mut files = Vec::new();
    match gguf::split_name(&name(path)) {
        Some(split) if split.count > 1 => {
            for number in 1..=split.count {
                let part = path.with_file_name(split.file_name(number));
                let file = open_part(&part, path)?;
                let prefix = read_prefix(&file, PREFIX_BYTES.min(file.bytes()))?;
                parts.push((name(&part), file.bytes(), parse(&file, prefix, gguf::parse)?));
                files.push(file);
            }
        }
        _ => {
            parts.push((name(path), file.bytes(), parse(&file, prefix, gguf::parse)?));
            files.push(file);
        }
    }
    Ok((gguf::catalog(parts)?, files))
}

/// The shards that an index names.
fn open_index(path: &Path) -> Result<(Catalog, Vec<ModelFile>), Error> {
    let file = ModelFile::open(path)?;
    let text = read_index(&file)?;
    let named = |error: FormatError| error.in_file(path.display().to_string());
    let index = safetensors::parse_index(&text).map_err(named)?;
    let mut parts = Vec::new();
    let mut files = Vec::new();
    for shard in index.files() {
        let shard = path.with_file_name(shard);
        let file = open_part(&shard, path)?;
        let prefix = read_prefix(&file, PREFIX_BYTES.min(file.bytes()))?;
        let parsed = parse(&file, prefix, safetensors::parse)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let relative = shard.strip_prefix(folder).unwrap_or(&shard);
        parts.push((relative.to_string_lossy().into_owned(), file.bytes(), parsed));
        files.push(file);
    }
    Ok((safetensors::catalog(parts, Some(&index)).map_err(named)?, files))
}

/// A file that another one names; its absence is a fault of the model, not of the path.
fn open_part(part: &Path, named_by: &Path) -> Result<ModelFile, Error> {
    if !part.exists() && !part.is_symlink() {
        return Err(Error::no_model(
            part,
            &format!("is missing: {} needs it", named_by.display()),
            "get the missing part and put it beside the others",
        ));
    }
    Ok(ModelFile::open(part)?)
}

/// The one model of a folder: parts of a split model and shards of an index count as one.
fn only_model_in(folder: &Path) -> Result<PathBuf, Error> {
    let unreadable = |source| Error::Header { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut sharded: Vec<String> = Vec::new();
    for path in &paths {
        let file_name = name(path);
        if file_name.ends_with(".safetensors.index.json") {
            sharded.extend(shards_of(path)?);
            models.insert(file_name, path.clone());
        } else if file_name.ends_with(".gguf") {
            let model = gguf::split_name(&file_name).map_or(file_name, |split| split.file_name(1));
            models.entry(model).or_insert_with(|| path.clone());
        } else if file_name.ends_with(".safetensors") || file_name.ends_with(".ptd") {
            models.insert(file_name, path.clone());
        }
    }
    models.retain(|name, _| !sharded.contains(name));
    match models.len() {
        0 => Err(Error::no_model(
            folder,
            "holds no .gguf, .safetensors, .ptd or .safetensors.index.json",
            "name a folder that holds a model, or the model's file",
        )),
        1 => Ok(models.into_values().next().unwrap_or_default()),
        _ => {
            let found: Vec<String> = models.into_values().map(|path| name(&path)).collect();
            let cause = format!("holds {} models: {}", found.len(), found.join(", "));
            Err(Error::no_model(folder, &cause, ONE_MODEL))
        }
    }
}

fn shards_of(index: &Path) -> Result<Vec<String>, Error> {
    let file = ModelFile::open(index)?;
    let text = read_index(&file)?;
    let index_name = index.display().to_string();
    let parsed =
        safetensors::parse_index(&text).map_err(|error| error.in_file(index_name.clone()))?;
    Ok(parsed.files().iter().map(ToString::to_string).collect())
}

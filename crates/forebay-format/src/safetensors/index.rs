//! `*.safetensors.index.json`: which shard holds which tensor.

use crate::error::{FormatError, Quoted};
use crate::json::{self, Name, Object};
use std::collections::HashMap;

/// Longest name of a shard: that of a file (`NAME_MAX`).
const FILE_NAME_BYTES_MAX: usize = 255;

/// A parsed index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Sorted: the names number the shards, so this is their order.
    files: Vec<String>,
    /// Tensor name and index into `files`, in the order of the JSON.
    tensors: Vec<(String, usize)>,
    by_name: HashMap<Box<str>, usize>,
}

impl Index {
    /// The distinct names of the shards, sorted. They are relative to the index's folder and do
    /// not lead out of it.
    #[must_use]
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// The shard that holds a tensor.
    #[must_use]
    pub fn file_of(&self, tensor: &str) -> Option<&str> {
        self.by_name.get(tensor).map(|file| self.files[*file].as_str())
    }

    /// Every tensor and its shard, in the order of the JSON.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.tensors.iter().map(|(name, file)| (name.as_str(), self.files[*file].as_str()))
    }

    /// How many tensors it lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether it lists none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// What is read of the JSON. `metadata.total_size` is left alone: writers disagree on what it sums.
#[derive(serde::Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    weight_map: Object<'a, Name<'a>>,
}

/// Parses an index.
///
/// # Errors
///
/// When it is not the JSON of an index, when a tensor is there twice, or when a shard's name is
/// absolute, leads out of the index's folder or is longer than that of any file.
pub fn parse_index(json: &[u8]) -> Result<Index, FormatError> {
    let raw: Raw<'_> =
        serde_json::from_slice(json).map_err(|error| json::refused(json, 0, &error))?;
    let entries = raw.weight_map.0;
    let mut files: Vec<String> = entries.iter().map(|(_, file)| file.0.to_string()).collect();
    files.sort_unstable();
    files.dedup();
    if let Some(file) = files.iter().find(|file| !may_be_shard(file)) {
        let (tensor, _) = entries
            .iter()
            .find(|(_, name)| name.0 == *file)
            .expect("every file name came from an entry");
        let cause = match file.len() {
            bytes if bytes > FILE_NAME_BYTES_MAX => format!(
                "the index puts it in a file whose name takes {bytes} bytes, more than the \
                 {FILE_NAME_BYTES_MAX} that are allowed"
            ),
            _ => format!(
                "the index puts it in {}, which is not a plain path inside the index's folder",
                Quoted(file)
            ),
        };
        return Err(FormatError::malformed(cause).in_tensor(&*tensor.0));
    }
    let places: HashMap<&str, usize> =
        files.iter().enumerate().map(|(place, file)| (file.as_str(), place)).collect();
    let tensors: Vec<(String, usize)> =
        entries.into_iter().map(|(name, file)| (name.0.into_owned(), places[&*file.0])).collect();
    let by_name = tensors.iter().map(|(name, file)| (Box::from(name.as_str()), *file)).collect();
    Ok(Index { files, tensors, by_name })
}

/// An index comes from a stranger: it must not name files outside its own folder, nor write a novel
/// into an error. Backslashes and drive letters count too, so that one index is good or bad everywhere.
fn may_be_shard(file: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let stays_inside = file.split(['/', '\\']).all(plain) && !file.contains(['\0', ':']);
    stays_inside && file.len() <= FILE_NAME_BYTES_MAX
}

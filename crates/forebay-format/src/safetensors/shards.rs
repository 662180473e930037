//! The catalog of one safetensors file, or of a model's shards.

use super::{Index, SafetensorsFile};
use crate::error::{FormatError, Quoted, some_of};
use crate::{Catalog, Format, Metadata, SourceFile, Tensor};
use std::collections::{HashMap, HashSet};

/// Makes the catalog of a safetensors model.
///
/// Each part is its name, its length and its header. With an index, a part's name is what the
/// index calls it, and the index decides: a tensor that several shards hold is taken from the one
/// it names, and one that it does not list is kept; both are told in the catalog's notices.
///
/// # Errors
///
/// When a shard that the index names was not given or lacks a tensor, or when a tensor is in
/// several shards and no index says which to take.
pub fn catalog(
    parts: Vec<(String, u64, SafetensorsFile)>,
    index: Option<&Index>,
) -> Result<Catalog, FormatError> {
    if let Some(index) = index {
        check_index(&parts, index)?;
    }
    let mut files = Vec::with_capacity(parts.len());
    let mut tensors = Vec::new();
    let mut metadata = Metadata::default();
    let mut notices = Vec::new();
    for (file, (name, bytes, part)) in parts.into_iter().enumerate() {
        for (key, value) in part.metadata.iter() {
            metadata.insert(key, value.clone());
        }
        let kept = match index {
            Some(index) => listed(part.tensors, &name, index, &mut notices),
            None => part.tensors,
        };
        tensors.extend(kept.into_iter().map(|tensor| Tensor { file, ..tensor }));
        files.push(SourceFile { name, bytes });
    }
    Catalog::new(Format::Safetensors, files, tensors, metadata, notices)
}

/// Leaves out what the index takes from another shard, and tells what was odd.
fn listed(
    tensors: Vec<Tensor>,
    file: &str,
    index: &Index,
    notices: &mut Vec<String>,
) -> Vec<Tensor> {
    let mut left_out = Vec::new();
    let mut unlisted = Vec::new();
    let mut kept = tensors;
    kept.retain(|tensor| match index.file_of(&tensor.name) {
        Some(place) if place == file => true,
        Some(_) => {
            left_out.push(tensor.name.clone());
            false
        }
        None => {
            unlisted.push(tensor.name.clone());
            true
        }
    });
    let mut notice = |names: &[String], what: &str| {
        if !names.is_empty() {
            let shard = Quoted(file);
            notices.push(format!("{shard}: {} {what}: {}", names.len(), some_of(names)));
        }
    };
    notice(&left_out, "tensors are taken from another shard, as the index says");
    notice(&unlisted, "tensors are not in the index and were kept");
    kept
}

fn check_index(parts: &[(String, u64, SafetensorsFile)], index: &Index) -> Result<(), FormatError> {
    let mut shards: HashMap<&str, HashSet<&str>> = HashMap::with_capacity(parts.len());
    for (name, _, part) in parts {
        let names = part.tensors.iter().map(|tensor| tensor.name.as_str());
        shards.entry(name).or_default().extend(names);
    }
    for (tensor, file) in index.iter() {
        match shards.get(file) {
            Some(tensors) if tensors.contains(tensor) => {}
            Some(_) => {
                let cause = "the index says it is here, but the shard has no such tensor";
                return Err(FormatError::parts(cause)
                    .with_remedy("index and shards are of different models: download all again")
                    .in_tensor(tensor)
                    .in_file(file));
            }
            None => {
                let cause = "the index says it is here, but the shard is missing";
                return Err(FormatError::parts(cause)
                    .with_remedy("put all shards into the index's folder")
                    .in_tensor(tensor)
                    .in_file(file));
            }
        }
    }
    Ok(())
}

//! The catalog: every tensor of a model, wherever its files put it.

use crate::error::{FormatError, Quoted};
use crate::{Dtype, Format, Metadata};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A tensor and where its bytes lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// The name, as stored.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Elements per dimension, outermost first. Empty for a scalar.
    pub shape: Vec<u64>,
    /// Index into [`Catalog::files`].
    pub file: usize,
    /// Where its bytes begin, from the start of that file. Aligned to nothing in particular. For
    /// a tensor of no bytes it may lie past the end of the file.
    pub offset: u64,
    /// How many bytes it takes there. In a `.ptd` file other tensors may lie on the same bytes.
    pub bytes: u64,
}

impl Tensor {
    /// One past its last byte, from the start of its file.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }

    /// The number of elements, or `None` if that overflows.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        elements(&self.shape)
    }
}

/// The product of a shape; 1 for a scalar. `None` on overflow.
pub(crate) fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension))
}

/// A file that tensors lie in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceFile {
    /// The name its opener gave it.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// Everything that a model's headers say: files, tensors, metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalog {
    format: Format,
    files: Vec<SourceFile>,
    tensors: Vec<Tensor>,
    by_name: HashMap<Box<str>, usize>,
    metadata: Metadata,
    notices: Vec<String>,
}

impl Catalog {
    /// Puts the tensors in file order and indexes them by name. Those who call it have checked
    /// each file's tensors; names are checked here, across files.
    pub(crate) fn new(
        format: Format,
        files: Vec<SourceFile>,
        mut tensors: Vec<Tensor>,
        metadata: Metadata,
        notices: Vec<String>,
    ) -> Result<Self, FormatError> {
        if files.is_empty() {
            return Err(FormatError::parts("no file was given"));
        }
        // An empty tensor goes before the one that begins at the same byte.
        tensors.sort_by_key(|tensor| (tensor.file, tensor.offset, tensor.bytes));
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (index, tensor) in tensors.iter().enumerate() {
            match by_name.entry(Box::from(tensor.name.as_str())) {
                Entry::Vacant(vacant) => {
                    vacant.insert(index);
                }
                Entry::Occupied(occupied) => {
                    let first: &Tensor = &tensors[*occupied.get()];
                    return Err(duplicate(&files, first, tensor));
                }
            }
        }
        Ok(Self { format, files, tensors, by_name, metadata, notices })
    }

    /// The format of its files.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The files, in the order of the model's parts.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// All tensors, sorted by file and offset.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.position(name).map(|index| &self.tensors[index])
    }

    /// Where in [`Catalog::tensors`] the tensor with this name is.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The model's key/values: those of the first part (GGUF), all shards' `__metadata__`, earlier
    /// shards first (safetensors), or what [`ptd`](crate::ptd) tells of single tensors.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What was odd but not wrong, a sentence each.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The bytes of all tensors together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }
}

fn duplicate(files: &[SourceFile], first: &Tensor, second: &Tensor) -> FormatError {
    FormatError::malformed(format!(
        "a tensor of this name is already at offset {} of {}",
        first.offset,
        Quoted(&files[first.file].name)
    ))
    .in_tensor(&second.name)
    .at(second.offset)
    .in_file(&files[second.file].name)
}

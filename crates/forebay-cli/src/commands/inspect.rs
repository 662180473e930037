//! `forebay inspect`: what is in a model.

use crate::args::InspectArguments;
use crate::failure::Failure;
use crate::output;
use forebay::{Dtype, Format, Model, Value};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Inspected<'model> {
    format: Format,
    files: Vec<InspectedFile>,
    tensors: Vec<InspectedTensor<'model>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<BTreeMap<&'model str, String>>,
}

#[derive(Serialize)]
struct InspectedFile {
    path: String,
    bytes: u64,
}

#[derive(Serialize)]
struct InspectedTensor<'model> {
    name: &'model str,
    dtype: Dtype,
    shape: &'model [u64],
    bytes: u64,
    file: String,
    offset: u64,
}

pub(crate) fn run(arguments: &InspectArguments) -> Result<(), Failure> {
    let model = Model::open(&arguments.model)?;
    let catalog = model.catalog();
    let path = |file: usize| model.file_path(file).display().to_string();
    let tensors = catalog.tensors().iter().map(|tensor| InspectedTensor {
        name: &tensor.name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        bytes: tensor.bytes,
        file: path(tensor.file),
        offset: tensor.offset,
    });
    let metadata = || catalog.metadata().iter();
    if arguments.json {
        let files = catalog.files().iter().enumerate();
        return output::json(&Inspected {
            format: catalog.format(),
            files: files
                .map(|(file, source)| InspectedFile { path: path(file), bytes: source.bytes })
                .collect(),
            tensors: tensors.collect(),
            metadata: arguments
                .metadata
                .then(|| metadata().map(|(key, value)| (key, value.to_string())).collect()),
        });
    }
    if arguments.metadata {
        for (key, value) in metadata() {
            output::line(&format!("{key} = {}", shorten(value)))?;
        }
    }
    let mut rows =
        vec![["name", "dtype", "shape", "bytes", "offset", "file"].map(String::from).to_vec()];
    rows.extend(tensors.map(|tensor| {
        vec![
            output::shown(tensor.name),
            tensor.dtype.to_string(),
            format!("{:?}", tensor.shape),
            tensor.bytes.to_string(),
            tensor.offset.to_string(),
            output::shown(&tensor.file),
        ]
    }));
    output::table(&rows)
}

/// A value on one line; long arrays by their start.
fn shorten(value: &Value) -> String {
    const CHARACTERS_MAX: usize = 120;
    let text = value.to_string();
    if text.chars().count() <= CHARACTERS_MAX {
        return text;
    }
    let start: String = text.chars().take(CHARACTERS_MAX).collect();
    format!("{start}…")
}

//! Opened models: what is in them, and reads of boxes of their tensors.

use crate::bounds::{Bounds, Selection};
use crate::errors;
use crate::memory::{self, Block, Memory};
use crate::options;
use crate::parts::{self, PART_BYTES};
use crate::values;
use forebay::{Catalog, Plan};
use forebay_compute::dequantize;
use forebay_format::{Parse, Tensor, safetensors};
use pyo3::exceptions::{PyIndexError, PyKeyError, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Several runs are read as one stretch of at most this.
const STRETCH_BYTES_MAX: u64 = 256 << 10;
/// Elements that are converted at once: whole blocks of every type.
const PIECE_ELEMENTS: usize = 64 << 10;

/// Name, dtype, shape, bytes, file, offset in the file.
type Entry = (String, &'static str, Vec<u64>, u64, usize, u64);

/// Name, dtype, shape, and where its bytes begin and end.
type Parsed = (String, &'static str, Vec<u64>, u64, u64);

/// A model whose headers are parsed and whose files are open.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Model {
    model: forebay::Model,
}

impl Model {
    pub(crate) fn opened(&self) -> &forebay::Model {
        &self.model
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        self.model.catalog()
    }

    fn tensor(&self, name: &str) -> PyResult<&Tensor> {
        self.catalog().tensor(name).ok_or_else(|| PyKeyError::new_err(name.to_owned()))
    }

    /// A tensor, the box `bounds` of it, and how many bytes that has.
    fn selected(
        &self,
        name: &str,
        item_bytes: u64,
        shape: &[u64],
        bounds: &[Bounds],
    ) -> PyResult<(&Tensor, Selection, u64)> {
        let tensor = self.tensor(name)?;
        let whole = shape.iter().try_fold(item_bytes, |bytes, &it| bytes.checked_mul(it));
        let selection = Selection::new(tensor.offset, item_bytes, shape, bounds)
            .filter(|_| whole == Some(tensor.bytes));
        let found = selection.and_then(|it| it.bytes().map(|bytes| (tensor, it, bytes)));
        found.ok_or_else(|| PyIndexError::new_err(format!("{bounds:?} is no part of '{name}'")))
    }

    fn fill(
        &self,
        py: Python<'_>,
        tensor: &Tensor,
        selection: &Selection,
        target: &mut [u8],
        ready: impl Fn(usize, &mut [u8]) + Sync,
    ) -> PyResult<()> {
        let runs = selection.runs().unwrap_or(u64::MAX);
        // A few reads are done sooner than threads are there to do them.
        let is_small = target.len() <= 4 * PART_BYTES && runs <= 64;
        let part_bytes = if is_small { target.len().max(1) } else { PART_BYTES };
        parts::fill(py, target, part_bytes, |at, part| {
            ready(at, part);
            self.read_part(tensor, selection, at as u64, part)
        })
    }

    fn read_exact(&self, tensor: &Tensor, offset: u64, into: &mut [u8]) -> PyResult<()> {
        self.model.as_file(tensor.file).read_exact_at(into, offset).map_err(|error| {
            let path = self.model.file_path(tensor.file).display();
            let what = format!("{path}: tensor '{}' can't be read", tensor.name);
            match error.raw_os_error() {
                Some(errno) => pyo3::exceptions::PyOSError::new_err((errno, what)),
                None => errors::of_class("Error", &format!("{what}: the file has become shorter")),
            }
        })
    }

    /// Reads what lies from `position` on in a selection.
    fn read_part(
        &self,
        tensor: &Tensor,
        selection: &Selection,
        position: u64,
        mut into: &mut [u8],
    ) -> PyResult<()> {
        let run_bytes = selection.run_bytes();
        let mut number = position / run_bytes;
        let mut within = position % run_bytes;
        let limit = (position + into.len() as u64).div_ceil(run_bytes);
        let mut stretch = Vec::new();
        while !into.is_empty() {
            let is_whole = within == 0 && into.len() as u64 >= run_bytes;
            let count = match is_whole {
                true => selection.neighbours(number, limit, STRETCH_BYTES_MAX),
                false => 1,
            };
            let start = selection.run(number);
            if count == 1 {
                let left = usize::try_from(run_bytes - within).unwrap_or(usize::MAX);
                let (now, rest) = into.split_at_mut(left.min(into.len()));
                self.read_exact(tensor, start + within, now)?;
                (into, within, number) = (rest, 0, number + 1);
                continue;
            }
            let run = usize::try_from(run_bytes).expect("less than a stretch");
            // The last run may not be wholly wanted.
            let count = count.min((into.len() / run) as u64);
            let end = selection.run(number + count - 1) + run_bytes;
            stretch.resize(usize::try_from(end - start).expect("at most a stretch"), 0);
            self.read_exact(tensor, start, &mut stretch)?;
            for index in 0..count {
                let at = usize::try_from(selection.run(number + index) - start)
                    .expect("inside the stretch");
                let (now, rest) = into.split_at_mut(run);
                now.copy_from_slice(&stretch[at..at + run]);
                into = rest;
            }
            number += count;
        }
        Ok(())
    }
}

fn block(bytes: u64) -> PyResult<(Block, usize)> {
    let refuse = || PyMemoryError::new_err(format!("no room for {bytes} bytes"));
    let bytes = usize::try_from(bytes).map_err(|_| refuse())?;
    Ok((Block::new(bytes).map_err(|_| refuse())?, bytes))
}

fn entry(tensor: &Tensor) -> Entry {
    let Tensor { name, dtype, shape, file, offset, bytes } = tensor;
    (name.clone(), dtype.name(), shape.clone(), *bytes, *file, *offset)
}

#[pymethods]
#[allow(clippy::needless_pass_by_value, reason = "what is made from Python's objects is a value")]
impl Model {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let model = py.detach(|| forebay::Model::open(&path));
        Ok(Self { model: model.map_err(|error| errors::raise(&error))? })
    }

    /// `gguf`, `safetensors` or `ptd`.
    #[getter]
    fn format(&self) -> String {
        self.catalog().format().to_string()
    }

    /// The path and the length of each file.
    fn files(&self) -> Vec<(PathBuf, u64)> {
        let files = self.catalog().files().iter().enumerate();
        files.map(|(index, file)| (self.model.file_path(index).to_owned(), file.bytes)).collect()
    }

    /// What was odd but not wrong.
    fn notices(&self) -> Vec<String> {
        self.catalog().notices().to_vec()
    }

    /// Every tensor, in the order of the file.
    fn tensors(&self) -> Vec<Entry> {
        self.catalog().tensors().iter().map(entry).collect()
    }

    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metadata = PyDict::new(py);
        for (key, value) in self.catalog().metadata().iter() {
            metadata.set_item(key, values::value(py, value)?)?;
        }
        Ok(metadata)
    }

    /// The plan of a load as JSON, and the backend of every tensor, in the order of the file.
    #[pyo3(signature = (**given))]
    fn plan(
        &self,
        py: Python<'_>,
        given: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<(String, Vec<String>)> {
        let options = given.map(options::parse).transpose()?.unwrap_or_default();
        let plan = py.detach(|| Plan::new(&self.model, &options));
        let plan = plan.map_err(|error| errors::raise(&error))?;
        let report = serde_json::to_string(&plan.report());
        let report = report.map_err(|error| errors::of_class("Error", &error.to_string()))?;
        let names = self.catalog().tensors().iter().map(|tensor| &tensor.name);
        let backends = names.filter_map(|name| plan.backend_of(name)).map(|it| it.to_string());
        Ok((report, backends.collect()))
    }

    /// A box of a tensor: its items have `item_bytes`, and lie as `shape` says.
    fn read(
        &self,
        py: Python<'_>,
        name: &str,
        item_bytes: u64,
        shape: Vec<u64>,
        bounds: Vec<Bounds>,
    ) -> PyResult<Memory> {
        let (tensor, selection, bytes) = self.selected(name, item_bytes, &shape, &bounds)?;
        let (mut block, bytes) = block(bytes)?;
        let (target, pages) = block.filling(bytes);
        self.fill(py, tensor, &selection, target, |at, part| pages.ensure(at, part.len()))?;
        Ok(Memory::whole(block, bytes))
    }

    /// The same, into memory that Python code lends: the first and the last of its arguments say
    /// where, and how many bytes are there.
    #[allow(clippy::too_many_arguments, reason = "what is read, and where to")]
    fn read_into(
        &self,
        py: Python<'_>,
        address: usize,
        name: &str,
        item_bytes: u64,
        shape: Vec<u64>,
        bounds: Vec<Bounds>,
        nbytes: usize,
    ) -> PyResult<()> {
        let (tensor, selection, bytes) = self.selected(name, item_bytes, &shape, &bounds)?;
        if bytes != nbytes as u64 || (address == 0 && nbytes > 0) {
            let message = format!("{bytes} bytes of '{name}' for memory of {nbytes}");
            return Err(PyIndexError::new_err(message));
        }
        if nbytes == 0 {
            return Ok(());
        }
        let start = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the package lends what torch has allocated, of that length and initialised, keeps
        // its owner until this returns, and lets no other code look at it meanwhile.
        let target = unsafe { std::slice::from_raw_parts_mut(start, nbytes) };
        self.fill(py, tensor, &selection, target, |_, part| memory::populate(part))
    }

    /// A tensor's elements as `f32`.
    fn dequantize(&self, py: Python<'_>, name: &str) -> PyResult<Memory> {
        let tensor = self.tensor(name)?;
        let (block_bytes, in_block) = (tensor.dtype.block_bytes(), tensor.dtype.block_elements());
        let elements = tensor.bytes / block_bytes * in_block;
        let (mut block, bytes) = block(elements.saturating_mul(4))?;
        let part_bytes = PIECE_ELEMENTS * size_of::<f32>();
        let (target, pages) = block.filling(bytes);
        parts::fill(py, target, part_bytes, |at, part| {
            pages.ensure(at, part.len());
            convert(self, tensor, at, part)
        })?;
        Ok(Memory::whole(block, bytes))
    }
}

/// Converts what of a tensor becomes the bytes from `at` on, as many as `into` has.
fn convert(model: &Model, tensor: &Tensor, at: usize, into: &mut [u8]) -> PyResult<()> {
    let in_block = tensor.dtype.block_elements();
    for (piece, into) in into.chunks_mut(PIECE_ELEMENTS * size_of::<f32>()).enumerate() {
        let elements = into.len() / size_of::<f32>();
        let first = at / size_of::<f32>() + piece * PIECE_ELEMENTS;
        let start = first as u64 / in_block * tensor.dtype.block_bytes();
        let bytes = elements as u64 / in_block * tensor.dtype.block_bytes();
        let mut stored = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
        model.read_exact(tensor, tensor.offset + start, &mut stored)?;
        let mut converted = vec![0.0; elements];
        dequantize(tensor.dtype, &stored, &mut converted).map_err(|why| {
            let message = format!(
                "tensor '{}' can't be converted: {why} (without `dequantize` it comes as its bytes)",
                tensor.name
            );
            errors::of_class("Error", &message)
        })?;
        for (bytes, value) in into.chunks_exact_mut(size_of::<f32>()).zip(&converted) {
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
    }
    Ok(())
}

/// The tensors of a safetensors file that is in memory, in the order of the file: name, dtype,
/// shape, and the range of its bytes.
#[pyfunction]
pub(crate) fn parse(data: &[u8]) -> PyResult<Vec<Parsed>> {
    let parsed = safetensors::parse(data, data.len() as u64);
    let wrong = |why: &str| errors::of_class("FormatError", why);
    match parsed.map_err(|error| wrong(&error.to_string()))? {
        Parse::NeedBytes(bytes) => {
            Err(wrong(&format!("the header has {bytes} bytes, and {} are there", data.len())))
        }
        Parse::Complete(file) => Ok((file.tensors().iter())
            .map(|it| (it.name.clone(), it.dtype.name(), it.shape.clone(), it.offset, it.end()))
            .collect()),
    }
}

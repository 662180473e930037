//! An opened model.

use crate::error::Error;
use crate::source;
use forebay_format::Catalog;
use forebay_io::ModelFile;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model whose files are open and whose headers are parsed. No tensor has been read.
#[derive(Clone, Debug)]
pub struct Model {
    path: PathBuf,
    catalog: Arc<Catalog>,
    files: Arc<[ModelFile]>,
    open_time: Duration,
}

impl Model {
    /// Opens a `.gguf` file (one part of a split one opens them all), a `.safetensors` file, a
    /// `*.safetensors.index.json`, a `.ptd` file, or a folder that holds exactly one such model.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NoModel`], [`Error::Header`], [`Error::Format`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let started = Instant::now();
        let path = path.as_ref();
        let (catalog, files) = source::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            catalog: Arc::new(catalog),
            files: files.into(),
            open_time: started.elapsed(),
        })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors and metadata.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The path of a file of the catalog, by its index.
    ///
    /// # Panics
    /// If the model has no such file.
    #[must_use]
    pub fn file_path(&self, file: usize) -> &Path {
        self.files[file].path()
    }

    /// A file of the catalog, by its index, as it is open: for reads by offset. Its position is nobody's.
    ///
    /// # Panics
    /// If the model has no such file.
    #[must_use]
    pub fn as_file(&self, file: usize) -> &File {
        self.files[file].buffered()
    }

    pub(crate) fn shared_catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog)
    }

    pub(crate) fn files(&self) -> &Arc<[ModelFile]> {
        &self.files
    }

    /// The same for a load that did not open it.
    pub(crate) fn opened_before(&self) -> Self {
        Self { open_time: Duration::ZERO, ..self.clone() }
    }

    pub(crate) fn open_time(&self) -> Duration {
        self.open_time
    }
}

//! Files to read from.

use forebay_io::ModelFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// `bytes` bytes determined by `seed`, with no two aligned blocks alike, so that a block in the
/// wrong place is a wrong block.
#[must_use]
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut contents = vec![0; bytes];
    fastrand::Rng::with_seed(seed).fill(&mut contents);
    contents
}

/// A folder of test files, gone when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    contents: Vec<Vec<u8>>,
}

impl Scratch {
    /// Files of the lengths `bytes`, in a new folder below `parent`: pass
    /// `env!("CARGO_TARGET_TMPDIR")`, which is on a disk where the system's own temporary folder
    /// is often memory that knows no direct I/O.
    ///
    /// # Panics
    /// If the disk refuses.
    #[must_use]
    pub fn new(parent: &str, bytes: &[usize]) -> Self {
        let folder = tempfile::tempdir_in(parent).expect("the target folder can be written to");
        let contents: Vec<_> =
            (0..).zip(bytes).map(|(seed, &bytes)| pattern(seed, bytes)).collect();
        let scratch = Self { folder, contents };
        for (file, contents) in scratch.contents.iter().enumerate() {
            std::fs::write(scratch.path(file), contents).expect("the target folder has room");
        }
        scratch
    }

    /// Where file `file` is.
    #[must_use]
    pub fn path(&self, file: usize) -> PathBuf {
        self.folder().join(format!("{file}.bin"))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the files hold.
    #[must_use]
    pub fn contents(&self) -> &[Vec<u8>] {
        &self.contents
    }

    /// The files, opened as a load opens them.
    ///
    /// # Panics
    /// If one can't be opened.
    #[must_use]
    pub fn open(&self) -> Arc<[ModelFile]> {
        let open = |file| ModelFile::open(&self.path(file)).expect("it was written just now");
        (0..self.contents.len()).map(open).collect()
    }
}

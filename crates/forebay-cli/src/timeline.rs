//! `--trace FILE`: the file of a timeline.

use crate::failure::Failure;
use crate::output;
use forebay::Trace;
use forebay::trace::FILE_BEGINS_WITH;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A timeline under way, and the file that it will be written to.
pub(crate) struct Timeline {
    trace: Trace,
    file: File,
    path: PathBuf,
}

impl Timeline {
    /// Makes the file at once: that it can't be made is known before anything is read.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        // Cut only once it is known what it is.
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let is_replaceable = file.and_then(|file| Ok((may_replace(&file, path)?, file)));
        let (may_replace, file) = is_replaceable.map_err(|error| {
            Failure::caused(format!("{}: can't be made for the trace", path.display()), &error)
        })?;
        if !may_replace {
            let message = format!("{}: holds something else than a trace", path.display());
            return Err(Failure::new(message, Some("name another file, or remove that one")));
        }
        // What can't be cut, a pipe for example, has nothing in it that would stay behind.
        let _ = file.set_len(0);
        Ok(Self { trace: Trace::new(), file, path: path.to_owned() })
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Writes what was recorded, and says where.
    pub(crate) fn write(self) -> Result<(), Failure> {
        let Self { trace, file, path } = self;
        trace.write(&file).map_err(|error| {
            Failure::caused(format!("{}: the trace can't be written", path.display()), &error)
        })?;
        let missing = match trace.dropped() {
            0 => String::new(),
            dropped => format!(", {dropped} more did not fit"),
        };
        output::notice(&format!(
            "notice: {} holds {} events{missing}; open it at https://ui.perfetto.dev",
            path.display(),
            trace.events()
        ));
        Ok(())
    }
}

/// Only an earlier trace is replaced: a mistyped path may name a model.
fn may_replace(file: &File, path: &Path) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(true);
    }
    let mut begin = Vec::new();
    File::open(path)?.take(FILE_BEGINS_WITH.len() as u64).read_to_end(&mut begin)?;
    Ok(begin == FILE_BEGINS_WITH.as_bytes())
}

//! The page cache before and after a load.

use crate::failure::Failure;
use crate::output;
use forebay_io::cache;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure::caused(format!("{}: can't be opened", path.display()), &error))
}

pub(super) fn drop_caches(files: &[PathBuf]) -> Result<(), Failure> {
    for path in files {
        let file = open(path)?;
        // Dirty pages can't be dropped; a read-only mount has none to sync.
        let _ = file.sync_all();
        cache::drop_cached(&file, 0..0)
            .map_err(|errno| Failure::caused("the page cache can't be dropped", &errno))?;
    }
    let left = cached_share(files)?.unwrap_or(0.0);
    if left > 0.01 {
        output::notice(&format!(
            "notice: {:.0} % of the model stays in the page cache; cold rows are not cold",
            left * 100.0
        ));
    }
    Ok(())
}

pub(super) fn warm_caches(files: &[PathBuf]) -> Result<(), Failure> {
    if cached_share(files)?.is_some_and(|share| share > 0.999) {
        return Ok(());
    }
    let mut buffer = vec![0; 4 << 20];
    for path in files {
        let mut file = open(path)?;
        while file
            .read(&mut buffer)
            .map_err(|error| Failure::caused("the model can't be read", &error))?
            > 0
        {}
    }
    Ok(())
}

/// How much of the files is in the page cache, 0 to 1; `None` where the kernel does not tell.
pub(super) fn cached_share(files: &[PathBuf]) -> Result<Option<f64>, Failure> {
    let (mut cached, mut all) = (0, 0);
    for path in files {
        let file = open(path)?;
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let Ok(here) = cache::cached_bytes(&file, 0..bytes) else { return Ok(None) };
        cached += here.min(bytes);
        all += bytes;
    }
    Ok(Some(if all == 0 { 0.0 } else { output::gib(cached) / output::gib(all) }))
}

//! What the storage under one path can do.

use super::Check;
use crate::failure::Failure;
use crate::size;
use forebay_io::{AlignmentSource, Errno, ModelFile};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) fn checks(path: &Path) -> Result<Vec<Check>, Failure> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Failure::caused(format!("{}: can't be looked at", path.display()), &error)
    })?;
    let mut checks = vec![filesystem(path), block_device(metadata.dev())];
    // A folder is judged by a file in it: one made for the purpose, which is gone when this
    // returns, or where none can be made, one that is there.
    let mut sample = None;
    let file = if metadata.is_dir() {
        match (sample_in(path), any_file_in(path)) {
            (Ok(made), _) => sample.insert(made).path().to_owned(),
            (Err(_), Some(file)) => file,
            (Err(error), None) => {
                checks.push(Check::fact(
                    "direct I/O",
                    format!("not tried: no file can be made here ({error})"),
                ));
                return Ok(checks);
            }
        }
    } else {
        path.to_owned()
    };
    let file = ModelFile::open(&file).map_err(forebay::Error::from)?;
    checks.push(direct(&file));
    checks.push(page_cache(&file, sample.is_none()));
    Ok(checks)
}

fn sample_in(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".forebay-doctor-").tempfile_in(folder)?;
    file.write_all(&[0; 1 << 16])?;
    file.as_file().sync_all()?;
    Ok(file)
}

fn any_file_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| path.is_file() && File::open(path).is_ok())
}

/// The mount that the path lies on: the longest mount point that it begins with.
fn filesystem(path: &Path) -> Check {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
            path.starts_with(point).then_some((point.len(), device, point, kind))
        })
        .max_by_key(|(length, ..)| *length);
    match mount {
        Some((_, device, point, kind)) => {
            Check::fact("filesystem", format!("{kind} on {point} ({device})"))
        }
        None => Check::fact("filesystem", "unknown"),
    }
}

fn block_device(device: u64) -> Check {
    let name = "block device";
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let node = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let queue =
        [node.join("queue"), node.join("../queue")].into_iter().find(|queue| queue.is_dir());
    let Some(queue) = queue else {
        return Check::fact(name, "none of its own (memory, network or a layered filesystem)");
    };
    let field = |field: &str| {
        let text = std::fs::read_to_string(queue.join(field)).unwrap_or_default();
        text.trim().to_owned()
    };
    let target = std::fs::canonicalize(&node).unwrap_or(node);
    let device =
        target.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let found = format!(
        "{device}: sectors of {} bytes, requests of up to {} KiB, readahead {} KiB, scheduler {}, \
         {} queues to poll",
        field("logical_block_size"),
        field("max_sectors_kb"),
        field("read_ahead_kb"),
        field("scheduler"),
        if field("io_poll") == "1" { "with" } else { "without" },
    );
    if field("rotational") == "1" && !device.starts_with("vd") {
        return Check::bad(name, format!("{found}, rotating"), "keep models on an SSD");
    }
    Check::fact(name, found)
}

fn direct(file: &ModelFile) -> Check {
    let name = "direct I/O";
    let remedy = "loads go through the page cache instead; ext4 and xfs on a local disk take it";
    match file.direct() {
        Ok((direct, alignment)) => {
            let source = match alignment.source {
                AlignmentSource::Statx => "as statx says",
                AlignmentSource::BlockDevice => "the device's sector size",
                AlignmentSource::Assumed => "assumed",
            };
            let offset = alignment.offset.bytes();
            let found = format!("aligned to {offset} bytes, {source}");
            match read_aligned(direct, offset, file.bytes()) {
                Ok(()) => Check::good(name, found),
                Err(errno) => {
                    Check::bad(name, format!("{found}, but a read fails: {errno}"), remedy)
                }
            }
        }
        Err(errno) => Check::bad(name, format!("refused: {errno}"), remedy),
    }
}

/// One direct read of one unit into aligned memory.
fn read_aligned(file: &File, unit_bytes: u64, file_bytes: u64) -> Result<(), Errno> {
    use std::os::unix::fs::FileExt;
    if file_bytes == 0 {
        return Ok(());
    }
    let bytes = usize::try_from(unit_bytes).map_err(|_| Errno::EINVAL)?;
    let (_slab, slots) = forebay_mem::Slab::new(bytes, 1).map_err(|error| error.errno)?;
    let Some(slot) = slots.into_iter().next() else { return Ok(()) };
    let read = file.read_at(slot.fill().buffer(), 0);
    read.map(drop).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

fn page_cache(file: &ModelFile, is_model: bool) -> Check {
    let name = "page cache";
    match file.cached_bytes(0..file.bytes()) {
        Ok(cached) if is_model => {
            let (cached, bytes) = (size::show(cached.min(file.bytes())), size::show(file.bytes()));
            Check::good(name, format!("holds {cached} of {bytes}"))
        }
        Ok(_) => Check::good(name, "can be asked what it holds"),
        Err(errno) => {
            let found = format!("can't be asked what it holds: {errno}");
            let remedy = match errno {
                Errno::EPERM => {
                    "only a file's owner and who may write to it may ask; for others `auto` tries \
                     whether pages of each read come without waiting"
                }
                _ => {
                    "Linux 6.5 can; until then `auto` tries whether pages of each read come without \
                     waiting"
                }
            };
            Check::bad(name, found, remedy)
        }
    }
}

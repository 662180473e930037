//! A model file, opened and understood.

use crate::cache::{cached_bytes, drop_cached, is_cached_at};
use crate::failure::FailureKind;
use crate::probe::{DirectAlignment, Readahead, direct_alignment, polled_bytes};
use forebay_mem::{FileMapping, Writes};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise};
use nix::sys::stat::major;
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, FUSE_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, fstatfs,
};
use nix::unistd::geteuid;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What must not change while a file is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes (of a block device: its capacity).
    pub bytes: u64,
    /// Time of the last write: seconds and nanoseconds.
    pub modified: (i64, i64),
}

/// Why a path can't be loaded from.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// `open` or `stat` said no.
    Errno(Errno),
    /// A directory.
    Directory,
    /// A pipe, socket or character device: it has no offsets to read at.
    NotSeekable(&'static str),
    /// The path led to another file the second time it was opened.
    Replaced,
}

/// A path that can't be loaded from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", path.display(), self.describe())]
pub struct OpenError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub kind: OpenErrorKind,
}

impl OpenError {
    fn new(path: &Path, kind: OpenErrorKind) -> Self {
        Self { path: path.to_owned(), kind }
    }

    fn describe(&self) -> String {
        match &self.kind {
            OpenErrorKind::Errno(errno) => errno.desc().to_lowercase(),
            OpenErrorKind::Directory => "is a directory".to_owned(),
            OpenErrorKind::NotSeekable(what) => {
                format!("is a {what}, and a model needs a file or a block device")
            }
            OpenErrorKind::Replaced => "was replaced while it was being opened".to_owned(),
        }
    }
}

/// A file of a model: open for buffered reads, and for direct ones where that is possible.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    identity: FileIdentity,
    buffered: File,
    direct: Result<(File, DirectAlignment), Errno>,
    readahead: Readahead,
    /// What its bytes lie on, as in `st_dev`.
    device: u64,
    is_fuse: bool,
    /// On overlay filesystems, whose files `cachestat` knows nothing of: a mapping, which leads to
    /// the layer below, and so does `mincore`. `None` where the answer could not be believed.
    layered: Option<OnceLock<Option<FileMapping>>>,
}

impl ModelFile {
    /// Opens `path` for reading. Waits for nobody: a pipe is refused, not waited for.
    ///
    /// # Errors
    /// [`OpenError`], see its kinds. That direct I/O is refused is no error: see
    /// [`ModelFile::direct`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let refuse = |error: &io::Error| OpenError::new(path, OpenErrorKind::Errno(errno(error)));
        let buffered = open_with(path, libc::O_NONBLOCK).map_err(|error| refuse(&error))?;
        let metadata = buffered.metadata().map_err(|error| refuse(&error))?;
        let kind = metadata.file_type();
        let unseekable = |what| Err(OpenError::new(path, OpenErrorKind::NotSeekable(what)));
        if kind.is_dir() {
            return Err(OpenError::new(path, OpenErrorKind::Directory));
        } else if kind.is_fifo() {
            return unseekable("pipe");
        } else if kind.is_socket() {
            return unseekable("socket");
        } else if kind.is_char_device() {
            return unseekable("character device");
        }
        // io_uring would answer EAGAIN instead of waiting on a non-blocking file.
        fcntl(&buffered, FcntlArg::F_SETFL(OFlag::empty()))
            .map_err(|errno| OpenError::new(path, OpenErrorKind::Errno(errno)))?;
        let identity = identity(&buffered).map_err(|error| refuse(&error))?;
        let device = if kind.is_block_device() { metadata.rdev() } else { metadata.dev() };
        let direct = match open_direct(path, device) {
            Ok((file, _)) if !same_file(&file, &identity) => {
                return Err(OpenError::new(path, OpenErrorKind::Replaced));
            }
            // Says nothing of the file, so it must not pass for a refusal of direct reads.
            Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
                return Err(OpenError::new(path, OpenErrorKind::Errno(errno)));
            }
            other => other,
        };
        let readahead = Readahead::of(device);
        let layered = is_on(&buffered, OVERLAYFS_SUPER_MAGIC).then(OnceLock::new);
        let is_fuse = is_on(&buffered, FUSE_SUPER_MAGIC);
        let path = path.to_owned();
        Ok(Self { path, identity, buffered, direct, readahead, device, is_fuse, layered })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was when it was opened.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.identity.bytes
    }

    /// The descriptor for buffered reads.
    #[must_use]
    pub fn buffered(&self) -> &File {
        &self.buffered
    }

    /// The descriptor for direct reads and what they must be aligned to.
    ///
    /// # Errors
    /// What the filesystem answered to the `O_DIRECT` open, or `EOPNOTSUPP` where `statx` says
    /// that it takes none.
    pub fn direct(&self) -> Result<(&File, DirectAlignment), Errno> {
        self.direct.as_ref().map(|(file, alignment)| (file, *alignment)).map_err(|errno| *errno)
    }

    /// How the kernel reads it ahead.
    #[must_use]
    pub fn readahead(&self) -> Readahead {
        self.readahead
    }

    /// The most that can be polled for at once; `None` where its disk has no queues for that.
    #[must_use]
    pub fn polled_bytes(&self) -> Option<u32> {
        polled_bytes(self.device)
    }

    /// Whether io_uring reads it right. Of FUSE it does not, where a file is read past the page cache
    /// and an answer comes short: the kernel asks for the rest itself, at the offset of the begin,
    /// and tells both as one read (seen on Linux 6.18).
    #[must_use]
    pub fn is_for_rings(&self) -> bool {
        !self.is_fuse
    }

    /// Whether it is a disk of this machine that is read, as far as its filesystem tells.
    pub(crate) fn is_on_disk(&self) -> bool {
        // Filesystems without one have no major number, and two of those with one have none either.
        major(self.device) != 0
            || self.layered.is_some()
            || is_on(&self.buffered, BTRFS_SUPER_MAGIC)
    }

    /// How many bytes of `range` are in the page cache, in whole pages.
    ///
    /// # Errors
    /// As [`cached_bytes`]; `EPERM` too on an overlay for those who don't own the file, to whom the
    /// kernel might not tell the truth.
    pub fn cached_bytes(&self, range: Range<u64>) -> Result<u64, Errno> {
        let Some(mapping) = &self.layered else { return cached_bytes(&self.buffered, range) };
        let map = || {
            is_owner(&self.buffered)
                .then(|| FileMapping::new(&self.buffered, self.bytes(), Writes::Refused).ok())
                .flatten()
        };
        let mapping = mapping.get_or_init(map).as_ref().ok_or(Errno::EPERM)?;
        mapping.resident_bytes(range).map_err(|error| error.errno)
    }

    /// Reads up to `bytes` bytes of the file's start: its header. As [`ModelFile::read_aside`].
    ///
    /// # Errors
    /// What `read` answers.
    pub fn read_prefix(&self, bytes: u64) -> io::Result<Vec<u8>> {
        self.read_aside(0..bytes)
    }

    /// Reads what the file has of `range`, through the page cache. What the cache held nothing of
    /// before it holds nothing of afterwards, nor what lies behind it: a look at the header neither
    /// makes a cold file look warm nor fills the cache by readahead.
    ///
    /// # Errors
    /// What `read` answers.
    pub fn read_aside(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        // By offset, not by the descriptor's position, which all users of this file share.
        let end = range.end.min(self.bytes());
        let range = range.start.min(end)..end;
        let is_cold = match self.cached_bytes(range.clone()) {
            Ok(cached) => cached == 0,
            // The kernel does not tell: before Linux 6.5, or to those who don't own the file.
            Err(_) => !is_cached_at(&self.buffered, range.start),
        };
        expect(&self.buffered, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        let part = self.read_up_to(range.clone());
        expect(&self.buffered, PosixFadviseAdvice::POSIX_FADV_NORMAL);
        if is_cold {
            // Advice: where it is refused these pages stay cached, which changes no byte.
            let _ = drop_cached(&self.buffered, range);
        }
        part
    }

    fn read_up_to(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        let bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut part = vec![0; bytes];
        let mut done = 0;
        while done < bytes {
            match self.buffered.read_at(&mut part[done..], range.start + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        part.truncate(done);
        Ok(part)
    }

    /// Fills `buffer` from `offset` on, through the page cache. What comes otherwise is told with
    /// where it begins.
    pub(crate) fn read_exact_at(
        &self,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<(), (FailureKind, u64)> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            match self.buffered.read_at(&mut buffer[done..], at) {
                Ok(0) => return Err((FailureKind::EndOfFile, at)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((FailureKind::Errno(errno(&error)), at)),
            }
        }
        Ok(())
    }

    /// What the open file is now; differs from [`ModelFile::identity`] once somebody wrote to it.
    ///
    /// # Errors
    /// What `fstat` answers.
    pub fn identity_now(&self) -> io::Result<FileIdentity> {
        identity(&self.buffered)
    }
}

fn is_on(file: &File, filesystem: FsType) -> bool {
    fstatfs(file).is_ok_and(|answer| answer.filesystem_type() == filesystem)
}

fn is_owner(file: &File) -> bool {
    let user = geteuid();
    user.is_root() || file.metadata().is_ok_and(|metadata| metadata.uid() == user.as_raw())
}

/// Tells the kernel how `file` will be read.
fn expect(file: &File, advice: PosixFadviseAdvice) {
    // Advice only: a filesystem that refuses it reads as before.
    let _ = posix_fadvise(file, 0, 0, advice);
}

fn errno(error: &io::Error) -> Errno {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => Errno::from_raw(errno),
        // A path with a zero in it, by which nothing can be called.
        (None, io::ErrorKind::InvalidInput) => Errno::ENOENT,
        (None, _) => Errno::EIO,
    }
}

fn open_with(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn open_direct(path: &Path, device: u64) -> Result<(File, DirectAlignment), Errno> {
    let file = open_with(path, libc::O_DIRECT).map_err(|error| errno(&error))?;
    let alignment = direct_alignment(&file, device)?;
    Ok((file, alignment))
}

fn identity(file: &File) -> io::Result<FileIdentity> {
    let metadata = file.metadata()?;
    let bytes = if metadata.file_type().is_block_device() {
        (&mut &*file).seek(SeekFrom::End(0))?
    } else {
        metadata.len()
    };
    Ok(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes,
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

fn same_file(file: &File, expected: &FileIdentity) -> bool {
    identity(file).is_ok_and(|now| (now.device, now.inode) == (expected.device, expected.inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_offsets_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |path: &Path| ModelFile::open(path).unwrap_err().kind;
        assert_eq!(kind(folder.path()), OpenErrorKind::Directory);
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(kind(&fifo), OpenErrorKind::NotSeekable("pipe"));
        assert_eq!(kind(Path::new("/dev/zero")), OpenErrorKind::NotSeekable("character device"));
        let absent = folder.path().join("absent");
        assert_eq!(kind(&absent), OpenErrorKind::Errno(Errno::ENOENT));
    }

    #[test]
    fn a_write_changes_the_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1; 5000]).unwrap();
        let opened = ModelFile::open(file.path()).unwrap();
        assert_eq!(opened.bytes(), 5000);
        assert_eq!(opened.read_prefix(4).unwrap(), [1; 4]);
        assert_eq!(opened.identity_now().unwrap(), opened.identity());
        file.as_file().set_len(4000).unwrap();
        assert_ne!(opened.identity_now().unwrap(), opened.identity());
    }
}

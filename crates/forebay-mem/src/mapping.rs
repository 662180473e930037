//! A model file mapped: read-only, or with a copy of its own for whoever writes.
//!
//! A file under a mapping can be changed or cut short by anyone, and touching a page that is gone
//! is a signal (`SIGBUS`) that kills the process. So the mapping gives out addresses, and copies
//! are made by the kernel ([`FileMapping::read_into`]), which answers `EFAULT` instead.

use crate::error::{MemoryError, Operation};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Who may write to the pages of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// Nobody: the pages are those of the page cache.
    #[default]
    Refused,
    /// Whoever is given an address, to a copy of the page that the process makes at the first write
    /// and that no file sees. Pages that nobody writes to are those of the page cache.
    Copied,
}

/// A whole file, mapped. Pages come when touched.
#[derive(Debug)]
pub struct FileMapping {
    pub(crate) map: MmapRaw,
    writes: Writes,
    /// For machines whose seccomp filter forbids `process_vm_readv`.
    file: File,
}

impl FileMapping {
    /// Maps the first `bytes` bytes of `file`.
    ///
    /// # Errors
    /// What `mmap` answers: `ENODEV` on filesystems that can't map, `ENOMEM`, `EINVAL` for an
    /// empty file.
    pub fn new(file: &File, bytes: u64, writes: Writes) -> Result<Self, MemoryError> {
        let refuse = |error: &std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
            MemoryError::new(Operation::MapFile, 0, bytes, errno)
        };
        let length = usize::try_from(bytes)
            .map_err(|_| MemoryError::new(Operation::MapFile, 0, bytes, Errno::ENOMEM))?;
        let mut options = MmapOptions::new();
        options.len(length);
        let map = match writes {
            Writes::Refused => options.map_raw_read_only(file),
            // Copies are few: a model larger than memory must not be refused for those of all its
            // pages. SAFETY: it becomes a raw mapping, which gives out addresses and no slices.
            Writes::Copied => unsafe { options.no_reserve_swap().map_copy(file) }.map(Into::into),
        };
        let map = map.map_err(|error| refuse(&error))?;
        let file = file.try_clone().map_err(|error| refuse(&error))?;
        Ok(Self { map, writes, file })
    }

    /// Who may write to it.
    #[must_use]
    pub fn writes(&self) -> Writes {
        self.writes
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Copies `buffer.len()` bytes from `offset` on, faulting pages in as needed. Never a signal.
    /// Where the system forbids reading the process's memory so, they are the file's, whatever has
    /// been written to the mapping.
    ///
    /// # Errors
    /// `EFAULT` where the file no longer reaches or the disk failed; `EINVAL` past the mapping.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = buffer.len() as u64;
        let refuse = |errno| MemoryError::new(Operation::ReadMapping, offset, bytes, errno);
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            return Err(refuse(Errno::EINVAL));
        }
        let mut done = 0;
        while done < buffer.len() {
            #[allow(clippy::cast_possible_truncation, reason = "checked against the mapping")]
            let base = self.map.as_ptr() as usize + offset as usize + done;
            let remote = [RemoteIoVec { base, len: buffer.len() - done }];
            let local = &mut [IoSliceMut::new(&mut buffer[done..])];
            match process_vm_readv(Pid::this(), local, &remote) {
                Ok(0) => return Err(refuse(Errno::EFAULT)),
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EPERM | Errno::ENOSYS | Errno::EACCES) => {
                    let rest = &mut buffer[done..];
                    return self.file.read_exact_at(rest, offset + done as u64).map_err(|error| {
                        refuse(error.raw_os_error().map_or(Errno::EFAULT, Errno::from_raw))
                    });
                }
                Err(errno) => return Err(refuse(errno)),
            }
        }
        Ok(())
    }

    /// The address of the byte at `offset`.
    ///
    /// # Panics
    /// If `offset` lies past the end.
    #[must_use]
    pub fn address(&self, offset: u64) -> *mut u8 {
        assert!(offset <= self.bytes(), "offset {offset} past a mapping of {}", self.bytes());
        // SAFETY: checked above.
        unsafe { self.map.as_mut_ptr().add(length(offset)) }
    }

    /// A view of `range` that keeps the mapping alive; `None` if the range is not inside.
    #[must_use]
    pub fn view(self: &Arc<Self>, range: Range<u64>) -> Option<MappedView> {
        (range.start <= range.end && range.end <= self.bytes())
            .then(|| MappedView { mapping: Arc::clone(self), range })
    }
}

/// Bytes inside a mapping are fewer than the address space: the mapping exists.
#[allow(clippy::cast_possible_truncation, reason = "bounded by the mapping's length")]
pub(crate) fn length(bytes: u64) -> usize {
    bytes as usize
}

/// A part of a mapped file, such as one tensor.
#[derive(Clone, Debug)]
pub struct MappedView {
    mapping: Arc<FileMapping>,
    range: Range<u64>,
}

impl MappedView {
    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where it starts in the file.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.range.start
    }

    /// The mapping it lies in.
    #[must_use]
    pub fn mapping(&self) -> &Arc<FileMapping> {
        &self.mapping
    }

    /// The first address, valid for reads of [`MappedView::bytes`] while the view lives and the
    /// file is left alone.
    #[must_use]
    pub fn address(&self) -> *const u8 {
        self.mapping.address(self.range.start)
    }

    /// The first address, valid for writes of [`MappedView::bytes`] too while the view lives and
    /// the file is left alone; `None` if writes are [refused](Writes::Refused).
    #[must_use]
    pub fn address_mut(&self) -> Option<NonNull<u8>> {
        let start = || NonNull::new(self.mapping.address(self.range.start));
        (self.mapping.writes == Writes::Copied).then(start).flatten()
    }

    /// The bytes, without a copy.
    ///
    /// # Safety
    /// - The file must not be written while the slice lives: its bytes would change under it.
    /// - The file must not be cut short while the slice lives: touching it would be a `SIGBUS`.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the range lies inside a mapping that `self` keeps alive; that it does not
        // change is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.address(), length(self.bytes())) }
    }

    /// Brings the view's pages in and waits for them: touching them afterwards waits for no
    /// storage. Never a signal.
    ///
    /// # Errors
    /// As [`FileMapping::read_into`].
    pub fn bring_in(&self) -> Result<(), MemoryError> {
        const PIECE_BYTES: u64 = 128 << 10;
        if self.mapping.populate(self.range.clone()).is_ok() {
            return Ok(());
        }
        // Old kernels can't populate, and a fault has no cause: copying out serves both.
        let mut piece = vec![0; length(PIECE_BYTES.min(self.bytes()))];
        let mut offset = 0;
        while offset < self.bytes() {
            let bytes = PIECE_BYTES.min(self.bytes() - offset);
            self.read_into(offset, &mut piece[..length(bytes)])?;
            offset += bytes;
        }
        Ok(())
    }

    /// How many of its bytes are in memory; see [`FileMapping::resident_bytes`].
    ///
    /// # Errors
    /// What `mincore` answers.
    pub fn resident_bytes(&self) -> Result<u64, MemoryError> {
        self.mapping.resident_bytes(self.range.clone())
    }

    /// Gives back the whole pages inside; see [`FileMapping::reclaim`].
    ///
    /// # Errors
    /// `EINVAL` for locked pages, which stay.
    pub fn reclaim(&self) -> Result<u64, MemoryError> {
        self.mapping.reclaim(self.range.clone())
    }

    /// Copies `buffer.len()` bytes from `offset` (within the view) on; never a signal.
    ///
    /// # Errors
    /// As [`FileMapping::read_into`]; `EINVAL` past the view.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let bytes = buffer.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes()) {
            let at = self.range.start.saturating_add(offset);
            return Err(MemoryError::new(Operation::ReadMapping, at, bytes, Errno::EINVAL));
        }
        self.mapping.read_into(self.range.start + offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(contents: &[u8]) -> (tempfile::NamedTempFile, Arc<FileMapping>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        let bytes = contents.len() as u64;
        let mapping = FileMapping::new(file.as_file(), bytes, Writes::Refused).unwrap();
        (file, Arc::new(mapping))
    }

    #[test]
    fn a_view_reads_its_own_bytes_and_no_others() {
        let contents: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let (_file, mapping) = mapped(&contents);
        let view = mapping.view(4090..9000).unwrap();
        let mut buffer = vec![0; 4910];
        view.read_into(0, &mut buffer).unwrap();
        assert_eq!(buffer, contents[4090..9000]);
        assert_eq!(view.read_into(1, &mut buffer).unwrap_err().errno, Errno::EINVAL);
        assert!(mapping.view(0..10_001).is_none());
    }

    #[test]
    fn what_is_written_to_copied_pages_stays_in_the_process() {
        let (file, refused) = mapped(&[7; 20_000]);
        assert_eq!(refused.view(0..4).unwrap().address_mut(), None);
        let mapping = Arc::new(FileMapping::new(file.as_file(), 20_000, Writes::Copied).unwrap());
        let view = mapping.view(5000..20_000).unwrap();
        view.bring_in().unwrap();
        // SAFETY: a byte of a mapping that this test has alone, and whose file nobody cuts.
        unsafe { view.address_mut().unwrap().write(9) };
        let mut byte = [0];
        view.read_into(0, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        // It is nobody's to give back, as nobody could bring it again.
        assert_eq!(view.reclaim().unwrap(), 0);
        view.read_into(0, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        refused.read_into(5000, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 20_000]);
    }

    #[test]
    fn a_file_cut_short_is_an_error_and_not_a_signal() {
        let (file, mapping) = mapped(&vec![1; 1 << 20]);
        file.as_file().set_len(8192).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let error = mapping.read_into(0, &mut buffer).unwrap_err();
        assert_eq!(error.errno, Errno::EFAULT);
        mapping.read_into(0, &mut buffer[..8192]).unwrap();
    }
}

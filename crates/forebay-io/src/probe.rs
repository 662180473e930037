//! What a file's storage demands of direct reads (design decision 2: asked, not guessed).

use forebay_mem::Alignment;
use nix::errno::Errno;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// Who told the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlignmentSource {
    /// `statx` with `STATX_DIOALIGN` (Linux 6.1; ext4, xfs, block devices, overlay).
    Statx,
    /// The logical block size of the device under the filesystem.
    BlockDevice,
    /// Nobody: 4096 is assumed.
    Assumed,
}

/// What direct reads must be multiples of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlignment {
    /// Alignment of the memory address.
    pub memory: Alignment,
    /// Alignment of file offset and length.
    pub offset: Alignment,
    /// Where the two come from.
    pub source: AlignmentSource,
}

/// Asks for the alignment of `file`, which lives on device `device` (as in `st_dev`).
///
/// # Errors
/// `EOPNOTSUPP` where `statx` says that this file takes no direct I/O.
pub(crate) fn direct_alignment(file: &File, device: u64) -> Result<DirectAlignment, Errno> {
    if let Some((memory, offset)) = statx_dioalign(file) {
        return match (Alignment::new(memory.into()), Alignment::new(offset.into())) {
            (Some(memory), Some(offset)) => {
                Ok(DirectAlignment { memory, offset, source: AlignmentSource::Statx })
            }
            _ => Err(Errno::EOPNOTSUPP),
        };
    }
    if let Some(block) = logical_block_bytes(device).and_then(Alignment::new) {
        let source = AlignmentSource::BlockDevice;
        return Ok(DirectAlignment { memory: block, offset: block, source });
    }
    let assumed = Alignment::FALLBACK;
    Ok(DirectAlignment { memory: assumed, offset: assumed, source: AlignmentSource::Assumed })
}

/// Memory and offset alignment as `statx` reports them, or `None` where it reports none.
fn statx_dioalign(file: &File) -> Option<(u32, u32)> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, the descriptor is open, and the kernel writes at
    // most one `statx` into `answer`, which outlives the call.
    let status = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if status != 0 {
        return None;
    }
    // SAFETY: `statx` is plain integers, all zero is a value, and the call succeeded.
    let answer = unsafe { answer.assume_init() };
    (answer.stx_mask & libc::STATX_DIOALIGN != 0)
        .then_some((answer.stx_dio_mem_align, answer.stx_dio_offset_align))
}

/// The logical block size of a block device, by its `st_dev` number, from sysfs. A partition has
/// no queue of its own: its disk's counts.
fn logical_block_bytes(device: u64) -> Option<u64> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    if major == 0 {
        return None;
    }
    let node = format!("/sys/dev/block/{major}:{minor}");
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = std::fs::read_to_string(format!("{node}/{queue}/logical_block_size")).ok()?;
        text.trim().parse().ok()
    })
}

//! What a file's storage demands of direct reads (design decision 2: asked, not guessed).

use forebay_mem::Alignment;
use nix::errno::Errno;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// What the kernel counts memory in.
const PAGE: u64 = 4096;

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

/// The logical block size of the device under a file.
fn logical_block_bytes(device: u64) -> Option<u64> {
    queue_number(device, "logical_block_size")
}

/// How the kernel reads a file ahead of those who read or touch it in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readahead {
    /// How far; `None` where sysfs does not say.
    pub window_bytes: Option<u64>,
    /// The most that one request for pages (`WILLNEED`) starts; the rest of a larger one is
    /// dropped.
    pub request_bytes: u64,
}

impl Readahead {
    /// What is assumed where nothing is known, and the kernel's default.
    const REQUEST_BYTES: u64 = 128 << 10;

    /// Asks sysfs about the disk under device `device` (as in `st_dev`).
    pub(crate) fn of(device: u64) -> Self {
        let bytes = |name| queue_number(device, name).map(|kib| kib << 10);
        let window_bytes = bytes("read_ahead_kb");
        let request_bytes = window_bytes.max(bytes("max_sectors_kb")).unwrap_or(0);
        Self { window_bytes, request_bytes: request_bytes.max(Self::REQUEST_BYTES) }
    }

    /// Whether it alone keeps a disk busy.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.window_bytes >= Some(1 << 20)
    }
}

/// The most that one request for a disk takes, of memory that lies in single pages: what is read at
/// once beyond that, the kernel splits. `None` if it has no queues to poll.
pub(crate) fn polled_bytes(device: u64) -> Option<u32> {
    if queue_number(device, "io_poll")? == 0 {
        return None;
    }
    let segments = queue_number(device, "max_segments")?.saturating_sub(1).saturating_mul(PAGE);
    let sectors = queue_number(device, "max_sectors_kb")?.saturating_mul(1 << 10);
    let bytes = segments.min(sectors) / PAGE * PAGE;
    Some(u32::try_from(bytes.max(PAGE)).unwrap_or(1 << 30))
}

/// A number from the request queue of a block device, by its `st_dev` number, from sysfs. A
/// partition has no queue of its own: its disk's counts.
fn queue_number(device: u64, name: &str) -> Option<u64> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    if major == 0 {
        return None;
    }
    let node = format!("/sys/dev/block/{major}:{minor}");
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = std::fs::read_to_string(format!("{node}/{queue}/{name}")).ok()?;
        text.trim().parse().ok()
    })
}

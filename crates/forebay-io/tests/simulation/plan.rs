//! Plans to try a schedule on.

use forebay_io::{Access, ReadSpec};
use forebay_mem::Alignment;
use proptest::prelude::*;
use std::sync::Arc;

/// A file that exists only as its bytes.
#[derive(Debug)]
pub(crate) struct SimulatedFile {
    pub(crate) contents: Vec<u8>,
    pub(crate) alignment: Alignment,
}

impl SimulatedFile {
    /// `bytes` bytes that say where in which file they stand.
    pub(crate) fn new(index: usize, bytes: usize, alignment_bytes: u64) -> Self {
        let byte = |offset: usize| (offset ^ (offset >> 8) ^ (index * 151)).to_le_bytes()[0];
        let alignment = Alignment::new(alignment_bytes).expect("a power of two");
        Self { contents: (0..bytes).map(byte).collect(), alignment }
    }
}

/// What is to be read from what into how many slots.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) files: Vec<SimulatedFile>,
    pub(crate) reads: Arc<[ReadSpec]>,
    pub(crate) slots: usize,
}

impl Plan {
    /// Of files of so many bytes and such an alignment each, and reads that are fitted to them.
    pub(crate) fn of(files: &[(usize, u64)], reads: &[RawRead], slots: usize) -> Self {
        let files: Vec<_> = (files.iter().enumerate())
            .map(|(index, &(bytes, alignment))| SimulatedFile::new(index, bytes, alignment))
            .collect();
        let reads = reads.iter().map(|raw| fit(&files, *raw)).collect();
        Self { files, reads, slots }
    }

    pub(crate) fn slot_bytes(&self) -> usize {
        self.reads.iter().map(|read| read.bytes as usize).max().unwrap_or(0)
    }
}

/// A read before it is fitted to a file: the file by a number to be reduced, the range in
/// 65536ths of the file, the access, and whether only a part of it is needed.
pub(crate) type RawRead = (usize, u16, u16, Access, bool);

/// Plans over up to three files, of up to eleven reads, with up to five slots.
pub(crate) fn plans() -> impl Strategy<Value = Plan> {
    let alignment_bytes = prop_oneof![Just(512_u64), Just(4096)];
    let file = (1_usize..20_000, alignment_bytes);
    let access = prop_oneof![
        4 => Just(Access::Direct),
        1 => Just(Access::DontCache),
        1 => Just(Access::Buffered),
        1 => Just(Access::Mapped),
    ];
    let read = (any::<usize>(), any::<u16>(), any::<u16>(), access, any::<bool>());
    let files = prop::collection::vec(file, 1..4);
    let reads = prop::collection::vec(read, 0..12);
    (files, reads, 1_usize..6).prop_map(|(files, reads, slots)| Plan::of(&files, &reads, slots))
}

/// Makes a read that a planner could have made: inside its file, and if it is direct then rounded
/// outward, perhaps past the file's end.
fn fit(files: &[SimulatedFile], (file, from, length, access, partly): RawRead) -> ReadSpec {
    let file = file % files.len();
    let file_bytes = files[file].contents.len() as u64;
    let start = (u64::from(from) * (file_bytes - 1)) >> 16;
    let end = start + 1 + ((u64::from(length) * (file_bytes - start - 1)) >> 16);
    let range = match access {
        Access::Direct => files[file].alignment.outward(start..end).expect("small numbers"),
        _ => start..end,
    };
    let bytes = range.end - range.start;
    let wanted_end = if partly { end } else { range.end };
    let need_bytes = wanted_end.min(file_bytes) - range.start;
    let narrow = |bytes: u64| u32::try_from(bytes).expect("small numbers");
    let (bytes, need_bytes) = (narrow(bytes), narrow(need_bytes));
    ReadSpec { file, offset: range.start, bytes, need_bytes, access }
}

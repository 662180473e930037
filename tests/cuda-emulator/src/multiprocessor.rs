//! What fits on a multiprocessor, by compute capability.

/// Shared memory that a block gets without asking for more.
pub(crate) const SHARED_BYTES: u32 = 48 << 10;
/// Shared memory that the driver takes of each block.
pub(crate) const SHARED_BYTES_RESERVED: u32 = 1 << 10;
/// Threads that a block has at most.
pub(crate) const BLOCK_THREADS: u32 = 1024;

/// The limits of one multiprocessor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Multiprocessor {
    pub(crate) shared_bytes: u32,
    /// Of that, what a block may have if it asks for it.
    pub(crate) shared_bytes_of_block: u32,
    pub(crate) threads: u32,
    pub(crate) blocks: u32,
}

impl Multiprocessor {
    /// By the table in the CUDA programming guide.
    pub(crate) fn of(capability: (i32, i32)) -> Self {
        let (shared_kib, of_block_kib, threads, blocks) = match capability {
            (..=6, _) => (64, 48, 2048, 32),
            (7, 5) => (64, 64, 1024, 16),
            (7, _) => (96, 96, 2048, 32),
            (8, 6) => (100, 99, 1536, 16),
            (8, 7) => (164, 163, 1536, 16),
            (8, 9) => (100, 99, 1536, 24),
            (8, _) => (164, 163, 2048, 32),
            (11, _) => (228, 227, 1536, 24),
            (12, _) => (100, 99, 1536, 24),
            _ => (228, 227, 2048, 32),
        };
        Self {
            shared_bytes: shared_kib << 10,
            shared_bytes_of_block: of_block_kib << 10,
            threads,
            blocks,
        }
    }

    /// How many blocks of so many threads and so much shared memory fit.
    pub(crate) fn blocks_that_fit(&self, threads: u32, shared_bytes: u32) -> u32 {
        let by_threads = self.threads / threads.next_multiple_of(32).max(32);
        let by_memory = self.shared_bytes / shared_bytes.saturating_add(SHARED_BYTES_RESERVED);
        by_threads.min(by_memory).min(self.blocks)
    }
}

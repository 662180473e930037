//! Memory of one device that tensors come into and go from, while others stay.

use crate::arena::{ArenaLayout, HostArena, TENSOR_ALIGNMENT};
use crate::cuda::{Context, CudaArena, PoolMemory};
use crate::error::DeviceError;
use crate::uploader::Writer;
use crossbeam_channel::Sender;
use forebay_mem::Region;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// One allocation, of which bays are taken and come back.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: Memory,
    bytes: u64,
    free: Mutex<FreeRanges>,
    returned: Sender<()>,
}

#[derive(Debug)]
enum Memory {
    Host(Arc<Region>),
    Cuda(PoolMemory),
}

/// A part of a pool's memory, of which nobody else has any. It goes back when it is dropped: an
/// arena in it holds it until its last user has let go.
#[derive(Debug)]
pub struct Bay {
    shared: Arc<Shared>,
    range: Range<u64>,
}

/// The tensors in a bay.
#[derive(Clone, Debug)]
pub enum BayArena {
    /// In ordinary memory.
    Host(Arc<HostArena>),
    /// On a CUDA device.
    Cuda(Arc<CudaArena>),
}

/// Knows whether the tensors of an arena are held by anybody: by products on a device, too.
#[derive(Clone, Debug)]
pub enum ArenaWatch {
    /// In ordinary memory.
    Host(Weak<HostArena>),
    /// On a CUDA device.
    Cuda(Weak<CudaArena>),
}

impl ArenaWatch {
    /// Whether they are.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Host(arena) => arena.strong_count() > 0,
            Self::Cuda(arena) => arena.strong_count() > 0,
        }
    }
}

impl BayArena {
    /// Watches it without holding it.
    #[must_use]
    pub fn watch(&self) -> ArenaWatch {
        match self {
            Self::Host(arena) => ArenaWatch::Host(Arc::downgrade(arena)),
            Self::Cuda(arena) => ArenaWatch::Cuda(Arc::downgrade(arena)),
        }
    }
}

impl Pool {
    /// `bytes` bytes of ordinary memory for what is called `device` in errors. Whenever a bay
    /// comes back, `returned` is told, unless it is full.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] where the system does not give that much.
    pub fn on_host(device: &str, bytes: u64, returned: Sender<()>) -> Result<Self, DeviceError> {
        let length = usize::try_from(bytes).map_err(|_| DeviceError::TooLarge)?;
        let region = Region::new(length).map_err(|source| DeviceError::OutOfMemory {
            device: device.to_owned(),
            needed_bytes: bytes,
            source,
        })?;
        Ok(Self::new(Memory::Host(Arc::new(region)), bytes, returned))
    }

    /// The same in the memory of a CUDA device.
    ///
    /// # Errors
    /// [`DeviceError::DeviceFull`], or what the driver answers.
    pub fn on_cuda(
        context: &Arc<Context>,
        bytes: u64,
        returned: Sender<()>,
    ) -> Result<Self, DeviceError> {
        let memory = PoolMemory::new(context, bytes)?;
        Ok(Self::new(Memory::Cuda(memory), bytes, returned))
    }

    fn new(memory: Memory, bytes: u64, returned: Sender<()>) -> Self {
        let free = Mutex::new(FreeRanges::all(bytes));
        Self { shared: Arc::new(Shared { memory, bytes, free, returned }) }
    }

    /// A bay of `bytes` bytes at a multiple of 256; `None` if no free range is that long now.
    #[must_use]
    pub fn take(&self, bytes: u64) -> Option<Bay> {
        let range = self.shared.free().take(bytes)?;
        Some(Bay { shared: Arc::clone(&self.shared), range })
    }

    /// What all bays together can have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.bytes
    }

    /// What no bay has now, in however many pieces.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.shared.free().ranges.values().sum()
    }

    /// The memory, where it is the machine's: for registering it with a device.
    #[must_use]
    pub fn region(&self) -> Option<&Arc<Region>> {
        match &self.shared.memory {
            Memory::Host(region) => Some(region),
            Memory::Cuda(_) => None,
        }
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, FreeRanges> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bay {
    /// Room for tensors laid out so, and the right to fill them.
    ///
    /// # Panics
    /// If tensors of the layout overlap, or it is longer than the bay: the plan would be wrong.
    #[must_use]
    pub fn arena(self, layout: &ArenaLayout) -> (BayArena, Writer) {
        assert!(layout.bytes <= self.range.end - self.range.start, "a layout longer than its bay");
        let shared = Arc::clone(&self.shared);
        match &shared.memory {
            Memory::Host(region) => {
                let (arena, writer) = HostArena::in_bay(Arc::clone(region), self, layout);
                (BayArena::Host(arena), Writer::Host(writer))
            }
            Memory::Cuda(memory) => memory.arena(self, layout),
        }
    }

    /// Where in the pool it starts.
    pub(crate) fn start(&self) -> u64 {
        self.range.start
    }
}

impl Drop for Bay {
    fn drop(&mut self) {
        self.shared.free().give_back(self.range.clone());
        // Who is told already looks at everything that has come back.
        let _ = self.shared.returned.try_send(());
    }
}

/// Free ranges by their start: none empty, none touching another.
#[derive(Debug)]
struct FreeRanges {
    /// Start and length.
    ranges: BTreeMap<u64, u64>,
}

impl FreeRanges {
    fn all(bytes: u64) -> Self {
        Self { ranges: (bytes > 0).then_some((0, bytes)).into_iter().collect() }
    }

    /// The first that is long enough.
    fn take(&mut self, bytes: u64) -> Option<Range<u64>> {
        if bytes == 0 {
            // Nothing has room in a pool that is full, too.
            return Some(0..0);
        }
        // What follows starts at a multiple of the alignment again.
        let taken = TENSOR_ALIGNMENT.up(bytes)?;
        let fits = |&(_, &free): &(&u64, &u64)| free >= bytes;
        let (&start, &free) = self.ranges.iter().find(fits)?;
        self.ranges.remove(&start);
        let taken = taken.min(free);
        if free > taken {
            self.ranges.insert(start + taken, free - taken);
        }
        Some(start..start + taken)
    }

    fn give_back(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &free)) = self.ranges.range(..start).next_back()
            && before + free == start
        {
            start = before;
            self.ranges.remove(&before);
        }
        if let Some(free) = self.ranges.remove(&end) {
            end += free;
        }
        self.ranges.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is taken and given back, no two bays overlap, and nothing is lost.
        #[test]
        fn bays_are_disjoint_and_come_back(
            steps in prop::collection::vec((any::<bool>(), 0_u64..5000), 1..200),
        ) {
            const BYTES: u64 = 16 << 10;
            let mut free = FreeRanges::all(BYTES);
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (takes, number) in steps {
                if takes {
                    if let Some(range) = free.take(number) {
                        prop_assert!(range.start % 256 == 0 && range.end <= BYTES);
                        prop_assert!(range.end - range.start >= number);
                        let apart = |other: &Range<u64>| {
                            other.start.max(range.start) >= other.end.min(range.end)
                        };
                        prop_assert!(taken.iter().all(apart));
                        taken.push(range);
                    } else {
                        prop_assert!(number > 0, "nothing takes no room");
                    }
                } else if !taken.is_empty() {
                    let index = usize::try_from(number).unwrap() % taken.len();
                    free.give_back(taken.swap_remove(index));
                }
                let in_use: u64 = taken.iter().map(|range| range.end - range.start).sum();
                prop_assert_eq!(free.ranges.values().sum::<u64>() + in_use, BYTES);
            }
            taken.into_iter().for_each(|range| free.give_back(range));
            prop_assert_eq!(free.ranges.into_iter().collect::<Vec<_>>(), [(0, BYTES)]);
        }
    }

    #[test]
    fn a_bay_comes_back_when_the_last_user_of_its_tensors_is_gone() {
        let (sender, returned) = bounded(1);
        let pool = Pool::on_host("host", 8192, sender).unwrap();
        let layout = ArenaLayout::packed([300, 5]).unwrap();
        let filler = pool.take(4096).unwrap();
        let (arena, writer) = pool.take(4096).unwrap().arena(&layout);
        assert!(pool.take(1).is_none());
        let (BayArena::Host(arena), Writer::Host(mut writer)) = (arena, writer) else {
            panic!("on the host")
        };
        writer.write(1, 0, b"12345");
        writer.publish(1);
        let user = Arc::clone(&arena);
        drop((arena, writer));
        assert_eq!(user.tensor(1), Some(&b"12345"[..]));
        assert!(returned.try_recv().is_err());
        drop(user);
        assert!(returned.try_recv().is_ok());
        let (again, _writer) = pool.take(4096).unwrap().arena(&layout);
        let BayArena::Host(again) = again else { panic!("on the host") };
        assert_eq!(again.tensor(1), None, "what was there is not handed out again");
        drop(filler);
        assert_eq!(pool.free_bytes(), 4096);
    }
}

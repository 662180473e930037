//! The memory of a load: arenas, mappings, their locks, and where each tensor is.

use super::staging::staging_shape;
use crate::error::{Error, LockBound};
use crate::loaded::{HeldPart, TensorMemory, Tensors};
use crate::options::Reclaim;
use crate::plan::{ArenaKind, ArenaPlan, Home, LentMemory, Plan, Rearranged};
use crate::resident::Resident;
use forebay_device::cuda::{Context, CudaArena, CudaWriter, HostRegistration, Memory};
use forebay_device::{DeviceError, HostArena, HostWriter, Segment, Writer};
use forebay_io::{Access, MappedRange, ReadSpec};
use forebay_mem::{
    FileMapping, LockReport, MemoryAtHand, PageLock, Place, memlock_limit_bytes, memory_at_hand,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// What GGUF puts between tensors to align them, with no room for another one.
const PADDING_BYTES_MAX: u64 = 31;

/// The mapping of each file that the plan maps.
pub(crate) type Mappings = Vec<Option<Arc<FileMapping>>>;

/// Memory for tensors, wherever it is.
#[derive(Clone, Debug)]
pub(super) enum Arena {
    Host(Arc<HostArena>),
    /// With the driver's hold on it, if the GPU needs that, and where it sees the first byte.
    Shared(Arc<HostArena>, Option<Arc<HostRegistration>>, u64),
    Cuda(Arc<CudaArena>),
}

impl Arena {
    /// The part that is the machine's memory.
    pub(super) fn host(&self) -> Option<&Arc<HostArena>> {
        match self {
            Self::Host(arena) | Self::Shared(arena, ..) => Some(arena),
            Self::Cuda(_) => None,
        }
    }
}

/// The arenas of a load, the right to fill them, and what reads fill by themselves.
pub(super) struct Arenas {
    pub(super) arenas: Vec<Arena>,
    pub(super) writers: Vec<Writer>,
    /// By read.
    pub(super) places: Vec<Option<Place>>,
}

/// The CUDA devices of a load.
pub(crate) type Contexts = BTreeMap<u32, Arc<Context>>;

/// The contexts of all devices that tensors go to.
pub(crate) fn contexts(plan: &Plan) -> Result<Contexts, Error> {
    let ordinals = plan.arenas.iter().filter_map(|arena| arena.kind.device());
    let context = |ordinal| Ok((ordinal, Context::of(ordinal).map_err(DeviceError::from)?));
    ordinals.map(context).collect()
}

/// The arena of each backend that has memory of its own.
pub(super) fn reserve_arenas(plan: &Plan, contexts: &Contexts) -> Result<Arenas, Error> {
    let mut reserved = Arenas {
        arenas: Vec::new(),
        writers: Vec::new(),
        places: plan.places.iter().map(|_| None).collect(),
    };
    for (index, planned) in plan.arenas.iter().enumerate() {
        let context = planned.kind.device().and_then(|ordinal| contexts.get(&ordinal));
        let Some(context) = context.filter(|_| !planned.kind.is_host_memory()) else {
            let writer = reserve_host(plan, index, context, &mut reserved)?;
            reserved.writers.push(Writer::Host(writer));
            continue;
        };
        let (arena, writer) = reserve_cuda(plan, planned, context)?;
        reserved.arenas.push(Arena::Cuda(arena));
        reserved.writers.push(Writer::Cuda(writer));
    }
    Ok(reserved)
}

fn reserve_host(
    plan: &Plan,
    index: usize,
    context: Option<&Arc<Context>>,
    reserved: &mut Arenas,
) -> Result<HostWriter, Error> {
    let planned = &plan.arenas[index];
    let (arena, mut writer) = match planned.kind {
        ArenaKind::LentHost => {
            HostArena::lent(&lent_to(plan, planned, LentMemory::host), &planned.layout)?
        }
        _ => HostArena::new(&planned.backend.to_string(), &planned.layout)?,
    };
    for (tensor, arrangement) in planned.arrangements.iter().enumerate() {
        if let Some(arrangement) = arrangement {
            writer.arrange(tensor, Arc::new(Rearranged(*arrangement)));
        }
    }
    let mut into: Vec<(usize, Range<u64>)> = (plan.places.iter().enumerate())
        .filter_map(|(read, place)| Some((read, place.as_ref()?)))
        .filter(|(_, place)| place.arena == index)
        .map(|(read, place)| (read, place.range.clone()))
        .collect();
    into.sort_by_key(|(_, range)| range.start);
    let ranges: Vec<_> = into.iter().map(|(_, range)| range.clone()).collect();
    for ((read, _), place) in into.into_iter().zip(writer.places(&ranges)) {
        reserved.places[read] = Some(place);
    }
    reserved.arenas.push(match context.zip(arena.region().cloned()) {
        None => Arena::Host(arena),
        Some((context, region)) => {
            // Pages that are registered are there, and lie where they lie.
            let _ = region.place_on(plan.options.numa);
            let info = plan.devices.get(&context.ordinal());
            let registered = HostRegistration::new(context, &region)
                .and_then(|registered| Ok((registered.device_address()?, Some(registered))));
            let (address, registered) = match registered {
                // It reads all memory, by the addresses that the processors use.
                Err(_) if info.is_some_and(|info| info.reads_pageable_memory) => {
                    (region.start().addr() as u64, None)
                }
                answer => answer.map_err(|it| DeviceError::driver(&context.name(), it))?,
            };
            Arena::Shared(arena, registered.map(Arc::new), address)
        }
    });
    Ok(writer)
}

fn reserve_cuda(
    plan: &Plan,
    planned: &ArenaPlan,
    context: &Arc<Context>,
) -> Result<(Arc<CudaArena>, CudaWriter), Error> {
    let memory = match planned.kind {
        ArenaKind::Lent(_) => Memory::Lent(lent_to(plan, planned, LentMemory::device)),
        _ => Memory::Own(planned.layout.clone()),
    };
    let (arena, mut writer) = CudaArena::new(context, memory).map_err(|error| match error {
        DeviceError::DeviceFull { device, needed_bytes, free_bytes } => {
            let left_out = left_out(plan, planned, free_bytes);
            Error::DeviceFull { device, needed_bytes, free_bytes, left_out }
        }
        other => other.into(),
    })?;
    for (tensor, columns) in planned.columns.iter().enumerate() {
        if let Some(columns) = columns {
            writer.take_columns(tensor, columns.clone());
        }
    }
    Ok((arena, writer))
}

/// What is lent for the tensors of an arena that is made of such memory.
fn lent_to<T>(plan: &Plan, arena: &ArenaPlan, kind: impl Fn(&LentMemory) -> Option<T>) -> Vec<T> {
    let tensors = arena.tensors.iter();
    tensors.filter_map(|tensor| plan.lent.get(tensor).and_then(&kind)).collect()
}

/// The names of the tensors that lie past what is free.
fn left_out(plan: &Plan, planned: &ArenaPlan, free_bytes: Option<u64>) -> Vec<String> {
    let tensors = plan.model.catalog().tensors();
    let free = free_bytes.unwrap_or(0);
    (planned.tensors.iter().zip(&planned.layout.tensors))
        .filter(|(_, range)| range.end > free)
        .map(|(&tensor, _)| tensors[tensor].name.clone())
        .collect()
}

/// Maps the files anew for every load: a lock holds for a mapping, and ends with its load.
pub(crate) fn map_files(plan: &Plan) -> Result<Mappings, Error> {
    let files = plan.model.files().iter().zip(&plan.files);
    files
        .map(|(file, planned)| {
            if !planned.is_mapped {
                return Ok(None);
            }
            let what = format!("{}: can't be mapped", file.path().display());
            let mapping =
                FileMapping::new(file.buffered(), file.bytes(), plan.options.mapped_writes);
            mapping.map(|mapping| Some(Arc::new(mapping))).map_err(Error::memory(what))
        })
        .collect()
}

/// Locks the mapped tensors of the cpu, if that is its mode: what is there now, the rest as it is
/// brought in. The limits speak at once, before a byte is read.
pub(super) fn lock(plan: &Plan, mappings: &Mappings) -> Result<PageLock, Error> {
    let mut lock = PageLock::default();
    let residence = &plan.residence;
    if !residence.lock {
        return Ok(lock);
    }
    let allowed = Allowed::now(plan);
    for (index, MappedRange { file, range }) in residence.ranges.iter().enumerate() {
        let room = allowed.room(index, lock.report().locked_bytes);
        if let Some(mapping) = &mappings[*file] {
            lock.lock(mapping, range.clone(), room);
        }
    }
    match lock.report() {
        LockReport { errno: Some(errno), requested_bytes, refused_bytes, .. }
            if residence.strict =>
        {
            let limit_bytes = memlock_limit_bytes();
            let bound = allowed.bound(residence.ranges.len(), requested_bytes);
            Err(Error::LockRefused { requested_bytes, refused_bytes, limit_bytes, bound, errno })
        }
        _ => Ok(lock),
    }
}

/// What may be locked, by what the kernel does not refuse but punishes: memory that is not there,
/// for which it kills, and more areas of memory than a process may have, after which nothing can
/// be mapped any more, by anybody in the process.
struct Allowed {
    memory: Option<MemoryAtHand>,
    pieces: usize,
}

impl Allowed {
    fn now(plan: &Plan) -> Self {
        /// The kernel's default, where it does not tell.
        const MAP_COUNT: usize = 65_530;
        /// What locks leave of the memory to all that is no tensor: a sixteenth, and at least this.
        const OTHERS_SHARE: u64 = 16;
        const OTHERS_BYTES_MIN: u64 = 32 << 20;
        let owned = plan.host_bytes().saturating_add(plan.staging.bytes());
        let left = |memory: MemoryAtHand| {
            let others = (memory.bytes / OTHERS_SHARE).max(OTHERS_BYTES_MIN);
            let bytes = memory.bytes.saturating_sub(owned).saturating_sub(others);
            MemoryAtHand { bytes, ..memory }
        };
        let map_count = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
        let map_count = map_count.and_then(|text| text.trim().parse().ok()).unwrap_or(MAP_COUNT);
        // A locked piece is an area of its own and makes another of what lies behind it; as many
        // again are left to the rest of the process.
        Self { memory: memory_at_hand().map(left), pieces: map_count / 4 }
    }

    /// The bytes that a piece may lock, by its number and what is locked already.
    fn room(&self, piece: usize, locked_bytes: u64) -> u64 {
        if piece >= self.pieces {
            return 0;
        }
        self.memory.map_or(u64::MAX, |memory| memory.bytes.saturating_sub(locked_bytes))
    }

    /// What the whole does not fit in.
    fn bound(&self, pieces: usize, requested_bytes: u64) -> LockBound {
        match self.memory {
            _ if pieces > self.pieces => LockBound::Pieces { most: self.pieces },
            Some(MemoryAtHand { bytes, by_cgroup }) if bytes < requested_bytes => {
                LockBound::Memory { left_bytes: bytes, by_cgroup }
            }
            _ => LockBound::Memlock,
        }
    }
}

/// By read: what of the file its copies leave behind in a mapping, to be given back.
pub(super) fn reclaimable(plan: &Plan) -> Vec<Vec<Range<u64>>> {
    if plan.options.reclaim == Reclaim::Off {
        return Vec::new();
    }
    let of_read = |(spec, segments): (&ReadSpec, &Vec<Segment>)| {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for segment in segments.iter().filter(|_| spec.access == Access::Mapped) {
            let start = spec.offset + u64::from(segment.slot_offset);
            let end = start + u64::from(segment.bytes);
            match ranges.last_mut() {
                Some(last) if start <= last.end + PADDING_BYTES_MAX => last.end = last.end.max(end),
                _ => ranges.push(start..end),
            }
        }
        ranges
    };
    plan.reads.iter().zip(plan.segments.iter()).map(of_read).collect()
}

/// The ranges that the load brings in: all of them, or those that are locked, or none.
pub(super) fn ranges_to_bring(
    plan: &Plan,
    mappings: &Mappings,
    lock: &PageLock,
) -> Vec<MappedRange> {
    let residence = &plan.residence;
    match (residence.prefetch, residence.lock) {
        (true, _) => residence.ranges.to_vec(),
        (false, false) => Vec::new(),
        (false, true) => {
            let file_of = |mapping: &Arc<FileMapping>| {
                let is_it = |it: &Option<_>| it.as_ref().is_some_and(|it| Arc::ptr_eq(it, mapping));
                mappings.iter().position(is_it)
            };
            let locked =
                lock.locked().filter_map(|(mapping, range)| Some((file_of(mapping)?, range)));
            locked.map(|(file, range)| MappedRange { file, range }).collect()
        }
    }
}

impl Tensors {
    pub(super) fn new(
        plan: &Plan,
        mappings: &Mappings,
        arenas: &[Arena],
        lock: PageLock,
        resident: Resident,
    ) -> Self {
        let catalog = plan.model.shared_catalog();
        let in_arena = |arena: usize, tensor: usize| match &arenas[arena] {
            Arena::Host(arena) => HeldPart::Host { arena: Arc::clone(arena), tensor, device: None },
            Arena::Shared(arena, registered, address) => {
                let device = Some((registered.clone(), *address));
                HeldPart::Host { arena: Arc::clone(arena), tensor, device }
            }
            Arena::Cuda(arena) => HeldPart::Cuda { arena: Arc::clone(arena), tensor },
        };
        let memory = (plan.homes.iter().zip(catalog.tensors()))
            .map(|(home, tensor)| match home {
                Home::Arena { arena, tensor } => TensorMemory::Arena {
                    part: in_arena(*arena, *tensor),
                    interleaved: plan.arenas[*arena].arrangements[*tensor],
                },
                Home::Split(home) => TensorMemory::Split {
                    parts: home
                        .parts
                        .iter()
                        .map(|&(arena, tensor)| in_arena(arena, tensor))
                        .collect(),
                    backends: home
                        .parts
                        .iter()
                        .map(|&(arena, _)| plan.arenas[arena].backend)
                        .collect(),
                    home: Arc::clone(home),
                },
                Home::Mapped => mappings[tensor.file]
                    .as_ref()
                    .and_then(|mapping| mapping.view(tensor.offset..tensor.end()))
                    .map_or(TensorMemory::Empty, TensorMemory::Mapped),
            })
            .collect();
        let reclaim = plan.options.reclaim != Reclaim::Off;
        let backends = plan.tensor_backends.clone();
        let staging = staging_shape(plan);
        Self { catalog, memory, backends, entries: None, resident, reclaim, lock, staging }
    }
}

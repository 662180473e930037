//! The memory of a load: arenas, mappings, their locks, and where each tensor is.

use crate::error::Error;
use crate::loaded::{TensorMemory, Tensors};
use crate::mode::LoadMode;
use crate::plan::{Home, Plan};
use forebay_device::{HostArena, HostWriter};
use forebay_mem::{FileMapping, LockReport, PageLock, memlock_limit_bytes};
use std::sync::Arc;

/// The mapping of each file that the plan maps.
pub(super) type Mappings = Vec<Option<Arc<FileMapping>>>;

/// The arena of each backend that has memory of its own, and the right to fill it.
pub(super) fn reserve_arenas(plan: &Plan) -> Result<(Vec<Arc<HostArena>>, Vec<HostWriter>), Error> {
    let tensors = plan.model.catalog().tensors();
    let mut reserved = (Vec::new(), Vec::new());
    for arena in &plan.arenas {
        let sizes_bytes = arena.tensors.iter().map(|&index| tensors[index].bytes);
        let (arena, writer) = HostArena::new(&arena.backend.to_string(), sizes_bytes)?;
        reserved.0.push(arena);
        reserved.1.push(writer);
    }
    Ok(reserved)
}

/// Maps the files anew for every load: a lock holds for a mapping, and ends with its load.
pub(super) fn map_files(plan: &Plan) -> Result<Mappings, Error> {
    let files = plan.model.files().iter().zip(&plan.files);
    files
        .map(|(file, planned)| {
            if !planned.is_mapped {
                return Ok(None);
            }
            let what = format!("{}: can't be mapped", file.path().display());
            let mapping = FileMapping::new(file.buffered(), file.bytes());
            mapping.map(|mapping| Some(Arc::new(mapping))).map_err(Error::memory(what))
        })
        .collect()
}

/// Locks the mapped tensors of the cpu, if that is its mode.
pub(super) fn lock(plan: &Plan, mappings: &Mappings) -> Result<(PageLock, LockReport), Error> {
    let mode = |wanted| plan.backends.iter().any(|backend| backend.mode == wanted);
    let strict = mode(LoadMode::MlockStrict);
    if !strict && !mode(LoadMode::Mlock) {
        return Ok((PageLock::default(), LockReport::default()));
    }
    let tensors = plan.model.catalog().tensors();
    let views: Vec<_> = (plan.homes.iter().zip(tensors))
        .filter(|(home, _)| **home == Home::Mapped)
        .filter_map(|(_, tensor)| mappings[tensor.file].as_ref()?.view(tensor.offset..tensor.end()))
        .collect();
    let (lock, report) = PageLock::new(&views);
    match report.errno {
        Some(errno) if strict => Err(Error::LockRefused {
            requested_bytes: report.requested_bytes,
            refused_bytes: report.refused_bytes,
            limit_bytes: memlock_limit_bytes(),
            errno,
        }),
        _ => Ok((lock, report)),
    }
}

impl Tensors {
    pub(super) fn new(
        plan: &Plan,
        mappings: &Mappings,
        arenas: &[Arc<HostArena>],
        lock: PageLock,
    ) -> Self {
        let catalog = plan.model.shared_catalog();
        let memory = (plan.homes.iter().zip(catalog.tensors()))
            .map(|(home, tensor)| match *home {
                Home::Arena { arena, tensor } => {
                    TensorMemory::Arena { arena: Arc::clone(&arenas[arena]), tensor }
                }
                Home::Mapped => mappings[tensor.file]
                    .as_ref()
                    .and_then(|mapping| mapping.view(tensor.offset..tensor.end()))
                    .map_or(TensorMemory::Empty, TensorMemory::Mapped),
            })
            .collect();
        Self::from_parts(catalog, memory, plan.tensor_backends.clone(), lock)
    }
}

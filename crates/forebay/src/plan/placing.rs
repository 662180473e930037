//! From what a policy says of each tensor to the devices and parts that there are.

use super::{Lent, LentMemory};
use crate::backend::Backend;
use crate::error::Error;
use crate::model::Model;
use crate::options::{PlaceRule, Target};
use crate::policy::Placement;
use crate::split::Split;
use forebay_device::DeviceError;
use forebay_device::cuda::{self, DeviceInfo};
use std::collections::BTreeMap;

/// Where a tensor goes, for sure.
#[derive(Clone, Debug)]
pub(super) enum Placed {
    Whole(Backend),
    /// A backend for each part.
    Split(Split, Vec<Backend>),
}

impl Placed {
    pub(super) fn backends(&self) -> &[Backend] {
        match self {
            Self::Whole(backend) => std::slice::from_ref(backend),
            Self::Split(_, backends) => backends,
        }
    }

    /// The backends with the bytes that each has of a tensor of `bytes`.
    pub(super) fn parts(&self, bytes: u64) -> Vec<(Backend, u64)> {
        match self {
            Self::Whole(backend) => vec![(*backend, bytes)],
            Self::Split(split, backends) => {
                let part = |(part, &backend): (usize, &Backend)| (backend, split.part_bytes(part));
                backends.iter().enumerate().map(part).collect()
            }
        }
    }
}

/// Cuts what is to be cut and can be; what is lent goes where the lender says.
pub(super) fn resolve(
    model: &Model,
    placements: Vec<Placement>,
    lent: &Lent,
    why: &mut Vec<String>,
) -> Vec<Placed> {
    let catalog = model.catalog();
    let mut uncut = 0_usize;
    let placed = placements.into_iter().zip(catalog.tensors()).enumerate();
    let placed = placed.map(|(index, (placement, tensor))| match (lent.get(&index), placement) {
        (Some(memory), _) => Placed::Whole(memory.backend()),
        (None, Placement::Whole(backend)) => Placed::Whole(backend),
        (None, Placement::Split(axis, mut devices)) => {
            let reordered = format!("ptd.dim_order.{}", tensor.name);
            let split = Split::new(tensor, axis, devices.len());
            match split.filter(|_| catalog.metadata().get(&reordered).is_none()) {
                Some(split) => {
                    devices.truncate(split.parts());
                    Placed::Split(split, devices)
                }
                None => {
                    uncut += 1;
                    Placed::Whole(devices[0])
                }
            }
        }
    });
    let placed = placed.collect();
    if uncut > 0 {
        why.push(format!("{uncut} tensors are no matrices and stay whole, on the first device"));
    }
    placed
}

/// What a device can hold.
pub(super) fn room_bytes(device: Backend, known: &BTreeMap<u32, DeviceInfo>) -> u64 {
    match device {
        Backend::Cuda(ordinal) => known.get(&ordinal).map_or(1, |info| info.memory_bytes),
        _ => 1,
    }
}

pub(super) fn named(devices: &[Backend]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What the driver says of all CUDA devices that are named, used or not.
pub(super) fn known_devices(
    chosen: &[Backend],
    rules: &[PlaceRule],
    lent: &Lent,
) -> Result<BTreeMap<u32, DeviceInfo>, Error> {
    let of_rule = |rule: &PlaceRule| match &rule.target {
        Target::Device => Vec::new(),
        Target::Whole(backend) => vec![*backend],
        Target::Split(_, backends) => backends.clone(),
    };
    let lent = lent.values().map(LentMemory::backend);
    let named = chosen.iter().copied().chain(rules.iter().flat_map(of_rule)).chain(lent);
    let mut known = BTreeMap::new();
    for backend in named {
        if let Backend::Cuda(ordinal) = backend
            && !known.contains_key(&ordinal)
        {
            known.insert(ordinal, cuda::device(ordinal).map_err(DeviceError::from)?);
        }
    }
    Ok(known)
}

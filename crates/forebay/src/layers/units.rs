//! The units that a stream brings: layers, and what lies before and behind them.

use super::supply::Work;
use super::tiers::UnitSize;
use crate::plan::{ArenaKind, Home, Plan};
use crate::policy::order_of_use;
use forebay_device::{ArenaLayout, Segment};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which unit a tensor belongs to, by its name. Units are used in the order of these numbers.
pub(super) type Grouping = dyn Fn(&str) -> u32 + Send + Sync;

/// What comes and goes together.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) name: String,
    /// The layer's number, if it is one.
    pub(super) layer: Option<u32>,
    /// All its tensors, in file order: those of the device first in the order of `work`.
    pub(super) tensors: Vec<usize>,
    pub(super) work: Arc<Work>,
    /// Of the tensors that are on the device.
    pub(super) device_bytes: u64,
    /// Of all.
    pub(super) bytes: u64,
}

/// The unit of each tensor, and the names of the units with the layers they are.
pub(super) struct Grouped {
    pub(super) of_tensor: Vec<usize>,
    pub(super) names: Vec<(String, Option<u32>)>,
}

impl AsRef<[usize]> for Grouped {
    fn as_ref(&self) -> &[usize] {
        &self.of_tensor
    }
}

impl Grouped {
    /// As the caller says, or layer by layer, with the embeddings before and the rest behind.
    pub(super) fn new<'a>(
        names: impl Iterator<Item = &'a str>,
        grouping: Option<&Grouping>,
    ) -> Self {
        let key = |name: &str| match grouping {
            Some(grouping) => (1, grouping(name)),
            None => order_of_use(name),
        };
        let keys: Vec<(u8, u32)> = names.map(key).collect();
        let mut units: BTreeMap<(u8, u32), usize> = keys.iter().map(|&key| (key, 0)).collect();
        units.values_mut().enumerate().for_each(|(index, unit)| *unit = index);
        let named = |(&(place, number), _): (&(u8, u32), &usize)| match place {
            0 => ("input".to_owned(), None),
            1 => (format!("layer {number}"), Some(number)),
            _ => ("output".to_owned(), None),
        };
        let of_tensor = keys.iter().map(|key| units[key]).collect();
        Self { of_tensor, names: units.iter().map(named).collect() }
    }
}

/// The units with what is read for each.
pub(super) fn units(plan: &Plan, grouped: Grouped) -> Vec<Unit> {
    let mut reads: Vec<Vec<_>> = grouped.names.iter().map(|_| Vec::new()).collect();
    for (spec, segments) in plan.reads.iter().zip(plan.segments.iter()) {
        let Some(first) = segments.first() else { continue };
        debug_assert!(segments.iter().all(|segment| segment.arena == first.arena));
        let of_arena = segments.iter().map(|segment| Segment { arena: 0, ..*segment }).collect();
        reads[plan.arenas[first.arena].unit].push((*spec, of_arena));
    }
    let catalog = plan.model.catalog();
    let unit = |(index, ((name, layer), reads))| {
        let arena = plan.arenas.iter().find(|arena| arena.unit == index);
        let (layout, on_device) = match arena {
            Some(arena) => (arena.layout.clone(), arena.tensors.clone()),
            None => (ArenaLayout::default(), Vec::new()),
        };
        let mapped = (grouped.of_tensor.iter().enumerate())
            .filter(|&(tensor, &unit)| unit == index && plan.homes[tensor] == Home::Mapped);
        let tensors: Vec<usize> =
            on_device.iter().copied().chain(mapped.map(|(tensor, _)| tensor)).collect();
        let bytes_of = |tensors: &[usize]| -> u64 {
            tensors.iter().map(|&tensor| catalog.tensors()[tensor].bytes).sum()
        };
        let (device_bytes, bytes) = (bytes_of(&on_device), bytes_of(&tensors));
        let work = Arc::new(Work { layout, tensors: on_device, reads });
        Unit { name, layer, tensors, work, device_bytes, bytes }
    };
    grouped.names.into_iter().zip(reads).enumerate().map(unit).collect()
}

impl Unit {
    pub(super) fn size(&self) -> UnitSize {
        let read_bytes = self.work.reads.iter().map(|(spec, _)| u64::from(spec.bytes)).sum();
        let (device_bytes, slots) = (self.work.layout.bytes, self.work.reads.len());
        UnitSize { device_bytes, read_bytes, slots }
    }
}

/// The one kind of memory that all units are brought into; `None` if nothing is brought anywhere.
pub(super) fn kind(plan: &Plan) -> Option<ArenaKind> {
    plan.arenas.first().map(|arena| arena.kind)
}

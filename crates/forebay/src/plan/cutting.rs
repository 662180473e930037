//! The second half of making a plan: from what is wanted of each file to its reads.

use super::build::{Builder, Request};
use super::in_place::Runs;
use super::reads::{Cut, GAP_BYTES_MAX, Shape, Wanted, cut};
use super::{Plan, PlannedPlace, facts};
use crate::backend::Backend;
use crate::mode::LoadMode;
use crate::plan::BackendPlan;
use forebay_device::Segment;
use forebay_io::{Access, ModelFile, ReadSpec};
use std::collections::BTreeMap;
use std::ops::Range;

/// A read with all that belongs to it.
struct PlannedRead {
    spec: ReadSpec,
    segments: Vec<Segment>,
    place: Option<PlannedPlace>,
}

impl Builder<'_> {
    /// Cuts what is wanted into reads, file after file, and counts them.
    pub(super) fn plan_reads(&mut self) {
        let model = self.plan.model.clone();
        let mut all: Vec<PlannedRead> = Vec::new();
        for (index, file) in model.files().iter().enumerate() {
            let reads = self.cut_file(index, file);
            let planned = &mut self.plan.files[index];
            planned.reads = reads.len();
            planned.read_bytes = reads.iter().map(|read| u64::from(read.spec.need_bytes)).sum();
            let segments = reads.iter().flat_map(|read| &read.segments);
            let wanted_bytes = segments.map(|segment| self.plan.counted_bytes(segment)).sum();
            let planned = &mut self.plan.files[index];
            planned.wanted_bytes = wanted_bytes;
            planned.access = match most_common_access(&reads) {
                Access::Direct if planned.direct_refused.is_some() => Access::DontCache,
                access => access,
            };
            all.extend(reads);
        }
        let through_slots = all.iter().filter(|read| read.place.is_none());
        let slot_bytes_max = through_slots.map(|read| read.spec.bytes.into()).max().unwrap_or(0);
        // Memory that is pinned for a device is kept for later loads, and so not cut to this one.
        if all.is_empty() || self.plan.copied_to().is_empty() {
            self.plan.staging = self.plan.staging.bounded_by(all.len(), slot_bytes_max);
        }
        self.plan.reads = all.iter().map(|read| read.spec).collect();
        self.plan.places = all.iter().map(|read| read.place.clone()).collect();
        self.plan.segments = all.into_iter().map(|read| read.segments).collect();
    }

    /// The reads of one file in file order, whatever their access.
    fn cut_file(&mut self, index: usize, file: &ModelFile) -> Vec<PlannedRead> {
        let mut reads = Vec::new();
        for access in [Access::Direct, Access::Buffered, Access::Mapped] {
            let of = |in_place: bool| -> Vec<Wanted> {
                let of =
                    |request: &&Request| request.access == access && request.in_place == in_place;
                self.requests[index].iter().filter(of).map(|it| it.wanted.clone()).collect()
            };
            let mut slotted = of(false);
            // Each arena's runs by themselves; a block that two of them touch is bounced.
            let mut by_arena: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
            for wanted in of(true) {
                by_arena.entry(wanted.arena).or_default().push(wanted);
            }
            let shape = Shape {
                file: index,
                file_bytes: file.bytes(),
                rounding: self.rounding[index],
                chunk_bytes: self.plan.staging.chunk_bytes,
                gap_bytes_max: GAP_BYTES_MAX,
            };
            while let Some((arena, placed)) = by_arena.pop_first() {
                let layout = &mut self.plan.arenas[arena].layout;
                let runs = Runs::lay_out(&placed, shape.rounding, layout);
                // The blocks of arenas that come later are theirs, but for those shared with this.
                let (own, bounced) = Runs::part(&placed, &slotted, shape.rounding);
                let others: Vec<Wanted> = by_arena.values().flatten().cloned().collect();
                let (own, shared) = Runs::part(&own, &in_order(others), shape.rounding);
                slotted.extend(bounced.into_iter().chain(shared));
                slotted = in_order(slotted);
                let cut = cut(Shape { gap_bytes_max: 0, ..shape }, access, &own);
                reads.extend(planned(cut, |spec| {
                    let start = runs.arena_offset(spec.offset);
                    Some(PlannedPlace { arena, range: start..start + u64::from(spec.bytes) })
                }));
            }
            for slotted in self.read_together(slotted) {
                reads.extend(planned(cut(shape, access, &slotted), |_| None));
            }
        }
        reads.sort_by_key(|read| read.spec.offset);
        if takes_cached_bytes(&self.plan.backends) {
            for PlannedRead { spec, .. } in &mut reads {
                let range = spec.offset..spec.offset + u64::from(spec.need_bytes);
                let known = self.plan.files[index].cached_bytes;
                if spec.access == Access::Direct && facts::is_cached(file, known, range) {
                    spec.access = Access::Buffered;
                }
            }
        }
        reads
    }
}

impl Plan {
    /// The reads of a part of a file, as tensors of the device are read, for an arena of one tensor.
    pub(crate) fn cut_piece(
        &self,
        file: usize,
        range: Range<u64>,
    ) -> Vec<(ReadSpec, Vec<Segment>)> {
        if range.is_empty() {
            return Vec::new();
        }
        let model_file = &self.model.files()[file];
        let mode = self.backends.iter().find(|planned| planned.backend != Backend::Cpu);
        let access = match mode.map(|planned| planned.mode) {
            Some(LoadMode::Mmap) if self.files[file].is_mapped => Access::Mapped,
            Some(LoadMode::None | LoadMode::Mmap) => Access::Buffered,
            _ if model_file.direct().is_err() && self.options.no_fallback => Access::Buffered,
            _ => Access::Direct,
        };
        let shape = Shape {
            file,
            file_bytes: model_file.bytes(),
            rounding: facts::rounding(model_file),
            chunk_bytes: self.staging.chunk_bytes.min(self.staging.slot_bytes),
            gap_bytes_max: 0,
        };
        let wanted = Wanted { range, tensor_offset: 0, arena: 0, tensor: 0 };
        let mut cut = cut(shape, access, &[wanted]);
        if takes_cached_bytes(&self.backends) {
            // Asked anew for each part, if the kernel tells at all.
            let known = self.files[file].cached_bytes.map(|_| 1);
            for spec in cut.reads.iter_mut().filter(|spec| spec.access == Access::Direct) {
                let range = spec.offset..spec.offset + u64::from(spec.need_bytes);
                if facts::is_cached(model_file, known, range) {
                    spec.access = Access::Buffered;
                }
            }
        }
        cut.reads.into_iter().zip(cut.segments).collect()
    }
}

impl Builder<'_> {
    /// What one read may serve: all, or each unit by itself.
    fn read_together(&self, wanted: Vec<Wanted>) -> Vec<Vec<Wanted>> {
        if self.units.is_none() {
            return vec![wanted];
        }
        let mut by_arena: BTreeMap<usize, Vec<Wanted>> = BTreeMap::new();
        for wanted in wanted {
            by_arena.entry(wanted.arena).or_default().push(wanted);
        }
        by_arena.into_values().collect()
    }
}

fn in_order(mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    wanted.sort_by_key(|wanted| wanted.range.start);
    wanted
}

fn planned(cut: Cut, place: impl Fn(&ReadSpec) -> Option<PlannedPlace>) -> Vec<PlannedRead> {
    let reads = cut.reads.into_iter().zip(cut.segments);
    reads.map(|(spec, segments)| PlannedRead { spec, segments, place: place(&spec) }).collect()
}

/// Whether direct reads are `auto`'s idea, which prefers the page cache where it serves.
fn takes_cached_bytes(backends: &[BackendPlan]) -> bool {
    let requested = |mode: LoadMode| backends.iter().any(|planned| planned.requested == mode);
    requested(LoadMode::Auto) && !requested(LoadMode::Dio)
}

/// The access that brings most of the file's bytes; `Mapped` for a file nothing is read from.
fn most_common_access(reads: &[PlannedRead]) -> Access {
    let bytes = |access: Access| -> u64 {
        let of = reads.iter().filter(|read| read.spec.access == access);
        of.map(|read| u64::from(read.spec.bytes)).sum()
    };
    [Access::Mapped, Access::Buffered, Access::Direct]
        .into_iter()
        .max_by_key(|&access| bytes(access))
        .filter(|&access| bytes(access) > 0)
        .unwrap_or(Access::Mapped)
}

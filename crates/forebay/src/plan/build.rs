//! Making a plan.

use super::placing::{Placed, known_devices, named, resolve, room_bytes};
use super::reads::Wanted;
use super::{
    ArenaKind, ArenaPlan, BackendPlan, FilePlan, Home, Lent, LentMemory, Plan, SplitHome, Staging,
    facts, repack, residence, staging,
};
use crate::backend::Backend;
use crate::error::{Error, ReadContext};
use crate::mode::LoadMode;
use crate::model::Model;
use crate::options::{EngineChoice, Options};
use crate::policy::{self, Policy};
use crate::split::{Axis, Split};
use forebay_device::cuda::DeviceInfo;
use forebay_io::{Access, FailureKind, ModelFile, Performer, ReadFailure, uring_support};
use forebay_mem::{Alignment, FileMapping};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

pub(super) fn build(
    model: &Model,
    options: &Options,
    lent: Lent,
    units: Option<&[usize]>,
) -> Result<Plan, Error> {
    let started = Instant::now();
    let devices = options.device.resolve()?;
    let known = known_devices(&devices.chosen, &options.place, &lent)?;
    let tensors = model.catalog().tensors();
    let (placements, placed_why) = policy::place(
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.bytes)),
        Policy {
            gpu_layers: options.gpu_layers,
            rules: &options.place,
            devices: &devices.chosen,
            room_bytes: &devices
                .chosen
                .iter()
                .map(|it| room_bytes(*it, &known))
                .collect::<Vec<_>>(),
            split: options.split,
        },
    );
    let mut why = vec![format!("the device is {}: {}", named(&devices.chosen), devices.why)];
    why.extend(placed_why);
    let placed = resolve(model, placements, &lent, &mut why);
    let is_used = |ordinal: &u32| {
        placed.iter().any(|placed| placed.backends().contains(&Backend::Cuda(*ordinal)))
    };
    let infos: BTreeMap<u32, DeviceInfo> =
        known.into_iter().filter(|(ordinal, _)| is_used(ordinal)).collect();
    let shared = infos.values().filter(|info| info.is_integrated);
    why.extend(shared.map(|info| {
        let (ordinal, name) = (info.ordinal, &info.name);
        format!("cuda:{ordinal} ({name}) computes in the machine's memory: reads land in place")
    }));
    why.extend(model.catalog().notices().iter().cloned());
    let mut builder = Builder::new(model, options, placed, infos, lent)?;
    builder.units = units;
    builder.plan_backends();
    builder.tell_what_changed(&mut why);
    builder.place_tensors()?;
    builder.plan_reads();
    builder.check_layout();
    builder.plan_residence(&mut why);
    builder.choose_performer(&mut why)?;
    Ok(builder.finish(why, started))
}

/// Whether a tensor that lies in memory as it does in the file can be used there: its offset is a
/// multiple of an element, or of 8 where elements are blocks of several parts.
fn is_aligned_for(tensor: &forebay_format::Tensor) -> bool {
    let element = tensor.dtype.block_bytes();
    let alignment = if tensor.dtype.block_elements() == 1 { element.min(8) } else { 8 };
    tensor.offset.is_multiple_of(alignment)
}

/// A part of a file that is to be read, and how.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) access: Access,
    /// Whether it is read to where it lives rather than through a slot.
    pub(super) in_place: bool,
    pub(super) wanted: Wanted,
}

pub(super) struct Builder<'input> {
    pub(super) options: &'input Options,
    pub(super) plan: Plan,
    placed: Vec<Placed>,
    /// Of each tensor, where units of them come and go.
    pub(super) units: Option<&'input [usize]>,
    /// What is wanted of each file, in file order.
    pub(super) requests: Vec<Vec<Request>>,
    pub(super) rounding: Vec<Alignment>,
}

impl<'input> Builder<'input> {
    fn new(
        model: &Model,
        options: &'input Options,
        placed: Vec<Placed>,
        devices: BTreeMap<u32, DeviceInfo>,
        lent: Lent,
    ) -> Result<Self, Error> {
        let files: Vec<FilePlan> = model.files().iter().map(facts::file_plan).collect();
        let rounding: Vec<Alignment> = model.files().iter().map(facts::rounding).collect();
        let coarsest = rounding.iter().copied().max().unwrap_or(Alignment::FALLBACK);
        let is_device = |memory: &LentMemory| matches!(memory, LentMemory::Device(_));
        let to_device =
            devices.values().any(|device| !device.is_integrated) || lent.values().any(is_device);
        let plan = Plan {
            model: model.clone(),
            options: options.clone(),
            backends: Vec::new(),
            files,
            homes: vec![Home::Mapped; placed.len()],
            tensor_backends: placed.iter().map(|placed| placed.backends()[0]).collect(),
            devices,
            lent,
            arenas: Vec::new(),
            reads: Arc::new([]),
            segments: Arc::new([]),
            places: Arc::new([]),
            residence: residence::Residence::default(),
            staging: Staging::new(options, coarsest, to_device)?,
            performer: Performer::Uring,
            why: Vec::new(),
            plan_time: std::time::Duration::ZERO,
        };
        let requests = vec![Vec::new(); plan.files.len()];
        Ok(Self { options, plan, placed, units: None, requests, rounding })
    }

    /// The mode of each backend that has tensors.
    fn plan_backends(&mut self) {
        let tensors = self.plan.model.catalog().tensors();
        let mut sizes: BTreeMap<Backend, (usize, u64)> = BTreeMap::new();
        for (placed, tensor) in self.placed.iter().zip(tensors) {
            for (backend, bytes) in placed.parts(tensor.bytes) {
                let (count, all) = sizes.entry(backend).or_default();
                *count += 1;
                *all += bytes;
            }
        }
        // Devices before the cpu.
        for (backend, (tensors, bytes)) in sizes.into_iter().rev() {
            let requested = self.options.load_mode.requested(backend);
            let (mode, why) = self.resolve(backend, requested);
            let planned = BackendPlan { backend, requested, mode, why, tensors, bytes };
            self.plan.backends.push(planned);
        }
    }

    /// Options that come to nothing, or to something else than was asked for.
    fn tell_what_changed(&self, why: &mut Vec<String>) {
        let has = |backend| self.plan.backends.iter().any(|planned| planned.backend == backend);
        let has_cuda = self.plan.backends.iter().any(|it| matches!(it.backend, Backend::Cuda(_)));
        for entry in self.options.load_mode.idle(has, has_cuda) {
            why.push(format!("--load-mode {entry} concerns no tensor"));
        }
        let chunk_bytes = self.plan.staging.chunk_bytes;
        if let Some(asked) = self.options.chunk_bytes.filter(|&asked| asked != chunk_bytes) {
            why.push(format!("--chunk {asked} comes to {chunk_bytes}: {}", staging::CHUNK_RULE));
        }
    }

    fn resolve(&self, backend: Backend, requested: LoadMode) -> (LoadMode, String) {
        let cached: Option<u64> = self.plan.files.iter().map(|file| file.cached_bytes).sum();
        let cached = cached.map_or("not known".to_owned(), |bytes| bytes.to_string());
        let direct = self.plan.model.files().iter().any(|file| file.direct().is_ok());
        match (backend, requested) {
            (Backend::Cpu, LoadMode::Auto) => {
                (LoadMode::Mmap, "tensors of the cpu are used where the page cache has them".into())
            }
            (_, LoadMode::Auto) if direct => (
                LoadMode::Dio,
                format!("direct reads, except where the page cache has the bytes (now: {cached})"),
            ),
            (_, LoadMode::Auto) => {
                (LoadMode::None, "no file of the model takes direct reads".to_owned())
            }
            (Backend::Host | Backend::Cuda(_), LoadMode::Mlock | LoadMode::MlockStrict) => (
                LoadMode::Mmap,
                "locking is for tensors that stay on the cpu; these are copied away".to_owned(),
            ),
            _ => (requested, "asked for".to_owned()),
        }
    }

    /// Gives every tensor its home, and notes what must be read for it.
    fn place_tensors(&mut self) -> Result<(), Error> {
        // How far each file is wanted so far: what overlaps an earlier tensor has no memory that
        // lies as the file does.
        let mut ends = vec![0; self.plan.files.len()];
        for (index, placed) in std::mem::take(&mut self.placed).into_iter().enumerate() {
            match placed {
                Placed::Whole(backend) => self.place_whole(index, backend, &mut ends)?,
                Placed::Split(split, backends) => self.place_parts(index, split, &backends)?,
            }
            let tensor = &self.plan.model.catalog().tensors()[index];
            ends[tensor.file] = ends[tensor.file].max(tensor.end());
        }
        for requests in &mut self.requests {
            requests.sort_by_key(|request| request.wanted.range.start);
        }
        Ok(())
    }

    /// The mode that was asked for `backend`, and the one it comes to.
    fn modes(&self, backend: Backend) -> (LoadMode, LoadMode) {
        let planned = self.plan.backends.iter().find(|planned| planned.backend == backend);
        planned.map_or_else(Default::default, |planned| (planned.requested, planned.mode))
    }

    fn place_whole(
        &mut self,
        index: usize,
        backend: Backend,
        ends: &mut [u64],
    ) -> Result<(), Error> {
        let model = self.plan.model.clone();
        let tensor = &model.catalog().tensors()[index];
        let (requested, mode) = self.modes(backend);
        // The lender finds the bytes as the file has them.
        let layout = (!self.plan.lent.contains_key(&index))
            .then(|| repack::layout(self.options, backend, mode, tensor))
            .flatten();
        let stays = backend == Backend::Cpu && mode.maps() && layout.is_none();
        // What is repacked is copied in any case: `auto` has no use for a mapping then.
        let copies_mapping =
            mode == LoadMode::Mmap && !(backend == Backend::Cpu && requested == LoadMode::Auto);
        let must = mode == LoadMode::MlockStrict;
        let mapped = (stays || copies_mapping)
            && self.map(tensor.file, &model.files()[tensor.file], must)?;
        if stays && mapped {
            self.plan.files[tensor.file].mapped_bytes += tensor.bytes;
            return Ok(());
        }
        let access = self.access(mapped, backend, tensor.file)?;
        let kind = self.kind(backend, index);
        let in_place = (backend == Backend::Cpu || matches!(kind, ArenaKind::Shared(_)))
            && !mapped
            && self.units.is_none()
            && layout.is_none()
            && tensor.bytes > 0
            && tensor.offset >= ends[tensor.file]
            && is_aligned_for(tensor);
        let room = (!in_place).then_some(tensor.bytes);
        let (arena, slot) = self.arena_slot(backend, kind, index, room)?;
        self.plan.arenas[arena].arrangements[slot] = layout;
        self.plan.homes[index] = Home::Arena { arena, tensor: slot };
        if tensor.bytes > 0 {
            let range = tensor.offset..tensor.end();
            let wanted = Wanted { range, tensor_offset: 0, arena, tensor: slot };
            self.requests[tensor.file].push(Request { access, in_place, wanted });
        }
        Ok(())
    }

    /// A tensor in parts is read once, as the first one's device asks.
    fn place_parts(
        &mut self,
        index: usize,
        split: Split,
        backends: &[Backend],
    ) -> Result<(), Error> {
        let model = self.plan.model.clone();
        let tensor = &model.catalog().tensors()[index];
        let mapped = self.modes(backends[0]).1 == LoadMode::Mmap
            && self.map(tensor.file, &model.files()[tensor.file], false)?;
        let access = self.access(mapped, backends[0], tensor.file)?;
        let mut parts = Vec::with_capacity(backends.len());
        for (part, &backend) in backends.iter().enumerate() {
            let kind = match (self.kind(backend, index), split.axis()) {
                // Columns are taken out of slots by copies of the device.
                (ArenaKind::Shared(ordinal), Axis::Columns) => ArenaKind::Device(ordinal),
                (kind, _) => kind,
            };
            let room = Some(split.part_bytes(part));
            let (arena, slot) = self.arena_slot(backend, kind, index, room)?;
            let columns = split.columns(part);
            self.plan.arenas[arena].counts[slot] = part == 0 || columns.is_none();
            self.plan.arenas[arena].columns[slot] = columns;
            let held = split.wanted(part);
            let range = tensor.offset + held.start..tensor.offset + held.end;
            let wanted = Wanted { range, tensor_offset: 0, arena, tensor: slot };
            self.requests[tensor.file].push(Request { access, in_place: false, wanted });
            parts.push((arena, slot));
        }
        self.plan.homes[index] = Home::Split(Arc::new(SplitHome { split, parts }));
        Ok(())
    }

    /// What memory a tensor of a backend takes.
    fn kind(&self, backend: Backend, tensor: usize) -> ArenaKind {
        match self.plan.lent.get(&tensor) {
            Some(LentMemory::Host(_)) => return ArenaKind::LentHost,
            Some(LentMemory::Device(pointer)) => return ArenaKind::Lent(pointer.ordinal()),
            None => {}
        }
        let Backend::Cuda(ordinal) = backend else { return ArenaKind::Host };
        match self.plan.devices.get(&ordinal) {
            Some(device) if device.is_integrated => ArenaKind::Shared(ordinal),
            _ => ArenaKind::Device(ordinal),
        }
    }

    fn access(&mut self, mapped: bool, backend: Backend, file: usize) -> Result<Access, Error> {
        if mapped {
            return Ok(Access::Mapped);
        }
        let (requested, mode) = self.modes(backend);
        let model = self.plan.model.clone();
        self.read_access(mode, requested, file, &model.files()[file])
    }

    /// How the tensors of a backend are read from a file. Direct reads that the open has refused
    /// are planned all the same, so that the load records the step down; unless nobody asked for
    /// them by name and steps are forbidden: then doing without is a choice.
    fn read_access(
        &mut self,
        mode: LoadMode,
        requested: LoadMode,
        index: usize,
        file: &ModelFile,
    ) -> Result<Access, Error> {
        let auto = requested == LoadMode::Auto;
        let wants_direct = mode == LoadMode::Dio || auto;
        let Err(errno) = file.direct() else {
            return Ok(if wants_direct { Access::Direct } else { Access::Buffered });
        };
        match (wants_direct, self.options.no_fallback) {
            (false, _) => Ok(Access::Buffered),
            (true, true) if auto => Ok(Access::Buffered),
            (true, true) => {
                let (access, performer) = (Access::Direct, self.plan.performer);
                let kind = FailureKind::FallbackForbidden { errno, access, performer };
                let failure = ReadFailure { file: Some(index), ..ReadFailure::general(kind) };
                let context = ReadContext { path: Some(file.path().to_owned()), tensor: None };
                Err(Error::Read { context, failure })
            }
            (true, false) => {
                self.plan.files[index].direct_refused = Some(errno);
                Ok(Access::Direct)
            }
        }
    }

    /// Whether a file can be mapped, tried once. `false` where it can't and stepping down is
    /// allowed.
    fn map(&mut self, index: usize, file: &ModelFile, must: bool) -> Result<bool, Error> {
        let planned = &mut self.plan.files[index];
        if planned.is_mapped || planned.mapping_refused.is_some() {
            return Ok(planned.is_mapped);
        }
        match FileMapping::new(file.buffered(), file.bytes(), self.options.mapped_writes) {
            Ok(_) => planned.is_mapped = true,
            Err(error) if must || self.options.no_fallback => {
                let what = format!("{}: can't be mapped", file.path().display());
                return Err(Error::Memory { what, source: error });
            }
            Err(error) => planned.mapping_refused = Some(error.errno),
        }
        Ok(planned.is_mapped)
    }

    /// A tensor's number in the arena of its backend; without `room`, that is found later.
    fn arena_slot(
        &mut self,
        backend: Backend,
        kind: ArenaKind,
        tensor: usize,
        room: Option<u64>,
    ) -> Result<(usize, usize), Error> {
        let arenas = &mut self.plan.arenas;
        let unit = self.units.map_or(0, |units| units[tensor]);
        let wanted = (backend, kind, unit);
        let is_it = |arena: &ArenaPlan| (arena.backend, arena.kind, arena.unit) == wanted;
        let arena = arenas.iter().position(is_it).unwrap_or_else(|| {
            arenas.push(ArenaPlan::new(backend, kind, unit));
            arenas.len() - 1
        });
        let planned = &mut arenas[arena];
        planned.tensors.push(tensor);
        planned.arrangements.push(None);
        planned.columns.push(None);
        planned.counts.push(true);
        match room {
            Some(bytes) => planned.layout.append(bytes)?,
            None => planned.layout.tensors.push(0..0),
        }
        Ok((arena, planned.tensors.len() - 1))
    }

    /// That every tensor has room for all of its bytes.
    fn check_layout(&self) {
        let tensors = self.plan.model.catalog().tensors();
        let room = |arena: usize, tensor: usize| {
            let range = &self.plan.arenas[arena].layout.tensors[tensor];
            range.end - range.start
        };
        for (home, tensor) in self.plan.homes.iter().zip(tensors) {
            match home {
                Home::Arena { arena, tensor: slot } => {
                    assert_eq!(room(*arena, *slot), tensor.bytes, "{}", tensor.name);
                }
                Home::Split(home) => {
                    for (part, &(arena, slot)) in home.parts.iter().enumerate() {
                        assert_eq!(room(arena, slot), home.split.part_bytes(part));
                    }
                }
                Home::Mapped => {}
            }
        }
    }

    fn choose_performer(&mut self, why: &mut Vec<String>) -> Result<(), Error> {
        let copies_mapping = self.plan.reads.iter().any(|read| read.access == Access::Mapped);
        self.plan.performer = match self.options.engine {
            EngineChoice::Threads => Performer::Threads,
            EngineChoice::TokioUring if cfg!(not(feature = "tokio-uring")) => {
                return Err(Error::option(
                    "--engine",
                    "forebay was built without the feature tokio-uring",
                    "build it with that feature, or use --engine auto",
                ));
            }
            EngineChoice::Uring | EngineChoice::UringPolled | EngineChoice::TokioUring
                if copies_mapping =>
            {
                return Err(Error::option(
                    "--engine",
                    "io_uring does not copy out of mappings, which the load mode asks for",
                    "use --engine auto, or another --load-mode for the device",
                ));
            }
            EngineChoice::Auto if copies_mapping => {
                why.push("copies out of a mapping are made by threads".to_owned());
                Performer::Threads
            }
            EngineChoice::Auto if !self.plan.model.files().iter().all(ModelFile::is_for_rings) => {
                why.push("files on FUSE are read by threads".to_owned());
                Performer::Threads
            }
            EngineChoice::Auto | EngineChoice::Uring => Performer::Uring,
            EngineChoice::UringPolled => Performer::UringPolled,
            EngineChoice::TokioUring => Performer::TokioUring,
        };
        let performer = self.plan.performer;
        self.plan.expect_performer(performer);
        for file in &mut self.plan.files {
            if let Some(errno) = file.direct_refused {
                why.push(format!("{}: direct reads are refused ({errno})", file.path.display()));
            }
            if let Some(errno) = file.mapping_refused {
                why.push(format!("{}: can't be mapped ({errno})", file.path.display()));
            }
        }
        Ok(())
    }

    fn finish(mut self, why: Vec<String>, started: Instant) -> Plan {
        self.plan.why = why;
        self.plan.plan_time = started.elapsed();
        self.plan
    }
}

impl Plan {
    /// Finds out whether the ring that is planned can be had. The plan still begins with it: that
    /// it can't is for the load to find out again and to report.
    pub(crate) fn probe_performer(&mut self) {
        if self.performer.is_ring() && !self.model.files().iter().all(ModelFile::is_for_rings) {
            self.why.push("io_uring is not used for files on FUSE: threads will read".to_owned());
            self.expect_performer(Performer::Threads);
        } else if self.performer.is_ring()
            && let Err(errno) = uring_support()
        {
            self.why.push(format!("io_uring is refused here ({errno}): threads will read"));
            self.expect_performer(Performer::Threads);
        } else if self.performer == Performer::UringPolled
            && self.model.files().iter().any(|file| file.polled_bytes().is_none())
        {
            self.why.push("the drive has no queues to poll: io_uring will wait for it".to_owned());
            self.expect_performer(Performer::Uring);
        }
    }

    fn expect_performer(&mut self, performer: Performer) {
        if performer == Performer::Threads {
            let depth = &mut self.staging.queue_depth;
            *depth = (*depth).min(forebay_io::THREADS_MAX);
        }
        for file in &mut self.files {
            file.engine = match file.access {
                Access::Mapped => "mmap",
                _ => performer.name(),
            };
        }
    }
}

//! Making a plan.

use super::reads::{Cut, Wanted, cut};
use super::{ArenaPlan, BackendPlan, FilePlan, Home, Plan, Staging, facts};
use crate::backend::Backend;
use crate::error::{Error, ReadContext};
use crate::loader::{EngineChoice, Options};
use crate::mode::LoadMode;
use crate::model::Model;
use crate::policy;
use forebay_io::{Access, FailureKind, ModelFile, Performer, ReadFailure, uring_support};
use forebay_mem::{Alignment, FileMapping};
use std::sync::Arc;
use std::time::Instant;

pub(super) fn build(model: &Model, options: &Options) -> Result<Plan, Error> {
    let started = Instant::now();
    let (device, device_why) = options.device.resolve()?;
    let tensors = model.catalog().tensors();
    let names = tensors.iter().map(|tensor| tensor.name.as_str());
    let (tensor_backends, placed_why) =
        policy::place(names, options.gpu_layers, &options.place, device);
    refuse_absent_devices(&tensor_backends, device)?;
    let mut why = vec![format!("the device is {device}: {device_why}")];
    why.extend(placed_why);
    why.extend(model.catalog().notices().iter().cloned());
    let mut builder = Builder::new(model, options, tensor_backends)?;
    builder.plan_backends();
    builder.place_tensors()?;
    builder.plan_reads();
    builder.choose_performer(&mut why)?;
    Ok(builder.finish(why, started))
}

fn refuse_absent_devices(backends: &[Backend], device: Backend) -> Result<(), Error> {
    match backends.iter().find(|&&backend| backend != Backend::Cpu && backend != device) {
        Some(other) => {
            let cause = format!("{other} is not the device of this load, which is {device}");
            Err(Error::option("--place", &cause, "place on device or cpu"))
        }
        None => Ok(()),
    }
}

struct Builder<'input> {
    options: &'input Options,
    plan: Plan,
    /// What is wanted of each file through slots, by access.
    wanted: Vec<Vec<(Access, Wanted)>>,
    rounding: Vec<Alignment>,
}

impl<'input> Builder<'input> {
    fn new(
        model: &Model,
        options: &'input Options,
        tensor_backends: Vec<Backend>,
    ) -> Result<Self, Error> {
        let files: Vec<FilePlan> = model.files().iter().map(facts::file_plan).collect();
        let rounding: Vec<Alignment> = model.files().iter().map(facts::rounding).collect();
        let coarsest = rounding.iter().copied().max().unwrap_or(Alignment::FALLBACK);
        let plan = Plan {
            model: model.clone(),
            options: options.clone(),
            backends: Vec::new(),
            files,
            homes: vec![Home::Mapped; tensor_backends.len()],
            tensor_backends,
            arenas: Vec::new(),
            reads: Arc::new([]),
            segments: Arc::new([]),
            staging: Staging::new(options, coarsest)?,
            performer: Performer::Uring,
            why: Vec::new(),
            plan_time: std::time::Duration::ZERO,
        };
        let wanted = vec![Vec::new(); plan.files.len()];
        Ok(Self { options, plan, wanted, rounding })
    }

    /// The mode of each backend that has tensors.
    fn plan_backends(&mut self) {
        let mut backends: Vec<Backend> = self.plan.tensor_backends.clone();
        backends.sort_unstable();
        backends.dedup();
        let tensors = self.plan.model.catalog().tensors();
        for backend in backends.into_iter().rev() {
            let requested = self.options.load_mode.requested(backend);
            let (mode, why) = self.resolve(backend, requested);
            let of = |&(_, &other): &(usize, &Backend)| other == backend;
            let chosen = self.plan.tensor_backends.iter().enumerate().filter(of);
            let sizes: Vec<u64> = chosen.map(|(index, _)| tensors[index].bytes).collect();
            self.plan.backends.push(BackendPlan {
                backend,
                requested,
                mode,
                why,
                tensors: sizes.len(),
                bytes: sizes.iter().sum(),
            });
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
        let model = self.plan.model.clone();
        for (index, tensor) in model.catalog().tensors().iter().enumerate() {
            let backend = self.plan.tensor_backends[index];
            let planned = self.plan.backends.iter().find(|planned| planned.backend == backend);
            let Some(planned) = planned else { continue };
            let (mode, requested) = (planned.mode, planned.requested);
            let stays = backend == Backend::Cpu
                && matches!(mode, LoadMode::Mmap | LoadMode::Mlock | LoadMode::MlockStrict);
            let mapped = matches!(mode, LoadMode::Mmap) || stays;
            let must = mode == LoadMode::MlockStrict;
            let mapped = mapped && self.map(tensor.file, &model.files()[tensor.file], must)?;
            if stays && mapped {
                self.plan.files[tensor.file].mapped_bytes += tensor.bytes;
                continue;
            }
            let access = if mapped {
                Access::Mapped
            } else {
                self.read_access(mode, requested, tensor.file, &model.files()[tensor.file])?
            };
            let (arena, slot) = self.arena_slot(backend, index);
            self.plan.homes[index] = Home::Arena { arena, tensor: slot };
            if tensor.bytes > 0 {
                let range = tensor.offset..tensor.end();
                self.wanted[tensor.file].push((access, Wanted { range, arena, tensor: slot }));
            }
        }
        Ok(())
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
        let wants_direct = mode == LoadMode::Dio || (auto && mode == LoadMode::None);
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
        match FileMapping::new(file.buffered(), file.bytes()) {
            Ok(_) => planned.is_mapped = true,
            Err(error) if must || self.options.no_fallback => {
                let what = format!("{}: can't be mapped", file.path().display());
                return Err(Error::Memory { what, source: error });
            }
            Err(error) => planned.mapping_refused = Some(error.errno),
        }
        Ok(planned.is_mapped)
    }

    fn arena_slot(&mut self, backend: Backend, tensor: usize) -> (usize, usize) {
        let arenas = &mut self.plan.arenas;
        let arena = arenas.iter().position(|arena| arena.backend == backend);
        let arena = arena.unwrap_or_else(|| {
            arenas.push(ArenaPlan { backend, tensors: Vec::new() });
            arenas.len() - 1
        });
        arenas[arena].tensors.push(tensor);
        (arena, arenas[arena].tensors.len() - 1)
    }

    /// Cuts what is wanted into reads, file after file, and counts them.
    fn plan_reads(&mut self) {
        let model = self.plan.model.clone();
        let mut reads = Vec::new();
        let mut segments = Vec::new();
        for (index, file) in model.files().iter().enumerate() {
            let cut = self.cut_file(index, file);
            let planned = &mut self.plan.files[index];
            planned.reads = cut.reads.len();
            planned.read_bytes = cut.reads.iter().map(|read| u64::from(read.need_bytes)).sum();
            planned.wanted_bytes =
                cut.segments.iter().flatten().map(|segment| u64::from(segment.bytes)).sum();
            planned.access = match most_common_access(&cut) {
                Access::Direct if planned.direct_refused.is_some() => Access::DontCache,
                access => access,
            };
            reads.extend(cut.reads);
            segments.extend(cut.segments);
        }
        self.plan.staging = self.plan.staging.bounded_by(reads.len());
        self.plan.reads = reads.into();
        self.plan.segments = segments.into();
    }

    /// The reads of one file in file order, whatever their access.
    fn cut_file(&self, index: usize, file: &ModelFile) -> Cut {
        let mut parts = Vec::new();
        for access in [Access::Direct, Access::Buffered, Access::Mapped] {
            let of = |(other, _): &&(Access, Wanted)| *other == access;
            let wanted: Vec<Wanted> =
                self.wanted[index].iter().filter(of).map(|(_, wanted)| wanted.clone()).collect();
            let (rounding, chunk) = (self.rounding[index], self.plan.staging.chunk_bytes);
            let cut = cut(index, file.bytes(), access, &wanted, rounding, chunk);
            parts.extend(cut.reads.into_iter().zip(cut.segments));
        }
        parts.sort_by_key(|(read, _)| read.offset);
        if self.takes_cached_bytes() {
            for (read, _) in &mut parts {
                let range = read.offset..read.offset + u64::from(read.need_bytes);
                let known = self.plan.files[index].cached_bytes;
                if read.access == Access::Direct && facts::is_cached(file, known, range) {
                    read.access = Access::Buffered;
                }
            }
        }
        let (reads, segments) = parts.into_iter().unzip();
        Cut { reads, segments }
    }

    /// Whether direct reads are `auto`'s idea, which prefers the page cache where it serves.
    fn takes_cached_bytes(&self) -> bool {
        let auto = |planned: &BackendPlan| planned.requested == LoadMode::Auto;
        self.plan.backends.iter().any(auto)
            && !self.plan.backends.iter().any(|planned| planned.requested == LoadMode::Dio)
    }

    fn choose_performer(&mut self, why: &mut Vec<String>) -> Result<(), Error> {
        let copies_mapping = self.plan.reads.iter().any(|read| read.access == Access::Mapped);
        self.plan.performer = match self.options.engine {
            EngineChoice::Threads => Performer::Threads,
            EngineChoice::Uring if copies_mapping => {
                return Err(Error::option(
                    "--engine",
                    "uring does not copy out of mappings, which the load mode asks for",
                    "use --engine auto, or another --load-mode for the device",
                ));
            }
            EngineChoice::Auto if copies_mapping => {
                why.push("copies out of a mapping are made by threads".to_owned());
                Performer::Threads
            }
            EngineChoice::Auto | EngineChoice::Uring => Performer::Uring,
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
    pub(super) fn probe_performer(&mut self) {
        if self.performer == Performer::Uring
            && let Err(errno) = uring_support()
        {
            self.why.push(format!("io_uring is refused here ({errno}): threads will read"));
            self.expect_performer(Performer::Threads);
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

/// The access that brings most of the file's bytes; `Mapped` for a file nothing is read from.
fn most_common_access(cut: &Cut) -> Access {
    let bytes = |access: Access| -> u64 {
        let of = cut.reads.iter().filter(|read| read.access == access);
        of.map(|read| u64::from(read.bytes)).sum()
    };
    [Access::Mapped, Access::Buffered, Access::Direct]
        .into_iter()
        .max_by_key(|&access| bytes(access))
        .filter(|&access| bytes(access) > 0)
        .unwrap_or(Access::Mapped)
}

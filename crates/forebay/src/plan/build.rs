//! Making a plan.

use super::reads::Wanted;
use super::{ArenaPlan, BackendPlan, FilePlan, Home, Plan, Staging, facts, repack, residence};
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

fn refuse_absent_devices(backends: &[Backend], device: Backend) -> Result<(), Error> {
    match backends.iter().find(|&&backend| backend != Backend::Cpu && backend != device) {
        Some(other) => {
            let cause = format!("{other} is not the device of this load, which is {device}");
            Err(Error::option("--place", &cause, "place on device or cpu"))
        }
        None => Ok(()),
    }
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
    /// What is wanted of each file, in file order.
    pub(super) requests: Vec<Vec<Request>>,
    pub(super) rounding: Vec<Alignment>,
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
            places: Arc::new([]),
            residence: residence::Residence::default(),
            staging: Staging::new(options, coarsest)?,
            performer: Performer::Uring,
            why: Vec::new(),
            plan_time: std::time::Duration::ZERO,
        };
        let requests = vec![Vec::new(); plan.files.len()];
        Ok(Self { options, plan, requests, rounding })
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
        // How far each file is wanted so far: what overlaps an earlier tensor has no memory that
        // lies as the file does.
        let mut ends = vec![0; self.plan.files.len()];
        for (index, tensor) in model.catalog().tensors().iter().enumerate() {
            let backend = self.plan.tensor_backends[index];
            let planned = self.plan.backends.iter().find(|planned| planned.backend == backend);
            let Some(planned) = planned else { continue };
            let (mode, requested) = (planned.mode, planned.requested);
            let layout = repack::layout(self.options, backend, mode, tensor);
            let stays = backend == Backend::Cpu && mode.maps() && layout.is_none();
            // What is repacked is copied in any case: `auto` has no use for a mapping then.
            let copies_mapping =
                mode == LoadMode::Mmap && !(backend == Backend::Cpu && requested == LoadMode::Auto);
            let must = mode == LoadMode::MlockStrict;
            let mapped = (stays || copies_mapping)
                && self.map(tensor.file, &model.files()[tensor.file], must)?;
            if stays && mapped {
                self.plan.files[tensor.file].mapped_bytes += tensor.bytes;
                continue;
            }
            let access = if mapped {
                Access::Mapped
            } else {
                self.read_access(mode, requested, tensor.file, &model.files()[tensor.file])?
            };
            let in_place = backend == Backend::Cpu
                && !mapped
                && layout.is_none()
                && tensor.bytes > 0
                && tensor.offset >= ends[tensor.file]
                && is_aligned_for(tensor);
            ends[tensor.file] = ends[tensor.file].max(tensor.end());
            let (arena, slot) = self.arena_slot(backend, index, in_place)?;
            self.plan.arenas[arena].arrangements[slot] = layout;
            self.plan.homes[index] = Home::Arena { arena, tensor: slot };
            if tensor.bytes > 0 {
                let range = tensor.offset..tensor.end();
                let wanted = Wanted { range, tensor_offset: 0, arena, tensor: slot };
                self.requests[tensor.file].push(Request { access, in_place, wanted });
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

    /// A tensor's number in the arena of its backend; `is_laid_out` if its room is found later.
    fn arena_slot(
        &mut self,
        backend: Backend,
        tensor: usize,
        is_laid_out_later: bool,
    ) -> Result<(usize, usize), Error> {
        let bytes = self.plan.model.catalog().tensors()[tensor].bytes;
        let arenas = &mut self.plan.arenas;
        let arena = arenas.iter().position(|arena| arena.backend == backend);
        let arena = arena.unwrap_or_else(|| {
            arenas.push(ArenaPlan::new(backend));
            arenas.len() - 1
        });
        let planned = &mut arenas[arena];
        planned.tensors.push(tensor);
        planned.arrangements.push(None);
        if is_laid_out_later {
            planned.layout.tensors.push(0..0);
        } else {
            planned.layout.append(bytes)?;
        }
        Ok((arena, planned.tensors.len() - 1))
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

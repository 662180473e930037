//! Making a plan.

use super::reads::{Cut, Wanted, cut};
use super::{ArenaPlan, BackendPlan, FilePlan, Home, Plan, Staging};
use crate::backend::Backend;
use crate::error::Error;
use crate::loader::{EngineChoice, Options};
use crate::mode::LoadMode;
use crate::model::Model;
use crate::policy;
use forebay_io::{Access, ModelFile, Performer, cache};
use forebay_mem::{Alignment, FileMapping};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// From this share of a read's pages on, `auto` takes them from the page cache.
const CACHED_SHARE: (u64, u64) = (3, 4);

/// Reads are rounded to this at least: a page is what storage and page cache count in.
const ROUNDING_BYTES_MIN: u64 = 4096;

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
        let files: Vec<FilePlan> = model.files().iter().map(empty_file_plan).collect();
        let rounding: Vec<Alignment> = model.files().iter().map(rounding).collect();
        let coarsest = rounding.iter().copied().max().unwrap_or(Alignment::FALLBACK);
        let plan = Plan {
            model: model.clone(),
            options: options.clone(),
            backends: Vec::new(),
            mappings: vec![None; files.len()],
            files,
            homes: vec![Home::Mapped; tensor_backends.len()],
            tensor_backends,
            arenas: Vec::new(),
            reads: Arc::new([]),
            segments: Vec::new(),
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
        let cached: u64 = self.plan.files.iter().filter_map(|file| file.cached_bytes).sum();
        let direct = self.plan.model.files().iter().any(|file| file.direct().is_ok());
        match (backend, requested) {
            (Backend::Cpu, LoadMode::Auto) => {
                (LoadMode::Mmap, "tensors of the cpu are used where the page cache has them".into())
            }
            (_, LoadMode::Auto) if direct => (
                LoadMode::Dio,
                format!("direct reads, except where the page cache has the bytes ({cached} now)"),
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
            let mapped = mapped && self.map(tensor.file, &model.files()[tensor.file])?;
            if stays && mapped {
                self.plan.files[tensor.file].mapped_bytes += tensor.bytes;
                continue;
            }
            let access = if mapped {
                Access::Mapped
            } else {
                self.read_access(mode, requested, tensor.file, &model.files()[tensor.file])
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

    fn read_access(
        &mut self,
        mode: LoadMode,
        requested: LoadMode,
        index: usize,
        file: &ModelFile,
    ) -> Access {
        match (mode, file.direct()) {
            (LoadMode::Dio, Ok(_)) => Access::Direct,
            // Nobody asked for direct reads by name: doing without is a choice, no step down.
            (LoadMode::Dio, Err(_)) if requested == LoadMode::Auto && self.options.no_fallback => {
                Access::Buffered
            }
            (LoadMode::Dio, Err(errno)) => {
                self.plan.files[index].direct_refused = Some(errno);
                Access::Direct
            }
            (LoadMode::None, Err(errno)) if requested == LoadMode::Auto => {
                if !self.options.no_fallback {
                    self.plan.files[index].direct_refused = Some(errno);
                    return Access::Direct;
                }
                Access::Buffered
            }
            _ => Access::Buffered,
        }
    }

    /// Maps a file once. `false` where it can't be mapped and stepping down is allowed.
    fn map(&mut self, index: usize, file: &ModelFile) -> Result<bool, Error> {
        if self.plan.mappings[index].is_some() {
            return Ok(true);
        }
        if self.plan.files[index].mapping_refused.is_some() {
            return Ok(false);
        }
        match FileMapping::new(file.buffered(), file.bytes()) {
            Ok(mapping) => {
                self.plan.mappings[index] = Some(Arc::new(mapping));
                Ok(true)
            }
            Err(error) if self.options.no_fallback => {
                let what = format!("{}: can't be mapped", file.path().display());
                Err(Error::Memory { what, source: error })
            }
            Err(error) => {
                self.plan.files[index].mapping_refused = Some(error.errno);
                Ok(false)
            }
        }
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
        for (index, file) in model.files().iter().enumerate() {
            let cut = self.cut_file(index, file);
            let planned = &mut self.plan.files[index];
            planned.reads = cut.reads.len();
            planned.read_bytes = cut.reads.iter().map(|read| u64::from(read.need_bytes)).sum();
            planned.wanted_bytes =
                cut.segments.iter().flatten().map(|segment| u64::from(segment.bytes)).sum();
            planned.access = most_common_access(&cut);
            reads.extend(cut.reads);
            self.plan.segments.extend(cut.segments);
        }
        self.plan.staging = self.plan.staging.bounded_by(reads.len());
        self.plan.reads = reads.into();
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
                if read.access == Access::Direct && self.is_cached(index, file, range) {
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

    fn is_cached(&self, index: usize, file: &ModelFile, range: Range<u64>) -> bool {
        match self.plan.files[index].cached_bytes {
            None | Some(0) => false,
            Some(all) if all >= file.bytes() => true,
            Some(_) => {
                let bytes = range.end - range.start;
                let (share, of) = CACHED_SHARE;
                cache::cached_bytes(file.buffered(), range)
                    .is_ok_and(|cached| cached.saturating_mul(of) >= bytes.saturating_mul(share))
            }
        }
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
        for file in &mut self.plan.files {
            file.engine = match file.access {
                Access::Mapped => "mmap",
                _ => performer.name(),
            };
        }
        Ok(())
    }

    fn finish(mut self, why: Vec<String>, started: Instant) -> Plan {
        self.plan.why = why;
        self.plan.plan_time = started.elapsed();
        self.plan
    }
}

fn empty_file_plan(file: &ModelFile) -> FilePlan {
    FilePlan {
        path: file.path().to_owned(),
        engine: "mmap",
        access: Access::Mapped,
        dio_align: file.direct().ok().map(|(_, alignment)| alignment.offset.bytes()),
        reads: 0,
        read_bytes: 0,
        wanted_bytes: 0,
        mapped_bytes: 0,
        cached_bytes: cache::cached_bytes(file.buffered(), 0..file.bytes())
            .ok()
            .map(|bytes| bytes.min(file.bytes())),
        direct_refused: None,
        mapping_refused: None,
    }
}

fn rounding(file: &ModelFile) -> Alignment {
    let least = Alignment::new(ROUNDING_BYTES_MIN).unwrap_or(Alignment::FALLBACK);
    file.direct().map_or(least, |(_, alignment)| alignment.offset.max(alignment.memory).max(least))
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

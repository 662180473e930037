//! What happened, as data. Field names are the command line's JSON, which scripts rely on.

use crate::error::Error;
use crate::model::Model;
use crate::pipeline::Outcome;
use crate::plan::{BackendPlan, FilePlan, Plan};
use forebay_device::cuda::DeviceInfo;
use forebay_io::{Access, ByAccess, Step};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The model in four numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct ModelSummary {
    pub format: forebay_format::Format,
    pub files: usize,
    pub tensors: usize,
    pub bytes: u64,
}

impl ModelSummary {
    /// Of an opened model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let catalog = model.catalog();
        Self {
            format: catalog.format(),
            files: catalog.files().len(),
            tensors: catalog.tensors().len(),
            bytes: catalog.bytes(),
        }
    }
}

/// A backend: what was asked, what was done, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct BackendReport {
    pub backend: String,
    pub requested: &'static str,
    pub mode: &'static str,
    pub why: String,
    pub tensors: usize,
    pub bytes: u64,
}

/// One step down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct FallbackReport {
    pub from: &'static str,
    pub to: &'static str,
    /// The errno's name, `EINVAL`.
    pub errno: String,
    /// `open`, `read` or `setup`.
    pub at: &'static str,
    /// The file offset of the read that was refused.
    pub offset: Option<u64>,
    pub reason: String,
}

impl From<&Step> for FallbackReport {
    fn from(step: &Step) -> Self {
        Self {
            from: step.from.name(),
            to: step.to.name(),
            errno: format!("{:?}", step.errno),
            at: step.at.name(),
            offset: step.offset,
            reason: step.reason.clone(),
        }
    }
}

/// A file: how it was read in the end, and what was refused on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct FileReport {
    pub path: String,
    pub engine: &'static str,
    pub access: &'static str,
    /// What direct reads of it are aligned to, in bytes.
    pub dio_align: Option<u64>,
    pub cached_bytes_before: Option<u64>,
    /// Bytes by the access that brought them; tensors used in their mapping count as `mmap`.
    pub bytes_by_access: BTreeMap<&'static str, u64>,
    pub fallbacks: Vec<FallbackReport>,
}

/// The reader's side.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct ReadReport {
    pub bytes: u64,
    pub ops: u64,
    pub resubmitted: u64,
    pub seconds: f64,
    pub gib_per_s: f64,
    pub registered_buffers: bool,
    pub registered_files: bool,
}

/// The uploader's side.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct UploadReport {
    pub bytes: u64,
    pub copies: u64,
    /// Time in which at least one copy was under way.
    pub seconds: f64,
    pub gib_per_s: f64,
    /// Whether devices copied from pinned memory; `null` where none copied.
    pub pinned: Option<bool>,
    /// Why not.
    pub pin_refused: Option<String>,
    /// Whether an earlier load of the process had paid for the pinning.
    pub staging_reused: bool,
}

/// A CUDA device of the load.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named as in the contract")]
pub struct DeviceReport {
    pub backend: String,
    pub name: String,
    /// Whether it is an emulation: rates then say nothing about hardware.
    pub emulated: bool,
    pub numa_node: Option<u32>,
}

/// Who waited for whom.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct StallReport {
    /// The reader had nothing in flight because no slot was free.
    pub reader_waited_s: f64,
    /// The uploader had nothing to copy.
    pub uploader_waited_s: f64,
}

/// Where the time went, from the first open on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct TimeReport {
    /// From opening to the last byte placed.
    pub total_s: f64,
    pub open_s: f64,
    pub plan_s: f64,
    /// What making CUDA devices ready added to that: contexts, memory, pinning.
    pub device_s: f64,
    /// From opening to the first tensor that was brought and is whole.
    pub first_tensor_s: f64,
}

/// What memory it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct MemoryReport {
    pub staging_bytes: u64,
    /// Of the whole process, up to now; 0 where `/proc` does not say.
    pub peak_rss_bytes: u64,
    /// Bytes of mapped pages that were brought in, and waited for, before the load ended.
    pub prefetched_bytes: u64,
    /// Of the pages that were to be brought in, bytes that were in memory at the end (`mincore`).
    pub resident_bytes: u64,
    pub locked_bytes: u64,
    pub lock_refused_bytes: u64,
    /// The errno of the first refusal.
    pub lock_errno: Option<String>,
    pub reclaimed_bytes: u64,
    /// Bytes of tensors that were interleaved for the CPU's matrix products.
    pub repacked_bytes: u64,
    /// Bytes that were read to where they live and not copied.
    pub in_place_bytes: u64,
    /// What placing memory on NUMA nodes came to; empty where nobody asked.
    pub numa: Vec<String>,
}

/// The prefetch of tensors that stay mapped.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named as in the other reports")]
pub struct PrefetchReport {
    pub bytes: u64,
    pub seconds: f64,
    pub gib_per_s: f64,
}

/// What a load did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct LoadReport {
    pub model: ModelSummary,
    pub backends: Vec<BackendReport>,
    /// The CUDA devices among them.
    pub devices: Vec<DeviceReport>,
    pub files: Vec<FileReport>,
    pub read: ReadReport,
    pub upload: UploadReport,
    pub stall: StallReport,
    pub time: TimeReport,
    pub memory: MemoryReport,
    pub prefetch: PrefetchReport,
    /// The reasons of the plan, one sentence each.
    pub why: Vec<String>,
    /// sha256 by tensor; filled by [`LoadReport::add_digests`].
    pub digests: BTreeMap<String, String>,
}

/// A file of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct PlannedFile {
    pub path: String,
    pub engine: &'static str,
    pub access: &'static str,
    pub dio_align: Option<u64>,
    pub reads: usize,
    pub read_bytes: u64,
    pub wanted_bytes: u64,
    pub mapped_bytes: u64,
    pub cached_bytes: Option<u64>,
}

/// A plan as `forebay plan --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "named by the contract")]
pub struct PlanReport {
    pub model: ModelSummary,
    pub backends: Vec<BackendReport>,
    pub files: Vec<PlannedFile>,
    pub staging_bytes: u64,
    pub chunk_bytes: u64,
    pub queue_depth: usize,
    pub why: Vec<String>,
}

impl PlanReport {
    pub(crate) fn new(plan: &Plan) -> Self {
        let planned = |file: &FilePlan| PlannedFile {
            path: file.path.display().to_string(),
            engine: file.engine,
            access: file.access.name(),
            dio_align: file.dio_align,
            reads: file.reads,
            read_bytes: file.read_bytes,
            wanted_bytes: file.wanted_bytes,
            mapped_bytes: file.mapped_bytes,
            cached_bytes: file.cached_bytes,
        };
        Self {
            model: ModelSummary::of(&plan.model),
            backends: plan.backends.iter().map(BackendReport::from).collect(),
            files: plan.files.iter().map(planned).collect(),
            staging_bytes: plan.staging.bytes(),
            chunk_bytes: plan.staging.chunk_bytes,
            queue_depth: plan.staging.queue_depth,
            why: plan.why.clone(),
        }
    }
}

impl From<&BackendPlan> for BackendReport {
    fn from(plan: &BackendPlan) -> Self {
        Self {
            backend: plan.backend.to_string(),
            requested: plan.requested.name(),
            mode: plan.mode.name(),
            why: plan.why.clone(),
            tensors: plan.tensors,
            bytes: plan.bytes,
        }
    }
}

impl From<&DeviceInfo> for DeviceReport {
    fn from(device: &DeviceInfo) -> Self {
        Self {
            backend: format!("cuda:{}", device.ordinal),
            name: device.name.clone(),
            emulated: device.is_emulated,
            numa_node: device.numa_node,
        }
    }
}

impl LoadReport {
    pub(crate) fn new(plan: &Plan, outcome: &Outcome) -> Self {
        let Outcome { read, upload, prefetch, lock, .. } = outcome;
        let (ops, resubmitted) = read.schedule.op_counts();
        let files: Vec<FileReport> =
            (0..plan.files.len()).map(|index| file_report(plan, outcome, index)).collect();
        let read_bytes = (0..files.len()).map(|file| read.schedule.received(file).total()).sum();
        let before = outcome.before;
        Self {
            model: ModelSummary::of(&plan.model),
            backends: plan.backends.iter().map(BackendReport::from).collect(),
            devices: plan.devices.values().map(DeviceReport::from).collect(),
            files,
            read: ReadReport {
                bytes: read_bytes,
                ops,
                resubmitted,
                seconds: read.stats.elapsed.as_secs_f64(),
                gib_per_s: gib_per_s(read_bytes, read.stats.elapsed),
                registered_buffers: read.stats.registered_buffers,
                registered_files: read.stats.registered_files,
            },
            upload: UploadReport {
                bytes: upload.copied_bytes,
                copies: upload.copies,
                seconds: upload.busy.as_secs_f64(),
                gib_per_s: gib_per_s(upload.copied_bytes, upload.busy),
                pinned: outcome.pinning.as_ref().map(|pinning| pinning.refusal.is_none()),
                pin_refused: (outcome.pinning.as_ref())
                    .and_then(|pinning| pinning.refusal.as_ref().map(ToString::to_string)),
                staging_reused: outcome.pinning.as_ref().is_some_and(|pinning| pinning.is_reused),
            },
            stall: StallReport {
                reader_waited_s: read.stats.waited_for_slot.as_secs_f64(),
                uploader_waited_s: upload.waited_for_read.as_secs_f64(),
            },
            time: TimeReport {
                total_s: (before + outcome.run_time).as_secs_f64(),
                open_s: plan.model.open_time().as_secs_f64(),
                plan_s: plan.plan_time.as_secs_f64(),
                device_s: outcome.device_time.as_secs_f64(),
                first_tensor_s: (before + outcome.first_time).as_secs_f64(),
            },
            memory: MemoryReport {
                staging_bytes: plan.staging.bytes(),
                peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
                prefetched_bytes: prefetch.populated_bytes,
                resident_bytes: prefetch.resident_bytes,
                locked_bytes: lock.locked_bytes,
                lock_refused_bytes: lock.refused_bytes,
                lock_errno: lock.errno.map(|errno| format!("{errno:?}")),
                reclaimed_bytes: read.stats.reclaimed_bytes,
                repacked_bytes: repacked_bytes(plan),
                in_place_bytes: upload.in_place_bytes,
                numa: outcome.numa.clone(),
            },
            prefetch: PrefetchReport {
                bytes: prefetch.populated_bytes,
                seconds: prefetch.elapsed.as_secs_f64(),
                gib_per_s: gib_per_s(prefetch.populated_bytes, prefetch.elapsed),
            },
            why: plan.why.clone(),
            digests: BTreeMap::new(),
        }
    }

    /// Adds the digests of a loaded model.
    ///
    /// # Errors
    /// As [`crate::Loaded::digests`].
    pub fn add_digests(&mut self, loaded: &crate::Loaded) -> Result<(), Error> {
        self.digests = loaded.digests()?;
        Ok(())
    }
}

fn repacked_bytes(plan: &Plan) -> u64 {
    let tensors = plan.model.catalog().tensors();
    (plan.arenas.iter())
        .flat_map(|arena| arena.tensors.iter().zip(&arena.arrangements))
        .filter(|(_, arrangement)| arrangement.is_some())
        .map(|(&tensor, _)| tensors[tensor].bytes)
        .sum()
}

fn file_report(plan: &Plan, outcome: &Outcome, index: usize) -> FileReport {
    let schedule = &outcome.read.schedule;
    let (planned, received) = (&plan.files[index], schedule.received(index));
    let mut bytes_by_access = BTreeMap::new();
    for access in Access::ALL {
        let in_place = if access == Access::Mapped { planned.mapped_bytes } else { 0 };
        let bytes = received.get(access) + in_place;
        if bytes > 0 {
            bytes_by_access.insert(access.name(), bytes);
        }
    }
    let access = final_access(&received).unwrap_or(planned.access);
    let engine = match (access, schedule.performer()) {
        (Access::Mapped, _) => Access::Mapped.name(),
        (_, performer) => performer.name(),
    };
    // A step of the whole load is told with every file that was read by what it concerns.
    let is_read = received.total() > 0 || planned.reads > 0;
    let concerns = |step: &&Step| step.file.map_or(is_read, |file| file == index);
    FileReport {
        path: planned.path.display().to_string(),
        engine,
        access: access.name(),
        dio_align: planned.dio_align,
        cached_bytes_before: planned.cached_bytes,
        bytes_by_access,
        fallbacks: (schedule.steps().iter().filter(concerns))
            .chain(outcome.prefetch.steps.iter().filter(|step| step.file == Some(index)))
            .map(FallbackReport::from)
            .collect(),
    }
}

/// The access that brought most of what was read.
fn final_access(received: &ByAccess) -> Option<Access> {
    let most = Access::ALL.into_iter().rev().max_by_key(|&access| received.get(access))?;
    (received.get(most) > 0).then_some(most)
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn gib_per_s(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { bytes as f64 / (1_u64 << 30) as f64 / time.as_secs_f64() }
}

/// The most memory this process ever had resident: `VmHWM` of `/proc/self/status`.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

//! What a stream or a fetcher may do on this machine, and with how much of it.

use super::running::Target;
use super::tiers::{Room, Split, UnitSize};
use super::units::{Unit, kind};
use crate::backend::Backend;
use crate::error::Error;
use crate::loaded::HeldPart;
use crate::mode::LoadMode;
use crate::model::Model;
use crate::options::{Options, Prefetch, Reclaim, Repack};
use crate::pipeline::{Contexts, Mappings, contexts, map_files};
use crate::plan::{Home, Plan};
use crate::warm_up::WarmUp;
use forebay_device::cuda::HostRegistration;
use forebay_device::{BayArena, DeviceError};
use forebay_mem::memory_at_hand;
use std::path::Path;
use std::sync::Arc;

/// Of a GPU's free memory, `auto` leaves this much to what is no weight.
const DEVICE_SHARE_LEFT: u64 = 10;
/// Of the memory at hand, `auto` takes this much for a host tier, and for a stand-in device.
const HOST_SHARE: u64 = 2;

/// Where a GPU finds the arena's memory if it computes in the machine's: the driver's hold on it, if it
/// needs one, and the address of the first byte.
pub(super) type HostDevice = Option<(Option<Arc<HostRegistration>>, u64)>;

/// A tensor of an arena, for those who use it.
pub(super) fn hold(arena: &BayArena, tensor: usize, host_device: &HostDevice) -> HeldPart {
    match arena {
        BayArena::Host(arena) => {
            HeldPart::Host { arena: Arc::clone(arena), tensor, device: host_device.clone() }
        }
        BayArena::Cuda(arena) => HeldPart::Cuda { arena: Arc::clone(arena), tensor },
    }
}

/// A model whose files are open, and the device that parts of it come to and go from.
pub(super) struct Ground {
    pub(super) plan: Arc<Plan>,
    pub(super) contexts: Contexts,
    pub(super) target: Target,
    pub(super) mappings: Mappings,
    /// Of staging, without those that keep what they hold.
    staging_slots: usize,
}

impl Ground {
    /// Opens and plans, with the unit of each tensor as `units` says, and makes the device ready
    /// meanwhile.
    pub(super) fn open<Units: AsRef<[usize]>>(
        path: &Path,
        options: &Options,
        units: impl FnOnce(&Model) -> Units,
    ) -> Result<(Self, Units), Error> {
        let warm_up = WarmUp::begin(options);
        let model = Model::open(path)?;
        let units = units(&model);
        let plan = Plan::for_stream(&model, options, units.as_ref())?;
        check(&plan)?;
        let _ready = warm_up.finish();
        let contexts = contexts(&plan)?;
        let target = Target::new(kind(&plan), &contexts)?;
        let mappings = map_files(&plan)?;
        let (staging_slots, plan) = (plan.staging.slots, Arc::new(plan));
        Ok((Self { plan, contexts, target, mappings, staging_slots }, units))
    }

    /// Gives staging so many slots more, which keep what they hold.
    pub(super) fn hold_slots(&mut self, held: usize) {
        Arc::make_mut(&mut self.plan).staging.slots = self.staging_slots + held;
    }

    /// Bytes that weights may take on the device and on the host, as given or as there is room.
    pub(super) fn budgets(&self, given: (Option<u64>, Option<u64>)) -> Result<(u64, u64), Error> {
        let at_hand = || memory_at_hand().map_or(u64::MAX, |memory| memory.bytes);
        let device = match (given.0, &self.target) {
            (Some(bytes), _) => bytes,
            (None, Target::Cuda(context)) => {
                let memory = context.memory_bytes();
                let (free, _) =
                    memory.map_err(|refusal| DeviceError::driver(&context.name(), refusal))?;
                free - free / DEVICE_SHARE_LEFT
            }
            (None, _) => at_hand() / HOST_SHARE,
        };
        let everything = self.plan.model.catalog().bytes();
        let host = given.1.unwrap_or_else(|| (at_hand() / HOST_SHARE).min(everything));
        Ok((device, host))
    }

    /// What these budgets are room for.
    pub(super) fn room(&self, (device_bytes, host_bytes): (u64, u64)) -> Room {
        let slots = host_bytes / self.plan.staging.slot_bytes.max(1);
        Room { device_bytes, host_slots: usize::try_from(slots).unwrap_or(usize::MAX) }
    }
}

/// What a stream can't do.
fn check(plan: &Plan) -> Result<(), Error> {
    if plan.arenas.iter().any(|arena| arena.backend == Backend::Cpu) {
        return Err(Error::option(
            "--load-mode",
            "tensors of the cpu stay mapped while others stream",
            "leave cpu at auto or mmap, without --repack",
        ));
    }
    let options = &plan.options;
    for (option, is_asked) in [
        ("--repack", options.repack == Repack::On),
        ("--prefetch", options.prefetch == Prefetch::On),
        ("--reclaim", options.reclaim == Reclaim::On),
    ] {
        if is_asked {
            let cause = "what comes and goes is neither repacked nor prefetched nor given back so";
            return Err(Error::option(option, cause, "leave it out"));
        }
    }
    let locks = |mode| matches!(mode, LoadMode::Mlock | LoadMode::MlockStrict);
    if plan.backends.iter().any(|backend| locks(backend.mode)) {
        return Err(Error::option(
            "--load-mode",
            "a stream locks no tensors of the cpu",
            "leave cpu at auto or mmap",
        ));
    }
    let kinds = plan.arenas.iter().map(|arena| arena.kind);
    let is_one = plan.arenas.first().is_none_or(|first| kinds.clone().all(|it| it == first.kind));
    let is_split = plan.homes.iter().any(|home| matches!(home, Home::Split(_)));
    if !is_one || is_split {
        return Err(Error::option(
            "--device",
            "layers are streamed to one device",
            "name one device, and place tensors there or on the cpu",
        ));
    }
    Ok(())
}

pub(super) fn too_small(budget_bytes: u64, units: &[Arc<Unit>], sizes: &[UnitSize]) -> Error {
    let least_bytes = Split::least_bytes(sizes);
    let largest = units.iter().zip(sizes).max_by_key(|(_, size)| size.device_bytes);
    let layer = largest.map_or_else(String::new, |(unit, _)| unit.name.clone());
    Error::Budget { budget_bytes, least_bytes, layer }
}

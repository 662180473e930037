//! Which products cuBLASLt makes, and on what memory.

use super::choice::{Choice, DenseProducts, Operand};
use super::compute::ComputeStream;
use super::cublaslt::{Plan, Shape, WORKSPACE_BYTES};
use super::kernels::{self, ROUNDED_COLUMNS};
use super::memory::DeviceMemory;
use super::operands::{Weights, allocate};
use crate::error::DeviceError;
use std::sync::Arc;

/// From this compute capability on, there is a kernel that rounds inputs.
const ROUNDING_CAPABILITY: (u32, u32) = (8, 0);

/// What multiplies.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) choice: Choice,
    /// Where it is cuBLASLt, what that is told.
    pub(super) plan: Option<Arc<Plan>>,
}

/// What cuBLASLt works in, one stream's.
#[derive(Debug, Default)]
pub(super) enum Workspace {
    /// Nobody has asked for it yet.
    #[default]
    None,
    Of(DeviceMemory),
    /// The device has no room for it.
    NoRoom,
}

impl Decision {
    /// That cuBLASLt has no room to work in.
    fn without_room(self) -> Self {
        let why = format!("the device has no {WORKSPACE_BYTES} bytes free for it");
        Self { choice: self.choice.without_library(why.into()), plan: None }
    }
}

impl Weights {
    /// What multiplies with `batch` inputs, and why; `None` if nothing on the device does. (A stream
    /// that has no room for cuBLASLt to work in takes a kernel that is built in all the same, and
    /// says so.)
    ///
    /// # Errors
    /// What the driver answers.
    pub fn choose(
        &self,
        batch: usize,
        dense: DenseProducts,
    ) -> Result<Option<Choice>, DeviceError> {
        let capability = super::query::device(self.context().ordinal())?.compute_capability;
        Ok(decide(self, batch, dense, capability).map(|decision| decision.choice))
    }
}

/// Who multiplies; a kernel that is built in wherever cuBLASLt can't.
fn decide(
    weights: &Weights,
    batch: usize,
    dense: DenseProducts,
    capability: (u32, u32),
) -> Option<Decision> {
    let choice = kernels::choose(weights.dtype, capability, batch)?;
    let (_, columns) = weights.shape();
    let asked = dense.asks_for(weights.dtype, batch).filter(|_| columns > 0);
    let Some(operand) = asked else { return Some(Decision { choice, plan: None }) };
    Some(match plan(weights, operand, batch, capability) {
        Ok(plan) => {
            let choice = choice.by_library(plan.version(), operand, batch);
            Decision { choice, plan: Some(plan) }
        }
        Err(why) => Decision { choice: choice.without_library(why), plan: None },
    })
}

/// What cuBLASLt does; else why it does nothing.
fn plan(
    weights: &Weights,
    operand: Operand,
    batch: usize,
    capability: (u32, u32),
) -> Result<Arc<Plan>, Arc<str>> {
    if operand != Operand::F32 && capability < ROUNDING_CAPABILITY {
        let (major, minor) = ROUNDING_CAPABILITY;
        let name = operand.name();
        return Err(format!("inputs are rounded to {name} from {major}.{minor} on").into());
    }
    let library = weights.context().cublaslt()?;
    let batch = u32::try_from(batch).map_err(|_| "too many inputs")?;
    let (_, columns) = weights.shape();
    let stride = stride(operand, columns);
    let shape = Shape::new(operand, weights.shape(), batch, stride, weights.address);
    library.plan(weights.context(), shape)
}

/// Elements from one input to the next, as they come or as they are rounded.
pub(super) fn stride(operand: Operand, columns: u32) -> u32 {
    match operand {
        Operand::F32 => columns,
        Operand::F16 | Operand::Bf16 => columns.next_multiple_of(ROUNDED_COLUMNS),
    }
}

impl ComputeStream {
    /// Who multiplies, as far as it is known whether there is room for cuBLASLt to work in.
    pub(super) fn decide(&self, weights: &Weights, batch: usize) -> Option<Decision> {
        let decision = decide(weights, batch, self.dense, self.capability)?;
        let needs_room = decision.plan.as_ref().is_some_and(|plan| plan.workspace_bytes > 0);
        let has_none = needs_room && matches!(self.workspace, Workspace::NoRoom);
        Some(if has_none { decision.without_room() } else { decision })
    }

    /// The same, with that room made; a kernel that is built in where there is none.
    pub(super) fn with_room(&mut self, decision: Decision) -> Result<Decision, DeviceError> {
        Ok(match &decision.plan {
            Some(plan) if !self.make_room_for(plan)? => decision.without_room(),
            _ => decision,
        })
    }

    /// Makes room for cuBLASLt to work in, if the plan asks for any; whether there is.
    pub(super) fn make_room_for(&mut self, plan: &Plan) -> Result<bool, DeviceError> {
        if plan.workspace_bytes == 0 {
            return Ok(true);
        }
        if matches!(self.workspace, Workspace::None) {
            self.workspace = match allocate(self.context(), WORKSPACE_BYTES) {
                Ok(Some(memory)) => Workspace::Of(memory),
                Ok(None) | Err(DeviceError::DeviceFull { .. }) => Workspace::NoRoom,
                Err(error) => return Err(error),
            };
        }
        Ok(matches!(self.workspace, Workspace::Of(_)))
    }

    /// Queues a product by cuBLASLt.
    ///
    /// # Safety
    /// The addresses are of weights, inputs and outputs of the plan's shape on this device, which
    /// nobody else writes and whose owners are kept until the stream has come past.
    pub(super) unsafe fn queue_by_library(
        &self,
        plan: &Plan,
        operands: [u64; 3],
    ) -> Result<(), DeviceError> {
        let context = self.context();
        let library = context.cublaslt().expect("a plan is of a library that serves");
        let workspace = match &self.workspace {
            Workspace::Of(memory) => memory.address(),
            Workspace::None | Workspace::NoRoom => 0,
        };
        let device = || context.name();
        let entered = context.enter();
        let _entered = entered.map_err(|refusal| DeviceError::driver(&device(), refusal))?;
        // SAFETY: the caller's promise for the operands; the workspace is `self`'s, of
        // `WORKSPACE_BYTES` bytes if the plan asks for any (`with_room`), used by one product of
        // this stream after the other, and freed only after the stream has been waited for.
        let queued = unsafe { library.queue(plan, operands, workspace, self.stream()) };
        queued.map_err(|refusal| DeviceError::Library { device: device(), refusal })
    }
}

//! Inputs rounded for tensor cores, once a product.

use super::compute::ComputeStream;
use super::kernels::{ROUNDED_COLUMNS, ROUNDING_THREADS};
use super::operands::{DeviceFloats, allocate};
use crate::error::DeviceError;
use std::ffi::c_void;

impl ComputeStream {
    /// Makes room for rounded inputs. May wait for all that is queued, and let go of what it uses:
    /// to be called before anything of the product is kept.
    pub(super) fn make_rounding_room(
        &mut self,
        columns: u32,
        batch: u32,
    ) -> Result<(), DeviceError> {
        let bytes = 2 * columns.next_multiple_of(ROUNDED_COLUMNS) as usize * batch as usize;
        if self.rounded.as_ref().is_none_or(|(_, room)| *room < bytes) {
            // What is queued may still read the old ones.
            self.synchronize()?;
            self.rounded = None;
            self.rounded = allocate(self.context(), bytes)?.map(|memory| (memory, bytes));
        }
        Ok(())
    }

    /// Queues the rounding of the inputs, for which there is room, and says where they will be.
    pub(super) fn round(
        &mut self,
        operand: &str,
        x: &DeviceFloats,
        columns: u32,
        batch: u32,
    ) -> Result<u64, DeviceError> {
        let padded = columns.next_multiple_of(ROUNDED_COLUMNS);
        let rounded = self.rounded.as_ref().map_or(0, |(memory, _)| memory.address());
        let entry = if operand == "f16" { "activations_f16" } else { "activations_bf16" };
        let function = self.context().function("activations.compute_80.ptx", entry, 0)?;
        let (mut from, mut to, mut k) = (x.address(), rounded, columns);
        let mut parameters: [*mut c_void; 3] =
            [(&raw mut from).cast(), (&raw mut to).cast(), (&raw mut k).cast()];
        let grid = (padded.div_ceil(2 * ROUNDING_THREADS), batch);
        // SAFETY: the parameters are those of this kernel; `x` has `batch` rows of `columns`
        // floats, which the stream keeps, and its own target room for as many padded ones.
        unsafe { self.launch(function, grid, ROUNDING_THREADS, 0, &mut parameters) }?;
        Ok(rounded)
    }
}

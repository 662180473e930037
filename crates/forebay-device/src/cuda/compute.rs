//! Products on a device, and the stream to queue them on.

use super::context::Context;
use super::error::DriverRefusal;
use super::kernels::{self, Choice, ROUNDED_COLUMNS, ROUNDING_THREADS};
use super::memory::DeviceMemory;
use super::module::Function;
use super::operands::{DeviceFloats, Owner, Weights, allocate};
use super::stream::{Event, Stream};
use crate::error::DeviceError;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

/// How many owners of memory a stream holds before it waits.
const USED_MAX: usize = 1 << 14;

/// A queue of products for one device. Each waits for those before it on the same stream. What it
/// reads and writes lives until it has come past it; results are there after
/// [`ComputeStream::synchronize`] or [`ComputeStream::download`].
#[derive(Debug)]
pub struct ComputeStream {
    /// Dropped first: waits for what is queued, which uses all the rest.
    stream: Draining,
    capability: (u32, u32),
    /// Inputs rounded for tensor cores, and the room there is for them.
    rounded: Option<(DeviceMemory, usize)>,
    /// What is queued uses these.
    used: Vec<Owner>,
}

/// A stream that is waited for when it is dropped.
#[derive(Debug)]
struct Draining(Stream);

impl Drop for Draining {
    fn drop(&mut self) {
        // After an error nothing runs any more.
        let _ = self.0.synchronize();
    }
}

impl ComputeStream {
    /// A stream of the device. Kernels are compiled by the driver when they are first used.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        let device = super::query::device(context.ordinal())?;
        let stream = Stream::new(context);
        let stream = stream.map_err(|refusal| DeviceError::driver(&context.name(), refusal))?;
        Ok(Self {
            stream: Draining(stream),
            capability: device.compute_capability,
            rounded: None,
            used: Vec::new(),
        })
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        self.stream.0.context()
    }

    /// The kernel that serves weights of `dtype` and `batch` inputs here; `None` if none does.
    #[must_use]
    pub fn choose(&self, dtype: &str, batch: usize) -> Option<Choice> {
        kernels::choose(dtype, self.capability, batch)
    }

    fn refused(&self, refusal: DriverRefusal) -> DeviceError {
        DeviceError::driver(&self.context().name(), refusal)
    }

    /// Copies `from` to the device, and waits for that.
    ///
    /// # Panics
    /// If the lengths differ.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn upload(&mut self, from: &[f32], to: &mut DeviceFloats) -> Result<(), DeviceError> {
        assert_eq!(from.len(), to.len(), "as many numbers as there is room for");
        if from.is_empty() {
            return Ok(());
        }
        let context = Arc::clone(self.context());
        let _entered = context.enter().map_err(|refusal| self.refused(refusal))?;
        let (bytes, stream) = (size_of_val(from), self.stream.0.handle());
        // SAFETY: both sides have these bytes and are borrowed until the copy has ended, below.
        let code = unsafe {
            (context.driver().calls.cuMemcpyHtoDAsync_v2)(
                to.address(),
                from.as_ptr().cast(),
                bytes,
                stream,
            )
        };
        let queued = context.driver().check("cuMemcpyHtoDAsync", code);
        let done = self.synchronize();
        queued.map_err(|refusal| self.refused(refusal)).and(done)
    }

    /// Copies numbers back from the device, after all that was queued before, and waits for that.
    ///
    /// # Panics
    /// If the lengths differ.
    ///
    /// # Errors
    /// What the driver answers, also about what was queued before.
    pub fn download(&mut self, from: &DeviceFloats, to: &mut [f32]) -> Result<(), DeviceError> {
        assert_eq!(from.len(), to.len(), "as many numbers as there are");
        if to.is_empty() {
            return self.synchronize();
        }
        let context = Arc::clone(self.context());
        let _entered = context.enter().map_err(|refusal| self.refused(refusal))?;
        let (bytes, stream) = (size_of_val(to), self.stream.0.handle());
        // SAFETY: as in `upload`; every pattern of bits is an `f32`.
        let code = unsafe {
            (context.driver().calls.cuMemcpyDtoHAsync_v2)(
                to.as_mut_ptr().cast(),
                from.address(),
                bytes,
                stream,
            )
        };
        let queued = context.driver().check("cuMemcpyDtoHAsync", code);
        let done = self.synchronize();
        queued.map_err(|refusal| self.refused(refusal)).and(done)
    }

    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// What the driver answers: faults of kernels show here.
    pub fn synchronize(&mut self) -> Result<(), DeviceError> {
        let done = self.stream.0.synchronize();
        self.used.clear();
        done.map_err(|refusal| self.refused(refusal))
    }

    /// Queues `y[b][m] = Σ w[m][k] · x[b][k]` for `batch` inputs of `columns` floats each, and says
    /// which kernel was chosen. It does not wait: `y` means nothing before
    /// [`ComputeStream::synchronize`] or [`ComputeStream::download`] has returned, and `x` is not to be written to
    /// through another stream until then.
    ///
    /// # Panics
    /// If anything is on another device, or `x` or `y` of another length than the product needs.
    ///
    /// # Errors
    /// [`DeviceError::NoKernel`] for types and batches that none serves; [`DeviceError::Compiler`]
    /// where the driver refuses the kernel; what it answers to the launch.
    pub fn matmul(
        &mut self,
        weights: &Weights,
        x: &DeviceFloats,
        batch: usize,
        y: &mut DeviceFloats,
    ) -> Result<Option<Choice>, DeviceError> {
        let (rows, columns) = weights.shape();
        let lengths = (columns as usize * batch, rows as usize * batch);
        assert_eq!((x.len(), y.len()), lengths, "{rows} x {columns}, {batch} inputs");
        let here = self.context().ordinal();
        let ordinals = [weights.context(), x.context(), y.context()].map(|it| it.ordinal());
        assert_eq!(ordinals, [here; 3], "all on the stream's device");
        if y.is_empty() {
            return Ok(None);
        }
        let choice = self.choose(weights.dtype, batch).filter(|_| columns > 0);
        let choice = choice.ok_or_else(|| DeviceError::NoKernel {
            device: self.context().name(),
            dtype: weights.dtype.to_owned(),
            batch,
        })?;
        let batch = u32::try_from(batch).map_err(|_| DeviceError::TooLarge)?;
        let kernel = choice.kernel;
        let (ptx, entry, shared) = (kernel.ptx, kernel.entry, kernel.dynamic_shared_bytes);
        let function = self.context().function(ptx, entry, shared)?;
        if self.used.len() > USED_MAX {
            // Whoever never waits would hold all that was ever used.
            self.synchronize()?;
        }
        self.used.push(weights.owner.clone());
        self.used.extend([x.owner(), y.owner()].into_iter().flatten());
        let x = match kernel.inputs {
            "f32" => x.address(),
            operand => self.round(operand, x, columns, batch)?,
        };
        let (mut w, mut x, mut y) = (weights.address, x, y.address());
        let (mut m, mut k, mut batch_of) = (rows, columns, batch);
        let mut row_bytes = weights.row_bytes;
        let mut parameters: [*mut c_void; 7] = [
            (&raw mut w).cast(),
            (&raw mut x).cast(),
            (&raw mut y).cast(),
            (&raw mut m).cast(),
            (&raw mut k).cast(),
            (&raw mut row_bytes).cast(),
            (&raw mut batch_of).cast(),
        ];
        let grid = (rows.div_ceil(kernel.rows), batch.div_ceil(kernel.columns));
        // SAFETY: the parameters are those of the kernels' one signature; the memory is the
        // caller's promise, and what was rounded is `self`'s.
        unsafe {
            self.launch(
                function,
                grid,
                kernel.threads,
                kernel.dynamic_shared_bytes,
                &mut parameters,
            )
        }?;
        Ok(Some(choice))
    }

    /// Queues the rounding of the inputs for tensor cores, and says where they will be.
    fn round(
        &mut self,
        operand: &str,
        x: &DeviceFloats,
        columns: u32,
        batch: u32,
    ) -> Result<u64, DeviceError> {
        let padded = columns.next_multiple_of(ROUNDED_COLUMNS);
        let bytes = 2 * padded as usize * batch as usize;
        if self.rounded.as_ref().is_none_or(|(_, room)| *room < bytes) {
            // What is queued may still read the old ones.
            self.synchronize()?;
            self.rounded = None;
            self.rounded = allocate(self.context(), bytes)?.map(|memory| (memory, bytes));
        }
        let rounded = self.rounded.as_ref().map_or(0, |(memory, _)| memory.address());
        let entry = if operand == "f16" { "activations_f16" } else { "activations_bf16" };
        let function = self.context().function("activations.compute_80.ptx", entry, 0)?;
        let (mut from, mut to, mut k) = (x.address(), rounded, columns);
        let mut parameters: [*mut c_void; 3] =
            [(&raw mut from).cast(), (&raw mut to).cast(), (&raw mut k).cast()];
        let grid = (padded.div_ceil(2 * ROUNDING_THREADS), batch);
        // SAFETY: the parameters are those of this kernel; `x` has `batch` rows of `columns`
        // floats, and the target room for as many padded ones.
        unsafe { self.launch(function, grid, ROUNDING_THREADS, 0, &mut parameters) }?;
        Ok(rounded)
    }

    /// # Safety
    /// The parameters are the kernel's, and what they point to on the device lives until the
    /// stream has come past the launch.
    unsafe fn launch(
        &self,
        function: Function,
        grid: (u32, u32),
        threads: u32,
        dynamic_shared_bytes: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), DeviceError> {
        let context = self.context();
        let refused = |refusal| self.refused(refusal);
        let _entered = context.enter().map_err(refused)?;
        // SAFETY: the caller's promise; the driver copies the parameters before it returns.
        let code = unsafe {
            (context.driver().calls.cuLaunchKernel)(
                function.0,
                grid.0,
                grid.1,
                1,
                threads,
                1,
                1,
                dynamic_shared_bytes,
                self.stream.0.handle(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        context.driver().check("cuLaunchKernel", code).map_err(refused)
    }

    /// How long the device takes for what `queue` queues on the stream, by its own clock.
    ///
    /// # Errors
    /// What `queue` or the driver answers.
    pub fn time(
        &mut self,
        queue: impl FnOnce(&mut Self) -> Result<(), DeviceError>,
    ) -> Result<Duration, DeviceError> {
        let context = Arc::clone(self.context());
        let refused = |refusal| DeviceError::driver(&context.name(), refusal);
        let (begin, end) = (Event::timed(&context), Event::timed(&context));
        let (begin, end) = (begin.map_err(refused)?, end.map_err(refused)?);
        begin.record(&self.stream.0).map_err(refused)?;
        queue(self)?;
        end.record(&self.stream.0).map_err(refused)?;
        end.synchronize().map_err(refused)?;
        end.since(&begin).map_err(refused)
    }

    /// Queues a copy within the device's memory: what its memory gives at most.
    ///
    /// # Panics
    /// If the lengths differ.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn copy(&mut self, from: &DeviceFloats, to: &mut DeviceFloats) -> Result<(), DeviceError> {
        assert_eq!(from.len(), to.len(), "as many numbers as there is room for");
        if from.is_empty() {
            return Ok(());
        }
        let context = Arc::clone(self.context());
        let _entered = context.enter().map_err(|refusal| self.refused(refusal))?;
        let (bytes, stream) = (4 * from.len(), self.stream.0.handle());
        self.used.extend([from.owner(), to.owner()].into_iter().flatten());
        // SAFETY: both have these bytes, and are kept in `used` until the stream has come past.
        let code = unsafe {
            (context.driver().calls.cuMemcpyDtoDAsync_v2)(
                to.address(),
                from.address(),
                bytes,
                stream,
            )
        };
        let queued = context.driver().check("cuMemcpyDtoDAsync", code);
        queued.map_err(|refusal| self.refused(refusal))
    }
}

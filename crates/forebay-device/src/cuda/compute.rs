//! Products on a device, and the stream to queue them on.

use super::choice::{Choice, DenseProducts};
use super::context::Context;
use super::dense::{Decision, Workspace};
use super::error::DriverRefusal;
use super::kernels::{self, Kernel};
use super::memory::DeviceMemory;
use super::module::Function;
use super::operands::{DeviceFloats, Owner, Weights};
use super::retiring::Retiring;
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
    pub(super) capability: (u32, u32),
    pub(super) dense: DenseProducts,
    /// Inputs rounded for tensor cores, and the room there is for them.
    pub(super) rounded: Option<(DeviceMemory, usize)>,
    pub(super) workspace: Workspace,
    /// What is queued uses these.
    used: Vec<Owner>,
    /// Lets go of what was used, if somebody has asked for that.
    retiring: Option<Retiring>,
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
        Self::with_dense(context, DenseProducts::default())
    }

    /// The same, with a say in who multiplies by dense weights.
    ///
    /// # Errors
    /// As [`ComputeStream::new`].
    pub fn with_dense(context: &Arc<Context>, dense: DenseProducts) -> Result<Self, DeviceError> {
        let device = super::query::device(context.ordinal())?;
        let stream = Stream::new(context);
        let stream = stream.map_err(|refusal| DeviceError::driver(&context.name(), refusal))?;
        Ok(Self {
            stream: Draining(stream),
            capability: device.compute_capability,
            dense,
            rounded: None,
            workspace: Workspace::default(),
            used: Vec::new(),
            retiring: None,
        })
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        self.stream.0.context()
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream.0
    }

    /// What multiplies these weights with `batch` inputs here; `None` if nothing does.
    #[must_use]
    pub fn choose(&self, weights: &Weights, batch: usize) -> Option<Choice> {
        self.decide(weights, batch).map(|decision| decision.choice)
    }

    /// The kernel that is built in for weights of `dtype` and `batch` inputs here.
    pub(super) fn choose_kernel(&self, dtype: &str, batch: usize) -> Option<Choice> {
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
    /// what was chosen to multiply. It does not wait: `y` means nothing before
    /// [`ComputeStream::synchronize`] or [`ComputeStream::download`] has returned, and `x` is not to be written to
    /// through another stream until then.
    ///
    /// # Panics
    /// If anything is on another device, or `x` or `y` of another length than the product needs.
    ///
    /// # Errors
    /// [`DeviceError::NoKernel`] for types and batches that none serves; [`DeviceError::Compiler`]
    /// where the driver refuses the kernel; [`DeviceError::Library`] where cuBLASLt refuses what it
    /// had an algorithm for; what the driver answers to the launch.
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
        let decision = self.decide(weights, batch);
        let decision = decision.filter(|_| columns > 0).ok_or_else(|| DeviceError::NoKernel {
            device: self.context().name(),
            dtype: weights.dtype.to_owned(),
            batch,
        })?;
        let batch = u32::try_from(batch).map_err(|_| DeviceError::TooLarge)?;
        let Decision { choice, plan } = self.with_room(decision)?;
        let rounds_to = Some(choice.inputs()).filter(|inputs| *inputs != "f32");
        if rounds_to.is_some() {
            self.make_rounding_room(columns, batch)?;
        }
        self.keep([Some(weights.owner.clone()), x.owner(), y.owner()])?;
        let inputs = match rounds_to {
            Some(operand) => self.round(operand, x, columns, batch)?,
            None => x.address(),
        };
        let operands = [weights.address, inputs, y.address()];
        match (plan, choice.kernel()) {
            (None, Some(kernel)) => self.queue_by_kernel(kernel, weights, operands, batch)?,
            // SAFETY: the plan was made for these weights and so many inputs, which lie as it has
            // them; the stream keeps all of it (above), and what was rounded is its own.
            (Some(plan), _) => unsafe { self.queue_by_library(&plan, operands) }?,
            (None, None) => unreachable!("who multiplies is a kernel or a library with a plan"),
        }
        Ok(Some(choice))
    }

    /// Keeps what the next work uses, until the stream has come past that.
    pub(super) fn keep(
        &mut self,
        owners: impl IntoIterator<Item = Option<Owner>>,
    ) -> Result<(), DeviceError> {
        if self.used.len() > USED_MAX {
            // Whoever never waits would hold all that was ever used.
            self.synchronize()?;
        }
        self.used.extend(owners.into_iter().flatten());
        Ok(())
    }

    /// Queues a product by a kernel that is built in, of what is kept.
    fn queue_by_kernel(
        &self,
        kernel: &'static Kernel,
        weights: &Weights,
        [mut w, mut x, mut y]: [u64; 3],
        mut batch: u32,
    ) -> Result<(), DeviceError> {
        let Kernel { ptx, entry, dynamic_shared_bytes, threads, .. } = *kernel;
        let function = self.context().function(ptx, entry, dynamic_shared_bytes)?;
        let (mut m, mut k) = weights.shape();
        let mut row_bytes = weights.row_bytes;
        let grid = (m.div_ceil(kernel.rows), batch.div_ceil(kernel.columns));
        let mut parameters: [*mut c_void; 7] = [
            (&raw mut w).cast(),
            (&raw mut x).cast(),
            (&raw mut y).cast(),
            (&raw mut m).cast(),
            (&raw mut k).cast(),
            (&raw mut row_bytes).cast(),
            (&raw mut batch).cast(),
        ];
        // SAFETY: the parameters are those of the kernels' one signature; the memory is kept until
        // the stream has come past, and what was rounded is `self`'s.
        unsafe { self.launch(function, grid, threads, dynamic_shared_bytes, &mut parameters) }
    }

    /// # Safety
    /// The parameters are the kernel's, and what they point to on the device lives until the
    /// stream has come past the launch.
    pub(super) unsafe fn launch(
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

    /// Lets go of weights and vectors that are in use by what has been queued so far, as soon as the
    /// device has come past it: without waiting here for that, which
    /// [`ComputeStream::synchronize`] does.
    ///
    /// # Errors
    /// What the driver answers, or the system where it gives no thread to wait on.
    pub fn retire(&mut self) -> Result<(), DeviceError> {
        if self.used.is_empty() {
            return Ok(());
        }
        if self.retiring.is_none() {
            self.retiring = Some(Retiring::new(self.context().ordinal())?);
        }
        let Some(retiring) = &self.retiring else { return Ok(()) };
        let kept = retiring.keep(&self.stream.0, &mut self.used);
        kept.map_err(|refusal| self.refused(refusal))
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
        self.keep([from.owner(), to.owner()])?;
        let context = Arc::clone(self.context());
        let _entered = context.enter().map_err(|refusal| self.refused(refusal))?;
        let (bytes, stream) = (4 * from.len(), self.stream.0.handle());
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

//! Computing on tensors that are in the CPU's reach, wherever they lie.

use crate::error::Error;
use crate::loaded::{PlacedWeights, Tensor};
use forebay_compute::{ComputeError, MatmulError, Operand, Shape, WeightBytes, dequantize};
use forebay_device::cuda::{
    Choice as KernelChoice, ComputeStream, DenseProducts, DeviceFloats, Weights,
};
use forebay_mem::{MemoryError, Operation};
use std::ops::Range;
use std::sync::Arc;

pub(crate) use forebay_compute::Interleaved;

/// Elements converted at a time: whole blocks of every type, and little enough to stay in the
/// processor's cache.
const PIECE_ELEMENTS: usize = 64 << 10;

/// Rows and columns of matrices that are in memory.
#[allow(clippy::cast_possible_truncation, reason = "bounded by a shape of `usize`")]
fn inside(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// Weights that are copied out piece by piece: of a mapped file, by the kernel, so that a file that
/// is cut short is an error; and of a device's memory, which this CPU does not see.
struct CopiedOut<'tensor>(&'tensor Tensor);

impl WeightBytes for CopiedOut<'_> {
    type Error = Error;

    fn size_bytes(&self) -> usize {
        usize::try_from(self.0.bytes()).unwrap_or(usize::MAX)
    }

    fn read<'a>(
        &'a self,
        range: Range<usize>,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        scratch.resize(range.len(), 0);
        self.0.read_into(range.start as u64, scratch)?;
        Ok(scratch)
    }
}

impl Tensor {
    /// The matrix that its elements make: all outer dimensions are rows, the innermost is columns.
    ///
    /// # Errors
    /// [`Error::Compute`] for scalars and vectors, and for tensors whose elements do not lie in the
    /// order of their shape (`ptd.dim_order.*` in the metadata).
    pub fn matrix_shape(&self) -> Result<Shape, Error> {
        let reordered = format!("ptd.dim_order.{}", self.name());
        if self.catalog().metadata().get(&reordered).is_some() {
            return Err(self.no_matrix("its elements lie in another order than its shape's"));
        }
        let Some((columns, rows)) = self.shape().split_last().filter(|(_, rows)| !rows.is_empty())
        else {
            return Err(self.no_matrix("it has fewer than two dimensions"));
        };
        let rows = rows.iter().try_fold(1_u64, |product, &rows| product.checked_mul(rows));
        let rows = rows.and_then(|rows| usize::try_from(rows).ok());
        match rows.zip(usize::try_from(*columns).ok()) {
            Some((rows, columns)) => Ok(Shape { rows, columns }),
            None => Err(self.no_matrix("it is larger than the address space")),
        }
    }

    /// Whether its elements are numbers that products take: of every dense and every block type of
    /// floats, but not of integers.
    #[must_use]
    pub fn is_numeric(&self) -> bool {
        forebay_compute::can_decode(self.dtype())
    }

    fn no_matrix(&self, cause: &str) -> Error {
        Error::NoMatrix { tensor: self.name().to_owned(), cause: cause.to_owned() }
    }

    fn compute(&self) -> impl Fn(ComputeError) -> Error + '_ {
        |source| Error::Compute { tensor: self.name().to_owned(), source }
    }

    /// Multiplies it as a matrix of *m* rows and *k* columns with `batch` vectors:
    /// `y[b][m] = Σ w[m][k] · x[b][k]`, in `f32`. `x` holds `batch × k` floats, `y` takes
    /// `batch × m`.
    ///
    /// In the CPU's reach, every dense and every GGUF block type serves, on the calling thread's
    /// rayon pool; interleaved weights ([`Tensor::is_repacked`]) have a loop of their own, and the
    /// number of threads does not show in the result. On CUDA devices, `x` is copied there and `y`
    /// back, and kernels multiply ([`crate::manual::cuda`] says which, and how exactly); types that
    /// have none are copied back, and the CPU multiplies. Engines that keep vectors on the device
    /// use [`Tensor::weights`] and [`ComputeStream`].
    ///
    /// # Errors
    /// [`Error::NoMatrix`]; [`Error::Compute`] for types that are no numbers and slices of other
    /// lengths; [`Error::Memory`] where a mapped file no longer reaches; [`Error::Device`].
    pub fn matmul(&self, x: &[f32], batch: usize, y: &mut [f32]) -> Result<(), Error> {
        let shape = self.matrix_shape()?;
        if let Some((layout, packed)) = self.repacked() {
            let product = forebay_compute::matmul_interleaved(&layout, packed, x, batch, y);
            return product.map_err(self.compute());
        }
        if self.multiply_on_devices(shape, x, batch, y)? {
            return Ok(());
        }
        let product = match self.as_slice() {
            None => forebay_compute::matmul(self.dtype(), shape, &CopiedOut(self), x, batch, y),
            Some(bytes) => {
                let product = forebay_compute::matmul(self.dtype(), shape, bytes, x, batch, y);
                product.map_err(|error| match error {
                    MatmulError::Weights { source, .. } => match source {},
                    MatmulError::Refused(refused) => MatmulError::Refused(refused),
                    other => unreachable!("{other}: weights in memory can be had"),
                })
            }
        };
        product.map_err(|error| match error {
            MatmulError::Refused(source) => self.compute()(source),
            MatmulError::Weights { source, .. } => source,
            other => Error::Internal(other.to_string()),
        })
    }

    /// The matrix that one CUDA device has of it, for products on a [`ComputeStream`] of that
    /// device. Tensors are handed out when their copies have completed, so no product waits for
    /// one. `None` for tensors on no CUDA device, or in parts on several.
    ///
    /// # Errors
    /// [`Error::NoMatrix`] as [`Tensor::matrix_shape`]; [`Error::Device`].
    pub fn weights(&self) -> Result<Option<Weights>, Error> {
        let Shape { rows, columns } = self.matrix_shape()?;
        let mut weights = self.device_weights(rows as u64, columns as u64)?;
        Ok(if weights.len() == 1 { weights.pop().map(|whole| whole.weights) } else { None })
    }

    /// What would multiply it with `batch` vectors where it is, and why: a kernel, or cuBLASLt for
    /// dense weights and many vectors, where that is installed ([`DenseProducts::Auto`]). `None` if
    /// nothing does: the CPU's products serve then.
    ///
    /// # Errors
    /// As [`Tensor::weights`].
    pub fn kernel(&self, batch: usize) -> Result<Option<KernelChoice>, Error> {
        let Shape { rows, columns } = self.matrix_shape()?;
        let weights = self.device_weights(rows as u64, columns as u64)?;
        let Some(first) = weights.first() else { return Ok(None) };
        Ok(first.weights.choose(batch, DenseProducts::Auto)?)
    }

    /// Multiplies where its parts are. `false` where nothing of it is on a device that can.
    fn multiply_on_devices(
        &self,
        shape: Shape,
        x: &[f32],
        batch: usize,
        y: &mut [f32],
    ) -> Result<bool, Error> {
        let is_empty = shape.rows == 0 || shape.columns == 0 || batch == 0;
        let parts = self.device_weights(shape.rows as u64, shape.columns as u64)?;
        if is_empty || parts.is_empty() || self.kernel(batch)?.is_none() {
            return Ok(false);
        }
        let check = |operand, expected: usize, found: usize| {
            if expected == found {
                return Ok(());
            }
            Err(self.compute()(ComputeError::Length { operand, expected, found }))
        };
        check(Operand::Input, shape.columns * batch, x.len())?;
        check(Operand::Output, shape.rows * batch, y.len())?;
        // All devices at work before the first is waited for.
        let mut at_work = Vec::with_capacity(parts.len());
        for PlacedWeights { weights, rows, columns } in parts {
            let context = Arc::clone(weights.context());
            let (rows, columns) = (inside(&rows), inside(&columns));
            let mut stream = ComputeStream::new(&context)?;
            let mut inputs = DeviceFloats::new(&context, columns.len() * batch)?;
            let mut outputs = DeviceFloats::new(&context, rows.len() * batch)?;
            if columns.len() == shape.columns {
                stream.upload(x, &mut inputs)?;
            } else {
                let vectors = x.chunks_exact(shape.columns);
                let of_part: Vec<f32> =
                    vectors.flat_map(|vector| &vector[columns.clone()]).copied().collect();
                stream.upload(&of_part, &mut inputs)?;
            }
            stream.matmul(&weights, &inputs, batch, &mut outputs)?;
            at_work.push((stream, outputs, rows, columns.start > 0));
        }
        for (mut stream, outputs, rows, adds) in at_work {
            let mut of_part = vec![0.0; outputs.len()];
            stream.download(&outputs, &mut of_part)?;
            for (from, to) in of_part.chunks_exact(rows.len()).zip(y.chunks_exact_mut(shape.rows)) {
                for (from, to) in from.iter().zip(&mut to[rows.clone()]) {
                    *to = if adds { *to + from } else { *from };
                }
            }
        }
        Ok(true)
    }

    /// Some of its rows as a matrix, as `f32`, one behind the other: the embeddings of a few tokens,
    /// say, without converting the table.
    ///
    /// # Errors
    /// As [`Tensor::to_f32`]; [`Error::NoMatrix`] for rows past the last one, too.
    pub fn rows_to_f32(&self, rows: Range<usize>) -> Result<Vec<f32>, Error> {
        let shape = self.matrix_shape()?;
        if rows.start > rows.end || rows.end > shape.rows {
            let cause = format!("it has {} rows, not {}..{}", shape.rows, rows.start, rows.end);
            return Err(self.no_matrix(&cause));
        }
        let row_bytes = self.bytes() / shape.rows.max(1) as u64;
        let mut stored = vec![0; usize::try_from(row_bytes).unwrap_or(0) * rows.len()];
        self.read_into(rows.start as u64 * row_bytes, &mut stored)?;
        let mut converted = vec![0.0; shape.columns * rows.len()];
        dequantize(self.dtype(), &stored, &mut converted).map_err(self.compute())?;
        Ok(converted)
    }

    /// Its elements as `f32`, in the order of the file. The pages of a mapped tensor are given back
    /// as they are converted, unless the load keeps them ([`crate::Reclaim::Off`]) or has locked
    /// them: the weights are not resident twice.
    ///
    /// # Errors
    /// As [`Tensor::matmul`]; [`Error::Memory`] too where there is no room for the result.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let (block_bytes, block) = (self.dtype().block_bytes(), self.dtype().block_elements());
        let elements = (self.bytes() / block_bytes).checked_mul(block);
        let elements = elements.and_then(|elements| usize::try_from(elements).ok());
        let room = || {
            let bytes = self.bytes();
            let none = MemoryError::no_room(Operation::Reserve, bytes);
            Error::memory(format!("tensor '{}' can't be converted", self.name()))(none)
        };
        let elements = elements.ok_or_else(room)?;
        let mut converted = Vec::new();
        converted.try_reserve_exact(elements).map_err(|_| room())?;
        let mut scratch = Vec::new();
        let mut offset = 0;
        while converted.len() < elements {
            let start = converted.len();
            converted.resize((start + PIECE_ELEMENTS).min(elements), 0.0);
            let piece = &mut converted[start..];
            let bytes = piece.len() as u64 / block * block_bytes;
            scratch.resize(usize::try_from(bytes).unwrap_or(0), 0);
            self.read_into(offset, &mut scratch)?;
            dequantize(self.dtype(), &scratch, piece).map_err(self.compute())?;
            self.give_back(offset..offset + bytes);
            offset += bytes;
        }
        self.give_back(0..self.bytes());
        Ok(converted)
    }
}

//! The products of a stream: what is multiplied with what, and what came out.

use crate::args::StreamArguments;
use crate::failure::Failure;
use forebay::{ComputeStream, DenseProducts, DeviceContext, DeviceFloats, Shape, Tensor, Weights};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Over the outputs' bit patterns, in the order of the model's use.
#[derive(Default)]
pub(super) struct Checksum(Sha256);

impl Checksum {
    fn add(&mut self, name: &str, outputs: &[f32]) {
        self.0.update(name);
        let bits = outputs.iter().flat_map(|output| output.to_bits().to_le_bytes());
        self.0.update(bits.collect::<Vec<u8>>());
    }

    pub(super) fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is multiplied with what.
pub(super) struct Products {
    seed: u64,
    batch: usize,
    /// By their length.
    inputs: HashMap<usize, Vec<f32>>,
    outputs: Vec<f32>,
    device: Option<OnDevice>,
    /// Tensors that no product takes, counted each time.
    pub(super) not_multiplied: usize,
    /// Products of the layer at hand, by the length of their outputs.
    queued: HashMap<usize, usize>,
}

/// What is kept on a CUDA device between layers.
struct OnDevice {
    stream: ComputeStream,
    inputs: HashMap<usize, DeviceFloats>,
    /// By their length; as many as one layer had products of that length.
    outputs: HashMap<usize, Vec<DeviceFloats>>,
}

/// A product that has been queued.
struct Queued {
    name: String,
    length: usize,
    /// Among the outputs of that length.
    index: usize,
}

impl Products {
    pub(super) fn new(
        context: Option<&Arc<DeviceContext>>,
        arguments: &StreamArguments,
    ) -> Result<Self, Failure> {
        let device = match context {
            None => None,
            Some(context) => Some(OnDevice {
                // A library would step down for want of workspace, and the last bits with it: what
                // comes out is to be the same whatever the budgets.
                stream: ComputeStream::with_dense(context, DenseProducts::Kernels)
                    .map_err(forebay::Error::from)?,
                inputs: HashMap::new(),
                outputs: HashMap::new(),
            }),
        };
        let (seed, batch) = (arguments.seed, arguments.batch);
        Ok(Self {
            seed,
            batch,
            inputs: HashMap::new(),
            outputs: Vec::new(),
            device,
            not_multiplied: 0,
            queued: HashMap::new(),
        })
    }

    pub(super) fn multiply(
        &mut self,
        tensors: impl Iterator<Item = Tensor>,
        checksum: &mut Checksum,
    ) -> Result<(), Failure> {
        let mut queued = Vec::new();
        for tensor in tensors {
            let shape = tensor.matrix_shape().ok().filter(|_| tensor.is_numeric());
            let Some(shape) = shape.filter(|shape| shape.rows > 0 && shape.columns > 0) else {
                self.not_multiplied += 1;
                continue;
            };
            let serves = |weights: &Weights| {
                let device = self.device.as_ref();
                device.is_some_and(|it| it.stream.choose(weights, self.batch).is_some())
            };
            match tensor.weights()?.filter(serves) {
                Some(weights) => queued.push(self.queue(&tensor, shape, &weights)?),
                None => self.multiply_here(&tensor, shape, checksum)?,
            }
        }
        self.collect(queued, checksum)
    }

    fn input(&mut self, columns: usize) -> &[f32] {
        let (seed, batch) = (self.seed, self.batch);
        self.inputs.entry(columns).or_insert_with(|| {
            let mut random = fastrand::Rng::with_seed(seed ^ columns as u64);
            (0..columns * batch).map(|_| 2.0 * random.f32() - 1.0).collect()
        })
    }

    fn multiply_here(
        &mut self,
        tensor: &Tensor,
        shape: Shape,
        checksum: &mut Checksum,
    ) -> Result<(), Failure> {
        self.input(shape.columns);
        self.outputs.clear();
        self.outputs.resize(shape.rows * self.batch, f32::NAN);
        tensor.matmul(&self.inputs[&shape.columns], self.batch, &mut self.outputs)?;
        checksum.add(tensor.name(), &self.outputs);
        Ok(())
    }

    fn queue(
        &mut self,
        tensor: &Tensor,
        shape: Shape,
        weights: &Weights,
    ) -> Result<Queued, Failure> {
        let batch = self.batch;
        let x = self.input(shape.columns).to_vec();
        let Some(OnDevice { stream, inputs, outputs }) = &mut self.device else {
            return Err(Failure::new("weights on a device that nobody streams to", None));
        };
        let refused = |error| Failure::from(forebay::Error::from(error));
        let x = match inputs.entry(shape.columns) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let mut floats = DeviceFloats::new(weights.context(), x.len()).map_err(refused)?;
                stream.upload(&x, &mut floats).map_err(refused)?;
                unknown.insert(floats)
            }
        };
        let length = shape.rows * batch;
        let of_length = outputs.entry(length).or_default();
        let used = self.queued.entry(length).or_default();
        let index = *used;
        *used += 1;
        if of_length.len() == index {
            of_length.push(DeviceFloats::new(weights.context(), length).map_err(refused)?);
        }
        stream.matmul(weights, x, batch, &mut of_length[index]).map_err(refused)?;
        Ok(Queued { name: tensor.name().to_owned(), length, index })
    }

    /// Waits for what was queued, and adds it up.
    fn collect(&mut self, queued: Vec<Queued>, checksum: &mut Checksum) -> Result<(), Failure> {
        self.queued.clear();
        let Some(OnDevice { stream, outputs, .. }) = &mut self.device else { return Ok(()) };
        let refused = |error| Failure::from(forebay::Error::from(error));
        for Queued { name, length, index } in queued {
            self.outputs.clear();
            self.outputs.resize(length, f32::NAN);
            stream.download(&outputs[&length][index], &mut self.outputs).map_err(refused)?;
            checksum.add(&name, &self.outputs);
        }
        Ok(())
    }
}

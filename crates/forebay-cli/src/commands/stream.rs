//! `forebay stream`: passes over a model that need not fit on the device.
//!
//! Every matrix of every layer is multiplied with the same random vectors in each pass, so a pass
//! gives the same outputs whatever the budgets are; their checksum says so.

use crate::args::StreamArguments;
use crate::failure::Failure;
use crate::{interrupt, output, size};
use forebay::{
    ComputeStream, DeviceFloats, Layer, LayerStream, ModelSummary, PassReport, Shape, StreamReport,
    Tensor, TierBytes, Weights,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

#[derive(Serialize)]
struct Report {
    model: ModelSummary,
    device: String,
    emulated: bool,
    layers: usize,
    vram_budget: u64,
    host_budget: u64,
    batch: usize,
    tiers: TierBytes,
    depth: usize,
    host_memory_bytes: u64,
    why: Vec<String>,
    passes: Vec<Pass>,
    fallbacks: Vec<forebay::FallbackReport>,
    /// Tensors that no product takes: vectors, and types that are no numbers.
    not_multiplied: usize,
}

#[derive(Serialize)]
struct Pass {
    #[serde(flatten)]
    pass: PassReport,
    checksum: String,
}

pub(crate) fn run(arguments: &StreamArguments) -> Result<(), Failure> {
    let cancel = interrupt::flag();
    let mut builder = LayerStream::builder(&arguments.model)
        .options(arguments.policy.options())
        .passes(arguments.passes.into())
        .cancel_with(&cancel);
    if let Some(bytes) = arguments.vram_budget.bytes() {
        builder = builder.device_budget(bytes);
    }
    if let Some(bytes) = arguments.host_budget.bytes() {
        builder = builder.host_budget(bytes);
    }
    let mut stream = builder.start()?;
    let mut products = Products::new(&stream, arguments)?;
    let mut checksums = Vec::new();
    for _pass in 0..arguments.passes {
        let mut checksum = Checksum::default();
        while let Some(layer) = stream.next_layer()? {
            if cancel.is_cancelled() {
                return Err(Failure::cancelled());
            }
            products.multiply(&layer, &mut checksum)?;
        }
        checksums.push(checksum.hex());
    }
    let summary = ModelSummary::of(stream.model());
    let emulated = match stream.context() {
        Some(context) => forebay::device(context.ordinal()).is_ok_and(|device| device.is_emulated),
        None => false,
    };
    let StreamReport {
        device,
        layers,
        vram_budget,
        host_budget,
        tiers,
        depth,
        host_memory_bytes,
        why,
        passes,
        fallbacks,
    } = stream.finish()?;
    let passes = passes.into_iter().zip(checksums);
    let report = Report {
        model: summary,
        device,
        emulated,
        layers,
        vram_budget,
        host_budget,
        batch: arguments.batch,
        tiers,
        depth,
        host_memory_bytes,
        why,
        passes: passes.map(|(pass, checksum)| Pass { pass, checksum }).collect(),
        fallbacks,
        not_multiplied: products.not_multiplied / arguments.passes as usize,
    };
    if arguments.json { output::json(&report) } else { show(&report) }
}

/// Over the outputs' bit patterns, in the order of the model's use.
#[derive(Default)]
struct Checksum(Sha256);

impl Checksum {
    fn add(&mut self, name: &str, outputs: &[f32]) {
        self.0.update(name);
        let bits = outputs.iter().flat_map(|output| output.to_bits().to_le_bytes());
        self.0.update(bits.collect::<Vec<u8>>());
    }

    fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What is multiplied with what.
struct Products {
    seed: u64,
    batch: usize,
    /// By their length.
    inputs: HashMap<usize, Vec<f32>>,
    outputs: Vec<f32>,
    device: Option<OnDevice>,
    not_multiplied: usize,
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
    fn new(stream: &LayerStream, arguments: &StreamArguments) -> Result<Self, Failure> {
        let device = match stream.context() {
            None => None,
            Some(context) => Some(OnDevice {
                stream: ComputeStream::new(context).map_err(forebay::Error::from)?,
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

    fn multiply(&mut self, layer: &Layer, checksum: &mut Checksum) -> Result<(), Failure> {
        let mut queued = Vec::new();
        for tensor in layer.tensors() {
            let shape = tensor.matrix_shape().ok().filter(|_| tensor.is_numeric());
            let Some(shape) = shape.filter(|shape| shape.rows > 0 && shape.columns > 0) else {
                self.not_multiplied += 1;
                continue;
            };
            let weights =
                if tensor.kernel(self.batch)?.is_some() { tensor.weights()? } else { None };
            match weights {
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

fn show(report: &Report) -> Result<(), Failure> {
    for why in &report.why {
        output::line(&format!("- {why}"))?;
    }
    let TierBytes { resident_bytes, host_bytes, streamed_bytes, mapped_bytes } = report.tiers;
    let emulated = if report.emulated { " (EMULATED: no rate of hardware)" } else { "" };
    output::line(&format!(
        "{}{emulated}: {} layers, {} stay, {} in host memory, {} streamed, {} on the cpu",
        report.device,
        report.layers,
        size::show(resident_bytes),
        size::show(host_bytes),
        size::show(streamed_bytes),
        size::show(mapped_bytes)
    ))?;
    for step in &report.fallbacks {
        output::line(&format!(
            "stepped down {} → {} ({} at {}): {}",
            step.from, step.to, step.errno, step.at, step.reason
        ))?;
    }
    let mut rows = vec![
        [
            "pass",
            "s",
            "GiB/s",
            "read",
            "uploaded",
            "compute waited",
            "upload waited",
            "read waited",
            "checksum",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for (number, Pass { pass, checksum }) in report.passes.iter().enumerate() {
        let waited = |seconds: f64| format!("{seconds:.3} s");
        rows.push(vec![
            (number + 1).to_string(),
            format!("{:.3}", pass.seconds),
            format!("{:.2}", pass.gib_per_s),
            size::show(pass.read_bytes),
            size::show(pass.uploaded_bytes),
            waited(pass.compute_waited_s),
            waited(pass.upload_waited_s),
            waited(pass.read_waited_s),
            checksum.chars().take(16).collect(),
        ]);
    }
    output::table(&rows)
}

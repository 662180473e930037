//! `forebay bench kernels`: matrix products on a device, checked, then timed beside its memory.
//!
//! Weights come the way all weights do: a file with one matrix is written to a temporary folder and
//! loaded onto the device. Products are checked first, over a sample of rows, against sums in `f64`
//! of what the CPU decodes; a wrong one is an error, not a row. Before every timed product a copy
//! larger than any cache drives the weights out of it.

use crate::args::KernelArguments;
use crate::commands::bench::median;
use crate::failure::Failure;
use crate::{interrupt, output};
use forebay::{
    Backend, ComputeStream, DeviceChoice, DeviceContext, DeviceFloats, Dtype, Error, Loaded,
    Loader, Tensor, Weights,
};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Serialize)]
struct Report {
    device: String,
    emulated: bool,
    ceiling: Ceiling,
    rows: Vec<Row>,
}

/// What the device's memory gives: bytes read and written by a copy within it.
#[derive(Serialize)]
struct Ceiling {
    bytes_per_s: f64,
}

#[derive(Serialize)]
struct Row {
    dtype: &'static str,
    m: usize,
    k: usize,
    batch: usize,
    kernel: String,
    seconds: f64,
    weight_bytes_per_s: f64,
    /// Of the copy's bytes a second; `null` where arithmetic bounds the product, not memory.
    of_ceiling: Option<f64>,
    tflops: f64,
    rel_error: f64,
}

/// Numbers that a copy within a device's memory moves: more bytes than any cache has.
const FLUSH_FLOATS: usize = 64 << 20;
/// From this many inputs on, arithmetic counts for more than memory.
const MEMORY_BOUND_BATCH: usize = 8;
/// Rows that are checked.
const SAMPLED_ROWS: usize = 16;
/// A product may be so far from the exact one, by norm: in `f32`, and through `f16` or `bf16`.
const ERROR_MAX: (f64, f64) = (1e-4, 1e-2);

/// Every type that has kernels, with the halves of a block that scale it.
const TYPES: [(Dtype, &[usize]); 18] = [
    (Dtype::F32, &[2]),
    (Dtype::F16, &[0]),
    (Dtype::BF16, &[0]),
    (Dtype::F8_E4M3, &[]),
    (Dtype::F8_E5M2, &[]),
    (Dtype::Q4_0, &[0]),
    (Dtype::Q4_1, &[0, 2]),
    (Dtype::Q5_0, &[0]),
    (Dtype::Q5_1, &[0, 2]),
    (Dtype::Q8_0, &[0]),
    (Dtype::Q2_K, &[80, 82]),
    (Dtype::Q3_K, &[108]),
    (Dtype::Q4_K, &[0, 2]),
    (Dtype::Q5_K, &[0, 2]),
    (Dtype::Q6_K, &[208]),
    (Dtype::IQ4_NL, &[0]),
    (Dtype::IQ4_XS, &[0]),
    (Dtype::MXFP4, &[]),
];

pub(crate) fn run(arguments: &KernelArguments) -> Result<(), Failure> {
    let interrupt = interrupt::flag();
    let bench = Bench::new(arguments)?;
    let known = |dtype: Dtype| {
        let named = |name: &String| dtype.name().eq_ignore_ascii_case(name);
        arguments.types.is_empty() || arguments.types.iter().any(named)
    };
    if let Some(unknown) = arguments
        .types
        .iter()
        .find(|name| !TYPES.iter().any(|(dtype, _)| dtype.name().eq_ignore_ascii_case(name)))
    {
        let all: Vec<&str> = TYPES.iter().map(|(dtype, _)| dtype.name()).collect();
        let remedy = format!("name some of {}", all.join(", "));
        return Err(Failure::new(format!("'{unknown}' has no kernels"), Some(&remedy)));
    }
    let folder = tempfile::tempdir()
        .map_err(|error| Failure::caused("no temporary folder can be made", &error))?;
    let mut report = Report {
        device: bench.name.clone(),
        emulated: bench.is_emulated,
        ceiling: Ceiling { bytes_per_s: bench.ceiling()? },
        rows: Vec::new(),
    };
    for &(m, k) in &bench.shapes {
        for (dtype, scales) in TYPES.into_iter().filter(|(dtype, _)| known(*dtype)) {
            if !(k as u64).is_multiple_of(dtype.block_elements()) {
                continue;
            }
            output::notice(&format!("{dtype} {m} x {k}"));
            let path = write(folder.path(), dtype, scales, (m, k))?;
            for &batch in &bench.batches {
                if interrupt.is_cancelled() {
                    return Err(Failure::cancelled());
                }
                report.rows.push(bench.measure(&path, dtype, (m, k), batch, &report.ceiling)?);
            }
        }
    }
    if arguments.json { output::json(&report) } else { show(&report) }
}

/// Where products run, and which ones.
struct Bench {
    name: String,
    is_emulated: bool,
    backend: Backend,
    context: Option<Arc<DeviceContext>>,
    shapes: Vec<(usize, usize)>,
    batches: Vec<usize>,
    repeat: u32,
}

impl Bench {
    fn new(arguments: &KernelArguments) -> Result<Self, Failure> {
        let backend = match &arguments.device {
            DeviceChoice::Auto if forebay::device(0).is_ok() => Backend::Cuda(0),
            DeviceChoice::Auto => Backend::Host,
            DeviceChoice::Device(backend) => *backend,
            _ => {
                let message = "kernels are measured on one device".to_owned();
                return Err(Failure::new(message, Some("use --device cuda:N or host")));
            }
        };
        let device = match backend {
            Backend::Cuda(ordinal) => Some(forebay::device(ordinal).map_err(unavailable)?),
            _ => None,
        };
        let is_emulated = device.as_ref().is_some_and(|device| device.is_emulated);
        let context = match backend {
            Backend::Cuda(ordinal) => Some(DeviceContext::of(ordinal).map_err(unavailable)?),
            _ => None,
        };
        // An interpreter takes its time.
        let (shapes, batches): (&[(usize, usize)], &[usize]) = if is_emulated {
            (&[(64, 512)], &[1, 4, 16])
        } else {
            (&[(4096, 4096), (14_336, 4096), (4096, 14_336)], &[1, 4, 16, 64, 128, 512])
        };
        let given = |given: &[usize], default: &[usize]| {
            if given.is_empty() { default.to_vec() } else { given.to_vec() }
        };
        Ok(Self {
            name: device
                .map_or_else(|| backend.to_string(), |it| format!("{backend}, {}", it.name)),
            is_emulated,
            backend,
            context,
            shapes: if arguments.shapes.is_empty() {
                shapes.to_vec()
            } else {
                arguments.shapes.clone()
            },
            batches: given(&arguments.batch, batches),
            repeat: arguments.repeat,
        })
    }

    /// Bytes read and written a second by a copy within the device's memory.
    fn ceiling(&self) -> Result<f64, Failure> {
        let floats = if self.is_emulated { 1 << 20 } else { FLUSH_FLOATS };
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        let bytes = 8.0 * floats as f64;
        let mut seconds = Vec::new();
        let Some(context) = &self.context else {
            let from = vec![1.0_f32; floats];
            let mut to = vec![0.0_f32; floats];
            for _ in 0..=self.repeat {
                let started = Instant::now();
                to.copy_from_slice(&from);
                seconds.push(started.elapsed().as_secs_f64());
            }
            return Ok(bytes / median(seconds));
        };
        let mut flush = Flush::new(context, floats)?;
        let mut stream = ComputeStream::new(context).map_err(Error::from)?;
        for _ in 0..=self.repeat {
            let Flush { from, to } = &mut flush;
            let took = stream.time(|stream| stream.copy(from, to)).map_err(Error::from)?;
            seconds.push(took.as_secs_f64());
        }
        Ok(bytes / median(seconds))
    }

    fn measure(
        &self,
        path: &Path,
        dtype: Dtype,
        (m, k): (usize, usize),
        batch: usize,
        ceiling: &Ceiling,
    ) -> Result<Row, Failure> {
        let loaded = load(path, self.backend)?;
        let tensor = matrix(&loaded)?;
        let mut random = fastrand::Rng::with_seed(batch as u64);
        let x: Vec<f32> = (0..batch * k).map(|_| random.f32() - 0.5).collect();
        let mut y = vec![f32::NAN; batch * m];
        tensor.matmul(&x, batch, &mut y)?;
        let chosen = tensor.kernel(batch)?;
        let rel_error = relative_error(path, (m, k), &x, &y)?;
        let rounds = chosen.is_some_and(|choice| choice.kernel.inputs != "f32");
        let bound = if rounds { ERROR_MAX.1 } else { ERROR_MAX.0 };
        let kernel = chosen.map_or("cpu", |choice| choice.kernel.entry).to_owned();
        if rel_error.is_nan() || rel_error > bound {
            let message =
                format!("{dtype} {m} x {k}, batch {batch}: {kernel} is wrong by {rel_error}");
            return Err(Failure::new(
                message,
                Some("please report it, with the device and driver"),
            ));
        }
        let seconds = match (&self.context, tensor.weights()?) {
            (Some(context), Some(weights)) if chosen.is_some() => {
                self.time_on_device(context, &weights, &x, batch, y.len())?
            }
            _ => {
                let mut seconds = Vec::new();
                for _ in 0..=self.repeat {
                    let started = Instant::now();
                    tensor.matmul(&x, batch, &mut y)?;
                    seconds.push(started.elapsed());
                }
                median(seconds.iter().map(Duration::as_secs_f64).collect())
            }
        };
        #[allow(clippy::cast_precision_loss, reason = "rates")]
        let (bytes, flops) = (tensor.bytes() as f64, 2.0 * (m * k * batch) as f64);
        let weight_bytes_per_s = bytes / seconds;
        Ok(Row {
            dtype: dtype.name(),
            m,
            k,
            batch,
            kernel,
            seconds,
            weight_bytes_per_s,
            of_ceiling: (batch <= MEMORY_BOUND_BATCH)
                .then_some(weight_bytes_per_s / ceiling.bytes_per_s),
            tflops: flops / seconds / 1e12,
            rel_error,
        })
    }

    fn time_on_device(
        &self,
        context: &Arc<DeviceContext>,
        weights: &Weights,
        x: &[f32],
        batch: usize,
        outputs: usize,
    ) -> Result<f64, Failure> {
        let mut stream = ComputeStream::new(context).map_err(Error::from)?;
        let mut inputs = DeviceFloats::new(context, x.len()).map_err(Error::from)?;
        let mut results = DeviceFloats::new(context, outputs).map_err(Error::from)?;
        let floats = if self.is_emulated { 1 << 20 } else { FLUSH_FLOATS };
        let mut flush = Flush::new(context, floats)?;
        stream.upload(x, &mut inputs).map_err(Error::from)?;
        let mut seconds = Vec::new();
        for _ in 0..=self.repeat {
            stream.copy(&flush.from, &mut flush.to).map_err(Error::from)?;
            let product = |stream: &mut ComputeStream| {
                stream.matmul(weights, &inputs, batch, &mut results).map(drop)
            };
            seconds.push(stream.time(product).map_err(Error::from)?.as_secs_f64());
        }
        Ok(median(seconds))
    }
}

fn unavailable(why: forebay::Unavailable) -> Error {
    Error::Device(why.into())
}

/// Two stretches of a device's memory.
struct Flush {
    from: DeviceFloats,
    to: DeviceFloats,
}

impl Flush {
    fn new(context: &Arc<DeviceContext>, floats: usize) -> Result<Self, Failure> {
        let make = || DeviceFloats::new(context, floats).map_err(Error::from);
        Ok(Self { from: make()?, to: make()? })
    }
}

fn load(path: &Path, backend: Backend) -> Result<Loaded, Failure> {
    Ok(Loader::new(path).device(DeviceChoice::Device(backend)).load()?)
}

fn matrix(loaded: &Loaded) -> Result<Tensor, Failure> {
    let none = || Failure::new("the file of the bench has no tensor".to_owned(), None);
    loaded.tensors().next().ok_or_else(none)
}

/// ‖y − ŷ‖ / ‖ŷ‖ over some rows, drawn at random, and all inputs.
fn relative_error(
    path: &Path,
    (m, k): (usize, usize),
    x: &[f32],
    y: &[f32],
) -> Result<f64, Failure> {
    let loaded = load(path, Backend::Host)?;
    let elements = matrix(&loaded)?.to_f32()?;
    let mut random = fastrand::Rng::with_seed(1);
    let (mut wrong, mut all) = (0.0, 0.0);
    for _ in 0..SAMPLED_ROWS.min(m) {
        let row = random.usize(0..m);
        let weights = &elements[row * k..(row + 1) * k];
        for (x, y) in x.chunks_exact(k).zip(y.chunks_exact(m)) {
            let terms = weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let expected: f64 = terms.sum();
            wrong += (f64::from(y[row]) - expected).powi(2);
            all += expected.powi(2);
        }
    }
    Ok((wrong / all).sqrt())
}

/// Writes a file with one matrix of random blocks whose elements are of a sane size.
fn write(
    folder: &Path,
    dtype: Dtype,
    scales: &[usize],
    (m, k): (usize, usize),
) -> Result<std::path::PathBuf, Failure> {
    let block = usize::try_from(dtype.block_bytes()).unwrap_or(1);
    let elements = usize::try_from(dtype.block_elements()).unwrap_or(1);
    let mut data = vec![0; m * k / elements * block];
    fastrand::Rng::with_seed(7).fill(&mut data);
    for block in data.chunks_exact_mut(block) {
        for &scale in scales {
            // A small finite number, as a half and as the upper half of a float alike.
            block[scale + 1] = block[scale + 1] & 0b1000_0011 | 0b0011_1000;
        }
        match dtype {
            // An exponent of two.
            Dtype::MXFP4 => block[0] = 118 + block[0] % 8,
            // No NaN, nor anything large.
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => block[0] &= 0b1011_1111,
            _ => {}
        }
    }
    let (name, header) = match dtype.gguf_id() {
        Some(id) => ("matrix.gguf", gguf_header(id, m, k)),
        None => ("matrix.safetensors", safetensors_header(dtype, m, k, data.len())),
    };
    let path = folder.join(name);
    let written = std::fs::write(&path, [header, data].concat());
    let failed = |error| Failure::caused(format!("{}: can't be written", path.display()), &error);
    written.map_err(failed)?;
    Ok(path)
}

fn gguf_header(id: u32, m: usize, k: usize) -> Vec<u8> {
    const NAME: &[u8] = b"matrix.weight";
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend(1_u64.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.extend((NAME.len() as u64).to_le_bytes());
    header.extend(NAME);
    header.extend(2_u32.to_le_bytes());
    header.extend((k as u64).to_le_bytes());
    header.extend((m as u64).to_le_bytes());
    header.extend(id.to_le_bytes());
    header.extend(0_u64.to_le_bytes());
    header.resize(header.len().next_multiple_of(32), 0);
    header
}

fn safetensors_header(dtype: Dtype, m: usize, k: usize, bytes: usize) -> Vec<u8> {
    let dtype = dtype.name();
    let json = format!(
        r#"{{"matrix.weight":{{"dtype":"{dtype}","shape":[{m},{k}],"data_offsets":[0,{bytes}]}}}}"#
    );
    let padded = json.len().next_multiple_of(8);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(json.bytes());
    header.resize(8 + padded, b' ');
    header
}

fn show(report: &Report) -> Result<(), Failure> {
    let emulated = if report.emulated { ", EMULATED: no rate of hardware" } else { "" };
    output::line(&format!(
        "{}{emulated}; a copy within its memory reads and writes {:.1} GB/s",
        report.device,
        report.ceiling.bytes_per_s / 1e9
    ))?;
    let head =
        ["type", "m", "k", "batch", "kernel", "µs", "weights GB/s", "of copy", "TFLOP/s", "error"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(report.rows.iter().map(|row| {
        vec![
            row.dtype.to_owned(),
            row.m.to_string(),
            row.k.to_string(),
            row.batch.to_string(),
            row.kernel.clone(),
            format!("{:.1}", row.seconds * 1e6),
            format!("{:.1}", row.weight_bytes_per_s / 1e9),
            row.of_ceiling.map_or("-".to_owned(), |share| format!("{share:.2}")),
            format!("{:.3}", row.tflops),
            format!("{:.1e}", row.rel_error),
        ]
    }));
    output::table(&rows)
}

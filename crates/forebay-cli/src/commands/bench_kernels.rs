//! `forebay bench kernels`: matrix products on a device, checked, then timed beside its memory.
//!
//! Weights come the way all weights do: a file with one matrix is written to a temporary folder and
//! loaded onto the device. Products are checked first, over a sample of rows, against sums in `f64`
//! of what the CPU decodes; a wrong one is an error, not a row. Before every timed product a copy
//! larger than any cache drives the weights out of it. Where cuBLASLt is installed, it makes the
//! same products of dense weights in rows of its own.

mod ceiling;
mod matrix_file;

use crate::args::KernelArguments;
use crate::commands::bench::median;
use crate::failure::Failure;
use crate::{interrupt, output};
use ceiling::{Bound, Ceiling, Flush};
use forebay::{
    Backend, ComputeStream, DenseProducts, DeviceChoice, DeviceContext, DeviceFloats, Dtype, Error,
    KernelChoice, Loaded, Loader, Tensor, Weights,
};
use matrix_file::{TYPES, write};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: String,
    emulated: bool,
    ceiling: Ceiling,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    dtype: &'static str,
    m: usize,
    k: usize,
    batch: usize,
    kernel: &'static str,
    /// Why that one.
    why: Option<String>,
    seconds: f64,
    weight_bytes_per_s: f64,
    /// Of the ceiling that binds it.
    of_ceiling: Option<f64>,
    bound: Option<Bound>,
    tflops: f64,
    rel_error: f64,
}

/// Rows that are checked.
const SAMPLED_ROWS: usize = 16;
/// A product may be so far from the exact one, by norm: in `f32`, and through `f16` or `bf16`.
const ERROR_MAX: (f64, f64) = (1e-4, 1e-2);

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
        ceiling: Ceiling::measure(bench.context.as_ref(), bench.is_emulated, bench.repeat)?,
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
                report.rows.extend(bench.measure(&path, dtype, (m, k), batch, &report.ceiling)?);
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

    /// A row for each that makes the product.
    fn measure(
        &self,
        path: &Path,
        dtype: Dtype,
        (m, k): (usize, usize),
        batch: usize,
        ceiling: &Ceiling,
    ) -> Result<Vec<Row>, Failure> {
        let loaded = load(path, self.backend)?;
        let tensor = matrix(&loaded)?;
        let mut random = fastrand::Rng::with_seed(batch as u64);
        let x: Vec<f32> = (0..batch * k).map(|_| random.f32() - 0.5).collect();
        let mut made = Vec::new();
        if let (Some(context), Some(weights)) = (&self.context, tensor.weights()?) {
            for dense in [DenseProducts::Kernels, DenseProducts::CublasLt] {
                made.extend(self.multiply_on_device(context, &weights, &x, batch, dense)?);
            }
        }
        if made.is_empty() {
            made.push(self.multiply(&tensor, &x, batch, m)?);
        }
        let mut rows = Vec::new();
        for Made { choice, y, seconds } in made {
            let kernel = choice.as_ref().map_or("cpu", KernelChoice::name);
            let rel_error = relative_error(path, (m, k), &x, &y)?;
            let rounds = choice.as_ref().is_some_and(|choice| choice.inputs() != "f32");
            let error_max = if rounds { ERROR_MAX.1 } else { ERROR_MAX.0 };
            if rel_error.is_nan() || rel_error > error_max {
                let message =
                    format!("{dtype} {m} x {k}, batch {batch}: {kernel} is wrong by {rel_error}");
                let remedy = "please report it, with the device and driver";
                return Err(Failure::new(message, Some(remedy)));
            }
            #[allow(clippy::cast_precision_loss, reason = "rates")]
            let (bytes, operations) = (tensor.bytes() as f64, 2.0 * (m * k * batch) as f64);
            let (weight_bytes_per_s, flops) = (bytes / seconds, operations / seconds);
            let share = ceiling.share(choice.as_ref(), batch, weight_bytes_per_s, flops);
            rows.push(Row {
                dtype: dtype.name(),
                m,
                k,
                batch,
                kernel,
                why: choice.map(|choice| choice.to_string()),
                seconds,
                weight_bytes_per_s,
                of_ceiling: share.map(|(_, share)| share),
                bound: share.map(|(bound, _)| bound),
                tflops: flops / 1e12,
                rel_error,
            });
        }
        Ok(rows)
    }

    /// Products by the CPU.
    fn multiply(
        &self,
        tensor: &Tensor,
        x: &[f32],
        batch: usize,
        m: usize,
    ) -> Result<Made, Failure> {
        let mut y = vec![f32::NAN; batch * m];
        let mut seconds = Vec::new();
        for _ in 0..=self.repeat {
            let started = Instant::now();
            tensor.matmul(x, batch, &mut y)?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(Made { choice: None, y, seconds: median(seconds) })
    }

    /// Products on the device; none where what is asked for does not serve.
    fn multiply_on_device(
        &self,
        context: &Arc<DeviceContext>,
        weights: &Weights,
        x: &[f32],
        batch: usize,
        dense: DenseProducts,
    ) -> Result<Option<Made>, Failure> {
        let mut stream = ComputeStream::with_dense(context, dense).map_err(Error::from)?;
        let is_asked =
            |choice: &KernelChoice| choice.is_cublaslt() == (dense == DenseProducts::CublasLt);
        if !stream.choose(weights, batch).is_some_and(|choice| is_asked(&choice)) {
            return Ok(None);
        }
        let mut inputs = DeviceFloats::new(context, x.len()).map_err(Error::from)?;
        let outputs = weights.shape().0 as usize * batch;
        let mut results = DeviceFloats::new(context, outputs).map_err(Error::from)?;
        stream.upload(x, &mut inputs).map_err(Error::from)?;
        let first = stream.matmul(weights, &inputs, batch, &mut results).map_err(Error::from)?;
        // There may have been no room for cuBLASLt to work in.
        let Some(choice) = first.filter(is_asked) else { return Ok(None) };
        let mut y = vec![f32::NAN; outputs];
        stream.download(&results, &mut y).map_err(Error::from)?;
        let mut flush = Flush::new(context, self.is_emulated)?;
        let mut seconds = Vec::new();
        for _ in 0..=self.repeat {
            stream.copy(&flush.from, &mut flush.to).map_err(Error::from)?;
            let product = |stream: &mut ComputeStream| {
                stream.matmul(weights, &inputs, batch, &mut results).map(drop)
            };
            seconds.push(stream.time(product).map_err(Error::from)?.as_secs_f64());
        }
        Ok(Some(Made { choice: Some(choice), y, seconds: median(seconds) }))
    }
}

/// A product that was made.
struct Made {
    choice: Option<KernelChoice>,
    y: Vec<f32>,
    seconds: f64,
}

fn unavailable(why: forebay::Unavailable) -> Error {
    Error::Device(why.into())
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

fn show(report: &Report) -> Result<(), Failure> {
    let emulated = if report.emulated { ", EMULATED: no rate of hardware" } else { "" };
    let arithmetic: Vec<String> = report
        .ceiling
        .flops
        .iter()
        .map(|(operand, rate)| format!("{operand} {:.1} TFLOP/s", rate / 1e12))
        .collect();
    output::line(&format!(
        "{}{emulated}; a copy within its memory reads and writes {:.1} GB/s",
        report.device,
        report.ceiling.bytes_per_s / 1e9
    ))?;
    if !arithmetic.is_empty() {
        let by = report.ceiling.flops_by.join("; ");
        output::line(&format!("arithmetic: {} ({by})", arithmetic.join(", ")))?;
    }
    let head = [
        "type",
        "m",
        "k",
        "batch",
        "kernel",
        "µs",
        "weights GB/s",
        "of ceiling",
        "TFLOP/s",
        "error",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(report.rows.iter().map(|row| {
        vec![
            row.dtype.to_owned(),
            row.m.to_string(),
            row.k.to_string(),
            row.batch.to_string(),
            row.kernel.to_owned(),
            format!("{:.1}", row.seconds * 1e6),
            format!("{:.1}", row.weight_bytes_per_s / 1e9),
            match (row.of_ceiling, row.bound) {
                (Some(share), Some(Bound::Memory)) => format!("{share:.2} memory"),
                (Some(share), Some(Bound::Matrix)) => format!("{share:.2} matrix"),
                _ => "-".to_owned(),
            },
            format!("{:.3}", row.tflops),
            format!("{:.1e}", row.rel_error),
        ]
    }));
    output::table(&rows)
}

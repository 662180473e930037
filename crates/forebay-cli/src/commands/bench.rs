//! `forebay bench`: load modes against each other and against the storage's ceiling.
//!
//! Every load runs in a process of its own, so that its CPU time and peak memory are its alone;
//! rounds are interleaved, so that what else the machine does hits every row alike; medians are
//! shown.

mod caches;
mod child;
mod plot;
mod rates;

use crate::args::{BenchArguments, BenchCommand, CacheChoice, SynthFormat};
use crate::ceiling::{self, SHAPES, Shape};
use crate::commands::bench_kernels;
use crate::commands::load::Sample;
use crate::commands::synth::{self, Recipe};
use crate::failure::Failure;
use crate::{interrupt, output, size};
use caches::{cached_share, drop_caches, warm_caches};
use child::{LoadInChild, children_cpu_s};
use forebay::{Backend, DeviceChoice, DeviceInfo, Model, ModelSummary};
use plot::{Caption, Picture};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Serialize)]
struct BenchReport {
    model: ModelSummary,
    ceiling: Ceiling,
    /// What the CUDA devices take from pinned memory, all at once, where tensors go to any.
    upload_ceiling: Option<Ceiling>,
    /// Whether they are an emulation.
    emulated: bool,
    repeat: u32,
    rows: Vec<Row>,
    runs: Vec<Run>,
    ceiling_runs: Vec<Ceiling>,
    upload_ceiling_runs: Vec<Ceiling>,
}

#[derive(Clone, Serialize)]
struct Ceiling {
    gib_per_s: f64,
    shape: String,
}

#[derive(Serialize)]
struct Row {
    mode: &'static str,
    device: String,
    cache: &'static str,
    gib_per_s: f64,
    of_ceiling: f64,
    cpu_s_per_gib: f64,
    peak_rss_bytes: u64,
    page_cache_left: Option<f64>,
}

#[derive(Clone, Serialize)]
struct Run {
    mode: &'static str,
    cache: &'static str,
    round: u32,
    /// Without `device_s`.
    seconds: f64,
    /// What making devices ready took.
    device_s: f64,
    gib_per_s: f64,
    cpu_s_per_gib: f64,
    peak_rss_bytes: u64,
    page_cache_left: Option<f64>,
    #[serde(skip)]
    device: String,
    /// How far it had come, where a picture is drawn; without `device_s`.
    #[serde(skip)]
    samples: Vec<Sample>,
}

pub(crate) fn run(arguments: &BenchArguments) -> Result<(), Failure> {
    if let Some(BenchCommand::Kernels(kernels)) = &arguments.command {
        return bench_kernels::run(kernels);
    }
    // A signal is heard between loads, so that the temporary folder goes away.
    let interrupt = interrupt::flag();
    // That it can't be written shall not come out after minutes.
    let picture = arguments.plot.as_deref().map(Picture::reserve).transpose()?;
    let (path, _folder) = match &arguments.model {
        Some(path) => (path.clone(), None),
        None => {
            let (path, folder) = synthesise(arguments)?;
            (path, Some(folder))
        }
    };
    let model = Model::open(&path)?;
    if model.catalog().bytes() == 0 {
        let message = format!("{}: has no byte to measure with", path.display());
        return Err(Failure::new(message, Some("name a model with tensors, or none")));
    }
    let files: Vec<PathBuf> =
        (0..model.catalog().files().len()).map(|file| model.file_path(file).to_owned()).collect();
    let caches: &[&'static str] = match arguments.cache {
        CacheChoice::Cold => &["cold"],
        CacheChoice::Warm => &["warm"],
        CacheChoice::Both => &["cold", "warm"],
    };
    let mut runs = Vec::new();
    let devices = cuda_devices(arguments)?;
    let mut ceilings = Vec::new();
    let mut upload_ceilings = Vec::new();
    for round in 1..=arguments.repeat {
        for shape in SHAPES {
            drop_caches(&files)?;
            ceilings.push(ceiling_run(&files, shape)?);
        }
        // The GPUs of a unified memory are not copied to.
        if !devices.is_empty() && !devices.iter().any(|device| device.is_integrated) {
            match upload_ceiling(&devices, model.catalog().bytes()) {
                Ok(ceiling) => upload_ceilings.push(ceiling),
                Err(failure) => output::notice(&format!("notice: no upload ceiling: {failure}")),
            }
        }
        for &cache in caches {
            for &mode in &arguments.modes {
                if interrupt.is_cancelled() {
                    return Err(Failure::cancelled());
                }
                let rounds = arguments.repeat;
                output::notice(&format!("round {round} of {rounds}: {mode}, {cache}"));
                let bytes = model.catalog().bytes();
                let sampling_ms = picture.as_ref().map(|_| rates::sampling_interval_ms(bytes));
                let load = LoadInChild { arguments, model: &path, mode, sampling_ms };
                runs.push(measure(&load, &files, cache, round)?);
            }
        }
    }
    let caption = Caption::new(arguments.model.as_deref(), &devices);
    let measured = Measured { runs, ceilings, upload_ceilings, devices };
    let report = summarise(arguments, &model, caches, measured);
    if arguments.json { output::json(&report) } else { show(&report) }?;
    match picture {
        Some(picture) => picture.write(&plot::draw(&report, &caption)?),
        None => Ok(()),
    }
}

/// A model in a temporary folder that goes away with the handle.
fn synthesise(arguments: &BenchArguments) -> Result<(PathBuf, tempfile::TempDir), Failure> {
    let place = arguments.dir.clone().unwrap_or_else(|| {
        // /tmp is often memory, which would measure no storage.
        let lasting = PathBuf::from("/var/tmp");
        if lasting.is_dir() { lasting } else { std::env::temp_dir() }
    });
    let no_folder = |error: std::io::Error| {
        Failure::caused(format!("{}: no temporary folder can be made", place.display()), &error)
    };
    let folder = tempfile::Builder::new().prefix("forebay-bench-").tempdir_in(&place);
    let folder = folder.map_err(no_folder)?;
    let path = folder.path().join("synthetic.gguf");
    let size = size::show(arguments.size);
    output::notice(&format!("writing a synthetic model of {size} to {}", path.display()));
    let recipe = Recipe { format: SynthFormat::Gguf, weights: None, seed: 0 };
    synth::write(&path, arguments.size, recipe)?;
    Ok((path, folder))
}

/// What the rounds have come to.
struct Measured {
    runs: Vec<Run>,
    ceilings: Vec<Ceiling>,
    upload_ceilings: Vec<Ceiling>,
    devices: Vec<DeviceInfo>,
}

/// The CUDA devices that the loads go to.
fn cuda_devices(arguments: &BenchArguments) -> Result<Vec<DeviceInfo>, Failure> {
    let one = |backend: &Backend| match backend {
        Backend::Cuda(ordinal) => forebay::device(*ordinal).map(Some),
        _ => Ok(None),
    };
    let devices = match &arguments.device {
        // It goes to the host where there is no driver.
        DeviceChoice::Auto => return Ok(forebay::device(0).into_iter().collect()),
        DeviceChoice::AllCuda => forebay::devices(),
        DeviceChoice::Device(device) => one(device).map(|device| device.into_iter().collect()),
        DeviceChoice::Several(devices) => {
            devices.iter().filter_map(|it| one(it).transpose()).collect()
        }
        _ => return Ok(Vec::new()),
    };
    Ok(devices.map_err(|why| forebay::Error::Device(why.into()))?)
}

/// All devices at once, each with its share of the bytes.
fn upload_ceiling(devices: &[DeviceInfo], bytes: u64) -> Result<Ceiling, Failure> {
    let share = bytes / devices.len() as u64;
    let took = std::thread::scope(|scope| {
        let measure = |device: &DeviceInfo| {
            let ordinal = device.ordinal;
            scope.spawn(move || forebay::upload_ceiling(ordinal, share))
        };
        let threads: Vec<_> = devices.iter().map(measure).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join();
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    });
    let took =
        took.map_err(|_| Failure::new("the measuring of a device panicked".to_owned(), None))?;
    let took: Vec<_> = took.into_iter().collect::<Result<_, _>>().map_err(forebay::Error::from)?;
    let slowest = took.into_iter().max().unwrap_or_default();
    let gib_per_s = output::gib(share * devices.len() as u64) / slowest.as_secs_f64();
    let names: Vec<String> = devices.iter().map(|it| format!("cuda:{}", it.ordinal)).collect();
    Ok(Ceiling { gib_per_s, shape: format!("pinned, 16MiB copies, to {}", names.join(", ")) })
}

fn ceiling_run(files: &[PathBuf], shape: Shape) -> Result<Ceiling, Failure> {
    Ok(Ceiling { gib_per_s: ceiling::measure(files, shape)?, shape: shape.name() })
}

fn measure(
    load: &LoadInChild<'_>,
    files: &[PathBuf],
    cache: &'static str,
    round: u32,
) -> Result<Run, Failure> {
    match cache {
        "cold" => drop_caches(files)?,
        _ => warm_caches(files)?,
    }
    let before = children_cpu_s()?;
    let report = load.run()?;
    let cpu_s = children_cpu_s()? - before;
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let bytes = number("/model/bytes") / f64::from(1_u32 << 30);
    // Contexts and pinning are paid once a process, whatever it loads.
    let device_s = number("/time/device_s");
    let seconds = number("/time/total_s") - device_s;
    let peak = report.pointer("/memory/peak_rss_bytes").and_then(Value::as_u64);
    let device = report.pointer("/backends/0/backend").and_then(Value::as_str);
    Ok(Run {
        mode: load.mode.name(),
        cache,
        round,
        seconds,
        device_s,
        gib_per_s: bytes / seconds,
        cpu_s_per_gib: cpu_s / bytes,
        peak_rss_bytes: peak.unwrap_or(0),
        page_cache_left: cached_share(files)?,
        device: device.unwrap_or("none").to_owned(),
        samples: rates::samples_of(&report, device_s),
    })
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn median_bytes(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

fn summarise(
    arguments: &BenchArguments,
    model: &Model,
    caches: &[&'static str],
    measured: Measured,
) -> BenchReport {
    let Measured { runs, ceilings: ceiling_runs, upload_ceilings, devices } = measured;
    let upload_ceiling = upload_ceilings.first().map(|first| Ceiling {
        gib_per_s: median(upload_ceilings.iter().map(|run| run.gib_per_s).collect()),
        shape: first.shape.clone(),
    });
    let of_shape = |shape: Shape| {
        let rates = ceiling_runs.iter().filter(|run| run.shape == shape.name());
        Ceiling { gib_per_s: median(rates.map(|run| run.gib_per_s).collect()), shape: shape.name() }
    };
    let best = SHAPES.map(of_shape).into_iter().max_by(|a, b| a.gib_per_s.total_cmp(&b.gib_per_s));
    let ceiling = best.unwrap_or(Ceiling { gib_per_s: f64::NAN, shape: String::new() });
    // What bounds a load: the slower of storage and link; from the page cache, the link alone.
    let bound = |cache: &str| match &upload_ceiling {
        Some(upload) if cache == "warm" => upload.gib_per_s,
        Some(upload) => upload.gib_per_s.min(ceiling.gib_per_s),
        None => ceiling.gib_per_s,
    };
    let mut rows = Vec::new();
    for &cache in caches {
        for &mode in &arguments.modes {
            let own: Vec<&Run> =
                runs.iter().filter(|run| run.mode == mode.name() && run.cache == cache).collect();
            let of = |value: fn(&Run) -> f64| median(own.iter().map(|run| value(run)).collect());
            let gib_per_s = of(|run| run.gib_per_s);
            rows.push(Row {
                mode: mode.name(),
                device: own.first().map(|run| run.device.clone()).unwrap_or_default(),
                cache,
                gib_per_s,
                of_ceiling: gib_per_s / bound(cache),
                cpu_s_per_gib: of(|run| run.cpu_s_per_gib),
                peak_rss_bytes: median_bytes(own.iter().map(|run| run.peak_rss_bytes).collect()),
                page_cache_left: (own.iter().map(|run| run.page_cache_left).collect::<Option<_>>())
                    .map(median),
            });
        }
    }
    let catalog = model.catalog();
    let model = ModelSummary {
        format: catalog.format(),
        files: catalog.files().len(),
        tensors: catalog.tensors().len(),
        bytes: catalog.bytes(),
    };
    BenchReport {
        model,
        ceiling,
        upload_ceiling,
        emulated: devices.iter().any(|device| device.is_emulated),
        repeat: arguments.repeat,
        rows,
        runs,
        ceiling_runs,
        upload_ceiling_runs: upload_ceilings,
    }
}

fn show(report: &BenchReport) -> Result<(), Failure> {
    output::line(&format!(
        "{} model of {}, {} rounds, medians; raw read ceiling {:.2} GiB/s ({})",
        report.model.format,
        size::show(report.model.bytes),
        report.repeat,
        report.ceiling.gib_per_s,
        report.ceiling.shape
    ))?;
    if let Some(upload) = &report.upload_ceiling {
        let emulated = if report.emulated { ", EMULATED: no rate of hardware" } else { "" };
        output::line(&format!(
            "upload ceiling {:.2} GiB/s ({}){emulated}; cold rows are shares of the lower ceiling, \
             warm ones of this",
            upload.gib_per_s, upload.shape
        ))?;
    }
    let head =
        ["mode", "device", "cache", "GiB/s", "of ceiling", "CPU s/GiB", "peak RSS", "cache left"];
    let mut rows = vec![head.map(String::from).to_vec()];
    rows.extend(report.rows.iter().map(|row| {
        vec![
            row.mode.to_owned(),
            row.device.clone(),
            row.cache.to_owned(),
            format!("{:.2}", row.gib_per_s),
            format!("{:.2}", row.of_ceiling),
            format!("{:.2}", row.cpu_s_per_gib),
            size::show(row.peak_rss_bytes),
            row.page_cache_left
                .map_or("unknown".to_owned(), |left| format!("{:.0} %", left * 100.0)),
        ]
    }));
    output::table(&rows)
}

//! The command line.

use crate::{output, size};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use forebay::{
    DeviceChoice, DigestKind, Dtype, EngineChoice, GpuLayers, LoadMode, ModeSpec, NumaPolicy,
    Options, PlaceRule, Prefetch, Reclaim, Repack, SplitMode,
};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Moves model weights from NVMe to where they are computed on, at the rate the hardware allows.
#[derive(Parser)]
#[command(name = "forebay", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List the tensors of a model
    Inspect(InspectArguments),
    /// Say what `load` would do and why, reading no tensor
    Plan(PlanArguments),
    /// Stream every tensor to its backend and report
    Load(LoadArguments),
    /// Run passes over a model that need not fit on the device, layer after layer
    Stream(StreamArguments),
    /// Compare load modes on one model, beside the storage's ceiling
    Bench(BenchArguments),
    /// Say what this machine and this path can do, and what to change
    Doctor(DoctorArguments),
    /// Compare every tensor, where it landed, with a manifest of digests
    Verify(VerifyArguments),
    /// Write a valid model of realistic shapes
    Synth(SynthArguments),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the man page
    Man,
}

#[derive(Args)]
pub(crate) struct InspectArguments {
    /// A .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder that holds one
    /// model
    pub(crate) model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the model's metadata too
    #[arg(long)]
    pub(crate) metadata: bool,
}

#[derive(Args)]
pub(crate) struct PlanArguments {
    /// A .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder that holds one
    /// model
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) policy: PolicyArguments,
    /// Accepted, and without effect here
    #[arg(long, hide = true)]
    pub(crate) digest: bool,
    /// Accepted, and without effect here
    #[arg(long, hide = true)]
    pub(crate) trace: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct LoadArguments {
    /// A .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder that holds one
    /// model
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) policy: PolicyArguments,
    /// sha256 of every tensor's bytes, read back from where they landed
    #[arg(long)]
    pub(crate) digest: bool,
    /// Write a timeline of reads, waits and uploads there, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print the report as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// How far the load had come, every so many milliseconds, as `progress` of that object
    #[arg(long, hide = true, requires = "json", value_name = "MS")]
    pub(crate) sample_progress: Option<u64>,
}

#[derive(Args)]
pub(crate) struct StreamArguments {
    /// A .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder that holds one
    /// model
    pub(crate) model: PathBuf,
    /// Device memory that weights may take; auto is nine tenths of what is free (half of the
    /// memory at hand for host)
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = size_or_auto)]
    pub(crate) vram_budget: Sized,
    /// Host memory that may keep layers between passes; auto is half of the memory at hand
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = size_or_auto)]
    pub(crate) host_budget: Sized,
    /// How many vectors each matrix is multiplied with
    #[arg(long, default_value_t = 1, value_parser = batch_size)]
    pub(crate) batch: usize,
    /// How often all layers are gone through
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) passes: u32,
    /// The same seed multiplies with the same vectors
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Only these experts of each layer of a mixture, fetched on demand: numbers (0,5,7) or
    /// random:K, anew for each pass
    #[arg(long, value_name = "IDS|random:K", value_parser = parse::<Experts>)]
    pub(crate) experts: Option<Experts>,
    /// Accepted, and without effect here: checksums are of what was computed
    #[arg(long, hide = true)]
    pub(crate) digest: bool,
    /// Write a timeline of reads, waits, uploads and layers, which ui.perfetto.dev opens
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) policy: PolicyArguments,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct VerifyArguments {
    /// A .gguf, .safetensors or .ptd file, a *.safetensors.index.json, or a folder that holds one
    /// model
    pub(crate) model: PathBuf,
    /// Lines of `blake3:DIGEST  name`, or of `DIGEST  name` for sha256
    #[arg(long)]
    pub(crate) manifest: PathBuf,
    /// Write the manifest instead of comparing with it
    #[arg(long)]
    pub(crate) write: bool,
    /// The digest of a manifest to be written: blake3 or sha256
    #[arg(long, value_name = "KIND", requires = "write", default_value_t)]
    pub(crate) digest: DigestKind,
    #[command(flatten)]
    pub(crate) policy: PolicyArguments,
    /// Write a timeline of the load there, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// A file or folder whose storage is looked at
    #[arg(default_value = ".")]
    pub(crate) path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct SynthArguments {
    /// The file to write
    pub(crate) out: PathBuf,
    /// About how large it shall be
    #[arg(long, value_parser = synth_size)]
    pub(crate) size: u64,
    /// gguf or safetensors; by default what the file's name ends in
    #[arg(long)]
    pub(crate) format: Option<SynthFormat>,
    /// The type of all matrices of a GGUF: Q4_0, Q8_0, Q4_K, Q6_K or BF16; a usual mixture if not
    /// given
    #[arg(long, value_name = "TYPE", value_parser = synth_weights)]
    pub(crate) weights: Option<Dtype>,
    /// The same seed writes the same bytes
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SynthFormat {
    Gguf,
    Safetensors,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    /// The model to load; a synthetic one is made in a temporary folder if none is given
    pub(crate) model: Option<PathBuf>,
    /// The size of the synthetic model
    #[arg(long, default_value = "1GiB", value_parser = size::parse, conflicts_with = "model")]
    pub(crate) size: u64,
    /// Where the temporary folder for it is made
    #[arg(long, conflicts_with = "model")]
    pub(crate) dir: Option<PathBuf>,
    /// How often each row is measured; medians are shown
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Where tensors go
    #[arg(long, default_value = "auto", value_parser = parse::<DeviceChoice>)]
    pub(crate) device: DeviceChoice,
    /// The load modes to compare
    #[arg(long, value_delimiter = ',', default_value = "auto,dio,none,mmap")]
    #[arg(value_parser = parse::<LoadMode>)]
    pub(crate) modes: Vec<LoadMode>,
    /// From storage, from the page cache, or both
    #[arg(long, default_value = "both")]
    pub(crate) cache: CacheChoice,
    /// Passed on to every load
    #[arg(long, value_parser = size::parse)]
    pub(crate) staging: Option<u64>,
    /// Passed on to every load
    #[arg(long, value_parser = size::parse)]
    pub(crate) chunk: Option<u64>,
    /// Passed on to every load
    #[arg(long)]
    pub(crate) queue_depth: Option<usize>,
    /// Draw mode against mode, and each mode's rate over time, into an SVG
    #[arg(long, value_name = "OUT.svg", value_parser = svg_path)]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// The matmul kernels: checked against sums in f64, then timed beside the device's ceilings
    Kernels(KernelArguments),
}

#[derive(Args)]
pub(crate) struct KernelArguments {
    /// auto, host, cuda or cuda:N
    #[arg(long, default_value = "auto", value_parser = parse::<DeviceChoice>)]
    pub(crate) device: DeviceChoice,
    /// The types of weights; all that have kernels if none is given
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    pub(crate) types: Vec<String>,
    /// Rows and columns of the weights, as MxK; the usual ones of an 8B model if none are given
    #[arg(long, value_delimiter = ',', value_name = "MxK", value_parser = matrix_shape)]
    pub(crate) shapes: Vec<(usize, usize)>,
    /// How many inputs; 1, 4, 16, 64, 128 and 512 if none are given
    #[arg(long, value_delimiter = ',', value_name = "N", value_parser = batch_size)]
    pub(crate) batch: Vec<usize>,
    /// How often each product is timed; medians are shown
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which experts of each layer.
#[derive(Clone, Debug)]
pub(crate) enum Experts {
    Numbers(Vec<u64>),
    /// So many, chosen at random.
    Random(usize),
}

impl std::str::FromStr for Experts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is neither numbers (0,5,7) nor random:K");
        if let Some(count) = text.strip_prefix("random:") {
            let count = count.parse().ok().filter(|&count| count > 0);
            return count.map(Self::Random).ok_or_else(wrong);
        }
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        let mut numbers = numbers.map_err(|_| wrong())?;
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self::Numbers(numbers))
    }
}

fn svg_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension() {
        Some(extension) if !extension.eq_ignore_ascii_case("svg") => {
            Err(format!("'{text}' would be no SVG: end it in .svg"))
        }
        _ => Ok(path),
    }
}

fn batch_size(text: &str) -> Result<usize, String> {
    const BATCH_MAX: usize = 1 << 16;
    let batch = text.parse().ok().filter(|batch| (1..=BATCH_MAX).contains(batch));
    batch.ok_or_else(|| format!("'{text}' is no number of inputs from 1 to {BATCH_MAX}"))
}

fn matrix_shape(text: &str) -> Result<(usize, usize), String> {
    let shape = text.split_once('x').and_then(|(m, k)| Some((m.parse().ok()?, k.parse().ok()?)));
    shape
        .filter(|&(m, k)| m > 0 && k > 0)
        .ok_or_else(|| format!("'{text}' is no shape: 4096x14336, say"))
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CacheChoice {
    Cold,
    Warm,
    Both,
}

fn synth_size(text: &str) -> Result<u64, String> {
    const BYTES_MAX: u64 = 4 << 40;
    let bytes = size::parse(text)?;
    if bytes > BYTES_MAX {
        Err("more than 4TiB is no realistic model".to_owned())
    } else {
        Ok(bytes)
    }
}

fn synth_weights(text: &str) -> Result<Dtype, String> {
    let known = [Dtype::Q4_0, Dtype::Q8_0, Dtype::Q4_K, Dtype::Q6_K, Dtype::BF16];
    let named = known.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(text));
    named.ok_or_else(|| format!("'{text}' is none of Q4_0, Q8_0, Q4_K, Q6_K, BF16"))
}

fn parse<T: std::str::FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

/// The flags that `plan`, `load`, `stream` and `verify` share.
#[derive(Args)]
pub(crate) struct PolicyArguments {
    /// Where offloaded tensors go: auto, host, cuda, cuda:N, several (cuda:0,cuda:1) or cuda:all
    #[arg(long, default_value = "auto", value_parser = parse::<DeviceChoice>)]
    device: DeviceChoice,
    /// How they are spread over several devices: layers (whole tensors), rows or columns (parts)
    #[arg(long, default_value = "layers", value_parser = parse::<SplitMode>)]
    split: SplitMode,
    /// How many layers are offloaded (the last ones first), or all
    #[arg(long, visible_alias = "ngl", default_value = "all", value_parser = parse::<GpuLayers>)]
    gpu_layers: GpuLayers,
    /// Where tensors of matching names go: device, host, cuda:N, cpu, or parts of them to several
    /// (rows:cuda:0,cuda:1 or columns:…); the first match wins
    #[arg(long, value_name = "REGEX=BACKEND", value_parser = parse::<PlaceRule>)]
    place: Vec<PlaceRule>,
    /// auto, none, mmap, mlock, mlock-strict or dio; for all, or cuda=dio,cpu=mmap [short: -lm]
    #[arg(long, value_name = "SPEC", value_parser = parse::<ModeSpec>)]
    load_mode: Option<ModeSpec>,
    /// llama.cpp's spelling of --load-mode mmap
    #[arg(long, hide_short_help = true)]
    mmap: bool,
    /// llama.cpp's spelling of --load-mode none
    #[arg(long, hide_short_help = true)]
    no_mmap: bool,
    /// llama.cpp's spelling of --load-mode mlock
    #[arg(long, hide_short_help = true)]
    mlock: bool,
    /// llama.cpp's spelling of --load-mode dio
    #[arg(long, hide_short_help = true)]
    direct_io: bool,
    /// llama.cpp's spelling of --load-mode mmap
    #[arg(long, hide_short_help = true)]
    no_direct_io: bool,
    /// A mode that can't be had is an error instead of a recorded step down
    #[arg(long)]
    no_fallback: bool,
    /// Who performs the reads: auto, uring, uring-polled (keeps a processor busy, and takes a drive
    /// with queues to poll), tokio-uring or threads
    #[arg(long, default_value = "auto", value_parser = parse::<EngineChoice>)]
    engine: EngineChoice,
    /// The size of one read
    #[arg(long, value_name = "SIZE", value_parser = size_or_auto)]
    chunk: Option<Sized>,
    /// Reads in flight
    #[arg(long, value_name = "N", value_parser = count_or_auto)]
    queue_depth: Option<Counted>,
    /// All staging memory
    #[arg(long, value_name = "SIZE", value_parser = size_or_auto)]
    staging: Option<Sized>,
    /// Give back mapped pages whose bytes were copied elsewhere: auto, on or off
    #[arg(long, default_value = "auto", value_parser = parse::<Reclaim>)]
    reclaim: Reclaim,
    /// Bring mapped tensors into memory ahead of use: auto (if they fit), on or off
    #[arg(long, default_value = "auto", value_parser = parse::<Prefetch>)]
    prefetch: Prefetch,
    /// Interleave Q4_0 and Q8_0 weights of cpu and host for matrix products: on or off
    #[arg(long, default_value = "off", value_parser = parse::<Repack>)]
    repack: Repack,
    /// On which NUMA nodes memory is placed: off, node, node:N or interleave
    #[arg(long, default_value = "off", value_parser = parse::<NumaPolicy>)]
    numa: NumaPolicy,
}

/// A size, or `None` for `auto`.
#[derive(Clone, Copy)]
pub(crate) struct Sized(Option<u64>);

impl Sized {
    pub(crate) fn bytes(self) -> Option<u64> {
        self.0
    }
}

/// A count, or `None` for `auto`.
#[derive(Clone, Copy)]
struct Counted(Option<usize>);

fn size_or_auto(text: &str) -> Result<Sized, String> {
    if text == "auto" { Ok(Sized(None)) } else { size::parse(text).map(|size| Sized(Some(size))) }
}

fn count_or_auto(text: &str) -> Result<Counted, String> {
    if text == "auto" {
        return Ok(Counted(None));
    }
    let count: NonZeroUsize = text.parse().map_err(|_| format!("'{text}' is no number above 0"))?;
    Ok(Counted(Some(count.get())))
}

impl PolicyArguments {
    /// The options for the library. Says on standard error what replaces an old flag.
    pub(crate) fn options(&self) -> Options {
        let mut options = Options::default();
        options.device = self.device.clone();
        options.split = self.split;
        options.gpu_layers = self.gpu_layers;
        options.place.clone_from(&self.place);
        options.load_mode = self.load_mode();
        options.no_fallback = self.no_fallback;
        options.engine = self.engine;
        options.chunk_bytes = self.chunk.and_then(|chunk| chunk.0);
        options.queue_depth = self.queue_depth.and_then(|depth| depth.0);
        options.staging_bytes = self.staging.and_then(|staging| staging.0);
        options.reclaim = self.reclaim;
        options.prefetch = self.prefetch;
        options.repack = self.repack;
        options.numa = self.numa;
        options
    }

    fn load_mode(&self) -> ModeSpec {
        // The most particular of llama.cpp's flags counts, as it does there.
        let old = [
            (self.direct_io, "--direct-io", LoadMode::Dio),
            (self.mlock, "--mlock", LoadMode::Mlock),
            (self.mmap, "--mmap", LoadMode::Mmap),
            (self.no_mmap, "--no-mmap", LoadMode::None),
            (self.no_direct_io, "--no-direct-io", LoadMode::Mmap),
        ];
        let mut chosen = None;
        for (given, flag, mode) in old {
            if given {
                let ignored = if self.load_mode.is_some() { "; --load-mode wins" } else { "" };
                output::notice(&format!("notice: {flag} is --load-mode {mode} here{ignored}"));
                chosen.get_or_insert(mode);
            }
        }
        self.load_mode.clone().or(chosen.map(ModeSpec::all)).unwrap_or_default()
    }
}

/// `-lm` is two letters, as llama.cpp's short flags are; clap knows only one.
pub(crate) fn with_long_load_mode(
    arguments: impl Iterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    arguments.map(|argument| match argument.to_str() {
        Some("-lm") => "--load-mode".into(),
        Some(text) if text.starts_with("-lm=") => format!("--load-mode={}", &text[4..]).into(),
        _ => argument,
    })
}

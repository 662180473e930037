//! `forebay synth`: a valid model of realistic shapes, with values that are finite in every type.

use crate::args::{SynthArguments, SynthFormat};
use crate::failure::Failure;
use crate::{interrupt, output, size};
use fastrand::Rng;
use forebay::{Cancel, Dtype};
use std::fs::Permissions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// GGUF's default, which the writer states too.
const GGUF_ALIGNMENT: u64 = 32;
/// How much is made up at a time: a multiple of every block's size would not fit a buffer, so
/// whole blocks up to about this.
const PIECE_BYTES: u64 = 1 << 20;

struct SynthTensor {
    name: String,
    dtype: Dtype,
    /// Outermost dimension first.
    shape: Vec<u64>,
}

impl SynthTensor {
    fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().product();
        elements / self.dtype.block_elements() * self.dtype.block_bytes()
    }
}

/// A decoder of the Llama family, scaled to a size.
struct Shapes {
    hidden: u64,
    feed_forward: u64,
    layers: u64,
    vocabulary: u64,
    recipe: Recipe,
}

/// What is written.
#[derive(Clone, Copy)]
pub(crate) struct Recipe {
    pub(crate) format: SynthFormat,
    /// The type of all matrices of a GGUF; the usual mixture if none is given.
    pub(crate) weights: Option<Dtype>,
    pub(crate) seed: u64,
}

pub(crate) fn run(arguments: &SynthArguments) -> Result<(), Failure> {
    let extension = arguments.out.extension().and_then(|extension| extension.to_str());
    let format = match (arguments.format, extension) {
        (Some(format), _) => format,
        (None, Some("gguf")) => SynthFormat::Gguf,
        (None, Some("safetensors")) => SynthFormat::Safetensors,
        _ => {
            let message = format!("{}: no format", arguments.out.display());
            return Err(Failure::new(message, Some("give --format gguf or safetensors")));
        }
    };
    let weights = arguments.weights;
    if weights.is_some() && format == SynthFormat::Safetensors {
        let message = "--weights is for GGUF; safetensors models are BF16".to_owned();
        return Err(Failure::new(message, Some("leave --weights out")));
    }
    let recipe = Recipe { format, weights, seed: arguments.seed };
    let bytes = write(&arguments.out, arguments.size, recipe)?;
    output::line(&format!("{}: {}", arguments.out.display(), size::show(bytes)))
}

/// Writes the model beside its place and moves it there when it is whole and on the disk.
/// Returns its size.
pub(crate) fn write(out: &Path, size_bytes: u64, recipe: Recipe) -> Result<u64, Failure> {
    let Recipe { format, seed, .. } = recipe;
    let failed =
        |error: &io::Error| Failure::caused(format!("{}: can't be written", out.display()), error);
    let folder = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let tensors = Shapes::scaled_to(size_bytes, recipe).tensors();
    let header = match format {
        SynthFormat::Gguf => gguf_header(&Shapes::scaled_to(size_bytes, recipe), &tensors),
        SynthFormat::Safetensors => safetensors_header(&tensors),
    };
    let file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(|error| failed(&error))?;
    // A signal is heard between pieces, so that the unfinished file goes away.
    let interrupt = interrupt::flag();
    let mut writer = BufWriter::with_capacity(1 << 20, file.as_file());
    match write_all(&mut writer, &header, &tensors, format, seed, &interrupt) {
        Err(error) if interrupt.is_cancelled() && error.kind() == io::ErrorKind::Interrupted => {
            return Err(Failure::cancelled());
        }
        other => other.map_err(|error| failed(&error))?,
    }
    drop(writer);
    file.as_file().sync_all().map_err(|error| failed(&error))?;
    let bytes = file.as_file().metadata().map_err(|error| failed(&error))?.len();
    file.persist(out).map_err(|error| failed(&error.error))?;
    Ok(bytes)
}

fn write_all(
    writer: &mut impl Write,
    header: &[u8],
    tensors: &[SynthTensor],
    format: SynthFormat,
    seed: u64,
    interrupt: &Cancel,
) -> io::Result<()> {
    writer.write_all(header)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let mut rng = Rng::with_seed(seed ^ (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let block_bytes = tensor.dtype.block_bytes();
        let piece_bytes = PIECE_BYTES / block_bytes * block_bytes;
        let mut left = tensor.bytes();
        let mut piece = vec![0; usize::try_from(piece_bytes.min(left)).unwrap_or(usize::MAX)];
        while left > 0 {
            if interrupt.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            fill(&mut rng, tensor, &mut piece);
            writer.write_all(&piece)?;
            left -= piece.len() as u64;
        }
        if format == SynthFormat::Gguf {
            let padding = tensor.bytes().next_multiple_of(GGUF_ALIGNMENT) - tensor.bytes();
            writer.write_all(&vec![0; usize::try_from(padding).unwrap_or(0)])?;
        }
    }
    writer.flush()
}

impl Shapes {
    fn scaled_to(size_bytes: u64, recipe: Recipe) -> Self {
        const MIB: u64 = 1 << 20;
        let (hidden, vocabulary): (u64, u64) = match size_bytes {
            0..MIB => (256, 64),
            bytes if bytes < 8 * MIB => (256, 512),
            bytes if bytes < 64 * MIB => (512, 2048),
            bytes if bytes < 512 * MIB => (1024, 8192),
            bytes if bytes < 1536 * MIB => (2048, 32_000),
            bytes if bytes < 16_384 * MIB => (4096, 32_000),
            _ => (8192, 128_256),
        };
        let feed_forward = (hidden * 11 / 4).next_multiple_of(256);
        let mut shapes = Self { hidden, feed_forward, layers: 0, vocabulary, recipe };
        let total = |shapes: &Self| shapes.tensors().iter().map(SynthTensor::bytes).sum::<u64>();
        let rest_bytes = total(&shapes);
        shapes.layers = 1;
        let layer_bytes = total(&shapes) - rest_bytes;
        shapes.layers = (size_bytes.saturating_sub(rest_bytes) / layer_bytes).max(1);
        // What a layer is too large for goes to the vocabulary.
        let row_bytes: u64 =
            shapes.embeddings().iter().map(|tensor| tensor.bytes() / vocabulary).sum();
        shapes.vocabulary += size_bytes.saturating_sub(total(&shapes)) / row_bytes;
        shapes
    }

    fn embeddings(&self) -> [SynthTensor; 2] {
        let (embeddings, output) = match self.recipe.format {
            SynthFormat::Gguf => {
                (("token_embd.weight", Dtype::Q8_0), ("output.weight", Dtype::Q6_K))
            }
            SynthFormat::Safetensors => {
                (("model.embed_tokens.weight", Dtype::BF16), ("lm_head.weight", Dtype::BF16))
            }
        };
        [embeddings, output].map(|(name, dtype)| SynthTensor {
            name: name.to_owned(),
            dtype: self.recipe.weights.unwrap_or(dtype),
            shape: vec![self.vocabulary, self.hidden],
        })
    }

    fn tensors(&self) -> Vec<SynthTensor> {
        let [embeddings, output] = self.embeddings();
        let mut tensors = vec![embeddings];
        for layer in 0..self.layers {
            self.push_layer(layer, &mut tensors);
        }
        let (name, dtype) = match self.recipe.format {
            SynthFormat::Gguf => ("output_norm.weight", Dtype::F32),
            SynthFormat::Safetensors => ("model.norm.weight", Dtype::BF16),
        };
        tensors.push(SynthTensor { name: name.to_owned(), dtype, shape: vec![self.hidden] });
        tensors.push(output);
        tensors
    }

    fn push_layer(&self, layer: u64, tensors: &mut Vec<SynthTensor>) {
        let (hidden, feed_forward, keys) = (self.hidden, self.feed_forward, self.hidden / 4);
        // (GGUF's name and type, safetensors' name, shape)
        let parts: [(&str, Dtype, &str, &[u64]); 9] = [
            ("attn_norm", Dtype::F32, "input_layernorm", &[hidden]),
            ("attn_q", Dtype::Q4_K, "self_attn.q_proj", &[hidden, hidden]),
            ("attn_k", Dtype::Q4_K, "self_attn.k_proj", &[keys, hidden]),
            ("attn_v", Dtype::Q6_K, "self_attn.v_proj", &[keys, hidden]),
            ("attn_output", Dtype::Q4_K, "self_attn.o_proj", &[hidden, hidden]),
            ("ffn_norm", Dtype::F32, "post_attention_layernorm", &[hidden]),
            ("ffn_gate", Dtype::Q4_K, "mlp.gate_proj", &[feed_forward, hidden]),
            ("ffn_up", Dtype::Q4_K, "mlp.up_proj", &[feed_forward, hidden]),
            ("ffn_down", Dtype::Q6_K, "mlp.down_proj", &[hidden, feed_forward]),
        ];
        for (gguf, dtype, safetensors, shape) in parts {
            let (name, dtype) = match self.recipe.format {
                SynthFormat::Gguf => {
                    let weights = self.recipe.weights.filter(|_| shape.len() > 1);
                    (format!("blk.{layer}.{gguf}.weight"), weights.unwrap_or(dtype))
                }
                SynthFormat::Safetensors => {
                    (format!("model.layers.{layer}.{safetensors}.weight"), Dtype::BF16)
                }
            };
            tensors.push(SynthTensor { name, dtype, shape: shape.to_vec() });
        }
    }
}

/// Random bytes, with the floating-point fields of every element or block made small and finite.
fn fill(rng: &mut Rng, tensor: &SynthTensor, piece: &mut [u8]) {
    rng.fill(piece);
    let sane_half = |bytes: &mut [u8]| {
        // Sign and mantissa stay random; the exponent is one of four that mean 2^-8 to 2^-5.
        bytes[1] = bytes[1] & 0b1000_1111 | 0b0001_0000;
    };
    let block_bytes = usize::try_from(tensor.dtype.block_bytes()).unwrap_or(1);
    match tensor.dtype {
        Dtype::F32 => piece.chunks_exact_mut(4).for_each(|element| {
            element.copy_from_slice(&(0.9 + 0.2 * f32::from(element[0]) / 255.0).to_le_bytes());
        }),
        Dtype::BF16 => piece.chunks_exact_mut(2).for_each(|element| {
            element[1] = element[1] & 0b1000_0000 | 0b0011_1100;
        }),
        dtype => {
            for block in piece.chunks_exact_mut(block_bytes) {
                scale_offsets(dtype).iter().for_each(|&at| sane_half(&mut block[at..at + 2]));
            }
        }
    }
}

/// Where in a block the half-precision scales are.
fn scale_offsets(dtype: Dtype) -> &'static [usize] {
    match dtype {
        Dtype::Q4_0 | Dtype::Q8_0 => &[0],
        Dtype::Q4_K => &[0, 2],
        // Its scale comes last: 128 + 64 + 16 bytes of quants and sub-scales before it.
        Dtype::Q6_K => &[208],
        _ => &[],
    }
}

fn safetensors_header(tensors: &[SynthTensor]) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end],
        });
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    // The official writer pads with spaces, so that data starts at a multiple of 8.
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

fn gguf_header(shapes: &Shapes, tensors: &[SynthTensor]) -> Vec<u8> {
    let mut header = Vec::new();
    let put_text = |header: &mut Vec<u8>, text: &str| {
        header.extend((text.len() as u64).to_le_bytes());
        header.extend(text.as_bytes());
    };
    const TYPE_UINT32: u32 = 4;
    const TYPE_STRING: u32 = 8;
    let numbers: [(&str, u64); 8] = [
        ("general.alignment", GGUF_ALIGNMENT),
        ("llama.block_count", shapes.layers),
        ("llama.context_length", 4096),
        ("llama.embedding_length", shapes.hidden),
        ("llama.feed_forward_length", shapes.feed_forward),
        ("llama.attention.head_count", shapes.hidden / 64),
        ("llama.attention.head_count_kv", (shapes.hidden / 256).max(1)),
        ("llama.vocab_size", shapes.vocabulary),
    ];
    let texts = [("general.architecture", "llama"), ("general.name", "forebay synthetic")];
    header.extend(b"GGUF");
    header.extend(3_u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(((numbers.len() + texts.len()) as u64).to_le_bytes());
    for (key, text) in texts {
        put_text(&mut header, key);
        header.extend(TYPE_STRING.to_le_bytes());
        put_text(&mut header, text);
    }
    for (key, number) in numbers {
        put_text(&mut header, key);
        header.extend(TYPE_UINT32.to_le_bytes());
        header.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend(u32::try_from(tensor.shape.len()).unwrap_or(0).to_le_bytes());
        for dimension in tensor.shape.iter().rev() {
            header.extend(dimension.to_le_bytes());
        }
        header.extend(tensor.dtype.gguf_id().unwrap_or(0).to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes()).next_multiple_of(GGUF_ALIGNMENT);
    }
    let end = (header.len() as u64).next_multiple_of(GGUF_ALIGNMENT);
    header.resize(usize::try_from(end).unwrap_or(header.len()), 0);
    header
}

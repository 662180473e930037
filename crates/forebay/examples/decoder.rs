//! Runs a small Llama model whose layers are streamed to a device with room for a quarter of them:
//! prompts as token ids in, the likeliest next tokens out. `tests/decoder/compare.py` holds its
//! logits against llama.cpp's.
//!
//!     cargo run --release -p forebay --example decoder -- MODEL --tokens 504,3575,282,4649,314
//!
//! `--tokens` may be repeated: all prompts go through a layer together, so that its weights are
//! needed once. `--generate N` is how many tokens follow each (1). `--budget BYTES` is what weights may
//! take on the device (a quarter of the model). `--logits FILE` takes what the model says at the last
//! token of every prompt, one prompt after another, as little-endian `f32`.

#![forbid(unsafe_code)]

use forebay::{Catalog, Layer, LayerStream, Model, Options, Tensor, Value};
use std::error::Error;
use std::ops::Range;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The matrices and vectors that a layer of a Llama has.
const LAYER: [&str; 9] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

fn main() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let bytes = Model::open(&arguments.model)?.catalog().bytes();
    let mut options = Options::default();
    // Of which a few rows are needed; what is multiplied by a tied one stays on the CPU, too.
    options.place.push("token_embd=cpu".parse()?);
    let mut stream = LayerStream::builder(&arguments.model)
        .options(options)
        .device_budget(arguments.budget.unwrap_or(bytes / 4))
        .host_budget(0)
        .passes(arguments.generate as u64)
        .start()?;
    let model = Hyper::of(stream.model().catalog())?;
    let sequence =
        |tokens| Sequence { tokens, done: 0, caches: vec![Cache::default(); model.layers] };
    let mut sequences: Vec<_> = arguments.prompts.into_iter().map(sequence).collect();
    for step in 0..arguments.generate {
        let logits = forward(&mut stream, &model, &mut sequences)?;
        if let Some(path) = arguments.logits.as_ref().filter(|_| step == 0) {
            let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(path, bytes)?;
        }
        let each = logits.chunks_exact(logits.len() / sequences.len());
        for (sequence, logits) in sequences.iter_mut().zip(each) {
            let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            sequence.tokens.extend(likeliest.map(|(token, _)| token));
        }
    }
    let vocabulary = stream.model().catalog().metadata().get("tokenizer.ggml.tokens");
    for Sequence { tokens, .. } in sequences {
        let tokens = &tokens[tokens.len() - arguments.generate..];
        let text = |token| vocabulary.and_then(Value::as_array)?.get(token);
        let texts = tokens.iter().filter_map(|token| text(*token));
        let texts: String = texts.map(|text| text.to_string()).collect();
        println!("{tokens:?} {texts:?}");
    }
    Ok(())
}

struct Arguments {
    model: PathBuf,
    prompts: Vec<Vec<usize>>,
    generate: usize,
    budget: Option<u64>,
    logits: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let usage =
            "usage: decoder MODEL --tokens 1,2,3 [--generate N] [--budget BYTES] [--logits FILE]";
        let model = words.next().ok_or(usage)?.into();
        let mut parsed =
            Self { model, prompts: Vec::new(), generate: 1, budget: None, logits: None };
        while let Some(option) = words.next() {
            let value = words.next().ok_or(usage)?;
            match option.as_str() {
                "--tokens" => {
                    let tokens: std::result::Result<_, _> =
                        value.split(',').map(str::parse).collect();
                    parsed.prompts.push(tokens?);
                }
                "--generate" => parsed.generate = value.parse()?,
                "--budget" => parsed.budget = Some(value.parse()?),
                "--logits" => parsed.logits = Some(value.into()),
                _ => return Err(usage.into()),
            }
        }
        if parsed.prompts.is_empty() { Err(usage.into()) } else { Ok(parsed) }
    }
}

/// What the metadata says of the model's shape.
struct Hyper {
    layers: usize,
    heads: usize,
    /// Heads of keys and values, each of which serves several heads of queries.
    shared_heads: usize,
    /// Elements of a head.
    head: usize,
    /// How many of them turn with the position.
    turning: usize,
    frequency_base: f32,
    epsilon: f32,
}

impl Hyper {
    fn of(catalog: &Catalog) -> Result<Self> {
        let metadata = catalog.metadata();
        let architecture = metadata.get("general.architecture").and_then(Value::as_str);
        if architecture != Some("llama") {
            return Err(format!("llama is what this runs, not {architecture:?}").into());
        }
        if let Some((key, _)) = metadata.iter().find(|(key, _)| key.contains("rope.scaling")) {
            return Err(format!("scaled positions are not for this example ({key})").into());
        }
        let value = |key: &str| metadata.get(&format!("llama.{key}"));
        let number = |key: &str, default: Option<usize>| {
            match value(key) {
                Some(value) => value.as_u64().and_then(|number| usize::try_from(number).ok()),
                None => default,
            }
            .ok_or_else(|| format!("llama.{key} is no number in the metadata"))
        };
        #[expect(clippy::cast_possible_truncation, reason = "both were f32 in the file")]
        let float = |key: &str, default: f32| {
            value(key).and_then(Value::as_f64).map_or(default, |value| value as f32)
        };
        let heads = number("attention.head_count", None)?;
        let head = number("embedding_length", None)? / heads.max(1);
        let head = number("attention.key_length", Some(head))?;
        let model = Self {
            layers: number("block_count", None)?,
            heads,
            shared_heads: number("attention.head_count_kv", Some(heads))?,
            head,
            turning: number("rope.dimension_count", Some(head))?,
            frequency_base: float("rope.freq_base", 1e4),
            epsilon: float("attention.layer_norm_rms_epsilon", 1e-5),
        };
        model.check_tensors(catalog)?;
        Ok(model)
    }

    /// Biases, experts, frequencies: what nothing below uses would be missed in the logits only.
    fn check_tensors(&self, catalog: &Catalog) -> Result<()> {
        let of_layer = |name: &str| {
            let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
            let known = LAYER.contains(&name.strip_suffix(".weight")?);
            layer.parse().ok().filter(|layer: &usize| known && *layer < self.layers)
        };
        let outside = ["token_embd.weight", "output_norm.weight", "output.weight"];
        for tensor in catalog.tensors() {
            if of_layer(&tensor.name).is_none() && !outside.contains(&tensor.name.as_str()) {
                return Err(format!("'{}' is not for this example", tensor.name).into());
            }
        }
        Ok(())
    }
}

/// A prompt and what followed.
struct Sequence {
    tokens: Vec<usize>,
    /// How many of the tokens have been through the layers.
    done: usize,
    /// One a layer.
    caches: Vec<Cache>,
}

/// The keys and values of the tokens that are done, a row each.
#[derive(Clone, Default)]
struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Takes the tokens that are not done through all layers, a row of `x` each, and says what may
/// follow the last one of every sequence.
fn forward(
    stream: &mut LayerStream,
    model: &Hyper,
    sequences: &mut [Sequence],
) -> Result<Vec<f32>> {
    let (mut table, mut x, mut logits) = (None, Vec::new(), Vec::new());
    while let Some(part) = stream.next_layer()? {
        match part.number() {
            None if table.is_none() => {
                let embeddings = tensor(&part, "token_embd.weight")?;
                for token in sequences.iter().flat_map(|it| &it.tokens[it.done..]) {
                    x.extend(embeddings.rows_to_f32(*token..token + 1)?);
                }
                table = Some(embeddings);
            }
            Some(number) => {
                let weights = |name: &str| tensor(&part, &format!("blk.{number}.{name}.weight"));
                layer(weights, model, number as usize, sequences, &mut x)?;
            }
            None => {
                let x = normalized(&x, &tensor(&part, "output_norm.weight")?, model.epsilon)?;
                let output = part.tensor("output.weight").or(table.clone());
                let output = output.ok_or("the model has no output")?;
                let mut rows = x.chunks_exact(output.matrix_shape()?.columns);
                let mut last_rows = Vec::new();
                for sequence in &mut *sequences {
                    let last = (sequence.tokens.len() - sequence.done).checked_sub(1);
                    let last = last.and_then(|last| rows.nth(last));
                    last_rows.extend(last.ok_or("a prompt has no token")?);
                    sequence.done = sequence.tokens.len();
                }
                logits = multiply(&output, &last_rows)?;
            }
        }
    }
    Ok(logits)
}

/// One layer: every row is mixed with what came before it, then by itself.
fn layer(
    weights: impl Fn(&str) -> Result<Tensor>,
    model: &Hyper,
    index: usize,
    sequences: &mut [Sequence],
    x: &mut [f32],
) -> Result<()> {
    let input = normalized(x, &weights("attn_norm")?, model.epsilon)?;
    let mut queries = multiply(&weights("attn_q")?, &input)?;
    let mut keys = multiply(&weights("attn_k")?, &input)?;
    let values = multiply(&weights("attn_v")?, &input)?;
    let mut mixed = vec![0.0; queries.len()];

    let (wide, narrow) = (model.heads * model.head, model.shared_heads * model.head);
    let mut rows = (queries.chunks_exact_mut(wide).zip(mixed.chunks_exact_mut(wide)))
        .zip(keys.chunks_exact_mut(narrow).zip(values.chunks_exact(narrow)));
    for sequence in sequences {
        let cache = &mut sequence.caches[index];
        for position in sequence.done..sequence.tokens.len() {
            let Some(((query, mixed), (key, value))) = rows.next() else { break };
            turn(query, position, model);
            turn(key, position, model);
            cache.keys.extend_from_slice(key);
            cache.values.extend_from_slice(value);
            let heads = query.chunks_exact(model.head).zip(mixed.chunks_exact_mut(model.head));
            for (head, (query, mixed)) in heads.enumerate() {
                let start = head * model.shared_heads / model.heads * model.head;
                attend(query, cache, narrow, start..start + model.head, mixed);
            }
        }
    }
    add(x, &multiply(&weights("attn_output")?, &mixed)?);

    let input = normalized(x, &weights("ffn_norm")?, model.epsilon)?;
    let mut gate = multiply(&weights("ffn_gate")?, &input)?;
    let up = multiply(&weights("ffn_up")?, &input)?;
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate *= up / (1.0 + (-*gate).exp());
    }
    add(x, &multiply(&weights("ffn_down")?, &gate)?);
    Ok(())
}

/// Turns the pairs of neighbours in every head by angles that grow with the position: GGUF's order
/// for Llamas, whose converter has put together what the original has half a head apart.
fn turn(vector: &mut [f32], position: usize, model: &Hyper) {
    for head in vector.chunks_exact_mut(model.head) {
        for (number, pair) in head[..model.turning].chunks_exact_mut(2).enumerate() {
            let exponent = (2 * number) as f32 / model.turning as f32;
            let (sin, cos) = (position as f32 * model.frequency_base.powf(-exponent)).sin_cos();
            (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
        }
    }
}

/// One head: the values so far, each by how well its key matches the query. `head` is where a
/// cached row of `width` has the head.
fn attend(query: &[f32], cache: &Cache, width: usize, head: Range<usize>, mixed: &mut [f32]) {
    let scale = 1.0 / (query.len() as f32).sqrt();
    let matches = cache.keys.chunks_exact(width).map(|key| {
        let products = query.iter().zip(&key[head.clone()]).map(|(query, key)| query * key);
        products.sum::<f32>() * scale
    });
    let mut shares: Vec<f32> = matches.collect();
    let largest = shares.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    shares.iter_mut().for_each(|share| *share = (*share - largest).exp());
    let sum: f32 = shares.iter().sum();
    for (share, value) in shares.iter().zip(cache.values.chunks_exact(width)) {
        for (mixed, value) in mixed.iter_mut().zip(&value[head.clone()]) {
            *mixed += share / sum * value;
        }
    }
}

/// Every row of `x` scaled to a mean square of 1, times the weights.
fn normalized(x: &[f32], weights: &Tensor, epsilon: f32) -> Result<Vec<f32>> {
    let weights = weights.to_f32()?;
    let mut rows = x.to_vec();
    for row in rows.chunks_exact_mut(weights.len()) {
        let mean = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        row.iter_mut().zip(&weights).for_each(|(x, weight)| *x *= scale * weight);
    }
    Ok(rows)
}

/// The weights times every row of `x`.
fn multiply(weights: &Tensor, x: &[f32]) -> Result<Vec<f32>> {
    let shape = weights.matrix_shape()?;
    let batch = x.len() / shape.columns;
    let mut y = vec![0.0; batch * shape.rows];
    weights.matmul(x, batch, &mut y)?;
    Ok(y)
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn tensor(part: &Layer, name: &str) -> Result<Tensor> {
    Ok(part.tensor(name).ok_or_else(|| format!("the model has no '{name}'"))?)
}

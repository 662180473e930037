//! The encoder of all-MiniLM-L6-v2, by candle-nn's layers: what a model of one's own looks like to
//! a `VarBuilder`.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, Linear, VarBuilder, embedding, layer_norm, linear, ops::softmax_last_dim,
};

const HIDDEN: usize = 384;
const INNER: usize = 1536;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const WORDS: usize = 30522;
const POSITIONS: usize = 512;
const EPSILON: f64 = 1e-12;

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    after_attention: LayerNorm,
    inner: Linear,
    outer: Linear,
    after_outer: LayerNorm,
}

impl Layer {
    fn new(weights: &VarBuilder<'_>) -> Result<Self> {
        let (attention, output) = (weights.pp("attention"), weights.pp("attention.output"));
        let norm = |at: VarBuilder<'_>| layer_norm(HIDDEN, EPSILON, at.pp("LayerNorm"));
        Ok(Self {
            query: linear(HIDDEN, HIDDEN, attention.pp("self.query"))?,
            key: linear(HIDDEN, HIDDEN, attention.pp("self.key"))?,
            value: linear(HIDDEN, HIDDEN, attention.pp("self.value"))?,
            attended: linear(HIDDEN, HIDDEN, output.pp("dense"))?,
            after_attention: norm(output)?,
            inner: linear(HIDDEN, INNER, weights.pp("intermediate.dense"))?,
            outer: linear(INNER, HIDDEN, weights.pp("output.dense"))?,
            after_outer: norm(weights.pp("output"))?,
        })
    }

    /// `x`: sentences × tokens × hidden.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (sentences, tokens, _) = x.dims3()?;
        let heads = |x: Tensor| {
            x.reshape((sentences, tokens, HEADS, HIDDEN / HEADS))?.transpose(1, 2)?.contiguous()
        };
        let query = heads(self.query.forward(x)?)?;
        let key = heads(self.key.forward(x)?)?;
        let value = heads(self.value.forward(x)?)?;
        let scale = 1. / ((HIDDEN / HEADS) as f64).sqrt();
        let scores = (query.matmul(&key.t()?)? * scale)?;
        let attended = softmax_last_dim(&scores)?.matmul(&value)?;
        let attended = attended.transpose(1, 2)?.reshape((sentences, tokens, HIDDEN))?;
        let x = self.after_attention.forward(&(self.attended.forward(&attended)? + x)?)?;
        let inner = self.inner.forward(&x)?.gelu_erf()?;
        self.after_outer.forward(&(self.outer.forward(&inner)? + x)?)
    }
}

pub(crate) struct MiniLm {
    words: Embedding,
    positions: Embedding,
    kinds: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl MiniLm {
    pub(crate) fn new(weights: &VarBuilder<'_>) -> Result<Self> {
        let embeddings = weights.pp("embeddings");
        let layer = |index| Layer::new(&weights.pp(format!("encoder.layer.{index}")));
        Ok(Self {
            words: embedding(WORDS, HIDDEN, embeddings.pp("word_embeddings"))?,
            positions: embedding(POSITIONS, HIDDEN, embeddings.pp("position_embeddings"))?,
            kinds: embedding(2, HIDDEN, embeddings.pp("token_type_embeddings"))?,
            norm: layer_norm(HIDDEN, EPSILON, embeddings.pp("LayerNorm"))?,
            layers: (0..LAYERS).map(layer).collect::<Result<_>>()?,
        })
    }

    /// What a sentence means: the mean over its tokens, of length 1.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let device = self.words.embeddings().device();
        let tokens = Tensor::new(tokens, device)?.unsqueeze(0)?;
        let count = u32::try_from(tokens.dim(1)?).map_err(candle_core::Error::wrap)?;
        let positions = self.positions.forward(&Tensor::arange(0, count, device)?)?;
        let kinds = self.kinds.forward(&tokens.zeros_like()?)?;
        let mut x = self.words.forward(&tokens)?.broadcast_add(&positions)?;
        x = self.norm.forward(&(x + kinds)?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        let mean = x.mean(1)?.squeeze(0)?.to_dtype(DType::F32)?;
        let length = mean.sqr()?.sum_all()?.sqrt()?;
        mean.broadcast_div(&length)
    }
}

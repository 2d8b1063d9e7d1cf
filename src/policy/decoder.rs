//! One differentiable decoder for every architecture: frozen weights from a GGUF file, an adapter on top. Never changes
//! a weight.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::blocks::{Block, LinearInfo, Norm, Pass, Ropes};
use super::loader::Loader;
use super::ops::{self, Distributions, Frozen, RopeTable};
use super::recompute::Recomputed;
use super::{Lora, Packed, Shape, Targets};
use crate::config::{Dtype, Weights};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::types::TokenId;

/// How a decoder is held in memory. None of it changes a result but `dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Number format of the frozen products.
    pub dtype: Dtype,
    /// How frozen weights are held; `auto` is packed.
    pub weights: Weights,
    /// Bytes that the activations of a pass with gradients may take, as far as recomputing blocks can keep them below;
    /// `None` keeps all.
    pub activations: Option<u64>,
}

impl Form {
    /// Packed weights, all activations kept.
    pub fn packed(dtype: Dtype) -> Self {
        Self { dtype, weights: Weights::Packed, activations: None }
    }
}

/// A frozen language model.
pub struct Decoder {
    shape: Arc<Shape>,
    device: Device,
    dtype: DType,
    fingerprint: String,
    /// As the file stores it; rows are decoded on lookup.
    embedding: Frozen,
    /// Each with its linear layers.
    blocks: Vec<(Arc<Block>, Range<usize>)>,
    output_norm: Norm,
    /// [vocabulary, width]; the embedding's own values if the file ties them.
    head: Frozen,
    linears: Vec<LinearInfo>,
    activations: Option<u64>,
}

impl Decoder {
    /// Reads a model and freezes it. Errors if the file is damaged, or if its architecture or one of its features is
    /// unknown.
    pub fn load(path: &Path, device: &Device, dtype: Dtype) -> Result<Self> {
        Self::load_as(path, device, Form::packed(dtype))
    }

    /// The same, held in memory as told.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_as(path: &Path, device: &Device, form: Form) -> Result<Self> {
        let file = Gguf::open(path)?;
        let loaded = Self::from_gguf(&file, device, form);
        loaded.map_err(|e| e.context(format!("loading {} to train", path.display())))
    }

    fn from_gguf(file: &Gguf, device: &Device, form: Form) -> Result<Self> {
        let as_stored = form.weights == Weights::Quantized;
        let shape = Shape::read(file)?;
        let dtype = frozen_dtype(form.dtype, device);
        let mut loader = Loader::new(file, &shape, device, dtype, as_stored)?;
        let embedding = loader.embedding()?;
        let vocabulary = embedding.out_features();
        let mut blocks = Vec::new();
        for layer in 0..shape.layers {
            let first = loader.linears.len();
            let block = Arc::new(loader.block(layer)?);
            blocks.push((block, first..loader.linears.len()));
        }
        let output_norm = loader.norm("output_norm")?;
        let tied = file.tensor("output.weight").is_none();
        let head = loader.frozen(if tied { "token_embd.weight" } else { "output.weight" }, vocabulary, shape.width)?;
        let head = match loader.head_bias(vocabulary)? {
            Some(bias) => head.with_bias(&bias)?,
            None => head,
        };
        loader.refuse_unused()?;
        let linears = loader.linears;
        let fingerprint = file.fingerprint()?;
        Ok(Self {
            shape: Arc::new(shape),
            device: device.clone(),
            dtype,
            fingerprint,
            embedding,
            blocks,
            output_norm,
            head,
            linears,
            activations: form.activations,
        })
    }

    /// Sizes and constants.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Width of a hidden state.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// Number of tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.head.out_features()
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number format of the frozen matrices: f32 or bf16.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// SHA-256 of the base's file.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The identity of the base for adapters: its architecture and the SHA-256 of its file.
    pub(super) fn identity(&self) -> (&'static str, &str) {
        (self.shape.architecture.name, &self.fingerprint)
    }

    /// The linear layers of the blocks, in a fixed order.
    pub fn linears(&self) -> &[LinearInfo] {
        &self.linears
    }

    /// Hidden states after the final norm, [tokens, width]. Gradients flow to the adapter alone; without one no graph
    /// is kept. Errors if a token is outside the vocabulary or the adapter belongs to another base.
    pub fn hidden(&self, packed: &Packed, lora: Option<&Lora>) -> Result<Tensor> {
        if let Some(lora) = lora {
            lora.check_base(&self.fingerprint)?;
        }
        self.check_tokens(packed.tokens())?;
        let rope = |angles: &[f32]| RopeTable::new(packed.positions(), angles, &self.device);
        let window = self.shape.window.as_ref().map(|window| rope(&window.inv_freq)).transpose()?;
        let ropes = Ropes { all: rope(&self.shape.inv_freq)?, window };
        let pass = Pass { shape: &self.shape, starts: packed.starts(), ropes, lora };
        let recomputed = lora.map_or(0, |lora| self.recomputed(packed.tokens().len(), lora));
        let mut x = ops::embed(packed.tokens(), &self.embedding)?; // [tokens, width]
        if self.shape.embedding_scale != 1.0 {
            x = x.affine(f64::from(self.shape.embedding_scale), 0.0)?;
        }
        for (i, (block, linears)) in self.blocks.iter().enumerate() {
            x = match lora {
                Some(lora) if i < recomputed => Recomputed {
                    block: block.clone(),
                    linears: linears.clone(),
                    shape: self.shape.clone(),
                    starts: packed.starts().to_vec(),
                    ropes: pass.ropes.clone(),
                    lora: lora.clone(),
                }
                .forward(&x)?,
                _ => block.forward(&x, &pass)?,
            };
        }
        self.output_norm.forward(&x)
    }

    /// How many blocks, the first ones, are computed again in the backward pass: as few as keep its activations within
    /// what they may take. The last ones are needed first, so they are the ones to keep.
    fn recomputed(&self, tokens: usize, lora: &Lora) -> usize {
        let Some(most) = self.activations.filter(|_| lora.is_trained()) else { return 0 };
        let sizes = self.shape.activation_bytes(ops::element_bytes(self.dtype), lora.rank() as u64);
        let layers = self.blocks.len();
        let fits = |n: &usize| activations(tokens as u64, sizes, *n as u64, layers as u64) <= most;
        (0..layers).find(fits).unwrap_or(layers)
    }

    /// log softmax(h · headᵀ / T)[target] of each row, [rows], in nats. Differentiable in the hidden states.
    pub fn logprobs(&self, hidden: &Tensor, targets: &[TokenId], temperatures: &[f32]) -> Result<Tensor> {
        ops::token_logprobs(hidden, &self.head, targets, &self.divisors(temperatures))
    }

    /// The rows' distributions, compared with those of other hidden states of the same shape, in one pass over the
    /// head. Not differentiable.
    pub fn distributions(
        &self,
        hidden: &Tensor,
        others: &[&Tensor],
        targets: &[TokenId],
        temperatures: &[f32],
    ) -> Result<Distributions> {
        ops::token_distributions(hidden, others, &self.head, targets, &self.divisors(temperatures))
    }

    /// What divides the logits of each row: its temperature, and the model's own divisor.
    fn divisors(&self, temperatures: &[f32]) -> Vec<f32> {
        temperatures.iter().map(|temperature| temperature * self.shape.logit_divisor).collect()
    }

    /// A whole pass: the log-probability of each target, [response tokens], in nats; one temperature per sequence.
    pub fn response_logprobs(
        &self,
        packed: &Packed,
        targets: &Targets,
        temperatures: &[f32],
        lora: Option<&Lora>,
    ) -> Result<Tensor> {
        let hidden = targets.select(&self.hidden(packed, lora)?)?;
        self.logprobs(&hidden, targets.tokens(), &targets.spread(temperatures)?)
    }

    fn check_tokens(&self, tokens: &[TokenId]) -> Result<()> {
        let rows = self.vocabulary();
        match tokens.iter().find(|&&token| token as usize >= rows) {
            Some(token) => Err(Error::arg(format!("token {token} is outside the vocabulary of {rows}"))),
            None => Ok(()),
        }
    }
}

/// Bytes of activations if `recomputed` of the blocks are: one of those is whole at a time.
pub(crate) fn activations(tokens: u64, (kept, input): (u64, u64), recomputed: u64, layers: u64) -> u64 {
    tokens * (kept * (layers - recomputed + u64::from(recomputed > 0)).min(layers) + input * recomputed)
}

/// The number format for a setting: `auto` is bf16 on a GPU and on a CPU with bf16 products, else f32.
fn frozen_dtype(wanted: Dtype, device: &Device) -> DType {
    match wanted {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::Auto if !device.is_cpu() || cpu_multiplies_bf16() => DType::BF16,
        Dtype::Auto => DType::F32,
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_multiplies_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_multiplies_bf16() -> bool {
    false
}

//! One differentiable decoder for every architecture: frozen weights from a GGUF file, an adapter on top. Never changes
//! a weight.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::blocks::{Block, LinearInfo, Norm, Pass};
use super::loader::Loader;
use super::ops::{self, Frozen, RopeTable};
use super::{Lora, Packed, Shape, Targets};
use crate::config::{Dtype, Weights};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::types::TokenId;

/// A frozen language model.
pub struct Decoder {
    shape: Shape,
    device: Device,
    dtype: DType,
    fingerprint: String,
    /// As the file stores it; rows are decoded on lookup.
    embedding: Frozen,
    blocks: Vec<Block>,
    output_norm: Norm,
    /// [vocabulary, width]; the embedding's own values if the file ties them.
    head: Frozen,
    linears: Vec<LinearInfo>,
}

impl Decoder {
    /// Reads a model and freezes it. Errors if the file is damaged, or if its architecture or one of its features is
    /// unknown.
    pub fn load(path: &Path, device: &Device, dtype: Dtype) -> Result<Self> {
        Self::load_as(path, device, dtype, Weights::Packed)
    }

    /// The same with weights held as told; `auto` is packed.
    ///
    /// # Errors
    /// As [`Self::load`]; `Unsupported` for quantized weights on another device than the CPU.
    pub fn load_as(path: &Path, device: &Device, dtype: Dtype, weights: Weights) -> Result<Self> {
        let file = Gguf::open(path)?;
        let loaded = Self::from_gguf(&file, device, dtype, weights);
        loaded.map_err(|e| e.context(format!("loading {} to train", path.display())))
    }

    fn from_gguf(file: &Gguf, device: &Device, dtype: Dtype, weights: Weights) -> Result<Self> {
        let as_stored = weights == Weights::Quantized;
        if as_stored && !device.is_cpu() {
            return Err(Error::unsupported(
                "train.weights is quantized, and what decodes blocks inside products on a GPU is missing: expected packed",
            ));
        }
        let shape = Shape::read(file)?;
        let dtype = frozen_dtype(dtype, device);
        let mut loader = Loader::new(file, &shape, device, dtype, as_stored)?;
        let embedding = loader.embedding()?;
        let vocabulary = embedding.out_features();
        let blocks = (0..shape.layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let output_norm = loader.norm("output_norm")?;
        let tied = file.tensor("output.weight").is_none();
        let head = loader.frozen(if tied { "token_embd.weight" } else { "output.weight" }, vocabulary, shape.width)?;
        loader.refuse_unused()?;
        let linears = loader.linears;
        let fingerprint = file.fingerprint()?;
        Ok(Self { device: device.clone(), dtype, fingerprint, embedding, blocks, output_norm, head, linears, shape })
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
        let rope = RopeTable::new(packed.positions(), &self.shape.inv_freq, &self.device)?;
        let pass = Pass { shape: &self.shape, starts: packed.starts(), rope, lora };
        let mut x = ops::embed(packed.tokens(), &self.embedding)?; // [tokens, width]
        for block in &self.blocks {
            x = block.forward(&x, &pass)?;
        }
        self.output_norm.forward(&x)
    }

    /// log softmax(h · headᵀ / T)[target] of each row, [rows], in nats. Differentiable in the hidden states.
    pub fn logprobs(&self, hidden: &Tensor, targets: &[TokenId], temperatures: &[f32]) -> Result<Tensor> {
        ops::token_logprobs(hidden, &self.head, targets, temperatures)
    }

    /// Entropy of each row's distribution, [rows], in nats. Not differentiable.
    pub fn entropy(&self, hidden: &Tensor, temperatures: &[f32]) -> Result<Tensor> {
        ops::token_entropy(hidden, &self.head, temperatures)
    }

    /// [`Self::logprobs`] and [`Self::entropy`] in one pass over the head. Not differentiable.
    pub fn logprobs_and_entropy(
        &self,
        hidden: &Tensor,
        targets: &[TokenId],
        temperatures: &[f32],
    ) -> Result<(Tensor, Tensor)> {
        ops::token_logprobs_and_entropy(hidden, &self.head, targets, temperatures)
    }

    /// KL of each row's distribution to that of `other`, over the whole vocabulary, [rows], in nats. Not
    /// differentiable.
    pub fn kl(&self, hidden: &Tensor, other: &Tensor, temperatures: &[f32]) -> Result<Tensor> {
        ops::token_kl(hidden, other, &self.head, temperatures)
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

/// The number format for a setting: `auto` is bf16 on a CPU with bf16 products, f32 elsewhere.
fn frozen_dtype(wanted: Dtype, device: &Device) -> DType {
    match wanted {
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::Auto if device.is_cpu() && cpu_multiplies_bf16() => DType::BF16,
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

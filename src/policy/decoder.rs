//! One differentiable decoder for every architecture: frozen weights from a GGUF file, an adapter on top. Follows
//! llama.cpp's graphs (src/models/{llama,qwen2,qwen3,gptneox}.cpp) value for value. Never changes a weight.

use std::collections::HashSet;
use std::path::Path;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::arch::Shape;
use super::ops::{self, Frozen, RopeTable};
use super::{Lora, Packed, Targets};
use crate::config::Dtype;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::types::TokenId;

/// A frozen language model.
pub struct Decoder {
    shape: Shape,
    device: Device,
    dtype: DType,
    fingerprint: String,
    /// As in the file: rows are decoded when they are looked up, so the table costs no f32 copy.
    embedding: QTensor,
    blocks: Vec<Block>,
    output_norm: Norm,
    /// [vocabulary, width]; the embedding's own values where the file ties them.
    head: Frozen,
    linears: Vec<LinearInfo>,
}

/// A linear layer of the blocks, which an adapter may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Its weight's tensor, as in `blk.0.attn_q.weight`.
    pub tensor: String,
    /// Its part of a block, as in `attn_q`.
    pub part: &'static str,
    /// Rows of its weight.
    pub out_features: usize,
    /// Columns of its weight.
    pub in_features: usize,
}

struct Block {
    attn_norm: Norm,
    qkv: Qkv,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    attn_output: Linear,
    ffn_norm: Norm,
    /// Only with SwiGLU.
    ffn_gate: Option<Linear>,
    ffn_up: Linear,
    ffn_down: Linear,
}

enum Qkv {
    Split(Linear, Linear, Linear),
    /// Rows of q, then k, then v.
    Fused(Linear),
}

struct Linear {
    /// Into [`Decoder::linears`].
    index: usize,
    weight: Frozen,
    bias: Option<Tensor>,
}

struct Norm {
    weight: Tensor,
    /// LayerNorm has one, RMSNorm none.
    bias: Option<Tensor>,
    eps: f32,
}

/// What every block of a pass shares.
struct Pass<'a> {
    shape: &'a Shape,
    starts: &'a [usize],
    rope: RopeTable,
    lora: Option<&'a Lora>,
}

impl Decoder {
    /// Reads a model and freezes it. Errors if the file is damaged, or its architecture or a feature is unknown.
    pub fn load(path: &Path, device: &Device, dtype: Dtype) -> Result<Self> {
        let file = Gguf::open(path)?;
        Self::from_gguf(&file, device, dtype).map_err(|e| e.context(format!("loading {} to train", path.display())))
    }

    fn from_gguf(file: &Gguf, device: &Device, dtype: Dtype) -> Result<Self> {
        let shape = Shape::read(file)?;
        let dtype = frozen_dtype(dtype, device);
        let mut loader = Loader { file, shape: &shape, device, dtype, used: HashSet::new(), linears: Vec::new() };
        let embedding = loader.embedding()?;
        let vocabulary = embedding.shape().dims2()?.0;
        let blocks = (0..shape.layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let output_norm = loader.norm("output_norm".into(), shape.width)?;
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

    /// Values of a hidden state.
    pub fn width(&self) -> usize {
        self.shape.width
    }

    /// Tokens the head tells apart.
    pub fn vocabulary(&self) -> usize {
        self.head.out_features()
    }

    /// Where the weights are.
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

    /// The linear layers of the blocks, in a fixed order.
    pub fn linears(&self) -> &[LinearInfo] {
        &self.linears
    }

    /// Hidden states after the final norm, [tokens, width]. Gradients flow to the adapter alone; without one there is
    /// no graph to hold. Errors if a token is outside the vocabulary or the adapter was made for another base.
    pub fn hidden(&self, packed: &Packed, lora: Option<&Lora>) -> Result<Tensor> {
        if let Some(lora) = lora {
            lora.check_base(self)?;
        }
        self.check_tokens(packed.tokens())?;
        let rope = RopeTable::new(packed.positions(), &self.shape.inv_freq, &self.device)?;
        let pass = Pass { shape: &self.shape, starts: packed.starts(), rope, lora };
        let mut x = self.embedding.embedding(&Tensor::new(packed.tokens(), &self.device)?)?; // [tokens, width]
        for block in &self.blocks {
            x = block.forward(&x, &pass)?;
        }
        self.output_norm.forward(&x)
    }

    /// log softmax(h · headᵀ / T)[target] of each row, [rows], in nats. Differentiable in the hidden states.
    pub fn logprobs(&self, hidden: &Tensor, targets: &[TokenId], temperatures: &[f32]) -> Result<Tensor> {
        ops::token_logprobs(hidden, &self.head, targets, temperatures)
    }

    /// Entropy of each row's distribution, [rows], in nats. Gives no gradient.
    pub fn entropy(&self, hidden: &Tensor, temperatures: &[f32]) -> Result<Tensor> {
        ops::token_entropy(hidden, &self.head, temperatures)
    }

    /// A whole pass: the log-probability of each target, [response tokens], in nats; one temperature a sequence.
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

impl Block {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let attended = self.attention(&self.attn_norm.forward(x)?, pass)?;
        if pass.shape.parallel_residual {
            let fed = self.feed_forward(&self.ffn_norm.forward(x)?, pass)?;
            return Ok(((fed + x)? + attended)?);
        }
        let x = (attended + x)?;
        Ok((self.feed_forward(&self.ffn_norm.forward(&x)?, pass)? + x)?)
    }

    fn attention(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_dim, rope_style, .. } = *pass.shape;
        let tokens = x.dims2()?.0;
        let (q, k, v) = match &self.qkv {
            Qkv::Split(q, k, v) => (q.forward(x, pass)?, k.forward(x, pass)?, v.forward(x, pass)?),
            Qkv::Fused(qkv) => {
                let qkv = qkv.forward(x, pass)?;
                let (q, kv) = (heads * head_dim, kv_heads * head_dim);
                let part = |from, size| qkv.narrow(1, from, size)?.contiguous();
                (part(0, q)?, part(q, kv)?, part(q + kv, kv)?)
            }
        };
        let mut q = q.reshape((tokens, heads, head_dim))?;
        let mut k = k.reshape((tokens, kv_heads, head_dim))?;
        let v = v.reshape((tokens, kv_heads, head_dim))?;
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        let q = ops::rope(&q, &pass.rope, rope_style)?;
        let k = ops::rope(&k, &pass.rope, rope_style)?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let mixed = ops::attention(&q, &k, &v, pass.starts, scale)?; // [tokens, heads, head_dim]
        self.attn_output.forward(&mixed.reshape((tokens, heads * head_dim))?, pass)
    }

    fn feed_forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let up = self.ffn_up.forward(x, pass)?;
        let inner = match &self.ffn_gate {
            Some(gate) => ops::swiglu(&gate.forward(x, pass)?, &up)?,
            None => ops::gelu(&up)?,
        };
        self.ffn_down.forward(&inner, pass)
    }
}

impl Linear {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let lora = pass.lora.and_then(|lora| lora.pair(self.index));
        ops::linear(x, &self.weight, self.bias.as_ref(), lora)
    }
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => ops::layer_norm(x, &self.weight, bias, self.eps),
            None => ops::rms_norm(x, &self.weight, self.eps),
        }
    }
}

/// bf16 where the CPU multiplies it; on other devices f32, which is right everywhere, unless it is asked for.
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

/// Reads tensors by name and remembers which, so that a leftover tensor betrays a feature that would be missing.
struct Loader<'a> {
    file: &'a Gguf,
    shape: &'a Shape,
    device: &'a Device,
    dtype: DType,
    used: HashSet<String>,
    linears: Vec<LinearInfo>,
}

impl Loader<'_> {
    fn embedding(&mut self) -> Result<QTensor> {
        let name = "token_embd.weight";
        self.used.insert(name.into());
        let table = self.file.quantized(name, self.device)?;
        match table.shape().dims() {
            [_, width] if *width == self.shape.width => Ok(table),
            found => Err(wrong_shape(name, found, &format!("[vocabulary, {}]", self.shape.width))),
        }
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let Shape { width, heads, kv_heads, head_dim, feed_forward, classic, head_norms, .. } = *self.shape;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let name = |part: &str| format!("blk.{layer}.{part}");
        let qkv = if self.file.tensor(&name("attn_qkv.weight")).is_some() {
            Qkv::Fused(self.linear(layer, "attn_qkv", q + 2 * kv, width)?)
        } else {
            Qkv::Split(
                self.linear(layer, "attn_q", q, width)?,
                self.linear(layer, "attn_k", kv, width)?,
                self.linear(layer, "attn_v", kv, width)?,
            )
        };
        let mut head_norm = |part| head_norms.then(|| self.norm(name(part), head_dim)).transpose();
        let (q_norm, k_norm) = (head_norm("attn_q_norm")?, head_norm("attn_k_norm")?);
        Ok(Block {
            attn_norm: self.norm(name("attn_norm"), width)?,
            qkv,
            q_norm,
            k_norm,
            attn_output: self.linear(layer, "attn_output", width, q)?,
            ffn_norm: self.norm(name("ffn_norm"), width)?,
            ffn_gate: if classic { None } else { Some(self.linear(layer, "ffn_gate", feed_forward, width)?) },
            ffn_up: self.linear(layer, "ffn_up", feed_forward, width)?,
            ffn_down: self.linear(layer, "ffn_down", width, feed_forward)?,
        })
    }

    fn linear(&mut self, layer: usize, part: &'static str, out: usize, inp: usize) -> Result<Linear> {
        let tensor = format!("blk.{layer}.{part}.weight");
        let weight = self.frozen(&tensor, out, inp)?;
        let bias = format!("blk.{layer}.{part}.bias");
        let bias = self.file.tensor(&bias).map(|_| self.read(&bias, &[out])).transpose()?;
        let index = self.linears.len();
        self.linears.push(LinearInfo { tensor, part, out_features: out, in_features: inp });
        Ok(Linear { index, weight, bias })
    }

    fn norm(&mut self, name: String, width: usize) -> Result<Norm> {
        let weight = self.read(&format!("{name}.weight"), &[width])?;
        let bias = self.shape.classic.then(|| self.read(&format!("{name}.bias"), &[width])).transpose()?;
        Ok(Norm { weight, bias, eps: self.shape.eps })
    }

    fn frozen(&mut self, name: &str, out: usize, inp: usize) -> Result<Frozen> {
        Frozen::new(&self.read(name, &[out, inp])?, self.dtype)
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        // The shape is held against the table before the data is decoded.
        match self.file.tensor(name) {
            Some(info) if info.shape() != shape => Err(wrong_shape(name, info.shape(), &format!("{shape:?}"))),
            _ => {
                self.used.insert(name.to_owned());
                self.file.dequantize(name, self.device)
            }
        }
    }

    fn refuse_unused(&self) -> Result<()> {
        // Its values are in the shape's frequencies.
        let factors = |name: &str| name == "rope_freqs.weight" && self.shape.architecture == "llama";
        let mut names = self.file.tensors().iter().map(|info| info.name());
        match names.find(|name| !self.used.contains(*name) && !factors(name)) {
            Some(name) => Err(Error::unsupported(format!(
                "tensor {name} belongs to a feature of {} that the trainer doesn't compute",
                self.shape.architecture
            ))),
            None => Ok(()),
        }
    }
}

fn wrong_shape(name: &str, found: &[usize], expected: &str) -> Error {
    Error::model(format!("tensor {name} has shape {found:?}, expected {expected}"))
}

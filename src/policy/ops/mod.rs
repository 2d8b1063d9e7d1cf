//! The differentiable operations of the decoder, fused on the CPU, plain elsewhere. Never knows an architecture or a
//! loss.
//!
//! Activations are f32, contiguous, with tokens first: `[tokens, width]` or `[tokens, heads, dim]`. Frozen weights live
//! inside [`Frozen`] and never get a gradient; the gradients of inputs and LoRA factors are exact for the values used.

mod activation;
mod attention;
#[cfg_attr(not(target_arch = "x86_64"), path = "bf16_elsewhere.rs")]
mod bf16;
mod cpu;
mod feed_forward;
mod layers;
mod linear;
mod logprobs;
mod matrix;
mod norm;
mod plain;
mod rope;
mod self_attention;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use matrix::{Mat, Precision};
use std::sync::{Arc, OnceLock};

/// A frozen weight matrix `[out, in]`, f32 or bf16. Clones share the values.
#[derive(Clone, Debug)]
pub struct Frozen {
    store: Store,
}

#[derive(Clone, Debug)]
enum Store {
    /// For the fused operations of the CPU.
    Cpu(Arc<Mat>),
    /// For tensor algebra on another device.
    Device(Tensor),
}

impl Frozen {
    /// Takes an f32 weight `[out, in]` and keeps it as `dtype` (f32 or bf16) on its device.
    ///
    /// A CPU without AVX512-BF16 keeps bf16 values widened to f32, and computes in f32.
    pub fn new(weight: &Tensor, dtype: DType) -> Result<Self> {
        let shape = weight.dims2();
        let (_, inp) =
            shape.map_err(|_| Error::train(format!("frozen weight: shape {:?}, expected [out, in]", weight.dims())))?;
        let precision = match dtype {
            DType::F32 => Precision::F32,
            DType::BF16 if bf16::available() => Precision::Bf16,
            DType::BF16 => Precision::F32,
            _ => return Err(Error::unsupported(format!("frozen weight: dtype {dtype:?}, expected F32 or BF16"))),
        };
        let weight = weight.detach().contiguous()?;
        if !weight.device().is_cpu() {
            return Ok(Self { store: Store::Device(weight.to_dtype(dtype)?) });
        }
        let weight = if precision == Precision::F32 { weight.to_dtype(dtype)? } else { weight };
        let weight = weight.to_dtype(DType::F32)?;
        let mat = Mat::new(precision, &cpu::Values::of(&weight)?, inp).frozen();
        Ok(Self { store: Store::Cpu(Arc::new(mat)) })
    }

    /// Rows of the matrix: the width of the product.
    pub fn out_features(&self) -> usize {
        match &self.store {
            Store::Cpu(mat) => mat.rows(),
            Store::Device(t) => t.dims()[0],
        }
    }

    /// Columns of the matrix: the width of the input.
    pub fn in_features(&self) -> usize {
        match &self.store {
            Store::Cpu(mat) => mat.cols(),
            Store::Device(t) => t.dims()[1],
        }
    }

    /// The stored values as f32 `[out, in]`.
    pub fn weight_f32(&self) -> Result<Tensor> {
        match &self.store {
            Store::Cpu(mat) => rows_of(mat, 0..mat.rows()),
            Store::Device(t) => Ok(t.to_dtype(DType::F32)?),
        }
    }

    /// The matrix for a fused operation on `x`.
    fn fused(&self, x: &Tensor) -> Option<&Arc<Mat>> {
        match &self.store {
            Store::Cpu(mat) if cpu::takes(x) => Some(mat),
            _ => None,
        }
    }
}

/// Some rows of a matrix as an f32 tensor.
fn rows_of(mat: &Mat, rows: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
    let (count, cols) = (rows.len(), mat.cols());
    let mut values = vec![0f32; count * cols];
    if cols > 0 {
        values.chunks_exact_mut(cols).zip(rows).for_each(|(to, row)| mat.read_row(row, to));
    }
    Ok(cpu::tensor(values, (count, cols))?)
}

/// The values of a frozen vector.
fn frozen_values(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// The two factors of a low-rank update: `scale · B A` is added to a frozen weight.
#[derive(Clone, Copy, Debug)]
pub struct LoraPair<'a> {
    /// `[rank, in]`.
    pub a: &'a Tensor,
    /// `[out, rank]`.
    pub b: &'a Tensor,
    /// Usually alpha / rank.
    pub scale: f64,
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours `(2i, 2i + 1)`: llama files.
    Interleaved,
    /// `(i, i + rotary_dim / 2)`: qwen and gptneox files.
    Halves,
}

/// Cosines and sines of each token's angles.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Tensor, // [tokens, rotary_dim / 2]
    sin: Tensor,
    /// The same values for the fused form.
    turns: Arc<rope::Turns>,
}

impl RopeTable {
    /// One row a token; `inv_freq` holds rotary_dim / 2 angles a position, scaling factors applied.
    pub fn new(positions: &[u32], inv_freq: &[f32], device: &Device) -> Result<Self> {
        if inv_freq.is_empty() {
            return Err(Error::train("rope: no frequencies, expected rotary_dim / 2 of them"));
        }
        let angles: Vec<f64> =
            positions.iter().flat_map(|&p| inv_freq.iter().map(move |&f| f64::from(p) * f64::from(f))).collect();
        let table = |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|&a| f(a) as f32).collect() };
        let turns = rope::Turns { cos: table(f64::cos), sin: table(f64::sin) };
        let tensor = |v: &[f32]| Tensor::from_slice(v, (positions.len(), inv_freq.len()), device);
        Ok(Self { cos: tensor(&turns.cos)?, sin: tensor(&turns.sin)?, turns: Arc::new(turns) })
    }
}

/// `y = x Wᵀ + bias + scale (x Aᵀ) Bᵀ`, `[N, in]` to `[N, out]`. Gradients flow to `x`, `A` and `B`; the bias is
/// frozen.
pub fn linear(x: &Tensor, w: &Frozen, bias: Option<&Tensor>, lora: Option<LoraPair>) -> Result<Tensor> {
    check_linear(x.dims(), &Adapted { weight: w, bias, lora })?;
    let Some(weight) = w.fused(x) else { return plain::linear(x, w, bias, lora) };
    let bias = bias.map(frozen_values).transpose()?;
    let layer = linear::Layer { weight: weight.clone(), bias };
    let x = x.contiguous()?;
    Ok(match lora {
        Some(l) if l.a.dims()[0] > 0 => {
            let op = linear::Adapted { layer, scale: l.scale as f32, low: OnceLock::new() };
            x.apply_op3(&l.a.contiguous()?, &l.b.contiguous()?, op)?
        }
        _ => x.apply_op1(linear::Alone(layer))?,
    })
}

fn check_linear(x: &[usize], layer: &Adapted) -> Result<()> {
    let (out, inp) = (layer.weight.out_features(), layer.weight.in_features());
    if x.len() != 2 || x[1] != inp {
        return Err(Error::train(format!("linear: x is {x:?}, the weight [{out}, {inp}] expects [N, {inp}]")));
    }
    if let Some(bias) = layer.bias
        && bias.dims() != [out]
    {
        return Err(Error::train(format!(
            "linear: bias is {:?}, the weight [{out}, {inp}] expects [{out}]",
            bias.dims()
        )));
    }
    if let Some(l) = &layer.lora {
        let (a, b) = (l.a.dims(), l.b.dims());
        if a.len() != 2 || b.len() != 2 || a[1] != inp || b[0] != out || a[0] != b[1] {
            return Err(Error::train(format!(
                "linear: LoRA factors are {a:?} and {b:?}, expected [rank, {inp}] and [{out}, rank]"
            )));
        }
    }
    Ok(())
}

/// A linear layer as [`linear`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct Adapted<'a> {
    /// `[out, in]`.
    pub weight: &'a Frozen,
    /// `[out]`, frozen.
    pub bias: Option<&'a Tensor>,
    /// Its low-rank update.
    pub lora: Option<LoraPair<'a>>,
}

impl Adapted<'_> {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, self.weight, self.bias, self.lora)
    }
}

/// RMSNorm, then a gated feed-forward layer, then the residual.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    /// `[E]`, frozen.
    pub norm: &'a Tensor,
    /// The norm's epsilon.
    pub eps: f32,
    /// `[F, E]`.
    pub gate: Adapted<'a>,
    /// `[F, E]`.
    pub up: Adapted<'a>,
    /// `[E, F]`.
    pub down: Adapted<'a>,
}

/// `x + down(silu(gate(n)) · up(n))` with `n = rms_norm(x)`, `[N, E]`: the composition of the operations above, and on
/// the CPU one operation that keeps a third of their memory.
pub fn feed_forward(x: &Tensor, block: &FeedForward) -> Result<Tensor> {
    check_norm("feed_forward", x, block.norm)?;
    let (n, inner) = (x.dims()[0], block.gate.weight.out_features());
    check_linear(x.dims(), &block.gate)?;
    check_linear(x.dims(), &block.up)?;
    check_linear(&[n, inner], &block.down)?;
    if !block.up.weight.is(inner, x.dims()[1]) || !block.down.weight.is(x.dims()[1], inner) {
        return Err(Error::train("feed_forward: gate, up and down do not fit together"));
    }
    if let Some((layers, flat)) = layers::Layers::new(x, &[block.gate, block.up, block.down])? {
        let x = x.contiguous()?;
        let norm = norm::Norm { weight: frozen_values(block.norm)?, bias: None, eps: block.eps };
        let keep = x.track_op() || flat.track_op();
        return Ok(x.apply_op2(&flat, feed_forward::FeedForward { norm, layers, keep, kept: OnceLock::new() })?);
    }
    let normed = rms_norm(x, block.norm, block.eps)?;
    let inner = swiglu(&block.gate.apply(&normed)?, &block.up.apply(&normed)?)?;
    Ok((x + block.down.apply(&inner)?)?)
}

/// RMSNorm, then causal self-attention with rotary positions, then the residual.
#[derive(Clone, Copy, Debug)]
pub struct SelfAttention<'a> {
    /// `[E]`, frozen.
    pub norm: &'a Tensor,
    /// Epsilon of all its norms.
    pub eps: f32,
    /// `[heads · dim, E]`.
    pub query: Adapted<'a>,
    /// `[kv_heads · dim, E]`.
    pub key: Adapted<'a>,
    /// `[kv_heads · dim, E]`.
    pub value: Adapted<'a>,
    /// `[E, heads · dim]`.
    pub output: Adapted<'a>,
    /// RMSNorm weights `[dim]` of query and key heads, applied before the rotation.
    pub head_norms: Option<(&'a Tensor, &'a Tensor)>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Angles of the tokens.
    pub rope: &'a RopeTable,
    /// Which elements of a head rotate together.
    pub style: RopeStyle,
    /// Borders of the sequences, from 0 to N.
    pub starts: &'a [usize],
    /// Factor of the scores.
    pub scale: f32,
}

/// `x + output(attention(rope(query(n)), rope(key(n)), value(n)))` with `n = rms_norm(x)`, `[N, E]`: the composition of
/// the operations above, and on the CPU one operation that keeps a third of their memory.
///
/// Fused with bf16 weights, scores and mixed heads are products of bf16 operands too.
pub fn self_attention(x: &Tensor, block: &SelfAttention) -> Result<Tensor> {
    check_norm("self_attention", x, block.norm)?;
    let (n, out) = (x.dims()[0], block.query.weight.out_features());
    for layer in [&block.query, &block.key, &block.value] {
        check_linear(x.dims(), layer)?;
    }
    check_linear(&[n, out], &block.output)?;
    let (heads, kv_heads) = (block.heads, block.kv_heads);
    if kv_heads == 0 || heads % kv_heads != 0 || out % heads != 0 {
        return Err(Error::train(format!(
            "self_attention: {heads} heads and {kv_heads} key heads for {out} query rows"
        )));
    }
    let dim = out / heads;
    let (width, kv) = (x.dims()[1], kv_heads * dim);
    if !block.key.weight.is(kv, width) || !block.value.weight.is(kv, width) || !block.output.weight.is(width, out) {
        return Err(Error::train("self_attention: query, key, value and output do not fit together"));
    }
    check_starts("self_attention", block.starts, n)?;
    let half = check_rope(&[n, heads, dim], block.rope)?;
    if let Some((q, k)) = block.head_norms
        && (q.dims() != [dim] || k.dims() != [dim])
    {
        return Err(Error::train(format!(
            "self_attention: head norms {:?} and {:?}, expected [{dim}]",
            q.dims(),
            k.dims()
        )));
    }
    let specs = [block.query, block.key, block.value, block.output];
    if let Some((layers, flat)) = layers::Layers::new(x, &specs)? {
        let x = x.contiguous()?;
        let norm = |weight| Ok::<_, Error>(norm::Norm { weight: frozen_values(weight)?, bias: None, eps: block.eps });
        let shapes = attention::Shapes { starts: block.starts.to_vec(), heads, kv_heads, dim, scale: block.scale };
        let op = self_attention::SelfAttention {
            norm: norm(block.norm)?,
            keep: x.track_op() || flat.track_op(),
            layers,
            head_norms: block.head_norms.map(|(q, k)| Ok::<_, Error>([norm(q)?, norm(k)?])).transpose()?,
            rope: rope::Rope { turns: block.rope.turns.clone(), half, style: block.style },
            shapes,
            kept: OnceLock::new(),
        };
        return Ok(x.apply_op2(&flat, op)?);
    }
    let normed = rms_norm(x, block.norm, block.eps)?;
    let mut q = block.query.apply(&normed)?.reshape((n, heads, dim))?;
    let mut k = block.key.apply(&normed)?.reshape((n, kv_heads, dim))?;
    let v = block.value.apply(&normed)?.reshape((n, kv_heads, dim))?;
    if let Some((q_norm, k_norm)) = block.head_norms {
        (q, k) = (rms_norm(&q, q_norm, block.eps)?, rms_norm(&k, k_norm, block.eps)?);
    }
    let (q, k) = (rope(&q, block.rope, block.style)?, rope(&k, block.rope, block.style)?);
    let mixed = attention(&q, &k, &v, block.starts, block.scale)?.reshape((n, out))?;
    Ok((x + block.output.apply(&mixed)?)?)
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last dimension. The weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    check_norm("rms_norm", x, weight)?;
    if !cpu::takes(x) {
        return plain::rms_norm(x, weight, eps);
    }
    Ok(x.contiguous()?.apply_op1(norm::Norm { weight: frozen_values(weight)?, bias: None, eps })?)
}

/// `(x − mean) / sqrt(var + eps) · weight + bias` over the last dimension. Weight and bias are frozen.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    check_norm("layer_norm", x, weight)?;
    check_norm("layer_norm bias", x, bias)?;
    if !cpu::takes(x) {
        return plain::layer_norm(x, weight, bias, eps);
    }
    let (weight, bias) = (frozen_values(weight)?, Some(frozen_values(bias)?));
    Ok(x.contiguous()?.apply_op1(norm::Norm { weight, bias, eps })?)
}

fn check_norm(op: &str, x: &Tensor, weight: &Tensor) -> Result<()> {
    match (x.dims().last(), weight.dims()) {
        (Some(width), [w]) if width == w && *w > 0 => Ok(()),
        (_, w) => Err(Error::train(format!("{op}: x is {:?}, weight {w:?}, expected the width of x", x.dims()))),
    }
}

/// Rotates the first rotary_dim elements of each head of `[N, heads, dim]` by the token's angles; the rest passes.
pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle) -> Result<Tensor> {
    let half = check_rope(x.dims(), table)?;
    if !cpu::takes(x) {
        return plain::rope(x, table, style);
    }
    Ok(x.contiguous()?.apply_op1(rope::Rope { turns: table.turns.clone(), half, style })?)
}

/// The number of rotating pairs.
fn check_rope(x: &[usize], table: &RopeTable) -> Result<usize> {
    let (rows, half) = (table.cos.dims()[0], table.cos.dims()[1]);
    match x {
        [n, _, dim] if *n == rows && 2 * half <= *dim => Ok(half),
        _ => Err(Error::train(format!("rope: x is {x:?}, the table expects [{rows}, heads, at least {}]", 2 * half))),
    }
}

fn check_starts(op: &str, starts: &[usize], n: usize) -> Result<()> {
    if starts.first() != Some(&0) || starts.last() != Some(&n) || starts.windows(2).any(|w| w[0] > w[1]) {
        return Err(Error::train(format!("{op}: sequence borders must rise from 0 to {n}, got {starts:?}")));
    }
    Ok(())
}

/// Causal attention inside each sequence: `q [N, H, D]`, `k` and `v [N, Hkv, D]` to `[N, H, D]`.
///
/// Sequence `i` is rows `starts[i]..starts[i + 1]`; `starts` begins with 0 and ends with N. H is a multiple of Hkv.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, starts: &[usize], scale: f32) -> Result<Tensor> {
    let (n, h, d) = match q.dims() {
        &[n, h, d] => (n, h, d),
        dims => return Err(Error::train(format!("attention: q is {dims:?}, expected [N, H, D]"))),
    };
    match k.dims() {
        &[kn, kh, kd] if kn == n && kd == d && kh > 0 && h % kh == 0 && v.dims() == k.dims() => {}
        dims => {
            return Err(Error::train(format!(
                "attention: k is {dims:?} and v {:?}, q {:?} expects [{n}, a divisor of {h}, {d}]",
                v.dims(),
                q.dims()
            )));
        }
    }
    check_starts("attention", starts, n)?;
    if !cpu::takes(q) {
        return plain::attention(q, k, v, starts, scale);
    }
    let shapes = attention::Shapes { starts: starts.to_vec(), heads: h, kv_heads: k.dims()[1], dim: d, scale };
    let op = attention::Attention { shapes, log_sums: OnceLock::new() };
    Ok(q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)?)
}

/// `silu(gate) · up`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        return Err(Error::train(format!("swiglu: gate is {:?}, up {:?}, expected one shape", gate.dims(), up.dims())));
    }
    if !cpu::takes(gate) {
        return plain::swiglu(gate, up);
    }
    Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, activation::Swiglu)?)
}

/// GELU in its tanh form, as ggml computes it.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !cpu::takes(x) {
        return plain::gelu(x);
    }
    Ok(x.contiguous()?.apply_op1(activation::Gelu)?)
}

/// `log softmax(h Wᵀ / T)[target]` a row, nats. Differentiable in `hidden [M, E]`; `head` is `[V, E]`.
///
/// Errors if a target is not below V or a temperature is not positive and finite.
pub fn token_logprobs(hidden: &Tensor, head: &Frozen, targets: &[u32], temperatures: &[f32]) -> Result<Tensor> {
    let m = check_head("token_logprobs", hidden, head, temperatures)?;
    if targets.len() != m {
        return Err(Error::train(format!("token_logprobs: {} targets for {m} rows", targets.len())));
    }
    check_tokens("token_logprobs", targets, head.out_features())?;
    if m == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    match head.fused(hidden) {
        Some(weight) => {
            Ok(hidden.contiguous()?.apply_op1(head_of(weight, targets, temperatures, hidden.track_op()))?)
        }
        None => plain::token_logprobs(hidden, head, targets, temperatures),
    }
}

/// Entropy of `softmax(h Wᵀ / T)` a row, nats. Gives no gradient.
pub fn token_entropy(hidden: &Tensor, head: &Frozen, temperatures: &[f32]) -> Result<Tensor> {
    if check_head("token_entropy", hidden, head, temperatures)? == 0 {
        return Ok(Tensor::zeros(0, DType::F32, hidden.device())?);
    }
    let hidden = hidden.detach().contiguous()?;
    match head.fused(&hidden) {
        Some(weight) => {
            let (_, entropy) = head_of(weight, &[], temperatures, false).measure(&cpu::Values::of(&hidden)?);
            Ok(cpu::tensor(entropy, temperatures.len())?)
        }
        None => plain::token_entropy(&hidden, head, temperatures),
    }
}

/// Both of [`token_logprobs`] and [`token_entropy`] for one product with the head. Gives no gradient.
pub fn token_logprobs_and_entropy(
    hidden: &Tensor,
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> Result<(Tensor, Tensor)> {
    let hidden = hidden.detach().contiguous()?;
    let checked = check_head("token_logprobs_and_entropy", &hidden, head, temperatures)?;
    match head.fused(&hidden) {
        Some(weight) if checked > 0 && targets.len() == checked => {
            check_tokens("token_logprobs_and_entropy", targets, head.out_features())?;
            let values = cpu::Values::of(&hidden)?;
            let (logprobs, entropy) = head_of(weight, targets, temperatures, false).measure(&values);
            Ok((cpu::tensor(logprobs, checked)?, cpu::tensor(entropy, checked)?))
        }
        _ => Ok((token_logprobs(&hidden, head, targets, temperatures)?, token_entropy(&hidden, head, temperatures)?)),
    }
}

fn head_of(weight: &Arc<Mat>, targets: &[u32], temperatures: &[f32], keep: bool) -> logprobs::Head {
    logprobs::Head {
        weight: weight.clone(),
        targets: targets.to_vec(),
        inverse_temperatures: temperatures.iter().map(|t| 1.0 / t).collect(),
        keep,
        mean_words: OnceLock::new(),
    }
}

fn check_head(op: &str, hidden: &Tensor, head: &Frozen, temperatures: &[f32]) -> Result<usize> {
    let (v, e) = (head.out_features(), head.in_features());
    let m = match hidden.dims() {
        &[m, w] if w == e => m,
        dims => return Err(Error::train(format!("{op}: hidden is {dims:?}, the head [{v}, {e}] expects [M, {e}]"))),
    };
    if temperatures.len() != m {
        return Err(Error::train(format!("{op}: {} temperatures for {m} rows", temperatures.len())));
    }
    match temperatures.iter().find(|t| !(t.is_finite() && **t > 0.0)) {
        Some(t) => Err(Error::train(format!("{op}: temperature {t}, expected a positive number"))),
        None => Ok(m),
    }
}

fn check_tokens(op: &str, tokens: &[u32], vocabulary: usize) -> Result<()> {
    match tokens.iter().find(|&&t| t as usize >= vocabulary) {
        Some(t) => Err(Error::train(format!("{op}: token {t}, the vocabulary has {vocabulary}"))),
        None => Ok(()),
    }
}

/// Rows of the embedding `[V, E]`: `[N, E]`, the stored values exactly.
pub fn embed(tokens: &[u32], table: &Frozen) -> Result<Tensor> {
    check_tokens("embed", tokens, table.out_features())?;
    match &table.store {
        Store::Cpu(mat) => rows_of(mat, tokens.iter().map(|&t| t as usize)),
        Store::Device(t) => Ok(t.index_select(&Tensor::new(tokens, t.device())?, 0)?.to_dtype(DType::F32)?),
    }
}

//! The operations as ordinary tensor algebra: the reference for the others, and what is left where none of them fits.
//! Only called with shapes that the operation has checked.

use super::logprobs::{Compared, Distributions};
use super::{AdamWStep, Adapted, FeedForward, Frozen, LoraPair, RopeStyle, RopeTable, SelfAttention};
use crate::error::Result;
use candle_core::{D, DType, Tensor, Var};

/// Rows of logits computed at a time.
const HEAD_ROWS: usize = 64;

pub fn linear(x: &Tensor, w: &Frozen, bias: Option<&Tensor>, lora: Option<LoraPair>) -> Result<Tensor> {
    let mut y = x.matmul(&w.weight_f32()?.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias.detach())?;
    }
    if let Some(l) = lora {
        let low = x.matmul(&l.a.t()?)?; // [N, rank]
        y = (y + low.matmul(&l.b.t()?)?.affine(l.scale, 0.0)?)?;
    }
    Ok(y)
}

pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let root = (mean_square + f64::from(eps))?.sqrt()?;
    Ok(x.broadcast_div(&root)?.broadcast_mul(&weight.detach())?)
}

pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    Ok(rms_norm(&centred, weight, eps)?.broadcast_add(&bias.detach())?)
}

pub fn rope(x: &Tensor, table: &RopeTable, style: RopeStyle) -> Result<Tensor> {
    let (n, heads, dim) = x.dims3()?;
    let half = table.cos.dim(1)?;
    let (cos, sin) = (table.cos.unsqueeze(1)?, table.sin.unsqueeze(1)?); // [N, 1, half]
    let (first, second) = match style {
        RopeStyle::Halves => (x.narrow(2, 0, half)?, x.narrow(2, half, half)?),
        RopeStyle::Interleaved => {
            let pairs = x.narrow(2, 0, 2 * half)?.contiguous()?.reshape((n, heads, half, 2))?;
            (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
        }
    };
    let turned_first = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
    let turned_second = (first.broadcast_mul(&sin)? + second.broadcast_mul(&cos)?)?;
    let turned = match style {
        RopeStyle::Halves => Tensor::cat(&[&turned_first, &turned_second], 2)?,
        RopeStyle::Interleaved => Tensor::stack(&[&turned_first, &turned_second], 3)?.reshape((n, heads, 2 * half))?,
    };
    if 2 * half == dim {
        return Ok(turned);
    }
    Ok(Tensor::cat(&[&turned, &x.narrow(2, 2 * half, dim - 2 * half)?], 2)?)
}

pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    starts: &[usize],
    scale: f32,
    window: Option<usize>,
) -> Result<Tensor> {
    let window = window.unwrap_or(usize::MAX);
    let (h, hkv) = (q.dim(1)?, k.dim(1)?);
    let mut outs = Vec::with_capacity(starts.len());
    for border in starts.windows(2) {
        let (start, t) = (border[0], border[1] - border[0]);
        if t == 0 {
            continue;
        }
        let by_head = |x: &Tensor| x.narrow(0, start, t)?.transpose(0, 1)?.contiguous();
        // [Hkv, T, D] to [H, T, D]: query head i reads key head i / (H / Hkv).
        let grouped = |x: &Tensor| {
            let x = by_head(x)?;
            let d = x.dim(2)?;
            x.unsqueeze(1)?.expand((hkv, h / hkv, t, d))?.contiguous()?.reshape((h, t, d))
        };
        let scores = by_head(q)?.matmul(&grouped(k)?.transpose(1, 2)?.contiguous()?)?.affine(f64::from(scale), 0.0)?;
        let hidden = |i: usize, j: usize| j > i || i - j >= window;
        let mask: Vec<f32> =
            (0..t).flat_map(|i| (0..t).map(move |j| if hidden(i, j) { f32::NEG_INFINITY } else { 0.0 })).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, t, t), q.device())?)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        outs.push(weights.matmul(&grouped(v)?)?.transpose(0, 1)?.contiguous()?);
    }
    if outs.is_empty() {
        return Ok(q.clone());
    }
    Ok(Tensor::cat(&outs, 0)?)
}

pub fn self_attention(x: &Tensor, block: &SelfAttention) -> Result<Tensor> {
    let (n, heads, kv_heads) = (x.dim(0)?, block.heads, block.kv_heads);
    let dim = block.query.weight.out_features() / heads;
    let normed = super::rms_norm(x, block.norm, block.eps)?;
    let project = |layer, heads: usize| -> Result<Tensor> { Ok(apply(layer, &normed)?.reshape((n, heads, dim))?) };
    let (mut q, mut k) = (project(&block.query, heads)?, project(&block.key, kv_heads)?);
    let v = project(&block.value, kv_heads)?;
    if let Some((q_norm, k_norm)) = block.head_norms {
        (q, k) = (super::rms_norm(&q, q_norm, block.eps)?, super::rms_norm(&k, k_norm, block.eps)?);
    }
    let (q, k) = (super::rope(&q, block.rope, block.style)?, super::rope(&k, block.rope, block.style)?);
    let mixed = super::attention(&q, &k, &v, block.starts, block.scale)?.reshape((n, heads * dim))?;
    Ok((x + apply(&block.output, &mixed)?)?)
}

pub fn feed_forward(x: &Tensor, block: &FeedForward) -> Result<Tensor> {
    let normed = super::rms_norm(x, block.norm, block.eps)?;
    let inner = super::swiglu(&apply(&block.gate, &normed)?, &apply(&block.up, &normed)?)?;
    Ok((x + apply(&block.down, &inner)?)?)
}

fn apply(layer: &Adapted, x: &Tensor) -> Result<Tensor> {
    super::linear(x, layer.weight, layer.bias, layer.lora)
}

pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Ok((gate.silu()? * up)?)
}

pub fn adamw(var: &Var, grad: &Tensor, [first, second]: [&Tensor; 2], step: &AdamWStep) -> Result<[Tensor; 2]> {
    let ([beta1, beta2], [correction1, correction2]) = (step.betas, step.corrections);
    let grad = (grad * step.grad_scale)?;
    let first = ((first * beta1)? + (&grad * (1.0 - beta1))?)?;
    let second = ((second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
    let denominator = ((&second / correction2)?.sqrt()? + step.epsilon)?;
    let moved = ((&first / denominator)? * (step.lr / correction1))?;
    let decayed = (var.as_detached_tensor() * (1.0 - step.lr * step.weight_decay))?;
    var.set(&(decayed - moved)?)?;
    Ok([first, second])
}

pub fn gelu(x: &Tensor) -> Result<Tensor> {
    Ok(x.gelu()?)
}

/// `log softmax` of some rows: `[rows, V]`.
/// What the head adds to its logits, `[1, V]`.
fn head_bias(head: &Frozen) -> Result<Option<Tensor>> {
    let weight = head.bias().map(|bias| Tensor::new(&bias[..], &candle_core::Device::Cpu)?.unsqueeze(0));
    weight.transpose().map_err(Into::into)
}

fn log_softmax_rows(hidden: &Tensor, (head, bias): &(Tensor, Option<Tensor>), temperatures: &[f32]) -> Result<Tensor> {
    let inverse: Vec<f32> = temperatures.iter().map(|t| 1.0 / t).collect();
    let inverse = Tensor::new(inverse, hidden.device())?.unsqueeze(1)?;
    let logits = hidden.matmul(&head.t()?)?;
    let logits = match bias {
        Some(bias) => logits.broadcast_add(&bias.to_device(hidden.device())?)?,
        None => logits,
    };
    let logits = logits.broadcast_mul(&inverse)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(logits.broadcast_sub(&logits.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

pub fn token_logprobs(hidden: &Tensor, head: &Frozen, targets: &[u32], temperatures: &[f32]) -> Result<Tensor> {
    let head = &(head.weight_f32()?, head_bias(head)?);
    let mut parts = Vec::new();
    for (i, (targets, temperatures)) in targets.chunks(HEAD_ROWS).zip(temperatures.chunks(HEAD_ROWS)).enumerate() {
        let rows = hidden.narrow(0, i * HEAD_ROWS, targets.len())?;
        let index = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
        parts.push(log_softmax_rows(&rows, head, temperatures)?.gather(&index, 1)?.squeeze(1)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

pub fn token_distributions(
    hidden: &Tensor,
    others: &[Tensor],
    head: &Frozen,
    targets: &[u32],
    temperatures: &[f32],
) -> Result<Distributions> {
    let logprobs = |x: &Tensor| super::token_logprobs(x, head, targets, temperatures);
    let compared = |other: &Tensor| {
        let kl = token_kl(hidden, other, head, temperatures)?;
        Ok(Compared { logprobs: logprobs(other)?, kl })
    };
    let others = others.iter().map(compared).collect::<Result<Vec<_>>>()?;
    Ok(Distributions { logprobs: logprobs(hidden)?, entropy: token_entropy(hidden, head, temperatures)?, others })
}

pub fn token_entropy(hidden: &Tensor, head: &Frozen, temperatures: &[f32]) -> Result<Tensor> {
    let head = &(head.weight_f32()?, head_bias(head)?);
    let mut parts = Vec::new();
    for (i, temperatures) in temperatures.chunks(HEAD_ROWS).enumerate() {
        let rows = hidden.narrow(0, i * HEAD_ROWS, temperatures.len())?;
        let logprobs = log_softmax_rows(&rows, head, temperatures)?;
        parts.push((logprobs.exp()? * logprobs)?.sum(D::Minus1)?.neg()?);
    }
    Ok(Tensor::cat(&parts, 0)?.to_dtype(DType::F32)?)
}

pub fn token_kl(hidden: &Tensor, other: &Tensor, head: &Frozen, temperatures: &[f32]) -> Result<Tensor> {
    let head = &(head.weight_f32()?, head_bias(head)?);
    let mut parts = Vec::new();
    for (i, temperatures) in temperatures.chunks(HEAD_ROWS).enumerate() {
        let rows = |x: &Tensor| x.narrow(0, i * HEAD_ROWS, temperatures.len());
        let p = log_softmax_rows(&rows(hidden)?, head, temperatures)?;
        let q = log_softmax_rows(&rows(other)?, head, temperatures)?;
        parts.push((p.exp()? * (p - q)?)?.sum(D::Minus1)?);
    }
    Ok(Tensor::cat(&parts, 0)?.to_dtype(DType::F32)?)
}

//! The two kinds of decoder block, computed as llama.cpp's graphs do (a file for each architecture).
//! Reads no file and changes no weight.

use candle_core::Tensor;

use super::experts::Experts;
use super::ops::{self, Adapted, FeedForward, Frozen, RopeTable, SelfAttention};
use super::{Lora, Shape};
use crate::error::Result;

/// The inputs that all blocks of a forward pass share.
pub(super) struct Pass<'a> {
    pub(super) shape: &'a Shape,
    pub(super) starts: &'a [usize],
    pub(super) ropes: Ropes,
    pub(super) lora: Option<&'a Lora>,
}

/// Rotary angles of the tokens.
#[derive(Clone)]
pub(super) struct Ropes {
    /// In blocks that see all keys.
    pub(super) all: RopeTable,
    /// In blocks with a window.
    pub(super) window: Option<RopeTable>,
}

/// A linear layer of a block, which an adapter may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinearInfo {
    /// Name of its weight, such as `blk.0.attn_q.weight`.
    pub tensor: String,
    /// Its role in the block, such as `attn_q`.
    pub part: &'static str,
    /// Rows of its weight.
    pub out_features: usize,
    /// Columns of its weight.
    pub in_features: usize,
}

/// A frozen linear layer and its index among the decoder's.
pub(super) struct Linear {
    pub(super) index: usize,
    pub(super) weight: Frozen,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    fn adapted<'a>(&'a self, pass: &Pass<'a>) -> Adapted<'a> {
        let lora = pass.lora.and_then(|lora| lora.pair(self.index));
        Adapted { weight: &self.weight, bias: self.bias.as_ref(), lora }
    }

    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Adapted { weight, bias, lora } = self.adapted(pass);
        ops::linear(x, weight, bias, lora)
    }
}

/// RMSNorm, or LayerNorm if there is a bias.
pub(super) struct Norm {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) eps: f32,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => ops::layer_norm(x, &self.weight, bias, self.eps),
            None => ops::rms_norm(x, &self.weight, self.eps),
        }
    }
}

pub(super) enum Block {
    Gated(Box<Gated>),
    Classic(Box<Classic>),
}

impl Block {
    /// [tokens, width] to [tokens, width].
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match self {
            Block::Gated(block) => block.forward(x, pass),
            Block::Classic(block) => block.forward(x, pass),
        }
    }
}

/// The projections of queries, keys and values.
pub(super) enum Projections {
    Apart([Linear; 3]),
    /// Rows of queries, then keys, then values.
    Together(Linear),
}

impl Projections {
    /// Queries, keys and values, [tokens, heads, head_dim] each.
    fn heads(&self, x: &Tensor, pass: &Pass<'_>) -> Result<[Tensor; 3]> {
        let Shape { heads, kv_heads, head_dim, .. } = *pass.shape;
        let tokens = x.dims2()?.0;
        let project = |layer: &Linear, heads: usize| -> Result<Tensor> {
            Ok(layer.forward(x, pass)?.reshape((tokens, heads, head_dim))?)
        };
        match self {
            Projections::Apart([q, k, v]) => Ok([project(q, heads)?, project(k, kv_heads)?, project(v, kv_heads)?]),
            Projections::Together(qkv) => {
                let qkv = project(qkv, heads + 2 * kv_heads)?;
                let part = |from, count| qkv.narrow(1, from, count)?.contiguous();
                Ok([part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?])
            }
        }
    }
}

/// A gated feed-forward layer.
pub(super) enum Fed {
    Apart {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    /// One projection gives the gate, and then the rest (phi3).
    Together {
        gate_up: Linear,
        down: Linear,
    },
    Experts(Experts),
}

/// RMSNorm, a gated feed-forward layer.
pub(super) struct Gated {
    pub(super) attn_norm: Tensor,
    pub(super) projections: Projections,
    /// Norms of query and key heads (qwen3).
    pub(super) head_norms: Option<(Tensor, Tensor)>,
    pub(super) attn_output: Linear,
    pub(super) ffn_norm: Tensor,
    pub(super) fed: Fed,
    /// Norms after attention and after the feed-forward layer (gemma3).
    pub(super) post_norms: Option<[Norm; 2]>,
    /// Whether attention sees a window of keys.
    pub(super) windowed: bool,
}

impl Gated {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let (Projections::Apart([q, k, v]), Fed::Apart { gate, up, down }, None) =
            (&self.projections, &self.fed, &self.post_norms)
        else {
            return self.in_parts(x, pass);
        };
        let shape = pass.shape;
        let attention = SelfAttention {
            norm: &self.attn_norm,
            eps: shape.eps,
            query: q.adapted(pass),
            key: k.adapted(pass),
            value: v.adapted(pass),
            output: self.attn_output.adapted(pass),
            head_norms: self.head_norms.as_ref().map(|(q, k)| (q, k)),
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            rope: &pass.ropes.all,
            style: shape.architecture.rope_style,
            starts: pass.starts,
            scale: shape.attention_scale,
        };
        let feed_forward = FeedForward {
            norm: &self.ffn_norm,
            eps: shape.eps,
            gate: gate.adapted(pass),
            up: up.adapted(pass),
            down: down.adapted(pass),
        };
        ops::feed_forward(&ops::self_attention(x, &attention)?, &feed_forward)
    }

    /// One operation after the other: with norms before the residuals and a GELU for its gate, perhaps a window, or
    /// with projections that are together.
    fn in_parts(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Shape { heads, head_dim, feed_forward, eps, architecture, attention_scale, .. } = *pass.shape;
        let tokens = x.dims2()?.0;
        let window = pass.shape.window.as_ref().filter(|_| self.windowed).map(|window| window.tokens);
        let rope = if self.windowed { pass.ropes.window.as_ref() } else { None }.unwrap_or(&pass.ropes.all);
        let normed = |of: Option<&Norm>, x: Tensor| of.map_or(Ok(x.clone()), |norm| norm.forward(&x));
        let [after_attention, after_feed_forward] = match &self.post_norms {
            Some([one, other]) => [Some(one), Some(other)],
            None => [None, None],
        };
        let n = ops::rms_norm(x, &self.attn_norm, eps)?;
        let [mut q, mut k, v] = self.projections.heads(&n, pass)?;
        if let Some((q_norm, k_norm)) = &self.head_norms {
            (q, k) = (ops::rms_norm(&q, q_norm, eps)?, ops::rms_norm(&k, k_norm, eps)?);
        }
        let turn = |x: &Tensor| ops::rope(x, rope, architecture.rope_style);
        let mixed = ops::windowed_attention(&turn(&q)?, &turn(&k)?, &v, pass.starts, attention_scale, window)?;
        let attended = self.attn_output.forward(&mixed.reshape((tokens, heads * head_dim))?, pass)?;
        let x = (x + normed(after_attention, attended)?)?;
        let n = ops::rms_norm(&x, &self.ffn_norm, eps)?;
        let fed = match &self.fed {
            Fed::Apart { gate, up, down } => {
                let (gate, up) = (gate.forward(&n, pass)?, up.forward(&n, pass)?);
                let gated = match &self.post_norms {
                    Some(_) => (ops::gelu(&gate)? * up)?,
                    None => ops::swiglu(&gate, &up)?,
                };
                down.forward(&gated, pass)?
            }
            Fed::Together { gate_up, down } => {
                let both = gate_up.forward(&n, pass)?;
                let half = |from| both.narrow(1, from, feed_forward)?.contiguous();
                down.forward(&ops::swiglu(&half(0)?, &half(feed_forward)?)?, pass)?
            }
            Fed::Experts(experts) => experts.forward(&n)?,
        };
        Ok((&x + normed(after_feed_forward, fed)?)?)
    }
}

/// gptneox and phi2: LayerNorm, GELU, parallel or sequential residuals.
pub(super) struct Classic {
    pub(super) attn_norm: Norm,
    pub(super) projections: Projections,
    pub(super) attn_output: Linear,
    /// `None` where the feed-forward layer reads what attention reads.
    pub(super) ffn_norm: Option<Norm>,
    pub(super) ffn_up: Linear,
    pub(super) ffn_down: Linear,
}

impl Classic {
    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let normed = self.attn_norm.forward(x)?;
        let attended = self.attention(&normed, pass)?;
        let Some(ffn_norm) = &self.ffn_norm else {
            return Ok(((self.feed_forward(&normed, pass)? + x)? + attended)?);
        };
        if pass.shape.parallel_residual {
            let fed = self.feed_forward(&ffn_norm.forward(x)?, pass)?;
            return Ok(((fed + x)? + attended)?);
        }
        let x = (attended + x)?;
        Ok((self.feed_forward(&ffn_norm.forward(&x)?, pass)? + x)?)
    }

    fn attention(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let Shape { heads, head_dim, architecture, .. } = *pass.shape;
        let tokens = x.dims2()?.0;
        let [q, k, v] = self.projections.heads(x, pass)?;
        let q = ops::rope(&q, &pass.ropes.all, architecture.rope_style)?;
        let k = ops::rope(&k, &pass.ropes.all, architecture.rope_style)?;
        let mixed = ops::attention(&q, &k, &v, pass.starts, pass.shape.attention_scale)?; // [tokens, heads, head_dim]
        self.attn_output.forward(&mixed.reshape((tokens, heads * head_dim))?, pass)
    }

    fn feed_forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.ffn_down.forward(&ops::gelu(&self.ffn_up.forward(x, pass)?)?, pass)
    }
}

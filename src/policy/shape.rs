//! Reads and checks a GGUF model's description: sizes, norms, rotary frequencies. Reads no weights except the factors
//! of the frequencies. A model with features that the decoder doesn't compute is refused rather than computed wrongly.

use super::arch::{ARCHITECTURES, Architecture, CONVERTED_FROM, Scales, Windows, architectures};
use crate::error::{Error, Result};
use crate::gguf::{Array, Gguf, MOST_LAYERS, Value};

/// Keys, after the architecture's prefix, of features that are not computed here. Zero, `false` and `none` mean that
/// the feature is absent.
const NOT_COMPUTED: &[(&str, &str)] = &[
    (EXPERTS, "a mixture of experts"),
    ("expert_weights_scale", "scaled experts"),
    ("attention.sliding_window", "sliding-window attention"),
    ("attention.scale", "a set attention scale"),
    ("attention.clamp_kqv", "clamped attention inputs"),
    ("attention.max_alibi_bias", "ALiBi"),
    ("attn_logit_softcapping", "soft-capped attention"),
    ("final_logit_softcapping", "soft-capped logits"),
    ("logit_scale", "scaled logits"),
    ("embedding_scale", "scaled embeddings"),
    ("residual_scale", "scaled residuals"),
    ("nextn_predict_layers", "extra prediction layers"),
    ("rope.scaling.attn_factor", "rotary attention scaling"),
    ("rope.scaling.alpha", "rotary alpha scaling"),
];
/// Those that an architecture with declared scales computes.
const SCALES: [&str; 4] = ["attention.scale", "logit_scale", "embedding_scale", "residual_scale"];
/// The one that an architecture with experts computes.
const EXPERTS: &str = "expert_count";
/// The one that an architecture with windows computes.
const WINDOW: &str = "attention.sliding_window";

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The architecture.
    pub architecture: &'static Architecture,
    /// Width of a hidden state.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of the feed-forward layers.
    pub feed_forward: usize,
    /// Context length that the model was made for, in tokens.
    pub context: usize,
    /// Epsilon of the norms, added to the variance under the root.
    pub eps: f32,
    /// Whether attention and feed-forward read the same input.
    pub parallel_residual: bool,
    /// Rotation angle per position of each pair, scaling factors applied.
    pub inv_freq: Vec<f32>,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// Factor of the scores of attention.
    pub attention_scale: f32,
    /// Divisor of the logits.
    pub logit_divisor: f32,
    /// The window of some blocks.
    pub window: Option<Window>,
    /// The experts of each block.
    pub experts: Option<ExpertSizes>,
}

/// The sizes of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSizes {
    /// How many there are.
    pub count: usize,
    /// How many a token goes through.
    pub used: usize,
    /// Inner width of each.
    pub feed_forward: usize,
}

/// A window of keys that some blocks see.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// How many keys, the token's own included.
    pub tokens: usize,
    /// Which blocks, one entry each.
    pub blocks: Vec<bool>,
    /// Rotation angles of these blocks.
    pub inv_freq: Vec<f32>,
}

impl Shape {
    /// Reads the metadata. Errors name the key; an unknown architecture or feature is [`crate::Code::Unsupported`].
    pub fn read(file: &Gguf) -> Result<Self> {
        let name = file.str("general.architecture")?;
        if !architectures().any(|known| known == name) {
            let known = architectures().collect::<Vec<_>>().join(", ");
            let why = format!("architecture {name:.40} can't be trained; known are {known}");
            return Err(Error::unsupported(why));
        }
        let origin = file.opt_str(CONVERTED_FROM)?;
        let row = ARCHITECTURES.iter().find(|known| known.name == name && known.converted_from == origin);
        let architecture = row.ok_or_else(|| {
            let origin = origin.unwrap_or_default();
            Error::unsupported(format!("{CONVERTED_FROM} is {origin:.40}, which doesn't become {name} here"))
        })?;
        let keys = Keys { file, architecture };
        keys.refuse_what_is_not_computed()?;
        let classic = architecture.classic;
        let width = keys.size("embedding_length")?;
        let heads = keys.size("attention.head_count")?;
        let kv_heads = keys.optional_size("attention.head_count_kv")?.unwrap_or(heads);
        let head_dim = keys.optional_size("attention.key_length")?.unwrap_or(width / heads);
        let value_dim = keys.optional_size("attention.value_length")?.unwrap_or(width / heads);
        let layers = keys.size("block_count")?;
        let rotary = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
        let eps = if classic { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let parallel = match (classic, architecture.one_norm) {
            (true, false) => file.bool(&keys.name("use_parallel_residual"))?,
            (_, one_norm) => one_norm,
        };
        for (fine, complaint) in [
            (layers <= MOST_LAYERS as usize, format!("it has {layers} blocks, the most is {MOST_LAYERS}")),
            (heads % kv_heads == 0, format!("{kv_heads} key heads don't divide {heads} query heads")),
            (
                head_dim == value_dim && head_dim > 0,
                format!("its key heads have {head_dim} values, its value heads {value_dim}"),
            ),
            (rotary <= head_dim && rotary % 2 == 0, format!("{rotary} of {head_dim} values of a head rotate")),
            (
                classic || architecture.fused_gate || rotary == head_dim,
                format!("{rotary} of {head_dim} values of a head rotate, expected all"),
            ),
        ] {
            if !fine {
                return Err(Error::model(complaint));
            }
        }
        let eps = file.f32(&keys.name(eps))?;
        let Factors { embedding, attention, residual, logits } = keys.factors(width, heads, head_dim, layers)?;
        Ok(Self {
            // RMSNorm takes a factor of its input out, so what is added to hidden states is left as it is, and they are
            // divided by its factor instead: x + s f(norm(x)) is s (z + f(norm(z))) with x = s z.
            embedding_scale: embedding / residual,
            attention_scale: attention,
            logit_divisor: logits,
            window: keys.window(layers, rotary)?,
            experts: keys.experts()?,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            feed_forward: keys.size("feed_forward_length")?,
            context: keys.size("context_length")?,
            eps: eps / (residual * residual),
            parallel_residual: parallel,
            inv_freq: keys.inverse_frequencies(rotary)?,
            architecture,
        })
    }
}

impl Shape {
    /// What a block keeps of each token for the backward pass, and what it keeps if it is recomputed. [bytes]
    ///
    /// `element` is the size of a value in the precision of frozen products, `rank` that of the adapter.
    pub fn activation_bytes(&self, element: u64, rank: u64) -> (u64, u64) {
        let inner = match self.experts {
            Some(ExpertSizes { used, feed_forward, .. }) => used * (feed_forward + self.width),
            None => self.feed_forward,
        };
        let (width, inner) = (self.width as u64, inner as u64);
        let (q, kv) = ((self.heads * self.head_dim) as u64, (self.kv_heads * self.head_dim) as u64);
        let kept = match self.architecture.computed_in_parts() {
            // Each operation keeps its input.
            true => 4 * (6 * width + 3 * (q + 2 * kv) + q + 2 * inner),
            // Queries, keys, values, mixed heads, gate and up; two inputs; what the factors of seven layers gave.
            false => element * 2 * (q + kv + inner) + 4 * (2 * width + 7 * rank + self.heads as u64),
        };
        (kept, 4 * width)
    }
}

struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'static Architecture,
}

/// Factors that an architecture or a file sets.
struct Factors {
    embedding: f32,
    attention: f32,
    residual: f32,
    logits: f32,
}

impl Keys<'_> {
    fn factors(&self, width: usize, heads: usize, head_dim: usize, layers: usize) -> Result<Factors> {
        let attention = 1.0 / (head_dim as f32).sqrt();
        let plain = Factors { embedding: 1.0, attention, residual: 1.0, logits: 1.0 };
        match self.architecture.scales {
            Scales::Plain => Ok(plain),
            Scales::ByWidth => {
                // As llama.cpp tells the one size whose scores are scaled by another width.
                let attention = if layers == 62 { 1.0 / ((width / heads) as f32).sqrt() } else { attention };
                Ok(Factors { embedding: (width as f32).sqrt(), attention, ..plain })
            }
            Scales::Declared => {
                let declared = |key: &str, default: f32| {
                    let factor = self.file.opt_f32(&self.name(key))?.filter(|f| *f != 0.0).unwrap_or(default);
                    let wrong = || Error::model(format!("{} is {factor}, expected above 0", self.name(key)));
                    if factor.is_finite() && factor > 0.0 { Ok(factor) } else { Err(wrong()) }
                };
                if self.file.opt_bool(&self.name("rope.scaling.finetuned"))? == Some(false) {
                    return Err(self.unsupported("attention without rotation"));
                }
                Ok(Factors {
                    embedding: declared("embedding_scale", 1.0)?,
                    attention: declared("attention.scale", attention)?,
                    residual: declared("residual_scale", 1.0)?,
                    logits: declared("logit_scale", 1.0)?,
                })
            }
        }
    }

    fn experts(&self) -> Result<Option<ExpertSizes>> {
        if !self.architecture.experts {
            return Ok(None);
        }
        let (count, used) = (self.size(EXPERTS)?, self.size("expert_used_count")?);
        if used > count {
            return Err(Error::model(format!("a token goes through {used} of {count} experts")));
        }
        let inner = self.optional_size("expert_feed_forward_length")?;
        let feed_forward = inner.unwrap_or(self.size("feed_forward_length")? / used);
        Ok(Some(ExpertSizes { count, used, feed_forward }))
    }

    /// Every sixth block sees all keys, if the file says nothing else.
    fn window(&self, layers: usize, rotary: usize) -> Result<Option<Window>> {
        let tokens =
            self.optional_size(WINDOW).unwrap_or(None).filter(|_| self.architecture.windows == Windows::ByBlock);
        let Some(tokens) = tokens else { return Ok(None) };
        let pattern = self.name("attention.sliding_window_pattern");
        let blocks = match self.file.get(&pattern) {
            Some(Value::Array(Array::Bool(blocks))) if blocks.len() >= layers => blocks[..layers].to_vec(),
            Some(Value::Array(_)) => return Err(Error::model(format!("{pattern} has not an entry for each block"))),
            _ => {
                let every = self.file.opt_u32(&pattern)?.unwrap_or(6) as usize;
                (0..layers).map(|i| every == 0 || i % every < every - 1).collect()
            }
        };
        let base = f64::from(self.file.opt_f32(&self.name("rope.freq_base_swa"))?.unwrap_or(10_000.0));
        let inv_freq = (0..rotary / 2).map(|i| base.powf(-2.0 * i as f64 / rotary as f64) as f32).collect();
        Ok(Some(Window { tokens, blocks, inv_freq }))
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str) -> Result<usize> {
        let name = self.name(key);
        self.optional_size(key)?.ok_or_else(|| Error::model(format!("metadata key {name} is missing")))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        match self.file.opt_u32(&name)? {
            Some(0) => Err(Error::model(format!("metadata key {name} is 0, expected at least 1"))),
            other => Ok(other.map(|n| n as usize)),
        }
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        for (key, feature) in NOT_COMPUTED {
            let scaled = self.architecture.scales == Scales::Declared && SCALES.contains(key);
            let windowed = *key == WINDOW && self.architecture.windows != Windows::Refused;
            if scaled || windowed || *key == EXPERTS && self.architecture.experts {
                continue;
            }
            let absent = match self.file.get(&self.name(key)) {
                None | Some(Value::U32(0) | Value::Bool(false)) => true,
                Some(Value::F32(x)) => *x == 0.0,
                Some(_) => false,
            };
            if !absent {
                return Err(self.unsupported(feature));
            }
        }
        if self.file.opt_bool(&self.name("attention.causal"))? == Some(false) {
            return Err(self.unsupported("attention to later tokens"));
        }
        Ok(())
    }

    fn unsupported(&self, feature: &str) -> Error {
        Error::unsupported(format!("the model declares {feature}, which the trainer doesn't compute"))
    }

    /// Rotation angles per position, as in ggml's rope: base^(-2i/n) · scale / factor_i.
    fn inverse_frequencies(&self, rotary: usize) -> Result<Vec<f32>> {
        let base = f64::from(self.file.opt_f32(&self.name("rope.freq_base"))?.unwrap_or(10_000.0));
        let scale = match self.file.opt_str(&self.name("rope.scaling.type"))? {
            Some("none") => 1.0,
            None | Some("linear") => self.linear_scale()?,
            Some(kind) => return Err(self.unsupported(&format!("rotary scaling of type {kind:.40}"))),
        };
        let factors = match self.file.tensor("rope_freqs.weight") {
            Some(_) if self.architecture.rope_factors => {
                let factors = self.file.values("rope_freqs.weight")?;
                if factors.len() != rotary / 2 {
                    let (found, expected) = (factors.len(), rotary / 2);
                    return Err(Error::model(format!(
                        "tensor rope_freqs.weight has {found} elements, expected {expected}"
                    )));
                }
                factors
            }
            _ => vec![1.0; rotary / 2],
        };
        let angle =
            |(i, factor): (usize, f32)| (base.powf(-2.0 * i as f64 / rotary as f64) * scale / f64::from(factor)) as f32;
        let angles: Vec<f32> = factors.into_iter().enumerate().map(angle).collect();
        match angles.iter().all(|a| a.is_finite()) {
            true => Ok(angles),
            false => Err(Error::model("its rotary frequencies are not finite")),
        }
    }

    fn linear_scale(&self) -> Result<f64> {
        let factor = self.file.opt_f32(&self.name("rope.scaling.factor"))?;
        let factor = match factor {
            Some(factor) => Some(factor),
            None => self.file.opt_f32(&self.name("rope.scale_linear"))?,
        };
        Ok(factor.filter(|&f| f != 0.0).map_or(1.0, |f| 1.0 / f64::from(f)))
    }
}

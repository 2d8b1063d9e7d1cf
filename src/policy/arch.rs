//! Reads and checks a GGUF model's description: sizes, norms, rotary frequencies. Reads no weights except the factors
//! of the frequencies. A model with features that the decoder doesn't compute is refused rather than computed wrongly.

use std::fmt;

use super::ops::RopeStyle;
use crate::error::{Error, Result};
use crate::gguf::{Array, Gguf, MOST_LAYERS, Value};

/// The architectures that can be trained. One made of the same parts is a row here, with a case in `policy/tests` and
/// in `tests/support/tiny.rs`; another kind of block also goes into `blocks.rs` and `loader.rs`.
static ARCHITECTURES: &[Architecture] = &[
    // SmolLM, Llama 2 and 3, Mistral and the like.
    Architecture { rope_style: RopeStyle::Interleaved, rope_factors: true, ..Architecture::gated("llama") },
    Architecture::gated("qwen2"),
    Architecture { head_norms: true, ..Architecture::gated("qwen3") },
    // Four scales, in embeddings, attention, residuals and logits.
    Architecture { rope_style: RopeStyle::Interleaved, scales: Scales::Declared, ..Architecture::gated("granite") },
    // Norms after each part too, GELU for its gate, and a window of keys in most blocks.
    Architecture {
        head_norms: true,
        post_norms: true,
        windows: Windows::ByBlock,
        scales: Scales::ByWidth,
        ..Architecture::gated("gemma3")
    },
    // Gate and up in one projection, as queries, keys and values are.
    Architecture {
        fused_gate: true,
        windows: Windows::Ignored,
        modules: &[
            ("attn_qkv", "self_attn.qkv_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_up", "mlp.gate_up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ],
        ..Architecture::gated("phi3")
    },
    // What GPT-J becomes, too.
    Architecture {
        classic: true,
        one_norm: true,
        modules: &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.dense"),
            ("ffn_up", "mlp.fc1"),
            ("ffn_down", "mlp.fc2"),
        ],
        ..Architecture::gated("phi2")
    },
    Architecture {
        classic: true,
        qkv_by_head: true,
        layers: "gpt_neox.layers",
        modules: &[
            ("attn_qkv", "attention.query_key_value"),
            ("attn_output", "attention.dense"),
            ("ffn_up", "mlp.dense_h_to_4h"),
            ("ffn_down", "mlp.dense_4h_to_h"),
        ],
        ..Architecture::gated("gptneox")
    },
];

/// The names in GGUF of all architectures that can be trained.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|known| known.name)
}

/// What scales hidden states and scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Scores alone, by the root of the heads' width.
    Plain,
    /// What the file's metadata declare.
    Declared,
    /// Embeddings too, by the root of the model's width.
    ByWidth,
}

/// What becomes of a window of keys that a file declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// The file is refused.
    Refused,
    /// Some blocks have it, and rotary frequencies of their own.
    ByBlock,
    /// Nothing, since llama.cpp doesn't apply it either.
    Ignored,
}

/// The common properties of an architecture's models.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// Its name in GGUF.
    pub name: &'static str,
    /// Whether it has LayerNorm and GELU instead of RMSNorm and SwiGLU.
    pub classic: bool,
    /// Whether attention and feed-forward read the same normed input.
    pub one_norm: bool,
    /// Whether one projection gives gate and up.
    pub fused_gate: bool,
    /// Whether each query and key head has an RMSNorm.
    pub head_norms: bool,
    /// Which elements of a head rotate together: llama.cpp's `llama_model_rope_type`.
    pub rope_style: RopeStyle,
    /// Whether `rope_freqs.weight` divides the rotary frequencies. Other architectures don't read it, so a file with it
    /// is refused.
    pub rope_factors: bool,
    /// Whether an RMSNorm follows attention and feed-forward, before the residual, and the gate is a GELU.
    pub post_norms: bool,
    /// What becomes of a declared window of keys.
    pub windows: Windows,
    /// What scales hidden states and scores.
    pub scales: Scales,
    /// Whether transformers keeps the rows of `attn_qkv` head by head.
    pub(super) qkv_by_head: bool,
    /// The name in transformers of what holds the blocks.
    pub(super) layers: &'static str,
    /// The names in transformers of a block's linear layers.
    pub(super) modules: &'static [(&'static str, &'static str)],
}

impl Architecture {
    const fn gated(name: &'static str) -> Self {
        Self {
            name,
            classic: false,
            one_norm: false,
            fused_gate: false,
            qkv_by_head: false,
            head_norms: false,
            rope_style: RopeStyle::Halves,
            rope_factors: false,
            post_norms: false,
            windows: Windows::Refused,
            scales: Scales::Plain,
            layers: "model.layers",
            modules: &[
                ("attn_q", "self_attn.q_proj"),
                ("attn_k", "self_attn.k_proj"),
                ("attn_v", "self_attn.v_proj"),
                ("attn_output", "self_attn.o_proj"),
                ("ffn_gate", "mlp.gate_proj"),
                ("ffn_up", "mlp.up_proj"),
                ("ffn_down", "mlp.down_proj"),
            ],
        }
    }
}

impl Architecture {
    /// Whether its blocks are composed of small operations, each of which keeps its input.
    fn computed_in_parts(&self) -> bool {
        self.classic || self.post_norms || self.fused_gate
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Keys, after the architecture's prefix, of features that are not computed here. Zero, `false` and `none` mean that
/// the feature is absent.
const NOT_COMPUTED: &[(&str, &str)] = &[
    ("expert_count", "a mixture of experts"),
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
        let architecture = ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
            let known = known.join(", ");
            Error::unsupported(format!("architecture {name:.40} can't be trained; known are {known}"))
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
        let (width, inner) = (self.width as u64, self.feed_forward as u64);
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
            if scaled || *key == WINDOW && self.architecture.windows != Windows::Refused {
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

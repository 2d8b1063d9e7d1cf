//! The architectures that can be trained, a row each. Reads no file.

use std::fmt;

use super::ops::RopeStyle;

/// The architectures that can be trained. One made of the same parts is a row here, with a case in `policy/tests` and
/// in `tests/support/tiny.rs`; another kind of block also goes into `blocks.rs` and `loader.rs`.
pub(super) static ARCHITECTURES: &[Architecture] = &[
    // SmolLM, Llama 2 and 3, Mistral and the like.
    Architecture { rope_style: RopeStyle::Interleaved, rope_factors: true, ..Architecture::gated("llama") },
    Architecture::gated("qwen2"),
    Architecture { head_norms: true, ..Architecture::gated("qwen3") },
    // An adapter changes attention alone.
    Architecture {
        head_norms: true,
        experts: true,
        modules: &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
        ],
        ..Architecture::gated("qwen3moe")
    },
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
        one_norm: true,
        converted_from: Some("gptj"),
        layers: "transformer.h",
        modules: &[
            ("attn_q", "attn.q_proj"),
            ("attn_k", "attn.k_proj"),
            ("attn_v", "attn.v_proj"),
            ("attn_output", "attn.out_proj"),
            ("ffn_up", "mlp.fc_in"),
            ("ffn_down", "mlp.fc_out"),
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
    ARCHITECTURES.iter().filter(|known| known.converted_from.is_none()).map(|known| known.name)
}

/// The metadata key of what a model was before it was converted to an architecture that computes the same.
pub(crate) const CONVERTED_FROM: &str = "apa.converted_from";

/// A row of a query's or key's weight in GPT-J, for a row of what it becomes: there elements 2i and 2i + 1 of a head of
/// `head` rotate together, in phi2 elements i and i + `rotary` / 2.
pub(crate) fn gptj_row(row: usize, head: usize, rotary: usize) -> usize {
    let (place, half) = (row % head, rotary / 2);
    row - place
        + match place {
            place if place < half => 2 * place,
            place if place < rotary => 2 * (place - half) + 1,
            place => place,
        }
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
    /// Whether a router chooses some of many feed-forward layers for each token.
    pub experts: bool,
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
    /// What transformers calls the model that was converted to this one.
    pub(super) converted_from: Option<&'static str>,
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
            experts: false,
            converted_from: None,
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
    pub(super) fn computed_in_parts(&self) -> bool {
        self.classic || self.post_norms || self.fused_gate || self.experts
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

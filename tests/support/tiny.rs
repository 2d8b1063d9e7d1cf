//! Writes tiny seeded random models that llama.cpp loads: every architecture the trainer knows, a byte-level vocabulary
//! and a ChatML template. Random weights; says nothing sensible.
#![allow(dead_code)]

use std::path::Path;

use apa::gguf::Writer;
use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What to write.
#[derive(Clone, Debug)]
pub struct TinySpec {
    /// `llama`, `qwen2`, `qwen3`, `qwen3moe`, `granite`, `gemma3`, `phi3`, `phi2` or `gptneox`.
    pub arch: &'static str,
    pub seed: u64,
    pub layers: u32,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Leading values of each head that are rotated.
    pub rotary: usize,
    pub ff: usize,
    pub context: u32,
    /// The head shares the embedding's weight.
    pub tied: bool,
    /// Divides the rotary frequencies, as Llama 3 does.
    pub rope_factors: bool,
    /// gptneox only.
    pub parallel_residual: bool,
    /// Number format of the matrices.
    pub format: GgmlDType,
    /// The chat template.
    pub template: &'static str,
    /// Name of what splits text into words; `None` names nothing.
    pub pre: Option<&'static str>,
    /// The token that ends a text: [`END`], which ends a turn, or the one that ends nothing else.
    pub eos: &'static str,
}

impl TinySpec {
    /// Two layers, 64 wide, F32, with the particulars of the architecture.
    pub fn new(arch: &'static str) -> Self {
        let gptneox = arch == "gptneox";
        // qwen3 has heads wider than width / heads.
        let head_dim = if matches!(arch, "qwen3" | "qwen3moe" | "gemma3") { 32 } else { 16 };
        Self {
            arch,
            seed: 7,
            layers: 2,
            width: 64,
            heads: 4,
            kv_heads: if gptneox { 4 } else { 2 },
            head_dim,
            rotary: match arch {
                "gptneox" => head_dim / 4,
                "phi2" => head_dim / 2,
                "phi3" => head_dim * 3 / 4,
                _ => head_dim,
            },
            ff: 128,
            context: 1024,
            tied: matches!(arch, "llama" | "gemma3"),
            rope_factors: false,
            parallel_residual: true,
            format: GgmlDType::F32,
            template: TEMPLATE,
            pre: Some("smollm"),
            eos: END,
        }
    }
}

/// Of qwen3moe: how many there are, how many a token goes through, and their inner width.
const EXPERTS: usize = 8;
const EXPERTS_USED: usize = 2;
const EXPERT_FF: usize = 32;

/// Ends a turn, and the text.
pub const END: &str = "<|im_end|>";
/// Tokens that are no text, the last of the vocabulary.
pub const CONTROL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", END];
/// Pairs that are joined, in order, with commas between.
pub const MERGES: &str = "Ġ t,h e,Ġ a,i n,Ġt he,r e,o n,e r,Ġ s,a t,n d,Ġ w,i s,o r,e n,i t,Ġ o,e s,Ġa nd,in g,o u,Ġ b,\
    l l,Ġ i,e d,a n,Ġ c,Ġ h,y ou";

/// A template that knows no tools.
pub const TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A template that knows tools.
pub const TOOLS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{{'<|im_start|>' + \
    message['role'] + '\n' + message['content']}}{% for call in message.tool_calls %}{{ call | tojson }}{% endfor %}\
    {{ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// The vocabulary in order: 256 bytes, the merges, the control tokens.
pub fn vocabulary() -> Vec<String> {
    let bytes = (0..=255).map(|byte| byte_name(byte).to_string());
    let merged = MERGES.split(',').map(|merge| merge.replace(' ', ""));
    bytes.chain(merged).chain(CONTROL.map(String::from)).collect()
}

/// GPT-2's printable stand-in for a byte.
fn byte_name(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + hidden_before).expect("below the surrogates")
}

/// Writes the model.
pub fn tiny_model(path: &Path, spec: &TinySpec) -> apa::Result<()> {
    let mut file = Writer::new();
    metadata(&mut file, spec);
    let mut weights = Weights { rng: ChaCha8Rng::seed_from_u64(spec.seed), format: spec.format };
    let vocab = vocabulary().len();
    let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    weights.matrix(&mut file, "token_embd", vocab, spec.width)?;
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        // LayerNorm, and a bias wherever there can be one.
        let classic = matches!(spec.arch, "gptneox" | "phi2");
        weights.norm(&mut file, &name("attn_norm"), spec.width, classic)?;
        if spec.arch != "phi2" {
            weights.norm(&mut file, &name("ffn_norm"), spec.width, classic)?;
        }
        if matches!(spec.arch, "gptneox" | "phi3") {
            weights.linear(&mut file, &name("attn_qkv"), q + 2 * kv, spec.width, classic)?;
        } else {
            let bias = classic || spec.arch == "qwen2";
            weights.linear(&mut file, &name("attn_q"), q, spec.width, bias)?;
            weights.linear(&mut file, &name("attn_k"), kv, spec.width, bias)?;
            weights.linear(&mut file, &name("attn_v"), kv, spec.width, bias)?;
        }
        if !classic && !matches!(spec.arch, "phi3" | "qwen3moe") {
            weights.linear(&mut file, &name("ffn_gate"), spec.ff, spec.width, false)?;
        }
        if spec.arch == "gemma3" {
            weights.norm(&mut file, &name("post_attention_norm"), spec.width, false)?;
            weights.norm(&mut file, &name("post_ffw_norm"), spec.width, false)?;
        }
        if matches!(spec.arch, "qwen3" | "qwen3moe" | "gemma3") {
            weights.norm(&mut file, &name("attn_q_norm"), spec.head_dim, false)?;
            weights.norm(&mut file, &name("attn_k_norm"), spec.head_dim, false)?;
        }
        weights.linear(&mut file, &name("attn_output"), spec.width, q, classic)?;
        if spec.arch == "qwen3moe" {
            weights.router(&mut file, &name("ffn_gate_inp"), spec.width)?;
            for (part, rows, width) in
                [("gate", EXPERT_FF, spec.width), ("up", EXPERT_FF, spec.width), ("down", spec.width, EXPERT_FF)]
            {
                weights.experts(&mut file, &name(&format!("ffn_{part}_exps")), rows, width)?;
            }
            continue;
        }
        let up = if spec.arch == "phi3" { 2 * spec.ff } else { spec.ff };
        weights.linear(&mut file, &name("ffn_up"), up, spec.width, classic)?;
        weights.linear(&mut file, &name("ffn_down"), spec.width, spec.ff, classic)?;
    }
    weights.norm(&mut file, "output_norm", spec.width, matches!(spec.arch, "gptneox" | "phi2"))?;
    if !spec.tied {
        weights.linear(&mut file, "output", vocab, spec.width, spec.arch == "phi2")?;
    }
    if spec.rope_factors {
        let factors: Vec<f32> = (0..spec.rotary / 2).map(|i| 1.0 + i as f32).collect();
        file.tensor("rope_freqs.weight", &Tensor::new(factors, &Device::Cpu)?)?;
    }
    file.write(path)
}

fn metadata(file: &mut Writer<'_>, spec: &TinySpec) {
    let arch = spec.arch;
    // To llama.cpp a name with phi3 in it promises certain tokens.
    let name = format!("tiny {}", arch.replace("phi3", "phi 3"));
    file.set("general.architecture", arch).set("general.type", "model").set("general.name", name);
    file.set("general.quantization_version", 2u32);
    let mut number = |key: &str, value: usize| {
        file.set(&format!("{arch}.{key}"), value as u32);
    };
    number("context_length", spec.context as usize);
    number("embedding_length", spec.width);
    number("block_count", spec.layers as usize);
    number("feed_forward_length", spec.ff);
    number("attention.head_count", spec.heads);
    number("attention.head_count_kv", spec.kv_heads);
    number("attention.key_length", spec.head_dim);
    number("attention.value_length", spec.head_dim);
    number("rope.dimension_count", spec.rotary);
    if arch == "qwen3moe" {
        number("expert_count", EXPERTS);
        number("expert_used_count", EXPERTS_USED);
        number("expert_feed_forward_length", EXPERT_FF);
    }
    file.set(&format!("{arch}.rope.freq_base"), 10_000f32);
    if arch == "granite" {
        for (key, scale) in
            [("embedding_scale", 3.0f32), ("residual_scale", 0.4), ("attention.scale", 0.15), ("logit_scale", 2.5)]
        {
            file.set(&format!("granite.{key}"), scale);
        }
    }
    if arch == "gemma3" {
        // The first block sees a window, the second everything.
        file.set("gemma3.rope.freq_base", 500_000f32).set("gemma3.attention.sliding_window", 24u32);
        file.set("gemma3.attention.sliding_window_pattern", 2u32);
    }
    if arch == "gptneox" {
        file.set("gptneox.use_parallel_residual", spec.parallel_residual);
    }
    if matches!(arch, "gptneox" | "phi2") {
        file.set(&format!("{arch}.attention.layer_norm_epsilon"), 1e-5f32);
    } else {
        file.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32);
    }
    let tokens = vocabulary();
    let plain = tokens.len() - CONTROL.len();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < plain { 1 } else { 3 }).collect();
    let merges: Vec<String> = MERGES.split(',').map(String::from).collect();
    let eos = tokens.iter().position(|token| token == spec.eos).expect("eos is a token") as u32;
    file.set("tokenizer.ggml.model", "gpt2");
    if let Some(pre) = spec.pre {
        file.set("tokenizer.ggml.pre", pre);
    }
    file.set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", types);
    file.set("tokenizer.ggml.merges", merges).set("tokenizer.ggml.add_bos_token", false);
    file.set("tokenizer.ggml.bos_token_id", plain as u32 + 1).set("tokenizer.ggml.eos_token_id", eos);
    file.set("tokenizer.ggml.unknown_token_id", plain as u32).set("tokenizer.chat_template", spec.template);
}

struct Weights {
    rng: ChaCha8Rng,
    format: GgmlDType,
}

impl Weights {
    fn uniform(&mut self, shape: &[usize], middle: f32, spread: f32) -> apa::Result<Tensor> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| middle + self.rng.random_range(-spread..spread)).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    fn matrix(&mut self, file: &mut Writer<'_>, name: &str, rows: usize, width: usize) -> apa::Result<()> {
        // Variance 1 / width keeps activations of order one.
        let data = self.uniform(&[rows, width], 0.0, (3.0 / width as f32).sqrt())?;
        file.tensor_as(&format!("{name}.weight"), &data, self.format)?;
        Ok(())
    }

    /// Far apart, so that no rounding changes a choice.
    fn router(&mut self, file: &mut Writer<'_>, name: &str, width: usize) -> apa::Result<()> {
        let data = self.uniform(&[EXPERTS, width], 0.0, 1.0)?;
        file.tensor(&format!("{name}.weight"), &data)?;
        Ok(())
    }

    fn experts(&mut self, file: &mut Writer<'_>, name: &str, rows: usize, width: usize) -> apa::Result<()> {
        let data = self.uniform(&[EXPERTS, rows, width], 0.0, (3.0 / width as f32).sqrt())?;
        file.tensor_as(&format!("{name}.weight"), &data, self.format)?;
        Ok(())
    }

    fn linear(&mut self, file: &mut Writer<'_>, name: &str, rows: usize, width: usize, bias: bool) -> apa::Result<()> {
        self.matrix(file, name, rows, width)?;
        if bias {
            file.tensor(&format!("{name}.bias"), &self.uniform(&[rows], 0.0, 0.3)?)?;
        }
        Ok(())
    }

    fn norm(&mut self, file: &mut Writer<'_>, name: &str, width: usize, bias: bool) -> apa::Result<()> {
        file.tensor(&format!("{name}.weight"), &self.uniform(&[width], 1.0, 0.3)?)?;
        if bias {
            file.tensor(&format!("{name}.bias"), &self.uniform(&[width], 0.0, 0.3)?)?;
        }
        Ok(())
    }
}

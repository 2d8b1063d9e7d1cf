//! Converts adapters to and from PEFT's form (`adapter_config.json` and `adapter_model.safetensors`) without loss,
//! reversing and repeating llama.cpp's permutation of some weights' rows. Never changes a value.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::adapter_file::factors;
use super::arch::gptj_row;
use super::ops::RopeStyle;
use super::{Decoder, LinearInfo, Lora, Shape};
use crate::error::{Error, Result};
use crate::files;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The files of a PEFT adapter's folder.
pub const PEFT_FILES: [&str; 2] = [CONFIG, WEIGHTS];
const MOST_CONFIG_BYTES: u64 = 1 << 20;

/// The part of PEFT's configuration that affects computation.
#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    target_modules: Value,
    #[serde(default = "none")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: Map<String, Value>,
    #[serde(default)]
    alpha_pattern: Map<String, Value>,
    #[serde(default)]
    inference_mode: bool,
}

fn none() -> String {
    "none".into()
}

impl PeftConfig {
    /// Alpha as scale · rank. Errors name an option that is not computed here.
    fn alpha(&self) -> Result<f64> {
        let refused = [
            (self.peft_type != "LORA", format!("of type {:.40}", self.peft_type)),
            (self.use_dora, "with DoRA".into()),
            (self.lora_bias || self.bias != "none", "with trained biases".into()),
            (self.fan_in_fan_out, "of transposed layers".into()),
            (self.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()), "with whole modules saved".into()),
            (!self.rank_pattern.is_empty() || !self.alpha_pattern.is_empty(), "with ranks or alphas by layer".into()),
        ];
        match refused.into_iter().find(|(present, _)| *present) {
            Some((_, what)) => Err(Error::unsupported(format!("it is an adapter {what}, expected plain LoRA"))),
            // rsLoRA scales by alpha / √r.
            None if self.use_rslora => Ok(self.lora_alpha * (self.r as f64).sqrt()),
            None => Ok(self.lora_alpha),
        }
    }
}

impl Lora {
    /// Writes the adapter to a folder for PEFT; `base_name` is the base's name on the Hugging Face hub.
    pub fn write_peft(&self, folder: &Path, decoder: &Decoder, base_name: &str) -> Result<()> {
        self.check_base(decoder.fingerprint())?;
        let mut tensors = HashMap::new();
        let mut modules = BTreeSet::new();
        for (linear, factors) in decoder.linears().iter().zip(&self.layers) {
            let Some(factors) = factors else { continue };
            let module = module(decoder.shape(), linear)?;
            let b = select_rows(factors.b.as_tensor(), rows(decoder.shape(), linear).map(|rows| inverse(&rows)))?;
            tensors.insert(weight_name(&module, "A"), factors.a.as_tensor().clone());
            tensors.insert(weight_name(&module, "B"), b);
            modules.extend(module.rsplit('.').next().map(str::to_owned));
        }
        let config = PeftConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_name.into()),
            r: self.rank,
            lora_alpha: self.alpha,
            lora_dropout: 0.0,
            target_modules: modules.into_iter().collect(),
            bias: none(),
            fan_in_fan_out: false,
            use_rslora: false,
            use_dora: false,
            lora_bias: false,
            modules_to_save: None,
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
            inference_mode: true,
        };
        let config = serde_json::to_vec_pretty(&config).map_err(|e| Error::io(e.to_string()))?;
        fs::create_dir_all(folder)?;
        candle_core::safetensors::save(&tensors, folder.join(WEIGHTS)).map_err(|e| Error::io(e.to_string()))?;
        // Written last, so that a folder with a configuration is complete.
        Ok(fs::write(folder.join(CONFIG), config)?)
    }

    /// Reads a PEFT adapter of the model that this base was converted from.
    pub fn read_peft(folder: &Path, decoder: &Decoder) -> Result<Self> {
        read(folder, decoder).map_err(|e| e.context(format!("PEFT adapter {}", folder.display())))
    }

    /// The same of the contents of its files, [`PEFT_FILES`].
    pub fn of_peft(config: &[u8], weights: &[u8], decoder: &Decoder) -> Result<Self> {
        let weights = candle_core::safetensors::load_buffer(weights, decoder.device());
        of(&parse_config(config)?, weights.map_err(unreadable)?, decoder)
    }
}

fn unreadable(error: candle_core::Error) -> Error {
    Error::arg(format!("{WEIGHTS}: {error}"))
}

fn read(folder: &Path, decoder: &Decoder) -> Result<Lora> {
    let config = read_config(&folder.join(CONFIG))?;
    let weights = candle_core::safetensors::load(folder.join(WEIGHTS), decoder.device());
    of(&config, weights.map_err(unreadable)?, decoder)
}

fn of(config: &PeftConfig, mut weights: HashMap<String, Tensor>, decoder: &Decoder) -> Result<Lora> {
    let alpha = config.alpha()?;
    let mut layers = Vec::with_capacity(decoder.linears().len());
    let mut rank = Some(config.r);
    for linear in decoder.linears() {
        let module = module(decoder.shape(), linear)?;
        let pair = (weights.remove(&weight_name(&module, "A")), weights.remove(&weight_name(&module, "B")));
        layers.push(match pair {
            (Some(a), Some(b)) => {
                let ready = |t: Tensor| -> Result<Tensor> { Ok(t.to_dtype(DType::F32)?) };
                let mut pair = factors(linear, ready(a)?, ready(b)?, &mut rank)?;
                if let Some(rows) = rows(decoder.shape(), linear) {
                    pair.b = candle_core::Var::from_tensor(&select_rows(pair.b.as_tensor(), Some(rows))?)?;
                }
                Some(pair)
            }
            (None, None) => None,
            (a, _) => {
                let missing = if a.is_some() { "lora_B" } else { "lora_A" };
                return Err(Error::arg(format!("{module} has no {missing}")));
            }
        });
    }
    match weights.keys().min() {
        Some(stray) => Err(Error::arg(format!("its tensor {stray:.120} changes no linear layer of the base"))),
        None => Lora::from_layers(decoder.identity(), config.r, alpha, layers),
    }
}

fn read_config(path: &Path) -> Result<PeftConfig> {
    let mut text = Vec::new();
    let file = files::open(path).map_err(|e| Error::from(e).context(CONFIG))?;
    file.take(MOST_CONFIG_BYTES).read_to_end(&mut text)?;
    parse_config(&text)
}

fn parse_config(text: &[u8]) -> Result<PeftConfig> {
    let wrong = |e: serde_json::Error| Error::arg(format!("{CONFIG}: {e}"));
    let mut options: Map<String, Value> = serde_json::from_slice(text).map_err(wrong)?;
    // PEFT writes null for what was not set.
    options.retain(|_, value| !value.is_null());
    check_options(&options)?;
    serde_json::from_value(options.into()).map_err(wrong)
}

/// Options that change nothing of what a trained adapter computes, or whose values [`PeftConfig`] reads.
const WITHOUT_EFFECT: [&str; 31] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_dora",
];
/// Ways to begin that leave the base's weights as they are. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take something
/// off the base first, which an adapter alone doesn't tell.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Refuses what would make the adapter compute something else than B A x, including options that this build doesn't
/// know.
fn check_options(options: &Map<String, Value>) -> Result<()> {
    for (name, value) in options {
        let neutral = match value {
            Value::Bool(on) => !on,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Number(_) | Value::Null => false,
        };
        let fine = match name.as_str() {
            "init_lora_weights" => {
                value.is_boolean() || value.as_str().is_some_and(|way| PLAIN_BEGINNINGS.contains(&way))
            }
            "use_rslora" => value.is_boolean(),
            name => neutral || WITHOUT_EFFECT.contains(&name),
        };
        if !fine {
            return Err(Error::unsupported(format!(
                "its {name:.40} is {:.60}, which may change what it computes; expected plain LoRA",
                value.to_string()
            )));
        }
    }
    Ok(())
}

fn weight_name(module: &str, factor: &str) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

/// The layer's name in transformers, such as `model.layers.0.self_attn.q_proj`.
fn module(shape: &Shape, linear: &LinearInfo) -> Result<String> {
    let architecture = shape.architecture;
    let Some((_, part)) = architecture.modules.iter().find(|(part, _)| *part == linear.part) else {
        let part = linear.part;
        return Err(Error::unsupported(format!("{part} of a {architecture} file has no counterpart in PEFT")));
    };
    let layers = architecture.layers;
    let layer = linear.tensor.split('.').nth(1).unwrap_or_default();
    Ok(format!("{layers}.{layer}.{part}"))
}

/// The permutation of a weight's rows by the converter: for each row of the file, its row in transformers.
///
/// llama: the two halves of each query and key head are interleaved (`LlamaModel.permute`). gptneox: q, k and v of each
/// head become all q, all k, all v (`GPTNeoXModel.modify_tensors`). Source: llama.cpp's convert_hf_to_gguf.py. GPT-J:
/// our own converter. Other weights are unchanged.
fn rows(shape: &Shape, linear: &LinearInfo) -> Option<Vec<u32>> {
    let (dim, half) = (shape.head_dim, shape.head_dim / 2);
    let row: Box<dyn Fn(usize) -> usize> = match (shape.architecture.rope_style, linear.part) {
        (RopeStyle::Interleaved, "attn_q" | "attn_k") => Box::new(|row| {
            let (head, pair, side) = (row / dim, row % dim / 2, row % 2);
            head * dim + side * half + pair
        }),
        (_, "attn_q" | "attn_k") if shape.architecture.converted_from == Some("gptj") => {
            let rotary = 2 * shape.inv_freq.len();
            Box::new(move |row| gptj_row(row, dim, rotary))
        }
        (_, "attn_qkv") if shape.architecture.qkv_by_head => Box::new(|row| {
            let (which, head, value) = (row / (shape.heads * dim), row / dim % shape.heads, row % dim);
            (head * 3 + which) * dim + value
        }),
        _ => return None,
    };
    Some((0..linear.out_features).map(|r| row(r) as u32).collect())
}

fn inverse(rows: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_unstable_by_key(|&row| rows[row as usize]);
    order
}

fn select_rows(b: &Tensor, rows: Option<Vec<u32>>) -> Result<Tensor> {
    match rows {
        Some(rows) => Ok(b.index_select(&Tensor::new(rows, b.device())?, 0)?),
        None => Ok(b.clone()),
    }
}

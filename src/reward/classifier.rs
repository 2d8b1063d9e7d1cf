//! Reward models that others trained: sequence classifiers of the DeBERTa-v2 and ModernBERT families, read from a
//! folder of safetensors, config.json and tokenizer.json. Never trains one.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, IndexOp, Tensor, safetensors};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm_no_bias, linear, linear_no_bias};
use candle_transformers::models::{debertav2, modernbert};
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams, TruncationStrategy};

use crate::error::{Error, Result};
use crate::files;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
/// Largest file of weights, in bytes.
const MOST_BYTES: u64 = 8 << 30;

/// A sequence classifier with one output.
pub struct Classifier {
    network: Network,
    tokenizer: Tokenizer,
    device: Device,
}

enum Network {
    Deberta(Box<debertav2::DebertaV2SeqClassificationModel>),
    ModernBert(Box<ModernBert>),
}

/// candle's own head ends in a softmax, which turns a single output into 1.
struct ModernBert {
    trunk: modernbert::ModernBert,
    dense: Linear,
    norm: LayerNorm,
    classifier: Linear,
    mean: bool,
}

impl Classifier {
    /// Reads a folder, onto `device`.
    ///
    /// # Errors
    /// `Model` for a file that is missing or damaged, a tensor that is missing (it is named), or a tokenizer with more
    /// tokens than the model; `Unsupported` for another family or more than one output.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        Self::read(folder, device).map_err(|e| e.context(format!("reward model {}", folder.display())))
    }

    fn read(folder: &Path, device: &Device) -> Result<Self> {
        let config =
            files::read(&folder.join(CONFIG), files::MOST).map_err(|e| Error::model(format!("{CONFIG}: {e}")))?;
        let config: Value =
            serde_json::from_slice(&config).map_err(|e| Error::model(format!("{CONFIG} is no JSON: {e}")))?;
        let outputs = config.get("id2label").and_then(Value::as_object).map_or(2, |labels| labels.len());
        if outputs != 1 {
            return Err(Error::unsupported(format!("it has {outputs} outputs, a reward model has one")));
        }
        let mut tokenizer = Tokenizer::from_file(folder.join(TOKENIZER))
            .map_err(|e| Error::model(format!("{TOKENIZER} can't be read: {e}")))?;
        let size = |key: &str| config.get(key).and_then(Value::as_u64).map(|n| n as usize);
        let vocabulary = size("vocab_size").ok_or_else(|| Error::model(format!("{CONFIG} has no vocab_size")))?;
        let tokens = tokenizer.get_vocab_size(true);
        if tokens > vocabulary {
            return Err(Error::model(format!(
                "{TOKENIZER} has {tokens} tokens, the model's vocabulary {vocabulary}: it is another model's"
            )));
        }
        let most = size("max_position_embeddings").unwrap_or(512);
        let truncation =
            TruncationParams { max_length: most, strategy: TruncationStrategy::LongestFirst, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| Error::model(format!("{TOKENIZER}: {e}")))?;
        tokenizer.with_padding(None);

        let weights = VarBuilder::from_tensors(tensors(folder)?, DType::F32, device);
        let wrong = |e: candle_core::Error| Error::model(e.to_string());
        let network = match config.get("model_type").and_then(Value::as_str) {
            Some("deberta-v2") => {
                let mut config = config.clone();
                if let Some(kinds) = config.get_mut("pos_att_type").filter(|kinds| kinds.is_null()) {
                    *kinds = Value::Array(Vec::new());
                }
                let config =
                    serde_json::from_value(config).map_err(|e| Error::unsupported(format!("{CONFIG}: {e}")))?;
                let trunk = weights.pp("deberta");
                let model = debertav2::DebertaV2SeqClassificationModel::load(trunk, &config, None).map_err(wrong)?;
                Network::Deberta(Box::new(model))
            }
            Some("modernbert") => Network::ModernBert(Box::new(ModernBert::load(&config, weights)?)),
            other => {
                let other = other.unwrap_or("missing");
                return Err(Error::unsupported(format!(
                    "its model_type is {other}, expected deberta-v2 or modernbert"
                )));
            }
        };
        Ok(Self { network, tokenizer, device: device.clone() })
    }

    /// The score of each answer to its question; higher is better. Texts too long for the model are truncated, the
    /// longer one first.
    ///
    /// # Errors
    /// `Arg` if a text can't be tokenized, `Train` if nothing can be computed.
    pub fn score(&self, answers: &[(&str, &str)]) -> Result<Vec<f32>> {
        answers.iter().map(|(question, answer)| self.one(question, answer)).collect()
    }

    fn one(&self, question: &str, answer: &str) -> Result<f32> {
        let encoded = self.tokenizer.encode((question, answer), true).map_err(|e| Error::arg(e.to_string()))?;
        let row = |values: &[u32]| Tensor::new(values, &self.device)?.unsqueeze(0);
        let tokens = row(encoded.get_ids())?; // [1, time]
        let mask = row(encoded.get_attention_mask())?;
        let scores = match &self.network {
            Network::Deberta(model) => model.forward(&tokens, Some(row(encoded.get_type_ids())?), Some(mask))?,
            Network::ModernBert(model) => model.forward(&tokens, &mask)?,
        };
        Ok(scores.flatten_all()?.i(0)?.to_scalar()?)
    }
}

impl ModernBert {
    fn load(config: &Value, weights: VarBuilder) -> Result<Self> {
        for key in ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"] {
            if config.get(key) == Some(&Value::Bool(true)) {
                return Err(Error::unsupported(format!("its {key} is set, which is not computed")));
            }
        }
        for key in ["hidden_activation", "classifier_activation"] {
            if config.get(key).is_some_and(|act| act != "gelu") {
                return Err(Error::unsupported(format!("its {key} is not gelu")));
            }
        }
        let mut config = config.clone();
        let theta = |layers: &str| config.pointer(&format!("/rope_parameters/{layers}/rope_theta")).cloned();
        // Newer files have the same values in other places.
        let newer = [
            ("global_rope_theta", theta("full_attention")),
            ("local_rope_theta", theta("sliding_attention")),
            ("layer_norm_eps", config.get("norm_eps").cloned()),
        ];
        let mean = config.get("classifier_pooling").is_some_and(|pooling| pooling == "mean");
        if let Some(map) = config.as_object_mut() {
            newer.into_iter().for_each(|(key, value)| {
                if let Some(value) = value {
                    map.insert(key.into(), value);
                }
            });
            // Already read here; candle knows only some of its forms.
            map.remove("classifier_pooling");
        }
        let config: modernbert::Config =
            serde_json::from_value(config).map_err(|e| Error::unsupported(format!("{CONFIG}: {e}")))?;
        let width = config.hidden_size;
        let build = || -> candle_core::Result<Self> {
            Ok(Self {
                trunk: modernbert::ModernBert::load(weights.clone(), &config)?,
                dense: linear_no_bias(width, width, weights.pp("head.dense"))?,
                norm: layer_norm_no_bias(width, config.layer_norm_eps, weights.pp("head.norm"))?,
                classifier: linear(width, 1, weights.pp("classifier"))?,
                mean,
            })
        };
        build().map_err(|e| Error::model(e.to_string()))
    }

    /// [1, time] to [1, 1].
    fn forward(&self, tokens: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let hidden = self.trunk.forward(tokens, mask)?; // [1, time, width]
        let pooled = if self.mean { hidden.mean(1)? } else { hidden.i((.., 0, ..))?.contiguous()? };
        let pooled = self.norm.forward(&self.dense.forward(&pooled)?.gelu_erf()?)?;
        Ok(self.classifier.forward(&pooled)?)
    }
}

/// Every tensor of the folder's safetensors files.
fn tensors(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let failed = |e: std::io::Error| Error::model(format!("{}: {e}", folder.display()));
    let mut all = HashMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let bytes = fs::metadata(&path).map_err(failed)?.len();
        if bytes > MOST_BYTES {
            return Err(Error::model(format!("{} has {bytes} bytes, at most {MOST_BYTES} are read", path.display())));
        }
        let damaged = |e: candle_core::Error| Error::model(format!("{} is damaged: {e}", path.display()));
        all.extend(safetensors::load(&path, &Device::Cpu).map_err(damaged)?);
    }
    if all.is_empty() {
        return Err(Error::model("it holds no safetensors file"));
    }
    Ok(all)
}

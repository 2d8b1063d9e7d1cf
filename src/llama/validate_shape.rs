//! Checks the numbers that define a model's shape: llama.cpp asserts on them while it loads or decodes. Never loads.

use crate::error::{Error, Result};
use crate::gguf::{Array, Gguf, MOST_LAYERS, Value};

/// Most experts (LLAMA_MAX_EXPERTS).
const MOST_EXPERTS: u32 = 1024;
/// Number formats that matrices can't have: those for other uses, and those of activations.
const NO_MATRIX: [&str; 7] = ["I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"];

/// Checks the shape of a model file.
///
/// # Errors
/// `Model` naming the key or tensor and what was expected of it.
pub(super) fn shape(file: &Gguf) -> Result<()> {
    let keys = Keys { file, architecture: file.str("general.architecture")? };
    keys.layers()?;
    keys.experts()?;
    keys.attention()?;
    keys.numbers()?;
    tokens(file)?;
    formats(file)
}

struct Keys<'a> {
    file: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn number(&self, key: &str) -> Result<Option<u32>> {
        self.file.opt_u32(&self.name(key))
    }

    /// One number, or one for each layer.
    fn each(&self, key: &str) -> Result<Vec<u32>> {
        Ok(match self.file.get(&self.name(key)) {
            None => Vec::new(),
            Some(Value::Array(Array::U32(all))) => all.clone(),
            // llama.cpp only uses these as non-negative numbers.
            Some(Value::Array(Array::I32(all))) => all.iter().map(|n| u32::try_from(*n).unwrap_or(u32::MAX)).collect(),
            Some(_) => self.number(key)?.into_iter().collect(),
        })
    }

    fn expect(&self, key: &str, holds: bool, found: impl std::fmt::Display, expected: &str) -> Result<()> {
        match holds {
            true => Ok(()),
            false => Err(Error::model(format!("{} is {found}, expected {expected}", self.name(key)))),
        }
    }

    fn layers(&self) -> Result<()> {
        let layers = self.file.u32(&self.name("block_count"))?;
        self.expect("block_count", (1..=MOST_LAYERS).contains(&layers), layers, &format!("1 to {MOST_LAYERS}"))?;
        let ahead = self.number("nextn_predict_layers")?.unwrap_or(0);
        self.expect("nextn_predict_layers", ahead < layers, ahead, "fewer than block_count")
    }

    fn experts(&self) -> Result<()> {
        let experts = self.number("expert_count")?.unwrap_or(0);
        self.expect("expert_count", experts <= MOST_EXPERTS, experts, &format!("at most {MOST_EXPERTS}"))?;
        let used = self.each("expert_used_count")?.into_iter().max().unwrap_or(0);
        let right = if experts == 0 { used == 0 } else { (1..=experts).contains(&used) };
        self.expect("expert_used_count", right, used, "a part of expert_count")?;
        let groups = self.number("expert_group_count")?.unwrap_or(0);
        let right = groups == 0 || groups < experts && experts.is_multiple_of(groups);
        self.expect("expert_group_count", right, groups, "a divisor of expert_count below it")?;
        let in_use = self.number("expert_group_used_count")?.unwrap_or(0);
        let right = groups < 2 || (1..groups).contains(&in_use);
        self.expect("expert_group_used_count", right, in_use, "a part of expert_group_count")
    }

    /// What the graphs of the common architectures assume.
    fn attention(&self) -> Result<()> {
        // Every architecture that can be trained is among them, which a test sees to.
        let whole = matches!(self.architecture, "llama" | "qwen2" | "qwen3" | "qwen3moe" | "granite" | "gemma3");
        if !whole && !matches!(self.architecture, "gptneox" | "phi2" | "phi3") {
            return Ok(());
        }
        let width = self.file.u32(&self.name("embedding_length"))?;
        let heads = self.each("attention.head_count")?;
        let first = heads.first().copied().unwrap_or(0);
        let alike = first > 0 && heads.iter().all(|n| *n == first);
        self.expect("attention.head_count", alike, first, "a number above 0, the same in each layer")?;
        for shared in self.each("attention.head_count_kv")? {
            let right = shared > 0 && first.is_multiple_of(shared);
            self.expect("attention.head_count_kv", right, shared, "a divisor of head_count")?;
        }
        let head = self.number("attention.key_length")?.unwrap_or(width / first);
        let right = head > 0 && head.is_multiple_of(2);
        self.expect("attention.key_length", right, head, "an even number above 0")?;
        // In these architectures queries are as wide as the model.
        let narrow = matches!(self.architecture, "qwen2" | "gptneox" | "phi2" | "phi3");
        let right = !narrow || u64::from(head) * u64::from(first) == u64::from(width);
        self.expect("attention.key_length", right, head, "embedding_length / head_count")?;
        let values = self.number("attention.value_length")?.unwrap_or(width / first);
        self.expect("attention.value_length", values == head, values, "key_length")?;
        let rotated = self.number("rope.dimension_count")?.unwrap_or(head);
        let right = if whole { rotated == head } else { rotated <= head && rotated.is_multiple_of(2) };
        self.expect("rope.dimension_count", right, rotated, "key_length, or an even part of it")
    }

    fn numbers(&self) -> Result<()> {
        for (key, value) in self.file.metadata() {
            if let Some(own) = key.strip_prefix(self.architecture).and_then(|key| key.strip_prefix('.'))
                && let Value::F32(number) = value
            {
                self.expect(own, number.is_finite(), number, "a number")?;
            }
        }
        // A scaling factor of 0 is none; `scale_linear` is its old name.
        for key in [
            "attention.layer_norm_rms_epsilon",
            "attention.layer_norm_epsilon",
            "rope.scaling.factor",
            "rope.scale_linear",
        ] {
            if let Some(number) = self.file.opt_f32(&self.name(key))? {
                self.expect(key, number >= 0.0, number, "a number from 0 up")?;
            }
        }
        if let Some(base) = self.file.opt_f32(&self.name("rope.freq_base"))? {
            self.expect("rope.freq_base", base >= 1.0, base, "a number from 1 up")?;
        }
        if let Some(kind) = self.file.opt_str(&self.name("rope.scaling.type"))? {
            let known = matches!(kind, "none" | "linear" | "yarn" | "longrope");
            self.expect("rope.scaling.type", known, format_args!("{kind:?}"), "none, linear, yarn or longrope")?;
        }
        match self.number("pooling_type")? {
            Some(pooling) => self.expect("pooling_type", pooling <= 4, pooling, "0 to 4"),
            None => Ok(()),
        }
    }
}

/// If texts begin or end with a token, the vocabulary must name that token.
fn tokens(file: &Gguf) -> Result<()> {
    let count = file.opt_strings("tokenizer.ggml.tokens")?.map_or(0, <[String]>::len);
    for name in ["bos", "eos"] {
        let id = file.opt_u32(&format!("tokenizer.ggml.{name}_token_id"))?;
        let wanted = file.opt_bool(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(false);
        if let Some(id) = id.filter(|id| wanted && *id as usize >= count) {
            return Err(Error::model(format!("the {name} token is {id}, the vocabulary has {count}")));
        }
    }
    Ok(())
}

/// Checks that every matrix has a format that can be multiplied, and every vector is in floats.
///
/// # Errors
/// `Model` naming the tensor.
pub(super) fn formats(file: &Gguf) -> Result<()> {
    for tensor in file.tensors() {
        let (format, dimensions) = (tensor.kind().name(), tensor.shape().len());
        let wrong = match dimensions {
            1 => format != "F32",
            _ => NO_MATRIX.contains(&format),
        };
        if wrong {
            let expected = if dimensions == 1 { "F32" } else { "a format of matrices" };
            return Err(Error::model(format!("tensor {} is of type {format}, expected {expected}", tensor.name())));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::gguf::{Array, Writer};
    use crate::llama::Model;
    use crate::tiny::{TinySpec, tiny_model};

    #[test]
    fn a_model_that_llama_cpp_would_assert_on_is_an_error() {
        let cases: Vec<(&str, Value)> = vec![
            ("llama.block_count", 0u32.into()),
            ("llama.block_count", 513u32.into()),
            ("llama.nextn_predict_layers", 2u32.into()),
            ("llama.expert_count", 2u32.into()),
            ("llama.expert_used_count", 1u32.into()),
            ("llama.expert_group_count", 2u32.into()),
            ("llama.attention.head_count", 0u32.into()),
            ("llama.attention.head_count", vec![4u32, 2].into()),
            ("llama.attention.head_count_kv", 3u32.into()),
            ("llama.attention.head_count_kv", vec![2i32, -1].into()),
            ("llama.attention.key_length", 0u32.into()),
            ("llama.attention.value_length", 8u32.into()),
            ("llama.rope.dimension_count", 8u32.into()),
            ("llama.attention.layer_norm_rms_epsilon", (-1f32).into()),
            ("llama.attention.layer_norm_rms_epsilon", f32::NAN.into()),
            ("llama.rope.freq_base", f32::NAN.into()),
            ("llama.rope.freq_base", 0f32.into()),
            ("llama.rope.freq_base", (-1f32).into()),
            ("llama.rope.freq_base", 1e-45f32.into()),
            ("llama.rope.scaling.factor", f32::NAN.into()),
            ("llama.rope.scaling.attn_factor", f32::NAN.into()),
            ("llama.rope.scale_linear", f32::INFINITY.into()),
            ("llama.rope.scale_linear", (-1f32).into()),
            ("llama.rope.scaling.type", "odd".into()),
            ("llama.pooling_type", 9u32.into()),
            ("gptneox.attention.head_count", 3u32.into()),
            ("gptneox.attention.key_length", 128u32.into()),
            ("qwen2.attention.head_count", 3u32.into()),
            ("qwen2.attention.key_length", 128u32.into()),
        ];
        for (key, value) in cases {
            let architecture = key.split('.').next().unwrap();
            let refused = refusal(architecture, key, |_| value.clone());
            assert!(refused.message().contains(&format!(" {architecture}.")), "{key}: {refused}");
        }
    }

    #[test]
    fn text_that_llama_cpp_would_cut_at_a_nul_is_an_error_where_that_matters() {
        let cut = |good: Option<&Value>| {
            let Some(Value::Array(Array::String(tokens))) = good else { panic!("a vocabulary") };
            let mut tokens = tokens.clone();
            tokens[7] = format!("{}\0and more", tokens[8]);
            Value::from(tokens)
        };
        let refused = refusal("llama", "tokenizer.ggml.tokens", cut);
        assert!(refused.message().contains("twice"), "{refused}");
        let refused = refusal("llama", "tokenizer.ggml.model", |_| "none\0gpt2".into());
        assert!(refused.message().contains("tokenizer.ggml.model has a NUL"), "{refused}");
    }

    /// The error for a valid file in which `change` was applied to `key`.
    fn refusal(architecture: &'static str, key: &str, change: impl FnOnce(Option<&Value>) -> Value) -> Error {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.gguf"), dir.path().join("bad.gguf"));
        tiny_model(&good, &TinySpec::new(architecture)).unwrap();
        let from = Gguf::open(&good).unwrap();
        let mut file = Writer::new();
        file.copy_metadata(&from).set(key, change(from.get(key)));
        for tensor in from.tensors() {
            file.copy_tensor(&from, tensor.name()).unwrap();
        }
        file.write(&bad).unwrap();
        let refused = Model::load(&bad, 0).err().unwrap_or_else(|| panic!("a changed {key} was taken"));
        assert_eq!(refused.code(), Code::Model, "{refused}");
        assert!(Model::load(&good, 0).is_ok());
        refused
    }
}

//! GPT-J as llama.cpp's phi2, which it has a graph for: the same block, but for biases that GPT-J lacks and the order
//! in which the elements of a head rotate. Writes one tensor at a time; never converts another architecture.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

use super::checkpoint::Checkpoint;
use super::vocabulary::Vocabulary;
use super::{Floats, object, shown};
use crate::error::{Error, Result};
use crate::gguf::{MOST_LAYERS, Writer};
use crate::overwrite::{Form, check_target};
use crate::policy::{CONVERTED_FROM, gptj_row};

const CONFIG: &str = "config.json";
/// Largest size that is believed.
const MOST: u64 = 1 << 20;
/// Rotary frequencies fall from 1 to almost 1 / this; GPT-J's code has it as a number.
const FREQ_BASE: f32 = 10_000.0;
/// Names of GELU by its tanh, which is what a phi2 graph computes.
const GELUS: [&str; 3] = ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"];

/// Converts the GPT-J model of a folder (config.json, tokenizer.json or vocab.json with merges.txt, model.safetensors
/// or its parts with their index) to a GGUF file of architecture phi2. Holds one tensor in memory at a time.
///
/// The file computes what transformers' `GPTJForCausalLM` computes. Its metadata say where it came from, which adapters
/// for PEFT depend on.
///
/// # Errors
/// `Arg` if `out` is an input, a model in use or no place for a model; `Model` naming the file, the key or tensor, and
/// what was expected; `Unsupported` for another architecture, tokenizer or form of weights; `Io` for the disk.
pub fn gptj(folder: &Path, out: &Path, floats: Floats) -> Result<()> {
    if !folder.is_dir() {
        return Err(Error::arg(format!(
            "{} is no folder, expected one with {CONFIG}, tokenizer.json and model.safetensors",
            folder.display()
        )));
    }
    let out = check_target(out, Form::Gguf, &[folder])?;
    let shape = Shape::read(&folder.join(CONFIG))?;
    let vocabulary = Vocabulary::read(folder, shape.vocabulary)?;
    let checkpoint = Checkpoint::open(folder)?;
    let mut file = Writer::new();
    describe(&mut file, folder, &shape, floats)?;
    vocabulary.describe(&mut file);
    Plan { file: &mut file, checkpoint: &checkpoint, shape: &shape, floats, used: Vec::new() }.tensors()?;
    file.write(&out)
}

/// What config.json says.
struct Shape {
    vocabulary: usize,
    width: usize,
    layers: usize,
    heads: usize,
    feed_forward: usize,
    context: usize,
    /// Leading elements of each head that rotate.
    rotary: usize,
    eps: f32,
    /// The head may share the embedding's weight.
    tied: bool,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Shape {
    fn read(path: &Path) -> Result<Self> {
        let config = object(path)?;
        Self::of(&config).map_err(|e| e.context(path.display()))
    }

    fn of(config: &Map<String, Value>) -> Result<Self> {
        let kind = config.get("model_type");
        if kind.is_none_or(|kind| kind != "gptj") {
            return Err(Error::unsupported(format!("model_type is {}, expected \"gptj\"", shown(kind))));
        }
        let bad = |key: &str, expected: &str| {
            Error::model(format!("{key} is {}, expected {expected}", shown(config.get(key))))
        };
        let size = |key: &str| {
            let found = config.get(key).and_then(Value::as_u64).filter(|n| (1..=MOST).contains(n));
            found.map(|n| n as usize).ok_or_else(|| bad(key, &format!("a number from 1 to {MOST}")))
        };
        let vocabulary = size("vocab_size")?;
        let token = |key: &str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(id) => {
                let id = id.as_u64().filter(|id| *id < vocabulary as u64);
                id.map(|id| Some(id as u32)).ok_or_else(|| bad(key, &format!("a number below {vocabulary}")))
            }
        };
        let width = size("n_embd")?;
        let inner = config.get("n_inner").is_some_and(|inner| !inner.is_null());
        let eps = config.get("layer_norm_epsilon").and_then(Value::as_f64).filter(|eps| (0.0..1.0).contains(eps));
        let shape = Self {
            vocabulary,
            width,
            layers: size("n_layer")?,
            heads: size("n_head")?,
            feed_forward: if inner { size("n_inner")? } else { 4 * width },
            context: size("n_positions")?,
            rotary: size("rotary_dim")?,
            eps: eps.ok_or_else(|| bad("layer_norm_epsilon", "a number from 0 to 1"))? as f32,
            tied: config.get("tie_word_embeddings").is_some_and(|tied| *tied == true),
            bos: token("bos_token_id")?,
            eos: token("eos_token_id")?,
        };
        let gelu = config.get("activation_function").and_then(Value::as_str);
        let head = shape.width / shape.heads;
        for (key, right, expected) in [
            ("n_layer", shape.layers <= MOST_LAYERS as usize, format!("at most {MOST_LAYERS}")),
            (
                "n_head",
                width.is_multiple_of(shape.heads) && head.is_multiple_of(2),
                format!("{width} values in heads of an even size"),
            ),
            ("rotary_dim", shape.rotary.is_multiple_of(2) && shape.rotary <= head, format!("an even part of {head}")),
            ("activation_function", gelu.is_some_and(|gelu| GELUS.contains(&gelu)), GELUS.join(" or ")),
        ] {
            if !right {
                return Err(bad(key, &expected));
            }
        }
        Ok(shape)
    }

    /// For each row of a query's or key's weight, its row in GPT-J.
    fn rows(&self) -> Vec<u32> {
        (0..self.width).map(|row| gptj_row(row, self.width / self.heads, self.rotary) as u32).collect()
    }
}

fn describe(file: &mut Writer<'_>, folder: &Path, shape: &Shape, floats: Floats) -> Result<()> {
    let place = std::fs::canonicalize(folder).map_err(|e| Error::from(e).context(folder.display()))?;
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // To llama.cpp a name with Phi-3 in it promises certain tokens.
    let promises = ["phi3", "phi-3"].iter().any(|part| name.to_lowercase().contains(part));
    let name = if promises { "GPT-J".to_owned() } else { name };
    file.set("general.architecture", "phi2").set("general.type", "model").set("general.name", name);
    file.set("general.file_type", floats.file_type()).set("general.quantization_version", 2u32);
    file.set(CONVERTED_FROM, "gptj");
    for (key, size) in [
        ("context_length", shape.context),
        ("embedding_length", shape.width),
        ("feed_forward_length", shape.feed_forward),
        ("block_count", shape.layers),
        ("attention.head_count", shape.heads),
        ("attention.head_count_kv", shape.heads),
        ("rope.dimension_count", shape.rotary),
    ] {
        file.set(&format!("phi2.{key}"), size as u32);
    }
    file.set("phi2.attention.layer_norm_epsilon", shape.eps).set("phi2.rope.freq_base", FREQ_BASE);
    for (name, id) in [("bos", shape.bos), ("eos", shape.eos)] {
        if let Some(id) = id {
            file.set(&format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    let path = folder.join("tokenizer_config.json");
    if path.exists()
        && let Some(Value::String(template)) = object(&path)?.remove("chat_template")
    {
        file.set("tokenizer.chat_template", template);
    }
    Ok(())
}

/// Adds the tensors to a file, in the order in which llama.cpp reads them.
struct Plan<'p, 'a> {
    file: &'p mut Writer<'a>,
    checkpoint: &'a Checkpoint,
    shape: &'a Shape,
    floats: Floats,
    used: Vec<String>,
}

impl<'a> Plan<'_, 'a> {
    fn tensors(mut self) -> Result<()> {
        let Shape { vocabulary, width, feed_forward, tied, .. } = *self.shape;
        self.matrix("token_embd.weight", "transformer.wte.weight", [vocabulary, width], None)?;
        for layer in 0..self.shape.layers {
            let (to, from) = (format!("blk.{layer}"), format!("transformer.h.{layer}"));
            self.vectors(&format!("{to}.attn_norm"), &format!("{from}.ln_1"), &["weight", "bias"], width)?;
            for (part, name, rows) in [
                ("attn_q", "q_proj", Some(self.shape.rows())),
                ("attn_k", "k_proj", Some(self.shape.rows())),
                ("attn_v", "v_proj", None),
                ("attn_output", "out_proj", None),
            ] {
                let from = format!("{from}.attn.{name}.weight");
                self.matrix(&format!("{to}.{part}.weight"), &from, [width, width], rows)?;
                // GPT-J has none, and phi2's graph adds one.
                self.file.tensor(&format!("{to}.{part}.bias"), &Tensor::new(vec![0f32; width], &Device::Cpu)?)?;
            }
            for (part, name, out, inp) in
                [("ffn_up", "fc_in", feed_forward, width), ("ffn_down", "fc_out", width, feed_forward)]
            {
                let (to, from) = (format!("{to}.{part}"), format!("{from}.mlp.{name}"));
                self.matrix(&format!("{to}.weight"), &format!("{from}.weight"), [out, inp], None)?;
                self.vectors(&to, &from, &["bias"], out)?;
            }
        }
        self.vectors("output_norm", "transformer.ln_f", &["weight", "bias"], width)?;
        let head = "lm_head.weight";
        let head = if tied && !self.checkpoint.has(head) { "transformer.wte.weight" } else { head };
        self.matrix("output.weight", head, [vocabulary, width], None)?;
        self.vectors("output", "lm_head", &["bias"], vocabulary)?;
        self.refuse_unused()
    }

    fn matrix(&mut self, to: &str, from: &str, shape: [usize; 2], rows: Option<Vec<u32>>) -> Result<()> {
        self.add(to, from, &shape, self.floats, rows)
    }

    fn vectors(&mut self, to: &str, from: &str, parts: &[&str], size: usize) -> Result<()> {
        parts.iter().try_for_each(|part| {
            self.add(&format!("{to}.{part}"), &format!("{from}.{part}"), &[size], Floats::F32, None)
        })
    }

    fn add(&mut self, to: &str, from: &str, shape: &[usize], floats: Floats, rows: Option<Vec<u32>>) -> Result<()> {
        self.checkpoint.expect(from, shape)?;
        self.used.push(from.to_owned());
        let (checkpoint, from, size) = (self.checkpoint, from.to_owned(), shape.to_vec());
        self.file.tensor_made(to, shape, floats.format(), move || {
            let values = checkpoint.read(&from)?;
            if let Some(bad) = values.iter().find(|value| value.is_nan() || value.abs() > floats.most()) {
                let why = format!("holds {bad}, which is no number of {floats}; expected up to {:e}", floats.most());
                return Err(checkpoint.about(&from, &why));
            }
            let tensor = Tensor::from_vec(values, size.as_slice(), &Device::Cpu)?;
            match &rows {
                Some(rows) => Ok(tensor.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)?),
                None => Ok(tensor),
            }
        })?;
        Ok(())
    }

    /// An unread tensor belongs to something that a phi2 graph doesn't compute.
    fn refuse_unused(&self) -> Result<()> {
        // The causal mask, which old checkpoints hold.
        let mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
        let known = |name: &str| mask(name) || name == "lm_head.weight" || self.used.iter().any(|used| used == name);
        match self.checkpoint.names().find(|name| !known(name)) {
            Some(name) => Err(self.checkpoint.about(name, "is none of GPT-J's, expected no other")),
            None => Ok(()),
        }
    }
}

//! A small random GPT-J as a folder of the Hugging Face hub, and what it computes, in plain loops of f64 after its
//! definition. Tests nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::tiny::{CONTROL, MERGES, vocabulary};

pub const LAYERS: usize = 2;
pub const WIDTH: usize = 32;
pub const HEADS: usize = 2;
pub const ROTARY: usize = 8;
const HEAD: usize = WIDTH / HEADS;
const INNER: usize = 4 * WIDTH;
const EPS: f64 = 1e-5;

/// Rows of the embedding: more than there are tokens, as in GPT-J.
pub fn rows() -> usize {
    vocabulary().len() + 5
}

/// Its weights by their names in transformers, rows first.
#[derive(Clone)]
pub struct Gptj(pub BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Gptj {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut all = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize], middle: f32, spread: f32| {
            let values = (0..shape.iter().product()).map(|_| middle + rng.random_range(-spread..spread)).collect();
            all.insert(name.to_owned(), (shape.to_vec(), values));
        };
        let wide = (3.0 / WIDTH as f32).sqrt();
        add("transformer.wte.weight", &[rows(), WIDTH], 0.0, 1.0);
        for layer in 0..LAYERS {
            let at = |part: &str| format!("transformer.h.{layer}.{part}");
            add(&at("ln_1.weight"), &[WIDTH], 1.0, 0.3);
            add(&at("ln_1.bias"), &[WIDTH], 0.0, 0.3);
            for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                add(&at(&format!("attn.{part}.weight")), &[WIDTH, WIDTH], 0.0, 2.0 * wide);
            }
            add(&at("mlp.fc_in.weight"), &[INNER, WIDTH], 0.0, wide);
            add(&at("mlp.fc_in.bias"), &[INNER], 0.0, 0.3);
            add(&at("mlp.fc_out.weight"), &[WIDTH, INNER], 0.0, wide);
            add(&at("mlp.fc_out.bias"), &[WIDTH], 0.0, 0.3);
        }
        add("transformer.ln_f.weight", &[WIDTH], 1.0, 0.3);
        add("transformer.ln_f.bias", &[WIDTH], 0.0, 0.3);
        add("lm_head.weight", &[rows(), WIDTH], 0.0, wide);
        add("lm_head.bias", &[rows()], 0.0, 1.0);
        Self(all)
    }

    /// Writes the folder: configuration, tokenizer, weights in one file.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        write_json(&folder.join("config.json"), &config());
        write_json(&folder.join("tokenizer.json"), &tokenizer());
        self.save(&folder.join("model.safetensors"), |_| true);
    }

    /// Writes some of the tensors to a file.
    pub fn save(&self, path: &Path, of: impl Fn(&str) -> bool) {
        let tensor = |(shape, values): &(Vec<usize>, Vec<f32>)| {
            Tensor::from_vec(values.clone(), shape.as_slice(), &Device::Cpu).unwrap()
        };
        let named = self.0.iter().filter(|(name, _)| of(name)).map(|(name, one)| (name.clone(), tensor(one)));
        candle_core::safetensors::save(&named.collect(), path).unwrap();
    }

    fn of(&self, name: &str) -> &[f32] {
        &self.0[name].1
    }

    /// Log-probability of every token after the first, in nats.
    pub fn logprobs(&self, tokens: &[u32]) -> Vec<f64> {
        let embedding = self.of("transformer.wte.weight");
        let row = |token: u32| &embedding[token as usize * WIDTH..][..WIDTH];
        let mut x: Vec<Vec<f64>> = tokens.iter().map(|t| row(*t).iter().map(|v| f64::from(*v)).collect()).collect();
        for layer in 0..LAYERS {
            let at = |part: &str| format!("transformer.h.{layer}.{part}");
            let normed: Vec<Vec<f64>> = x.iter().map(|x| self.norm(&at("ln_1"), x)).collect();
            let project = |part: &str| -> Vec<Vec<f64>> {
                normed.iter().map(|n| self.linear(&at(&format!("attn.{part}")), n)).collect()
            };
            let (mut q, mut k, v) = (project("q_proj"), project("k_proj"), project("v_proj"));
            for all in [&mut q, &mut k] {
                all.iter_mut().enumerate().for_each(|(position, one)| rotate(one, position));
            }
            for (t, x) in x.iter_mut().enumerate() {
                let mixed = attend(&q[t], &k[..=t], &v[..=t]);
                let attended = self.linear(&at("attn.out_proj"), &mixed);
                let inner: Vec<f64> = self.linear(&at("mlp.fc_in"), &normed[t]).into_iter().map(gelu).collect();
                let fed = self.linear(&at("mlp.fc_out"), &inner);
                x.iter_mut().zip(attended.iter().zip(&fed)).for_each(|(x, (a, f))| *x += a + f);
            }
        }
        let next = x.iter().zip(&tokens[1..]).map(|(x, token)| {
            let logits = self.linear("lm_head", &self.norm("transformer.ln_f", x));
            let most = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
            logits[*token as usize] - most - sum.ln()
        });
        next.collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (weight, bias) = (self.of(&format!("{name}.weight")), self.of(&format!("{name}.bias")));
        let normed = x.iter().map(|v| (v - mean) / (variance + EPS).sqrt());
        normed.zip(weight.iter().zip(bias)).map(|(n, (w, b))| n * f64::from(*w) + f64::from(*b)).collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.of(&format!("{name}.weight"));
        let mut y: Vec<f64> =
            weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect();
        if let Some((_, bias)) = self.0.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += f64::from(*b));
        }
        y
    }
}

/// Elements 2i and 2i + 1 of the first of each head.
fn rotate(all: &mut [f64], position: usize) {
    for head in all.chunks_mut(HEAD) {
        for i in 0..ROTARY / 2 {
            let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / ROTARY as f64);
            let (a, b) = (head[2 * i], head[2 * i + 1]);
            head[2 * i] = a * angle.cos() - b * angle.sin();
            head[2 * i + 1] = b * angle.cos() + a * angle.sin();
        }
    }
}

fn attend(q: &[f64], k: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<f64> {
    let mut mixed = vec![0.0; WIDTH];
    for head in 0..HEADS {
        let part = head * HEAD..(head + 1) * HEAD;
        let dot = |k: &Vec<f64>| q[part.clone()].iter().zip(&k[part.clone()]).map(|(q, k)| q * k).sum::<f64>();
        let weights: Vec<f64> = k.iter().map(|k| (dot(k) / (HEAD as f64).sqrt()).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (weight, v) in weights.iter().zip(v) {
            mixed[part.clone()].iter_mut().zip(&v[part.clone()]).for_each(|(m, v)| *m += weight / sum * v);
        }
    }
    mixed
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

pub fn config() -> Value {
    let end = vocabulary().len() - 1;
    json!({
        "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": rows(), "n_embd": WIDTH,
        "n_layer": LAYERS, "n_head": HEADS, "n_inner": null, "n_positions": 256, "rotary_dim": ROTARY,
        "activation_function": "gelu_new", "layer_norm_epsilon": EPS, "tie_word_embeddings": false,
        "bos_token_id": end, "eos_token_id": end,
    })
}

pub fn tokenizer() -> Value {
    let tokens = vocabulary();
    let plain = tokens.len() - CONTROL.len();
    let ids: serde_json::Map<String, Value> =
        tokens[..plain].iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = (plain..tokens.len())
        .map(|id| json!({"id": id, "content": tokens[id], "special": true}))
        .chain([json!({"id": tokens.len(), "content": "added text", "special": false})])
        .collect();
    json!({
        "model": {"type": "BPE", "vocab": ids, "merges": merges(), "continuing_subword_prefix": ""},
        "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
    })
}

pub fn merges() -> Vec<&'static str> {
    MERGES.split(',').collect()
}

pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

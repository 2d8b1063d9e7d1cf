//! What this machine is, and what a model will need of it, before anything is loaded. Starts nothing and keeps nothing.

use std::path::Path;

use serde::Serialize;

use crate::config::Config;
use crate::error::Result;
use crate::gguf::Gguf;
use crate::policy::{self, Shape};
use crate::processor::{KernelCheck, Processor};
use crate::{llama, system};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The processor.
    pub processor: Processor,
    /// Threads that run at once.
    pub cores: u32,
    /// Whose kernels serve.
    pub serving_kernels: &'static str,
    /// What frozen products of the trainer are computed in.
    pub training_kernels: &'static str,
    /// The trainer's device, or why the one that is set can't be had.
    pub device: std::result::Result<String, String>,
    /// Bytes of memory that could be had, where the system says.
    pub free_memory: Option<u64>,
    /// Bytes that may be written where the data folder is or will be.
    pub free_disk: Option<u64>,
    /// What the model needs, if one was named; or why it can't be read.
    pub model: Option<std::result::Result<Forecast, String>>,
}

/// Bytes of memory that a model will need, from the sizes in its file and the settings. Within a quarter of what was
/// measured (docs/results/processors.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// Serving: weights, the cache of keys and values, buffers and vocabulary.
    pub serving: Parts,
    /// Training beside it; or why the model can't be trained.
    pub training: std::result::Result<Parts, String>,
}

/// What memory goes into, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Weights, in the form that is computed with.
    pub weights: u64,
    /// Serving: keys and values of all slots. Training: adapters of policy and critic, gradients and moments.
    pub state: u64,
    /// Serving: buffers of a batch, vocabulary, the program. Training: activations of a micro-batch.
    pub buffers: u64,
}

impl Parts {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.state).saturating_add(self.buffers)
    }
}

/// Looks at the machine, and at the model that the settings name, if they do.
pub fn examine(config: &Config) -> Report {
    let device = policy::device(&config.train.device).map(|device| match device.is_cpu() {
        true => "cpu".to_owned(),
        false => format!("{:?}", device.location()),
    });
    let named = !config.model.as_os_str().is_empty();
    Report {
        processor: Processor::detect(),
        cores: system::cores_or(0),
        serving_kernels: llama::kernels(),
        training_kernels: policy::ops::precision(),
        device: device.map_err(|e| e.to_string()),
        free_memory: system::free_memory(),
        free_disk: existing(&config.data).and_then(system::disk_room).map(|room| room.free),
        model: named.then(|| forecast(config).map_err(|e| e.to_string())),
    }
}

/// The nearest folder above that exists.
fn existing(folder: &Path) -> Option<&Path> {
    let here = Path::new(".");
    folder.ancestors().map(|f| if f.as_os_str().is_empty() { here } else { f }).find(|f| f.exists())
}

/// Every kernel that serving and training use here. One that the processor can't run ends its process.
pub fn kernels() -> impl Iterator<Item = &'static KernelCheck> {
    llama::KERNELS.iter().chain(policy::ops::KERNELS)
}

/// Memory that serving and training the settings' model will take.
///
/// # Errors
/// `Model` for a file that can't be read, `Io`.
pub fn forecast(config: &Config) -> Result<Forecast> {
    let file = Gguf::open(&config.model)?;
    Ok(Forecast { serving: serving(&file, config)?, training: training(&file, config).map_err(|e| e.to_string()) })
}

/// What a token of the vocabulary takes, in tokenizer and tables: measured on vocabularies of 49,152 and 151,936.
const BYTES_A_TOKEN: u64 = 1400;
/// The program itself.
const PROGRAM: u64 = 24 << 20;

fn serving(file: &Gguf, config: &Config) -> Result<Parts> {
    let architecture = file.str("general.architecture")?;
    let size = |key: &str| -> Result<u64> { Ok(file.opt_u32(&format!("{architecture}.{key}"))?.unwrap_or(0).into()) };
    let (width, layers, heads) =
        (size("embedding_length")?, size("block_count")?, size("attention.head_count")?.max(1));
    let kv_heads = Some(size("attention.head_count_kv")?).filter(|n| *n > 0).unwrap_or(heads);
    let head = Some(size("attention.key_length")?).filter(|n| *n > 0).unwrap_or(width / heads);
    let weights = file.tensors().iter().map(|t| t.bytes()).sum();
    let vocabulary = file.tensor("token_embd.weight").and_then(|t| t.shape().first().copied()).unwrap_or(0) as u64;
    let (slots, batch) = (u64::from(config.serve.slots), u64::from(config.serve.batch));
    Ok(Parts {
        // What kernels of our own pack anew is as large, and its mapped pages are given back.
        weights,
        state: 2 * 2 * layers * kv_heads * head * u64::from(config.serve.context),
        buffers: 4 * (batch * 16 * width + slots * vocabulary) + vocabulary * BYTES_A_TOKEN + PROGRAM,
    })
}

fn training(file: &Gguf, config: &Config) -> Result<Parts> {
    let shape = Shape::read(file)?;
    // bf16 weights are kept packed in both directions of the product, f32 ones once: four bytes a value either way.
    let matrices = file.tensors().iter().filter(|t| t.shape().len() == 2);
    let values: u64 = matrices.map(|t| t.shape().iter().map(|n| *n as u64).product::<u64>()).sum();
    let rank = u64::from(config.train.rank);
    let (width, ff) = (shape.width as u64, shape.feed_forward as u64);
    let (q, kv) = ((shape.heads * shape.head_dim) as u64, (shape.kv_heads * shape.head_dim) as u64);
    let sides = 2 * (width + q) + 2 * (width + kv) + 3 * (width + ff);
    let layers = shape.layers as u64;
    Ok(Parts {
        weights: 4 * values,
        // Value, gradient and two moments, f32, of policy and critic.
        state: 2 * 4 * 4 * layers * rank * sides,
        buffers: 4 * layers * u64::from(config.train.micro_batch_tokens) * (2 * width + 2 * q + 2 * kv + 2 * ff),
    })
}

//! Foretells the memory that a model will take, from its file's table and the settings, and plans how it is held so
//! that it fits. Loads a model only by that plan.

use std::path::Path;

use candle_core::{DType, Device};
use serde::Serialize;

use crate::config::{Config, Dtype, ServeConfig, TrainConfig, Weights};
use crate::error::{Code, Error, Result};
use crate::gguf::Gguf;
use crate::policy::{Decoder, Form, Shape, ops};
use crate::system;

/// Bytes of memory that a model will need, from the sizes in its file and the settings. Within a quarter of what was
/// measured (docs/results/processors.md, docs/results/sizes.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// Serving: weights, the cache of keys and values, buffers and vocabulary.
    pub serving: Parts,
    /// Training beside it; or why the model can't be trained.
    pub training: std::result::Result<Training, String>,
    /// Whether too little memory is why.
    pub too_large: bool,
}

/// What memory goes into, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// Weights, in the form that is computed with.
    pub weights: u64,
    /// Serving: keys and values of all slots. Training: adapters of policy and critic, gradients and moments.
    pub state: u64,
    /// Serving: buffers of a batch, vocabulary, the program. Training: activations.
    pub buffers: u64,
}

impl Parts {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.state).saturating_add(self.buffers)
    }
}

/// How training will be held in memory, and what it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Training {
    /// What it takes.
    #[serde(flatten)]
    pub parts: Parts,
    /// A second context of the server, which a swap of versions needs for a while, in bytes.
    pub second_context: u64,
    /// How frozen weights are held: packed or quantized.
    pub held: Weights,
    /// What activations may take before blocks are recomputed, in bytes.
    pub activations: u64,
}

impl Training {
    /// All of it, the second context included.
    pub fn total(&self) -> u64 {
        self.parts.total().saturating_add(self.second_context)
    }

    /// The form of the decoder.
    pub fn form(&self, dtype: Dtype) -> Form {
        Form { dtype, weights: self.held, activations: Some(self.activations) }
    }
}

/// What a token of the vocabulary takes, in tokenizer and tables: measured on vocabularies of 49,152 and 151,936.
const BYTES_A_TOKEN: u64 = 1400;
/// The program itself.
const PROGRAM: u64 = 24 << 20;
/// What training takes beside what is counted: threads, temporaries.
const BESIDE: u64 = 64 << 20;
/// Copies of the adapters' values, of policy and critic: the values, their gradients and two moments, and on their way
/// those that replace them.
const COPIES: u64 = 5;

/// What training has to fit into.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// Bytes; `None` where nothing tells, and then everything fits.
    free: Option<u64>,
    /// Bytes of a packed weight.
    packed: u64,
    /// Bytes of a value that blocks keep for the backward pass.
    element: u64,
    /// Whether a second context of the server lies there too.
    serves: bool,
}

impl Room {
    fn of(device: &Device, config: &TrainConfig) -> Self {
        let dtype = if config.dtype == Dtype::F32 { DType::F32 } else { DType::BF16 };
        if device.is_cpu() {
            return Self::cpu(system::free_memory(), dtype);
        }
        let element = dtype.size_in_bytes() as u64;
        Self { free: crate::policy::free_memory(device), packed: element, element, serves: false }
    }

    /// Packed weights are in bf16 for both directions, or in f32 once.
    fn cpu(free: Option<u64>, dtype: DType) -> Self {
        Self { free, packed: 4, element: ops::element_bytes(dtype), serves: true }
    }
}

/// Memory that serving and training the settings' model will take, on a machine with that much of it free. Training on
/// a GPU, if there is that `device`, has to fit there alone.
///
/// # Errors
/// `Model` for a file that can't be read, `Io`.
pub fn forecast(config: &Config, free: Option<u64>, device: Option<&Device>) -> Result<Forecast> {
    let file = Gguf::open(&config.model)?;
    let serving = serving(&file, &config.serve)?;
    let mut room = Room::of(device.unwrap_or(&Device::Cpu), &config.train);
    if room.serves {
        room.free = free.map(|free| free.saturating_sub(serving.total()));
    }
    let training = plan(&file, &config.train, Some(&config.serve), room);
    let too_large = matches!(&training, Err(e) if e.code() == Code::NoMem);
    Ok(Forecast { serving, training: training.map_err(|e| e.to_string()), too_large })
}

/// Loads a decoder as [`plan`] says for the memory that is free now. `beside` is what the same process serves.
///
/// # Errors
/// `NoMem` if it can't fit, with the numbers; else as [`Decoder::load_as`].
pub fn load(model: &Path, config: &TrainConfig, beside: Option<&ServeConfig>, device: &Device) -> Result<Decoder> {
    let named = |e: Error| e.context(format!("loading {} to train", model.display()));
    let planned = plan(&Gguf::open(model)?, config, beside, Room::of(device, config)).map_err(named)?;
    let mb = |bytes: u64| bytes >> 20;
    tracing::info!(
        weights = ?planned.held,
        weights_mb = mb(planned.parts.weights),
        adapters_mb = mb(planned.parts.state),
        activations_mb = mb(planned.parts.buffers),
        "memory of the trainer"
    );
    Decoder::load_as(model, device, planned.form(config.dtype))
}

fn serving(file: &Gguf, config: &ServeConfig) -> Result<Parts> {
    let size = |key: &str| size(file, key);
    let width = size("embedding_length")?;
    let weights = file.tensors().iter().map(|t| t.bytes()).sum();
    let vocabulary = file.tensor("token_embd.weight").and_then(|t| t.shape().first().copied()).unwrap_or(0) as u64;
    let (slots, batch) = (u64::from(config.slots), u64::from(config.batch));
    Ok(Parts {
        // What kernels of our own pack anew is as large, and its mapped pages are given back.
        weights,
        state: keys_and_values(file, config)?,
        buffers: 4 * (batch * 16 * width + slots * vocabulary) + vocabulary * BYTES_A_TOKEN + PROGRAM,
    })
}

fn size(file: &Gguf, key: &str) -> Result<u64> {
    let architecture = file.str("general.architecture")?;
    Ok(file.opt_u32(&format!("{architecture}.{key}"))?.unwrap_or(0).into())
}

/// How many layers the server keeps on a card with that much memory free: -1, all of them, if they fit beside what
/// training there needs at least; else as many as do.
///
/// # Errors
/// `Model` for a file that can't be read, `Io`.
pub fn served_layers(config: &Config, free: u64, trains_there: bool) -> Result<i32> {
    let file = Gguf::open(&config.model)?;
    let layers = size(&file, "block_count")?.max(1);
    let training = match trains_there {
        true => {
            let least = TrainConfig { weights: Weights::Quantized, activation_mb: 1, ..config.train.clone() };
            let element = 2;
            let room = Room { free: None, packed: element, element, serves: false };
            // A model that can't be trained leaves the card to the server.
            plan(&file, &least, None, room).map_or(0, |planned| planned.total())
        }
        false => 0,
    };
    // Versions are swapped between two contexts, and a third may have requests to end.
    let all = serving(&file, &config.serve)?;
    let whole = all.weights + 3 * all.state + all.buffers;
    let left = free.saturating_sub(training).saturating_sub(BESIDE);
    if whole <= left {
        return Ok(-1);
    }
    let each = (all.weights + 3 * all.state) / layers;
    Ok(i32::try_from(left.saturating_sub(all.buffers) / each.max(1)).unwrap_or(i32::MAX))
}

/// The cache of one context, f16.
fn keys_and_values(file: &Gguf, config: &ServeConfig) -> Result<u64> {
    let size = |key: &str| size(file, key);
    let (width, layers, heads) =
        (size("embedding_length")?, size("block_count")?, size("attention.head_count")?.max(1));
    let kv_heads = Some(size("attention.head_count_kv")?).filter(|n| *n > 0).unwrap_or(heads);
    let head = Some(size("attention.key_length")?).filter(|n| *n > 0).unwrap_or(width / heads);
    Ok(2 * 2 * layers * kv_heads * head * u64::from(config.context))
}

/// How training fits into the memory that is free: packed weights where they take at most half of it, else those of the
/// file; activations kept as far as half of what is left holds them. Where the system does not tell what is free,
/// everything fits.
///
/// # Errors
/// `NoMem` if it can't fit, with the numbers; `Unsupported` or `Model` for a model that can't be trained.
fn plan(file: &Gguf, config: &TrainConfig, beside: Option<&ServeConfig>, room: Room) -> Result<Training> {
    let (shape, free) = (Shape::read(file)?, room.free);
    let second_context = beside.filter(|_| room.serves).map_or(Ok(0), |serve| keys_and_values(file, serve))?;
    let (rank, layers) = (u64::from(config.rank), shape.layers as u64);
    let state = COPIES * 2 * 4 * layers * rank * sides(file);
    // A sample that is longer than a micro-batch is one of its own.
    let tokens = u64::from(config.micro_batch_tokens.max(config.max_tokens));
    let sizes = shape.activation_bytes(room.element, rank);
    let activations = |recomputed| crate::policy::activations(tokens, sizes, recomputed, layers);
    let (all, least) = (activations(0), activations(layers));
    let held = |weights| match weights {
        Weights::Packed => {
            room.packed * matrices(file).map(|t| t.shape().iter().map(|n| *n as u64).product::<u64>()).sum::<u64>()
        }
        _ => matrices(file).map(|t| t.bytes()).sum::<u64>(),
    };
    let plan = |weights| {
        let fixed = held(weights) + state + BESIDE + second_context;
        let left = free.map_or(u64::MAX, |free| free.saturating_sub(fixed) / 2);
        let wanted = if config.activation_mb > 0 { u64::from(config.activation_mb) << 20 } else { left };
        let budget = wanted.clamp(least, all);
        // As much again is on its way: gradients of a block, and what was freed and is not given back yet.
        let buffers = budget + budget / 2 + BESIDE;
        let parts = Parts { weights: held(weights), state, buffers };
        Training { parts, second_context, held: weights, activations: budget }
    };
    let planned = match config.weights {
        Weights::Auto => {
            let packed = plan(Weights::Packed);
            let fits = free.is_none_or(|free| held(Weights::Packed) + state + all <= free / 2);
            if fits { packed } else { plan(Weights::Quantized) }
        }
        weights => plan(weights),
    };
    match free {
        Some(free) if planned.total() > free => Err(too_large(&planned, free)),
        _ => Ok(planned),
    }
}

/// Rows and columns of all linear layers of the first block together.
fn sides(file: &Gguf) -> u64 {
    let of_block = matrices(file).filter(|t| t.name().starts_with("blk.0.") && t.shape().len() == 2);
    of_block.map(|t| t.shape().iter().sum::<usize>() as u64).sum()
}

fn matrices(file: &Gguf) -> impl Iterator<Item = &crate::gguf::TensorInfo> {
    file.tensors().iter().filter(|t| t.shape().len() >= 2)
}

fn too_large(planned: &Training, free: u64) -> Error {
    let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let Parts { weights, state, buffers } = planned.parts;
    Error::nomem(format!(
        "training needs about {}, of which {} are free: weights {}, adapters and moments {}, activations {}, a second \
         context {}",
        gib(planned.total()),
        gib(free),
        gib(weights),
        gib(state),
        gib(buffers),
        gib(planned.second_context)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny::{TinySpec, tiny_model};

    #[test]
    fn the_server_takes_what_training_leaves_of_a_card() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let format = candle_core::quantized::GgmlDType::Q8_0;
        tiny_model(&path, &TinySpec { layers: 30, width: 256, ff: 2048, format, ..TinySpec::new("llama") }).unwrap();
        let mut config = Config { model: path, ..Config::default() };
        config.serve.context = 4096;
        let layers = |mib: u64, trains| served_layers(&config, mib << 20, trains).unwrap();
        assert_eq!((layers(2000, true), layers(0, false)), (-1, 0));
        let (alone, beside) = (layers(170, false), layers(170, true));
        assert!(0 < alone && alone < 30 && beside < alone, "{alone} alone, {beside} beside training");
    }

    #[test]
    fn weights_are_packed_where_they_fit_and_else_those_of_the_file_and_what_cannot_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let format = candle_core::quantized::GgmlDType::Q8_0;
        tiny_model(&path, &TinySpec { layers: 30, width: 256, ff: 2048, format, ..TinySpec::new("llama") }).unwrap();
        let file = Gguf::open(&path).unwrap();
        let config = TrainConfig { rank: 1, max_tokens: 64, micro_batch_tokens: 64, ..TrainConfig::default() };
        let room = |free| Room::cpu(free, DType::BF16);
        let held = |free| plan(&file, &config, None, room(free)).map(|planned| planned.held);
        let (packed, stored) = (plan(&file, &config, None, room(None)).unwrap(), held(Some(1 << 30)).unwrap());
        assert_eq!((packed.held, stored), (Weights::Packed, Weights::Packed));
        let needed = packed.total();
        assert_eq!(held(Some(needed)).unwrap(), Weights::Quantized, "{needed}");
        let refused = held(Some(64 << 20)).unwrap_err();
        assert_eq!(refused.code(), Code::NoMem);
        assert!(refused.message().contains("of which 0.06 GiB are free: weights 0."), "{refused}");

        // Less is kept where less is free, and as much as was asked for where it was.
        let config = TrainConfig { max_tokens: 4096, ..config };
        let kept = |free, activation_mb| {
            let config = TrainConfig { activation_mb, ..config.clone() };
            plan(&file, &config, None, room(Some(free))).unwrap().activations
        };
        let (much, little) = (kept(64 << 30, 0), kept(800 << 20, 0));
        assert!(little < much, "{little} of {much}");
        assert_eq!(kept(64 << 30, 300), 300 << 20);
    }
}

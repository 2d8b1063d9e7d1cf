//! A trainer on disk: adapters as llama.cpp reads them, moments and head as safetensors, the rest as JSON. Never syncs
//! or renames files; the caller does.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor, Var, safetensors};
use serde::{Deserialize, Serialize};

use super::Trainer;
use super::network::Network;
use crate::align::{Baseline, CriticTrust, KlController, RewardScale};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::optim::Moments;
use crate::policy::{Decoder, Lora, ValueHead};

/// The policy's adapter in a checkpoint's folder, which the server loads.
pub const ADAPTER_FILE: &str = "adapter.gguf";
const CRITIC_FILE: &str = "critic.gguf";
const TENSORS_FILE: &str = "trainer.safetensors";
/// What only training goes on from: without them it begins with a fresh critic and fresh moments.
pub const OPTIMIZER_FILES: [&str; 2] = [CRITIC_FILE, TENSORS_FILE];
const STATE_FILE: &str = "trainer.json";
const FORMAT: u32 = 1;

/// The part that is not tensors.
#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    batches: u64,
    policy_updates: u64,
    critic_updates: u64,
    reward_scale: RewardScale,
    /// None in checkpoints of older builds.
    #[serde(default)]
    baseline: Option<Baseline>,
    #[serde(default)]
    critic_trust: CriticTrust,
    kl_controller: KlController,
    /// A power of two, which JSON represents exactly.
    #[serde(default = "full_pace")]
    pace: f64,
    /// The checkpoint of a Tinker server that holds the policy and its moments, if it was trained there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tinker: Option<String>,
    /// The settings it was trained with, for readers; loading uses the present ones.
    config: serde_json::Value,
}

impl Trainer {
    /// Writes the whole state into the folder `dir`, which must exist.
    ///
    /// # Errors
    /// `Io` if a file can't be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.policy.lora.write_gguf(&dir.join(ADAPTER_FILE), &[])?;
        self.critic.lora.write_gguf(&dir.join(CRITIC_FILE), &[])?;

        let mut tensors = HashMap::new();
        for (network, role) in [(&self.policy, "policy"), (&self.critic, "critic")] {
            for (name, moments) in network.names().iter().zip(&network.optimizer.moments) {
                tensors.insert(moment_key(role, name, "first"), moments.first.clone());
                tensors.insert(moment_key(role, name, "second"), moments.second.clone());
            }
        }
        for (name, var) in self.critic.head()?.named() {
            tensors.insert(name, var.as_detached_tensor());
        }
        let path = dir.join(TENSORS_FILE);
        safetensors::save(&tensors, &path).map_err(|e| Error::io(format!("writing {}: {e}", path.display())))?;

        let state = State {
            format: FORMAT,
            batches: self.batches,
            policy_updates: self.policy.optimizer.updates,
            critic_updates: self.critic.optimizer.updates,
            reward_scale: self.reward_scale,
            baseline: Some(self.baseline),
            critic_trust: self.critic_trust,
            kl_controller: self.kl_controller,
            pace: self.pace,
            tinker: self.remote.as_ref().and_then(|remote| remote.at.clone()),
            config: serde_json::to_value(&self.config).map_err(|e| Error::io(e.to_string()))?,
        };
        let json = serde_json::to_vec_pretty(&state).map_err(|e| Error::io(e.to_string()))?;
        let path = dir.join(STATE_FILE);
        fs::write(&path, json).map_err(|e| Error::from(e).context(format!("writing {}", path.display())))
    }

    /// Resumes from a folder written by [`Trainer::save`], bit for bit if the settings are the same. Where the files
    /// [`OPTIMIZER_FILES`] were removed, the policy goes on with a fresh critic and fresh moments.
    ///
    /// # Errors
    /// `Io` for a file that is missing or damaged, `Model` for an adapter of another base, `Arg` if rank or alpha
    /// differ from the settings.
    pub fn load(decoder: Arc<Decoder>, config: &TrainConfig, dir: &Path) -> Result<Self> {
        let state = read_state(&dir.join(STATE_FILE))?;
        let mut trainer = Self::new(decoder.clone(), config)?;
        if let Some(remote) = &mut trainer.remote {
            remote.at = Some(state.tinker.clone().ok_or_else(only_here)?);
        }
        if OPTIMIZER_FILES.iter().all(|name| !dir.join(name).exists()) {
            let path = dir.join(ADAPTER_FILE);
            let lora = Lora::read_gguf(&path, &decoder)?;
            fits(&lora, config).map_err(|e| e.context(path.display()))?;
            trainer.policy = Network::new(lora, None)?;
            // One critic's accuracy says nothing about another's.
            trainer.resume(&State { critic_trust: CriticTrust::default(), ..state });
            return Ok(trainer);
        }
        let path = dir.join(TENSORS_FILE);
        // What it holds, and its header.
        let bytes = files::read(&path, trainer.checkpoint_bytes() + files::MOST)
            .map_err(|e| Error::from(e).context(format!("reading {}", path.display())))?;
        let mut tensors = safetensors::load_buffer(&bytes, decoder.device())
            .map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))?;
        drop(bytes);

        let lora = |file: &str| -> Result<Lora> {
            let path = dir.join(file);
            let lora = Lora::read_gguf(&path, &decoder)?;
            fits(&lora, config).map_err(|e| e.context(path.display()))?;
            Ok(lora)
        };
        trainer.policy = Network::new(lora(ADAPTER_FILE)?, None)?;
        trainer.critic = Network::new(lora(CRITIC_FILE)?, Some(ValueHead::new(&decoder)?))?;
        for (name, var) in trainer.critic.head()?.named() {
            var.set(&take(&mut tensors, &name, &var).map_err(|e| e.context(path.display()))?)?;
        }
        for (network, role, updates) in [
            (&mut trainer.policy, "policy", state.policy_updates),
            (&mut trainer.critic, "critic", state.critic_updates),
        ] {
            fill(network, role, &mut tensors).map_err(|e| e.context(path.display()))?;
            network.optimizer.updates = updates;
        }
        trainer.resume(&state);
        Ok(trainer)
    }

    /// Takes over what is neither a tensor nor of one optimizer.
    fn resume(&mut self, state: &State) {
        self.reward_scale = state.reward_scale;
        let RewardScale { count, mean, .. } = state.reward_scale;
        self.baseline = state.baseline.unwrap_or(Baseline { count, mean });
        self.critic_trust = state.critic_trust;
        self.kl_controller = state.kl_controller;
        self.pace = state.pace;
        self.batches = state.batches;
    }
}

/// The error for a version that a Tinker server can't go on from.
fn only_here() -> Error {
    Error::arg(
        "it was not trained on a Tinker server, which takes no adapter from elsewhere, expected the initial model, a \
         version that was trained there, or train.engine candle",
    )
}

fn full_pace() -> f64 {
    1.0
}

impl Trainer {
    /// Bytes that [`Trainer::save`] writes, within some kilobytes: two adapters and two moments of each, in 32 bits.
    pub fn checkpoint_bytes(&self) -> u64 {
        let count = |network: &Network| network.vars().iter().map(|var| var.elem_count() as u64).sum::<u64>();
        12 * (count(&self.policy) + count(&self.critic))
    }
}

fn read_state(path: &Path) -> Result<State> {
    let json =
        files::read(path, files::MOST).map_err(|e| Error::from(e).context(format!("reading {}", path.display())))?;
    let state: State =
        serde_json::from_slice(&json).map_err(|e| Error::io(format!("{} is damaged: {e}", path.display())))?;
    if state.format != FORMAT {
        return Err(Error::io(format!("{} has format {}, this version reads {FORMAT}", path.display(), state.format)));
    }
    Ok(state)
}

pub(super) fn fits(lora: &Lora, config: &TrainConfig) -> Result<()> {
    if lora.rank() != config.rank as usize {
        return Err(Error::arg(format!("the adapter has rank {}, the settings ask for {}", lora.rank(), config.rank)));
    }
    if lora.alpha() != config.alpha {
        return Err(Error::arg(format!(
            "the adapter has alpha {}, the settings ask for {}",
            lora.alpha(),
            config.alpha
        )));
    }
    Ok(())
}

/// Puts the moments in `tensors` into the network's optimizer.
fn fill(network: &mut Network, role: &str, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
    let names = network.names();
    let mut moment = |name: &str, which, like: &Var| take(tensors, &moment_key(role, name, which), like);
    let both = |(name, var): (&String, &Var)| {
        Ok(Moments { first: moment(name, "first", var)?, second: moment(name, "second", var)? })
    };
    network.optimizer.moments = names.iter().zip(network.vars()).map(both).collect::<Result<_>>()?;
    Ok(())
}

fn moment_key(role: &str, name: &str, which: &str) -> String {
    format!("{role}.{name}.{which}_moment")
}

/// The tensor `key`, on the device of `like`.
fn take(tensors: &mut HashMap<String, Tensor>, key: &str, like: &Tensor) -> Result<Tensor> {
    let tensor = tensors.remove(key).ok_or_else(|| Error::io(format!("tensor {key} is missing")))?;
    if tensor.dims() != like.dims() || tensor.dtype() != DType::F32 {
        let got = (tensor.dims(), tensor.dtype());
        return Err(Error::io(format!("tensor {key} is {:?} {:?}, {:?} F32 is expected", got.0, got.1, like.dims())));
    }
    Ok(tensor.to_device(like.device())?)
}

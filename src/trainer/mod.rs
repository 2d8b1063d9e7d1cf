//! Turns rated answers into a better adapter: batch → advantages → steps → candidate. Never judges or publishes the
//! result.

mod batch;
mod before;
mod checkpoint;
mod control;
mod fixed;
mod loss;
mod measure;
mod network;
mod remote;
mod step;
mod totals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::align::{Baseline, CriticTrust, KlController, RewardScale};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::policy::{Decoder, Lora, ValueHead};
use crate::types::StepMetrics;
pub use checkpoint::{ADAPTER_FILE, OPTIMIZER_FILES};
pub use measure::Weighed;
use network::Network;
use remote::Remote;

/// Policy and critic on one frozen base, with all state that is carried from batch to batch.
///
/// Deterministic: the same seed, batches and number of threads give the same bits.
pub struct Trainer {
    decoder: Arc<Decoder>,
    config: TrainConfig,
    policy: Network,
    critic: Network,
    /// Where the policy's steps are computed, if not here. There is no critic then.
    remote: Option<Remote>,
    reward_scale: RewardScale,
    baseline: Baseline,
    critic_trust: CriticTrust,
    kl_controller: KlController,
    /// Factor of the policy's learning rate: below 1 after batches that moved too fast.
    pace: f64,
    /// Batches trained on; also selects the random stream of the next one.
    batches: u64,
    /// Where the state before a batch is kept while it is trained on; in memory if nowhere.
    scratch: Option<PathBuf>,
}

/// The outcome of a batch.
#[expect(clippy::large_enum_variant, reason = "one for a batch, never many")]
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// The policy moved.
    Trained(StepMetrics),
    /// Nothing changed.
    Skipped {
        /// The reason, in one sentence.
        reason: String,
        /// Optimizer steps dropped because a loss or gradient was not finite.
        dropped_steps: usize,
        /// Whether the samples may train later, together with others to compare with.
        wait: bool,
    },
}

/// The mutable state of a trainer, as it was before a batch.
struct Before {
    networks: before::Networks,
    reward_scale: RewardScale,
    baseline: Baseline,
    critic_trust: CriticTrust,
    kl_controller: KlController,
    pace: f64,
    batches: u64,
    /// The policy's checkpoint on a server.
    there: Option<String>,
}

impl Trainer {
    /// A policy equal to the initial model, and a critic that predicts the running mean.
    ///
    /// # Errors
    /// `Arg` for settings out of range.
    pub fn new(decoder: Arc<Decoder>, config: &TrainConfig) -> Result<Self> {
        config.validate()?;
        let lora = |seed: u64| {
            let lora = Lora::new(&decoder, config.rank as usize, config.alpha, None, seed);
            lora.map_err(|e| e.context(format!("train.rank {}", config.rank)))
        };
        let policy = Network::new(lora(config.seed)?, None)?;
        let critic = Network::new(lora(config.seed.wrapping_add(1))?, Some(ValueHead::new(&decoder)?))?;
        Ok(Self {
            policy,
            critic,
            remote: Remote::of(config)?,
            decoder,
            config: config.clone(),
            reward_scale: RewardScale::default(),
            baseline: Baseline::default(),
            critic_trust: CriticTrust::default(),
            kl_controller: KlController { kl_coef: config.ppo.kl_coef },
            pace: 1.0,
            batches: 0,
            scratch: None,
        })
    }

    /// Keeps the state before a batch in a file of this folder while the batch is trained on, and not in memory: the
    /// file has no name, is as large as what [`Trainer::save`] writes, and is read if the batch fails.
    pub fn keep_before_in(&mut self, folder: &Path) {
        self.scratch = Some(folder.to_owned());
    }

    /// Resets to the state of [`Trainer::new`], as for a rollback to the initial model.
    ///
    /// # Errors
    /// `NoMem` or `Train` if tensors can't be made; the trainer is unchanged then.
    pub fn reset_to_initial(&mut self) -> Result<()> {
        *self = Self { scratch: self.scratch.clone(), ..Self::new(self.decoder.clone(), &self.config)? };
        Ok(())
    }

    /// The settings that the next batch is trained with.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Trains with other settings from now on.
    ///
    /// # Errors
    /// `Arg` for settings out of range, and for another rank or alpha.
    pub fn reconfigure(&mut self, config: &TrainConfig) -> Result<()> {
        // Where the arithmetic is done is no part of what is learned.
        let config = TrainConfig { engine: self.config.engine.clone(), ..config.clone() };
        config.validate()?;
        checkpoint::fits(&self.policy.lora, &config)?;
        self.config = config;
        Ok(())
    }

    /// The policy's present adapter.
    pub fn adapter(&self) -> &Lora {
        &self.policy.lora
    }

    /// The frozen base.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// Whether every weight of policy and critic is a finite number.
    ///
    /// # Errors
    /// `Train` if the device fails.
    pub fn is_finite(&self) -> Result<bool> {
        Ok(self.policy.is_finite()? && self.critic.is_finite()?)
    }

    /// Factor of the learning rate, at most 1: below that after batches that moved too fast.
    pub fn pace(&self) -> f64 {
        self.pace
    }

    /// Batches trained on since the initial model.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    fn before(&self) -> Result<Before> {
        // Memory of a card is not what a file would save, and the way to a file is long from there.
        let on_cpu = self.decoder.device().is_cpu();
        Ok(Before {
            networks: before::Networks::keep([&self.policy, &self.critic], self.scratch.as_deref().filter(|_| on_cpu))?,
            reward_scale: self.reward_scale,
            baseline: self.baseline,
            critic_trust: self.critic_trust,
            kl_controller: self.kl_controller,
            pace: self.pace,
            batches: self.batches,
            there: self.remote.as_ref().and_then(|remote| remote.at.clone()),
        })
    }

    fn restore(&mut self, before: Before) -> Result<()> {
        self.reward_scale = before.reward_scale;
        self.baseline = before.baseline;
        self.critic_trust = before.critic_trust;
        self.kl_controller = before.kl_controller;
        self.pace = before.pace;
        self.batches = before.batches;
        if let Some(remote) = &mut self.remote {
            remote.take_back(before.there);
        }
        before.networks.restore([&mut self.policy, &mut self.critic])
    }
}

/// Returns `Closed` once `cancel` says so.
fn check_cancelled(cancel: &dyn Fn() -> bool) -> Result<()> {
    if cancel() { Err(Error::closed("training was stopped; the batch has changed nothing")) } else { Ok(()) }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

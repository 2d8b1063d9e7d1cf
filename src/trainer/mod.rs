//! Turns rated answers into a better adapter: batch → advantages → steps → candidate. Never judges or publishes what it
//! made.

mod batch;
mod checkpoint;
mod measure;
mod network;
mod step;

use std::sync::Arc;

use crate::align::{KlController, RewardScale};
use crate::config::TrainConfig;
use crate::error::Result;
use crate::policy::{Decoder, Lora, ValueHead};
use crate::types::StepMetrics;
pub use checkpoint::ADAPTER_FILE;
pub use measure::Weighed;
use network::{Network, Saved};

/// Policy and critic on one frozen base, and all state that learning carries from batch to batch.
///
/// Deterministic: the same seed, batches and number of threads give the same bits.
pub struct Trainer {
    decoder: Arc<Decoder>,
    config: TrainConfig,
    policy: Network,
    critic: Network,
    reward_scale: RewardScale,
    kl_controller: KlController,
    /// Batches trained on; also numbers the random stream of the next one.
    batches: u64,
}

/// What came of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutcome {
    /// The policy moved.
    Trained(StepMetrics),
    /// Nothing was changed.
    Skipped {
        /// One sentence.
        reason: String,
        /// Optimizer steps dropped because a loss or gradient was not finite.
        dropped_steps: usize,
    },
}

/// The changing half of a trainer, as it was before a batch.
struct Before {
    policy: Saved,
    critic: Saved,
    reward_scale: RewardScale,
    kl_controller: KlController,
    batches: u64,
}

impl Trainer {
    /// A policy equal to the initial model and a critic that values everything at 0.
    ///
    /// # Errors
    /// `Arg` for settings out of range.
    pub fn new(decoder: Arc<Decoder>, config: &TrainConfig) -> Result<Self> {
        config.validate()?;
        let lora = |seed: u64| Lora::new(&decoder, config.rank as usize, config.alpha, None, seed);
        let policy = Network::new(lora(config.seed)?, None)?;
        let critic = Network::new(lora(config.seed.wrapping_add(1))?, Some(ValueHead::new(&decoder)?))?;
        Ok(Self {
            policy,
            critic,
            decoder,
            config: config.clone(),
            reward_scale: RewardScale::default(),
            kl_controller: KlController { kl_coef: config.ppo.kl_coef },
            batches: 0,
        })
    }

    /// Goes back to the state of [`Trainer::new`], as for a rollback to the initial model.
    ///
    /// # Errors
    /// `NoMem` or `Train` if tensors can't be made; the trainer is as before then.
    pub fn reset_to_initial(&mut self) -> Result<()> {
        *self = Self::new(self.decoder.clone(), &self.config)?;
        Ok(())
    }

    /// The policy's adapter as it is now.
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

    /// Batches trained on since the initial model.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    fn before(&self) -> Result<Before> {
        Ok(Before {
            policy: self.policy.save()?,
            critic: self.critic.save()?,
            reward_scale: self.reward_scale,
            kl_controller: self.kl_controller,
            batches: self.batches,
        })
    }

    fn restore(&mut self, before: Before) -> Result<()> {
        self.reward_scale = before.reward_scale;
        self.kl_controller = before.kl_controller;
        self.batches = before.batches;
        self.policy.restore(before.policy)?;
        self.critic.restore(before.critic)
    }
}

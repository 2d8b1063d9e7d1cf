//! The settings for training a reward model, with their checks. Never trains one.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The settings for training a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Rank of the adapter.
    pub rank: usize,
    /// Scale numerator of the adapter: the update is multiplied by alpha / rank.
    pub alpha: f64,
    /// Largest number of passes over the pairs.
    pub epochs: u32,
    /// Highest learning rate.
    pub lr: f64,
    /// Pairs per optimizer step.
    pub batch: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm; larger gradients are scaled down to it.
    pub clip_norm: f64,
    /// Share of the pairs held back.
    pub validation: f64,
    /// Evaluations on the held-back pairs per epoch.
    pub evaluations: u32,
    /// Evaluations without a better loss after which training stops.
    pub patience: u32,
    /// Longest prompt with answer, in tokens.
    pub max_tokens: usize,
    /// Tokens computed at once: bounds the memory.
    pub micro_batch_tokens: usize,
    /// Seeds the adapter, the order of pairs, and which are held back.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            epochs: 3,
            // The head starts at zero, and until it moves the adapter gets no gradient, so small steps are wasted.
            lr: 1e-3,
            batch: 8,
            weight_decay: 1e-2,
            clip_norm: 1.0,
            validation: 0.1,
            evaluations: 2,
            patience: 3,
            max_tokens: 1024,
            micro_batch_tokens: 1024,
            seed: 1,
        }
    }
}

impl Settings {
    /// Checks that every value is in its range.
    ///
    /// # Errors
    /// `Arg` names the value and what was expected.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("epochs", self.epochs as usize),
            ("batch", self.batch),
            ("evaluations", self.evaluations as usize),
            ("patience", self.patience as usize),
            ("micro_batch_tokens", self.micro_batch_tokens),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(Error::arg(format!("{name} is 0, expected at least 1")));
        }
        if self.max_tokens < 4 {
            return Err(Error::arg(format!("max_tokens is {}, expected at least 4", self.max_tokens)));
        }
        for (name, value) in [("lr", self.lr), ("clip_norm", self.clip_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::arg(format!("{name} is {value}, expected a number above 0")));
            }
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return Err(Error::arg(format!("weight_decay is {}, expected a number of 0 or more", self.weight_decay)));
        }
        if !(0.0..=0.9).contains(&self.validation) {
            return Err(Error::arg(format!("validation is {}, expected a share from 0 to 0.9", self.validation)));
        }
        Ok(())
    }
}

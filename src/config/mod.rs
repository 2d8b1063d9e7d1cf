//! The settings of an engine: one tree with defaults, checked before anything starts. The only reader of configuration
//! files and of the environment; reads neither unless asked.
//!
//! A setting is one row in `settings.rs`; everything else follows from it.

mod builder;
mod choices;
mod forms;
mod keys;
mod origin_pattern;
mod range;
mod rows;
mod settings;
mod validate;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
pub use builder::{Builder, Origin, Set};
pub use choices::{Algorithm, Credit, Dtype, Promotion, Role, Undecided, Weights};
pub use keys::Key;
pub use origin_pattern::OriginPattern;
pub use settings::{
    AwrConfig, Config, GateConfig, HttpConfig, LedgerConfig, PpoConfig, PromotionConfig, PublishConfig, RewardConfig,
    SamplingConfig, ServeConfig, TrainConfig,
};

/// The key for a Tinker server, from the environment. No setting, since settings are shown and recorded.
pub fn tinker_key() -> Option<String> {
    std::env::var("TINKER_API_KEY").ok().filter(|key| !key.is_empty())
}

impl TrainConfig {
    /// The address of the Tinker server that trains, if one does.
    pub fn tinker(&self) -> Option<&str> {
        self.engine.strip_prefix("tinker:")
    }

    /// The temperature λ of the algorithm in use; PPO and RLOO have none.
    pub fn temperature(&self) -> f64 {
        if self.algorithm == Algorithm::Awr { self.awr.lambda } else { self.lambda }
    }
}

impl PublishConfig {
    /// The versions that are never removed.
    pub fn pinned(&self) -> Vec<u64> {
        self.pinned.split(',').filter_map(|part| part.trim().parse().ok()).collect()
    }
}

impl RewardConfig {
    /// The named signals and their weights.
    ///
    /// # Errors
    /// `Arg` for text that is not like `copied=0.3, regenerated=-0.3`.
    pub fn signal_weights(&self) -> Result<BTreeMap<String, f64>> {
        let wrong = |part: &str| {
            Error::arg(format!(
                "reward.signals has {part:?}, expected names and weights like copied=0.3, abandoned=-0.5"
            ))
        };
        let pair = |part: &str| {
            let (name, weight) = part.split_once('=').ok_or_else(|| wrong(part))?;
            let weight: f64 = weight.trim().parse().map_err(|_| wrong(part))?;
            let name = name.trim();
            if name.is_empty() || name.len() > 64 || !weight.is_finite() {
                return Err(wrong(part));
            }
            Ok((name.to_owned(), weight))
        };
        self.signals.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
    }
}

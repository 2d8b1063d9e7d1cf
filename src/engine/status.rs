//! What an engine says of itself. Computes nothing.

use serde::{Deserialize, Serialize};

use super::ServedForm;
use super::reward_versions::RewardStatus;
use crate::llama::Model;
use crate::scheduler::{Durations, Load};
use crate::types::{PolicyVersion, StepMetrics};

/// The state of an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The base model's name, from its metadata or file name.
    pub model: String,
    /// Its architecture.
    pub architecture: String,
    /// Version that new requests get.
    pub policy_version: PolicyVersion,
    /// Versions on a context: the active one last, before it those with running requests.
    pub serving_versions: Vec<PolicyVersion>,
    /// Requests being decoded.
    pub running: usize,
    /// Requests waiting.
    pub queued: usize,
    /// Requests completed since the start.
    pub completed: u64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens evaluated since the start.
    pub prompt_tokens: u64,
    /// Weight swaps since the start.
    pub swaps: u64,
    /// Requests refused because the queue was full, since the start.
    pub refused: u64,
    /// Tokens that the caches of the versions in use hold; idle prefixes are among them.
    pub cached_tokens: usize,
    /// Tokens they have room for.
    pub cache_capacity: usize,
    /// From the submission of a request to its first token, since the start.
    pub first_token: Durations,
    /// Between two tokens of an answer, since the start.
    pub gap: Durations,
    /// Those of them while the trainer worked: what training costs serving.
    #[serde(default)]
    pub gap_training: Durations,
    /// In which number format the base model is served.
    pub form: ServedForm,
    /// The trainer.
    pub trainer: TrainerStatus,
}

/// The state of the trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerStatus {
    /// `off`, `unsupported`, `loading`, `idle` or `training`.
    pub state: String,
    /// Why it is off or unsupported, or what failed last.
    pub reason: Option<String>,
    /// Whether it trains by itself when a batch is in.
    pub auto: bool,
    /// Ratings not yet used.
    pub pending_ratings: u64,
    /// Ratings that start a step.
    pub batch: u32,
    /// Steps that published a version since the start.
    pub steps: u64,
    /// Seconds that the trainer worked since the start.
    #[serde(default)]
    pub seconds: f64,
    /// Seconds that its threads were ready and waited for a core, all together: what serving, and whatever else runs
    /// here, costs it.
    #[serde(default)]
    pub waited_seconds: f64,
    /// Steps that were skipped since the start.
    pub skipped: u64,
    /// Of those, candidates that the gate refused.
    pub refused: u64,
    /// Optimizer steps dropped because something was not finite, since the start.
    pub dropped_steps: u64,
    /// The reward model that keeps learning.
    #[serde(default)]
    pub reward: RewardStatus,
    /// Measurements of the newest step.
    pub last: Option<StepMetrics>,
}

pub(super) fn snapshot(model: &Model, load: &Load, form: &ServedForm, trainer: TrainerStatus) -> Status {
    Status {
        model: model.name().to_string(),
        architecture: model.architecture().to_string(),
        policy_version: load.versions.last().copied().unwrap_or_default(),
        serving_versions: load.versions.clone(),
        running: load.running,
        queued: load.queued,
        completed: load.completed,
        generated_tokens: load.generated_tokens,
        prompt_tokens: load.prompt_tokens,
        swaps: load.swaps,
        refused: load.refused,
        cached_tokens: load.cached_tokens,
        cache_capacity: load.cache_capacity,
        first_token: load.first_token.clone(),
        gap: load.gap.clone(),
        gap_training: load.gap_training.clone(),
        form: form.clone(),
        trainer,
    }
}

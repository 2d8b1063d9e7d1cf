//! The state that an engine reports. Computes nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::WeightFormat;
use super::alerts::Alert;
use super::disk::DiskUse;
use super::reward_versions::RewardStatus;
use crate::gate::TrialRecord;
use crate::ledger::Unlearned;
use crate::llama::Model;
use crate::scheduler::Load;
use crate::types::{PolicyVersion, StepMetrics, UnixMillis};

/// The state of an engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Status {
    /// The base model's name, from its metadata or file name.
    pub model: String,
    /// The architecture of the base model.
    pub architecture: String,
    /// Version that new requests get.
    pub policy_version: PolicyVersion,
    /// The load of the scheduler.
    #[serde(flatten)]
    pub load: Load,
    /// Weight format in which the base model is served.
    #[serde(rename = "form")]
    pub format: WeightFormat,
    /// The trainer.
    pub trainer: TrainerStatus,
    /// Conditions that need attention; serving goes on where it can.
    #[serde(default)]
    pub alerts: Vec<Alert>,
    /// Disk use of the data folder, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskUse>,
}

/// The activity of the trainer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TrainerState {
    /// Not training: switched off, or failed until another version is activated.
    #[default]
    Off,
    /// The model can't be trained, but is served all the same.
    Unsupported,
    /// Loading the model.
    Loading,
    /// Waiting for ratings.
    Idle,
    /// Training on a batch.
    Training,
}

impl fmt::Display for TrainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrainerState::Off => "off",
            TrainerState::Unsupported => "unsupported",
            TrainerState::Loading => "loading",
            TrainerState::Idle => "idle",
            TrainerState::Training => "training",
        })
    }
}

/// The state of the trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct TrainerStatus {
    /// Its activity.
    pub state: TrainerState,
    /// Why it is off or unsupported, or what failed last.
    pub reason: Option<String>,
    /// Whether training starts by itself when there are enough ratings.
    pub auto: bool,
    /// Ratings not yet used.
    pub pending_ratings: u64,
    /// Ratings that start a step.
    pub batch: u32,
    /// Steps that published a version since the start.
    pub steps: u64,
    /// Seconds that the trainer has worked since the start.
    #[serde(default)]
    pub seconds: f64,
    /// Seconds that its threads, summed, were ready but waited for a core: the cost to the trainer of serving and of
    /// other programs.
    #[serde(default)]
    pub waited_seconds: f64,
    /// Steps that were skipped since the start.
    pub skipped: u64,
    /// Candidates that were refused since the start.
    pub refused: u64,
    /// Times that a bug stopped the trainer since the start; it starts again.
    #[serde(default)]
    pub panics: u64,
    /// Versions that were taken back since the start, because ratings fell.
    #[serde(default)]
    pub rolled_back: u64,
    /// The candidate on trial.
    #[serde(default)]
    pub trial: Option<TrialStatus>,
    /// Candidates that wait for a person's decision, the oldest first.
    #[serde(default)]
    pub proposals: Vec<PolicyVersion>,
    /// The replacement of versions that learned from a forgotten user.
    #[serde(default)]
    pub unlearning: Option<UnlearnStatus>,
    /// How the last one ended since the start.
    #[serde(default)]
    pub unlearned: Option<Unlearned>,
    /// Optimizer steps dropped because something was not finite, since the start.
    pub dropped_steps: u64,
    /// The state of the reward model.
    #[serde(default)]
    pub reward: RewardStatus,
    /// Measurements of the newest step.
    pub last: Option<StepMetrics>,
}

/// A candidate on trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct TrialStatus {
    /// The candidate.
    pub version: PolicyVersion,
    /// The version that serves.
    pub parent: PolicyVersion,
    /// When it began.
    pub started: UnixMillis,
    /// Share of the users that get the candidate.
    pub share: f64,
    /// The ratings so far.
    pub record: Option<TrialRecord>,
}

/// Versions that learned from a forgotten user are being replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct UnlearnStatus {
    /// When it was asked for.
    pub asked: UnixMillis,
    /// The first version that learned from the user; it and all later ones go.
    pub first: PolicyVersion,
    /// The version to go back to; the new one will be its child.
    pub back: PolicyVersion,
    /// Batches that were replayed.
    pub replayed: usize,
    /// Batches to replay.
    pub batches: usize,
    /// Seconds that the rest will take, by what those batches took at first; the judgement not included.
    pub seconds_left: f64,
}

pub(super) fn snapshot(
    model: &Model,
    load: Load,
    format: &WeightFormat,
    trainer: TrainerStatus,
    alerts: Vec<Alert>,
) -> Status {
    Status {
        model: model.name().to_string(),
        architecture: model.architecture().to_string(),
        policy_version: load.versions.last().copied().unwrap_or_default(),
        load,
        format: format.clone(),
        trainer,
        alerts,
        disk: None,
    }
}

//! Counts the scheduler's work, and reports it. Decides nothing.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::meters::Meters;
use crate::durations::Durations;
use crate::lock::lock;
use crate::types::PolicyVersion;

/// Counters since the start, and the present load.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) queued: AtomicUsize,
    pub(super) running: AtomicUsize,
    pub(super) completed: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) drafted_tokens: AtomicU64,
    pub(super) accepted_tokens: AtomicU64,
    pub(super) swaps: AtomicU64,
    pub(super) panics: AtomicU64,
    /// Tokens that the caches of all contexts hold, and have room for.
    pub(super) cached_tokens: AtomicUsize,
    pub(super) cache_capacity: AtomicUsize,
    pub(super) meters: Arc<Meters>,
    pub(super) versions: Mutex<Vec<PolicyVersion>>,
}

impl Counters {
    /// The present load.
    pub(super) fn load(&self) -> Load {
        Load {
            queued: self.queued.load(Ordering::Relaxed),
            running: self.running.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            generated_tokens: self.generated_tokens.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            drafted_tokens: self.drafted_tokens.load(Ordering::Relaxed),
            accepted_tokens: self.accepted_tokens.load(Ordering::Relaxed),
            swaps: self.swaps.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            refused: self.meters.refused.load(Ordering::Relaxed),
            cached_tokens: self.cached_tokens.load(Ordering::Relaxed),
            cache_capacity: self.cache_capacity.load(Ordering::Relaxed),
            first_token: self.meters.first_token.read(),
            gap: self.meters.gap.read(),
            gap_training: self.meters.gap_training.read(),
            mask: Durations::default(),
            versions: lock(&self.versions).clone(),
        }
    }
}

/// A snapshot of the load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Load {
    /// Requests waiting.
    pub queued: usize,
    /// Requests being decoded.
    pub running: usize,
    /// Requests that ended since the start, for whatever reason.
    pub completed: u64,
    /// Tokens generated since the start.
    pub generated_tokens: u64,
    /// Prompt tokens evaluated since the start.
    pub prompt_tokens: u64,
    /// Tokens of answers that were guessed ahead since the start (`serve.speculate`).
    #[serde(default)]
    pub drafted_tokens: u64,
    /// Those of them that held: each saved a turn.
    #[serde(default)]
    pub accepted_tokens: u64,
    /// Weight swaps since the start.
    pub swaps: u64,
    /// Panics of the scheduler's threads: after one it is closed.
    #[serde(rename = "scheduler_panics", default)]
    pub panics: u64,
    /// Requests refused because the queue was full, since the start.
    pub refused: u64,
    /// Tokens in the caches of the versions in use, idle prefixes included.
    pub cached_tokens: usize,
    /// Capacity of those caches, in tokens.
    pub cache_capacity: usize,
    /// Times from the submission of a request to its first token, since the start.
    pub first_token: Durations,
    /// Times between two tokens of an answer, since the start.
    pub gap: Durations,
    /// Gaps that began while the trainer was working: the cost of training to serving.
    #[serde(default)]
    pub gap_training: Durations,
    /// Times to compute which tokens may follow in an answer that is held to a format, since the start.
    #[serde(default)]
    pub mask: Durations,
    /// Versions on contexts: the active one last, before it those with running requests.
    #[serde(rename = "serving_versions")]
    pub versions: Vec<PolicyVersion>,
}

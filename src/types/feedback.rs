//! Feedback on answers, and the rewards that follow from it. No behaviour, no I/O.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Generation, GenerationId, PolicyVersion};

/// Values of ratings and of rewards for samples.
pub const RATINGS: RangeInclusive<f64> = -1.0..=1.0;

/// A person's feedback on an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// A rating in [-1, 1]; thumbs are 1 and -1.
    Rating(f64),
    /// The answer as the user would have written it.
    Correction(String),
    /// A named event on the answer: `copied`, `regenerated`, `abandoned`. The settings have its weight.
    Named(String),
    /// Only a comment, in the field of that name.
    Comment,
}

/// Feedback as it is submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewFeedback {
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// What it says.
    pub signal: Signal,
    /// The user who gave it.
    pub user: Option<String>,
    /// A comment; kept, but not used for training.
    pub comment: Option<String>,
}

/// Confirms that feedback is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct FeedbackReceipt {
    /// Row number in the ledger; grows with time. 0 while it waits for a database.
    pub feedback_id: u64,
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// The version that generated the answer.
    pub policy_version: PolicyVersion,
    /// Whether it replaces an earlier rating of the same answer by the same user (which stays on record).
    pub replaces_earlier: bool,
    /// Why it doesn't count, though it is kept: a limit, or a repetition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// It is on this server's disk, since the database is away, and is recorded once that answers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spooled: bool,
}

/// An answer with its feedback, ready to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct RatedGeneration {
    /// The rows of its feedback, which are marked as used together. Empty for an answer that nobody rated.
    pub feedback_ids: Vec<u64>,
    /// The answer.
    pub generation: Generation,
    /// Mean over users of each one's last rating, in [-1, 1]; `None` if nobody rated it.
    pub rating: Option<f64>,
    /// Named signals, one per user and name.
    pub signals: Vec<String>,
    /// The last correction, if corrections become samples.
    pub correction: Option<String>,
}

/// A part of a sample's reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Term {
    /// `rating`, `model`, `external`, `length`, `correction`, or `signal:NAME`.
    pub name: String,
    /// The measured value, normalized.
    pub value: f64,
    /// The weight of the value in the sum.
    pub weight: f64,
    /// The value before normalization, such as a reward model's own score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<f64>,
}

/// The reward of a sample with its terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Score {
    /// The scalar that the trainer gets: the clipped sum of the terms.
    pub score: f64,
    /// The terms of the sum.
    pub terms: Vec<Term>,
}

/// The origin of a training sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// The answer itself.
    Answer,
    /// A user's correction of it.
    Correction,
}

/// A training sample as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// Whether the answer itself or a correction was trained on.
    pub kind: SampleKind,
    /// Its reward.
    #[serde(flatten)]
    pub score: Score,
}

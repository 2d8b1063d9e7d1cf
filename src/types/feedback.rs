//! What people say of answers, and what it makes an answer worth. No behaviour, no I/O.

use serde::{Deserialize, Serialize};

use super::{Generation, GenerationId, PolicyVersion};

/// What a person said of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// A rating in [-1, 1]; thumbs are 1 and -1.
    Rating(f64),
    /// The answer as the user would have had it.
    Correction(String),
    /// Something that happened to the answer, by name: `copied`, `regenerated`, `abandoned`. The settings say what it
    /// is worth.
    Named(String),
    /// A remark alone; it is in the comment.
    Comment,
}

/// Feedback as it is handed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewFeedback {
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// What was said.
    pub signal: Signal,
    /// Who said it.
    pub user: Option<String>,
    /// A remark; kept, not used for training.
    pub comment: Option<String>,
}

/// Proof that feedback is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedbackReceipt {
    /// Row number in the ledger; grows with time.
    pub feedback_id: u64,
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// The weights that had answered.
    pub policy_version: PolicyVersion,
    /// Whether it replaces an earlier rating of the same answer by the same user (which stays on record).
    pub replaces_earlier: bool,
    /// Why it doesn't count, though it is kept: a limit, or that it was said before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// An answer with what was said of it, ready to learn from.
#[derive(Clone, Debug, PartialEq)]
pub struct RatedGeneration {
    /// The feedback rows that stand for it; all are marked used together. Empty for an answer that nobody rated.
    pub feedback_ids: Vec<u64>,
    /// The answer.
    pub generation: Generation,
    /// Mean over users of the last rating each gave, in [-1, 1]; `None` if nobody rated it.
    pub rating: Option<f64>,
    /// Named signals, one entry a user and name.
    pub signals: Vec<String>,
    /// The last correction, if corrections teach as samples.
    pub correction: Option<String>,
}

/// A part of a sample's reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// `rating`, `model`, `external`, `length`, `correction`, or `signal:NAME`.
    pub name: String,
    /// What was measured, after its normalization.
    pub value: f64,
    /// The weight of the value in the sum.
    pub weight: f64,
    /// What was measured, before: a reward model's own score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<f64>,
}

/// The reward of a sample and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The scalar that the trainer gets: the clipped sum of the terms.
    pub score: f64,
    /// The terms of the sum.
    pub terms: Vec<Term>,
}

/// What a training sample is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// The answer itself.
    Answer,
    /// What a user would have had in its place.
    Correction,
}

/// A training sample as it goes on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The answer it is about.
    pub generation_id: GenerationId,
    /// Whether the answer itself or a correction was trained on.
    pub kind: SampleKind,
    /// The reward it got.
    #[serde(flatten)]
    pub score: Score,
}

//! Versions of the policy, and the verdicts on candidates. No behaviour, no I/O.

use serde::{Deserialize, Serialize};

use super::{PolicyVersion, StepMetrics, UnixMillis};

/// Whether a candidate may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The candidate may serve.
    Accepted,
    /// The candidate may not serve.
    Refused {
        /// The reason, in one sentence.
        reason: String,
    },
}

/// The state of a verdict on a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// It serves or did serve.
    Promoted,
    /// It may not serve.
    Refused,
    /// It is tried on a share of the users.
    Trial,
    /// It waits for a person to promote it.
    Proposed,
    /// It served, and was rolled back.
    RolledBack,
    /// It had learned from a user who was forgotten, and its files were removed.
    Unlearned,
}

/// A verdict on a candidate, as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct StoredVerdict {
    /// Row number in the ledger; grows with time.
    pub id: u64,
    /// The candidate's version; `None` if it never became one.
    pub version: Option<PolicyVersion>,
    /// The version that it was compared with.
    pub parent: PolicyVersion,
    /// Its state.
    pub ruling: Ruling,
    /// When it was first judged.
    pub created: UnixMillis,
    /// When it was decided; `None` while it is open.
    pub decided: Option<UnixMillis>,
    /// The measurements and the reason.
    #[cfg_attr(feature = "daemon", schema(value_type = Object))]
    pub record: serde_json::Value,
}

/// A rating of an answer by one of two compared versions.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialRating {
    /// Row number of the feedback.
    pub id: u64,
    /// The version that answered.
    pub version: PolicyVersion,
    /// From -1 to 1.
    pub rating: f64,
    /// The user who gave it.
    pub user: Option<String>,
}

/// What users did with an answer by one of two compared versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrialAnswer {
    /// Row number of the answer.
    pub id: u64,
    /// The version that answered.
    pub version: PolicyVersion,
    /// It was rated.
    pub rated: bool,
    /// A user asked for another one instead.
    pub regenerated: bool,
    /// A user corrected it.
    pub corrected: bool,
}

/// A row of the list of versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct VersionInfo {
    /// The version.
    pub version: PolicyVersion,
    /// The version it was trained from; `None` for the initial model.
    pub parent: Option<PolicyVersion>,
    /// Whether new requests get it.
    pub active: bool,
    /// When it was published.
    pub created: UnixMillis,
    /// The measurements of its training batch.
    pub metrics: StepMetrics,
    /// What was decided about it last; none on a version that no gate has judged, such as the initial model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ruling: Option<Ruling>,
}

//! Versions of the policy, and how candidates for one are judged. No behaviour, no I/O.

use serde::{Deserialize, Serialize};

use super::{PolicyVersion, StepMetrics, UnixMillis};

/// Whether a candidate may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The candidate may be served.
    Accepted,
    /// The candidate may not be served.
    Refused {
        /// Why not, in one sentence.
        reason: String,
    },
}

/// How a verdict over a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// It serves, or did.
    Promoted,
    /// It may not serve.
    Refused,
    /// A share of the users gets it.
    Trial,
    /// It waits for a person to promote it.
    Proposed,
    /// It served, and was taken back.
    RolledBack,
}

/// A verdict over a candidate, as it stands on record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredVerdict {
    /// Row number in the ledger; grows with time.
    pub id: u64,
    /// The candidate's version; `None` if it never became one.
    pub version: Option<PolicyVersion>,
    /// The version that it was compared with.
    pub parent: PolicyVersion,
    /// How it stands.
    pub ruling: Ruling,
    /// When it was first judged.
    pub created: UnixMillis,
    /// When it was decided; `None` while it is open.
    pub decided: Option<UnixMillis>,
    /// What was measured and why it was decided so.
    pub record: serde_json::Value,
}

/// A rating of an answer of one of two versions that are compared.
#[derive(Clone, Debug, PartialEq)]
pub struct TrialRating {
    /// Row number of the feedback.
    pub id: u64,
    /// The version that had answered.
    pub version: PolicyVersion,
    /// From -1 to 1.
    pub rating: f64,
    /// Who said it.
    pub user: Option<String>,
}

/// What became of an answer of one of two versions that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialAnswer {
    /// Row number of the answer.
    pub id: u64,
    /// The version that had answered.
    pub version: PolicyVersion,
    /// Somebody rated it.
    pub rated: bool,
    /// Somebody wanted another one in its place.
    pub regenerated: bool,
    /// Somebody said what they would have had.
    pub corrected: bool,
}

/// One line of the list of versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version.
    pub version: PolicyVersion,
    /// The version it was trained from; `None` for the initial model.
    pub parent: Option<PolicyVersion>,
    /// Whether new requests get it.
    pub active: bool,
    /// When it was published.
    pub created: UnixMillis,
    /// What its training batch measured.
    pub metrics: StepMetrics,
}

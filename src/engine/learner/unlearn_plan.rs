//! What it takes to replace the versions that learned from a user: which are, where a replay begins, what it replays.
//! Changes nothing.

use super::*;
use crate::ledger::{Forgotten, Unlearning};

/// What it takes to replace the versions that learned from a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct UnlearnPlan {
    /// The first version that learned from the user; it and all later ones are removed in the end.
    pub first: PolicyVersion,
    /// The newest ancestor of the active version that did not learn from the user: parent of the new one.
    pub back: PolicyVersion,
    /// Where the replay begins: `back`, or an older version whose training state is still on disk.
    pub start: PolicyVersion,
    /// Versions on record that will be removed.
    pub versions: usize,
    /// Batches that are trained on again.
    pub batches: usize,
    /// Answers in them, the user's not yet left out.
    pub answers: u64,
    /// Of those, answers whose words are no longer on record (`ledger.keep_days`): they can't be learned from again.
    pub wordless: u64,
    /// Seconds that training on these batches took at first.
    pub seconds: f64,
}

/// What was deleted, and what is replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct UnlearnReceipt {
    /// Numbers of deleted rows.
    #[serde(flatten)]
    pub forgotten: Forgotten,
    /// What is replaced from now on; `None` if no version learned from the user.
    pub unlearning: Option<UnlearnPlan>,
}

/// What replacing the versions that learned from a user takes, and the record of it. `None` if there are none.
pub(in crate::engine) fn plan(
    store: &VersionStore,
    ledger: &Ledger,
    user: &str,
) -> Result<Option<(Unlearning, UnlearnPlan)>> {
    let Some(first) = ledger.first_taught_by(user)? else { return Ok(None) };
    let versions = ledger.versions()?;
    let lineage = archive::lineage(&versions, ledger.active()?);
    let served = |version: &PolicyVersion| weights_of(store, *version).is_ok();
    let back = lineage.iter().copied().find(|version| *version < first && served(version)).unwrap_or_default();
    let resumable = |version: &PolicyVersion| {
        let whole = || trainer::OPTIMIZER_FILES.iter().all(|name| store.path(*version).join(name).exists());
        *version == PolicyVersion::INITIAL || whole() && store.verify(*version).is_ok()
    };
    let start = lineage.iter().copied().find(|version| *version <= back && resumable(version)).unwrap_or_default();
    let later: Vec<PolicyVersion> = lineage.into_iter().filter(|version| *version > start).rev().collect();
    let later = if later.iter().any(|version| *version > back) { later } else { Vec::new() };
    let batches = ledger.batches_of(&later)?;
    if let Some(unknown) = later.iter().find(|version| batches.iter().all(|b| b.version != **version)) {
        return Err(Error::unsupported(format!(
            "version {unknown} was restored or adopted, so what it was trained on is not on record and can't be \
             replayed; `apad versions activate {back}` goes back to before it learned from the user"
        )));
    }
    let took = |version: &&VersionInfo| later.contains(&version.version) && version.metrics.seconds.is_finite();
    let record = Unlearning {
        asked: unix_millis(),
        first,
        last: versions.last().map_or(first, |newest| newest.version),
        back,
        start,
        batches: batches.iter().map(|b| b.batch).collect(),
        seconds: versions.iter().filter(took).map(|version| version.metrics.seconds).sum(),
        ended: None,
    };
    let plan = UnlearnPlan {
        first,
        back,
        start,
        versions: versions.iter().filter(|v| record.removed().contains(&v.version.0)).count(),
        batches: batches.len(),
        answers: batches.iter().map(|b| b.answers).sum(),
        wordless: batches.iter().map(|b| b.wordless).sum(),
        seconds: record.seconds,
    };
    Ok(Some((record, plan)))
}

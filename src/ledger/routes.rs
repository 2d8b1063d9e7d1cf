//! Which of a trial's versions answers a conversation, so that it keeps it over a restart. Known by a hash, without its
//! words; gone when the trial ends. Never chooses.

use super::Ledger;
use super::db::Db;
use super::rows::signed;
use crate::error::Result;
use crate::types::PolicyVersion;

/// Most conversations that are remembered: the newest.
pub(crate) const MOST_ROUTES: usize = 1 << 14;

impl Ledger {
    /// Keeps whether a conversation belongs to the candidate of a trial. It is on disk when the ledger has written what
    /// is queued.
    ///
    /// # Errors
    /// `Closed`.
    pub fn keep_route(&self, candidate: PolicyVersion, conversation: u64, theirs: bool) -> Result<()> {
        let work = move |db: &Db| {
            // Anew, so that it is the newest.
            db.execute("DELETE FROM routes WHERE conversation = ?1", [conversation.cast_signed()])?;
            let insert = "INSERT INTO routes (candidate, conversation, theirs) VALUES (?1, ?2, ?3) RETURNING seq";
            let values = (signed(candidate.0), conversation.cast_signed(), theirs);
            let newest: i64 = db.one(insert, values, |row| row.get(0))?;
            // Numbers only grow, and rows in between are rarely missing.
            db.execute("DELETE FROM routes WHERE seq <= ?1", [newest - MOST_ROUTES as i64])?;
            Ok(())
        };
        let told = |result: Result<()>| {
            if let Err(error) = result {
                tracing::warn!(%error, "which version a conversation has is not on record: a restart may change it");
            }
        };
        self.writer.submit(work, told)
    }

    /// Whether a conversation belongs to a candidate, if it was met in its trial.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn route_of(&self, candidate: PolicyVersion, conversation: u64) -> Result<Option<bool>> {
        self.read(|db| {
            let sql = "SELECT theirs FROM routes WHERE conversation = ?1 AND candidate = ?2";
            db.first(sql, (conversation.cast_signed(), signed(candidate.0)), |row| row.get(0))
        })
    }

    /// The conversations of a candidate's trial and whether they belong to it, oldest first.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn routes_of(&self, candidate: PolicyVersion) -> Result<Vec<(u64, bool)>> {
        self.read(|db| {
            let sql = "SELECT conversation, theirs FROM routes WHERE candidate = ?1 ORDER BY seq";
            db.all(sql, [signed(candidate.0)], |row| Ok((row.get::<i64>(0)?.cast_unsigned(), row.get(1)?)))
        })
    }
}

/// Forgets the conversations of the trial that a verdict ends.
pub(super) fn end(db: &Db, verdict: u64) -> Result<()> {
    let sql = "DELETE FROM routes WHERE candidate = (SELECT version FROM verdicts WHERE id = ?1)";
    db.execute(sql, [signed(verdict)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Decides;
    use crate::ledger::TrainedBatch;
    use crate::ledger::home_tests::{Home, suite};
    use crate::ledger::tests::version;
    use crate::types::Ruling;

    fn conversations_keep_their_version_until_the_trial_is_decided(home: &Home) {
        let ledger = home.open();
        ledger.commit_version(&version(1, 0), TrainedBatch::default()).unwrap();
        let (first, other) = (PolicyVersion(1), PolicyVersion(0));
        let trial = ledger.add_verdict(Some(first), other, Ruling::Trial, serde_json::json!({})).unwrap();
        for (conversation, theirs) in [(u64::MAX, true), (3, false), (u64::MAX, true)] {
            ledger.keep_route(first, conversation, theirs).unwrap();
        }
        ledger.set_verdict(trial, Ruling::Trial, serde_json::json!({})).unwrap();
        ledger.close();
        let ledger = home.open();
        assert_eq!(ledger.routes_of(first).unwrap(), [(3, false), (u64::MAX, true)]);
        assert_eq!(ledger.routes_of(other).unwrap(), []);
        let known = |conversation| ledger.route_of(first, conversation).unwrap();
        assert_eq!([known(3), known(u64::MAX), known(4)], [Some(false), Some(true), None]);
        ledger.set_active_as(first, Decides::Verdict(trial, Ruling::Promoted, serde_json::json!({}))).unwrap();
        assert_eq!(ledger.routes_of(first).unwrap(), []);
        assert_eq!(ledger.active().unwrap(), first);
        // Neither of the two, if one can't be.
        let error =
            ledger.set_active_as(other, Decides::Verdict(99, Ruling::RolledBack, serde_json::json!({}))).unwrap_err();
        assert!(error.message().contains("verdict 99"), "{error}");
        assert_eq!(ledger.active().unwrap(), first);
    }

    fn what_is_remembered_is_bounded(home: &Home) {
        let ledger = home.open();
        ledger.commit_version(&version(1, 0), TrainedBatch::default()).unwrap();
        let many = MOST_ROUTES as u64 + 5;
        (0..many).for_each(|i| ledger.keep_route(PolicyVersion(1), i, true).unwrap());
        ledger.add_verdict(None, PolicyVersion(0), Ruling::Refused, serde_json::json!({})).unwrap();
        let kept = ledger.routes_of(PolicyVersion(1)).unwrap();
        assert_eq!((kept.len(), kept[0].0, kept[kept.len() - 1].0), (MOST_ROUTES, 5, many - 1));
    }

    suite! {
        conversations_keep_their_version_until_the_trial_is_decided
        what_is_remembered_is_bounded
    }
}

//! Users who disagree with everyone: counts and lists them, and records what a person decided. Never decides itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::error::{Error, Result};
use crate::ledger::db::{Asked, Db, Row};
use crate::ledger::{rows, waiting};
use crate::system::unix_millis;
use crate::types::{NewFeedback, Signal};

/// Most earlier ratings of an answer that a new one is compared with.
const COMPARED: u32 = 16;

/// A person's decision about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ReviewVerdict {
    /// The user's feedback counts, whatever others say.
    Trust,
    /// The user's feedback waits.
    Hold,
    /// The user's feedback is left out: what is waiting, and what comes later.
    Reject,
}

impl ReviewVerdict {
    fn as_str(self) -> &'static str {
        match self {
            ReviewVerdict::Trust => "trust",
            ReviewVerdict::Hold => "hold",
            ReviewVerdict::Reject => "reject",
        }
    }
}

/// A user on the review list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct ReviewEntry {
    /// The user's name.
    pub user: String,
    /// Number of ratings compared with another user's of the same answer.
    pub compared: u64,
    /// Number of those with the opposite sign.
    pub disagreed: u64,
    /// Number of the user's waiting pieces of feedback.
    pub waiting: u64,
    /// The last decision; `None` if nobody has decided.
    pub verdict: Option<ReviewVerdict>,
}

/// How a rating agrees with other users' of the same answer. `content` identifies the answer.
pub(in crate::ledger) struct Compared<'a> {
    user: &'a str,
    rating: f64,
    /// What each of the others said last.
    last: BTreeMap<String, f64>,
}

impl<'a> Compared<'a> {
    /// None for feedback that says neither good nor bad, or nobody's.
    pub(in crate::ledger) fn of(f: &'a NewFeedback) -> Option<Self> {
        let (Signal::Rating(rating), Some(user)) = (&f.signal, &f.user) else { return None };
        (*rating != 0.0).then(|| Self { user, rating: *rating, last: BTreeMap::new() })
    }

    /// The statement that finds what others said: nothing if the user has rated the answer before.
    pub(in crate::ledger) fn asked(&self, content: i64) -> Asked<'a> {
        let others = "SELECT f.user, f.rating FROM feedback f
                      WHERE f.content = ?1 AND f.rating IS NOT NULL AND f.user IS NOT NULL AND f.user <> ?2
                      AND NOT EXISTS (SELECT 1 FROM feedback own
                                      WHERE own.content = ?1 AND own.user = ?2 AND own.rating IS NOT NULL)
                      ORDER BY f.id DESC LIMIT ?3";
        Asked { sql: others.into(), values: vec![content.into(), self.user.into(), COMPARED.into()] }
    }

    pub(in crate::ledger) fn hear(&mut self, row: &Row<'_>) -> Result<()> {
        let value = row.get(1)?;
        self.last.entry(row.get(0)?).or_insert(value);
        Ok(())
    }

    /// Counts it, for both sides.
    pub(in crate::ledger) fn count(mut self, db: &Db) -> Result<()> {
        let Self { user, rating, ref mut last } = self;
        last.retain(|_, value| *value != 0.0);
        let disagree = |value: &f64| (*value > 0.0) != (rating > 0.0);
        let count = "INSERT INTO agreement (user, compared, disagreed) VALUES (?1, ?2, ?3) ON CONFLICT (user)
                     DO UPDATE SET compared = agreement.compared + excluded.compared,
                     disagreed = agreement.disagreed + excluded.disagreed";
        for (other, value) in &*last {
            db.execute(count, (other, 1, disagree(value)))?;
        }
        if !last.is_empty() {
            let disagreed = last.values().filter(|v| disagree(v)).count();
            db.execute(count, (user, last.len() as i64, disagreed as i64))?;
        }
        Ok(())
    }
}

fn verdict(db: &Db, user: &str) -> Result<Option<ReviewVerdict>> {
    let sql = "SELECT verdict FROM reviews WHERE user = ?1 ORDER BY id DESC LIMIT 1";
    db.first(sql, [user], |row| known(row.get(0)?))
}

/// The verdict that a word stands for.
pub(super) fn known(word: String) -> Result<ReviewVerdict> {
    let all = [ReviewVerdict::Trust, ReviewVerdict::Hold, ReviewVerdict::Reject];
    let found = all.into_iter().find(|v| v.as_str() == word);
    found.ok_or_else(|| Error::io(format!("the ledger is damaged: unknown verdict {word:?}")))
}

/// Users whose feedback waits for review: flagged ones and those on hold, with the decisions.
pub(in crate::ledger) fn reviews(db: &Db, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let waiting = "SELECT count(*) FROM feedback INDEXED BY feedback_unused_of_user
                   WHERE user = ?1 AND teaches = 1 AND batch IS NULL";
    let mut all = on_list(db, rules)?;
    for entry in &mut all {
        entry.waiting = db.one(waiting, [&entry.user], |row| rows::unsigned(row, 0))?;
    }
    Ok(all)
}

/// As [`reviews`], without counting their waiting feedback.
fn on_list(db: &Db, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let sql = "SELECT user, compared, disagreed FROM agreement
               WHERE CAST(?1 AS BIGINT) > 0 AND compared >= ?1 AND disagreed > CAST(?2 AS DOUBLE PRECISION) * compared
               UNION SELECT r.user, coalesce(a.compared, 0), coalesce(a.disagreed, 0)
               FROM (SELECT DISTINCT user FROM reviews) r LEFT JOIN agreement a ON a.user = r.user ORDER BY 1";
    db.all(sql, (rules.flag_after, rules.flag_share), |row| {
        let user: String = row.get(0)?;
        let (compared, disagreed) = (rows::unsigned(row, 1)?, rows::unsigned(row, 2)?);
        let verdict = verdict(db, &user)?;
        Ok(ReviewEntry { user, compared, disagreed, waiting: 0, verdict })
    })
}

/// Users whose feedback is not used: flagged and not trusted, or on hold.
pub(super) fn held(db: &Db, rules: &Rules) -> Result<BTreeSet<String>> {
    let all = on_list(db, rules)?;
    Ok(all.into_iter().filter(|e| e.verdict != Some(ReviewVerdict::Trust)).map(|e| e.user).collect())
}

/// Records a decision.
pub(in crate::ledger) fn review(db: &Db, user: &str, verdict: ReviewVerdict) -> Result<()> {
    let known = "SELECT 1 WHERE EXISTS (SELECT 1 FROM feedback WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM generations WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM preferences WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM reviews WHERE user = ?1)";
    if user.is_empty() || !db.exists(known, [user])? {
        return Err(Error::unknown_id(format!("no user {user:?} is on record, expected one who asked or rated")));
    }
    let insert = "INSERT INTO reviews (user, verdict, created) VALUES (?1, ?2, ?3)";
    db.execute(insert, (user, verdict.as_str(), rows::signed(unix_millis())))?;
    if verdict != ReviewVerdict::Reject {
        return Ok(());
    }
    let waits = "SELECT DISTINCT generation FROM feedback INDEXED BY feedback_of_user
                 WHERE user = ?1 AND teaches = 1 AND batch IS NULL";
    let answers = db.all(waits, [user], |row| row.get(0))?;
    let mark = "UPDATE feedback SET teaches = 0, left_out = 'user rejected'
                WHERE user = ?1 AND teaches = 1 AND batch IS NULL";
    db.execute(mark, [user])?;
    waiting::settle(db, answers)
}

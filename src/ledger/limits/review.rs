//! Users who disagree with everyone: counts and lists them, and records what a person decided. Never decides itself.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::rules::Rules;
use crate::error::{Error, Result};
use crate::ledger::rows;
use crate::ledger::waiting::use_count;
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

/// Counts how a rating agrees with other users' of the same answer, for both sides. `content` identifies the answer.
pub(in crate::ledger) fn compare(db: &Connection, f: &NewFeedback, content: i64) -> Result<()> {
    let (Signal::Rating(rating), Some(user)) = (&f.signal, &f.user) else { return Ok(()) };
    let again = db
        .prepare_cached("SELECT 1 FROM feedback WHERE content = ?1 AND user = ?2 AND rating IS NOT NULL LIMIT 1")?
        .exists((content, user))?;
    if again || *rating == 0.0 {
        return Ok(());
    }
    let mut select = db.prepare_cached(
        "SELECT user, rating FROM feedback WHERE content = ?1 AND rating IS NOT NULL AND user IS NOT NULL AND user <> ?2
         ORDER BY id DESC LIMIT ?3",
    )?;
    let others = select.query_map((content, user, COMPARED), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    for other in others {
        let (other, value) = other?;
        last.entry(other).or_insert(value);
    }
    last.retain(|_, value| *value != 0.0);
    let disagree = |value: &f64| (*value > 0.0) != (*rating > 0.0);
    let mut count = db.prepare_cached(
        "INSERT INTO agreement (user, compared, disagreed) VALUES (?1, ?2, ?3) ON CONFLICT (user)
         DO UPDATE SET compared = compared + excluded.compared, disagreed = disagreed + excluded.disagreed",
    )?;
    for (other, value) in &last {
        count.execute((other, 1, disagree(value)))?;
    }
    if !last.is_empty() {
        count.execute((user, last.len() as i64, last.values().filter(|v| disagree(v)).count() as i64))?;
    }
    Ok(())
}

pub(super) fn verdict(db: &Connection, user: &str) -> Result<Option<ReviewVerdict>> {
    let mut select = db.prepare_cached("SELECT verdict FROM reviews WHERE user = ?1 ORDER BY id DESC LIMIT 1")?;
    let word: Option<String> = select.query_row([user], |row| row.get(0)).optional()?;
    let known = |word: String| {
        let all = [ReviewVerdict::Trust, ReviewVerdict::Hold, ReviewVerdict::Reject];
        let found = all.into_iter().find(|v| v.as_str() == word);
        found.ok_or_else(|| Error::io(format!("the ledger is damaged: unknown verdict {word:?}")))
    };
    word.map(known).transpose()
}

/// Users whose feedback waits for review: flagged ones and those on hold, with the decisions.
pub(in crate::ledger) fn reviews(db: &Connection, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let mut waiting = db.prepare_cached(
        "SELECT count(*) FROM feedback INDEXED BY feedback_unused_of_user
         WHERE user = ?1 AND teaches = 1 AND batch IS NULL",
    )?;
    let mut all = on_list(db, rules)?;
    for entry in &mut all {
        let count: i64 = waiting.query_row([&entry.user], |row| row.get(0))?;
        entry.waiting = count.max(0).cast_unsigned();
    }
    Ok(all)
}

/// As [`reviews`], without counting their waiting feedback.
fn on_list(db: &Connection, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let mut select = db.prepare_cached(
        "SELECT user, compared, disagreed FROM agreement
         WHERE ?1 > 0 AND compared >= ?1 AND disagreed > ?2 * compared
         UNION SELECT r.user, coalesce(a.compared, 0), coalesce(a.disagreed, 0)
         FROM (SELECT DISTINCT user FROM reviews) r LEFT JOIN agreement a ON a.user = r.user ORDER BY 1",
    )?;
    let mut found = Vec::new();
    let mut rows = select.query((rules.flag_after, rules.flag_share))?;
    while let Some(row) = rows.next()? {
        let user: String = row.get(0)?;
        let (compared, disagreed): (i64, i64) = (row.get(1)?, row.get(2)?);
        let verdict = verdict(db, &user)?;
        let count = |n: i64| n.max(0).cast_unsigned();
        found.push(ReviewEntry { user, compared: count(compared), disagreed: count(disagreed), waiting: 0, verdict });
    }
    Ok(found)
}

/// Users whose feedback is not used: flagged and not trusted, or on hold.
pub(super) fn held(db: &Connection, rules: &Rules) -> Result<BTreeSet<String>> {
    let all = on_list(db, rules)?;
    Ok(all.into_iter().filter(|e| e.verdict != Some(ReviewVerdict::Trust)).map(|e| e.user).collect())
}

/// Records a decision; returns how many answers no longer have feedback waiting.
pub(in crate::ledger) fn review(db: &Connection, user: &str, verdict: ReviewVerdict) -> Result<u64> {
    let known = "SELECT 1 WHERE EXISTS (SELECT 1 FROM feedback WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM generations WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM preferences WHERE user = ?1)
                 OR EXISTS (SELECT 1 FROM reviews WHERE user = ?1)";
    if user.is_empty() || !db.prepare_cached(known)?.exists([user])? {
        return Err(Error::unknown_id(format!("no user {user:?} is on record, expected one who asked or rated")));
    }
    db.prepare_cached("INSERT INTO reviews (user, verdict, created) VALUES (?1, ?2, ?3)")?.execute((
        user,
        verdict.as_str(),
        rows::signed(unix_millis()),
    ))?;
    if verdict != ReviewVerdict::Reject {
        return Ok(0);
    }
    use_count(db, user, |db| {
        let mark = "UPDATE feedback SET teaches = 0, left_out = 'user rejected'
                    WHERE user = ?1 AND teaches = 1 AND batch IS NULL";
        db.prepare_cached(mark)?.execute([user])?;
        Ok(())
    })
}

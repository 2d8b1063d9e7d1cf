//! Finds and counts answers with feedback that waits for training. Never changes a row itself.

use rusqlite::Connection;

use super::rows;
use crate::error::Result;

/// Whether an answer has a rating not yet used.
pub(super) const WAITING: &str = "SELECT 1 FROM feedback INDEXED BY feedback_unused
    WHERE generation = ?1 AND teaches = 1 AND batch IS NULL LIMIT 1";

/// Number of answers with waiting feedback.
pub(super) fn pending_count(db: &Connection) -> Result<u64> {
    let mut count = db.prepare_cached(
        "SELECT count(DISTINCT generation) FROM feedback INDEXED BY feedback_unused
         WHERE teaches = 1 AND batch IS NULL",
    )?;
    let mut rows = count.query([])?;
    rows.next()?.map_or(Ok(0), |row| rows::unsigned(row, 0))
}

/// Number of these answers without waiting feedback.
pub(super) fn settled(db: &Connection, answers: impl IntoIterator<Item = i64>) -> Result<u64> {
    let mut waiting = db.prepare_cached(WAITING)?;
    let mut settled = 0;
    for answer in answers {
        settled += u64::from(!waiting.exists([answer])?);
    }
    Ok(settled)
}

/// Applies `change` to a user's feedback, and counts the answers that had feedback waiting before but not afterwards.
pub(super) fn use_count(db: &Connection, user: &str, change: impl FnOnce(&Connection) -> Result<()>) -> Result<u64> {
    let mut select = db.prepare_cached(
        "SELECT DISTINCT generation FROM feedback INDEXED BY feedback_of_user
         WHERE user = ?1 AND teaches = 1 AND batch IS NULL",
    )?;
    let answers = select.query_map([user], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    change(db)?;
    settled(db, answers)
}

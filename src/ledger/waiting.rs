//! Finds and counts answers with feedback that waits for training. Never changes a row itself.

use std::sync::Mutex;

use super::db::{Db, News, Noted};
use crate::error::Result;
use crate::lock::lock;

/// The number of answers with waiting feedback, as far as this process knows.
#[derive(Default)]
pub(super) struct Pending {
    /// The number, and the moment when it was counted last: what others committed before is in it.
    state: Mutex<(i64, i64)>,
}

impl Pending {
    pub(super) fn get(&self) -> u64 {
        lock(&self.state).0.max(0).cast_unsigned()
    }

    /// Of this process's own commits, in order.
    pub(super) fn committed(&self, noted: Noted) {
        let mut state = lock(&self.state);
        let (before, since) = noted.counted.unwrap_or(*state);
        *state = (before + noted.news.waiting, since);
    }

    /// Of another server's commit.
    pub(super) fn heard(&self, news: News, moment: i64) {
        let mut state = lock(&self.state);
        if moment > state.1 {
            state.0 += news.waiting;
        }
    }
}

/// Whether an answer has a rating not yet used.
pub(super) const WAITING: &str = "SELECT 1 FROM feedback INDEXED BY feedback_unused
    WHERE generation = ?1 AND teaches = 1 AND batch IS NULL LIMIT 1";

/// Number of answers with waiting feedback.
fn pending_count(db: &Db) -> Result<i64> {
    let sql = "SELECT count(DISTINCT generation) FROM feedback INDEXED BY feedback_unused
               WHERE teaches = 1 AND batch IS NULL";
    db.one(sql, (), |row| row.get(0))
}

/// Counts them anew.
pub(super) fn count(db: &Db) -> Result<()> {
    db.note_count(pending_count(db)?)
}

/// Notes those of these answers that have no waiting feedback any more.
pub(super) fn settle(db: &Db, answers: impl IntoIterator<Item = i64>) -> Result<()> {
    for answer in answers {
        if !db.exists(WAITING, [answer])? {
            db.note_waiting(-1);
        }
    }
    Ok(())
}

/// Applies `change`, and notes by how much the number of answers with waiting feedback changes.
pub(super) fn counted<T>(db: &Db, change: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = pending_count(db)?;
    let done = change()?;
    db.note_waiting(pending_count(db)? - before);
    Ok(done)
}

//! Feedback that can't be used for training: set aside with the reason, and listed for review. Never deletes it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::db::Db;
use super::{Ledger, rows, waiting};
use crate::error::Result;
use crate::types::GenerationId;

/// Prefix of the reasons for such feedback.
const UNUSABLE: &str = "set aside: ";

/// A piece of feedback that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct LeftOut {
    /// Its row.
    pub feedback_id: u64,
    /// The answer that it is about.
    pub generation_id: GenerationId,
    /// The user who gave it.
    pub user: Option<String>,
    /// Why it can't be used.
    pub reason: String,
}

impl Ledger {
    /// Sets unusable feedback aside with the reasons; it is kept, but no longer trains.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn leave_out(&self, feedback: &[(Vec<u64>, String)]) -> Result<()> {
        let feedback = feedback.to_vec();
        self.decide(move |db| leave_out(db, &feedback))
    }

    /// Feedback that was set aside as unusable, the newest first, at most `max`.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn left_out(&self, max: usize) -> Result<Vec<LeftOut>> {
        self.read(|db| left_out(db, max))
    }
}

fn left_out(db: &Db, max: usize) -> Result<Vec<LeftOut>> {
    let sql = "SELECT f.id, g.id, f.user, substr(f.left_out, length(?1) + 1) FROM feedback f
               JOIN generations g ON g.seq = f.generation
               WHERE f.teaches = 0 AND substr(f.left_out, 1, length(?1)) = ?1 ORDER BY f.id DESC LIMIT ?2";
    db.all(sql, (UNUSABLE, rows::signed(max as u64)), |row| {
        let (feedback_id, generation_id) = (rows::unsigned(row, 0)?, GenerationId(row.get(1)?));
        Ok(LeftOut { feedback_id, generation_id, user: row.maybe(2)?, reason: row.get(3)? })
    })
}

fn leave_out(db: &Db, feedback: &[(Vec<u64>, String)]) -> Result<()> {
    let mark = "UPDATE feedback SET teaches = 0, left_out = ?1 WHERE id = ?2 AND batch IS NULL AND teaches = 1
                RETURNING generation";
    let mut answers = BTreeSet::new();
    for (ids, reason) in feedback {
        for id in ids {
            // Feedback that was forgotten meanwhile needs no mark.
            let marked = db.first(mark, (format!("{UNUSABLE}{reason}"), rows::signed(*id)), |row| row.get::<i64>(0))?;
            answers.extend(marked);
        }
    }
    waiting::settle(db, answers)
}

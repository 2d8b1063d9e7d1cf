//! Deletes one user's data. Never touches versions or batches, which hold only numbers.

use std::time::Duration;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{schema, waiting};
use crate::error::Result;
use crate::ids::GenerationKind;

/// Numbers of deleted rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct Forgotten {
    /// Answers made for the user, with their prompts, and those to prompts that repeat them.
    pub generations: u64,
    /// Feedback: the user's own, and everyone's on those answers.
    pub feedback: u64,
    /// Preferences: the user's own, and everyone's that involve those answers.
    pub preferences: u64,
    /// Records of samples made of those answers.
    pub samples: u64,
    /// Whether no copy is left on disk. `false` while another program is reading the ledger, whose log, which held the
    /// data too, is emptied when that ends.
    pub overwritten: bool,
}

/// Rows of the answers for user ?1 and of those whose prompts repeat the user's words, with rollouts (ids from ?2 on)
/// to the user's prompts: those of earlier builds don't name the prompt's user.
pub(super) const THEIRS: &str = "SELECT seq FROM generations WHERE user = ?1
     UNION SELECT generation FROM words_of WHERE user = ?1
     UNION SELECT seq FROM generations WHERE id >= ?2 AND id < ?2 || x'7f' AND user IS NULL
     AND prompt IN (SELECT prompt FROM generations WHERE user = ?1)";

/// The second parameter of [`THEIRS`].
pub(super) fn rollouts() -> &'static str {
    GenerationKind::Rollout.prefix()
}

/// Deletes, and also returns how many answers no longer wait for training.
pub(super) fn forget(db: &Connection, user: &str) -> Result<(Forgotten, u64)> {
    let before = waiting::pending_count(db)?;
    db.execute_batch("CREATE TEMP TABLE IF NOT EXISTS theirs (seq INTEGER PRIMARY KEY); DELETE FROM temp.theirs")?;
    db.prepare(&format!("INSERT INTO temp.theirs {THEIRS}"))?.execute((user, rollouts()))?;
    let delete = |sql: &str| -> Result<u64> { Ok(db.prepare(sql)?.execute([user])? as u64) };
    let delete_theirs = |sql: &str| -> Result<u64> { Ok(db.prepare(sql)?.execute([])? as u64) };
    const LISTED: &str = "(SELECT seq FROM temp.theirs)";
    // A correction of another user's answer left a score there, but no text.
    let forgotten = Forgotten {
        samples: delete_theirs(&format!("DELETE FROM samples WHERE generation IN {LISTED}"))?,
        preferences: delete(&format!(
            "DELETE FROM preferences WHERE user = ?1 OR chosen IN {LISTED} OR rejected IN {LISTED}"
        ))?,
        feedback: delete(&format!("DELETE FROM feedback WHERE user = ?1 OR generation IN {LISTED}"))?,
        generations: delete_theirs(&format!("DELETE FROM generations WHERE seq IN {LISTED}"))?,
        overwritten: false,
    };
    delete("DELETE FROM agreement WHERE user = ?1")?;
    delete("DELETE FROM reviews WHERE user = ?1")?;
    db.execute_batch("DELETE FROM temp.theirs")?;
    Ok((forgotten, before.saturating_sub(waiting::pending_count(db)?)))
}

/// Folds the write-ahead log into the file and empties it, since it held the data too. `false` if another program keeps
/// reading the ledger for longer than `patience`.
pub(super) fn fold_log(db: &Connection, patience: Duration) -> Result<bool> {
    db.busy_timeout(patience)?;
    let busy = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    db.busy_timeout(schema::PATIENCE)?;
    match busy {
        Ok(busy) => Ok(busy == 0),
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

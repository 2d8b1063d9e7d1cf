//! Deletes what one user said and was told. Never touches versions or batches: they hold numbers alone.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::waiting;
use crate::error::{Error, Result};

/// How much was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Answers made for the user, with their prompts.
    pub generations: u64,
    /// Pieces of feedback: the user's own, and anyone's on those answers.
    pub feedback: u64,
    /// Preferences: the user's own, and anyone's with one of those answers.
    pub preferences: u64,
    /// Records of samples made of those answers.
    pub samples: u64,
}

/// Deletes, and returns also how many answers have nothing waiting any more.
pub(super) fn forget(db: &Connection, user: &str) -> Result<(Forgotten, u64)> {
    let before = waiting::pending_count(db)?;
    let delete = |sql: &str| -> Result<u64> { Ok(db.prepare(sql)?.execute([user])? as u64) };
    const THEIRS: &str = "(SELECT seq FROM generations WHERE user = ?1)";
    // What was taught by a correction of theirs of another's answer is on record there, as a score: no word of it.
    let forgotten = Forgotten {
        samples: delete(&format!("DELETE FROM samples WHERE generation IN {THEIRS}"))?,
        preferences: delete(&format!(
            "DELETE FROM preferences WHERE user = ?1 OR chosen IN {THEIRS} OR rejected IN {THEIRS}"
        ))?,
        feedback: delete(&format!("DELETE FROM feedback WHERE user = ?1 OR generation IN {THEIRS}"))?,
        generations: delete("DELETE FROM generations WHERE user = ?1")?,
    };
    delete("DELETE FROM agreement WHERE user = ?1")?;
    delete("DELETE FROM reviews WHERE user = ?1")?;
    Ok((forgotten, before.saturating_sub(waiting::pending_count(db)?)))
}

/// Folds the write-ahead log into the file and empties it: it held the words as well.
pub(super) fn fold_log(db: &Connection) -> Result<()> {
    let busy: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    match busy {
        0 => Ok(()),
        _ => Err(Error::io("it is deleted, but another program reads the ledger, so its log could not be emptied")),
    }
}

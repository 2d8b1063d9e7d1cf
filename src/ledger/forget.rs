//! Deletes one user's data. Never touches versions or batches, which hold only numbers.

use serde::{Deserialize, Serialize};

use super::db::{Db, list};
use super::waiting;
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
    /// data too, is emptied when that ends; and always in Postgres, which overwrites deleted rows in its own time.
    pub overwritten: bool,
}

/// Rows of the answers for user ?1 and of those whose prompts repeat the user's words, with rollouts (ids from ?2 on)
/// to the user's prompts: those of earlier builds don't name the prompt's user.
pub(super) const THEIRS: &str = "SELECT seq FROM generations WHERE user = ?1
     UNION SELECT generation FROM words_of WHERE user = ?1
     UNION SELECT seq FROM generations WHERE id >= ?2 AND id < ?3 AND user IS NULL
     AND prompt IN (SELECT prompt FROM generations WHERE user = ?1)";

/// The second and the third value of [`THEIRS`]: the first id of a rollout, and what is after the last.
pub(super) fn rollouts() -> (&'static str, String) {
    let prefix = GenerationKind::Rollout.prefix();
    (prefix, format!("{prefix}\u{7f}"))
}

/// Deletes a user's data.
pub(super) fn forget(db: &Db, user: &str) -> Result<Forgotten> {
    waiting::counted(db, || {
        let (first, end) = rollouts();
        let answers = db.all(THEIRS, (user, first, end), |row| row.get::<i64>(0))?;
        let answers = list(&answers);
        const LISTED: &str = "(SELECT value FROM json_each(?1))";
        let delete = |what: &str| db.execute(&format!("DELETE FROM {what}"), (&answers, user));
        let delete_theirs = |from: &str| db.execute(&format!("DELETE FROM {from} IN {LISTED}"), [&answers]);
        // A correction of another user's answer left a score there, but no text.
        let forgotten = Forgotten {
            samples: delete_theirs("samples WHERE generation")?,
            preferences: delete(&format!("preferences WHERE user = ?2 OR chosen IN {LISTED} OR rejected IN {LISTED}"))?,
            feedback: delete(&format!("feedback WHERE user = ?2 OR generation IN {LISTED}"))?,
            generations: delete_theirs("generations WHERE seq")?,
            overwritten: false,
        };
        db.execute("DELETE FROM agreement WHERE user = ?1", [user])?;
        db.execute("DELETE FROM reviews WHERE user = ?1", [user])?;
        Ok(forgotten)
    })
}

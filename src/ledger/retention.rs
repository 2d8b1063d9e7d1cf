//! Deletes what is older than the settings keep. Of what has taught the numbers stay: which version, what it was worth,
//! how it was rated. Never looks at a clock.

use serde::{Deserialize, Serialize};

use super::db::{Db, list};
use super::{Ledger, rows, waiting};
use crate::error::Result;
use crate::types::UnixMillis;

/// How much was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// Answers with their prompts, those included of which the numbers stay.
    pub generations: u64,
    /// Of those, answers that had taught.
    pub taught: u64,
    /// Pieces of feedback, but for ratings and signals that have taught.
    pub feedback: u64,
    /// Preferences.
    pub preferences: u64,
}

impl Ledger {
    /// Deletes what was asked and answered before a moment, with what was said of it: at most `most` answers, the
    /// oldest first. They are overwritten on disk, as soon as no other program reads the ledger. Of answers that have
    /// taught a row without words stays, with their samples and with the ratings and signals that were used.
    ///
    /// Their order on record counts beside their times, which a clock that was set wrongly gave some of them: what was
    /// recorded after an answer from between `before` and `now` stays, however old it says it is, and what says that it
    /// is from after `now` goes with what was recorded after it.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn expire(&self, before: UnixMillis, now: UnixMillis, most: usize) -> Result<Expired> {
        // Found here, as it reads all that is young, and others' writes wait for this one.
        let young = self.read(|db| first_young(db, before, now))?;
        let work = self.deciding(move |db| expire(db, before, now, young, most));
        self.writer.call_and_overwrite(work, |_, _| ())
    }
}

/// The row of the first answer from between two moments.
fn first_young(db: &Db, before: UnixMillis, now: UnixMillis) -> Result<i64> {
    let sql = "SELECT min(seq) FROM generations INDEXED BY generations_with_words
               WHERE length(prompt) > 0 AND created >= ?1 AND created <= ?2";
    let first: Option<i64> = db.one(sql, (rows::signed(before), rows::signed(now)), |row| row.maybe(0))?;
    Ok(first.unwrap_or(i64::MAX))
}

/// Deletes what was recorded before the row `young`.
fn expire(db: &Db, before: UnixMillis, now: UnixMillis, young: i64, most: usize) -> Result<Expired> {
    let (before, now) = (rows::signed(before), rows::signed(now));
    let most_of = |taken: usize| rows::signed((most - taken) as u64);
    // Those of the future first: what they go by is deleted next.
    let of_the_future = "SELECT seq FROM generations INDEXED BY generations_with_words
                         WHERE length(prompt) > 0 AND created > ?2 AND seq <
                             (SELECT max(seq) FROM generations INDEXED BY generations_with_words
                              WHERE length(prompt) > 0 AND created < ?1 AND seq < ?3)
                         LIMIT ?4";
    let mut old = db.all(of_the_future, (before, now, young, most_of(0)), |row| row.get::<i64>(0))?;
    let by_age = "SELECT seq FROM generations INDEXED BY generations_with_words
                  WHERE length(prompt) > 0 AND created < ?1 AND seq < ?2 ORDER BY created LIMIT ?3";
    old.extend(db.all(by_age, (before, young, most_of(old.len())), |row| row.get::<i64>(0))?);
    if old.is_empty() {
        return Ok(Expired::default());
    }
    let generations = old.len() as u64;
    waiting::counted(db, || {
        let old = list(&old);
        const OLD: &str = "(SELECT value FROM json_each(?1))";
        let change = |sql: &str| db.execute(sql, [&old]);
        let preferences = change(&format!("DELETE FROM preferences WHERE chosen IN {OLD} OR rejected IN {OLD}"))?;
        let feedback = change(&format!(
            "DELETE FROM feedback WHERE generation IN {OLD}
             AND (batch IS NULL OR rating IS NULL AND signal IS NULL
                  OR NOT EXISTS (SELECT 1 FROM samples s WHERE s.generation = feedback.generation))"
        ))?;
        change(&format!("UPDATE feedback SET user = NULL, comment = NULL, content = NULL WHERE generation IN {OLD}"))?;
        let blank = format!(
            "UPDATE generations SET prompt = ?2, response = ?2, text = '', sampling = '{{}}', user = NULL
             WHERE seq IN (SELECT generation FROM samples) AND seq IN {OLD}"
        );
        let taught = db.execute(&blank, (&old, Vec::new()))?;
        change(&format!("DELETE FROM generations WHERE seq IN {OLD} AND length(prompt) > 0"))?;
        Ok(Expired { generations, taught, feedback, preferences })
    })
}

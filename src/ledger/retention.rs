//! Deletes what is older than the settings keep. Of what has taught the numbers stay: which version, what it was worth,
//! how it was rated. Never looks at a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

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
        let (gone, pending) = (Arc::new(AtomicU64::new(0)), self.pending.clone());
        let settled = gone.clone();
        let work = move |db: &Connection| {
            let (expired, answers) = expire(db, before, now, young, most)?;
            gone.store(answers, Ordering::Relaxed);
            Ok(expired)
        };
        self.writer.call_and_fold(work, move |_: &mut Expired, _| {
            pending.fetch_sub(settled.load(Ordering::Relaxed), Ordering::Relaxed);
        })
    }
}

/// The row of the first answer from between two moments.
fn first_young(db: &Connection, before: UnixMillis, now: UnixMillis) -> Result<i64> {
    let sql = "SELECT min(seq) FROM generations INDEXED BY generations_with_words
               WHERE length(prompt) > 0 AND created >= ?1 AND created <= ?2";
    let first: Option<i64> = db.query_row(sql, (rows::signed(before), rows::signed(now)), |row| row.get(0))?;
    Ok(first.unwrap_or(i64::MAX))
}

/// Deletes what was recorded before the row `young`, and returns also how many answers have nothing waiting any more.
fn expire(db: &Connection, before: UnixMillis, now: UnixMillis, young: i64, most: usize) -> Result<(Expired, u64)> {
    let waited = waiting::pending_count(db)?;
    db.execute_batch("CREATE TEMP TABLE IF NOT EXISTS old (seq INTEGER PRIMARY KEY); DELETE FROM temp.old")?;
    let (before, now) = (rows::signed(before), rows::signed(now));
    // Those of the future first: what they go by is deleted next.
    let mut generations = db
        .prepare_cached(
            "INSERT INTO temp.old SELECT seq FROM generations INDEXED BY generations_with_words
             WHERE length(prompt) > 0 AND created > ?2 AND seq <
                 (SELECT max(seq) FROM generations INDEXED BY generations_with_words
                  WHERE length(prompt) > 0 AND created < ?1 AND seq < ?3)
             LIMIT ?4",
        )?
        .execute((before, now, young, rows::signed(most as u64)))?;
    generations += db
        .prepare_cached(
            "INSERT INTO temp.old SELECT seq FROM generations INDEXED BY generations_with_words
             WHERE length(prompt) > 0 AND created < ?1 AND seq < ?2 ORDER BY created LIMIT ?3",
        )?
        .execute((before, young, rows::signed((most - generations) as u64)))?;
    let generations = generations as u64;
    if generations == 0 {
        return Ok((Expired::default(), 0));
    }
    let change = |sql: &str| -> Result<u64> { Ok(db.prepare_cached(sql)?.execute([])? as u64) };
    let preferences = change(
        "DELETE FROM preferences WHERE chosen IN (SELECT seq FROM temp.old) OR rejected IN (SELECT seq FROM temp.old)",
    )?;
    let feedback = change(
        "DELETE FROM feedback WHERE generation IN (SELECT seq FROM temp.old)
         AND (batch IS NULL OR rating IS NULL AND signal IS NULL
              OR NOT EXISTS (SELECT 1 FROM samples s WHERE s.generation = feedback.generation))",
    )?;
    change(
        "UPDATE feedback SET user = NULL, comment = NULL, content = NULL
         WHERE generation IN (SELECT seq FROM temp.old)",
    )?;
    let taught = change(
        "UPDATE generations SET prompt = x'', response = x'', text = '', sampling = '{}', user = NULL
         WHERE seq IN (SELECT generation FROM samples) AND seq IN (SELECT seq FROM temp.old)",
    )?;
    change("DELETE FROM generations WHERE seq IN (SELECT seq FROM temp.old) AND length(prompt) > 0")?;
    change("DELETE FROM temp.old")?;
    let settled = waited.saturating_sub(waiting::pending_count(db)?);
    Ok((Expired { generations, taught, feedback, preferences }, settled))
}

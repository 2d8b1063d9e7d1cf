//! Checks and writes rows: one function per kind of row, inside the writer's transaction. Never reads for a caller,
//! never commits.

use std::collections::BTreeSet;

use super::db::Db;
use super::{MAX_SIGNAL, MAX_TEXT, MAX_USER, META_MODEL_NAME, META_MODEL_SHA256, rows, samples, waiting};
use crate::error::{Error, Result};
use crate::system::unix_millis;
use crate::types::*;

/// The batch that a version was trained on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainedBatch {
    /// Feedback that it used up.
    pub used: Vec<u64>,
    /// Its samples.
    pub samples: Vec<SampleRecord>,
    /// What it was trained with, for a replay.
    pub settings: Option<serde_json::Value>,
    /// Batches since the version before that only set the mean; they belong to the version too.
    pub noted: Vec<u64>,
}

impl TrainedBatch {
    /// Feedback that was used up, and the samples that were made of it.
    pub fn of(used: &[u64], samples: &[SampleRecord]) -> Self {
        Self { used: used.to_vec(), samples: samples.to_vec(), ..Self::default() }
    }
}

/// Records an answer whose prompt repeats the words of `origin`, and whose words those are. `false`, and nothing is
/// recorded, if that is not on record any more.
pub(super) fn record_from(db: &Db, g: &Generation, origin: &GenerationId) -> Result<bool> {
    let Some(origin) = rows::answer(db, origin)? else { return Ok(false) };
    record(db, g)?;
    let theirs = "INSERT INTO words_of SELECT own.seq, w.user FROM generations own CROSS JOIN
                  (SELECT user FROM generations WHERE seq = ?2 UNION SELECT user FROM words_of WHERE generation = ?2) w
                  WHERE own.id = ?1 AND w.user IS NOT NULL AND w.user IS DISTINCT FROM own.user";
    db.execute(theirs, (&g.id.0, origin.row))?;
    Ok(true)
}

pub(super) fn record(db: &Db, g: &Generation) -> Result<()> {
    let (id, s) = (&g.id, &g.sampling);
    if id.0.is_empty() || id.0.len() > GenerationId::MAX_BYTES {
        let (bytes, most) = (id.0.len(), GenerationId::MAX_BYTES);
        return Err(Error::arg(format!("the generation's id has {bytes} bytes, expected 1 to {most}")));
    }
    let numbers = [s.temperature, s.top_p, s.min_p, s.repeat_penalty, s.frequency_penalty, s.presence_penalty];
    if !numbers.iter().all(|x| x.is_finite()) {
        return Err(Error::arg(format!("generation {id} has sampling settings that are not finite")));
    }
    if rows::answer(db, id)?.is_some() {
        return Err(Error::arg(format!("generation {id} is on record already")));
    }
    check_version(db, g.policy_version)?;
    rows::insert_generation(db, g)
}

pub(super) fn check_feedback(f: &NewFeedback) -> Result<()> {
    match &f.signal {
        Signal::Rating(rating) if !RATINGS.contains(rating) => {
            return Err(Error::arg(format!("the rating is {rating}, expected a number from -1 to 1")));
        }
        Signal::Correction(text) if text.is_empty() => return Err(Error::arg("the correction is empty")),
        Signal::Correction(text) => check_length("the correction", Some(text), MAX_TEXT)?,
        Signal::Named(name) if name.is_empty() => return Err(Error::arg("the signal's name is empty")),
        Signal::Named(name) => check_length("the signal's name", Some(name), MAX_SIGNAL)?,
        Signal::Comment if f.comment.is_none() => return Err(Error::arg("the feedback says nothing")),
        Signal::Rating(_) | Signal::Comment => {}
    }
    check_length("the comment", f.comment.as_deref(), MAX_TEXT)?;
    check_length("the user's name", f.user.as_deref(), MAX_USER)
}

pub(super) fn check_length(what: &str, text: Option<&str>, limit: usize) -> Result<()> {
    match text.map_or(0, str::len) {
        length if length > limit => Err(Error::arg(format!("{what} has {length} bytes, expected at most {limit}"))),
        _ => Ok(()),
    }
}

fn known(db: &Db, id: &GenerationId) -> Result<rows::Answer> {
    rows::answer(db, id)?.ok_or_else(|| unknown(id))
}

pub(super) fn unknown(id: &GenerationId) -> Error {
    // Truncated, since the text comes from a client.
    Error::unknown_id(format!("generation {:.64} is not on record", id.0))
}

/// Returns the row number of a preference, and whether it is new.
pub(super) fn insert_preference(
    db: &Db,
    chosen: &GenerationId,
    rejected: &GenerationId,
    user: Option<&str>,
) -> Result<(u64, bool)> {
    let (chosen, rejected) = (known(db, chosen)?.row, known(db, rejected)?.row);
    let said = "SELECT id FROM preferences WHERE chosen = ?1 AND rejected = ?2 AND user IS NOT DISTINCT FROM ?3";
    if let Some(id) = db.first(said, (chosen, rejected, user), |row| rows::unsigned(row, 0))? {
        return Ok((id, false));
    }
    let insert = "INSERT INTO preferences (chosen, rejected, user, created) VALUES (?1, ?2, ?3, ?4) RETURNING id";
    let now = rows::signed(unix_millis());
    Ok((db.one(insert, (chosen, rejected, user, now), |row| rows::unsigned(row, 0))?, true))
}

pub(super) fn insert_version(db: &Db, v: &VersionInfo) -> Result<()> {
    let newest = rows::newest(db)?;
    if v.version <= newest {
        return Err(Error::arg(format!("version {} is not new, expected one above {newest}", v.version)));
    }
    if let Some(parent) = v.parent {
        check_version(db, parent)?;
    }
    let metrics = serde_json::to_string(&v.metrics).map_err(|e| Error::arg(format!("metrics: {e}")))?;
    let sql = "INSERT INTO versions (version, parent, created, metrics) VALUES (?1, ?2, ?3, ?4)";
    let parent = v.parent.map(|p| rows::signed(p.0));
    db.execute(sql, (rows::signed(v.version.0), parent, rows::signed(v.created), metrics))?;
    db.note_versions();
    Ok(())
}

/// Records the batch of a version; none if it had neither feedback nor samples.
pub(super) fn trained(db: &Db, version: PolicyVersion, batch: &TrainedBatch) -> Result<()> {
    let TrainedBatch { used, samples, settings, noted } = batch;
    if used.is_empty() && samples.is_empty() {
        return Ok(());
    }
    let row = use_up(db, used, Some(version), None)?;
    samples::insert_samples(db, rows::signed(row), samples)?;
    let settings = settings.as_ref().map(serde_json::Value::to_string);
    db.execute("UPDATE batches SET settings = ?2 WHERE id = ?1", (rows::signed(row), settings))?;
    let give = "UPDATE batches SET version = ?2, reason = NULL WHERE id = ?1 AND version IS NULL";
    for batch in noted {
        db.execute(give, (rows::signed(*batch), rows::signed(version.0)))?;
    }
    Ok(())
}

/// Records a batch, marks its feedback, and returns its row.
pub(super) fn use_up(db: &Db, used: &[u64], version: Option<PolicyVersion>, reason: Option<&str>) -> Result<u64> {
    let insert = "INSERT INTO batches (version, reason, created) VALUES (?1, ?2, ?3) RETURNING id";
    let values = (version.map(|v| rows::signed(v.0)), reason, rows::signed(unix_millis()));
    let batch: i64 = db.one(insert, values, |row| row.get(0))?;
    let mark = "UPDATE feedback SET batch = ?1 WHERE id = ?2 AND batch IS NULL AND teaches = 1 RETURNING generation";
    let mut answers = BTreeSet::new();
    for id in used {
        let answer: Option<i64> = db.first(mark, (batch, rows::signed(*id)), |row| row.get(0))?;
        let Some(answer) = answer else { return Err(missing(db, *id)?) };
        answers.insert(answer);
    }
    waiting::settle(db, answers)?;
    Ok(batch.cast_unsigned())
}

/// Why feedback can't be used up: it was deleted or rejected meanwhile, or never could be used.
fn missing(db: &Db, id: u64) -> Result<Error> {
    let sql = "SELECT teaches, batch IS NULL FROM feedback WHERE id = ?1";
    let found: Option<(bool, bool)> = db.first(sql, [rows::signed(id)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let deleted = found.is_none() && id > 0 && rows::signed(id) <= db.last_feedback()?;
    if deleted || found == Some((false, true)) {
        return Ok(Error::busy(format!(
            "feedback {id} was forgotten or rejected while it was trained on; the step is made again without it"
        )));
    }
    Ok(Error::arg(format!("feedback {id} is not a rating that waits: unknown, of another kind, or used")))
}

pub(super) fn activate(db: &Db, v: PolicyVersion) -> Result<()> {
    check_version(db, v)?;
    if rows::active(db)? != v {
        let sql = "INSERT INTO activations (version, created) VALUES (?1, ?2)";
        db.execute(sql, (rows::signed(v.0), rows::signed(unix_millis())))?;
        db.note_versions();
    }
    Ok(())
}

fn check_version(db: &Db, v: PolicyVersion) -> Result<()> {
    let found = db.exists("SELECT 1 FROM versions WHERE version = ?1", [rows::signed(v.0)])?;
    if found { Ok(()) } else { Err(Error::unknown_id(format!("version {v} is not on record"))) }
}

pub(super) fn bind(db: &Db, sha256: &str, name: &str) -> Result<()> {
    let Some(bound) = rows::meta(db, META_MODEL_SHA256)? else {
        let insert = "INSERT INTO meta (key, value) VALUES (?1, ?2)";
        db.execute(insert, (META_MODEL_SHA256, sha256))?;
        db.execute(insert, (META_MODEL_NAME, name))?;
        return Ok(());
    };
    if bound == sha256 {
        return Ok(());
    }
    let owner = rows::meta(db, META_MODEL_NAME)?.unwrap_or_default();
    Err(Error::model(format!(
        "the data folder belongs to the base model {owner} (sha256 {bound:.12}), not to {name} (sha256 {sha256:.12})"
    )))
}

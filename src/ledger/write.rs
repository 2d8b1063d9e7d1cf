//! Checks and writes rows: one function per kind of row, inside the writer's transaction. Never reads for a caller,
//! never commits.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};

use super::limits::{self, Rules};
use super::{
    MAX_SAID, MAX_SAID_TEXT, MAX_SIGNAL, MAX_TEXT, MAX_USER, META_MODEL_NAME, META_MODEL_SHA256, rows, samples, waiting,
};
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
pub(super) fn record_from(db: &Connection, g: &Generation, origin: &GenerationId) -> Result<bool> {
    let Some(origin) = rows::answer(db, origin)? else { return Ok(false) };
    record(db, g)?;
    db.prepare_cached(
        "INSERT INTO words_of SELECT own.seq, w.user FROM generations own JOIN
         (SELECT user FROM generations WHERE seq = ?2 UNION SELECT user FROM words_of WHERE generation = ?2) w
         WHERE own.id = ?1 AND w.user IS NOT NULL AND w.user IS NOT own.user",
    )?
    .execute((&g.id.0, origin.row))?;
    Ok(true)
}

pub(super) fn record(db: &Connection, g: &Generation) -> Result<()> {
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

fn known(db: &Connection, id: &GenerationId) -> Result<rows::Answer> {
    // Truncated, since the text comes from a client.
    rows::answer(db, id)?.ok_or_else(|| Error::unknown_id(format!("generation {:.64} is not on record", id.0)))
}

/// Limits the feedback on one answer, since it is read all at once.
fn check_said(db: &Connection, f: &NewFeedback, answer: i64) -> Result<()> {
    let (count, text): (i64, i64) = db
        .prepare_cached(
            "SELECT count(*),
             coalesce(sum(coalesce(octet_length(comment), 0) + coalesce(octet_length(correction), 0)), 0)
             FROM feedback INDEXED BY feedback_of_generation WHERE generation = ?1",
        )?
        .query_row([answer], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (_, correction, _) = rows::parts(&f.signal);
    let more = f.comment.as_ref().map_or(0, String::len) + correction.map_or(0, str::len);
    if count.cast_unsigned() >= MAX_SAID {
        return Err(Error::arg(format!("the answer has {count} pieces of feedback, expected at most {MAX_SAID}")));
    }
    if more > 0 && text.cast_unsigned() + more as u64 > MAX_SAID_TEXT {
        return Err(Error::arg(format!(
            "comments and corrections on the answer have {text} bytes, and {more} more are over {MAX_SAID_TEXT}"
        )));
    }
    Ok(())
}

/// Returns the receipt, and whether the answer has feedback waiting now but had none before.
pub(super) fn insert_feedback(db: &Connection, f: &NewFeedback, rules: &Rules) -> Result<(FeedbackReceipt, bool)> {
    let answer = known(db, &f.generation_id)?;
    check_said(db, f, answer.row)?;
    let (rating, correction, signal) = rows::parts(&f.signal);
    let rated = db
        .prepare_cached("SELECT 1 FROM feedback WHERE generation = ?1 AND user IS ?2 AND rating IS NOT NULL LIMIT 1")?
        .exists((answer.row, &f.user))?;
    let waiting = db.prepare_cached(waiting::WAITING)?.exists([answer.row])?;
    let may_teach = !answer.empty
        && match &f.signal {
            Signal::Rating(_) => true,
            Signal::Named(name) => rules.signals.contains(name),
            Signal::Correction(_) => rules.corrections,
            Signal::Comment => false,
        };
    let left_out = if may_teach { limits::left_out(db, rules, f, answer.content)? } else { None };
    if rules.flag_after > 0 {
        limits::compare(db, f, answer.content)?;
    }
    let teaches = may_teach && left_out.is_none();
    let mut insert = db.prepare_cached(
        "INSERT INTO feedback
         (generation, rating, correction, signal, teaches, left_out, user, comment, created, content, identity)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, lower(hex(randomblob(16))))",
    )?;
    let now = rows::signed(unix_millis());
    insert.execute((
        answer.row,
        rating,
        correction,
        signal,
        teaches,
        left_out,
        &f.user,
        &f.comment,
        now,
        answer.content,
    ))?;
    let receipt = FeedbackReceipt {
        feedback_id: db.last_insert_rowid().cast_unsigned(),
        generation_id: f.generation_id.clone(),
        policy_version: answer.policy_version,
        replaces_earlier: rating.is_some() && rated,
        left_out: left_out.map(str::to_owned),
    };
    Ok((receipt, teaches && !waiting))
}

/// Returns the row number of a preference, and whether it is new.
pub(super) fn insert_preference(
    db: &Connection,
    chosen: &GenerationId,
    rejected: &GenerationId,
    user: Option<&str>,
) -> Result<(u64, bool)> {
    let (chosen, rejected) = (known(db, chosen)?.row, known(db, rejected)?.row);
    let said = "SELECT id FROM preferences WHERE chosen = ?1 AND rejected = ?2 AND user IS ?3";
    let said: Option<i64> =
        db.prepare_cached(said)?.query_row((chosen, rejected, user), |row| row.get(0)).optional()?;
    if let Some(id) = said {
        return Ok((id.cast_unsigned(), false));
    }
    db.prepare_cached("INSERT INTO preferences (chosen, rejected, user, created) VALUES (?1, ?2, ?3, ?4)")?
        .execute((chosen, rejected, user, rows::signed(unix_millis())))?;
    Ok((db.last_insert_rowid().cast_unsigned(), true))
}

pub(super) fn insert_version(db: &Connection, v: &VersionInfo) -> Result<()> {
    let newest = rows::newest(db)?;
    if v.version <= newest {
        return Err(Error::arg(format!("version {} is not new, expected one above {newest}", v.version)));
    }
    if let Some(parent) = v.parent {
        check_version(db, parent)?;
    }
    let metrics = serde_json::to_string(&v.metrics).map_err(|e| Error::arg(format!("metrics: {e}")))?;
    db.prepare_cached("INSERT INTO versions (version, parent, created, metrics) VALUES (?1, ?2, ?3, ?4)")?
        .execute((rows::signed(v.version.0), v.parent.map(|p| rows::signed(p.0)), rows::signed(v.created), metrics))?;
    Ok(())
}

/// Records the batch of a version; none if it had neither feedback nor samples. Returns how many answers no longer have
/// feedback waiting.
pub(super) fn trained(db: &Connection, version: PolicyVersion, batch: &TrainedBatch) -> Result<u64> {
    let TrainedBatch { used, samples, settings, noted } = batch;
    if used.is_empty() && samples.is_empty() {
        return Ok(0);
    }
    let (row, settled) = use_up(db, used, Some(version), None)?;
    samples::insert_samples(db, rows::signed(row), samples)?;
    let settings = settings.as_ref().map(serde_json::Value::to_string);
    db.prepare_cached("UPDATE batches SET settings = ?2 WHERE id = ?1")?.execute((rows::signed(row), settings))?;
    for batch in noted {
        db.prepare_cached("UPDATE batches SET version = ?2, reason = NULL WHERE id = ?1 AND version IS NULL")?
            .execute((rows::signed(*batch), rows::signed(version.0)))?;
    }
    Ok(settled)
}

/// Records a batch and marks its feedback. Returns its row, and how many answers no longer have feedback waiting.
pub(super) fn use_up(
    db: &Connection,
    used: &[u64],
    version: Option<PolicyVersion>,
    reason: Option<&str>,
) -> Result<(u64, u64)> {
    db.prepare_cached("INSERT INTO batches (version, reason, created) VALUES (?1, ?2, ?3)")?.execute((
        version.map(|v| rows::signed(v.0)),
        reason,
        rows::signed(unix_millis()),
    ))?;
    let batch = db.last_insert_rowid();
    let mut mark = db.prepare_cached(
        "UPDATE feedback SET batch = ?1 WHERE id = ?2 AND batch IS NULL AND teaches = 1 RETURNING generation",
    )?;
    let mut answers = BTreeSet::new();
    for id in used {
        let answer: Option<i64> = mark.query_row((batch, rows::signed(*id)), |row| row.get(0)).optional()?;
        let Some(answer) = answer else { return Err(missing(db, *id)?) };
        answers.insert(answer);
    }
    Ok((batch.cast_unsigned(), waiting::settled(db, answers)?))
}

/// Why feedback can't be used up: it was deleted or rejected meanwhile, or never could be used.
fn missing(db: &Connection, id: u64) -> Result<Error> {
    let mut select = db.prepare_cached("SELECT teaches, batch IS NULL FROM feedback WHERE id = ?1")?;
    let found: Option<(bool, bool)> =
        select.query_row([rows::signed(id)], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let newest: i64 =
        db.query_row("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'feedback'", [], |row| {
            row.get(0)
        })?;
    let deleted = found.is_none() && rows::signed(id) <= newest && id > 0;
    if deleted || found == Some((false, true)) {
        return Ok(Error::busy(format!(
            "feedback {id} was forgotten or rejected while it was trained on; the step is made again without it"
        )));
    }
    Ok(Error::arg(format!("feedback {id} is not a rating that waits: unknown, of another kind, or used")))
}

pub(super) fn activate(db: &Connection, v: PolicyVersion) -> Result<()> {
    check_version(db, v)?;
    if rows::active(db)? != v {
        db.prepare_cached("INSERT INTO activations (version, created) VALUES (?1, ?2)")?
            .execute((rows::signed(v.0), rows::signed(unix_millis())))?;
    }
    Ok(())
}

fn check_version(db: &Connection, v: PolicyVersion) -> Result<()> {
    let found = db.prepare_cached("SELECT 1 FROM versions WHERE version = ?1")?.exists([rows::signed(v.0)])?;
    if found { Ok(()) } else { Err(Error::unknown_id(format!("version {v} is not on record"))) }
}

pub(super) fn bind(db: &Connection, sha256: &str, name: &str) -> Result<()> {
    let Some(bound) = rows::meta(db, META_MODEL_SHA256)? else {
        let mut insert = db.prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2)")?;
        insert.execute((META_MODEL_SHA256, sha256))?;
        insert.execute((META_MODEL_NAME, name))?;
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

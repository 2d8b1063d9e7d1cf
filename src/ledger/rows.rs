//! Between rows and `types` values. Never decides what may be written.

use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::types::*;

/// A piece of feedback as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredFeedback {
    /// Row number; grows with time.
    pub feedback_id: u64,
    /// What was said.
    pub signal: Signal,
    /// Who said it.
    pub user: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// When it came in.
    pub created: UnixMillis,
    /// What used it up; `None` while it waits (or is of a kind that is only kept).
    pub used_by: Option<Use>,
}

/// What a rating was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// It taught this version.
    Version(PolicyVersion),
    /// Its batch made no version, for this reason.
    Skipped(String),
}

/// Whether an answer has a rating not yet used.
pub(super) const WAITING: &str = "SELECT 1 FROM feedback INDEXED BY feedback_unused
    WHERE generation = ?1 AND teaches = 1 AND batch IS NULL LIMIT 1";

/// What the writer needs to know of an answer.
pub(super) struct Answer {
    pub(super) row: i64,
    pub(super) policy_version: PolicyVersion,
    pub(super) empty: bool,
}

/// SQLite's integers are signed; nothing real is above.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| damaged(format!("{value} where a count is expected")))
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::io(format!("the ledger is damaged: {what}"))
}

fn to_blob(tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().flat_map(|t| t.to_le_bytes()).collect()
}

fn from_blob(blob: &[u8]) -> Result<Vec<TokenId>> {
    let (tokens, rest) = blob.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(damaged(format!("{} bytes of tokens, expected a multiple of 4", blob.len())));
    }
    Ok(tokens.iter().map(|t| TokenId::from_le_bytes(*t)).collect())
}

pub(super) fn insert_generation(db: &Connection, g: &Generation) -> Result<()> {
    let sampling = serde_json::to_string(&g.sampling).map_err(|e| Error::arg(format!("sampling settings: {e}")))?;
    let mut insert = db.prepare_cached(
        "INSERT INTO generations (id, policy_version, prompt, response, text, sampling, finish, user, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    insert.execute((
        &g.id.0,
        signed(g.policy_version.0),
        to_blob(&g.prompt),
        to_blob(&g.response),
        &g.text,
        sampling,
        g.finish.as_str(),
        &g.user,
        signed(g.created),
    ))?;
    Ok(())
}

pub(super) enum Which<'a> {
    Id(&'a GenerationId),
    Row(i64),
}

pub(super) fn generation(db: &Connection, which: Which<'_>) -> Result<Option<Generation>> {
    const COLUMNS: &str = "id, policy_version, prompt, response, text, sampling, finish, user, created";
    let condition = if matches!(which, Which::Id(_)) { "id" } else { "seq" };
    let mut select = db.prepare_cached(&format!("SELECT {COLUMNS} FROM generations WHERE {condition} = ?1"))?;
    let mut rows = match which {
        Which::Id(id) => select.query([&id.0])?,
        Which::Row(row) => select.query([row])?,
    };
    let Some(row) = rows.next()? else { return Ok(None) };
    let finish: String = row.get(6)?;
    let finish = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]
        .into_iter()
        .find(|f| f.as_str() == finish)
        .ok_or_else(|| damaged(format!("unknown finish reason {finish:?}")))?;
    let sampling: String = row.get(5)?;
    Ok(Some(Generation {
        id: GenerationId(row.get(0)?),
        policy_version: PolicyVersion(unsigned(row, 1)?),
        prompt: from_blob(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?)?,
        response: from_blob(row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?)?,
        text: row.get(4)?,
        sampling: serde_json::from_str(&sampling).map_err(|e| damaged(format!("sampling settings: {e}")))?,
        finish,
        user: row.get(7)?,
        created: unsigned(row, 8)?,
    }))
}

pub(super) fn answer(db: &Connection, id: &GenerationId) -> Result<Option<Answer>> {
    let mut select =
        db.prepare_cached("SELECT seq, policy_version, length(response) = 0 FROM generations WHERE id = ?1")?;
    let mut rows = select.query([&id.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Answer { row: row.get(0)?, policy_version: PolicyVersion(unsigned(row, 1)?), empty: row.get(2)? }))
}

pub(super) fn feedback_of(db: &Connection, id: &GenerationId) -> Result<Vec<StoredFeedback>> {
    let mut select = db.prepare_cached(
        "SELECT f.id, f.rating, f.correction, f.user, f.comment, f.created, b.version, b.reason
         FROM feedback f JOIN generations g ON g.seq = f.generation LEFT JOIN batches b ON b.id = f.batch
         WHERE g.id = ?1 ORDER BY f.id",
    )?;
    let mut rows = select.query([&id.0])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let signal = match row.get(1)? {
            Some(rating) => Signal::Rating(rating),
            None => Signal::Correction(row.get(2)?),
        };
        let version: Option<i64> = row.get(6)?;
        let used_by = match version {
            Some(_) => Some(Use::Version(PolicyVersion(unsigned(row, 6)?))),
            None => row.get::<_, Option<String>>(7)?.map(Use::Skipped),
        };
        all.push(StoredFeedback {
            feedback_id: unsigned(row, 0)?,
            signal,
            user: row.get(3)?,
            comment: row.get(4)?,
            created: unsigned(row, 5)?,
            used_by,
        });
    }
    Ok(all)
}

pub(super) fn pending_count(db: &Connection) -> Result<u64> {
    let mut count = db.prepare_cached(
        "SELECT count(DISTINCT generation) FROM feedback INDEXED BY feedback_unused WHERE teaches = 1 AND batch IS NULL",
    )?;
    let mut rows = count.query([])?;
    rows.next()?.map_or(Ok(0), |row| unsigned(row, 0))
}

pub(super) fn pending_batch(db: &Connection, max: usize) -> Result<Vec<RatedGeneration>> {
    let mut oldest = db.prepare_cached(
        "SELECT DISTINCT generation FROM feedback INDEXED BY feedback_unused WHERE teaches = 1 AND batch IS NULL
         ORDER BY generation LIMIT ?1",
    )?;
    let answers = oldest.query_map([signed(max as u64)], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    let mut ratings = db.prepare_cached(
        "SELECT id, rating FROM feedback INDEXED BY feedback_unused
         WHERE generation = ?1 AND teaches = 1 AND batch IS NULL ORDER BY id",
    )?;
    let mut batch = Vec::with_capacity(answers.len());
    for answer in answers {
        let (mut feedback_ids, mut rating) = (Vec::new(), 0.0);
        let mut rows = ratings.query([answer])?;
        while let Some(row) = rows.next()? {
            feedback_ids.push(unsigned(row, 0)?);
            rating = row.get(1)?;
        }
        let generation = generation(db, Which::Row(answer))?
            .ok_or_else(|| damaged(format!("generation row {answer} is missing")))?;
        batch.push(RatedGeneration { feedback_ids, generation, rating });
    }
    Ok(batch)
}

pub(super) fn versions(db: &Connection) -> Result<Vec<VersionInfo>> {
    let active = active(db)?;
    let mut select = db.prepare_cached("SELECT version, parent, created, metrics FROM versions ORDER BY version")?;
    let mut rows = select.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let version = PolicyVersion(unsigned(row, 0)?);
        let parent: Option<i64> = row.get(1)?;
        let metrics: String = row.get(3)?;
        all.push(VersionInfo {
            version,
            parent: parent.map(|_| unsigned(row, 1).map(PolicyVersion)).transpose()?,
            active: version == active,
            created: unsigned(row, 2)?,
            metrics: serde_json::from_str(&metrics)
                .map_err(|e| damaged(format!("metrics of version {version}: {e}")))?,
        });
    }
    Ok(all)
}

pub(super) fn active(db: &Connection) -> Result<PolicyVersion> {
    let mut select = db.prepare_cached("SELECT version FROM activations ORDER BY id DESC LIMIT 1")?;
    let mut rows = select.query([])?;
    let row = rows.next()?.ok_or_else(|| damaged("no version is active"))?;
    Ok(PolicyVersion(unsigned(row, 0)?))
}

pub(super) fn newest(db: &Connection) -> Result<PolicyVersion> {
    let mut select = db.prepare_cached("SELECT max(version) FROM versions")?;
    let mut rows = select.query([])?;
    let row = rows.next()?.ok_or_else(|| damaged("no version is recorded"))?;
    Ok(PolicyVersion(unsigned(row, 0)?))
}

pub(super) fn meta(db: &Connection, key: &str) -> Result<Option<String>> {
    Ok(db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?)
}

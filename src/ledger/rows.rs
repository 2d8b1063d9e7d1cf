//! Converts between rows and `types` values. Never decides what may be written.

use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::MAX_SAID;
use crate::error::{Error, Result};
use crate::types::*;

/// A stored piece of feedback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct StoredFeedback {
    /// Row number; grows with time.
    pub feedback_id: u64,
    /// What it says.
    pub signal: Signal,
    /// The user who gave it.
    pub user: Option<String>,
    /// A comment.
    pub comment: Option<String>,
    /// When it was received.
    pub created: UnixMillis,
    /// What used it up; `None` while it waits, or if it is of a kind that never trains.
    pub used_by: Option<Use>,
    /// Why it doesn't count, if it is of a kind that otherwise does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// A training sample made from an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct StoredSample {
    /// The version trained on it; `None` if its batch made none.
    pub version: Option<PolicyVersion>,
    /// Whether the answer itself or a correction was trained on.
    pub kind: SampleKind,
    /// Its reward and the terms of it.
    #[serde(flatten)]
    pub score: Score,
}

/// A preference or a correction, as a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPair {
    /// The prompt as the model saw it.
    pub prompt: Vec<TokenId>,
    /// The better answer.
    pub chosen: PairAnswer,
    /// The worse one.
    pub rejected: PairAnswer,
    /// The user who gave it.
    pub user: Option<String>,
}

/// One answer of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PairAnswer {
    /// As it was generated.
    Tokens(Vec<TokenId>, String),
    /// As a user wrote it.
    Text(String),
}

/// The prompt of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedPrompt {
    /// As the model saw it.
    pub tokens: Vec<TokenId>,
    /// The last user who asked it: what is made of it is deleted when that user is forgotten.
    pub user: Option<String>,
    /// The answer that the user got; none for one that nobody asked.
    pub origin: Option<GenerationId>,
}

/// What used a rating up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// The version that was trained on it.
    Version(PolicyVersion),
    /// A batch that made no version, for this reason.
    Skipped(String),
}

/// What the writer needs to know about an answer.
pub(super) struct Answer {
    pub(super) row: i64,
    pub(super) policy_version: PolicyVersion,
    pub(super) empty: bool,
    /// Hash of the prompt and the response: equal for the same tokens to the same prompt.
    pub(super) content: i64,
}

/// SQLite's integers are signed; no real value exceeds them.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| damaged(format!("{value} where a count is expected")))
}

pub(super) fn damaged(what: impl std::fmt::Display) -> Error {
    Error::io(format!("the ledger is damaged: {what}"))
}

fn to_blob(tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().flat_map(|t| t.to_le_bytes()).collect()
}

pub(super) fn from_blob(blob: &[u8]) -> Result<Vec<TokenId>> {
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
        unrecorded: false,
    }))
}

pub(super) fn answer(db: &Connection, id: &GenerationId) -> Result<Option<Answer>> {
    let mut select =
        db.prepare_cached("SELECT seq, policy_version, prompt, response FROM generations WHERE id = ?1")?;
    let mut rows = select.query([&id.0])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let prompt = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
    let response = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
    let (policy_version, empty) = (PolicyVersion(unsigned(row, 1)?), response.is_empty());
    Ok(Some(Answer { row: row.get(0)?, policy_version, empty, content: content(prompt, response) }))
}

pub(super) fn feedback_of(db: &Connection, id: &GenerationId) -> Result<Vec<StoredFeedback>> {
    let mut select = db.prepare_cached(
        "SELECT f.id, f.rating, f.correction, f.user, f.comment, f.created, b.version, b.reason, f.signal, f.left_out
         FROM feedback f JOIN generations g ON g.seq = f.generation LEFT JOIN batches b ON b.id = f.batch
         WHERE g.id = ?1 ORDER BY f.id LIMIT ?2",
    )?;
    let mut rows = select.query((&id.0, signed(MAX_SAID)))?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(feedback_row(row)?);
    }
    Ok(all)
}

/// The piece of feedback of that identity.
pub(super) fn feedback_by_identity(db: &Connection, identity: &str) -> Result<Option<StoredFeedback>> {
    let mut select = db.prepare_cached(
        "SELECT f.id, f.rating, f.correction, f.user, f.comment, f.created, b.version, b.reason, f.signal, f.left_out
         FROM feedback f LEFT JOIN batches b ON b.id = f.batch WHERE f.identity = ?1",
    )?;
    let mut rows = select.query([identity])?;
    rows.next()?.map(feedback_row).transpose()
}

/// A row of `id, rating, correction, user, comment, created, version, reason, signal, left_out`.
fn feedback_row(row: &Row<'_>) -> Result<StoredFeedback> {
    let (rating, correction, named) = (row.get(1)?, row.get(2)?, row.get(8)?);
    let signal = match (rating, correction, named) {
        (Some(rating), _, _) => Signal::Rating(rating),
        (_, Some(text), _) => Signal::Correction(text),
        (_, _, Some(name)) => Signal::Named(name),
        _ => Signal::Comment,
    };
    let version: Option<i64> = row.get(6)?;
    let used_by = match version {
        Some(_) => Some(Use::Version(PolicyVersion(unsigned(row, 6)?))),
        None => row.get::<_, Option<String>>(7)?.map(Use::Skipped),
    };
    Ok(StoredFeedback {
        feedback_id: unsigned(row, 0)?,
        signal,
        user: row.get(3)?,
        comment: row.get(4)?,
        created: unsigned(row, 5)?,
        used_by,
        left_out: row.get(9)?,
    })
}

/// The first eight bytes of the SHA-256 of prompt and response.
fn content(prompt: &[u8], response: &[u8]) -> i64 {
    let mut sum = Sha256::new();
    sum.update((prompt.len() as u64).to_le_bytes());
    sum.update(prompt);
    sum.update(response);
    let mut first = [0; 8];
    first.iter_mut().zip(sum.finalize()).for_each(|(to, from)| *to = from);
    i64::from_le_bytes(first)
}

pub(super) fn pair_count(db: &Connection) -> Result<u64> {
    let mut count = db.prepare_cached(
        "SELECT (SELECT count(*) FROM preferences) + (SELECT count(*) FROM feedback WHERE correction IS NOT NULL)",
    )?;
    let mut rows = count.query([])?;
    rows.next()?.map_or(Ok(0), |row| unsigned(row, 0))
}

/// At most `max` pieces of feedback after row `last`, with their identities and their answers under their first ids.
pub(super) fn feedback_page(
    db: &Connection,
    last: u64,
    max: usize,
) -> Result<Vec<(Generation, StoredFeedback, Option<String>)>> {
    let mut select = db.prepare_cached(
        "SELECT f.id, f.rating, f.correction, f.user, f.comment, f.created, b.version, b.reason, f.signal, f.left_out,
         f.generation, f.identity, g.origin FROM feedback f JOIN generations g ON g.seq = f.generation
         LEFT JOIN batches b ON b.id = f.batch WHERE f.id > ?1 ORDER BY f.id LIMIT ?2",
    )?;
    let mut rows = select.query((signed(last), signed(max as u64)))?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        let answer: i64 = row.get(10)?;
        let mut generation = generation(db, Which::Row(answer))?
            .ok_or_else(|| damaged(format!("generation row {answer} is missing")))?;
        if let Some(origin) = row.get(12)? {
            generation.id = GenerationId(origin);
        }
        page.push((generation, feedback_row(row)?, row.get(11)?));
    }
    Ok(page)
}

/// At most `max` preferences after row `last`, with their rows and the first ids of their answers.
pub(super) fn preference_page(
    db: &Connection,
    last: u64,
    max: usize,
) -> Result<Vec<(u64, StoredPair, [GenerationId; 2])>> {
    let mut select = db.prepare_cached(
        "SELECT p.id, p.user, c.prompt, c.response, c.text, r.response, r.text, coalesce(c.origin, c.id),
         coalesce(r.origin, r.id) FROM preferences p
         JOIN generations c ON c.seq = p.chosen JOIN generations r ON r.seq = p.rejected
         WHERE p.id > ?1 ORDER BY p.id LIMIT ?2",
    )?;
    let mut rows = select.query((signed(last), signed(max as u64)))?;
    let mut page = Vec::new();
    while let Some(row) = rows.next()? {
        let answer = |tokens: usize| -> Result<PairAnswer> {
            let blob = row.get_ref(tokens)?.as_blob().map_err(rusqlite::Error::from)?;
            Ok(PairAnswer::Tokens(from_blob(blob)?, row.get(tokens + 1)?))
        };
        let prompt = from_blob(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?)?;
        let pair = StoredPair { prompt, chosen: answer(3)?, rejected: answer(5)?, user: row.get(1)? };
        page.push((unsigned(row, 0)?, pair, [GenerationId(row.get(7)?), GenerationId(row.get(8)?)]));
    }
    Ok(page)
}

/// All versions, without what was decided about them.
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
            ruling: None,
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

/// Rating, correction and named signal of a piece of feedback: at most one of them.
pub(super) fn parts(signal: &Signal) -> (Option<f64>, Option<&str>, Option<&str>) {
    match signal {
        Signal::Rating(rating) => (Some(*rating), None, None),
        Signal::Correction(text) => (None, Some(text), None),
        Signal::Named(name) => (None, None, Some(name)),
        Signal::Comment => (None, None, None),
    }
}

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Error::busy("another program holds the ledger: nothing was written; try again when it has let go")
            }
            Some(ErrorCode::DiskFull) => Error::io("the disk is full"),
            Some(ErrorCode::OutOfMemory) => Error::nomem("the ledger ran out of memory"),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Error::io(format!("the ledger is damaged or not a database: {e}"))
            }
            _ => Error::io(format!("the ledger: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_another_program_holds_is_busy_and_not_broken() {
        for code in [rusqlite::ffi::SQLITE_BUSY, rusqlite::ffi::SQLITE_LOCKED] {
            let error = Error::from(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
            assert_eq!(error.code(), crate::error::Code::Busy);
            assert!(error.message().contains("another program holds the ledger"), "{error}");
        }
    }
}

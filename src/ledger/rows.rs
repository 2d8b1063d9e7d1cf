//! Converts between rows and `types` values. Never decides what may be written.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::MAX_SAID;
use super::db::{Db, Row};
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

/// A database's integers are signed; no real value exceeds them.
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

pub(super) fn insert_generation(db: &Db, g: &Generation) -> Result<()> {
    let sampling = serde_json::to_string(&g.sampling).map_err(|e| Error::arg(format!("sampling settings: {e}")))?;
    let sql = "INSERT INTO generations (id, policy_version, prompt, response, text, sampling, finish, user, created)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let (version, created) = (signed(g.policy_version.0), signed(g.created));
    let (prompt, response, finish) = (to_blob(&g.prompt), to_blob(&g.response), g.finish.as_str());
    db.execute(sql, (&g.id.0, version, prompt, response, &g.text, sampling, finish, &g.user, created))?;
    Ok(())
}

pub(super) enum Which<'a> {
    Id(&'a GenerationId),
    Row(i64),
}

pub(super) fn generation(db: &Db, which: Which<'_>) -> Result<Option<Generation>> {
    const COLUMNS: &str = "id, policy_version, prompt, response, text, sampling, finish, user, created";
    let select = |key: &str| format!("SELECT {COLUMNS} FROM generations WHERE {key} = ?1");
    match which {
        Which::Id(id) => db.first(&select("id"), [&id.0], generation_row),
        Which::Row(row) => db.first(&select("seq"), [row], generation_row),
    }
}

/// A row of `id, policy_version, prompt, response, text, sampling, finish, user, created`.
fn generation_row(row: &Row<'_>) -> Result<Generation> {
    let finish: String = row.get(6)?;
    let finish = [FinishReason::Stop, FinishReason::Length, FinishReason::Cancelled]
        .into_iter()
        .find(|f| f.as_str() == finish)
        .ok_or_else(|| damaged(format!("unknown finish reason {finish:?}")))?;
    let sampling: String = row.get(5)?;
    Ok(Generation {
        id: GenerationId(row.get(0)?),
        policy_version: PolicyVersion(unsigned(row, 1)?),
        prompt: from_blob(row.bytes(2)?)?,
        response: from_blob(row.bytes(3)?)?,
        text: row.get(4)?,
        sampling: serde_json::from_str(&sampling).map_err(|e| damaged(format!("sampling settings: {e}")))?,
        finish,
        user: row.maybe(7)?,
        created: unsigned(row, 8)?,
        unrecorded: false,
    })
}

pub(super) fn answer(db: &Db, id: &GenerationId) -> Result<Option<Answer>> {
    db.first("SELECT seq, policy_version, prompt, response FROM generations WHERE id = ?1", [&id.0], answer_row)
}

/// A row of `seq, policy_version, prompt, response`.
pub(super) fn answer_row(row: &Row<'_>) -> Result<Answer> {
    let (prompt, response) = (row.bytes(2)?, row.bytes(3)?);
    let (policy_version, empty) = (PolicyVersion(unsigned(row, 1)?), response.is_empty());
    Ok(Answer { row: row.get(0)?, policy_version, empty, content: content(prompt, response) })
}

pub(super) fn feedback_of(db: &Db, id: &GenerationId) -> Result<Vec<StoredFeedback>> {
    let sql = format!(
        "SELECT {FEEDBACK} FROM feedback f JOIN generations g ON g.seq = f.generation
         LEFT JOIN batches b ON b.id = f.batch WHERE g.id = ?1 ORDER BY f.id LIMIT ?2"
    );
    db.all(&sql, (&id.0, signed(MAX_SAID)), feedback_row)
}

/// The piece of feedback of that identity.
pub(super) fn feedback_by_identity(db: &Db, identity: &str) -> Result<Option<StoredFeedback>> {
    let sql = format!("SELECT {FEEDBACK} FROM feedback f LEFT JOIN batches b ON b.id = f.batch WHERE f.identity = ?1");
    db.first(&sql, [identity], feedback_row)
}

/// The columns of [`feedback_row`], of feedback `f` and its batch `b`.
const FEEDBACK: &str =
    "f.id, f.rating, f.correction, f.user, f.comment, f.created, b.version, b.reason, f.signal, f.left_out";

fn feedback_row(row: &Row<'_>) -> Result<StoredFeedback> {
    let (rating, correction, named) = (row.maybe(1)?, row.maybe(2)?, row.maybe(8)?);
    let signal = match (rating, correction, named) {
        (Some(rating), _, _) => Signal::Rating(rating),
        (_, Some(text), _) => Signal::Correction(text),
        (_, _, Some(name)) => Signal::Named(name),
        _ => Signal::Comment,
    };
    let used_by = match row.maybe::<i64>(6)? {
        Some(_) => Some(Use::Version(PolicyVersion(unsigned(row, 6)?))),
        None => row.maybe(7)?.map(Use::Skipped),
    };
    Ok(StoredFeedback {
        feedback_id: unsigned(row, 0)?,
        signal,
        user: row.maybe(3)?,
        comment: row.maybe(4)?,
        created: unsigned(row, 5)?,
        used_by,
        left_out: row.maybe(9)?,
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

pub(super) fn pair_count(db: &Db) -> Result<u64> {
    let sql =
        "SELECT (SELECT count(*) FROM preferences) + (SELECT count(*) FROM feedback WHERE correction IS NOT NULL)";
    db.one(sql, (), |row| unsigned(row, 0))
}

/// At most `max` pieces of feedback after row `last`, with their identities and their answers under their first ids.
pub(super) fn feedback_page(
    db: &Db,
    last: u64,
    max: usize,
) -> Result<Vec<(Generation, StoredFeedback, Option<String>)>> {
    let sql = format!(
        "SELECT {FEEDBACK}, f.generation, f.identity, g.origin FROM feedback f
         JOIN generations g ON g.seq = f.generation LEFT JOIN batches b ON b.id = f.batch
         WHERE f.id > ?1 ORDER BY f.id LIMIT ?2"
    );
    db.all(&sql, (signed(last), signed(max as u64)), |row| {
        let answer: i64 = row.get(10)?;
        let mut generation = generation(db, Which::Row(answer))?
            .ok_or_else(|| damaged(format!("generation row {answer} is missing")))?;
        if let Some(origin) = row.maybe(12)? {
            generation.id = GenerationId(origin);
        }
        Ok((generation, feedback_row(row)?, row.maybe(11)?))
    })
}

/// At most `max` preferences after row `last`, with their rows and the first ids of their answers.
pub(super) fn preference_page(db: &Db, last: u64, max: usize) -> Result<Vec<(u64, StoredPair, [GenerationId; 2])>> {
    let sql = "SELECT p.id, p.user, c.prompt, c.response, c.text, r.response, r.text, coalesce(c.origin, c.id),
               coalesce(r.origin, r.id) FROM preferences p
               JOIN generations c ON c.seq = p.chosen JOIN generations r ON r.seq = p.rejected
               WHERE p.id > ?1 ORDER BY p.id LIMIT ?2";
    db.all(sql, (signed(last), signed(max as u64)), |row| {
        let answer = |tokens: usize| -> Result<PairAnswer> {
            Ok(PairAnswer::Tokens(from_blob(row.bytes(tokens)?)?, row.get(tokens + 1)?))
        };
        let prompt = from_blob(row.bytes(2)?)?;
        let pair = StoredPair { prompt, chosen: answer(3)?, rejected: answer(5)?, user: row.maybe(1)? };
        Ok((unsigned(row, 0)?, pair, [GenerationId(row.get(7)?), GenerationId(row.get(8)?)]))
    })
}

/// All versions, without what was decided about them.
pub(super) fn versions(db: &Db) -> Result<Vec<VersionInfo>> {
    let active = active(db)?;
    db.all("SELECT version, parent, created, metrics FROM versions ORDER BY version", (), |row| {
        let version = PolicyVersion(unsigned(row, 0)?);
        let parent: Option<i64> = row.maybe(1)?;
        let metrics: String = row.get(3)?;
        Ok(VersionInfo {
            version,
            parent: parent.map(|_| unsigned(row, 1).map(PolicyVersion)).transpose()?,
            active: version == active,
            created: unsigned(row, 2)?,
            metrics: serde_json::from_str(&metrics)
                .map_err(|e| damaged(format!("metrics of version {version}: {e}")))?,
            ruling: None,
        })
    })
}

pub(super) fn active(db: &Db) -> Result<PolicyVersion> {
    let found = db.first("SELECT version FROM activations ORDER BY id DESC LIMIT 1", (), |row| unsigned(row, 0))?;
    found.map(PolicyVersion).ok_or_else(|| damaged("no version is active"))
}

pub(super) fn newest(db: &Db) -> Result<PolicyVersion> {
    db.one("SELECT max(version) FROM versions", (), |row| Ok(PolicyVersion(unsigned(row, 0)?)))
}

pub(super) fn meta(db: &Db, key: &str) -> Result<Option<String>> {
    db.first("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
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

//! The durable record of generations, feedback and versions, in SQLite. Never forgets what it acknowledged, never
//! changes a row beyond marking a rating used, and never trains or judges.

mod export;
mod forget;
mod limits;
mod lock;
#[cfg(test)]
mod process_tests;
mod rows;
#[cfg(test)]
mod rules_tests;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Error, Result};
use crate::types::*;
pub use export::{Exported, LedgerReader};
pub use forget::Forgotten;
pub use limits::{ReviewEntry, ReviewVerdict, Rules};
use lock::FolderLock;
pub use rows::{PairAnswer, StoredFeedback, StoredPair, StoredSample, Use};
use writer::Writer;

/// Longest comment and correction, in bytes.
pub const MAX_TEXT: usize = 64 << 10;
/// Longest name of a signal, in bytes.
pub const MAX_SIGNAL: usize = 64;
/// Longest name of a user, in bytes.
pub const MAX_USER: usize = 256;

const META_MODEL_SHA256: &str = "model_sha256";
const META_MODEL_NAME: &str = "model_name";

/// An open ledger. One process a folder; every method is safe from any thread.
///
/// A generation must be of a version that is on record: commit a version before it serves.
pub struct Ledger {
    writer: Writer,
    /// Reads see what is committed, and never wait for a write.
    reader: Mutex<Option<Connection>>,
    /// Answers with feedback that teaches and is not yet used. Changed on the writer's thread, after a commit.
    pending: Arc<AtomicU64>,
    /// How much of what is said counts.
    rules: Arc<Rules>,
}

impl Ledger {
    /// Opens the ledger of a data folder; both are made if missing.
    ///
    /// # Errors
    /// `Busy` if another process holds the folder (named with its process id), `Unsupported` if the ledger is of a
    /// newer format, `Io` if the disk fails or the file is damaged.
    pub fn open(dir: &Path) -> Result<Ledger> {
        Self::open_with(dir, Rules::default())
    }

    /// The same, with rules of what counts.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_with(dir: &Path, rules: Rules) -> Result<Ledger> {
        std::fs::create_dir_all(dir).map_err(|e| Error::from(e).context(format!("creating {}", dir.display())))?;
        let lock = FolderLock::take(dir)?;
        let path = dir.join("ledger.sqlite3");
        let open = || -> Result<_> {
            let db = schema::open_writer(&path)?;
            // The name of a new file must survive a power cut as well.
            #[cfg(unix)]
            std::fs::File::open(dir)?.sync_all()?;
            let pending = rows::pending_count(&db)?;
            Ok((schema::open_reader(&path)?, Writer::start(db, lock)?, pending))
        };
        let (reader, writer, pending) = open().map_err(|e| e.context(format!("opening {}", path.display())))?;
        Ok(Ledger { writer, reader: Mutex::new(Some(reader)), pending: Arc::new(pending.into()), rules: rules.into() })
    }

    /// Queues a generation to be recorded; waits only while the queue is full. `done` runs on the ledger's thread after
    /// the commit: it must be quick, and must not wait for the ledger.
    ///
    /// # Errors
    /// `Closed` at once. To `done`: `Arg` for an id that is taken or too long, an unknown version, or sampling settings
    /// that are not finite; `Io` if it could not be written.
    pub fn record_generation(&self, g: Arc<Generation>, done: Box<dyn FnOnce(Result<()>) + Send>) -> Result<()> {
        self.writer.submit(move |db| record(db, &g), done)
    }

    /// Records feedback; it is on disk when this returns.
    ///
    /// # Errors
    /// `Arg` for an unknown generation, a rating outside [-1, 1] or not a number, or text that is too long; `Io` if it
    /// could not be written; `Closed`.
    pub fn add_feedback(&self, f: &NewFeedback) -> Result<FeedbackReceipt> {
        self.put_feedback(f, self.rules.clone())
    }

    /// The same without limits of time: for what an operator brings in.
    ///
    /// # Errors
    /// As [`Ledger::add_feedback`].
    pub fn import_feedback(&self, f: &NewFeedback) -> Result<FeedbackReceipt> {
        self.put_feedback(f, Rules { hourly: 0, ..(*self.rules).clone() }.into())
    }

    fn put_feedback(&self, f: &NewFeedback, rules: Arc<Rules>) -> Result<FeedbackReceipt> {
        check_feedback(f)?;
        let (f, pending) = (f.clone(), self.pending.clone());
        let work = move |db: &Connection| insert_feedback(db, &f, &rules);
        let (receipt, _) = self.writer.call(work, move |(_, first)| {
            if *first {
                pending.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(receipt)
    }

    /// Records that one answer is better than another, and returns its row number; it is on disk then. What a user said
    /// before keeps its row.
    ///
    /// # Errors
    /// As [`Ledger::add_feedback`]; `Arg` also if both are the same.
    pub fn add_preference(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        Ok(self.import_preference(chosen, rejected, user)?.0)
    }

    /// The same; says also whether it is new.
    ///
    /// # Errors
    /// As [`Ledger::add_preference`].
    pub fn import_preference(
        &self,
        chosen: &GenerationId,
        rejected: &GenerationId,
        user: Option<&str>,
    ) -> Result<(u64, bool)> {
        check_length("the user's name", user, MAX_USER)?;
        if chosen == rejected {
            return Err(Error::arg("chosen and rejected are the same generation, expected two"));
        }
        let (chosen, rejected, user) = (chosen.clone(), rejected.clone(), user.map(str::to_owned));
        let work = move |db: &Connection| {
            let (chosen, rejected) = (known(db, &chosen)?.row, known(db, &rejected)?.row);
            let said = "SELECT id FROM preferences WHERE chosen = ?1 AND rejected = ?2 AND user IS ?3";
            let said: Option<i64> =
                db.prepare_cached(said)?.query_row((chosen, rejected, &user), |row| row.get(0)).optional()?;
            if let Some(id) = said {
                return Ok((id.cast_unsigned(), false));
            }
            db.prepare_cached("INSERT INTO preferences (chosen, rejected, user, created) VALUES (?1, ?2, ?3, ?4)")?
                .execute((chosen, rejected, &user, rows::signed(unix_millis())))?;
            Ok((db.last_insert_rowid().cast_unsigned(), true))
        };
        self.writer.call(work, |_| ())
    }

    /// A generation, if it is on record.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read, `Closed`.
    pub fn generation(&self, id: &GenerationId) -> Result<Option<Generation>> {
        self.read(|db| rows::generation(db, rows::Which::Id(id)))
    }

    /// All feedback on an answer, oldest first; empty for an unknown one.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn feedback_of(&self, id: &GenerationId) -> Result<Vec<StoredFeedback>> {
        self.read(|db| rows::feedback_of(db, id))
    }

    /// Answers that [`Ledger::pending_batch`] would offer. Costs nothing.
    pub fn pending_ratings(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// At most `max` answers with feedback that teaches and is not yet used, the oldest answers first, within the
    /// rules. Of several ratings of a user the last stands, of several users' their mean, and all are listed. An answer
    /// without tokens is never offered. Nothing is marked: the same batch comes again until a commit uses it.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pending_batch(&self, max: usize) -> Result<Vec<RatedGeneration>> {
        self.read(|db| rows::pending_batch(db, max, &self.rules))
    }

    /// At most `max` answers that nobody said anything of and that no batch had, the newest first, of version `since`
    /// or later.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn unrated(&self, max: usize, since: PolicyVersion) -> Result<Vec<RatedGeneration>> {
        self.read(|db| rows::unrated(db, max, since))
    }

    /// The newest prompts that anybody asked, at most `max`, each once. (Rollouts, whose ids begin with `rol-`, are not
    /// asked.)
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn recent_prompts(&self, max: usize) -> Result<Vec<Vec<TokenId>>> {
        self.read(|db| rows::recent_prompts(db, max))
    }

    /// What taught from an answer: the samples it gave, oldest first.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn samples_of(&self, id: &GenerationId) -> Result<Vec<StoredSample>> {
        self.read(|db| rows::samples_of(db, id))
    }

    /// Preferences and corrections as pairs for a reward model, oldest first, within the rules: without those of users
    /// who are held or rejected, what is said again, what is over a user's hour, what is not ripe, and what is over a
    /// user's share. What was imported is limited by neither hour nor share.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pairs(&self) -> Result<Vec<StoredPair>> {
        self.read(|db| rows::pairs(db, &self.rules))
    }

    /// How many there are of those pairs, users not looked at. Cheap.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pair_count(&self) -> Result<u64> {
        self.read(rows::pair_count)
    }

    /// Users whose feedback waits for a person, and those that one has decided about.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn reviews(&self) -> Result<Vec<ReviewEntry>> {
        self.read(|db| limits::reviews(db, &self.rules))
    }

    /// Records a decision about a user; it is on disk when this returns. Rejecting leaves out what waits of theirs, for
    /// good.
    ///
    /// # Errors
    /// `Arg` for a name that is too long, `Io`, `Closed`.
    pub fn review(&self, user: &str, verdict: ReviewVerdict) -> Result<()> {
        check_length("the user's name", Some(user), MAX_USER)?;
        let user = user.to_owned();
        self.commit_batch(move |db| limits::review(db, &user, verdict))
    }

    /// Deletes a user's words: the answers made for them with their prompts, what anyone said of those, and all they
    /// said of others' answers. They are overwritten on disk, in the write-ahead log too, when this returns. Versions
    /// that learned from them remain, and the numbers of batches.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        let (user, pending) = (user.to_owned(), self.pending.clone());
        let gone = Arc::new(AtomicU64::new(0));
        let settled = gone.clone();
        let work = move |db: &Connection| {
            let (forgotten, answers) = forget::forget(db, &user)?;
            gone.store(answers, Ordering::Relaxed);
            Ok(forgotten)
        };
        let fold = move |db: &Connection| {
            // Whatever becomes of the log: they are deleted.
            pending.fetch_sub(settled.load(Ordering::Relaxed), Ordering::Relaxed);
            forget::fold_log(db)
        };
        self.writer.call_then(work, fold)
    }

    /// Records a new version, marks the feedback it used, keeps what its samples were, and makes it the active one: all
    /// or nothing. (`v.active` is not looked at.)
    ///
    /// # Errors
    /// `Arg` if the number is not above every earlier one, the parent is unknown, or feedback was used before or
    /// doesn't exist; `Io` if it could not be written; `Closed`.
    pub fn commit_version(&self, v: &VersionInfo, used: &[u64], samples: &[SampleRecord]) -> Result<()> {
        let (v, used, samples) = (v.clone(), used.to_vec(), samples.to_vec());
        self.commit_batch(move |db| {
            insert_version(db, &v)?;
            let settled = use_up(db, &used, &samples, Some(v.version), None)?;
            activate(db, v.version)?;
            Ok(settled)
        })
    }

    /// Marks feedback as used up by a batch that made no version.
    ///
    /// # Errors
    /// As [`Ledger::commit_version`].
    pub fn commit_skipped(&self, reason: &str, used: &[u64]) -> Result<()> {
        let (reason, used) = (reason.to_owned(), used.to_vec());
        self.commit_batch(move |db| use_up(db, &used, &[], None, Some(&reason)))
    }

    /// Makes a version the active one.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io`, `Closed`.
    pub fn set_active(&self, v: PolicyVersion) -> Result<()> {
        self.writer.call(move |db| activate(db, v), |()| ())
    }

    /// The version that was made active last.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn active(&self) -> Result<PolicyVersion> {
        self.read(rows::active)
    }

    /// All versions, oldest first; the first is the initial model.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn versions(&self) -> Result<Vec<VersionInfo>> {
        self.read(rows::versions)
    }

    /// The number that the next version gets.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn next_version(&self) -> Result<PolicyVersion> {
        Ok(PolicyVersion(self.read(rows::newest)?.0 + 1))
    }

    /// SHA-256 of the base model that the ledger belongs to, if it belongs to one yet.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn model_fingerprint(&self) -> Result<Option<String>> {
        self.read(|db| rows::meta(db, META_MODEL_SHA256))
    }

    /// Ties the ledger to its base model, the first time; checks it ever after. (The name is for messages: the same
    /// file under another name is the same model.)
    ///
    /// # Errors
    /// `Model` if it belongs to another one, naming both.
    pub fn bind_model(&self, sha256: &str, name: &str) -> Result<()> {
        let (sha256, name) = (sha256.to_owned(), name.to_owned());
        self.writer.call(move |db| bind(db, &sha256, &name), |()| ())
    }

    /// Writes what is queued and lets go of the folder; every later call is refused as `Closed`. Idempotent; dropping
    /// the ledger does it too.
    pub fn close(&self) {
        // First, so that the writer is the last connection: that one folds the write-ahead log into the file.
        drop(self.reader.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.writer.close();
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let db = reader.as_ref().ok_or_else(|| Error::closed("the ledger is closed"))?;
        // One snapshot for all the selects of a query.
        let snapshot = db.unchecked_transaction()?;
        query(&snapshot)
    }

    /// `work` returns how many answers have no rating waiting any more.
    fn commit_batch(&self, work: impl FnOnce(&Connection) -> Result<u64> + Send + 'static) -> Result<()> {
        let pending = self.pending.clone();
        let settle = move |settled: &u64| {
            pending.fetch_sub(*settled, Ordering::Relaxed);
        };
        self.writer.call(work, settle).map(drop)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

fn record(db: &Connection, g: &Generation) -> Result<()> {
    let (id, s) = (&g.id, &g.sampling);
    if id.0.is_empty() || id.0.len() > 64 {
        return Err(Error::arg(format!("the generation's id has {} bytes, expected 1 to 64", id.0.len())));
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

fn check_feedback(f: &NewFeedback) -> Result<()> {
    match &f.signal {
        Signal::Rating(rating) if !(-1.0..=1.0).contains(rating) => {
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

fn check_length(what: &str, text: Option<&str>, limit: usize) -> Result<()> {
    match text.map_or(0, str::len) {
        length if length > limit => Err(Error::arg(format!("{what} has {length} bytes, expected at most {limit}"))),
        _ => Ok(()),
    }
}

fn known(db: &Connection, id: &GenerationId) -> Result<rows::Answer> {
    // Cut, because it is a stranger's text.
    rows::answer(db, id)?.ok_or_else(|| Error::arg(format!("generation {:.64} is not on record", id.0)))
}

/// Rating, correction and named signal of a piece of feedback: at most one of them.
fn parts(signal: &Signal) -> (Option<f64>, Option<&str>, Option<&str>) {
    match signal {
        Signal::Rating(rating) => (Some(*rating), None, None),
        Signal::Correction(text) => (None, Some(text), None),
        Signal::Named(name) => (None, None, Some(name)),
        Signal::Comment => (None, None, None),
    }
}

/// The receipt, and whether the answer had nothing waiting before and has now.
fn insert_feedback(db: &Connection, f: &NewFeedback, rules: &Rules) -> Result<(FeedbackReceipt, bool)> {
    let answer = known(db, &f.generation_id)?;
    let (rating, correction, signal) = parts(&f.signal);
    let rated = db
        .prepare_cached("SELECT 1 FROM feedback WHERE generation = ?1 AND user IS ?2 AND rating IS NOT NULL LIMIT 1")?
        .exists((answer.row, &f.user))?;
    let waiting = db.prepare_cached(rows::WAITING)?.exists([answer.row])?;
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
        "INSERT INTO feedback (generation, rating, correction, signal, teaches, left_out, user, comment, created, content)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
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

/// Does `change` to a user's feedback, and counts the answers that had something waiting before and have nothing any
/// more.
fn use_count(db: &Connection, user: &str, change: impl FnOnce(&Connection) -> Result<()>) -> Result<u64> {
    let mut select = db.prepare_cached(
        "SELECT DISTINCT generation FROM feedback INDEXED BY feedback_of_user
         WHERE user = ?1 AND teaches = 1 AND batch IS NULL",
    )?;
    let answers = select.query_map([user], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    change(db)?;
    let mut waiting = db.prepare_cached(rows::WAITING)?;
    let mut settled = 0;
    for answer in answers {
        settled += u64::from(!waiting.exists([answer])?);
    }
    Ok(settled)
}

fn insert_version(db: &Connection, v: &VersionInfo) -> Result<()> {
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

/// How many answers were waiting before and are not any more.
fn use_up(
    db: &Connection,
    used: &[u64],
    samples: &[SampleRecord],
    version: Option<PolicyVersion>,
    reason: Option<&str>,
) -> Result<u64> {
    db.prepare_cached("INSERT INTO batches (version, reason, created) VALUES (?1, ?2, ?3)")?.execute((
        version.map(|v| rows::signed(v.0)),
        reason,
        rows::signed(unix_millis()),
    ))?;
    let batch = db.last_insert_rowid();
    let mut mark = db.prepare_cached(
        "UPDATE feedback SET batch = ?1 WHERE id = ?2 AND batch IS NULL AND teaches = 1 RETURNING generation",
    )?;
    rows::insert_samples(db, batch, samples)?;
    let mut answers = BTreeSet::new();
    for id in used {
        let answer: Option<i64> = mark.query_row((batch, rows::signed(*id)), |row| row.get(0)).optional()?;
        let missing =
            || Error::arg(format!("feedback {id} is not a rating that waits: unknown, of another kind, or used"));
        answers.insert(answer.ok_or_else(missing)?);
    }
    let mut waiting = db.prepare_cached(rows::WAITING)?;
    let mut settled = 0;
    for answer in answers {
        settled += u64::from(!waiting.exists([answer])?);
    }
    Ok(settled)
}

fn activate(db: &Connection, v: PolicyVersion) -> Result<()> {
    check_version(db, v)?;
    if rows::active(db)? != v {
        db.prepare_cached("INSERT INTO activations (version, created) VALUES (?1, ?2)")?
            .execute((rows::signed(v.0), rows::signed(unix_millis())))?;
    }
    Ok(())
}

fn check_version(db: &Connection, v: PolicyVersion) -> Result<()> {
    let found = db.prepare_cached("SELECT 1 FROM versions WHERE version = ?1")?.exists([rows::signed(v.0)])?;
    if found { Ok(()) } else { Err(Error::arg(format!("version {v} is not on record"))) }
}

fn bind(db: &Connection, sha256: &str, name: &str) -> Result<()> {
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

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::io("the disk is full"),
            Some(ErrorCode::OutOfMemory) => Error::nomem("the ledger ran out of memory"),
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Error::io(format!("the ledger is damaged or not a database: {e}"))
            }
            _ => Error::io(format!("the ledger: {e}")),
        }
    }
}

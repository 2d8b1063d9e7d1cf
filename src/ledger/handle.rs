//! The handle of the ledger: sends each call to the writer's thread or to the reading connection. Never decides what
//! may be written or what counts.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rusqlite::Connection;

use super::forget::{self, Forgotten};
use super::limits::{self, ReviewEntry, ReviewVerdict, Rules};
use super::lock::FolderLock;
use super::reserve::Reserve;
use super::rows::{self, AskedPrompt, StoredFeedback, StoredPair, StoredSample};
use super::writer::Writer;
use super::{MAX_USER, META_MODEL_SHA256, samples, schema, waiting, write};
use crate::error::{Code, Error, Result};
use crate::files::private_file;
use crate::lock::lock;
use crate::system::make_private_folder;
use crate::types::*;

pub(super) fn check_preference(chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<()> {
    write::check_length("the user's name", user, MAX_USER)?;
    if chosen == rejected {
        return Err(Error::arg("chosen and rejected are the same generation, expected two"));
    }
    Ok(())
}

/// An open ledger. One process per folder; every method is safe from any thread.
///
/// The version of a generation must be on record: commit a version before it serves.
pub struct Ledger {
    pub(super) writer: Writer,
    /// Reads see committed data, and never wait for a write.
    reader: Mutex<Option<Connection>>,
    /// Number of answers with feedback to train on. Changed on the writer's thread, after a commit.
    pub(super) pending: Arc<AtomicU64>,
    /// Rules about whose feedback counts.
    pub(super) rules: Arc<Rules>,
    pub(super) reserve: Reserve,
}

impl Ledger {
    /// Whether a folder holds a ledger.
    pub fn exists(dir: &Path) -> bool {
        dir.join("ledger.sqlite3").is_file()
    }

    /// Takes a folder away that was made for a ledger and is not wanted after all; whoever else has it by now keeps it.
    pub fn take_back(dir: &Path) {
        let Ok(_held) = FolderLock::take(dir) else { return };
        if let Err(error) = std::fs::remove_dir_all(dir) {
            tracing::warn!(%error, "the data folder of a failed start is left");
        }
    }

    /// Opens the ledger of a data folder; both are made if missing.
    ///
    /// # Errors
    /// `Busy` if another process holds the folder (named with its process id), `Unsupported` if the ledger is of a
    /// newer format, `Io` if the disk fails or the file is damaged.
    pub fn open(dir: &Path) -> Result<Ledger> {
        Self::open_with(dir, Rules::default())
    }

    /// The same, with rules about whose feedback counts.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_with(dir: &Path, rules: Rules) -> Result<Ledger> {
        make_private_folder(dir).map_err(|e| Error::from(e).context(format!("creating {}", dir.display())))?;
        let lock = FolderLock::take(dir)?;
        let reserve = Reserve::of(dir);
        reserve.lend();
        let path = dir.join("ledger.sqlite3");
        let open = || -> Result<_> {
            // SQLite makes its own files as readable as this one is.
            private_file().open(&path)?;
            let db = schema::open_writer(&path)?;
            // The entry of a new file must survive a power failure too.
            #[cfg(unix)]
            std::fs::File::open(dir)?.sync_all()?;
            let pending = waiting::pending_count(&db)?;
            Ok((schema::open_reader(&path)?, Writer::start(db, lock)?, pending))
        };
        let (reader, writer, pending) = open().map_err(|e| schema::not_opened(e, dir, &path))?;
        let (reader, pending) = (Some(reader).into(), Arc::new(pending.into()));
        Ok(Ledger { writer, reader, pending, rules: rules.into(), reserve })
    }

    /// Ends a start: takes room for the next one, which a full disk would keep from beginning. Returns whether the disk
    /// is full.
    pub(crate) fn keep_reserve(&self) -> bool {
        let full = self.reserve.is_lent();
        self.reserve.take();
        full
    }

    /// Queues a generation for recording; waits only while the queue is full. `done` runs on the ledger's thread after
    /// the commit: it must be quick and must not wait for the ledger.
    ///
    /// # Errors
    /// `Closed` at once. Passed to `done`: `Arg` for an id that is taken or too long, an unknown version, or sampling
    /// settings that are not finite; `Io` if it could not be written.
    pub fn record_generation(&self, g: Arc<Generation>, done: Box<dyn FnOnce(Result<()>) + Send>) -> Result<()> {
        self.writer.submit(move |db| write::record(db, &g), done)
    }

    /// The same for an answer whose prompt repeats the words of another, if that is given: it is deleted when the
    /// other's user is forgotten. `done` gets `false`, and nothing is recorded, where that other is not on record any
    /// more.
    ///
    /// # Errors
    /// As [`Ledger::record_generation`].
    pub fn record_from(
        &self,
        g: Arc<Generation>,
        origin: Option<GenerationId>,
        done: Box<dyn FnOnce(Result<bool>) + Send>,
    ) -> Result<()> {
        let work = move |db: &Connection| match &origin {
            Some(origin) => write::record_from(db, &g, origin),
            None => write::record(db, &g).map(|()| true),
        };
        self.writer.submit(work, done)
    }

    /// Records feedback; it is on disk when this returns.
    ///
    /// # Errors
    /// `Arg` for an unknown generation, a rating outside [-1, 1] or not a number, or text that is too long; `Io` if it
    /// could not be written; `Closed`.
    pub fn add_feedback(&self, f: &NewFeedback) -> Result<FeedbackReceipt> {
        self.put_feedback(f, self.rules.clone())
    }

    fn put_feedback(&self, f: &NewFeedback, rules: Arc<Rules>) -> Result<FeedbackReceipt> {
        write::check_feedback(f)?;
        let (f, pending) = (f.clone(), self.pending.clone());
        let work = move |db: &Connection| write::insert_feedback(db, &f, &rules);
        let (receipt, _) = self.writer.call(work, move |(_, first)| {
            if *first {
                pending.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(receipt)
    }

    /// Records that one answer is better than another, and returns its row number; it is on disk then. A repeated
    /// preference keeps its row.
    ///
    /// # Errors
    /// As [`Ledger::add_feedback`]; `Arg` also if both are the same.
    pub fn add_preference(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        check_preference(chosen, rejected, user)?;
        let (chosen, rejected, user) = (chosen.clone(), rejected.clone(), user.map(str::to_owned));
        let work = move |db: &Connection| write::insert_preference(db, &chosen, &rejected, user.as_deref());
        Ok(self.writer.call(work, |_| ())?.0)
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

    /// Number of answers that [`Ledger::pending_batch`] would offer. Costs nothing.
    pub fn pending_ratings(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// At most `max` answers with feedback that is not yet used, the oldest first, as far as the rules allow. A user's
    /// last rating of an answer counts, and the mean over users; all ratings are listed. Answers without tokens are
    /// never offered. Nothing is marked: the same batch comes again until a commit uses it.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pending_batch(&self, max: usize) -> Result<Vec<RatedGeneration>> {
        self.read(|db| limits::pending_batch(db, max, &self.rules))
    }

    /// At most `max` answers without feedback that were in no batch, the newest first, from version `since` on.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn unrated(&self, max: usize, since: PolicyVersion) -> Result<Vec<RatedGeneration>> {
        self.read(|db| samples::unrated(db, max, since))
    }

    /// The newest prompts of requests, at most `max`, each once. (Rollouts, whose ids begin with `rol-`, are not
    /// requests.)
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn recent_prompts(&self, max: usize) -> Result<Vec<AskedPrompt>> {
        self.read(|db| samples::recent_prompts(db, max))
    }

    /// The training samples made from an answer, oldest first.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn samples_of(&self, id: &GenerationId) -> Result<Vec<StoredSample>> {
        self.read(|db| samples::samples_of(db, id))
    }

    /// At most `max` answers that were trained on, spread over the last thousands, with their scores; only of batches
    /// before the batch `before`, if that is given. The selection depends on `draw` and their ids.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn taught(&self, max: usize, draw: u64, before: Option<u64>) -> Result<Vec<(Generation, f64)>> {
        self.read(|db| samples::taught(db, max, draw, before))
    }

    /// Preferences and corrections as pairs for a reward model, oldest first, as far as the rules allow: without users
    /// who are held or rejected, repeats, what exceeds a user's hourly limit or share, and what is in quarantine.
    /// Imported pairs have no hourly limit and no share.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pairs(&self) -> Result<Vec<StoredPair>> {
        self.read(|db| limits::pairs(db, &self.rules))
    }

    /// Number of those pairs, without regard to users. Cheap.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn pair_count(&self) -> Result<u64> {
        self.read(rows::pair_count)
    }

    /// Users whose feedback waits for review, and those already decided about.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn reviews(&self) -> Result<Vec<ReviewEntry>> {
        self.read(|db| limits::reviews(db, &self.rules))
    }

    /// Records a decision about a user; it is on disk when this returns. Rejecting a user discards the user's waiting
    /// feedback for good.
    ///
    /// # Errors
    /// `Arg` for a name that is too long or that nobody on record has, `Io`, `Closed`.
    pub fn review(&self, user: &str, verdict: ReviewVerdict) -> Result<()> {
        write::check_length("the user's name", Some(user), MAX_USER)?;
        let user = user.to_owned();
        self.commit_batch(move |db| limits::review(db, &user, verdict))
    }

    /// Deletes a user's data: the answers made for the user with their prompts, those whose prompts repeat them,
    /// everyone's feedback on those, and the user's feedback on other answers. It is overwritten on disk, in the
    /// write-ahead log too, when this returns; while another program is reading the ledger, the log is only emptied
    /// afterwards ([`Forgotten::overwritten`]). Versions that were trained on the data remain, as do the figures of
    /// batches.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        self.forget_with(user, |_, _| Ok(()))
    }

    /// The same, after `first` in the same transaction.
    pub(super) fn forget_with(
        &self,
        user: &str,
        first: impl FnOnce(&Connection, &str) -> Result<()> + Send + 'static,
    ) -> Result<Forgotten> {
        let (user, pending) = (user.to_owned(), self.pending.clone());
        let gone = Arc::new(AtomicU64::new(0));
        let settled = gone.clone();
        let work = move |db: &Connection| {
            first(db, &user)?;
            let (forgotten, answers) = forget::forget(db, &user)?;
            gone.store(answers, Ordering::Relaxed);
            Ok(forgotten)
        };
        let folding = move |forgotten: &mut Forgotten, folded| {
            // Whatever happens to the log, they are deleted.
            pending.fetch_sub(settled.load(Ordering::Relaxed), Ordering::Relaxed);
            forgotten.overwritten = folded;
        };
        let (forgotten, lent) = self.reserve.during(|| self.writer.call_and_fold(work, folding));
        forgotten.map_err(|error| match lent && error.code() == Code::Io {
            true => error.context("nothing is forgotten, as that takes more room than the data folder's reserve"),
            false => error,
        })
    }

    /// The version that was activated last.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn active(&self) -> Result<PolicyVersion> {
        self.read(rows::active)
    }

    /// The version that was made last, active or not. Errors as [`Ledger::generation`].
    pub fn newest(&self) -> Result<PolicyVersion> {
        self.read(rows::newest)
    }

    /// The number of the next version.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn next_version(&self) -> Result<PolicyVersion> {
        Ok(PolicyVersion(self.newest()?.0 + 1))
    }

    /// SHA-256 of the base model that the ledger is bound to, if any.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn model_fingerprint(&self) -> Result<Option<String>> {
        self.read(|db| rows::meta(db, META_MODEL_SHA256))
    }

    /// Binds the ledger to its base model the first time, and checks it afterwards. (The name is for messages: the same
    /// file under another name is the same model.)
    ///
    /// # Errors
    /// `Model` if it is bound to another one, naming both.
    pub fn bind_model(&self, sha256: &str, name: &str) -> Result<()> {
        let (sha256, name) = (sha256.to_owned(), name.to_owned());
        self.writer.call(move |db| write::bind(db, &sha256, &name), |()| ())
    }

    /// Writes what is queued and releases the folder; later calls are refused as `Closed`. Idempotent; dropping the
    /// ledger does the same.
    pub fn close(&self) {
        // First, so that the writer is the last connection, which folds the write-ahead log into the file.
        let open = lock(&self.reader).take();
        // While the folder is still ours. Without a start or a deletion, nothing was given up.
        if open.is_some() && self.reserve.is_lent() {
            self.reserve.take();
        }
        drop(open);
        self.writer.close();
    }

    /// Runs a query on the committed data.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let reader = lock(&self.reader);
        let db = reader.as_ref().ok_or_else(|| Error::closed("the ledger is closed"))?;
        // One snapshot for all selects of a query.
        let snapshot = db.unchecked_transaction()?;
        query(&snapshot)
    }

    /// `work` returns how many answers no longer have a rating waiting.
    pub(super) fn commit_batch(&self, work: impl FnOnce(&Connection) -> Result<u64> + Send + 'static) -> Result<()> {
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

//! The handle of the ledger: sends each call to the writer's thread or to the reading connection. Never decides what
//! may be written or what counts.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::db::{Db, Heard, News, Noted};
use super::forget::{self, Forgotten};
use super::limits::{self, ReviewEntry, ReviewVerdict, Rules};
use super::lock::FolderLock;
use super::place::Place;
use super::readers::Readers;
use super::reserve::Reserve;
use super::rows::{self, AskedPrompt, StoredFeedback, StoredPair, StoredSample};
use super::spool::{Drainer, Spool, Spooled};
use super::waiting::{self, Pending};
use super::writer::Writer;
use super::{MAX_USER, META_MODEL_SHA256, place, samples, write};
use crate::error::{Code, Error, Result};
use crate::lock::lock;
use crate::system::make_private_folder;
use crate::types::*;

/// What is called with other servers' news.
type Hook = Arc<Mutex<Option<Box<dyn Fn(News) + Send>>>>;

/// An open ledger. One process per folder; every method is safe from any thread.
///
/// The version of a generation must be on record: commit a version before it serves.
pub struct Ledger {
    pub(super) writer: Arc<Writer>,
    /// Reads see committed data, and never wait for a write.
    readers: Readers,
    /// Number of answers with feedback to train on. Changed after a commit, before anyone is told of it.
    pending: Arc<Pending>,
    /// Other servers' news, where there are others.
    listener: Mutex<Option<place::database::Listener>>,
    hook: Hook,
    /// What waits while a database is away, and the thread that records it.
    pub(super) spool: Option<Arc<Spool>>,
    drainer: Mutex<Option<Drainer>>,
    /// In which this process writes what only one server may: its term of the lease.
    pub(super) term: Arc<AtomicU64>,
    /// Rules about whose feedback counts.
    pub(super) rules: Arc<Rules>,
    pub(super) reserve: Reserve,
}

impl Ledger {
    /// Whether a place holds a ledger, as far as its folder tells.
    pub fn exists<'a>(place: impl Into<Place<'a>>) -> bool {
        place.into().has_ledger()
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
    pub fn open<'a>(place: impl Into<Place<'a>>) -> Result<Ledger> {
        Self::open_with(place, Rules::default())
    }

    /// The same, with rules about whose feedback counts.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_with<'a>(place: impl Into<Place<'a>>, rules: Rules) -> Result<Ledger> {
        let place = place.into();
        let dir = place.dir();
        make_private_folder(dir).map_err(|e| Error::from(e).context(format!("creating {}", dir.display())))?;
        let held = FolderLock::take(dir)?;
        let reserve = Reserve::of(dir);
        reserve.lend();
        let opened = place.open()?;
        let (pending, hook) = (Arc::new(Pending::default()), Hook::default());
        let count = pending.clone();
        let committed = move |noted: Noted| count.committed(noted);
        let writer = Arc::new(Writer::start(opened.writer, held, committed)?);
        let listener = match opened.database {
            None => None,
            Some(database) => Some(database.listen(hearing(&writer, &pending, &hook))?),
        };
        writer.call(waiting::count)?;
        let rules = Arc::new(rules);
        let spool = listener.is_some().then(|| Spool::open(dir)).transpose()?.map(Arc::new);
        let drain = |spool: &Arc<Spool>| Drainer::start(spool.clone(), writer.clone(), rules.clone());
        let drainer = Mutex::new(spool.as_ref().map(drain).transpose()?);
        let (listener, readers) = (Mutex::new(listener), Readers::new(opened.readers));
        let term = Arc::default();
        Ok(Ledger { writer, readers, pending, listener, hook, spool, drainer, term, rules, reserve })
    }

    /// Has `hook` called with the news of other servers of the ledger, once the number of waiting ratings follows them.
    /// It must be quick and must not wait for the ledger.
    pub fn on_news(&self, hook: impl Fn(News) + Send + 'static) {
        *lock(&self.hook) = Some(Box::new(hook));
    }

    /// Has `hook` called with what waits for a database that is away, whenever that changes, and now.
    pub(crate) fn on_spool(&self, hook: impl Fn(Spooled) + Send + 'static) {
        if let Some(spool) = &self.spool {
            spool.set_hook(hook);
        }
    }

    /// Whether other servers may have it open.
    pub(crate) fn is_shared(&self) -> bool {
        lock(&self.listener).is_some()
    }

    /// Ends a start: takes room for the next one, which a full disk would keep from beginning. Returns whether the disk
    /// is full.
    pub(crate) fn keep_reserve(&self) -> bool {
        let full = self.reserve.is_lent();
        self.reserve.take();
        full
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
        self.pending.get()
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
        self.writer.call(move |db| limits::review(db, &user, verdict))
    }

    /// Deletes a user's data: the answers made for the user with their prompts, those whose prompts repeat them,
    /// everyone's feedback on those, and the user's feedback on other answers. It is overwritten on disk, in the
    /// write-ahead log too, when this returns; while another program is reading the ledger, the log is only emptied
    /// afterwards ([`Forgotten::overwritten`]). Versions that were trained on the data remain, as do the figures of
    /// batches.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Busy` while some of it waits for a database that is away, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        self.forget_with(user, |_| Ok(()))
    }

    /// The same, after `first` in the same transaction.
    pub(super) fn forget_with(
        &self,
        user: &str,
        first: impl FnOnce(&Db) -> Result<()> + Send + 'static,
    ) -> Result<Forgotten> {
        if self.spool.as_ref().is_some_and(|spool| spool.holds()) {
            return Err(Error::busy(
                "answers and feedback wait for the database, some of which may be the user's; try again soon",
            ));
        }
        let user = user.to_owned();
        let work = move |db: &Db| {
            first(db)?;
            forget::forget(db, &user)
        };
        let after = |forgotten: &mut Forgotten, at_once| forgotten.overwritten = at_once;
        let (forgotten, lent) = self.reserve.during(|| self.writer.call_and_overwrite(work, after));
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
        self.writer.call(move |db| write::bind(db, &sha256, &name))
    }

    /// Writes what is queued and releases the folder; later calls are refused as `Closed`. Idempotent; dropping the
    /// ledger does the same.
    pub fn close(&self) {
        self.give_lease_back();
        // First, so that the writer is the last connection, which folds the write-ahead log into the file.
        let was_open = self.readers.close();
        // While the folder is still ours. Without a start or a deletion, nothing was given up.
        if was_open && self.reserve.is_lent() {
            self.reserve.take();
        }
        let (listener, drainer) = (lock(&self.listener).take(), lock(&self.drainer).take());
        drop((listener, drainer));
        self.writer.close();
    }

    /// Runs a query on the committed data.
    pub(super) fn read<T>(&self, query: impl FnOnce(&Db) -> Result<T>) -> Result<T> {
        self.readers.read(query)
    }
}

/// What becomes of other servers' news.
fn hearing(writer: &Arc<Writer>, pending: &Arc<Pending>, hook: &Hook) -> impl Fn(Heard) + Send + use<> {
    let (writer, pending, hook) = (Arc::downgrade(writer), pending.clone(), hook.clone());
    move |heard| {
        let news = match heard {
            Heard::News(news, moment) => {
                pending.heard(news, moment);
                news
            }
            Heard::Missed => {
                let told = |counted: Result<()>| {
                    if let Err(error) = counted {
                        tracing::warn!(%error, "waiting feedback could not be counted anew");
                    }
                };
                let again = writer.upgrade().map(|writer| writer.submit(waiting::count, told));
                drop(again); // Closed: nobody asks any more.
                News { waiting: 0, versions: true }
            }
        };
        if let Some(hook) = &*lock(&hook) {
            hook(news);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}

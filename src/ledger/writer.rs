//! The writing thread: commits everything queued as one transaction with one fsync, then answers all callers. Never
//! answers before the commit, and never lets one failing write undo the others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::forget::fold_log;
use super::lock::FolderLock;
use crate::error::{Error, Result};
use crate::lock::lock;

/// Writes that may be queued; beyond that, callers wait.
const QUEUE: usize = 1024;
/// Most writes per transaction: bounds how long the first of them waits.
const GROUP: usize = 256;

/// How long emptying the log waits for readers, while later writes wait.
const FOLD_PATIENCE: Duration = Duration::from_millis(200);
/// Time until the next try.
const FOLD_AGAIN: Duration = Duration::from_secs(1);

/// Passes work to the thread.
pub(super) struct Writer {
    /// Taken when closing; the thread ends once the queue is done.
    queue: Mutex<Option<Sender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A write and its callback.
trait Job: Send {
    /// Writes, inside the group's transaction.
    fn run(&mut self, db: &Connection) -> Result<()>;
    /// Whether the log must be emptied after the commit.
    fn folds(&self) -> bool;
    /// Receives whether the log was emptied.
    fn folded(&mut self, folded: bool);
    /// Reports the outcome, given that of the whole group.
    fn answer(self: Box<Self>, group: &Result<()>);
}

struct Write<T, W, A, D> {
    /// Taken when it runs.
    work: Option<W>,
    /// Receives whether the log was emptied; `None` if that doesn't matter.
    after: Option<A>,
    done: D,
    /// The result of the work; an error until it has run.
    outcome: Result<T>,
}

impl<T: Send, W, A, D> Job for Write<T, W, A, D>
where
    W: FnOnce(&Connection) -> Result<T> + Send,
    A: FnOnce(&mut T, bool) + Send,
    D: FnOnce(Result<T>) + Send,
{
    fn run(&mut self, db: &Connection) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.outcome = catch_unwind(AssertUnwindSafe(|| work(db)))
            .unwrap_or_else(|_| Err(Error::panic("a write to the ledger panicked")));
        self.outcome.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn folds(&self) -> bool {
        self.after.is_some() && self.outcome.is_ok()
    }

    fn folded(&mut self, folded: bool) {
        if let Ok(outcome) = &mut self.outcome
            && let Some(after) = self.after.take()
        {
            after(outcome, folded);
        }
    }

    fn answer(self: Box<Self>, group: &Result<()>) {
        let Self { work, done, outcome, .. } = *self;
        let result = match group {
            // Its own error is more specific than the group's.
            Err(e) if outcome.is_ok() || work.is_some() => Err(e.clone()),
            _ => outcome,
        };
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("a callback of the ledger panicked");
        }
    }
}

impl Writer {
    /// The thread holds `lock` for as long as it may write.
    pub(super) fn start(db: Connection, lock: FolderLock) -> Result<Self> {
        let (sender, receiver) = bounded(QUEUE);
        let thread = std::thread::Builder::new().name("apa-ledger".into()).spawn(move || {
            // What was being written is undone, and those who wait for it are told; what is queued is written after it.
            while catch_unwind(AssertUnwindSafe(|| run(&db, &receiver))).is_err() {
                tracing::error!("a bug stopped the ledger's thread, which goes on with the next write");
            }
            drop((db, lock));
        })?;
        Ok(Self { queue: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Queues `work`; `done` runs on the writer's thread once the outcome is certain. Waits only while the queue is
    /// full.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        self.queue_up(work, None::<fn(&mut T, bool)>, done)
    }

    fn queue_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        after: Option<impl FnOnce(&mut T, bool) + Send + 'static>,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        let closed = || Error::closed("the ledger is closed");
        // Cloned, so that waiting for space does not block `close`.
        let queue = lock(&self.queue).clone().ok_or_else(closed)?;
        let outcome = Err(Error::closed("the write was not reached"));
        queue.send(Box::new(Write { work: Some(work), after, done, outcome })).map_err(|_| closed())
    }

    /// Runs `work` and waits until it is durable; `done` runs before this returns.
    pub(super) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        done: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = bounded(1);
        self.submit(work, move |outcome| {
            let _ = sender.send(outcome.inspect(done)); // The caller waits below: it is always there.
        })?;
        receiver.recv().map_err(|_| Error::panic("the ledger's thread ended without an answer"))?
    }

    /// The same; then empties the log, and tells `after` whether that succeeded at once.
    pub(super) fn call_and_fold<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        after: impl FnOnce(&mut T, bool) + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = bounded(1);
        self.queue_up(work, Some(after), move |outcome| {
            let _ = sender.send(outcome); // The caller waits below: it is always there.
        })?;
        receiver.recv().map_err(|_| Error::panic("the ledger's thread ended without an answer"))?
    }

    /// Finishes the queue and ends the thread. Idempotent.
    pub(super) fn close(&self) {
        drop(lock(&self.queue).take());
        let thread = lock(&self.thread).take();
        // A callback that drops the last handle runs on that thread, which can't wait for itself.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join(); // Its panics are caught inside.
        }
    }
}

fn run(db: &Connection, queue: &Receiver<Box<dyn Job>>) {
    // Whether the log still holds deleted data.
    let mut unfolded = false;
    // What failed last: a disk that stays full is told of once, not at each write.
    let mut failing: Option<String> = None;
    loop {
        let first = if unfolded { queue.recv_timeout(FOLD_AGAIN) } else { queue.recv().map_err(Into::into) };
        let mut group = match first {
            Ok(first) => vec![first],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        group.extend(queue.try_iter().take(GROUP.saturating_sub(group.len())));
        let fate = if group.is_empty() { Ok(()) } else { commit(db, &mut group) };
        if let Err(error) = &fate {
            let error = error.to_string();
            if failing.as_ref() != Some(&error) {
                tracing::error!(error, writes = group.len(), "the ledger could not commit");
            }
            failing = Some(error);
        } else if group.is_empty() || group.iter().any(|job| job.folds()) {
            unfolded = !fold_log(db, FOLD_PATIENCE).unwrap_or_else(|error| {
                tracing::warn!(%error, "the ledger's log could not be emptied; it is tried again");
                false
            });
            group.iter_mut().filter(|job| job.folds()).for_each(|job| job.folded(!unfolded));
        }
        if fate.is_ok() && !group.is_empty() {
            failing = None;
        }
        for job in group {
            job.answer(&fate);
        }
    }
}

fn commit(db: &Connection, group: &mut [Box<dyn Job>]) -> Result<()> {
    let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    for job in group {
        tx.prepare_cached("SAVEPOINT job")?.execute([])?;
        if let Err(error) = job.run(db) {
            // A full disk or a failed read may have ended the whole transaction, so nothing of the group was written.
            if tx.is_autocommit() {
                return Err(error);
            }
            tx.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        tx.prepare_cached("RELEASE job")?.execute([])?;
    }
    Ok(tx.commit()?)
}

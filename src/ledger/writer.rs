//! The one thread that writes: takes what is queued, commits it as one transaction with one fsync, then answers
//! everyone. Never answers before the commit, and never lets one failing write undo its neighbours.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::lock::FolderLock;
use crate::error::{Error, Result};
use crate::lock::lock;

/// Writes that may wait; one more waits in the caller.
const QUEUE: usize = 1024;
/// Most writes of one transaction: bounds how long the first of them waits.
const GROUP: usize = 256;

/// Gives work to the thread.
pub(super) struct Writer {
    /// Taken when closing; the thread ends when it has done what was queued.
    queue: Mutex<Option<Sender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A write and whom to tell.
trait Job: Send {
    /// Does the write, inside the group's transaction.
    fn run(&mut self, db: &Connection) -> Result<()>;
    /// Does what can't be done inside a transaction, once the group is committed.
    fn after(&mut self, db: &Connection);
    /// Tells what became of it, given what became of the group.
    fn answer(self: Box<Self>, group: &Result<()>);
}

struct Write<T, W, A, D> {
    /// Taken when it runs.
    work: Option<W>,
    after: Option<A>,
    done: D,
    /// What the work returned; an error if it has not run.
    outcome: Result<T>,
}

impl<T: Send, W, A, D> Job for Write<T, W, A, D>
where
    W: FnOnce(&Connection) -> Result<T> + Send,
    A: FnOnce(&Connection) -> Result<()> + Send,
    D: FnOnce(Result<T>) + Send,
{
    fn run(&mut self, db: &Connection) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.outcome = catch_unwind(AssertUnwindSafe(|| work(db)))
            .unwrap_or_else(|_| Err(Error::panic("a write to the ledger panicked")));
        self.outcome.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn after(&mut self, db: &Connection) {
        if let Some(after) = self.after.take().filter(|_| self.outcome.is_ok())
            && let Err(error) = after(db)
        {
            self.outcome = Err(error);
        }
    }

    fn answer(self: Box<Self>, group: &Result<()>) {
        let Self { work, done, outcome, .. } = *self;
        let result = match group {
            // Its own error says more than the group's.
            Err(e) if outcome.is_ok() || work.is_some() => Err(e.clone()),
            _ => outcome,
        };
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!("a callback of the ledger panicked");
        }
    }
}

impl Writer {
    /// The thread keeps `lock` for as long as it may write.
    pub(super) fn start(db: Connection, lock: FolderLock) -> Result<Self> {
        let (sender, receiver) = bounded(QUEUE);
        let thread = std::thread::Builder::new().name("apa-ledger".into()).spawn(move || {
            run(&db, &receiver);
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
        self.queue_up(work, None::<fn(&Connection) -> Result<()>>, done)
    }

    fn queue_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        after: Option<impl FnOnce(&Connection) -> Result<()> + Send + 'static>,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        let closed = || Error::closed("the ledger is closed");
        // Cloned, so that waiting for a place does not hold up `close`.
        let queue = lock(&self.queue).clone().ok_or_else(closed)?;
        let outcome = Err(Error::closed("the write was not reached"));
        queue.send(Box::new(Write { work: Some(work), after, done, outcome })).map_err(|_| closed())
    }

    /// Does `work` and waits until it is durable; `done` runs before this returns.
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

    /// The same, with `after` done outside of any transaction once `work` is durable; its error is the call's.
    pub(super) fn call_then<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
        after: impl FnOnce(&Connection) -> Result<()> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = bounded(1);
        self.queue_up(work, Some(after), move |outcome| {
            let _ = sender.send(outcome); // The caller waits below: it is always there.
        })?;
        receiver.recv().map_err(|_| Error::panic("the ledger's thread ended without an answer"))?
    }

    /// Does what is queued and ends the thread. Idempotent.
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
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        group.extend(queue.try_iter().take(GROUP - 1));
        let fate = commit(db, &mut group);
        if fate.is_ok() {
            group.iter_mut().for_each(|job| job.after(db));
        }
        if let Err(error) = &fate {
            tracing::error!(%error, writes = group.len(), "the ledger could not commit");
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
            // A full disk or a failed read may have ended the whole transaction: nothing of the group stands then.
            if tx.is_autocommit() {
                return Err(error);
            }
            tx.prepare_cached("ROLLBACK TO job")?.execute([])?;
        }
        tx.prepare_cached("RELEASE job")?.execute([])?;
    }
    Ok(tx.commit()?)
}

//! The writing thread: commits everything queued as one transaction with one fsync, then answers all callers. Never
//! answers before the commit, and never lets one failing write undo the others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::db::{Db, Noted, Remains};
use super::limits::Rules;
use super::lock::FolderLock;
use super::said::{self, New};
use super::waiting;
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::types::*;

/// Writes that may be queued; beyond that, callers wait.
const QUEUE: usize = 1024;
/// Most writes per transaction: bounds how long the first of them waits.
const GROUP: usize = 256;

/// How long overwriting what was deleted waits for readers, while later writes wait.
const PATIENCE: Duration = Duration::from_millis(200);
/// Time until the next try.
const AGAIN: Duration = Duration::from_secs(1);

/// Passes work to the thread.
pub(super) struct Writer {
    /// Taken when closing; the thread ends once the queue is done.
    queue: Mutex<Option<Sender<Box<dyn Job>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A write and its callback.
trait Job: Send {
    /// Writes, inside the group's transaction.
    fn run(&mut self, db: &Db) -> Result<()>;
    /// Whether what was deleted must be overwritten after the commit.
    fn deletes(&self) -> bool;
    /// Receives whether it was.
    fn overwritten(&mut self, at_once: bool);
    /// The feedback that it is, and its rules: several pieces are recorded faster together.
    fn feedback(&self) -> Option<(New<'_>, &Arc<Rules>)> {
        None
    }
    /// Receives what became of that.
    fn recorded(&mut self, _: Result<FeedbackReceipt>) {}
    /// Reports the outcome, given that of the whole group.
    fn answer(self: Box<Self>, group: &Result<()>);
}

struct Write<T, W, A, D> {
    /// Taken when it runs.
    work: Option<W>,
    /// Receives whether what was deleted was overwritten; `None` if nothing is.
    after: Option<A>,
    done: D,
    /// The result of the work; an error until it has run.
    outcome: Result<T>,
}

impl<T: Send, W, A, D> Job for Write<T, W, A, D>
where
    W: FnOnce(&Db) -> Result<T> + Send,
    A: FnOnce(&mut T, bool) + Send,
    D: FnOnce(Result<T>) + Send,
{
    fn run(&mut self, db: &Db) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        self.outcome = catch_unwind(AssertUnwindSafe(|| work(db)))
            .unwrap_or_else(|_| Err(Error::panic("a write to the ledger panicked")));
        self.outcome.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn deletes(&self) -> bool {
        self.after.is_some() && self.outcome.is_ok()
    }

    fn overwritten(&mut self, at_once: bool) {
        if let Ok(outcome) = &mut self.outcome
            && let Some(after) = self.after.take()
        {
            after(outcome, at_once);
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

/// A piece of feedback.
struct WriteFeedback {
    feedback: NewFeedback,
    identity: String,
    rules: Arc<Rules>,
    done: Sender<Result<FeedbackReceipt>>,
    /// None until it has run.
    outcome: Option<Result<FeedbackReceipt>>,
}

impl Job for WriteFeedback {
    fn run(&mut self, db: &Db) -> Result<()> {
        let Self { feedback, identity, rules, .. } = self;
        let outcome = catch_unwind(AssertUnwindSafe(|| said::insert_feedback(db, feedback, rules, identity)))
            .unwrap_or_else(|_| Err(Error::panic("a write to the ledger panicked")));
        let done = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.outcome = Some(outcome);
        done
    }

    fn deletes(&self) -> bool {
        false
    }

    fn overwritten(&mut self, _: bool) {}

    fn feedback(&self) -> Option<(New<'_>, &Arc<Rules>)> {
        Some((New { feedback: &self.feedback, identity: &self.identity }, &self.rules))
    }

    fn recorded(&mut self, outcome: Result<FeedbackReceipt>) {
        self.outcome = Some(outcome);
    }

    fn answer(self: Box<Self>, group: &Result<()>) {
        let Self { done, outcome, .. } = *self;
        let result = match (group, outcome) {
            // Its own error is more specific than the group's.
            (_, Some(Err(own))) => Err(own),
            (Err(of_all), _) => Err(of_all.clone()),
            (Ok(()), Some(receipt)) => receipt,
            (Ok(()), None) => Err(Error::panic("a piece of feedback was not reached")),
        };
        let _ = done.send(result); // The caller waits for it: it is always there.
    }
}

impl Writer {
    /// The thread holds `lock` for as long as it may write. `told` gets what it commits before anyone is answered.
    pub(super) fn start(db: Db, lock: FolderLock, told: impl Fn(Noted) + Send + 'static) -> Result<Self> {
        let (sender, receiver) = bounded(QUEUE);
        let thread = std::thread::Builder::new().name("apa-ledger".into()).spawn(move || {
            // What was being written is undone, and those who wait for it are told; what is queued is written after it.
            while catch_unwind(AssertUnwindSafe(|| run(&db, &receiver, &told))).is_err() {
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
        work: impl FnOnce(&Db) -> Result<T> + Send + 'static,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        self.queue_up(work, None::<fn(&mut T, bool)>, done)
    }

    fn queue_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T> + Send + 'static,
        after: Option<impl FnOnce(&mut T, bool) + Send + 'static>,
        done: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        let outcome = Err(Error::closed("the write was not reached"));
        self.enqueue(Box::new(Write { work: Some(work), after, done, outcome }))
    }

    /// Runs `work` and waits until it is durable.
    pub(super) fn call<T: Send + 'static>(&self, work: impl FnOnce(&Db) -> Result<T> + Send + 'static) -> Result<T> {
        let (sender, receiver) = bounded(1);
        self.submit(work, move |outcome| {
            let _ = sender.send(outcome); // The caller waits below: it is always there.
        })?;
        receiver.recv().map_err(|_| Error::panic("the ledger's thread ended without an answer"))?
    }

    /// Records a piece of feedback, with others that wait, and waits until it is durable.
    pub(super) fn call_feedback(
        &self,
        feedback: NewFeedback,
        identity: String,
        rules: Arc<Rules>,
    ) -> Result<FeedbackReceipt> {
        let (done, receiver) = bounded(1);
        self.enqueue(Box::new(WriteFeedback { feedback, identity, rules, done, outcome: None }))?;
        receiver.recv().map_err(|_| Error::panic("the ledger's thread ended without an answer"))?
    }

    fn enqueue(&self, job: Box<dyn Job>) -> Result<()> {
        let closed = || Error::closed("the ledger is closed");
        // Cloned, so that waiting for space does not block `close`.
        let queue = lock(&self.queue).clone().ok_or_else(closed)?;
        queue.send(job).map_err(|_| closed())
    }

    /// The same; then overwrites what was deleted, and tells `after` whether that succeeded at once.
    pub(super) fn call_and_overwrite<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Db) -> Result<T> + Send + 'static,
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

fn run(db: &Db, queue: &Receiver<Box<dyn Job>>, told: &impl Fn(Noted)) {
    // Whether a copy of deleted data may be left.
    let mut left = false;
    // What failed last: a disk that stays full is told of once, not at each write.
    let mut failing: Option<String> = None;
    // Whether the last commit failed: what it changed may be on record all the same.
    let mut uncertain = false;
    loop {
        let first = if left { queue.recv_timeout(AGAIN) } else { queue.recv().map_err(Into::into) };
        let mut group = match first {
            Ok(first) => vec![first],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        group.extend(queue.try_iter().take(GROUP.saturating_sub(group.len())));
        let fate = if group.is_empty() { Ok(()) } else { commit(db, &mut group, uncertain).map(told) };
        uncertain = fate.is_err() || uncertain && group.is_empty();
        if let Err(error) = &fate {
            let error = error.to_string();
            if failing.as_ref() != Some(&error) {
                tracing::error!(error, writes = group.len(), "the ledger could not commit");
            }
            failing = Some(error);
        } else if group.is_empty() || group.iter().any(|job| job.deletes()) {
            let remains = db.overwrite(PATIENCE).unwrap_or_else(|error| {
                tracing::warn!(%error, "what was deleted could not be overwritten; it is tried again");
                Remains::ForNow
            });
            left = remains == Remains::ForNow;
            let deletes = group.iter_mut().filter(|job| job.deletes());
            deletes.for_each(|job| job.overwritten(remains == Remains::Nothing));
        }
        if fate.is_ok() && !group.is_empty() {
            failing = None;
        }
        for job in group {
            job.answer(&fate);
        }
    }
}

/// Writes all of a group but what fails, and returns what they noted.
fn commit(db: &Db, group: &mut [Box<dyn Job>], uncertain: bool) -> Result<Noted> {
    db.writing(|db| {
        if uncertain {
            waiting::count(db)?;
        }
        let mut rest = group;
        while !rest.is_empty() {
            let alike = rest.iter().take_while(|job| job.feedback().is_some()).count();
            let (first, others) = rest.split_at_mut(alike.max(1));
            if alike < 2 || !together(db, first)? {
                for job in first {
                    // Its own error is told to its caller; that of the whole ends it for all.
                    let _own = db.attempt(|db| job.run(db))?;
                }
            }
            rest = others;
        }
        Ok(())
    })
}

/// Records pieces of feedback together; false, and nothing of it, if one of them is more than the database can take.
fn together(db: &Db, jobs: &mut [Box<dyn Job>]) -> Result<bool> {
    let all: Vec<(New<'_>, &Arc<Rules>)> = jobs.iter().filter_map(|job| job.feedback()).collect();
    let Some(rules) = all.first().map(|(_, rules)| (*rules).clone()) else { return Ok(false) };
    let all: Vec<New<'_>> = all.into_iter().map(|(new, _)| new).collect();
    let insert = || said::insert_all(db, &all, &rules);
    let caught = |_| Err(Error::panic("a write to the ledger panicked"));
    let Ok(outcomes) = db.attempt(|_| catch_unwind(AssertUnwindSafe(insert)).unwrap_or_else(caught))? else {
        return Ok(false);
    };
    jobs.iter_mut().zip(outcomes).for_each(|(job, outcome)| job.recorded(outcome));
    Ok(true)
}

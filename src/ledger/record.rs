//! Takes down answers and what is said of them, in the ledger, or on this machine while a database is away. Never
//! decides what counts.

use std::sync::Arc;

use super::db::Db;
use super::spool::Entry;
use super::{Ledger, MAX_USER, said, write};
use crate::error::{Code, Error, Result};
use crate::types::*;

pub(super) fn check_preference(chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<()> {
    write::check_length("the user's name", user, MAX_USER)?;
    if chosen == rejected {
        return Err(Error::arg("chosen and rejected are the same generation, expected two"));
    }
    Ok(())
}

/// Whether a database is away, or another server hangs that holds it.
fn is_away(error: &Error) -> bool {
    matches!(error.code(), Code::Io | Code::Busy)
}

fn recording(g: Arc<Generation>, origin: Option<GenerationId>) -> impl FnOnce(&Db) -> Result<bool> + Send + 'static {
    move |db| match &origin {
        Some(origin) => write::record_from(db, &g, origin),
        None => write::record(db, &g).map(|()| true),
    }
}

impl Ledger {
    /// Queues a generation for recording; waits only while the queue is full. `done` runs on the ledger's thread after
    /// the commit: it must be quick and must not wait for the ledger.
    ///
    /// # Errors
    /// `Closed` at once. Passed to `done`: `Arg` for an id that is taken or too long, an unknown version, or sampling
    /// settings that are not finite; `Io` if it could not be written.
    pub fn record_generation(&self, g: Arc<Generation>, done: Box<dyn FnOnce(Result<()>) + Send>) -> Result<()> {
        self.record_from(g, None, Box::new(|recorded| done(recorded.map(drop))))
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
        let Some(spool) = self.spool.clone() else { return self.writer.submit(recording(g, origin), done) };
        let waiting = Entry::Answer(Box::new((*g).clone()), origin.clone());
        if spool.holds() {
            done(spool.keep(&waiting).map(|()| true));
            return Ok(());
        }
        let (id, version) = (g.id.clone(), g.policy_version);
        let told = move |written: Result<bool>| match written {
            Err(error) if is_away(&error) => done(spool.keep(&waiting).map_err(|_| error).map(|()| true)),
            written => {
                if let Ok(true) = written {
                    spool.note(&id, version);
                }
                done(written);
            }
        };
        self.writer.submit(recording(g, origin), told)
    }

    /// Records feedback; it is on disk when this returns. While a database is away, that of an answer which this
    /// process gave waits in a file of the data folder.
    ///
    /// # Errors
    /// `Arg` for an unknown generation, a rating outside [-1, 1] or not a number, or text that is too long; `Io` if it
    /// could not be written; `Closed`.
    pub fn add_feedback(&self, f: &NewFeedback) -> Result<FeedbackReceipt> {
        write::check_feedback(f)?;
        let identity = said::new_identity();
        let Some(spool) = &self.spool else { return self.insert_feedback(f, identity) };
        let keep = |identity: String, version| -> Result<FeedbackReceipt> {
            spool.keep(&Entry::Feedback(Box::new(f.clone()), identity))?;
            Ok(FeedbackReceipt {
                feedback_id: 0,
                generation_id: f.generation_id.clone(),
                policy_version: version,
                replaces_earlier: false,
                left_out: None,
                spooled: true,
            })
        };
        let known = spool.version_of(&f.generation_id);
        match known {
            Some(version) if spool.holds() => keep(identity, version),
            _ => match self.insert_feedback(f, identity.clone()) {
                Err(error) if is_away(&error) => {
                    known.map_or(Err(error.clone()), |version| keep(identity, version).map_err(|_| error))
                }
                inserted => inserted,
            },
        }
    }

    fn insert_feedback(&self, f: &NewFeedback, identity: String) -> Result<FeedbackReceipt> {
        let (f, rules) = (f.clone(), self.rules.clone());
        self.writer.call_feedback(f, identity, rules)
    }

    /// Records that one answer is better than another, and returns its row number; it is on disk then. A repeated
    /// preference keeps its row.
    ///
    /// # Errors
    /// As [`Ledger::add_feedback`]; `Arg` also if both are the same.
    pub fn add_preference(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        check_preference(chosen, rejected, user)?;
        let (chosen, rejected, user) = (chosen.clone(), rejected.clone(), user.map(str::to_owned));
        let work = move |db: &Db| write::insert_preference(db, &chosen, &rejected, user.as_deref());
        Ok(self.writer.call(work)?.0)
    }
}

//! Which of a ledger's servers decides: trains, judges and publishes. It holds a lease of some term, and what is
//! written in another term's name is refused, so that one that slept through the end of its own changes nothing. Never
//! says who should have it.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::db::Db;
use super::{Ledger, marks};
use crate::error::{Error, Result};

const LEASE: &str = "lease";
/// The term of a process that asks for no lease, being alone.
const ALONE: u64 = 0;
/// The term of a process that has no lease.
const NONE: u64 = u64::MAX;

/// The right to decide, as it is on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// Grows each time that somebody takes it.
    term: u64,
    /// Grows for as long as its holder lives.
    beat: u64,
    /// Who has it, for people to read; nobody if it was given back.
    pub(crate) holder: Option<String>,
}

impl Ledger {
    /// From now on, nothing that only one server decides is written without a lease.
    pub(crate) fn need_lease(&self) {
        self.term.store(NONE, Ordering::SeqCst);
    }

    /// Whether this process may decide, as far as it knows.
    pub(crate) fn may_decide(&self) -> bool {
        self.term.load(Ordering::SeqCst) != NONE
    }

    /// The lease, if anybody ever had it.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub(crate) fn lease(&self) -> Result<Option<Lease>> {
        self.read(lease)
    }

    /// Takes the lease, unless it is not as it was `seen` any more. Returns whether it was taken.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub(crate) fn take_lease(&self, seen: Option<&Lease>, holder: &str) -> Result<bool> {
        let (seen, holder, term) = (seen.cloned(), holder.to_owned(), self.term.clone());
        let work = move |db: &Db| {
            if lease(db)? != seen {
                return Ok(None);
            }
            let next = seen.map_or(0, |seen| seen.term) + 1;
            marks::set(db, LEASE, &Lease { term: next, beat: 0, holder: Some(holder) })?;
            db.note_versions();
            Ok(Some(next))
        };
        let taken = self.writer.call(work)?;
        if let Some(next) = taken {
            term.store(next, Ordering::SeqCst);
        }
        Ok(taken.is_some())
    }

    /// Shows that its holder lives. Returns whether this process still has it.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub(crate) fn keep_lease(&self) -> Result<bool> {
        self.change_lease(|lease| lease.beat += 1)
    }

    /// Gives the lease back if this process has it: another server needs no patience then.
    pub(super) fn give_lease_back(&self) {
        if matches!(self.term.load(Ordering::SeqCst), ALONE | NONE) {
            return;
        }
        if let Err(error) = self.change_lease(|lease| lease.holder = None) {
            tracing::warn!(%error, "another server has to wait before it decides in this one's place");
        }
        self.need_lease();
    }

    fn change_lease(&self, change: impl FnOnce(&mut Lease) + Send + 'static) -> Result<bool> {
        let term = self.term.load(Ordering::SeqCst);
        let kept = self.writer.call(move |db| {
            let Some(mut held) = lease(db)?.filter(|lease| lease.term == term) else { return Ok(false) };
            change(&mut held);
            marks::set(db, LEASE, &held)?;
            if held.holder.is_none() {
                db.note_versions();
            }
            Ok(true)
        })?;
        if !kept {
            self.need_lease();
        }
        Ok(kept)
    }

    /// `work` as a write that only the server that decides may make.
    pub(super) fn deciding<T>(
        &self,
        work: impl FnOnce(&Db) -> Result<T> + Send + 'static,
    ) -> impl FnOnce(&Db) -> Result<T> + Send + 'static {
        let term = self.term.load(Ordering::SeqCst);
        move |db| {
            if term != ALONE && lease(db)?.is_none_or(|lease| lease.term != term) {
                return Err(Error::busy("another server of the ledger trains and decides now: nothing was written"));
            }
            work(db)
        }
    }

    /// Writes what only the server that decides may write; it is on disk when this returns.
    pub(super) fn decide<T: Send + 'static>(&self, work: impl FnOnce(&Db) -> Result<T> + Send + 'static) -> Result<T> {
        self.writer.call(self.deciding(work))
    }
}

fn lease(db: &Db) -> Result<Option<Lease>> {
    marks::mark(db, LEASE)
}

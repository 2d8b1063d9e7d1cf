//! What a training step leaves on record: its version, the feedback that it used up, and its samples. Never trains.

use super::Ledger;
use super::db::Db;
use super::write::{self, TrainedBatch};
use super::{rows, verdicts};
use crate::error::Result;
use crate::types::*;

/// What activating a version decides about verdicts.
#[derive(Debug)]
pub enum Decides {
    /// Nothing.
    Nothing,
    /// One verdict: its number, the ruling and the record.
    Verdict(u64, Ruling, serde_json::Value),
    /// A person chose the version. If it was proposed, it is promoted; if it serves already, what is proposed is
    /// refused.
    Person,
}

impl Ledger {
    /// Records a new version with its batch: marks the feedback that it used, stores its samples, and activates it if
    /// `v` says so: all or nothing.
    ///
    /// # Errors
    /// `Arg` if the number is not above every earlier one, the parent is unknown, or feedback was used before or
    /// doesn't exist; `Io` if it could not be written; `Closed`.
    pub fn commit_version(&self, v: &VersionInfo, batch: TrainedBatch) -> Result<()> {
        let v = v.clone();
        self.decide(move |db| {
            write::insert_version(db, &v)?;
            write::trained(db, v.version, &batch)?;
            if v.active { write::activate(db, v.version) } else { Ok(()) }
        })
    }

    /// When a version was made, if it is on record.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn made(&self, version: PolicyVersion) -> Result<Option<UnixMillis>> {
        self.read(|db| {
            let sql = "SELECT created FROM versions WHERE version = ?1";
            db.first(sql, [rows::signed(version.0)], |row| rows::unsigned(row, 0))
        })
    }

    /// Records a version that was made elsewhere or earlier; the active one does not change.
    ///
    /// # Errors
    /// As [`Ledger::commit_version`].
    pub fn record_version(&self, v: &VersionInfo) -> Result<()> {
        let v = v.clone();
        self.decide(move |db| write::insert_version(db, &v))
    }

    /// Marks feedback as used up by a batch that made no version, and returns the batch's row.
    ///
    /// # Errors
    /// As [`Ledger::commit_version`].
    pub fn commit_skipped(&self, reason: &str, used: &[u64]) -> Result<u64> {
        let (reason, used) = (reason.to_owned(), used.to_vec());
        self.decide(move |db| write::use_up(db, &used, None, Some(&reason)))
    }

    /// Makes a version the active one.
    ///
    /// # Errors
    /// `Arg` for an unknown version, `Io`, `Closed`.
    pub fn set_active(&self, v: PolicyVersion) -> Result<()> {
        self.set_active_as(v, Decides::Nothing)
    }

    /// The same, with what it decides about verdicts. Both are on disk, or neither.
    ///
    /// # Errors
    /// `Arg` for an unknown version or verdict, `Io`, `Closed`.
    pub fn set_active_as(&self, v: PolicyVersion, decides: Decides) -> Result<()> {
        // A person may choose at any server.
        let person = matches!(decides, Decides::Person);
        let work = move |db: &Db| {
            match decides {
                Decides::Nothing => {}
                Decides::Verdict(id, ruling, record) => verdicts::update(db, id, ruling, &record)?,
                Decides::Person => verdicts::chosen(db, v)?,
            }
            write::activate(db, v)
        };
        // The way back must be open on a full disk, too.
        self.reserve.during(|| if person { self.writer.call(work) } else { self.decide(work) }).0
    }
}

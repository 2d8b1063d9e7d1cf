//! What is noted beside the rows, in the table `meta`: versions whose files were removed on purpose, and how the clock
//! ran. Never decides anything by it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Ledger;
use super::db::Db;
use super::rows::{self, damaged};
use crate::error::{Error, Result};
use crate::types::PolicyVersion;

const REMOVED: &str = "removed_versions";
const CLOCK: &str = "clock";

impl Ledger {
    /// Versions whose files were removed on purpose.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn removed(&self) -> Result<BTreeSet<PolicyVersion>> {
        self.read(|db| Ok(mark(db, REMOVED)?.unwrap_or_default()))
    }

    /// Notes that the files of these versions are removed on purpose.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn note_removed(&self, versions: &[PolicyVersion]) -> Result<()> {
        let versions = versions.to_vec();
        let work = move |db: &Db| {
            let mut all: BTreeSet<PolicyVersion> = mark(db, REMOVED)?.unwrap_or_default();
            all.extend(versions);
            set(db, REMOVED, &all)
        };
        self.decide(work)
    }

    /// How the clock ran, as it was noted last.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub(crate) fn clock<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.read(|db| mark(db, CLOCK))
    }

    /// Notes how the clock ran.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub(crate) fn note_clock(&self, clock: impl Serialize + Send + 'static) -> Result<()> {
        self.decide(move |db| set(db, CLOCK, &clock))
    }
}

pub(super) fn mark<T: DeserializeOwned>(db: &Db, key: &str) -> Result<Option<T>> {
    let Some(json) = rows::meta(db, key)? else { return Ok(None) };
    serde_json::from_str(&json).map(Some).map_err(|e| damaged(format!("{key}: {e}")))
}

pub(super) fn set(db: &Db, key: &str, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(value).map_err(|e| Error::io(format!("{key}: {e}")))?;
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    db.execute(sql, (key, json))?;
    Ok(())
}

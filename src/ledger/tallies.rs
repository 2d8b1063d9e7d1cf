//! Counts of what is on record, for whoever watches. Never changes it.

use std::collections::BTreeMap;

use super::db::Db;
use super::{Ledger, ReviewVerdict, Rules, limits, verdicts};
use crate::error::Result;

/// Counts of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    /// Verdicts, by what they rule; each ruling is there.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// Users whose feedback is held: flagged ones and those on hold.
    pub held_users: u64,
    /// Pieces of their feedback that wait.
    pub held_feedback: u64,
}

impl Ledger {
    /// Counts what is on record now.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn tallies(&self) -> Result<Tallies> {
        self.read(|db| tallies(db, &self.rules))
    }
}

fn tallies(db: &Db, rules: &Rules) -> Result<Tallies> {
    let held = |verdict| !matches!(verdict, Some(ReviewVerdict::Trust | ReviewVerdict::Reject));
    let waiting = limits::reviews(db, rules)?.into_iter().filter(|entry| held(entry.verdict));
    let (mut held_users, mut held_feedback) = (0, 0);
    for entry in waiting {
        held_users += 1;
        held_feedback += entry.waiting;
    }
    Ok(Tallies { verdicts: verdicts::counts(db)?, held_users, held_feedback })
}

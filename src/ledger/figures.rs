//! What was observed of each version's answers: how they were rated, how long they are, how many were cut off. Reads
//! only, and never judges.

use std::collections::BTreeMap;

use super::db::Db;
use super::handle::Ledger;
use super::rows::{signed, unsigned};
use crate::error::Result;
use crate::ids::GenerationKind;
use crate::types::PolicyVersion;

/// Number, sum and sum of squares of what was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Number of observations.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
}

/// What was observed of one version's answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Ratings that count, the last of each user on each answer, from -1 to 1.
    pub rating: Sums,
    /// Lengths of the answers, in tokens.
    pub tokens: Sums,
    /// Answers that reached their limit.
    pub cut_off: u64,
}

impl Ledger {
    /// What was observed of each version, over the newest `max` answers and the newest `max` ratings. Answers that
    /// their client cancelled are left out, and so are those that no request asked for.
    ///
    /// # Errors
    /// As [`Ledger::generation`].
    pub fn observed(&self, max: usize) -> Result<BTreeMap<PolicyVersion, Observed>> {
        self.read(|db| {
            let mut found = BTreeMap::new();
            answers(db, max, &mut found)?;
            ratings(db, max, &mut found)?;
            Ok(found)
        })
    }
}

fn answers(db: &Db, max: usize, found: &mut BTreeMap<PolicyVersion, Observed>) -> Result<()> {
    // A token takes four bytes.
    let sql = "SELECT policy_version, count(*), sum(tokens), sum(tokens * tokens),
               count(*) FILTER (WHERE finish = 'length')
               FROM (SELECT policy_version, finish, CAST(length(response) AS DOUBLE PRECISION) / 4 AS tokens
                     FROM generations WHERE id LIKE ?1 || '%' OR id LIKE ?2 || '%' ORDER BY seq DESC LIMIT ?3) AS newest
               WHERE finish <> 'cancelled' GROUP BY policy_version";
    let (asked, named) = (GenerationKind::Request.prefix(), GenerationKind::Named.prefix());
    db.each(sql, (asked, named, signed(max as u64)), |row| {
        let of: &mut Observed = found.entry(PolicyVersion(unsigned(row, 0)?)).or_default();
        of.tokens = Sums { count: unsigned(row, 1)?, sum: row.get(2)?, squares: row.get(3)? };
        of.cut_off = unsigned(row, 4)?;
        Ok(true)
    })
}

fn ratings(db: &Db, max: usize, found: &mut BTreeMap<PolicyVersion, Observed>) -> Result<()> {
    let sql = "SELECT g.policy_version, count(*), sum(f.rating), sum(f.rating * f.rating)
               FROM (SELECT id, generation, user, rating FROM feedback
                     WHERE rating IS NOT NULL AND teaches = 1 ORDER BY id DESC LIMIT ?1) f
               JOIN generations g ON g.seq = f.generation
               WHERE NOT EXISTS (SELECT 1 FROM feedback later WHERE later.generation = f.generation AND later.id > f.id
                                 AND later.user IS NOT DISTINCT FROM f.user AND later.rating IS NOT NULL
                                 AND later.teaches = 1)
               GROUP BY g.policy_version";
    db.each(sql, [signed(max as u64)], |row| {
        let of: &mut Observed = found.entry(PolicyVersion(unsigned(row, 0)?)).or_default();
        of.rating = Sums { count: unsigned(row, 1)?, sum: row.get(2)?, squares: row.get(3)? };
        Ok(true)
    })
}

//! Selects preferences and corrections as pairs for the reward model, within the rules. Never trains on one.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::review::held;
use super::rules::{HOUR_MS, Ripe, Rules};
use crate::error::Result;
use crate::ids::GenerationKind;
use crate::ledger::db::{Db, Row};
use crate::ledger::rows::{self, PairAnswer, StoredPair};
use crate::types::UnixMillis;

/// A pair with the facts that decide whether it counts.
struct PairRow {
    pair: StoredPair,
    created: UnixMillis,
    /// Whether an operator imported it.
    imported: bool,
}

/// All pairs that count, preferences before corrections, the oldest first within each.
pub(in crate::ledger) fn pairs(db: &Db, rules: &Rules) -> Result<Vec<StoredPair>> {
    let preferences = "SELECT c.prompt, c.response, c.text, r.response, r.text, p.user, p.created,
                       c.id LIKE ?1 || '%' AND c.user IS NOT DISTINCT FROM p.user
                       FROM preferences p
                       JOIN generations c ON c.seq = p.chosen JOIN generations r ON r.seq = p.rejected
                       WHERE c.prompt = r.prompt AND length(c.response) > 0 AND length(r.response) > 0
                       AND c.response <> r.response ORDER BY p.id";
    let tokens = |row: &Row<'_>, column: usize| rows::from_blob(row.bytes(column)?);
    let mut found = db.all(preferences, [GenerationKind::Import.prefix()], |row| {
        let pair = StoredPair {
            prompt: tokens(row, 0)?,
            chosen: PairAnswer::Tokens(tokens(row, 1)?, row.get(2)?),
            rejected: PairAnswer::Tokens(tokens(row, 3)?, row.get(4)?),
            user: row.maybe(5)?,
        };
        Ok(PairRow { pair, created: rows::unsigned(row, 6)?, imported: row.get(7)? })
    })?;
    let corrections = "SELECT g.prompt, f.correction, g.response, g.text, f.user, f.created FROM feedback f
                       JOIN generations g ON g.seq = f.generation
                       WHERE f.correction IS NOT NULL AND f.correction <> g.text AND length(g.response) > 0
                       ORDER BY f.id";
    found.extend(db.all(corrections, (), |row| {
        let pair = StoredPair {
            prompt: tokens(row, 0)?,
            chosen: PairAnswer::Text(row.get(1)?),
            rejected: PairAnswer::Tokens(tokens(row, 2)?, row.get(3)?),
            user: row.maybe(4)?,
        };
        Ok(PairRow { pair, created: rows::unsigned(row, 5)?, imported: false })
    })?);
    countable(db, found, rules)
}

/// The pairs that count, in order.
fn countable(db: &Db, mut all: Vec<PairRow>, rules: &Rules) -> Result<Vec<StoredPair>> {
    let (held, ripe) = (held(db, rules)?, Ripe::after(rules.delay_ms));
    let mut said = HashSet::new();
    all.retain(|c| {
        let StoredPair { prompt, chosen, rejected, user } = &c.pair;
        let mut words = DefaultHasher::new();
        (user, prompt, chosen, rejected).hash(&mut words);
        ripe.holds(c.created)
            && user.as_ref().is_none_or(|user| !held.contains(user))
            && (!rules.duplicates_once || said.insert(words.finish()))
    });
    let users: BTreeSet<&Option<String>> = all.iter().map(|c| &c.pair.user).collect();
    if users.len() > 1 {
        let mut hours: BTreeMap<(Option<String>, UnixMillis), u32> = BTreeMap::new();
        all.retain(|c| {
            let counted = hours.entry((c.pair.user.clone(), c.created / HOUR_MS)).or_default();
            *counted += u32::from(!c.imported);
            c.imported || rules.hourly == 0 || *counted <= rules.hourly
        });
        let mut left = shares(&all, rules.share);
        // The newest of each user, if not all fit.
        all.reverse();
        all.retain(|c| {
            let Some(left) = left.get_mut(&c.pair.user).filter(|_| !c.imported) else { return c.imported };
            let fits = *left > 0;
            *left = left.saturating_sub(1);
            fits
        });
        all.reverse();
    }
    Ok(all.into_iter().map(|c| c.pair).collect())
}

/// Number of pairs per user in a set in which none has more than `share`.
fn shares(all: &[PairRow], share: f64) -> BTreeMap<Option<String>, usize> {
    let mut counts: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for c in all.iter().filter(|c| !c.imported) {
        *counts.entry(c.pair.user.clone()).or_default() += 1;
    }
    let imported = all.iter().filter(|c| c.imported).count();
    let mut size = all.len();
    // As for a batch, the share is a share of the final set.
    loop {
        let cap = if share >= 1.0 { usize::MAX } else { ((share * size as f64) as usize).max(1) };
        counts.values_mut().for_each(|count| *count = (*count).min(cap));
        let now = imported + counts.values().sum::<usize>();
        if now >= size || cap == 1 {
            return counts;
        }
        size = now;
    }
}

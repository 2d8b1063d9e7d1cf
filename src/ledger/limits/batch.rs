//! Selects waiting feedback for the next batch, within the rules: two scans with the same result, by answer and by
//! user. Never marks anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension};

use super::review::held;
use super::rules::{Ripe, Rules, lone};
use crate::error::Result;
use crate::ledger::rows;
use crate::types::RatedGeneration;

/// Rows that limits may skip before the search goes user by user: some 5 ms.
const LEFT_OUT_ROWS: usize = 20_000;

/// At most `max` answers with waiting feedback that counts, each with every user's last rating.
pub(in crate::ledger) fn pending_batch(db: &Connection, max: usize, rules: &Rules) -> Result<Vec<RatedGeneration>> {
    choose(db, max, rules)?.into_iter().map(|(answer, ids)| rated(db, answer, ids)).collect()
}

/// What the feedback in rows `ids`, oldest first, says about an answer: every user's last rating, and all else.
pub(in crate::ledger) fn rated(db: &Connection, answer: i64, ids: Vec<i64>) -> Result<RatedGeneration> {
    let mut select = db.prepare_cached("SELECT user, rating, signal, correction FROM feedback WHERE id = ?1")?;
    let mut ratings: BTreeMap<Option<String>, f64> = BTreeMap::new();
    let mut signals: BTreeSet<(Option<String>, String)> = BTreeSet::new();
    let mut last_correction = None;
    for id in &ids {
        type Said = (Option<String>, Option<f64>, Option<String>, Option<String>);
        let (user, rating, signal, correction): Said =
            select.query_row([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
        if let Some(rating) = rating {
            ratings.insert(user, rating);
        } else if let Some(signal) = signal {
            signals.insert((user, signal));
        } else {
            last_correction = correction.or(last_correction);
        }
    }
    let generation = rows::generation(db, rows::Which::Row(answer))?
        .ok_or_else(|| rows::damaged(format!("generation row {answer} is missing")))?;
    let mean = ratings.values().sum::<f64>() / ratings.len().max(1) as f64;
    Ok(RatedGeneration {
        feedback_ids: ids.into_iter().map(i64::cast_unsigned).collect(),
        generation,
        rating: (!ratings.is_empty()).then_some(mean),
        signals: signals.into_iter().map(|(_, name)| name).collect(),
        correction: last_correction,
    })
}

/// A piece of waiting feedback.
struct Waiting {
    answer: i64,
    id: i64,
    user: Option<String>,
}

/// Rows of the next batch, the oldest answers first, at most `max` answers.
fn choose(db: &Connection, max: usize, rules: &Rules) -> Result<Vec<(i64, Vec<i64>)>> {
    let limited = rules.share < 1.0 && !lone(db)?;
    let cap = |size: usize| if limited { ((rules.share * size as f64) as usize).max(1) } else { usize::MAX };
    let mut chosen = scan(db, max, cap(max), rules)?;
    // The share is a share of the final batch: a smaller batch lowers the cap, which may make it smaller still. A lower
    // cap selects a subset of what a higher one does.
    let mut size = max;
    loop {
        let found = answers(&chosen);
        if found >= size || cap(size) == 1 || !limited {
            break;
        }
        size = found;
        let (mut left, most) = (Shares::default(), cap(size));
        chosen.retain(|w| left.take(w.answer, w.user.as_deref(), most));
    }
    if limited && rules.patience_ms > 0 && answers(&chosen) < max {
        chosen = fill(db, chosen, max, rules)?;
    }
    let mut batch: Vec<(i64, Vec<i64>)> = Vec::new();
    for Waiting { answer, id, .. } in chosen {
        match batch.last_mut() {
            Some((last, ids)) if *last == answer => ids.push(id),
            _ => batch.push((answer, vec![id])),
        }
    }
    Ok(batch)
}

/// Fills a batch with feedback that the share left out and that has waited long enough, the oldest answers first: a
/// share may delay, but must not keep a batch from ever being full.
fn fill(db: &Connection, chosen: Vec<Waiting>, max: usize, rules: &Rules) -> Result<Vec<Waiting>> {
    let delay_ms = rules.patience_ms.max(rules.delay_ms);
    let late = scan(db, max, usize::MAX, &Rules { delay_ms, ..rules.clone() })?;
    let (mut all, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for w in chosen.into_iter().chain(late) {
        if taken.contains(&w.answer) || taken.len() < max {
            taken.insert(w.answer);
            all.insert((w.answer, w.id), w);
        }
    }
    Ok(all.into_values().collect())
}

/// Number of distinct answers in rows sorted by answer.
fn answers(rows: &[Waiting]) -> usize {
    rows.chunk_by(|a, b| a.answer == b.answer).count()
}

/// Number of answers per user; `None` is all anonymous users.
#[derive(Default)]
struct Shares {
    named: HashMap<String, (usize, i64)>,
    unnamed: (usize, i64),
}

impl Shares {
    /// Whether this feedback of a user fits under the cap; any amount on one answer counts once. Answers come in order.
    fn take(&mut self, answer: i64, user: Option<&str>, cap: usize) -> bool {
        let (count, last) = match user {
            None => &mut self.unnamed,
            Some(user) => {
                // Looked up first: most users are known already, and cost no allocation.
                if !self.named.contains_key(user) {
                    self.named.insert(user.to_owned(), (0, 0));
                }
                let Some(share) = self.named.get_mut(user) else { return false };
                share
            }
        };
        if *count > 0 && *last == answer {
            return true;
        }
        if *count >= cap {
            return false;
        }
        (*count, *last) = (*count + 1, answer);
        true
    }
}

/// The waiting rows that count under this cap, by answer, up to `max` answers.
fn scan(db: &Connection, max: usize, cap: usize, rules: &Rules) -> Result<Vec<Waiting>> {
    let limits = Limits { max, cap, held: held(db, rules)?, ripe: Ripe::after(rules.delay_ms) };
    match scan_answers(db, &limits)? {
        Some(chosen) => Ok(chosen),
        None => scan_users(db, &limits),
    }
}

/// The limits of a scan.
struct Limits {
    /// Most answers.
    max: usize,
    /// Most answers per user.
    cap: usize,
    /// Users whose feedback is held.
    held: BTreeSet<String>,
    /// Times of feedback that has waited long enough.
    ripe: Ripe,
}

/// Scans the oldest answers first; `None` if limits skip nearly everything.
fn scan_answers(db: &Connection, limits: &Limits) -> Result<Option<Vec<Waiting>>> {
    let mut select = db.prepare_cached(
        "SELECT generation, id, user FROM feedback INDEXED BY feedback_unused
         WHERE teaches = 1 AND batch IS NULL AND (created <= ?1 OR created > ?2) ORDER BY generation, id",
    )?;
    let mut rows = select.query((limits.ripe.until, limits.ripe.now))?;
    let (mut choice, mut left_out) = (Choice::default(), 0);
    while let Some(row) = rows.next()? {
        let user = row.get_ref(2)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        match choice.offer(row.get(0)?, row.get(1)?, user, limits) {
            Offered::Taken => {}
            Offered::LeftOut if left_out == LEFT_OUT_ROWS => return Ok(None),
            Offered::LeftOut => left_out += 1,
            Offered::Full => break,
        }
    }
    Ok(Some(choice.chosen))
}

/// Finds the same user by user: of each, only as many answers as could be taken are read.
fn scan_users(db: &Connection, limits: &Limits) -> Result<Vec<Waiting>> {
    let mut next = db.prepare_cached(
        "SELECT user FROM feedback INDEXED BY feedback_unused_of_user
         WHERE teaches = 1 AND batch IS NULL AND user >= ?1 ORDER BY user LIMIT 1",
    )?;
    let mut select = db.prepare_cached(
        "SELECT generation, id FROM feedback INDEXED BY feedback_unused_of_user
         WHERE teaches = 1 AND batch IS NULL AND user IS ?1 AND (created <= ?2 OR created > ?3)
         ORDER BY generation, id",
    )?;
    let mut heads = Vec::new();
    // First the anonymous users.
    let mut user: Option<String> = None;
    loop {
        if user.as_ref().is_none_or(|user| !limits.held.contains(user)) {
            let mut rows = select.query((&user, limits.ripe.until, limits.ripe.now))?;
            let mut own = Shares::default();
            while let Some(row) = rows.next()? {
                let (answer, id) = (row.get(0)?, row.get(1)?);
                if !own.take(answer, None, limits.cap.min(limits.max)) {
                    break;
                }
                heads.push(Waiting { answer, id, user: user.clone() });
            }
        }
        // No text sorts between a name and that name followed by NUL.
        let from = user.map_or_else(String::new, |last| last + "\0");
        user = next.query_row([from], |row| row.get(0)).optional()?;
        if user.is_none() {
            break;
        }
    }
    heads.sort_unstable_by_key(|w| (w.answer, w.id));
    let mut choice = Choice::default();
    for Waiting { answer, id, user } in heads {
        if let Offered::Full = choice.offer(answer, id, user.as_deref(), limits) {
            break;
        }
    }
    Ok(choice.chosen)
}

/// Selected rows, offered by answer.
#[derive(Default)]
struct Choice {
    shares: Shares,
    chosen: Vec<Waiting>,
    answers: usize,
}

enum Offered {
    Taken,
    LeftOut,
    /// The batch is full, and this row is of another answer.
    Full,
}

impl Choice {
    fn offer(&mut self, answer: i64, id: i64, user: Option<&str>, limits: &Limits) -> Offered {
        let fresh = self.chosen.last().is_none_or(|last| last.answer != answer);
        if fresh && self.answers == limits.max {
            return Offered::Full;
        }
        let held = user.is_some_and(|user| limits.held.contains(user));
        if held || !self.shares.take(answer, user, limits.cap) {
            return Offered::LeftOut;
        }
        self.answers += usize::from(fresh);
        self.chosen.push(Waiting { answer, id, user: user.map(str::to_owned) });
        Offered::Taken
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::super::review::{ReviewVerdict, review, reviews};
    use super::*;
    use crate::ledger::schema::open_writer;

    const GENERATIONS: &str =
        "INSERT INTO generations (seq, id, policy_version, prompt, response, text, sampling, finish, created)";

    #[test]
    fn user_by_user_a_scan_finds_what_it_finds_answer_by_answer() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_writer(&dir.path().join("l")).unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        db.execute_batch("BEGIN").unwrap();
        for seq in 0..400 {
            db.execute(&format!("{GENERATIONS} VALUES (?1, ?1, 0, x'', x'', '', '', '', 0)"), [seq]).unwrap();
        }
        let names = [None, Some(""), Some("a"), Some("a\0"), Some("ab"), Some("b"), Some("held")];
        for _ in 0..1500 {
            // The first answers are nearly all of one user.
            let answer = rng.random_range(0..400);
            let user = if answer < 200 && rng.random_bool(0.9) { Some("b") } else { names[rng.random_range(0..7)] };
            db.execute(
                "INSERT INTO feedback (generation, rating, teaches, user, created, batch)
                 VALUES (?1, 1, ?2, ?3, ?4, NULL)",
                (answer, rng.random_bool(0.9), user, rng.random_range(0..100)),
            )
            .unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
        for (max, cap) in [(16, 4), (64, 8), (64, usize::MAX), (1000, 3), (1000, usize::MAX), (1, 1)] {
            let limits = Limits { max, cap, held: ["held".to_owned()].into(), ripe: Ripe { until: 80, now: 90 } };
            let ids = |rows: &[Waiting]| rows.iter().map(|w| (w.answer, w.id)).collect::<Vec<_>>();
            let (answers, users) = (scan_answers(&db, &limits).unwrap().unwrap(), scan_users(&db, &limits).unwrap());
            assert_eq!(ids(&answers), ids(&users), "{max} {cap}");
            assert!(!users.is_empty());
        }
    }

    #[test]
    fn a_batch_is_found_behind_more_than_a_scan_by_age_looks_at() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_writer(&dir.path().join("l")).unwrap();
        db.execute_batch(&format!(
            "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 20100)
             SELECT i FROM n;
             {GENERATIONS} SELECT i, i, 0, x'', x'', '', '', '', 0 FROM n;
             INSERT INTO feedback (generation, rating, teaches, user, created)
             SELECT i, 1, 1, iif(i < 20050, 'held', 'user ' || (i % 4)), 0 FROM n;"
        ))
        .unwrap();
        review(&db, "held", ReviewVerdict::Hold).unwrap();
        let rules = Rules { share: 0.25, ..Rules::default() };
        let limits = Limits { max: 8, cap: 2, held: held(&db, &rules).unwrap(), ripe: Ripe::after(0) };
        assert!(scan_answers(&db, &limits).unwrap().is_none());
        let batch = choose(&db, 8, &rules).unwrap();
        assert_eq!(batch.iter().map(|(answer, _)| *answer).collect::<Vec<_>>(), (20050..20058).collect::<Vec<_>>());
        assert_eq!(reviews(&db, &rules).unwrap()[0].waiting, 20050);
    }
}

//! Selects waiting feedback for the next batch, within the rules: two scans with the same result, by answer and by
//! user. Never marks anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::review::held;
use super::rules::{Ripe, Rules, lone};
use crate::error::Result;
use crate::ledger::db::{Db, Row};
use crate::ledger::rows;
use crate::types::RatedGeneration;

/// Rows that limits may skip before the search goes user by user: some 5 ms.
const LEFT_OUT_ROWS: usize = 20_000;
/// Rows that are read at a time.
const PAGE: i64 = 1024;

/// At most `max` answers with waiting feedback that counts, each with every user's last rating.
pub(in crate::ledger) fn pending_batch(db: &Db, max: usize, rules: &Rules) -> Result<Vec<RatedGeneration>> {
    choose(db, max, rules)?.into_iter().map(|(answer, ids)| rated(db, answer, ids)).collect()
}

/// What the feedback in rows `ids`, oldest first, says about an answer: every user's last rating, and all else.
pub(in crate::ledger) fn rated(db: &Db, answer: i64, ids: Vec<i64>) -> Result<RatedGeneration> {
    let select = "SELECT user, rating, signal, correction FROM feedback WHERE id = ?1";
    let mut ratings: BTreeMap<Option<String>, f64> = BTreeMap::new();
    let mut signals: BTreeSet<(Option<String>, String)> = BTreeSet::new();
    let mut last_correction = None;
    for id in &ids {
        type Said = (Option<String>, Option<f64>, Option<String>, Option<String>);
        let (user, rating, signal, correction): Said =
            db.one(select, [id], |row| Ok((row.maybe(0)?, row.maybe(1)?, row.maybe(2)?, row.maybe(3)?)))?;
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
fn choose(db: &Db, max: usize, rules: &Rules) -> Result<Vec<(i64, Vec<i64>)>> {
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
fn fill(db: &Db, chosen: Vec<Waiting>, max: usize, rules: &Rules) -> Result<Vec<Waiting>> {
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
fn scan(db: &Db, max: usize, cap: usize, rules: &Rules) -> Result<Vec<Waiting>> {
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
fn scan_answers(db: &Db, limits: &Limits) -> Result<Option<Vec<Waiting>>> {
    let (mut choice, mut left_out) = (Choice::default(), 0);
    let by_age = "INDEXED BY feedback_unused WHERE true";
    each_waiting(db, by_age, None, limits.ripe, |answer, id, row| {
        match choice.offer(answer, id, row.text(2)?.as_deref(), limits) {
            Offered::Taken => {}
            Offered::LeftOut => left_out += 1,
            Offered::Full => return Ok(false),
        }
        Ok(left_out <= LEFT_OUT_ROWS)
    })?;
    Ok((left_out <= LEFT_OUT_ROWS).then_some(choice.chosen))
}

/// Offers waiting rows by answer, until no more are wanted. Page by page, since an engine may read a result whole.
fn each_waiting(
    db: &Db,
    among: &str,
    user: Option<&str>,
    ripe: Ripe,
    mut take: impl FnMut(i64, i64, &Row<'_>) -> Result<bool>,
) -> Result<()> {
    let sql = format!(
        "SELECT generation, id, user FROM feedback {among} AND teaches = 1 AND batch IS NULL
         AND (created <= ?1 OR created > ?2) AND (generation, id) > (?3, ?4) ORDER BY generation, id LIMIT ?5"
    );
    let (mut last, mut wanted, mut seen) = ((i64::MIN, 0), true, PAGE);
    while wanted && seen == PAGE {
        seen = 0;
        let (answer, id) = last;
        let mut look = |row: &Row<'_>| {
            seen += 1;
            last = (row.get(0)?, row.get(1)?);
            wanted = take(last.0, last.1, row)?;
            Ok(wanted)
        };
        match user {
            Some(user) => db.each(&sql, (ripe.until, ripe.now, answer, id, PAGE, user), &mut look)?,
            None => db.each(&sql, (ripe.until, ripe.now, answer, id, PAGE), &mut look)?,
        }
    }
    Ok(())
}

/// Finds the same user by user: of each, only as many answers as could be taken are read.
fn scan_users(db: &Db, limits: &Limits) -> Result<Vec<Waiting>> {
    let next = |than: &str| {
        format!(
            "SELECT user FROM feedback INDEXED BY feedback_unused_of_user
             WHERE teaches = 1 AND batch IS NULL AND user {than} ORDER BY user LIMIT 1"
        )
    };
    let mut heads = Vec::new();
    // First the anonymous users.
    let mut user: Option<String> = None;
    loop {
        if user.as_ref().is_none_or(|user| !limits.held.contains(user)) {
            let whose = if user.is_some() { "= ?6" } else { "IS NULL" };
            let among = format!("INDEXED BY feedback_unused_of_user WHERE user {whose}");
            let mut own = Shares::default();
            each_waiting(db, &among, user.as_deref(), limits.ripe, |answer, id, _| {
                let fits = own.take(answer, None, limits.cap.min(limits.max));
                if fits {
                    heads.push(Waiting { answer, id, user: user.clone() });
                }
                Ok(fits)
            })?;
        }
        user = match &user {
            Some(last) => db.first(&next("> ?1"), [last], |row| row.get(0))?,
            None => db.first(&next("IS NOT NULL"), (), |row| row.get(0))?,
        };
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
    use crate::ledger::home_tests::{Home, suite};

    /// Records answers of the rows from 0 on.
    fn answers_of(db: &Db, number: i64) {
        let sql = "INSERT INTO generations (seq, id, policy_version, prompt, response, text, sampling, finish, created)
                   WITH RECURSIVE n(i) AS (SELECT CAST(0 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1)
                   SELECT i, CAST(i AS TEXT), 0, ?2, ?2, '', '', '', 0 FROM n";
        db.execute(sql, (number, Vec::new())).unwrap();
    }

    fn user_by_user_a_scan_finds_what_it_finds_answer_by_answer(home: &Home) {
        home.open().close();
        let db = home.db();
        let mut rng = SmallRng::seed_from_u64(1);
        answers_of(&db, 400);
        let names = [None, Some(""), Some("a"), Some("a\0"), Some("ab"), Some("b"), Some("held")];
        let mut rows = Vec::new();
        for _ in 0..1500 {
            // The first answers are nearly all of one user.
            let answer = rng.random_range(0..400);
            let user = if answer < 200 && rng.random_bool(0.9) { Some("b") } else { names[rng.random_range(0..7)] };
            let sql = "INSERT INTO feedback (generation, rating, teaches, user, created) VALUES (?1, 1, ?2, ?3, ?4)";
            rows.push((sql, (answer, rng.random_bool(0.9), user, rng.random_range(0..100))));
        }
        db.writing(|db| rows.into_iter().try_for_each(|(sql, values)| db.execute(sql, values).map(drop))).unwrap();
        for (max, cap) in [(16, 4), (64, 8), (64, usize::MAX), (1000, 3), (1000, usize::MAX), (1, 1)] {
            let limits = Limits { max, cap, held: ["held".to_owned()].into(), ripe: Ripe { until: 80, now: 90 } };
            let ids = |rows: &[Waiting]| rows.iter().map(|w| (w.answer, w.id)).collect::<Vec<_>>();
            let (answers, users) = (scan_answers(&db, &limits).unwrap().unwrap(), scan_users(&db, &limits).unwrap());
            assert_eq!(ids(&answers), ids(&users), "{max} {cap}");
            assert!(!users.is_empty());
        }
    }

    fn a_batch_is_found_behind_more_than_a_scan_by_age_looks_at(home: &Home) {
        home.open().close();
        let db = home.db();
        answers_of(&db, 20_100);
        let rated = "INSERT INTO feedback (generation, rating, teaches, user, created)
                     SELECT seq, 1, 1, CASE WHEN seq < 20050 THEN 'held' ELSE 'user ' || (seq % 4) END, 0
                     FROM generations ORDER BY seq";
        db.execute(rated, ()).unwrap();
        review(&db, "held", ReviewVerdict::Hold).unwrap();
        let rules = Rules { share: 0.25, ..Rules::default() };
        let limits = Limits { max: 8, cap: 2, held: held(&db, &rules).unwrap(), ripe: Ripe::after(0) };
        assert!(scan_answers(&db, &limits).unwrap().is_none());
        let batch = choose(&db, 8, &rules).unwrap();
        assert_eq!(batch.iter().map(|(answer, _)| *answer).collect::<Vec<_>>(), (20050..20058).collect::<Vec<_>>());
        assert_eq!(reviews(&db, &rules).unwrap()[0].waiting, 20050);
    }

    suite! {
        user_by_user_a_scan_finds_what_it_finds_answer_by_answer
        a_batch_is_found_behind_more_than_a_scan_by_age_looks_at
    }
}

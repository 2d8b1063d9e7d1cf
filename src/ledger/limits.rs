//! How much of what is said counts, so that nobody bends the model alone. Everything is kept; marks say what teaches.
//! Never looks at what an answer says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::rows::{self, StoredPair};
use super::use_count;
use crate::config::RewardConfig;
use crate::error::{Error, Result};
use crate::types::{NewFeedback, Signal, UnixMillis, unix_millis};

const HOUR_MS: UnixMillis = 3_600_000;
/// Most earlier ratings of an answer that a new one is compared with.
const COMPARED: u32 = 16;
/// Waiting rows that limits leave out before a batch is looked for user by user: some 5 ms.
const LEFT_OUT_ROWS: usize = 20_000;

/// What counts. The default counts everything. Limits of share and time begin with the second user: where one person is
/// the only one, there is nobody to protect. Feedback without a user is taken as one user's.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Pieces of feedback of one user in a clock hour that count; 0 is no limit.
    pub hourly: u32,
    /// Largest share of one user in a batch; 1 is no limit.
    pub share: f64,
    /// How long feedback waits before it is used, in milliseconds.
    pub delay_ms: u64,
    /// Whether what a user says again of the same answer to the same prompt, in the same words, counts once while it
    /// waits.
    pub duplicates_once: bool,
    /// Comparisons with others after which a user can be flagged; 0 flags nobody.
    pub flag_after: u32,
    /// Share of comparisons that must disagree.
    pub flag_share: f64,
    /// Named signals that teach.
    pub signals: BTreeSet<String>,
    /// Whether corrections teach as samples.
    pub corrections: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            hourly: 0,
            share: 1.0,
            delay_ms: 0,
            duplicates_once: false,
            flag_after: 0,
            flag_share: 1.0,
            signals: BTreeSet::new(),
            corrections: false,
        }
    }
}

impl Rules {
    /// What counts, by the settings.
    ///
    /// # Errors
    /// `Arg` for signals that are not names with weights.
    pub fn new(config: &RewardConfig) -> Result<Self> {
        let signals = config.signal_weights()?.into_iter();
        Ok(Self {
            hourly: config.user_hourly,
            share: config.user_share,
            delay_ms: u64::from(config.quarantine) * 1000,
            duplicates_once: true,
            flag_after: config.flag_after,
            flag_share: config.flag_share,
            signals: signals.filter(|(_, weight)| *weight != 0.0).map(|(name, _)| name).collect(),
            corrections: config.correction > 0.0,
        })
    }
}

/// What a person decided about a user whose feedback was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReviewVerdict {
    /// Their feedback counts, whatever others say.
    Trust,
    /// It waits.
    Hold,
    /// What waits is left out, and what comes later too.
    Reject,
}

impl ReviewVerdict {
    fn as_str(self) -> &'static str {
        match self {
            ReviewVerdict::Trust => "trust",
            ReviewVerdict::Hold => "hold",
            ReviewVerdict::Reject => "reject",
        }
    }
}

/// A user on the review list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewEntry {
    /// Who.
    pub user: String,
    /// Ratings that could be compared with another user's of the same answer.
    pub compared: u64,
    /// Those of the other sign.
    pub disagreed: u64,
    /// Pieces of their feedback that wait.
    pub waiting: u64,
    /// What was decided last; `None` if nobody has looked.
    pub verdict: Option<ReviewVerdict>,
}

/// Why a piece of feedback that could teach doesn't, if so.
pub(super) fn left_out(db: &Connection, rules: &Rules, f: &NewFeedback, content: i64) -> Result<Option<&'static str>> {
    if let Some(user) = &f.user
        && verdict(db, user)? == Some(ReviewVerdict::Reject)
    {
        return Ok(Some("user rejected"));
    }
    if rules.duplicates_once && is_duplicate(db, f, content)? {
        return Ok(Some("duplicate"));
    }
    if rules.hourly > 0 && has_others(db, f.user.as_deref())? {
        let hour = rows::signed(unix_millis() / HOUR_MS * HOUR_MS);
        let counted: u32 = db
            .prepare_cached(
                "SELECT count(*) FROM (SELECT 1 FROM feedback INDEXED BY feedback_of_user
                 WHERE user IS ?1 AND created >= ?2 AND teaches = 1 LIMIT ?3)",
            )?
            .query_row((&f.user, hour, rules.hourly), |row| row.get(0))?;
        if counted >= rules.hourly {
            return Ok(Some("over the user's limit of this hour"));
        }
    }
    Ok(None)
}

fn is_duplicate(db: &Connection, f: &NewFeedback, content: i64) -> Result<bool> {
    let (rating, correction, signal) = super::parts(&f.signal);
    let mut earlier = db.prepare_cached(
        "SELECT 1 FROM feedback f JOIN generations g ON g.seq = f.generation
         WHERE f.content = ?1 AND f.teaches = 1 AND f.batch IS NULL AND f.user IS ?2 AND f.rating IS ?3
         AND f.correction IS ?4 AND f.signal IS ?5 AND g.id <> ?6 LIMIT 1",
    )?;
    Ok(earlier.exists((content, &f.user, rating, correction, signal, &f.generation_id.0))?)
}

/// Whether anyone but `user` ever said anything.
fn has_others(db: &Connection, user: Option<&str>) -> Result<bool> {
    for order in ["ASC", "DESC"] {
        let end: Option<Option<String>> = db
            .prepare_cached(&format!("SELECT user FROM feedback ORDER BY user {order} LIMIT 1"))?
            .query_row([], |row| row.get(0))
            .optional()?;
        if end.is_some_and(|end| end.as_deref() != user) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Counts how a rating agrees with other users' of the same answer, for both sides. `content` is what it is about.
pub(super) fn compare(db: &Connection, f: &NewFeedback, content: i64) -> Result<()> {
    let (Signal::Rating(rating), Some(user)) = (&f.signal, &f.user) else { return Ok(()) };
    let again = db
        .prepare_cached("SELECT 1 FROM feedback WHERE content = ?1 AND user = ?2 AND rating IS NOT NULL LIMIT 1")?
        .exists((content, user))?;
    if again || *rating == 0.0 {
        return Ok(());
    }
    let mut select = db.prepare_cached(
        "SELECT user, rating FROM feedback WHERE content = ?1 AND rating IS NOT NULL AND user IS NOT NULL AND user <> ?2
         ORDER BY id DESC LIMIT ?3",
    )?;
    let others = select.query_map((content, user, COMPARED), |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut last: BTreeMap<String, f64> = BTreeMap::new();
    for other in others {
        let (other, value) = other?;
        last.entry(other).or_insert(value);
    }
    last.retain(|_, value| *value != 0.0);
    let disagree = |value: &f64| (*value > 0.0) != (*rating > 0.0);
    let mut count = db.prepare_cached(
        "INSERT INTO agreement (user, compared, disagreed) VALUES (?1, ?2, ?3) ON CONFLICT (user)
         DO UPDATE SET compared = compared + excluded.compared, disagreed = disagreed + excluded.disagreed",
    )?;
    for (other, value) in &last {
        count.execute((other, 1, disagree(value)))?;
    }
    if !last.is_empty() {
        count.execute((user, last.len() as i64, last.values().filter(|v| disagree(v)).count() as i64))?;
    }
    Ok(())
}

fn verdict(db: &Connection, user: &str) -> Result<Option<ReviewVerdict>> {
    let mut select = db.prepare_cached("SELECT verdict FROM reviews WHERE user = ?1 ORDER BY id DESC LIMIT 1")?;
    let word: Option<String> = select.query_row([user], |row| row.get(0)).optional()?;
    let known = |word: String| {
        let all = [ReviewVerdict::Trust, ReviewVerdict::Hold, ReviewVerdict::Reject];
        let found = all.into_iter().find(|v| v.as_str() == word);
        found.ok_or_else(|| Error::io(format!("the ledger is damaged: unknown verdict {word:?}")))
    };
    word.map(known).transpose()
}

/// Users whose feedback waits for a person: flagged ones and those on hold, with what was decided.
pub(super) fn reviews(db: &Connection, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let mut waiting = db.prepare_cached(
        "SELECT count(*) FROM feedback INDEXED BY feedback_unused_of_user WHERE user = ?1 AND teaches = 1 AND batch IS NULL",
    )?;
    let mut all = on_list(db, rules)?;
    for entry in &mut all {
        let count: i64 = waiting.query_row([&entry.user], |row| row.get(0))?;
        entry.waiting = count.max(0).cast_unsigned();
    }
    Ok(all)
}

/// As [`reviews`], with what waits of theirs not counted.
fn on_list(db: &Connection, rules: &Rules) -> Result<Vec<ReviewEntry>> {
    let mut select = db.prepare_cached(
        "SELECT user, compared, disagreed FROM agreement
         WHERE ?1 > 0 AND compared >= ?1 AND disagreed > ?2 * compared
         UNION SELECT r.user, coalesce(a.compared, 0), coalesce(a.disagreed, 0)
         FROM (SELECT DISTINCT user FROM reviews) r LEFT JOIN agreement a ON a.user = r.user ORDER BY 1",
    )?;
    let mut found = Vec::new();
    let mut rows = select.query((rules.flag_after, rules.flag_share))?;
    while let Some(row) = rows.next()? {
        let user: String = row.get(0)?;
        let (compared, disagreed): (i64, i64) = (row.get(1)?, row.get(2)?);
        let verdict = verdict(db, &user)?;
        let count = |n: i64| n.max(0).cast_unsigned();
        found.push(ReviewEntry { user, compared: count(compared), disagreed: count(disagreed), waiting: 0, verdict });
    }
    Ok(found)
}

/// Users whose feedback is not used: flagged and not trusted, or on hold.
pub(super) fn held(db: &Connection, rules: &Rules) -> Result<BTreeSet<String>> {
    let all = on_list(db, rules)?;
    Ok(all.into_iter().filter(|e| e.verdict != Some(ReviewVerdict::Trust)).map(|e| e.user).collect())
}

/// Records a decision; returns how many answers have nothing waiting any more.
pub(super) fn review(db: &Connection, user: &str, verdict: ReviewVerdict) -> Result<u64> {
    db.prepare_cached("INSERT INTO reviews (user, verdict, created) VALUES (?1, ?2, ?3)")?.execute((
        user,
        verdict.as_str(),
        rows::signed(unix_millis()),
    ))?;
    if verdict != ReviewVerdict::Reject {
        return Ok(0);
    }
    use_count(db, user, |db| {
        let mark = "UPDATE feedback SET teaches = 0, left_out = 'user rejected'
                    WHERE user = ?1 AND teaches = 1 AND batch IS NULL";
        db.prepare_cached(mark)?.execute([user])?;
        Ok(())
    })
}

/// A piece of feedback that waits.
struct Waiting {
    answer: i64,
    id: i64,
    user: Option<String>,
}

/// Which waiting feedback makes the next batch: rows by answer, the oldest answers first, at most `max` answers.
pub(super) fn choose(db: &Connection, max: usize, rules: &Rules) -> Result<Vec<(i64, Vec<i64>)>> {
    let limited = rules.share < 1.0 && !lone(db)?;
    let cap = |size: usize| if limited { ((rules.share * size as f64) as usize).max(1) } else { usize::MAX };
    let mut chosen = scan(db, max, cap(max), rules)?;
    // The share is of what the batch comes to be: a smaller batch lowers the cap, which may make it smaller still. What
    // a lower cap leaves is a part of what a higher one found.
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
    let mut batch: Vec<(i64, Vec<i64>)> = Vec::new();
    for Waiting { answer, id, .. } in chosen {
        match batch.last_mut() {
            Some((last, ids)) if *last == answer => ids.push(id),
            _ => batch.push((answer, vec![id])),
        }
    }
    Ok(batch)
}

/// Different answers among rows that are sorted by them.
fn answers(rows: &[Waiting]) -> usize {
    rows.chunk_by(|a, b| a.answer == b.answer).count()
}

/// Answers that each user has a word in; `None` is whoever gave no name.
#[derive(Default)]
struct Shares {
    named: HashMap<String, (usize, i64)>,
    unnamed: (usize, i64),
}

impl Shares {
    /// Whether this word of a user still fits under the cap: any number of words on one answer are one. Answers come in
    /// order.
    fn take(&mut self, answer: i64, user: Option<&str>, cap: usize) -> bool {
        let (count, last) = match user {
            None => &mut self.unnamed,
            Some(user) => {
                // Looked up first: most rows are of users that are known, and cost no allocation.
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

/// A pair, and what decides whether it counts.
pub(super) struct Candidate {
    pub(super) pair: StoredPair,
    pub(super) created: UnixMillis,
    /// An operator brought it in.
    pub(super) imported: bool,
}

/// The pairs that count, in their order.
pub(super) fn countable(db: &Connection, mut all: Vec<Candidate>, rules: &Rules) -> Result<Vec<StoredPair>> {
    let (held, ripe) = (held(db, rules)?, unix_millis().saturating_sub(rules.delay_ms));
    let mut said = HashSet::new();
    all.retain(|c| {
        let StoredPair { prompt, chosen, rejected, user } = &c.pair;
        let mut words = DefaultHasher::new();
        (user, prompt, chosen, rejected).hash(&mut words);
        c.created <= ripe
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
        // The newest of each, where not all fit.
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

/// How many pairs each user has in a set of which none has more than `share`.
fn shares(all: &[Candidate], share: f64) -> BTreeMap<Option<String>, usize> {
    let mut counts: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for c in all.iter().filter(|c| !c.imported) {
        *counts.entry(c.pair.user.clone()).or_default() += 1;
    }
    let imported = all.iter().filter(|c| c.imported).count();
    let mut size = all.len();
    // As for a batch: the share is of what the set comes to be.
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

/// The waiting rows that count with this cap, by answer, up to `max` answers.
fn scan(db: &Connection, max: usize, cap: usize, rules: &Rules) -> Result<Vec<Waiting>> {
    let limits =
        Limits { max, cap, held: held(db, rules)?, ripe: rows::signed(unix_millis().saturating_sub(rules.delay_ms)) };
    match scan_answers(db, &limits)? {
        Some(chosen) => Ok(chosen),
        None => scan_users(db, &limits),
    }
}

/// What a scan keeps to.
struct Limits {
    /// Answers.
    max: usize,
    /// Answers of a user.
    cap: usize,
    /// Users of whom nothing is taken.
    held: BTreeSet<String>,
    /// Newest time of what is taken.
    ripe: i64,
}

/// Looks at the oldest answers first; `None` if limits leave out nearly all that was seen.
fn scan_answers(db: &Connection, limits: &Limits) -> Result<Option<Vec<Waiting>>> {
    let mut select = db.prepare_cached(
        "SELECT generation, id, user FROM feedback INDEXED BY feedback_unused
         WHERE teaches = 1 AND batch IS NULL AND created <= ?1 ORDER BY generation, id",
    )?;
    let mut rows = select.query([limits.ripe])?;
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

/// Finds the same user by user: of each, only as many answers as could be taken are looked at.
fn scan_users(db: &Connection, limits: &Limits) -> Result<Vec<Waiting>> {
    let mut next = db.prepare_cached(
        "SELECT user FROM feedback INDEXED BY feedback_unused_of_user
         WHERE teaches = 1 AND batch IS NULL AND user >= ?1 ORDER BY user LIMIT 1",
    )?;
    let mut select = db.prepare_cached(
        "SELECT generation, id FROM feedback INDEXED BY feedback_unused_of_user
         WHERE teaches = 1 AND batch IS NULL AND user IS ?1 AND created <= ?2 ORDER BY generation, id",
    )?;
    let mut heads = Vec::new();
    // First those who gave no name.
    let mut user: Option<String> = None;
    loop {
        if user.as_ref().is_none_or(|user| !limits.held.contains(user)) {
            let mut rows = select.query((&user, limits.ripe))?;
            let mut own = Shares::default();
            while let Some(row) = rows.next()? {
                let (answer, id) = (row.get(0)?, row.get(1)?);
                if !own.take(answer, None, limits.cap.min(limits.max)) {
                    break;
                }
                heads.push(Waiting { answer, id, user: user.clone() });
            }
        }
        // No text sorts between a name and the name with a NUL behind it.
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

/// Rows taken, offered by answer.
#[derive(Default)]
struct Choice {
    shares: Shares,
    chosen: Vec<Waiting>,
    answers: usize,
}

enum Offered {
    Taken,
    LeftOut,
    /// There are as many answers as wanted, and this is of another.
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

/// Whether one user said all there is.
fn lone(db: &Connection) -> Result<bool> {
    let first: Option<Option<String>> = db
        .prepare_cached("SELECT user FROM feedback ORDER BY user LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    match first {
        Some(user) => Ok(!has_others(db, user.as_deref())?),
        None => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::ledger::schema::open_writer;

    #[test]
    fn user_by_user_a_scan_finds_what_it_finds_answer_by_answer() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_writer(&dir.path().join("l")).unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        db.execute_batch("BEGIN").unwrap();
        for seq in 0..400 {
            db.execute("INSERT INTO generations VALUES (?1, ?1, 0, x'', x'', '', '', '', NULL, 0)", [seq]).unwrap();
        }
        let names = [None, Some(""), Some("a"), Some("a\0"), Some("ab"), Some("b"), Some("held")];
        for _ in 0..1500 {
            // The first answers are nearly all of one user's.
            let answer = rng.random_range(0..400);
            let user = if answer < 200 && rng.random_bool(0.9) { Some("b") } else { names[rng.random_range(0..7)] };
            db.execute(
                "INSERT INTO feedback (generation, rating, teaches, user, created, batch) VALUES (?1, 1, ?2, ?3, ?4, NULL)",
                (answer, rng.random_bool(0.9), user, rng.random_range(0..100)),
            )
            .unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
        for (max, cap) in [(16, 4), (64, 8), (64, usize::MAX), (1000, 3), (1000, usize::MAX), (1, 1)] {
            let limits = Limits { max, cap, held: ["held".to_owned()].into(), ripe: 80 };
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
        db.execute_batch(
            "CREATE TEMP TABLE n AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n LIMIT 20100) SELECT i FROM n;
             INSERT INTO generations SELECT i, i, 0, x'', x'', '', '', '', NULL, 0 FROM n;
             INSERT INTO feedback (generation, rating, teaches, user, created)
             SELECT i, 1, 1, iif(i < 20050, 'held', 'user ' || (i % 4)), 0 FROM n;",
        )
        .unwrap();
        review(&db, "held", ReviewVerdict::Hold).unwrap();
        let rules = Rules { share: 0.25, ..Rules::default() };
        let limits = Limits { max: 8, cap: 2, held: held(&db, &rules).unwrap(), ripe: i64::MAX };
        assert!(scan_answers(&db, &limits).unwrap().is_none());
        let batch = choose(&db, 8, &rules).unwrap();
        assert_eq!(batch.iter().map(|(answer, _)| *answer).collect::<Vec<_>>(), (20050..20058).collect::<Vec<_>>());
        assert_eq!(reviews(&db, &rules).unwrap()[0].waiting, 20050);
    }
}

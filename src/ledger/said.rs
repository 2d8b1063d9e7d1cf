//! Feedback as rows: what is on record of an answer before it, whether it counts, and the row. Several pieces at once,
//! for a database that is far away. Never commits.

use std::collections::HashSet;

use super::db::{Asked, Db, Row};
use super::limits::{Compared, OnRecord, Rules};
use super::write::unknown;
use super::{MAX_SAID, MAX_SAID_TEXT, rows};
use crate::error::{Error, Result};
use crate::system::unix_millis;
use crate::types::*;

/// By which a piece of feedback is known again, wherever it is recorded.
pub(super) fn new_identity() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A piece of feedback that is to be a row.
#[derive(Clone, Copy)]
pub(super) struct New<'a> {
    pub(super) feedback: &'a NewFeedback,
    pub(super) identity: &'a str,
}

/// Records a piece of feedback.
pub(super) fn insert_feedback(db: &Db, f: &NewFeedback, rules: &Rules, identity: &str) -> Result<FeedbackReceipt> {
    let mut one = insert_all(db, &[New { feedback: f, identity }], rules)?;
    one.pop().unwrap_or_else(|| Err(Error::panic("a piece of feedback has no outcome")))
}

/// Records pieces of feedback as if one came after another, and returns the outcome of each. The outer error is that of
/// the database: the transaction may be lost then.
pub(super) fn insert_all(db: &Db, all: &[New<'_>], rules: &Rules) -> Result<Vec<Result<FeedbackReceipt>>> {
    let mut outcomes: Vec<Option<Result<FeedbackReceipt>>> = all.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..all.len()).collect();
    while !left.is_empty() {
        // None of which changes what is asked about another: by other users, of other answers, of another content.
        let (mut answers, mut users, mut contents) = (HashSet::new(), HashSet::new(), HashSet::new());
        let (now, mut later): (Vec<usize>, Vec<usize>) = left.iter().copied().partition(|&i| {
            let f = all[i].feedback;
            answers.insert(&f.generation_id) & users.insert(&f.user)
        });
        let asked: Vec<Asked<'_>> = now.iter().map(|&i| Said::asked(all[i].feedback)).collect();
        let found = db.first_of_each(&asked, |_, row| Said::read(row))?;
        let mut begun = Vec::new();
        for (i, said) in now.into_iter().zip(found) {
            let checked = said.ok_or_else(|| unknown(&all[i].feedback.generation_id));
            match checked.and_then(|said| said.check(all[i].feedback).map(|()| said)) {
                Err(error) => outcomes[i] = Some(Err(error)),
                Ok(said) if contents.insert(said.answer.content) => begun.push((i, said)),
                Ok(_) => later.push(i),
            }
        }
        for (i, receipt) in insert(db, all, begun, rules)? {
            outcomes[i] = Some(Ok(receipt));
        }
        later.sort_unstable();
        left = later;
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Records pieces of feedback that have nothing to do with each other.
fn insert(db: &Db, all: &[New<'_>], begun: Vec<(usize, Said)>, rules: &Rules) -> Result<Vec<(usize, FeedbackReceipt)>> {
    let may_teach = |i: usize, said: &Said| {
        let kind = match &all[i].feedback.signal {
            Signal::Rating(_) => true,
            Signal::Named(name) => rules.signals.contains(name),
            Signal::Correction(_) => rules.corrections,
            Signal::Comment => false,
        };
        kind && !said.answer.empty
    };
    let compared = |i: usize| Compared::of(all[i].feedback).filter(|_| rules.flag_after > 0);
    // The piece's place, and what is asked about it: whether it counts, or what others said.
    let (mut asked, mut whose) = (Vec::new(), Vec::new());
    let mut others: Vec<Option<Compared<'_>>> = begun.iter().map(|(i, _)| compared(*i)).collect();
    for (place, (i, said)) in begun.iter().enumerate() {
        if may_teach(*i, said) {
            asked.push(OnRecord::asked(rules, all[*i].feedback, said.answer.content));
            whose.push((place, true));
        }
        if let Some(compared) = &others[place] {
            asked.push(compared.asked(said.answer.content));
            whose.push((place, false));
        }
    }
    let mut counts: Vec<Option<OnRecord>> = begun.iter().map(|_| None).collect();
    db.each_of(&asked, &mut |n, row| {
        let (place, whether) = whose[n];
        match &mut others[place] {
            _ if whether => counts[place] = Some(OnRecord::read(row)?),
            Some(compared) => compared.hear(row)?,
            None => {}
        }
        Ok(())
    })?;
    others.into_iter().flatten().try_for_each(|compared| compared.count(db))?;
    let left_out = |place: usize| counts[place].as_ref().and_then(|on_record| on_record.left_out(rules));
    let teaches = |place: usize| counts[place].is_some() && left_out(place).is_none();
    let now = rows::signed(unix_millis());
    let rows = begun.iter().enumerate().map(|(place, (i, said))| {
        let New { feedback: f, identity } = all[*i];
        let (rating, correction, signal) = rows::parts(&f.signal);
        let values = vec![
            said.answer.row.into(),
            rating.into(),
            correction.into(),
            signal.into(),
            teaches(place).into(),
            left_out(place).into(),
            f.user.as_ref().into(),
            f.comment.as_ref().into(),
            now.into(),
            said.answer.content.into(),
            identity.into(),
        ];
        Asked { sql: INSERT.into(), values }
    });
    let rows: Vec<Asked<'_>> = rows.collect();
    let ids = db.first_of_each(&rows, |_, row| rows::unsigned(row, 0))?;
    let receipts = begun.iter().zip(ids).enumerate().map(|(place, ((i, said), id))| {
        if teaches(place) && !said.waiting {
            db.note_waiting(1);
        }
        let f = all[*i].feedback;
        let receipt = FeedbackReceipt {
            feedback_id: id.ok_or_else(|| Error::io("the ledger: a row is missing"))?,
            generation_id: f.generation_id.clone(),
            policy_version: said.answer.policy_version,
            replaces_earlier: matches!(f.signal, Signal::Rating(_)) && said.rated,
            left_out: left_out(place).map(str::to_owned),
            spooled: false,
        };
        Ok((*i, receipt))
    });
    receipts.collect()
}

const INSERT: &str = "INSERT INTO feedback
    (generation, rating, correction, signal, teaches, left_out, user, comment, created, content, identity)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) RETURNING id";

/// An answer, and what is on record of it before a piece of feedback.
struct Said {
    answer: rows::Answer,
    /// Pieces of feedback.
    count: u64,
    /// Bytes of comments and corrections.
    text: u64,
    /// Whether this user has rated it.
    rated: bool,
    /// Whether it has feedback waiting.
    waiting: bool,
}

impl Said {
    fn asked(f: &NewFeedback) -> Asked<'_> {
        let sql = "SELECT g.seq, g.policy_version, g.prompt, g.response, count(f.id),
                   CAST(coalesce(sum(coalesce(octet_length(f.comment), 0)
                                     + coalesce(octet_length(f.correction), 0)), 0) AS BIGINT),
                   count(*) FILTER (WHERE f.user IS NOT DISTINCT FROM ?2 AND f.rating IS NOT NULL),
                   count(*) FILTER (WHERE f.teaches = 1 AND f.batch IS NULL)
                   FROM generations g LEFT JOIN feedback f INDEXED BY feedback_of_generation ON f.generation = g.seq
                   WHERE g.id = ?1 GROUP BY g.seq";
        Asked { sql: sql.into(), values: vec![(&f.generation_id.0).into(), f.user.as_ref().into()] }
    }

    fn read(row: &Row<'_>) -> Result<Self> {
        let number = |column| rows::unsigned(row, column);
        let (rated, waiting) = (number(6)? > 0, number(7)? > 0);
        Ok(Said { answer: rows::answer_row(row)?, count: number(4)?, text: number(5)?, rated, waiting })
    }

    /// Limits the feedback on one answer, since it is read all at once.
    fn check(&self, f: &NewFeedback) -> Result<()> {
        let Self { count, text, .. } = self;
        let (_, correction, _) = rows::parts(&f.signal);
        let more = f.comment.as_ref().map_or(0, String::len) + correction.map_or(0, str::len);
        if *count >= MAX_SAID {
            return Err(Error::arg(format!("the answer has {count} pieces of feedback, expected at most {MAX_SAID}")));
        }
        if more > 0 && text + more as u64 > MAX_SAID_TEXT {
            return Err(Error::arg(format!(
                "comments and corrections on the answer have {text} bytes, and {more} more are over {MAX_SAID_TEXT}"
            )));
        }
        Ok(())
    }
}

//! Records what is imported, and knows again what is on record. Never reads a file, and never decides what counts.

use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, bounded};
use rusqlite::Connection;

use super::handle::check_preference;
use super::limits::Rules;
use super::write::{check_feedback, insert_feedback, insert_preference, record};
use super::{Ledger, StoredFeedback, rows};
use crate::error::Result;
use crate::types::*;

/// A judgement that is imported.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// On one answer; its identity where it was first said, if that is known.
    Feedback(NewFeedback, Option<String>),
    /// One answer is better than another.
    Preference {
        /// The better one.
        chosen: GenerationId,
        /// The worse one.
        rejected: GenerationId,
        /// Whose judgement it is.
        user: Option<String>,
    },
}

/// An answer that is imported.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedAnswer {
    /// The answer, under an id of its own here.
    pub generation: Generation,
    /// The id that it first had elsewhere.
    pub origin: Option<GenerationId>,
}

impl Ledger {
    /// Records a judgement that an operator imports, without limits over time, and its answers; what is on record is
    /// not recorded again. Returns at once: the receiver gets whether the judgement was new, once it is on disk.
    ///
    /// # Errors
    /// As [`Ledger::add_feedback`] and [`Ledger::record_generation`], at once or from the receiver.
    pub fn import(&self, answers: Vec<ImportedAnswer>, judgement: Judgement) -> Result<Receiver<Result<bool>>> {
        match &judgement {
            Judgement::Feedback(f, _) => check_feedback(f)?,
            Judgement::Preference { chosen, rejected, user } => check_preference(chosen, rejected, user.as_deref())?,
        }
        let rules = Rules { hourly: 0, ..(*self.rules).clone() };
        let work = move |db: &Connection| import(db, &answers, &judgement, &rules);
        let ((sender, receiver), pending) = (bounded(1), self.pending.clone());
        let done = move |imported: Result<Imported>| {
            if imported.as_ref().is_ok_and(|imported| imported.first) {
                pending.fetch_add(1, Ordering::Relaxed);
            }
            // The importer may have given up.
            let _ = sender.send(imported.map(|imported| imported.new));
        };
        self.writer.submit(work, done)?;
        Ok(receiver)
    }
}

/// The outcome of an imported judgement.
pub(super) struct Imported {
    /// It was not on record.
    pub(super) new: bool,
    /// Its answer now waits to teach.
    pub(super) first: bool,
}

/// Records a judgement after its answers, each unless it is on record.
pub(super) fn import(
    db: &Connection,
    answers: &[ImportedAnswer],
    judgement: &Judgement,
    rules: &Rules,
) -> Result<Imported> {
    for ImportedAnswer { generation, origin } in answers {
        db.prepare_cached("UPDATE generations SET origin = ?2 WHERE id = ?1 AND origin IS NULL")?
            .execute((&generation.id.0, origin.as_ref().map(|id| &id.0)))?;
    }
    match judgement {
        Judgement::Feedback(f, identity) => {
            let (new, identity) = unheard(db, f, identity.as_deref())?;
            if !new {
                return Ok(Imported { new, first: false });
            }
            record_imported(db, answers)?;
            let (receipt, first) = insert_feedback(db, f, rules)?;
            identify(db, receipt.feedback_id, identity)?;
            Ok(Imported { new, first })
        }
        Judgement::Preference { chosen, rejected, user } => {
            record_imported(db, answers)?;
            let (_, new) = insert_preference(db, chosen, rejected, user.as_deref())?;
            Ok(Imported { new, first: false })
        }
    }
}

/// Records answers that are not on record.
fn record_imported(db: &Connection, answers: &[ImportedAnswer]) -> Result<()> {
    for ImportedAnswer { generation, origin } in answers {
        if rows::answer(db, &generation.id)?.is_none() {
            record(db, generation)?;
            db.prepare_cached("UPDATE generations SET origin = ?2 WHERE id = ?1")?
                .execute((&generation.id.0, origin.as_ref().map(|id| &id.0)))?;
        }
    }
    Ok(())
}

fn identify(db: &Connection, feedback: u64, identity: Option<&str>) -> Result<()> {
    db.prepare_cached("UPDATE feedback SET identity = ?2 WHERE id = ?1")?
        .execute((rows::signed(feedback), identity))?;
    Ok(())
}

/// Whether imported feedback is not on record, and the identity that it is recorded with. What has an identity is known
/// by that, so that a user may say the same again; what has none, by what it says.
fn unheard<'a>(db: &Connection, f: &NewFeedback, identity: Option<&'a str>) -> Result<(bool, Option<&'a str>)> {
    let alike = |known: &StoredFeedback| known.signal == f.signal && known.user == f.user;
    let same = |known: &StoredFeedback| alike(known) && known.comment == f.comment;
    let identity = match identity {
        Some(identity) => match rows::feedback_by_identity(db, identity)? {
            Some(known) if same(&known) => return Ok((false, None)),
            // Someone has changed the line.
            Some(_) => None,
            None => Some(identity),
        },
        None => None,
    };
    let said = rows::feedback_of(db, &f.generation_id)?;
    let Some(identity) = identity else {
        let silent = f.comment.is_none() && f.signal != Signal::Comment;
        let known = said.iter().any(|known| same(known) || silent && alike(known));
        return Ok((!known, None));
    };
    // Of an earlier import, without identities: the same piece.
    let mut unnamed = db.prepare_cached("SELECT 1 FROM feedback WHERE id = ?1 AND identity IS NULL")?;
    for known in said.iter().filter(|known| same(known)) {
        if unnamed.exists([rows::signed(known.feedback_id)])? {
            identify(db, known.feedback_id, Some(identity))?;
            return Ok((false, None));
        }
    }
    Ok((true, Some(identity)))
}

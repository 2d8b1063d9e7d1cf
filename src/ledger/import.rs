//! Records what is imported, and knows again what is on record. Never reads a file, and never decides what counts.

use crossbeam_channel::{Receiver, bounded};

use super::db::Db;
use super::limits::Rules;
use super::record::check_preference;
use super::said::{insert_feedback, new_identity};
use super::write::{check_feedback, insert_preference, record};
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
        let work = move |db: &Db| import(db, &answers, &judgement, &rules);
        let (sender, receiver) = bounded(1);
        let done = move |imported: Result<bool>| {
            // The importer may have given up.
            let _ = sender.send(imported);
        };
        self.writer.submit(work, done)?;
        Ok(receiver)
    }
}

/// Records a judgement after its answers, each unless it is on record; whether the judgement was not.
pub(super) fn import(db: &Db, answers: &[ImportedAnswer], judgement: &Judgement, rules: &Rules) -> Result<bool> {
    let name = "UPDATE generations SET origin = ?2 WHERE id = ?1 AND origin IS NULL";
    for ImportedAnswer { generation, origin } in answers {
        db.execute(name, (&generation.id.0, origin.as_ref().map(|id| &id.0)))?;
    }
    match judgement {
        Judgement::Feedback(f, identity) => {
            let (new, identity) = unheard(db, f, identity.as_deref())?;
            if new {
                record_imported(db, answers)?;
                let receipt = insert_feedback(db, f, rules, &new_identity())?;
                identify(db, receipt.feedback_id, identity)?;
            }
            Ok(new)
        }
        Judgement::Preference { chosen, rejected, user } => {
            record_imported(db, answers)?;
            Ok(insert_preference(db, chosen, rejected, user.as_deref())?.1)
        }
    }
}

/// Records answers that are not on record.
fn record_imported(db: &Db, answers: &[ImportedAnswer]) -> Result<()> {
    for ImportedAnswer { generation, origin } in answers {
        if rows::answer(db, &generation.id)?.is_none() {
            record(db, generation)?;
            let origin = origin.as_ref().map(|id| &id.0);
            db.execute("UPDATE generations SET origin = ?2 WHERE id = ?1", (&generation.id.0, origin))?;
        }
    }
    Ok(())
}

fn identify(db: &Db, feedback: u64, identity: Option<&str>) -> Result<()> {
    db.execute("UPDATE feedback SET identity = ?2 WHERE id = ?1", (rows::signed(feedback), identity))?;
    Ok(())
}

/// Whether imported feedback is not on record, and the identity that it is recorded with. What has an identity is known
/// by that, so that a user may say the same again; what has none, by what it says.
fn unheard<'a>(db: &Db, f: &NewFeedback, identity: Option<&'a str>) -> Result<(bool, Option<&'a str>)> {
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
    let unnamed = "SELECT 1 FROM feedback WHERE id = ?1 AND identity IS NULL";
    for known in said.iter().filter(|known| same(known)) {
        if db.exists(unnamed, [rows::signed(known.feedback_id)])? {
            identify(db, known.feedback_id, Some(identity))?;
            return Ok((false, None));
        }
    }
    Ok((true, Some(identity)))
}

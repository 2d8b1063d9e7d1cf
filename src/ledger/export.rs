//! Reads a ledger that another process may hold. Never writes.

use super::META_MODEL_SHA256;
use super::db::Db;
use super::place::Place;
use super::rows::{self, StoredFeedback, StoredPair};
use crate::error::Result;
use crate::types::{Generation, GenerationId, TokenId};

/// Rows per read: a long read would keep a running engine's log from being folded.
const PAGE: usize = 256;

/// A piece of feedback.
#[derive(Clone, Debug, PartialEq)]
pub enum Exported {
    /// Feedback on one answer, which has the id that it had before any import, and the identity of the feedback, if it
    /// has one: the same piece has the same one wherever it is imported.
    Feedback(Box<Generation>, StoredFeedback, Option<String>),
    /// A preference between two, by their ids before any import.
    Preference(StoredPair, [GenerationId; 2]),
}

impl Exported {
    /// The prompt of the answer, as the model saw it.
    pub fn prompt(&self) -> &[TokenId] {
        match self {
            Exported::Feedback(generation, ..) => &generation.prompt,
            Exported::Preference(pair, _) => &pair.prompt,
        }
    }
}

/// A ledger opened for reading; an engine may hold the folder.
pub struct LedgerReader {
    db: Db,
}

impl LedgerReader {
    /// Opens the ledger of a data folder.
    ///
    /// # Errors
    /// `Io` if there is none or it can't be read, `Unsupported` if it is of another format.
    pub fn open<'a>(place: impl Into<Place<'a>>) -> Result<Self> {
        Ok(Self { db: place.into().open_reader()? })
    }

    /// SHA-256 of the base model.
    ///
    /// # Errors
    /// `Io` if it can't be read.
    pub fn model_fingerprint(&self) -> Result<Option<String>> {
        rows::meta(&self.db, META_MODEL_SHA256)
    }

    /// Calls `each` with all feedback and then all preferences, oldest first.
    ///
    /// # Errors
    /// `Io` if it can't be read, and those of `each`.
    pub fn for_each(&self, each: &mut dyn FnMut(&Exported) -> Result<()>) -> Result<()> {
        let mut last = 0;
        loop {
            let page = rows::feedback_page(&self.db, last, PAGE)?;
            let Some((_, newest, _)) = page.last() else { break };
            last = newest.feedback_id;
            // Of one without a prompt the words were too old to be kept.
            for (generation, feedback, identity) in page.into_iter().filter(|(g, ..)| !g.prompt.is_empty()) {
                each(&Exported::Feedback(Box::new(generation), feedback, identity))?;
            }
        }
        let mut last = 0;
        loop {
            let page = rows::preference_page(&self.db, last, PAGE)?;
            let Some((newest, ..)) = page.last() else { return Ok(()) };
            last = *newest;
            for (_, pair, answers) in page {
                each(&Exported::Preference(pair, answers))?;
            }
        }
    }
}

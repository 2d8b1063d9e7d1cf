//! What people say of answers: taken in, told, reviewed, deleted. Never makes a reward of it.

use serde::{Deserialize, Serialize};

use super::{Engine, exchange};
use crate::error::Result;
use crate::ledger::{Forgotten, LeftOut, ReviewEntry, ReviewVerdict, StoredFeedback, StoredSample};
use crate::reward::Entry;
use crate::types::*;

/// Most pieces of feedback that are listed as left out.
const MOST_LEFT_OUT: usize = 256;

/// A generation and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// The answer as it was made.
    #[serde(flatten)]
    pub generation: Generation,
    /// What was said of it, oldest first.
    pub feedback: Vec<StoredFeedback>,
    /// The training samples it gave, with the terms of their rewards.
    pub samples: Vec<StoredSample>,
}

impl Engine {
    /// Records feedback; it is on disk when this returns.
    ///
    /// # Errors
    /// `Arg` for an unknown generation or a rating outside [-1, 1] or not a number, `Io` if it could not be written.
    pub fn feedback(&self, feedback: NewFeedback) -> Result<FeedbackReceipt> {
        self.check_open()?;
        let receipt = self.inner.ledger.add_feedback(&feedback)?;
        self.learn_if_due();
        Ok(receipt)
    }

    /// Records that one answer is better than another; it is on disk when this returns.
    ///
    /// # Errors
    /// As [`Engine::feedback`].
    pub fn prefer(&self, chosen: &GenerationId, rejected: &GenerationId, user: Option<&str>) -> Result<u64> {
        self.check_open()?;
        let id = self.inner.ledger.add_preference(chosen, rejected, user)?;
        self.inner.learner.nudge();
        Ok(id)
    }

    /// A generation with what was said of it and what it taught: the terms of every reward that was made of it.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation_record(&self, id: &GenerationId) -> Result<Option<GenerationRecord>> {
        let Some(generation) = self.inner.ledger.generation(id)? else { return Ok(None) };
        let (feedback, samples) = (self.inner.ledger.feedback_of(id)?, self.inner.ledger.samples_of(id)?);
        Ok(Some(GenerationRecord { generation, feedback, samples }))
    }

    /// Takes in feedback from elsewhere; see [`exchange::import`].
    ///
    /// # Errors
    /// As [`exchange::import`].
    pub fn import(&self, entries: &[Entry], user: Option<&str>) -> Result<exchange::Imported> {
        self.check_open()?;
        let done = exchange::import(&self.inner.ledger, &self.inner.model, entries, user)?;
        self.learn_if_due();
        Ok(done)
    }

    /// Deletes a user's words: the answers made for them with their prompts, what anyone said of those, and all they
    /// said of others' answers. They are overwritten on disk when this returns, unless another program reads the ledger
    /// ([`Forgotten::overwritten`]). Answers under way for the user are given and not recorded. What remains are the
    /// versions that learned from them.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        self.check_open()?;
        // First: what ends from now on is not recorded, and what ended before is among what is deleted.
        self.inner.in_flight.forget(user);
        self.inner.ledger.forget(user)
    }

    /// Users whose feedback waits for a person to look at it, and those that one has decided about.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn reviews(&self) -> Result<Vec<ReviewEntry>> {
        self.inner.ledger.reviews()
    }

    /// Feedback that nothing can be learned from, the newest first, with why.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn left_out(&self) -> Result<Vec<LeftOut>> {
        self.inner.ledger.left_out(MOST_LEFT_OUT)
    }

    /// Decides about a user's feedback: it counts, waits, or is left out for good.
    ///
    /// # Errors
    /// `Arg` for a name that is too long, `Io`, `Closed`.
    pub fn review(&self, user: &str, verdict: ReviewVerdict) -> Result<()> {
        self.check_open()?;
        self.inner.ledger.review(user, verdict)?;
        self.learn_if_due();
        Ok(())
    }

    /// Wakes the learner if a batch is in and it trains by itself.
    pub(super) fn learn_if_due(&self) {
        let train = &self.inner.config.train;
        if train.enabled && self.inner.learner.auto() && self.inner.ledger.pending_ratings() >= u64::from(train.batch) {
            self.inner.learner.nudge();
        }
    }
}

//! Feedback on answers: records, lists, reviews and deletes it. Never turns it into a reward.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::learner::BEING_UNLEARNED;
use super::{Engine, UnlearnPlan, UnlearnReceipt, exchange, learner};
use crate::error::{Error, Result};
use crate::ledger::{Forgotten, LeftOut, ReviewEntry, ReviewVerdict, StoredFeedback, StoredSample};
use crate::reward::Entry;
use crate::types::*;

/// Most pieces of feedback that are listed as left out.
const MOST_LEFT_OUT: usize = 256;

/// A generation with everything that followed from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct GenerationRecord {
    /// The answer as it was made.
    #[serde(flatten)]
    pub generation: Generation,
    /// The feedback on it, oldest first.
    pub feedback: Vec<StoredFeedback>,
    /// The training samples made from it, with the terms of their rewards.
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

    /// A generation with its feedback and training samples, including the terms of every reward.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn generation_record(&self, id: &GenerationId) -> Result<Option<GenerationRecord>> {
        let Some(generation) = self.inner.ledger.generation(id)? else { return Ok(None) };
        let (feedback, samples) = (self.inner.ledger.feedback_of(id)?, self.inner.ledger.samples_of(id)?);
        Ok(Some(GenerationRecord { generation, feedback, samples }))
    }

    /// Imports feedback; see [`exchange::import`].
    ///
    /// # Errors
    /// As [`exchange::import`].
    pub fn import(&self, entries: &[Entry], user: Option<&str>) -> Result<exchange::Imported> {
        self.check_open()?;
        let done = exchange::import(&self.inner.ledger, &self.inner.model, entries, user)?;
        self.learn_if_due();
        Ok(done)
    }

    /// Deletes a user's data: the answers made for the user with their prompts, those whose prompts repeat them,
    /// everyone's feedback on those, and the user's feedback on other answers. It is overwritten on disk when this
    /// returns, unless another program is reading the ledger ([`Forgotten::overwritten`]). Running answers for the user
    /// are delivered but not recorded. Versions that were trained on the data remain.
    ///
    /// # Errors
    /// `Io` if it could not be written, `Closed`.
    pub fn forget(&self, user: &str) -> Result<Forgotten> {
        self.check_open()?;
        // First this: answers that end from now on are not recorded, and those that ended before are deleted.
        self.inner.in_flight.forget(user);
        self.inner.ledger.forget(user)
    }

    /// What it takes to forget a user with all that was learned from the user's words; changes nothing. `None` if no
    /// version on record learned from them.
    ///
    /// # Errors
    /// `Unsupported` if a version that learned from them can't be replaced, since it was restored or adopted, or since
    /// nothing can be trained; `Busy` if another user is being unlearned; `Io` if the ledger or a version can't be
    /// read; `Closed`.
    pub fn unlearn_plan(&self, user: &str) -> Result<Option<UnlearnPlan>> {
        self.check_open()?;
        if self.inner.learner.status().unlearning.is_some() {
            return Err(Error::busy(BEING_UNLEARNED));
        }
        let planned = learner::plan(&self.inner.store, &self.inner.ledger, user)?;
        if planned.is_some() {
            self.inner.learner.check_unlearning()?;
        }
        Ok(planned.map(|(_, plan)| plan))
    }

    /// Deletes a user's data as [`Engine::forget`] does, and has the versions replaced that learned from it: the
    /// trainer goes back to the last version that did not, and trains on the recorded batches again without the user's
    /// samples. What that makes is judged like any candidate; then the versions that learned from the user are removed,
    /// whatever the judgement is. Returns once the data is deleted; the status shows the progress, and a restart
    /// resumes it. A running training step is aborted.
    ///
    /// # Errors
    /// As [`Engine::unlearn_plan`]; `Busy` if a user is being unlearned, `Unsupported` or `Train` if there is no
    /// trainer. Nothing is deleted then.
    pub fn unlearn(&self, user: &str) -> Result<UnlearnReceipt> {
        self.check_open()?;
        self.inner.learner.unlearn(user)
    }

    /// Users whose feedback waits for review, and those already decided about.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn reviews(&self) -> Result<Vec<ReviewEntry>> {
        self.inner.ledger.reviews()
    }

    /// Feedback that can't be used, the newest first, with the reasons.
    ///
    /// # Errors
    /// `Io` if the ledger can't be read.
    pub fn left_out(&self) -> Result<Vec<LeftOut>> {
        self.inner.ledger.left_out(MOST_LEFT_OUT)
    }

    /// Decides about a user's feedback: whether it counts, waits, or is left out for good.
    ///
    /// # Errors
    /// `Arg` for a name that is too long or that nobody on record has, `Io`, `Closed`.
    pub fn review(&self, user: &str, verdict: ReviewVerdict) -> Result<()> {
        self.check_open()?;
        self.inner.ledger.review(user, verdict)?;
        self.learn_if_due();
        Ok(())
    }

    /// Has the learner woken by what is said at other servers of the ledger, too.
    pub(super) fn hear_others(&self) {
        let inner = Arc::downgrade(&self.inner);
        self.inner.ledger.on_news(move |news| {
            let Some(inner) = inner.upgrade() else { return };
            if news.versions {
                inner.learner.nudge();
            }
            Engine { inner }.learn_if_due();
        });
    }

    /// Wakes the learner if there are enough ratings and training is automatic.
    pub(super) fn learn_if_due(&self) {
        let train = &self.inner.config.train;
        if train.enabled && self.inner.learner.auto() && self.inner.ledger.pending_ratings() >= u64::from(train.batch) {
            self.inner.learner.nudge();
        }
    }
}

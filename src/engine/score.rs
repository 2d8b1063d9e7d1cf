//! Scores of the reward model in use, for whoever asks. Never trains on what it scores.

use super::Engine;
use crate::error::{Error, Result};
use crate::types::TokenId;

impl Engine {
    /// The reward model's score of each answer to its prompt (template applied), both as tokens; only differences
    /// between answers are meaningful. One call at a time; it shares the processor with answers and training.
    ///
    /// # Errors
    /// `Unsupported` if no reward model is in use; `Busy` while another call is at work; `Arg` for tokens that are
    /// none, too many, or outside the vocabulary; `Train` if nothing can be computed, or a score is not finite.
    pub fn score(&self, answers: &[(Vec<TokenId>, Vec<TokenId>)]) -> Result<Vec<f32>> {
        self.check_open()?;
        for (prompt, answer) in answers {
            self.check_tokens(prompt, answer)?;
        }
        let Ok(_one) = self.inner.scoring.try_lock() else {
            return Err(Error::busy("the reward model is at work for another request"));
        };
        let model = self.inner.learner.reward_model().ok_or_else(|| {
            Error::unsupported(
                "no reward model is in use: reward.model names none, none was learned from preferences yet, or \
                 training is off or still loading",
            )
        })?;
        let scores = model.score(answers)?;
        match scores.iter().all(|score| score.is_finite()) {
            true => Ok(scores),
            false => Err(Error::train("a score of the reward model is not finite: its weights may be damaged")),
        }
    }
}

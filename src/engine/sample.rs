//! Records answers that were made elsewhere, to train on them. Never generates one.

use std::sync::Arc;

use crossbeam_channel::bounded;
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::error::{Error, Result};
use crate::ids::GenerationKind;
use crate::system::unix_millis;
use crate::types::*;

/// An answer made elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSample {
    /// The prompt, in tokens; see [`Engine::chat_prompt`] and [`Engine::tokenize`].
    pub prompt: Vec<TokenId>,
    /// The answer in tokens, its end-of-turn token included.
    pub response: Vec<TokenId>,
    /// Its reward, in [-1, 1]; without one it waits to be rated.
    pub reward: Option<f64>,
    /// The temperature at which it is trained; 1 for text that no model sampled.
    pub temperature: f32,
    /// The user it was for.
    pub user: Option<String>,
}

/// Proof that a sample is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub struct SampleReceipt {
    /// Its id, for feedback.
    pub generation_id: GenerationId,
    /// Id of its rating, if it came with a reward.
    pub feedback_id: Option<u64>,
    /// The active version when it came, under which it is recorded.
    pub policy_version: PolicyVersion,
}

impl Engine {
    /// Records an answer made elsewhere, and its rating; both are on disk when this returns. It is trained on like any
    /// other.
    ///
    /// # Errors
    /// `Arg` for an empty prompt or response, tokens outside the vocabulary, more of them than the context holds, or a
    /// reward outside [-1, 1]; `Io` if it could not be written; `Closed`.
    pub fn add_sample(&self, sample: NewSample) -> Result<SampleReceipt> {
        self.check_open()?;
        let NewSample { prompt, response, reward, temperature, user } = sample;
        self.check_tokens(&prompt, &response)?;
        if let Some(reward) = reward
            && !RATINGS.contains(&reward)
        {
            return Err(Error::arg(format!("the reward is {reward}, expected a number from -1 to 1")));
        }
        if !Sampling::TEMPERATURE.contains(&temperature) {
            return Err(Error::arg(format!("the temperature is {temperature}, expected a number from 0 to 10")));
        }
        let id = GenerationId::new(GenerationKind::Sample);
        let policy_version = self.status().policy_version;
        let generation = Generation {
            id: id.clone(),
            policy_version,
            text: self.inner.model.text(&response, false),
            prompt,
            response,
            sampling: Sampling { temperature, ..Sampling::default() },
            finish: FinishReason::Stop,
            user: user.clone(),
            created: unix_millis(),
            unrecorded: false,
        };
        let (written, wait) = bounded(1);
        let done = Box::new(move |result| drop(written.send(result)));
        self.inner.ledger.record_generation(Arc::new(generation), done)?;
        wait.recv().map_err(|_| Error::closed("the engine is closed"))??;
        let rate = |reward| {
            self.feedback(NewFeedback {
                generation_id: id.clone(),
                signal: Signal::Rating(reward),
                user: user.clone(),
                comment: None,
            })
        };
        let feedback_id = reward.map(rate).transpose()?.map(|receipt| receipt.feedback_id);
        Ok(SampleReceipt { generation_id: id, feedback_id, policy_version })
    }

    /// Tokens of a completion given as text; in a chat, the token that ends the model's turn is added.
    ///
    /// # Errors
    /// As [`Engine::tokenize`].
    pub fn completion_tokens(&self, text: &str, ends_turn: bool) -> Result<Vec<TokenId>> {
        let mut tokens = self.tokenize_bare(text)?;
        if ends_turn {
            tokens.extend(self.inner.model.turn_end());
        }
        Ok(tokens)
    }

    pub(super) fn check_tokens(&self, prompt: &[TokenId], response: &[TokenId]) -> Result<()> {
        let (known, most) = (self.vocabulary(), self.inner.config.serve.context as usize);
        if prompt.is_empty() || response.is_empty() {
            let empty = if prompt.is_empty() { "prompt" } else { "completion" };
            return Err(Error::arg(format!("the {empty} is empty, expected at least one token")));
        }
        if let Some(token) = prompt.iter().chain(response).find(|t| **t as usize >= known) {
            return Err(Error::arg(format!("token {token} is outside the vocabulary of {known}")));
        }
        match prompt.len() + response.len() {
            tokens if tokens > most => Err(Error::context_length(format!(
                "the sample has {tokens} tokens, expected at most {most} (serve.context)"
            ))),
            _ => Ok(()),
        }
    }
}

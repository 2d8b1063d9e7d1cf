//! Measures a version on given answers: log-probabilities and entropies. Never learns from one.

use super::Trainer;
use super::batch::Batch;
use super::network::Forward;
use crate::error::{Error, Result};
use crate::policy::Lora;
use crate::types::{Rollout, TokenId};

/// Measurements of an answer under a version, at temperature 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weighed {
    /// Log-probability of the answer given its prompt, summed over its tokens, nats.
    pub logprob: f64,
    /// Mean entropy at its tokens, nats; 0 for the initial model, where it is not computed.
    pub entropy: f64,
}

impl Trainer {
    /// Measures answers, each a prompt and a response of at least one token, under the version of an adapter; without
    /// one, under the initial model. `cancel` is checked between forward passes.
    ///
    /// # Errors
    /// `Arg` for an empty prompt or response, `Closed` if cancelled, `Train` otherwise.
    pub fn weigh(
        &self,
        answers: &[(&[TokenId], &[TokenId])],
        adapter: Option<&Lora>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Weighed>> {
        let rollout = |(prompt, response): &(&[TokenId], &[TokenId])| Rollout {
            prompt: prompt.to_vec(),
            response: response.to_vec(),
            temperature: 1.0,
            ..Rollout::default()
        };
        let rollouts: Vec<Rollout> = answers.iter().map(rollout).collect();
        let batch = Batch::new(&rollouts, usize::MAX)?;
        let adapter = adapter.map(Lora::detached);
        let all: Vec<usize> = (0..answers.len()).collect();
        let mut weighed = Vec::with_capacity(answers.len());
        for group in batch.split(&all, self.config.micro_batch_tokens as usize) {
            if cancel() {
                return Err(Error::closed("the examination was stopped"));
            }
            let samples = batch.group(&group);
            let forward = Forward::new(&self.decoder, &samples)?;
            let (logprobs, entropies) = match &adapter {
                Some(adapter) => {
                    let own = forward.distributions(&forward.hidden(Some(adapter))?, &[])?;
                    (own.logprobs.to_vec1::<f32>()?, own.entropy.to_vec1::<f32>()?)
                }
                None => {
                    let logprobs = forward.logprobs(None)?.to_vec1::<f32>()?;
                    let none = vec![0.0; logprobs.len()];
                    (logprobs, none)
                }
            };
            let mut rows = logprobs.into_iter().zip(entropies).map(|(l, e)| (f64::from(l), f64::from(e)));
            for sample in samples {
                let mut sum = Weighed::default();
                for (logprob, entropy) in rows.by_ref().take(sample.response.len()) {
                    sum.logprob += logprob;
                    sum.entropy += entropy / sample.response.len() as f64;
                }
                weighed.push(sum);
            }
        }
        Ok(weighed)
    }
}

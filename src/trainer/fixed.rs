//! The values that stay fixed while a batch is trained on: log-probabilities, distances, critic values, advantages and
//! returns. Takes no step.

use candle_core::Tensor;

use super::batch::{Batch, Sample, slice};
use super::control::{States, room};
use super::network::Forward;
use super::{Trainer, check_cancelled, mean};
use crate::align;
use crate::config::{Algorithm, Credit, TrainConfig};
use crate::error::Result;
use crate::types::{Nats, StepMetrics};

/// The fixed values of a batch, in flat arrays with one entry per response token.
pub(super) struct Fixed {
    pub ref_logprobs: Vec<f32>,
    /// Those of the policy that sampled.
    pub behavior_logprobs: Vec<f32>,
    pub old_values: Vec<f32>,
    pub advantages: Vec<f32>,
    pub returns: Vec<f32>,
    /// Mean squared returns and mean squared errors of the values: the errors of the running mean and of the critic.
    pub errors: (f64, f64),
    /// Those of the watched samples.
    pub states: Vec<States>,
    /// KL of the policy to the initial model over those samples, per response.
    pub start: Nats,
}

impl Trainer {
    /// The forward passes without gradients, and what follows from them.
    pub(super) fn fix(
        &self,
        batch: &Batch,
        watched: &[usize],
        metrics: &mut StepMetrics,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Fixed> {
        let (policy, critic) = (self.policy.lora.detached(), self.critic.lora.detached());
        let (mut ref_logprobs, mut logprobs, mut old_values) = (Vec::new(), Vec::new(), Vec::new());
        let (mut entropy, mut kl, mut states) = (0.0, Vec::new(), Vec::new());
        for group in batch.split(&batch.all(), self.config.micro_batch_tokens as usize) {
            let samples = batch.group(&group);
            let forward = Forward::new(&self.decoder, &samples)?;
            check_cancelled(cancel)?;
            let reference = forward.hidden(None)?;
            check_cancelled(cancel)?;
            let now = forward.hidden(Some(&policy))?;
            check_cancelled(cancel)?;
            let own = forward.distributions(&now, &[&reference])?;
            logprobs.extend(own.logprobs.to_vec1::<f32>()?);
            entropy += own.entropy.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
            for initial in own.others {
                ref_logprobs.extend(initial.logprobs.to_vec1::<f32>()?);
                kl.extend(initial.kl.to_vec1::<f32>()?);
            }
            let mut row = 0;
            for (i, sample) in group.iter().zip(&samples) {
                let rows = |x: &Tensor| x.narrow(0, row, sample.response.len())?.copy();
                if watched.contains(i) {
                    states.push(States { sample: *i, reference: rows(&reference)?, before: rows(&now)? });
                }
                row += sample.response.len();
            }
            check_cancelled(cancel)?;
            match &self.remote {
                None => old_values.extend(forward.values(&critic, self.critic.head()?)?.detach().to_vec1::<f32>()?),
                Some(_) => old_values.resize(logprobs.len(), 0.0),
            }
        }

        let device = self.decoder.device();
        let padded = |flat: &[f32]| batch.padded(&flat.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), device);
        let mask = batch.padded(&vec![1.0; batch.rows()], device)?; // [batch, time]
        let (reference, own, values) = (padded(&ref_logprobs)?, padded(&logprobs)?, padded(&old_values)?);

        let k1 = align::kl_k1(&own, &reference)?;
        metrics.kl_k1_per_token = Nats(align::scalar(&align::masked_mean(&k1, &mask)?)?);
        metrics.kl_k3_per_token = Nats(align::scalar(&align::masked_mean(&align::kl_k3(&own, &reference)?, &mask)?)?);
        metrics.kl_per_response = Nats(mean(&align::sum_per_response(&k1, &mask)?.to_vec1::<f64>()?));
        let of = |sample: &Sample| Ok(slice(&kl, sample)?.iter().map(|x| f64::from(*x)).sum());
        let kl = batch.samples.iter().map(of).collect::<Result<Vec<f64>>>()?;
        metrics.kl_exact_per_response = Nats(mean(&kl));
        let start = Nats(mean(&states.iter().filter_map(|s| kl.get(s.sample).copied()).collect::<Vec<_>>()));

        metrics.entropy = Nats(entropy / batch.rows().max(1) as f64);
        metrics.serve_train_gap = serve_train_gap(batch, &logprobs)?;

        // From here on those of the policy that sampled, if it is another one.
        let mut behavior_logprobs = logprobs;
        for sample in &batch.samples {
            if let (Some(own), Some(to)) = (sample.behavior_logprobs, behavior_logprobs.get_mut(sample.rows.clone())) {
                to.copy_from_slice(own);
            }
        }
        let scored = |s: &Sample| self.scaled(s.score);
        let scores: Vec<f64> = batch.samples.iter().map(scored).collect();
        let mut rewards = align::terminal_rewards(&Tensor::new(scores, device)?, &mask)?;
        if matches!(self.config.algorithm, Algorithm::Ppo | Algorithm::Rloo) {
            let behavior = padded(&behavior_logprobs)?;
            rewards = (rewards + align::kl_penalty(&behavior, &reference, &mask, self.kl_controller.kl_coef)?)?;
        }
        let Advantages { mut advantages, returns, share } = match self.config.algorithm {
            Algorithm::Rloo => against_others(batch, &rewards, &mask)?,
            _ => self.advantages(&rewards, &values, &mask)?,
        };
        (metrics.baseline, metrics.critic_trust) = (self.baseline.mean, share);
        // With credit by response the critic's value matters at the prompt alone.
        let asked = if self.config.credit == Credit::Response { first_tokens(&mask)? } else { mask.clone() };
        let error = align::scalar(&align::masked_mean(&(&values - &returns)?.sqr()?, &asked)?)?;
        let baseline_error = align::scalar(&align::masked_mean(&returns.sqr()?, &asked)?)?;
        metrics.value_error = error.sqrt();
        metrics.explained_variance = align::explained_variance(&values, &returns, &asked)?;
        if self.config.whiten {
            advantages = align::whiten(&advantages, &mask)?;
        }
        let flat =
            |padded: &Tensor| -> Result<Vec<f32>> { Ok(batch.flat(padded)?.into_iter().map(|x| x as f32).collect()) };
        let mut advantages = flat(&(advantages * room(start, self.config.kl_budget))?)?;
        if self.config.credit == Credit::Response {
            let own = self.distance_worth(batch, &kl);
            advantages.iter_mut().for_each(|advantage| *advantage += own as f32);
        }
        for sample in &batch.samples {
            if let (Some(floor), Some(own)) = (sample.advantage_floor, advantages.get_mut(sample.rows.clone())) {
                own.iter_mut().for_each(|advantage| *advantage = advantage.max(floor as f32));
            }
        }
        let returns = flat(&returns)?;
        let errors = (baseline_error, error);
        Ok(Fixed { advantages, returns, ref_logprobs, behavior_logprobs, old_values, errors, states, start })
    }

    /// A score on the critic's scale: its distance from the running mean, in standard deviations, clipped.
    pub(super) fn scaled(&self, score: f64) -> f64 {
        self.reward_scale.scale(score - self.baseline.mean, self.config.score_clip)
    }

    /// Advantages and returns, both `[batch, time]`, docs/APA.md eq. 2 to 4: the critic is trusted as far as it
    /// explained the returns of earlier batches. While it is untrained, all tokens of an answer get its reward beyond
    /// the running mean, undiscounted. With credit by response, they always do.
    fn advantages(&self, rewards: &Tensor, values: &Tensor, mask: &Tensor) -> Result<Advantages> {
        let TrainConfig { gamma, gae_lambda, credit, .. } = self.config;
        let share = self.critic_trust.share();
        let believed = (values * share)?.mul(mask)?;
        let (returns, _) = align::gae(rewards, &values.zeros_like()?, mask, gamma, 1.0)?;
        let mut advantages = (&returns - &believed)?;
        if credit == Credit::Token && share > 0.0 {
            let (estimated, _) = align::gae(rewards, &believed, mask, gamma, gae_lambda)?;
            advantages = (&advantages + ((estimated - &advantages)? * share)?)?;
        }
        Ok(Advantages { advantages, returns, share })
    }

    /// The mean cost of the policy's distance per answer, in rewards. The value of a prompt is the expected reward less
    /// this cost, which is the policy's value under the objective whose squared residual is the loss. On the policy's
    /// own answers it only affects the gradient's noise. docs/APA.md eq. 7.
    fn distance_worth(&self, batch: &Batch, kl: &[f64]) -> f64 {
        let power = self.config.length_power;
        let moved = batch.samples.iter().zip(kl).map(|(s, kl)| kl / (s.response.len() as f64).powf(power));
        mean(&moved.collect::<Vec<_>>()) / self.config.nats_per_reward
    }
}

/// Advantages and returns, all `[batch, time]`.
struct Advantages {
    advantages: Tensor,
    returns: Tensor,
    /// Weight given to the critic.
    share: f64,
}

/// Each answer's reward, KL penalty included, minus the mean of the other answers to its prompt.
fn against_others(batch: &Batch, rewards: &Tensor, mask: &Tensor) -> Result<Advantages> {
    let sums = align::sum_per_response(rewards, mask)?.to_vec1::<f64>()?;
    let groups: Vec<_> = batch.samples.iter().map(|s| s.prompt).collect();
    let advantages = Tensor::new(align::leave_one_out(&sums, &groups), mask.device())?;
    let returns = mask.broadcast_mul(&Tensor::new(sums, mask.device())?.unsqueeze(1)?)?;
    Ok(Advantages { advantages: mask.broadcast_mul(&advantages.unsqueeze(1)?)?, returns, share: 0.0 })
}

/// The first column of a mask: each response's first token.
fn first_tokens(mask: &Tensor) -> Result<Tensor> {
    let time = mask.dim(1)?;
    Ok(mask.narrow(1, 0, 1)?.pad_with_zeros(1, 0, time - 1)?)
}

/// Mean distance per token between the server's log-probabilities and ours, over the samples whose server's are known.
fn serve_train_gap(batch: &Batch, logprobs: &[f32]) -> Result<Option<Nats>> {
    let (mut sum, mut tokens) = (0.0, 0usize);
    for sample in &batch.samples {
        let Some(served) = sample.served_logprobs else { continue };
        sum += slice(logprobs, sample)?.iter().zip(served).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        tokens += served.len();
    }
    Ok((tokens > 0).then(|| Nats(sum / tokens as f64)))
}

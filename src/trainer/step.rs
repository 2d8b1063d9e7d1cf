//! One batch: what is fixed for it (reference, old values, advantages), then epochs of policy and critic steps. Reads
//! no file and no clock but for the duration it reports.

use std::time::Instant;

use candle_core::Tensor;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use tracing::{info, warn};

use super::batch::{Batch, Sample, slice};
use super::network::{Forward, Network, Update};
use super::{StepOutcome, Trainer};
use crate::align::{self, Clipped};
use crate::config::Algorithm;
use crate::error::{Error, Result};
use crate::optim::AdamWConfig;
use crate::types::{Nats, Rollout, StepMetrics};

/// What stays fixed while a batch is trained on: flat arrays, one entry a response token.
struct Fixed {
    ref_logprobs: Vec<f32>,
    /// Of the policy that the batch starts from.
    behavior_logprobs: Vec<f32>,
    old_values: Vec<f32>,
    advantages: Vec<f32>,
    returns: Vec<f32>,
}

/// Sums over optimizer steps, for means.
#[derive(Default)]
struct Totals {
    policy_steps: usize,
    critic_steps: usize,
    dropped: usize,
    policy_loss: f64,
    value_loss: f64,
    grad_norm: f64,
    clip_fraction: f64,
    value_clip_fraction: f64,
}

impl Trainer {
    /// Trains on one batch. `cancel` is asked between micro-batches.
    ///
    /// # Errors
    /// `Arg` for a sample that can't be trained on, `Closed` if cancelled, `Train` otherwise; the trainer is as it was
    /// before.
    pub fn step(&mut self, rollouts: &[Rollout], cancel: &dyn Fn() -> bool) -> Result<StepOutcome> {
        let started = Instant::now();
        let batch = Batch::new(rollouts, self.config.max_tokens as usize)?;
        if batch.left_out > 0 {
            warn!(left_out = batch.left_out, max_tokens = self.config.max_tokens, "samples too long to train on");
        }
        if let Some(reason) = self.nothing_to_learn(&batch) {
            return Ok(StepOutcome::Skipped { reason, dropped_steps: 0 });
        }
        let before = self.before()?;
        let outcome = self.train(&batch, cancel);
        match outcome {
            Ok(StepOutcome::Trained(mut metrics)) => {
                metrics.seconds = started.elapsed().as_secs_f64();
                Ok(StepOutcome::Trained(metrics))
            }
            other => {
                self.restore(before)?;
                other
            }
        }
    }

    /// What a batch says of the policy as it is: KL, entropy, value error. Nothing is learned from it.
    ///
    /// # Errors
    /// `Arg` for a sample that can't be read, or if none is left; `Closed` if cancelled, `Train` otherwise.
    pub fn measure(&self, rollouts: &[Rollout], cancel: &dyn Fn() -> bool) -> Result<StepMetrics> {
        let batch = Batch::new(rollouts, self.config.max_tokens as usize)?;
        if batch.samples.is_empty() {
            return Err(Error::arg("no sample is short enough to be measured"));
        }
        let all: Vec<usize> = (0..batch.samples.len()).collect();
        let mut metrics = about(&batch);
        self.fix(&batch, &all, &mut metrics, cancel)?;
        Ok(metrics)
    }

    fn nothing_to_learn(&self, batch: &Batch) -> Option<String> {
        let (samples, left_out) = (batch.samples.len(), batch.left_out);
        let reason = match batch.samples.first() {
            None if left_out == 0 => "the batch is empty".to_owned(),
            None => format!("all {left_out} samples are longer than {} tokens", self.config.max_tokens),
            Some(only) if samples == 1 && only.advantage_floor.is_none() => {
                "a single sample has nothing to be compared with".to_owned()
            }
            Some(first) if batch.without_signal() => {
                format!("all {samples} scores are {}: nothing tells a good answer from a bad one", first.score)
            }
            Some(_) => return None,
        };
        info!(reason, "batch skipped");
        Some(reason)
    }

    fn train(&mut self, batch: &Batch, cancel: &dyn Fn() -> bool) -> Result<StepOutcome> {
        let all: Vec<usize> = (0..batch.samples.len()).collect();
        let scores: Vec<f64> = batch.samples.iter().map(|s| s.score).collect();
        self.reward_scale.update(&scores);

        let mut metrics = about(batch);
        let fixed = self.fix(batch, &all, &mut metrics, cancel)?;

        let mut totals = Totals::default();
        let mut order = all;
        let mut rng = ChaCha12Rng::seed_from_u64(self.config.seed);
        // A stream of its own for every batch: a run that was saved and loaded goes on with the same order.
        rng.set_stream(self.batches);
        for _ in 0..self.config.epochs {
            order.shuffle(&mut rng);
            for minibatch in order.chunks(self.config.minibatch as usize) {
                self.minibatch(batch, minibatch, &fixed, &mut totals, cancel)?;
            }
        }
        if totals.policy_steps == 0 {
            let reason = format!("all {} optimizer steps were dropped: loss or gradient not finite", totals.dropped);
            return Ok(StepOutcome::Skipped { reason, dropped_steps: totals.dropped });
        }
        self.kl_controller.update(
            metrics.kl_per_response,
            Nats(self.config.ppo.kl_target),
            metrics.samples,
            self.config.ppo.kl_horizon,
        );
        self.batches += 1;
        totals.report(&mut metrics);
        metrics.candidate_kl_per_response = self.candidate_kl(batch, &fixed, cancel)?;
        Ok(StepOutcome::Trained(metrics))
    }

    /// The passes without gradient and what follows from them.
    fn fix(&self, batch: &Batch, all: &[usize], metrics: &mut StepMetrics, cancel: &dyn Fn() -> bool) -> Result<Fixed> {
        let (policy, critic) = (self.policy.lora.detached(), self.critic.lora.detached());
        let (mut ref_logprobs, mut behavior_logprobs, mut old_values) = (Vec::new(), Vec::new(), Vec::new());
        let mut entropy = 0.0;
        for group in batch.split(all, self.config.micro_batch_tokens as usize) {
            let forward = Forward::new(&self.decoder, &batch.group(&group))?;
            go_on(cancel)?;
            ref_logprobs.extend(forward.logprobs(None)?.to_vec1::<f32>()?);
            go_on(cancel)?;
            let (logprobs, entropies) = forward.logprobs_and_entropy(&policy)?;
            behavior_logprobs.extend(logprobs.to_vec1::<f32>()?);
            entropy += entropies.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
            go_on(cancel)?;
            old_values.extend(forward.values(&critic, self.critic.head()?)?.detach().to_vec1::<f32>()?);
        }

        let device = self.decoder.device();
        let padded = |flat: &[f32]| batch.padded(&flat.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), device);
        let mask = batch.padded(&vec![1.0; batch.rows()], device)?; // [batch, time]
        let (reference, behavior, values) = (padded(&ref_logprobs)?, padded(&behavior_logprobs)?, padded(&old_values)?);

        let k1 = align::kl_k1(&behavior, &reference)?;
        metrics.kl_k1_per_token = Nats(align::scalar(&align::masked_mean(&k1, &mask)?)?);
        metrics.kl_k3_per_token =
            Nats(align::scalar(&align::masked_mean(&align::kl_k3(&behavior, &reference)?, &mask)?)?);
        metrics.kl_per_response = Nats(mean(&align::sum_per_response(&k1, &mask)?.to_vec1::<f64>()?));

        metrics.entropy = Nats(entropy / batch.rows().max(1) as f64);
        metrics.serve_train_gap = serve_train_gap(batch, &behavior_logprobs)?;

        let scaled = |s: &Sample| self.reward_scale.scale(s.score, self.config.score_clip);
        let scores: Vec<f64> = batch.samples.iter().map(scaled).collect();
        let mut rewards = align::terminal_rewards(&Tensor::new(scores, device)?, &mask)?;
        if self.config.algorithm == Algorithm::Ppo {
            rewards = (rewards + align::kl_penalty(&behavior, &reference, &mask, self.kl_controller.kl_coef)?)?;
        }
        let (mut advantages, returns) =
            align::gae(&rewards, &values, &mask, self.config.gamma, self.config.gae_lambda)?;
        metrics.value_error = align::scalar(&align::masked_mean(&(&values - &returns)?.sqr()?, &mask)?)?.sqrt();
        metrics.explained_variance = align::explained_variance(&values, &returns, &mask)?;
        if self.config.whiten {
            advantages = align::whiten(&advantages, &mask)?;
        }
        let flat =
            |padded: &Tensor| -> Result<Vec<f32>> { Ok(batch.flat(padded)?.into_iter().map(|x| x as f32).collect()) };
        let mut advantages = flat(&advantages)?;
        for sample in &batch.samples {
            if let (Some(floor), Some(own)) = (sample.advantage_floor, advantages.get_mut(sample.rows.clone())) {
                own.iter_mut().for_each(|advantage| *advantage = advantage.max(floor as f32));
            }
        }
        Ok(Fixed { advantages, returns: flat(&returns)?, ref_logprobs, behavior_logprobs, old_values })
    }

    /// KL of the policy as it is now to the initial model, by samples of the policy that the batch started from: k3 a
    /// token, each weighted by its ratio of probabilities, as PPO weighs it. Over as many samples as the gate asks for,
    /// spread over the batch.
    fn candidate_kl(&self, batch: &Batch, fixed: &Fixed, cancel: &dyn Fn() -> bool) -> Result<Option<Nats>> {
        let wanted = (self.config.gate.kl_samples as usize).min(batch.samples.len());
        if wanted == 0 {
            return Ok(None);
        }
        let chosen: Vec<usize> = (0..wanted).map(|i| i * batch.samples.len() / wanted).collect();
        let policy = self.policy.lora.detached();
        let mut sum = 0.0;
        for group in batch.split(&chosen, self.config.micro_batch_tokens as usize) {
            go_on(cancel)?;
            let samples = batch.group(&group);
            let logprobs = Forward::new(&self.decoder, &samples)?.logprobs(Some(&policy))?.to_vec1::<f32>()?;
            let mut now = logprobs.into_iter().map(f64::from);
            for sample in samples {
                let (reference, behavior) =
                    (slice(&fixed.ref_logprobs, sample)?, slice(&fixed.behavior_logprobs, sample)?);
                for (reference, behavior) in reference.iter().zip(behavior) {
                    let now = now.next().unwrap_or(f64::NAN);
                    let (reference, behavior) = (f64::from(*reference), f64::from(*behavior));
                    // w (exp(−d) − 1 + d) with w = exp(now − behavior), d = now − reference: this form can't overflow.
                    let weight = (now - behavior).exp();
                    sum += (reference - behavior).exp() + weight * (now - reference - 1.0);
                }
            }
        }
        Ok(Some(Nats(sum / wanted as f64)))
    }

    /// One policy step and one critic step.
    fn minibatch(
        &mut self,
        batch: &Batch,
        minibatch: &[usize],
        fixed: &Fixed,
        totals: &mut Totals,
        cancel: &dyn Fn() -> bool,
    ) -> Result<()> {
        let groups = batch.split(minibatch, self.config.micro_batch_tokens as usize);
        let micro_batches: Vec<Vec<&Sample>> = groups.iter().map(|g| batch.group(g)).collect();
        let (decoder, config) = (&self.decoder, &self.config);
        let adamw = |lr| AdamWConfig { lr, betas: config.betas, weight_decay: config.weight_decay };

        let policy_loss = |network: &Network, samples: &[&Sample]| -> Result<Clipped> {
            go_on(cancel)?;
            let logprobs = Forward::new(decoder, samples)?.logprobs(Some(&network.lora))?;
            let at = |flat: &[f32]| rows_like(flat, samples, &logprobs);
            let (advantages, mask) = (at(&fixed.advantages)?, logprobs.ones_like()?);
            let plain = |loss| Clipped { loss, clip_fraction: 0.0 };
            Ok(match config.algorithm {
                Algorithm::Apa => {
                    plain(align::apa_loss(&logprobs, &at(&fixed.ref_logprobs)?, &advantages, &mask, config.lambda)?)
                }
                Algorithm::Awr => plain(align::awr_loss(&logprobs, &advantages, &mask, config.lambda)?),
                Algorithm::Ppo => {
                    let behavior = at(&fixed.behavior_logprobs)?;
                    align::ppo_loss(&logprobs, &behavior, &advantages, &mask, config.ppo.clip_range)?
                }
            })
        };
        let value_loss = |network: &Network, samples: &[&Sample]| -> Result<Clipped> {
            go_on(cancel)?;
            let values = Forward::new(decoder, samples)?.values(&network.lora, network.head()?)?;
            let at = |flat: &[f32]| rows_like(flat, samples, &values);
            let (returns, mask) = (at(&fixed.returns)?, values.ones_like()?);
            if config.algorithm == Algorithm::Ppo {
                let old_values = at(&fixed.old_values)?;
                return align::clipped_value_loss(&values, &old_values, &returns, &mask, config.ppo.value_clip_range);
            }
            Ok(Clipped { loss: align::value_loss(&values, &returns, &mask)?, clip_fraction: 0.0 })
        };

        match self.policy.update(&micro_batches, config.clip_norm, adamw(config.lr), policy_loss)? {
            Update::Taken { loss, grad_norm, clip_fraction } => {
                totals.policy_steps += 1;
                totals.policy_loss += loss;
                totals.grad_norm += grad_norm;
                totals.clip_fraction += clip_fraction;
            }
            Update::Dropped { what, value } => totals.drop("policy", what, value),
        }
        match self.critic.update(&micro_batches, config.clip_norm, adamw(config.critic_lr), value_loss)? {
            Update::Taken { loss, clip_fraction, .. } => {
                totals.critic_steps += 1;
                totals.value_loss += loss;
                totals.value_clip_fraction += clip_fraction;
            }
            Update::Dropped { what, value } => totals.drop("critic", what, value),
        }
        Ok(())
    }
}

impl Totals {
    fn drop(&mut self, network: &'static str, what: &'static str, value: f64) {
        self.dropped += 1;
        warn!(network, what, value, "optimizer step dropped: not finite");
    }

    fn report(&self, metrics: &mut StepMetrics) {
        let (policy, critic) = (self.policy_steps.max(1) as f64, self.critic_steps.max(1) as f64);
        metrics.steps = self.policy_steps;
        metrics.dropped_steps = self.dropped;
        metrics.policy_loss = self.policy_loss / policy;
        metrics.grad_norm = self.grad_norm / policy;
        metrics.clip_fraction = self.clip_fraction / policy;
        metrics.value_loss = self.value_loss / critic;
        metrics.value_clip_fraction = self.value_clip_fraction / critic;
    }
}

/// What is known of a batch before any pass.
fn about(batch: &Batch) -> StepMetrics {
    let samples = batch.samples.len();
    StepMetrics {
        samples,
        left_out: batch.left_out,
        response_tokens: batch.rows(),
        mean_reward: mean(&batch.samples.iter().map(|s| s.score).collect::<Vec<_>>()),
        mean_length: batch.rows() as f64 / samples.max(1) as f64,
        ..StepMetrics::default()
    }
}

/// Mean distance a token between the server's log-probabilities and ours, over the samples whose server's are known.
fn serve_train_gap(batch: &Batch, logprobs: &[f32]) -> Result<Option<Nats>> {
    let (mut sum, mut tokens) = (0.0, 0usize);
    for sample in &batch.samples {
        let Some(served) = sample.served_logprobs else { continue };
        sum += slice(logprobs, sample)?.iter().zip(served).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        tokens += served.len();
    }
    Ok((tokens > 0).then(|| Nats(sum / tokens as f64)))
}

/// The samples' entries of a flat array, `[rows]`, on the device of `like`.
fn rows_like(flat: &[f32], samples: &[&Sample], like: &Tensor) -> Result<Tensor> {
    let mut rows = Vec::with_capacity(like.elem_count());
    for sample in samples {
        rows.extend_from_slice(slice(flat, sample)?);
    }
    Ok(Tensor::new(rows, like.device())?)
}

fn go_on(cancel: &dyn Fn() -> bool) -> Result<()> {
    if cancel() { Err(Error::closed("training was stopped; the batch has changed nothing")) } else { Ok(()) }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len().max(1) as f64
}

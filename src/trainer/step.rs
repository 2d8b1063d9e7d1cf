//! Trains on one batch: epochs of policy and critic steps with the batch's fixed values. Reads no file, and no clock
//! except for the duration it reports.

use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use tracing::{info, warn};

use super::batch::{Batch, Sample, slice};
use super::control::{Guard, Held, next_pace};
use super::fixed::Fixed;
use super::loss::{policy_loss, rows_like};
use super::network::{Forward, Network, Saved, Update};
use super::totals::Totals;
use super::{StepOutcome, Trainer, check_cancelled, mean};
use crate::align::{self, Clipped};
use crate::config::{Algorithm, Credit};
use crate::error::{Error, Result};
use crate::optim::AdamWConfig;
use crate::policy::Lora;
use crate::types::{Nats, Rollout, StepMetrics};

/// Least distance of a score from the running mean, in standard deviations, that is worth training on.
const LEAST_TOLD: f64 = 1e-3;

impl Trainer {
    /// Trains on one batch. `cancel` is checked between micro-batches.
    ///
    /// # Errors
    /// `Arg` for a sample that can't be trained on, `Closed` if cancelled, `Train` otherwise; the trainer is then
    /// unchanged. `Io` if it can't go back ([`Trainer::keep_before_in`]): then it has to be loaded again.
    pub fn step(&mut self, rollouts: &[Rollout], cancel: &dyn Fn() -> bool) -> Result<StepOutcome> {
        self.step_with(rollouts, &[], cancel)
    }

    /// Trains on one batch, and once more on earlier answers, for the critic alone.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_with(
        &mut self,
        rollouts: &[Rollout],
        replay: &[Rollout],
        cancel: &dyn Fn() -> bool,
    ) -> Result<StepOutcome> {
        let started = Instant::now();
        let max_tokens = self.config.max_tokens as usize;
        let (mut batch, replay) = (Batch::new(rollouts, max_tokens)?, Batch::new(replay, max_tokens)?);
        if self.remote.is_some() {
            // A server's log-probabilities are of temperature 1.
            batch.samples.iter_mut().for_each(|sample| sample.temperature = 1.0);
        }
        if batch.shortened > 0 {
            let samples = batch.shortened;
            warn!(samples, max_tokens, "samples too long to train on whole: their last part is learned from");
        }
        if let Some(reason) = self.nothing_to_learn(&batch) {
            return Ok(StepOutcome::Skipped { reason, dropped_steps: 0, wait: true });
        }
        let before = self.before()?;
        let outcome = self.train(&batch, &replay, cancel);
        match outcome {
            Ok(StepOutcome::Trained(mut metrics)) => {
                metrics.seconds = started.elapsed().as_secs_f64();
                Ok(StepOutcome::Trained(metrics))
            }
            other => {
                let pace = self.pace;
                self.restore(before)?;
                // If the same batch comes again, it is trained on at a lower rate.
                self.pace = pace;
                other
            }
        }
    }

    /// Adds scores to the mean and the scale that others are compared with. Nothing is learned from them.
    pub fn note(&mut self, scores: &[f64]) {
        self.reward_scale.update(scores);
        self.baseline.update(scores);
    }

    /// Measures the present policy on a batch: KL, entropy, value error. Nothing is learned from it.
    ///
    /// # Errors
    /// `Arg` for a sample that can't be read, or if there is none; `Closed` if cancelled, `Train` otherwise.
    pub fn measure(&self, rollouts: &[Rollout], cancel: &dyn Fn() -> bool) -> Result<StepMetrics> {
        let batch = Batch::new(rollouts, self.config.max_tokens as usize)?;
        if batch.samples.is_empty() {
            return Err(Error::arg("there is no sample to be measured"));
        }
        let mut metrics = about(&batch);
        self.fix(&batch, &[], &mut metrics, cancel)?;
        Ok(metrics)
    }

    /// Log-probabilities of each rollout's response tokens, nats, by the trainer's own forward pass: under `policy`, or
    /// under the initial model. For rollouts that another policy sampled.
    ///
    /// # Errors
    /// As [`Trainer::measure`].
    pub fn logprobs(
        &self,
        rollouts: &[Rollout],
        policy: Option<&Lora>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let batch = Batch::new(rollouts, self.config.max_tokens as usize)?;
        let policy = policy.map(Lora::detached);
        let mut all = Vec::with_capacity(batch.rows());
        for group in batch.split(&batch.all(), self.config.micro_batch_tokens as usize) {
            check_cancelled(cancel)?;
            let logprobs = Forward::new(&self.decoder, &batch.group(&group))?.logprobs(policy.as_ref())?;
            all.extend(logprobs.to_vec1::<f32>()?);
        }
        let own = |(sample, rollout): (&Sample, &Rollout)| {
            // Nothing is known of the truncated part, and nothing needs to be.
            let mut logprobs = vec![0.0; rollout.response.len() - sample.response.len()];
            logprobs.extend_from_slice(slice(&all, sample)?);
            Ok(logprobs)
        };
        batch.samples.iter().zip(rollouts).map(own).collect()
    }

    fn nothing_to_learn(&self, batch: &Batch) -> Option<String> {
        let scores = batch.scores();
        let (mut scale, mut baseline) = (self.reward_scale, self.baseline);
        scale.update(&scores);
        baseline.update(&scores);
        let told = |score: &f64| ((score - baseline.mean) / scale.std()).abs() > LEAST_TOLD;
        let floors = batch.samples.iter().any(|s| s.advantage_floor.is_some());
        let reason = match batch.samples.first() {
            None => "the batch is empty".to_owned(),
            Some(_) if floors => return None,
            Some(_) if batch.samples.len() == 1 => "a single sample has nothing to be compared with".to_owned(),
            Some(first) if !scores.iter().any(told) => {
                let (samples, score) = (scores.len(), first.score);
                format!("all {samples} scores are {score}, and so were those before: nothing tells good from bad")
            }
            Some(_) => return None,
        };
        info!(reason, "batch skipped");
        Some(reason)
    }

    fn train(&mut self, batch: &Batch, replay: &Batch, cancel: &dyn Fn() -> bool) -> Result<StepOutcome> {
        self.note(&batch.scores());

        let (mut rng, mut totals) = (ChaCha12Rng::seed_from_u64(self.config.seed), Totals::default());
        // A stream of its own for every batch, so that a saved and loaded run continues in the same order.
        rng.set_stream(self.batches);
        self.remind_critic(replay, &mut rng, cancel)?;

        let mut metrics = StepMetrics { lr: self.config.lr * self.pace, ..about(batch) };
        let watched = Guard::choose(batch, self.config.kl_samples as usize);
        let mut fixed = self.fix(batch, &watched, &mut metrics, cancel)?;
        self.begin_there(batch, &mut fixed, cancel)?;
        self.critic_trust.update(fixed.errors.1, fixed.errors.0);
        let decoder = self.decoder.clone();
        let guard = Guard::new(&decoder, batch, &fixed.states, fixed.start, &self.config)?;

        let mut halvings = 0;
        let mut order = batch.all();
        for _ in 0..self.config.epochs {
            order.shuffle(&mut rng);
            for minibatch in order.chunks(self.config.minibatch as usize) {
                if metrics.stopped.is_none() {
                    let before = self.policy_step(batch, minibatch, &fixed, &mut totals, cancel)?;
                    if let (Some(guard), Some(before)) = (&guard, before) {
                        let first = totals.policy_steps == 1;
                        let Held { at, over, halvings: needed, taken_back } = guard.hold(&mut self.policy, before)?;
                        (metrics.kl_step, metrics.candidate_kl_per_response) = (Some(at.step), Some(at.total));
                        totals.policy_steps -= usize::from(taken_back);
                        if over.as_ref().is_some_and(|over| over.too_fast) {
                            // Later steps are short because earlier ones were long, so they say less about the rate.
                            halvings = if first { needed } else { 1 };
                        }
                        if over.is_some() {
                            let share = if taken_back { 0.0 } else { 0.5f64.powi(needed) };
                            self.shorten_there(share, cancel)?;
                        }
                        metrics.stopped = over.map(|over| over.reason);
                    }
                }
                self.critic_step(batch, minibatch, &fixed, &mut totals, cancel)?;
            }
        }
        if totals.policy_steps == 0 {
            let dropped =
                || format!("all {} optimizer steps were dropped: loss or gradient not finite", totals.dropped);
            let reason = metrics.stopped.map_or_else(dropped, |over| format!("its first step was taken back: {over}"));
            let pace = self.pace;
            if halvings > 0 {
                self.pace = next_pace(pace, halvings, Nats(f64::NAN), self.config.kl_step);
            }
            return Ok(StepOutcome::Skipped { reason, dropped_steps: totals.dropped, wait: self.pace < pace });
        }
        if let Some(reason) = &metrics.stopped {
            info!(reason, steps = totals.policy_steps, "the policy's steps ended early");
        }
        self.kl_controller.update(
            metrics.kl_per_response,
            Nats(self.config.ppo.kl_target),
            metrics.samples,
            self.config.ppo.kl_horizon,
        );
        if let Some(kl_step) = metrics.kl_step.filter(|_| self.config.kl_step > 0.0) {
            self.pace = next_pace(self.pace, halvings, kl_step, self.config.kl_step);
        }
        self.end_there(cancel)?;
        self.batches += 1;
        totals.report(&mut metrics);
        Ok(StepOutcome::Trained(metrics))
    }

    fn has_critic(&self) -> bool {
        self.remote.is_none() && self.config.algorithm != Algorithm::Rloo
    }

    /// One pass over earlier answers, for the critic alone.
    fn remind_critic(&mut self, replay: &Batch, rng: &mut ChaCha12Rng, cancel: &dyn Fn() -> bool) -> Result<()> {
        if replay.samples.is_empty() || !self.has_critic() {
            return Ok(());
        }
        let mut order = replay.all();
        order.shuffle(rng);
        let of = |s: &Sample| vec![self.scaled(s.score) as f32; s.response.len()];
        let returns: Vec<f32> = replay.samples.iter().flat_map(of).collect();
        let mut totals = Totals::default();
        for minibatch in order.chunks(self.config.minibatch as usize) {
            self.value_step(replay, minibatch, &returns, None, &mut totals, cancel)?;
        }
        Ok(())
    }

    /// One policy step; returns the policy before it, if it was taken.
    fn policy_step(
        &mut self,
        batch: &Batch,
        minibatch: &[usize],
        fixed: &Fixed,
        totals: &mut Totals,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Option<Saved>> {
        if self.remote.is_some() {
            return self.step_there(&batch.group(minibatch), fixed, totals, cancel);
        }
        let micro_batches = batch.micro_batches(minibatch, self.config.micro_batch_tokens as usize);
        let (decoder, config) = (&self.decoder, &self.config);
        let loss = |network: &Network, samples: &[&Sample]| -> Result<Clipped> {
            check_cancelled(cancel)?;
            policy_loss(&Forward::new(decoder, samples)?.logprobs(Some(&network.lora))?, fixed, samples, config)
        };
        let whole = config.credit == Credit::Response;
        let weigh = |samples: &[&Sample]| if whole { samples.len() } else { rows(samples) };
        let adamw = AdamWConfig { lr: config.lr * self.pace, betas: config.betas, weight_decay: config.weight_decay };
        let mut before = None;
        // Not earlier: beside the activations there would be one copy more.
        let keep = |network: &Network| {
            before = Some(network.save()?);
            Ok(())
        };
        match self.policy.update(&micro_batches, config.clip_norm, adamw, weigh, loss, keep)? {
            Update::Taken { loss, grad_norm, clip_fraction } => {
                totals.policy_steps += 1;
                totals.policy_loss += loss;
                totals.grad_norm += grad_norm;
                totals.clip_fraction += clip_fraction;
                Ok(before)
            }
            Update::Dropped { what, value } => {
                totals.drop("policy", what, value);
                Ok(None)
            }
        }
    }

    /// One critic step.
    fn critic_step(
        &mut self,
        batch: &Batch,
        minibatch: &[usize],
        fixed: &Fixed,
        totals: &mut Totals,
        cancel: &dyn Fn() -> bool,
    ) -> Result<()> {
        if !self.has_critic() {
            return Ok(());
        }
        let clipped = (self.config.algorithm == Algorithm::Ppo).then_some(&fixed.old_values[..]);
        self.value_step(batch, minibatch, &fixed.returns, clipped, totals, cancel)
    }

    /// One step of the critic towards `returns`; with `old_values` clipped to them, as in PPO.
    fn value_step(
        &mut self,
        batch: &Batch,
        minibatch: &[usize],
        returns: &[f32],
        old_values: Option<&[f32]>,
        totals: &mut Totals,
        cancel: &dyn Fn() -> bool,
    ) -> Result<()> {
        let micro_batches = batch.micro_batches(minibatch, self.config.micro_batch_tokens as usize);
        let (decoder, config) = (&self.decoder, &self.config);
        let loss = |network: &Network, samples: &[&Sample]| -> Result<Clipped> {
            check_cancelled(cancel)?;
            let values = Forward::new(decoder, samples)?.values(&network.lora, network.head()?)?;
            let at = |flat: &[f32]| rows_like(flat, samples, &values);
            let (returns, mask) = (at(returns)?, values.ones_like()?);
            match old_values {
                Some(old) => {
                    let range = config.ppo.value_clip_range;
                    align::clipped_value_loss(&values, &at(old)?, &returns, &mask, range)
                }
                None => Ok(Clipped { loss: align::value_loss(&values, &returns, &mask)?, clip_fraction: 0.0 }),
            }
        };
        let adamw = AdamWConfig { lr: config.critic_lr, betas: config.betas, weight_decay: config.weight_decay };
        match self.critic.update(&micro_batches, config.clip_norm, adamw, |s| rows(s), loss, |_| Ok(()))? {
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

/// Number of response tokens of some samples.
fn rows(samples: &[&Sample]) -> usize {
    samples.iter().map(|s| s.rows.len()).sum()
}

/// What is known of a batch before any forward pass.
fn about(batch: &Batch) -> StepMetrics {
    let samples = batch.samples.len();
    StepMetrics {
        samples,
        shortened: batch.shortened,
        response_tokens: batch.rows(),
        mean_reward: mean(&batch.scores()),
        mean_length: batch.rows() as f64 / samples.max(1) as f64,
        ..StepMetrics::default()
    }
}
